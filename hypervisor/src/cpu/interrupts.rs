//! External interrupts of this processor.
//!
//! The hypervisor runs with interrupts off. A device's interrupt ends the guest's run (VM exit with acknowledgement) or, when no guest can
//! run, the HLT of [`idle`]. Both paths call [`arrived`], which only notes the vector; the scheduler takes the vectors from there.

use core::sync::atomic::{AtomicU64, Ordering};

use super::{percpu::this_cpu, stop};
use crate::apic;

/// Devices' interrupts that merged with an earlier one here, on all processors.
static MERGED: AtomicU64 = AtomicU64::new(0);

/// Notes an external interrupt, and ends it at the local APIC.
///
/// The next interrupt with this vector may come as soon as this returns. It is noted again, and merges with the first one only if that has
/// not been taken by then. A host vector stands for one guest vector, whose IRR would merge the two as well. Interrupts that merge in the
/// machine's own IRR are one when they arrive here, and cannot be counted.
pub fn arrived(vector: u8) {
    if note(vector) && apic::is_devices(vector) {
        MERGED.fetch_add(1, Ordering::Relaxed);
    }
    apic::eoi();
}

/// Notes a vector that this processor would otherwise send to itself.
pub fn raise(vector: u8) {
    note(vector);
}

/// Notes a vector. Returns whether it was noted before and not taken yet.
fn note(vector: u8) -> bool {
    let (own, bit) = (this_cpu(), 1 << (vector % 64));
    let before = own.arrived[usize::from(vector / 64)].fetch_or(bit, Ordering::Relaxed);
    own.any_arrived.store(true, Ordering::Relaxed);
    before & bit != 0
}

/// The number of devices' interrupts so far that merged with an earlier one.
pub fn merged() -> u64 {
    MERGED.load(Ordering::Relaxed)
}

/// Notes an NMI. A panic's NMI stops the processor. Others have no meaning here; their count goes into the log at the end.
pub fn count_nmi() {
    stop::obey();
    this_cpu().nmis.fetch_add(1, Ordering::Relaxed);
}

/// Number of NMIs so far.
pub fn nmis() -> u64 {
    this_cpu().nmis.load(Ordering::Relaxed)
}

/// Takes all noted vectors, highest first.
pub fn take() -> impl Iterator<Item = u8> {
    let own = this_cpu();
    // First, so that one that comes meanwhile is told of.
    own.any_arrived.store(false, Ordering::Relaxed);
    let mut words = [0, 1, 2, 3].map(|word| match &own.arrived[word] {
        none if none.load(Ordering::Relaxed) == 0 => 0,
        some => some.swap(0, Ordering::Relaxed),
    });
    core::iter::from_fn(move || {
        let word = (0..4u8).rev().find(|&word| words[usize::from(word)] != 0)?;
        let bits = &mut words[usize::from(word)];
        let bit = bits.checked_ilog2()? as u8;
        *bits &= !(1 << bit);
        Some(word * 64 + bit)
    })
}

/// Whether vectors may be noted and not taken yet.
pub fn any() -> bool {
    this_cpu().any_arrived.load(Ordering::Relaxed)
}

/// Takes pending interrupts, without waiting.
pub fn poll() {
    // SAFETY: the IDT sends every vector to a stub that returns here with all registers as they were.
    unsafe { core::arch::asm!("sti", "nop", "cli") }
}

/// Unblocks NMIs after one that has caused a VM exit, which blocks them until an IRET (SDM vol. 3, 29.5.5).
pub fn unblock_nmis() {
    // SAFETY: the frame leads to the next instruction, with the stack, the flags and the segments that there are.
    unsafe {
        core::arch::asm!(
            "mov {sp}, rsp",
            "mov {ss:e}, ss",
            "push {ss}",
            "push {sp}",
            "pushfq",
            "mov {ss:e}, cs",
            "push {ss}",
            "lea {sp}, [rip + 2f]",
            "push {sp}",
            "iretq",
            "2:",
            sp = out(reg) _,
            ss = out(reg) _,
        );
    }
}

/// Waits for an interrupt. Returns at once when one is pending.
pub fn idle() {
    // SAFETY: as in `poll`. STI lets nothing in before HLT has begun, so no wake-up is lost.
    unsafe { core::arch::asm!("sti", "hlt", "cli") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_come_out_once_and_highest_first() {
        for vector in [0x30u8, 0xfe, 0x7f, 0x80] {
            raise(vector);
        }
        assert!(any());
        assert_eq!(take().collect::<Vec<_>>(), [0xfe, 0x80, 0x7f, 0x30]);
        assert!(!any());
        assert_eq!(take().next(), None);
    }

    #[test]
    fn a_vector_that_meets_itself_before_it_is_taken_is_one() {
        assert!(!note(0x41) && !note(0x81) && note(0x41));
        assert_eq!(take().collect::<Vec<_>>(), [0x81, 0x41]);
        assert!(!note(0x41), "the first one was taken");
        assert_eq!(take().collect::<Vec<_>>(), [0x41]);
    }

    #[test]
    fn only_what_devices_raise_counts_as_merged() {
        assert!(apic::is_devices(0x30) && apic::is_devices(apic::DEVICE_VECTOR));
        for own in [
            apic::TIMER_VECTOR,
            apic::NOTIFICATION_VECTOR,
            apic::WAKE_UP_VECTOR,
            apic::INJECT_VECTOR,
            apic::DISCARD_VECTOR,
            apic::FAULT_VECTOR,
        ] {
            assert!(!apic::is_devices(own), "{own:#x}");
        }
    }
}
