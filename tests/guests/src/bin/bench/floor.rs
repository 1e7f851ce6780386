//! Exits that do nothing: the floor under everything else.

use core::arch::x86_64::__cpuid;

use guests::guest_shim::hcall_abi::Call;

use crate::bench::{Bench, Scenario, timed};
use crate::pool::Pool;

const OPS: usize = 16;

/// CPUID, and a call that does nothing.
pub fn measure(bench: &mut Bench, pool: &mut Pool) {
    let cpuid = |_: &mut Pool| {
        timed(|| {
            for _ in 0..OPS {
                core::hint::black_box(__cpuid(0));
            }
        })
    };
    bench.measure(Scenario::new("null-exit", "cpuid", 0, OPS), pool, |_| {}, cpuid);
    let nop = |pool: &mut Pool| {
        timed(|| {
            for _ in 0..OPS {
                pool.call(Call::Nop, [0; 4]);
            }
        })
    };
    bench.measure(Scenario::new("null-exit", "hypercall", 0, OPS), pool, |_| {}, nop);
}
