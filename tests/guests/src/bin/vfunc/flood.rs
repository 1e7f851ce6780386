//! Errors of descriptors at the highest rate: the device reports each to the hypervisor, which must have time for other guests.

use guests::bare::{apic, idle, interrupts};
use guests::dsa::{Registers, spec};
use guests::println;

use crate::emulated;
use crate::function::{Vf, errors, expect};

/// How many, and the ticks between two of them: the device has to get at its work queue.
const ERRORS: u32 = 2_000;
const EVERY: u64 = 2_500;
/// Ticks in which nothing happens: the hypervisor has calmed down after that.
const REST: u64 = 8_000_000;
const LIMIT: u64 = 20_000_000;

pub fn run(vf: &mut Vf) -> Result<(), &'static str> {
    for _ in 0..ERRORS {
        vf.submit_raw(&emulated::wrong());
        idle::linger(EVERY);
    }
    vf.dsa.registers().write(spec::SWERR, u32::MAX);
    vf.dsa.registers().write(spec::GENCTRL, spec::GENCTRL_ERROR);
    for rest in [0, 0, 0, 0, REST] {
        idle::linger(rest);
        let (signals, began) = (interrupts::count(vf.leads_to(0)), apic::tsc());
        vf.submit_raw(&emulated::wrong());
        // Asleep: nothing but the signal wakes it before the limit.
        let came = idle::wait_until(LIMIT, || interrupts::count(vf.leads_to(0)) > signals);
        expect(came && apic::tsc() < began + LIMIT / 2, "an error is not told of in time");
    }
    let errors = errors();
    println!("@result flood={ERRORS} errors={errors}");
    if errors == 0 { Ok(()) } else { Err("not everything was right") }
}
