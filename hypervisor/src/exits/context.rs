//! The virtual processor whose exit is handled, and the platform that its exits reach.

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
    /// Exits in a row after which the guest ends. Another processor that changes code or page tables all the time makes a few in a row
    /// likely. This many take milliseconds.
    const LIMIT: u32 = 1000;

    /// Counts an exit at this RIP with this fault. Returns whether there were more than [`Self::LIMIT`] in a row.
    pub(super) fn is_at(&mut self, here: (u64, Fault)) -> bool {
        let again = self.at == Some(here);
        *self = Self { at: Some(here), times: if again { self.times + 1 } else { 1 } };
        self.times > Self::LIMIT
    }
}

/// A virtual processor's state beside its VMCS.
pub struct Devices {
    /// Local APIC.
    pub apic: X2Apic,
    /// The state of paravirtual EOI.
    pub pv_eoi: PvEoi,
    /// Model-specific registers.
    pub msrs: Msrs,
    /// The CPUID policy.
    pub policy: Policy,
    /// Decoded instructions that access trapped pages.
    pub decode_cache: DecodeCache,
    /// The offset of the guest's TSC from the machine's.
    pub tsc_offset: u64,
    /// Its x2APIC ID.
    pub apic_id: u32,
    /// Bits of a physical address, as the guest's CPUID says.
    pub physical_bits: u8,
    /// Exits until the timers are checked; never 0.
    pub exits_to_timer_check: u32,
    /// The TSC before which it does not run again, because its guest has locked the bus too often.
    pub held_until: u64,
    /// The exits in a row without progress.
    pub repeated_fault: RepeatedFault,
}

impl Devices {
    /// Has the timers checked before the guest continues: because it has slept, or a timer has expired or was set.
    pub fn request_timer_check(&mut self) {
        self.exits_to_timer_check = 1;
    }

    /// The guest's TSC when the machine's is `now`.
    pub fn guest_tsc(&self, now: u64) -> u64 {
        now.wrapping_add(self.tsc_offset)
    }

    /// The machine's TSC at a deadline of the guest, when the machine's TSC is `now`. A deadline beyond the counter's range is the end of
    /// that range.
    pub fn host_deadline(&self, deadline: u64, now: u64) -> u64 {
        now.saturating_add(deadline.saturating_sub(self.guest_tsc(now)))
    }
}

/// The operations of exits outside of the guest.
pub trait Platform {
    /// IN of `width` (1, 2 or 4) bytes. The low bytes of the result count.
    fn port_read(&mut self, port: u16, width: u8) -> u32;
    /// OUT of `width` (1, 2 or 4) bytes.
    fn port_write(&mut self, port: u16, width: u8, value: u32) -> PortWrite;
    /// Reads `bytes` bytes outside of the guest's memory. The low bytes of the result count.
    fn mmio_read(&mut self, gpa: Gpa, bytes: u8) -> u64;
    /// Writes `bytes` bytes outside of the guest's memory.
    fn mmio_write(&mut self, gpa: Gpa, bytes: u8, value: u64);
    /// Writes 9 to 64 bytes outside of the guest's memory, in one page, by one instruction.
    fn mmio_write_bytes(&mut self, gpa: Gpa, bytes: &[u8]);
    /// Reads 1 to 16 bytes outside of the guest's memory, in one page, and writes the result of `modify`, in one step.
    fn mmio_modify(&mut self, gpa: Gpa, bytes: u8, modify: &mut dyn FnMut(u128) -> u128);
    /// The guest has locked the bus at this TSC. Returns until when it has to wait, if it has done so too often.
    fn bus_lock(&mut self, now: u64) -> Option<u64>;
    /// Lets the guest execute at this address, if that is its memory. Returns whether it may now, or why the guest has to end.
    fn make_executable(&mut self, gpa: Gpa) -> Result<bool, &'static str>;
    /// Sends an interrupt command of the virtual processor.
    fn ipi(&mut self, ipi: Ipi);
    /// Sets the address of the 4 bytes for paravirtual EOI, or none.
    fn set_pv_eoi(&mut self, at: Option<Gpa>);
    /// Carries out a hypercall with its number and arguments. Returns the result for RAX.
    fn hypercall(&mut self, number: u64, arguments: [u64; 4]) -> u64;
}

/// The result of a port write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortWrite {
    /// The write is done.
    Done,
    /// The console's buffer is full, so the write has to be repeated.
    NoRoom,
    /// The guest ends, with this code.
    Exit(u8),
    /// The guest asks for a reset.
    Reset,
}

/// The virtual processor whose exit is handled.
pub struct Context<'a, P> {
    /// The VMCS and registers.
    pub vcpu: &'a mut Vcpu,
    /// The virtual devices.
    pub devices: &'a mut Devices,
    /// The guest's memory.
    pub ram: &'a Ram,
    /// The guest's XCR0, and the bits that may be set there.
    pub xcr0: (&'a mut u64, u64),
    /// The platform outside of the guest.
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
