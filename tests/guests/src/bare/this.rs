//! The number of the processor that runs.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use super::msr::wrmsr;

/// Most processors of a guest.
pub const MOST: usize = 8;

/// What each processor finds at GS: its number.
static NUMBERS: [AtomicU64; MOST] = [const { AtomicU64::new(0) }; MOST];

/// Makes `number` the number of the processor that runs.
pub(super) fn set_number(number: usize) {
    NUMBERS[number].store(number as u64, SeqCst);
    // SAFETY: the guest uses GS for nothing else, and the static stays.
    unsafe { wrmsr(0xc000_0101, &raw const NUMBERS[number] as u64) }
}

/// The number of the processor that runs: its x2APIC ID.
pub fn number() -> usize {
    let number: u64;
    // SAFETY: `set_number` has run on this processor.
    unsafe { asm!("mov {}, gs:[0]", out(reg) number, options(nostack, preserves_flags, readonly)) }
    number as usize
}
