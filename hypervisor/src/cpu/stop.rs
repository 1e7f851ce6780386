//! Stops all processors at a panic.

use core::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use super::{percpu, stop};
use crate::{
    apic,
    clock::{self, poll},
};

/// Somebody has panicked.
static STOPPING: AtomicBool = AtomicBool::new(false);
/// Processors that have stopped for it.
static STOPPED: AtomicUsize = AtomicUsize::new(0);

/// What the others get to stop in. Those that have interrupts off take an NMI nevertheless.
const TIME: Duration = Duration::from_millis(500);

/// Stops all other processors. Returns how many there are, and how many have stopped. If another processor is at this already, or the
/// panic is one of this very path, this one stops as well.
pub fn others() -> (usize, usize) {
    if STOPPING.swap(true, Ordering::SeqCst) {
        stop();
    }
    // One that has not installed its own yet, or was never started, has no handler for an NMI and would reset the machine by it.
    let own = percpu::base();
    let others = percpu::others(own).count();
    if others > 0 {
        percpu::others(own).for_each(|cpu| apic::send_nmi(cpu.apic_id));
        let _ = poll(clock::current(), TIME, || STOPPED.load(Ordering::SeqCst) >= others);
    }
    (others, STOPPED.load(Ordering::SeqCst))
}

/// An NMI came. It does not come back if it was a panic's.
pub fn obey() {
    if STOPPING.load(Ordering::SeqCst) {
        STOPPED.fetch_add(1, Ordering::SeqCst);
        stop();
    }
}
