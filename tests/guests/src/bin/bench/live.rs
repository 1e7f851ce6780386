//! The same operations with few and with many live slots: the cost must not depend on their number.

use guests::bare::vector;
use guests::guest_shim::hcall_abi::Call;
use guests::guest_shim::store::Field;

use crate::bench::{Bench, Scenario, timed};
use crate::pool::{self, Pool};

/// Operations of a round, where there are so many slots.
const OPS: usize = 16;
/// Vectors of the slot that is written.
const OWN: [u8; 2] = [vector::LAST - 1, vector::LAST];
/// Live slots. Four devices of Sapphire Rapids have 8,192; four with as many as there can be nearly fill the largest table that a remapping
/// unit has.
const COUNTS: [usize; 8] = [1, 16, 256, 1024, 4096, 8192, 16_128, 4 * 16_128];

/// Trapped writes, mask and map at each number of live slots: those that the first device cannot have are in the others.
pub fn measure(bench: &mut Bench, pool: &mut Pool, others: &mut [Option<Pool>]) {
    for live in COUNTS {
        let of_first = live.min(pool.slots);
        if fill_others(others, live - of_first) {
            pool.fill(of_first - 1);
            trapped(bench, pool, live);
            pool.fill(of_first);
            by_call(bench, pool, live, of_first);
        }
    }
    for other in others.iter().flatten() {
        pool.errors += other.errors;
    }
}

/// Whether the other devices have so many slots: they are live then.
fn fill_others(others: &mut [Option<Pool>], mut count: usize) -> bool {
    if others.iter().flatten().map(|other| other.slots).sum::<usize>() < count {
        return false;
    }
    for other in others.iter_mut().flatten() {
        let some = count.min(other.slots);
        other.fill(some);
        count -= some;
    }
    true
}

/// One slot is written, to other vectors that no other slot has: first live, then masked. The others were mapped by calls.
fn trapped(bench: &mut Bench, pool: &mut Pool, live: usize) {
    let [one, other] = OWN;
    pool.write_message(0, one);
    pool.write(0, Field::Control, 0);
    let turn = |pool: &mut Pool| pool.turn = !pool.turn;
    let data = |pool: &mut Pool| {
        let vectors = if pool.turn { [other, one] } else { [one, other] };
        timed(|| (0..OPS).for_each(|n| pool.write(0, Field::Data, vectors[n % 2].into())))
    };
    bench.measure(Scenario::new("slot-write", "data-of-live-slot", live, OPS), pool, turn, data);
    pool.write(0, Field::Control, 1);
    bench.measure(Scenario::new("slot-write", "data", live, OPS), pool, turn, data);
    pool.blank(0);
}

/// The last of the first device's slots, which has `own` of those that are live.
fn by_call(bench: &mut Bench, pool: &mut Pool, live: usize, own: usize) {
    let ops = OPS.min(own);
    let first = own - ops;
    let each = |pool: &mut Pool, call| (first..own).for_each(|n| pool.on_slot(call, n, 0));
    let mask = |pool: &mut Pool| timed(|| each(pool, Call::Mask));
    bench.measure(Scenario::new("mask", "hypercall", live, ops), pool, |pool| each(pool, Call::Unmask), mask);
    let unmap = |pool: &mut Pool| {
        each(pool, Call::Unmap);
        pool.put_items(first, ops, pool::own_vector);
    };
    let map = |pool: &mut Pool| timed(|| (0..ops).for_each(|n| pool.map_items(n, 1)));
    bench.measure(Scenario::new("map-1", "hypercall", live, ops), pool, unmap, map);
}
