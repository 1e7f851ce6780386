//! Slots that a driver has the hypervisor program.

use guests::guest_shim::hcall_abi::Call;

use crate::bench::{Bench, Scenario, timed};
use crate::pool::{self, BATCH, Pool};

/// Slots of a round.
const OPS: usize = 16;

fn each(pool: &mut Pool, call: Call) {
    (0..OPS).for_each(|n| pool.on_slot(call, n, 0));
}

/// All calls.
pub fn measure(bench: &mut Bench, pool: &mut Pool) {
    pool.fill(OPS);
    let unmask = |pool: &mut Pool| timed(|| each(pool, Call::Unmask));
    bench.measure(Scenario::new("unmask", "hypercall", OPS, OPS), pool, |pool| each(pool, Call::Mask), unmask);
    retarget(bench, pool);
    let alloc_and_free = |pool: &mut Pool| timed(|| (0..OPS).for_each(|_| pool.alloc_and_free()));
    bench.measure(Scenario::new("alloc-free", "hypercall", OPS, OPS), pool, |_| {}, alloc_and_free);
    unmap(bench, pool);
    for (name, count) in [("map-16", 16), ("map-256", BATCH)] {
        pool.fill(count);
        let unmap = |pool: &mut Pool| {
            (0..count).for_each(|n| pool.on_slot(Call::Unmap, n, 0));
            pool.put_items(0, count, pool::shared_vector);
        };
        let map = |pool: &mut Pool| timed(|| pool.map_items(0, count));
        bench.measure(Scenario::new(name, "hypercall", count, count), pool, unmap, map);
    }
}

fn retarget(bench: &mut Bench, pool: &mut Pool) {
    let turn = |pool: &mut Pool| pool.turn = !pool.turn;
    let retarget = |pool: &mut Pool| {
        let vector = if pool.turn { pool::own_vector } else { pool::shared_vector };
        timed(|| (0..OPS).for_each(|n| pool.on_slot(Call::SetAffinity, n, pool.target(vector(n)))))
    };
    pool.turn = false;
    bench.measure(Scenario::new("retarget", "hypercall", OPS, OPS), pool, turn, retarget);
}

fn unmap(bench: &mut Bench, pool: &mut Pool) {
    let map = |pool: &mut Pool| {
        pool.put_items(0, OPS, pool::shared_vector);
        pool.map_items(0, OPS);
    };
    let unmap = |pool: &mut Pool| timed(|| each(pool, Call::Unmap));
    each(pool, Call::Unmap);
    bench.measure(Scenario::new("unmap", "hypercall", OPS, OPS), pool, map, unmap);
    map(pool);
}
