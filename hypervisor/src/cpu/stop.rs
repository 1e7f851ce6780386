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

/// Whether a processor has panicked.
static STOPPING: AtomicBool = AtomicBool::new(false);
/// The number of processors that have stopped after a panic.
static STOPPED: AtomicUsize = AtomicUsize::new(0);

/// The time limit for the others to stop. A processor with interrupts off takes an NMI nevertheless.
const TIME: Duration = Duration::from_millis(500);

/// Stops all other processors. Returns how many there are, and how many have stopped. If another processor is doing this already, or the
/// panic came from this function, this processor stops as well.
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

/// Handles an NMI. It does not return if the NMI was a panic's.
pub fn obey() {
    if STOPPING.load(Ordering::SeqCst) {
        STOPPED.fetch_add(1, Ordering::SeqCst);
        stop();
    }
}
