//! The virtual-APIC page: the part of a guest's local APIC that the processor virtualises. SDM vol. 3, 31.1 to 31.2.
//!
//! The page holds task priority, in-service and requested interrupts. The processor delivers interrupts from the page and ends them without
//! an exit. The rest of the local APIC stays emulated (`vdev::x2apic`).

use alloc::sync::Arc;

use super::posted::{Descriptor, RunState};
use crate::{
    addr::Hpa,
    memory::{FrameSource, Table},
};

/// Offsets of registers in the page: 16 bytes apart, as in xAPIC mode.
const VTPR: u64 = 0x80;
const VPPR: u64 = 0xa0;
const VISR: u64 = 0x100;
const VIRR: u64 = 0x200;
/// Registers of 32 vectors each.
const WORDS: u64 = 8;

/// A virtual processor's page and its descriptor.
pub struct VirtualApic {
    page: Table,
    descriptor: Arc<Descriptor>,
}

impl VirtualApic {
    /// A page as after reset. Its descriptor notifies `destination`, as in [`Descriptor::new`].
    pub fn new(frames: &impl FrameSource, destination: u32) -> Option<Self> {
        Some(Self { page: Table::new(frames)?, descriptor: Arc::new(Descriptor::new(frames, destination)?) })
    }

    /// Where the page is.
    pub fn page(&self) -> Hpa {
        self.page.address()
    }

    /// Resets the page as INIT does: no interrupt is requested or in service, and the task priority is 0. Only while the virtual processor
    /// does not run.
    pub fn reset(&self) {
        self.descriptor.take();
        let registers = [VTPR, VPPR].into_iter().chain((0..WORDS).flat_map(|n| [VISR + 0x10 * n, VIRR + 0x10 * n]));
        registers.for_each(|offset| self.page.set(offset / 8, 0));
    }

    /// The posted-interrupt descriptor.
    pub fn descriptor(&self) -> &Arc<Descriptor> {
        &self.descriptor
    }

    /// Sets the run state in the descriptor.
    pub fn set_run_state(&self, state: RunState) {
        self.descriptor.set_run_state(state);
    }

    /// Requests an interrupt. Only while the virtual processor does not run, because the processor uses the page then.
    pub fn request(&self, vector: u8) {
        self.set(VIRR, vector);
    }

    /// Moves posted interrupts into the page. Returns whether there were any.
    pub fn take_posted(&self) -> bool {
        if !self.descriptor.has_requests() {
            return false;
        }
        for (requests, word) in self.descriptor.take().into_iter().zip(0u64..) {
            for (half, register) in [requests as u32, (requests >> 32) as u32].into_iter().zip(2 * word..) {
                let offset = VIRR + 0x10 * register;
                if half != 0 {
                    self.page.set(offset / 8, self.page.get(offset / 8) | u64::from(half));
                }
            }
        }
        true
    }

    /// The highest requested vector: RVI.
    pub fn highest_request(&self) -> Option<u8> {
        self.highest(VIRR)
    }

    /// Whether a requested interrupt is above the processor's priority, so that it would be delivered.
    pub fn is_pending(&self) -> bool {
        let in_service = self.highest(VISR).unwrap_or(0);
        let priority = self.word(VTPR).max(u32::from(in_service)) >> 4 & 0xf;
        self.highest_request().is_some_and(|vector| u32::from(vector >> 4) > priority)
    }

    fn word(&self, offset: u64) -> u32 {
        // Offsets are multiples of 16: the low half of a quadword.
        self.page.get(offset / 8) as u32
    }

    fn set(&self, register: u64, vector: u8) {
        let offset = register + 0x10 * u64::from(vector / 32);
        self.page.set(offset / 8, self.page.get(offset / 8) | 1 << (vector % 32));
    }

    fn highest(&self, register: u64) -> Option<u8> {
        (0..WORDS).rev().find_map(|n| {
            let word = self.word(register + 0x10 * n);
            word.checked_ilog2().map(|bit| (n * 32) as u8 + bit as u8)
        })
    }
}

/// MSRs of the x2APIC that a guest reads from the page without an exit: TPR, PPR, ISR, TMR, IRR.
pub fn read_from_page() -> impl Iterator<Item = u32> {
    let msr = |offset: u64| 0x800 + (offset >> 4) as u32;
    [msr(VTPR), msr(VPPR)].into_iter().chain(msr(VISR)..msr(VIRR) + WORDS as u32)
}

/// MSRs of the x2APIC whose writes the processor carries out: TPR, EOI, self-IPI.
pub fn written_by_processor() -> impl Iterator<Item = u32> {
    [0x808, 0x80b, 0x83f].into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::testing::TestFrames;

    #[test]
    fn a_request_is_pending_above_the_priority_only() {
        let frames = TestFrames::default();
        let apic = VirtualApic::new(&frames, 0).unwrap();
        assert!(!apic.is_pending());
        apic.request(0x41);
        apic.request(0x38);
        assert_eq!(apic.highest_request(), Some(0x41));
        assert!(apic.is_pending());
        apic.page.set(VTPR / 8, 0x40);
        assert!(!apic.is_pending(), "the same class waits");
        apic.page.set(VTPR / 8, 0x30);
        assert!(apic.is_pending());
        apic.set(VISR, 0x50);
        assert!(!apic.is_pending());
    }

    #[test]
    fn what_was_posted_is_requested() {
        let frames = TestFrames::default();
        let apic = VirtualApic::new(&frames, 0).unwrap();
        assert!(!apic.take_posted());
        // SAFETY: the frame is the descriptor's, and lives.
        let descriptor = unsafe { Table::at(&frames, apic.descriptor().address()) };
        descriptor.set(0, 1 << 0x30);
        descriptor.set(3, 1 << 63);
        assert!(apic.take_posted());
        assert_eq!(apic.highest_request(), Some(255));
        assert_eq!(apic.word(VIRR + 0x10), 1 << 16);
        assert!(!apic.take_posted());
    }

    #[test]
    fn the_msrs_are_the_manuals() {
        let reads: Vec<_> = read_from_page().collect();
        assert_eq!((reads[0], reads[1], reads[2], reads[reads.len() - 1]), (0x808, 0x80a, 0x810, 0x827));
        assert!(!reads.contains(&0x839), "the timer's count is the model's");
    }
}
