//! How a guest treats its interrupts, where the machine makes a difference.
//!
//! On a real processor there is none: `cli`, `sti; hlt` and interrupt gates work whoever keeps the local APIC. Bochs 3.0 has defects
//! when the processor keeps it (ARCHITECTURE.md, machine notes): it delivers a virtual interrupt although IF = 0 when another one
//! arrives, it does not wake for one that is pending already, it executes one more instruction after a notification, and it
//! delivers vector 0xFF for a notification that finds nothing. With `profile=posted` on the command line the run-time keeps out of their
//! way: IF is always 1, gates are trap gates, critical sections raise CR8, and idling is MONITOR and MWAIT on a flag that every
//! interrupt writes. This module and its users in `idle` and `interrupts` are all that knows of it.

use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use super::apic;
use crate::command_line;

static POSTED: AtomicBool = AtomicBool::new(false);

/// What MONITOR watches, alone in its cache line.
#[repr(align(64))]
struct Flag(AtomicU64);

static FLAG: Flag = Flag(AtomicU64::new(0));

/// Reads the command line. Before the descriptor table is made and interrupts are on.
pub(super) fn choose(line: &str) {
    POSTED.store(command_line::option(line, "profile") == Some("posted"), SeqCst);
}

/// Whether interrupts are posted, and the machine is to be treated with care.
pub fn is_posted() -> bool {
    POSTED.load(SeqCst)
}

/// An interrupt has come: wakes whoever sleeps by [`mwait`].
pub(super) fn came() {
    if is_posted() {
        FLAG.0.fetch_add(1, SeqCst);
    }
}

/// Keeps interrupts away, or lets them come again, by their priority.
pub(super) fn set_priority(class: u64) {
    // SAFETY: interrupts are held back or not; nothing else changes.
    unsafe { asm!("mov cr8, {}", in(reg) class, options(nostack)) }
}

/// Sleeps until an interrupt has come, unless it is `done`, or one is on its way. It may return without any.
///
/// A notification right before MWAIT is slept through on Bochs: a timer has to end that.
pub(super) fn mwait(done: impl Fn() -> bool) {
    // SAFETY: MONITOR and MWAIT change nothing; the flag stays.
    unsafe { asm!("monitor", in("rax") &raw const FLAG, in("ecx") 0, in("edx") 0, options(nostack, preserves_flags)) };
    if done() || apic::is_requested() {
        return;
    }
    // SAFETY: as above.
    unsafe { asm!("mwait", in("eax") 0, in("ecx") 0, options(nostack, preserves_flags)) };
}
