//! A vector that fires without end, beside others that behave. The guest's module says `storm=`.

use guests::bare::{apic, idle, interrupts, vector};
use guests::println;

use crate::function::{Vf, errors, expect};

/// The entry that rages, and the ticks that it does so and between two of its interrupts.
const LOUD: u16 = 1;
const LASTS: u64 = 2_000_000;
const EVERY: u64 = 2_500;
/// The entry that fires now and then, and the storm's interrupts between two of its.
const QUIET: u16 = 2;
const BETWEEN: u32 = 100;
const LIMIT: u64 = 100_000_000;

/// Nothing but this: interrupts are counted by their vectors alone.
pub fn run(vf: &mut Vf) -> Result<(), &'static str> {
    let (loud, quiet) = (vf.handle(LOUD), vf.handle(QUIET));
    let came = |entry| interrupts::count(vector::of_slot(entry));
    let (mut raised, mut expected) = (0, 0);
    let end = apic::tsc() + LASTS;
    while apic::tsc() < end {
        vf.submit(LOUD, loud);
        raised += 1;
        if raised % BETWEEN == 0 {
            vf.submit(QUIET, quiet);
            expected += 1;
        }
        idle::linger(EVERY);
    }
    expect(idle::poll_until(LIMIT, || came(QUIET) == expected), "another vector lost interrupts");
    expect(came(LOUD) < raised / 4, "most of the storm came");
    expect(vf.read(LOUD)[3] == 1 && vf.read(QUIET)[3] == 0, "the wrong one is masked");
    expect(vf.is_pending(LOUD), "nothing is pending");
    let before = came(LOUD);
    vf.set_mask(LOUD, false);
    expect(idle::poll_until(LIMIT, || came(LOUD) == before + 1), "what was pending did not come once");
    let errors = errors();
    println!("@result storm={raised} came={before} quiet={expected} errors={errors}");
    if errors == 0 { Ok(()) } else { Err("not everything was right") }
}
