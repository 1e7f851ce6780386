//! How a guest treats its interrupts, where the machine makes a difference.
//!
//! On a real processor there is none: `cli`, `sti; hlt` and interrupt gates work whoever keeps the local APIC. Bochs 3.0 has defects
//! when the processor keeps it (`tests/MACHINES.md`): it delivers a virtual interrupt although IF = 0 when another one
//! arrives, it does not wake for one that is pending already, it executes one more instruction after a notification, and it
//! delivers vector 0xFF for a notification that finds nothing. With `profile=posted` on the command line the run-time keeps out of their
//! way: IF is always 1, gates are trap gates, critical sections raise CR8, and idling is MONITOR and MWAIT on a flag that every
//! interrupt writes. Processors are started, in real mode and with IF = 0, before anything sends to them. This module and its users
//! (`idle`, `interrupts`, the guest `smp`) are all that knows of it.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use super::apic;
use crate::command_line;

static POSTED: AtomicBool = AtomicBool::new(false);
static HALTS: AtomicBool = AtomicBool::new(false);

// RDI = flag: halts unless the flag is set. An interrupt in here goes on behind the HLT (`came`), so that none is slept through.
global_asm!(
    ".pushsection .text.profile_halt, \"ax\"",
    ".globl profile_halt, profile_halt_end",
    "profile_halt:",
    "cmp qword ptr [rdi], 0",
    "jne profile_halt_end",
    "hlt",
    "profile_halt_end:",
    "ret",
    ".popsection",
);

unsafe extern "C" {
    fn profile_halt(flag: *const AtomicU64);
    fn profile_halt_end();
}

/// What MONITOR watches, alone in its cache line.
#[repr(align(64))]
struct Flag(AtomicU64);

static FLAG: Flag = Flag(AtomicU64::new(0));

/// Reads the command line. Before the descriptor table is made and interrupts are on.
pub(super) fn choose(line: &str) {
    POSTED.store(command_line::option(line, "profile") == Some("posted"), SeqCst);
    halt_when_idle(command_line::option(line, "idle") == Some("hlt"));
}

/// Whether interrupts are posted, and the machine is to be treated with care.
pub fn is_posted() -> bool {
    POSTED.load(SeqCst)
}

/// Idling is HLT, by which the hypervisor knows that the guest waits, instead of MWAIT. Only for a guest with one processor: it has one
/// flag. `idle=hlt` on the command line does the same.
pub fn halt_when_idle(halts: bool) {
    HALTS.store(halts, SeqCst);
}

/// An interrupt has come at `rip`: wakes whoever sleeps by MWAIT, or was about to halt.
pub(super) fn came(rip: &mut u64) {
    if !is_posted() {
        return;
    }
    FLAG.0.fetch_add(1, SeqCst);
    let (begin, end) = (profile_halt as *const () as u64, profile_halt_end as *const () as u64);
    if (begin..end).contains(rip) {
        *rip = end;
    }
}

/// Keeps interrupts away, or lets them come again, by their priority.
pub(super) fn set_priority(class: u64) {
    // SAFETY: interrupts are held back or not; nothing else changes.
    unsafe { asm!("mov cr8, {}", in(reg) class, options(nostack)) }
}

/// Sleeps until an interrupt has come, unless it is `done`, or one is on its way. It may return without any.
///
/// A notification right before MWAIT is slept through on Bochs: a timer has to end that. HLT has no such trouble.
pub(super) fn sleep_unless(done: impl Fn() -> bool) {
    if HALTS.load(SeqCst) {
        FLAG.0.store(0, SeqCst);
        if !done() {
            // SAFETY: it sleeps, and changes nothing but the flags; every vector has a handler.
            unsafe { profile_halt(&raw const FLAG.0) };
        }
        return;
    }
    // SAFETY: MONITOR and MWAIT change nothing; the flag stays.
    unsafe { asm!("monitor", in("rax") &raw const FLAG, in("ecx") 0, in("edx") 0, options(nostack, preserves_flags)) };
    if done() || apic::is_requested() {
        return;
    }
    // SAFETY: MWAIT sleeps and changes nothing; every vector has a handler.
    unsafe { asm!("mwait", in("eax") 0, in("ecx") 0, options(nostack, preserves_flags)) };
}
