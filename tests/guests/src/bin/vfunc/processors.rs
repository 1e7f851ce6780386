//! Vectors move to another processor and back while they are in use, those of the device and the hypervisor's own.

use core::sync::atomic::{AtomicU32, Ordering::SeqCst};

use guests::bare::{apic, idle, smp};
use guests::println;

use crate::emulated;
use crate::function::{Vf, expect};

/// Entries that move.
const ENTRIES: core::ops::Range<u16> = 1..17;
/// How often they move there and back.
const MOVES: u32 = 8;

/// Interrupts that came to the second processor.
static ON_SECOND: AtomicU32 = AtomicU32::new(0);

/// To be called by the handler of all interrupts.
pub fn note() {
    if smp::number() == 1 {
        ON_SECOND.fetch_add(1, SeqCst);
    }
}

pub fn all(vf: &mut Vf) {
    if !smp::start(1, |_| idle::enable_interrupts()) {
        return expect(false, "the second processor does not start");
    }
    for _ in 0..MOVES {
        on(vf, 1, 17);
        on(vf, apic::id(), 0);
    }
    while_masked(vf);
    println!("vfunc: {} interrupts on the second processor", ON_SECOND.load(SeqCst));
}

/// Sends all to a processor, of which the second one then sees `seen`.
fn on(vf: &mut Vf, apic_id: u32, seen: u32) {
    let before = ON_SECOND.load(SeqCst);
    for entry in ENTRIES.chain([0]) {
        vf.send_to(entry, apic_id);
    }
    vf.fire(ENTRIES);
    emulated::command(vf);
    expect(vf.take_signals() == 1, "not one interrupt for one command");
    expect(ON_SECOND.load(SeqCst) - before == seen, "interrupts came to the wrong processor");
}

/// What waits goes where the entry leads when it is unmasked.
fn while_masked(vf: &mut Vf) {
    let before = ON_SECOND.load(SeqCst);
    for entry in [0, 3] {
        vf.set_mask(entry, true);
    }
    vf.raise_held(3);
    emulated::command(vf);
    for entry in [0, 3] {
        vf.send_to(entry, 1);
    }
    vf.expect_from(&[3], |vf| vf.set_mask(3, false));
    vf.set_mask(0, false);
    expect(vf.take_signals() == 1, "vector 0 did not come once");
    expect(ON_SECOND.load(SeqCst) - before == 2, "what waited came to the old processor");
    for entry in [0, 3] {
        vf.send_to(entry, apic::id());
    }
}
