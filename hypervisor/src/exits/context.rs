//! The virtual processor whose exit is served, and what its exits do outside of the guest.

use super::{decode_cache::DecodeCache, mmio::Fault, pv_eoi::PvEoi};
use crate::{
    addr::Gpa,
    memory::Ram,
    vdev::{
        cpuid::Policy,
        msr::Msrs,
        x2apic::{Ipi, X2Apic},
    },
    vmx::Vcpu,
};

/// Counts the exits in a row of one instruction at one address that emulation cannot complete. There are two causes: the address is not one
/// of the instruction's operands (the processor reads a descriptor or a task state segment there), or another virtual processor changes the
/// instruction or its page tables before each emulation.
#[derive(Clone, Copy, Debug, Default)]
pub struct RepeatedFault {
    at: Option<(u64, Fault)>,
    times: u32,
}

impl RepeatedFault {
    /// Exits in a row after which the guest ends. Another processor that changes code or page tables all the time makes a few likely; this many
    /// take milliseconds.
    const LIMIT: u32 = 1000;

    /// Counts an exit at this RIP with this fault. Returns whether there were more than [`Self::LIMIT`] in a row.
    pub(super) fn is_at(&mut self, here: (u64, Fault)) -> bool {
        let again = self.at == Some(here);
        *self = Self { at: Some(here), times: if again { self.times + 1 } else { 1 } };
        self.times > Self::LIMIT
    }
}

/// What a virtual processor has of its own beside its VMCS.
pub struct Devices {
    /// Local APIC.
    pub apic: X2Apic,
    /// Whether its interrupt ends without an exit.
    pub pv_eoi: PvEoi,
    /// Model-specific registers.
    pub msrs: Msrs,
    /// What CPUID tells.
    pub policy: Policy,
    /// Instructions that it has executed on trapped pages.
    pub decode_cache: DecodeCache,
    /// Added to the machine's TSC.
    pub tsc_offset: u64,
    /// Its x2APIC ID.
    pub apic_id: u32,
    /// Bits of a physical address, as CPUID tells it.
    pub physical_bits: u8,
    /// Exits until the time is looked at; never 0.
    pub exits_to_timer_check: u32,
    /// The TSC before which it does not run again, because its guest has locked the bus too often.
    pub held_until: u64,
    /// The exits in a row without progress.
    pub repeated_fault: RepeatedFault,
}

impl Devices {
    /// Has the time looked at before the guest goes on: it has slept, or its timer has run down, or was set.
    pub fn request_timer_check(&mut self) {
        self.exits_to_timer_check = 1;
    }

    /// The guest's TSC when the machine's is `now`.
    pub fn guest_tsc(&self, now: u64) -> u64 {
        now.wrapping_add(self.tsc_offset)
    }

    /// The machine's TSC at a deadline of the guest's, when it is `now`. A deadline that the machine's counter never reaches is its end.
    pub fn host_deadline(&self, deadline: u64, now: u64) -> u64 {
        now.saturating_add(deadline.saturating_sub(self.guest_tsc(now)))
    }
}

/// What a guest's exits have to do outside of the guest.
pub trait Platform {
    /// IN of `width` (1, 2 or 4) bytes. The low bytes of the result count.
    fn port_read(&mut self, port: u16, width: u8) -> u32;
    /// OUT of `width` (1, 2 or 4) bytes.
    fn port_write(&mut self, port: u16, width: u8, value: u32) -> PortWrite;
    /// The guest reads `bytes` bytes outside of its memory. The low bytes of the result count.
    fn mmio_read(&mut self, gpa: Gpa, bytes: u8) -> u64;
    /// The guest writes `bytes` bytes outside of its memory.
    fn mmio_write(&mut self, gpa: Gpa, bytes: u8, value: u64);
    /// The guest writes 9 to 64 bytes outside of its memory, in one page, by one instruction.
    fn mmio_write_bytes(&mut self, gpa: Gpa, bytes: &[u8]);
    /// The guest reads 1 to 16 bytes outside of its memory, in one page, and writes what `modify` makes of them, in one step.
    fn mmio_modify(&mut self, gpa: Gpa, bytes: u8, modify: &mut dyn FnMut(u128) -> u128);
    /// The guest has locked the bus at this TSC. Returns until when it has to wait, if it has done so too often.
    fn bus_lock(&mut self, now: u64) -> Option<u64>;
    /// Lets the guest execute at this address, if that is its memory. Returns whether it may now, or why the guest has to end.
    fn make_executable(&mut self, gpa: Gpa) -> Result<bool, &'static str>;
    /// The virtual processor sends an interrupt command.
    fn ipi(&mut self, ipi: Ipi);
    /// The virtual processor ends interrupts by the 4 bytes at this address from now on, or by none.
    fn set_pv_eoi(&mut self, at: Option<Gpa>);
    /// A hypercall: its number and arguments; the result for RAX.
    fn hypercall(&mut self, number: u64, arguments: [u64; 4]) -> u64;
}

/// What came of a write to a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortWrite {
    /// It is done.
    Done,
    /// The console has no room: it is to be tried again.
    NoRoom,
    /// The guest ends, with this code.
    Exit(u8),
    /// The guest asks for a reset.
    Reset,
}

/// The virtual processor whose exit is served.
pub struct Context<'a, P> {
    /// Its processor.
    pub vcpu: &'a mut Vcpu,
    /// Its devices.
    pub devices: &'a mut Devices,
    /// Its memory.
    pub ram: &'a Ram,
    /// Its XCR0, and the bits that may be set there.
    pub xcr0: (&'a mut u64, u64),
    /// All else.
    pub platform: &'a mut P,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Gva;

    #[test]
    fn an_instruction_of_which_nothing_comes_is_not_executed_for_ever() {
        let fault = |at| Fault { gpa: Gpa::new(at), gva: Gva::new(at), write: false };
        let mut repeated_fault = RepeatedFault::default();
        assert!((0..RepeatedFault::LIMIT).all(|_| !repeated_fault.is_at((0x1000, fault(0xe000)))));
        assert!(repeated_fault.is_at((0x1000, fault(0xe000))));
        // Another fault, or another place, begins anew.
        assert!(!repeated_fault.is_at((0x1000, fault(0xe008))));
        assert!((1..RepeatedFault::LIMIT).all(|_| !repeated_fault.is_at((0x1000, fault(0xe008)))));
        assert!(!repeated_fault.is_at((0x1003, fault(0xe008))));
        assert_eq!(repeated_fault.times, 1);
    }
}
