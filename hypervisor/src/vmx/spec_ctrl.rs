//! IA32_SPEC_CTRL of a guest beside the hypervisor's.
//!
//! While the bits that a guest has set are among the hypervisor's own, its writes exit, and it runs with the hypervisor's value: entries and
//! exits cost nothing. From its first other value on, and from the beginning where the hypervisor's IBRS has to be written after each exit,
//! the processor exchanges the values by the VMCS's MSR areas (SDM vol. 3, 26.7.2 and 26.8.2), and the guest has the register for itself.

use alloc::boxed::Box;

use super::{bitmap::MsrBitmap, fields, root::Host, vcpu::Vcpu};
use crate::{addr::Hpa, cpu::speculation::HostSpecCtrl};

/// IA32_SPEC_CTRL.
const IA32_SPEC_CTRL: u32 = 0x48;

/// An entry of an MSR area (SDM vol. 3, table 26-15).
#[repr(C, align(16))]
#[derive(Debug)]
struct Entry {
    register: u32,
    reserved: u32,
    value: u64,
}

impl Entry {
    const fn new(value: u64) -> Self {
        Self { register: IA32_SPEC_CTRL, reserved: 0, value }
    }

    /// Memory of the hypervisor is identity-mapped.
    fn address(&self) -> u64 {
        &raw const *self as u64
    }
}

/// The entries: VM exit stores the guest's value where VM entry loads it from.
#[derive(Debug)]
struct Areas {
    guest: Entry,
    host: Entry,
}

/// The register of one virtual processor.
#[derive(Debug)]
pub(super) struct SpecCtrl {
    host: HostSpecCtrl,
    /// What lets the guest have the register for itself.
    msr_bitmap: Hpa,
    areas: Option<Box<Areas>>,
}

impl SpecCtrl {
    /// With the value that a guest begins with, 0. None where the hypervisor has no value of its own.
    pub(super) fn new(host: &Host, msr_bitmap: Hpa) -> Option<Self> {
        Some(Self { host: host.plan.spec_ctrl?, msr_bitmap, areas: None })
    }
}

/// Whether a guest whose value is `guest` cannot run with the hypervisor's.
const fn must_switch(host: HostSpecCtrl, guest: u64) -> bool {
    host.at_each_exit || guest & !host.value != 0
}

impl Vcpu {
    /// The guest has written `value`, whose bits the processor has, to IA32_SPEC_CTRL; or it begins, with 0. Its VMCS must be current.
    pub fn set_spec_ctrl(&mut self, value: u64) {
        let Some(SpecCtrl { host, msr_bitmap, areas }) = &mut self.spec_ctrl else { return };
        // With areas the guest's writes do not exit: the value there is the processor's to keep.
        if areas.is_some() || !must_switch(*host, value) {
            return;
        }
        let both = areas.insert(Box::new(Areas { guest: Entry::new(value), host: Entry::new(host.value) }));
        let (guest, host, msr_bitmap) = (both.guest.address(), both.host.address(), *msr_bitmap);
        // SAFETY: the entries live as long as the virtual processor, and name a register that the plan knows to be there. The bitmap is the
        // virtual processor's own, which does not run.
        unsafe {
            for (address, count, entry) in [
                (fields::EXIT_MSR_STORE_ADDRESS, fields::EXIT_MSR_STORE_COUNT, guest),
                (fields::EXIT_MSR_LOAD_ADDRESS, fields::EXIT_MSR_LOAD_COUNT, host),
                (fields::ENTRY_MSR_LOAD_ADDRESS, fields::ENTRY_MSR_LOAD_COUNT, guest),
            ] {
                self.write_guarded(address, entry);
                self.write_guarded(count, 1);
            }
            MsrBitmap::at(msr_bitmap).let_through(IA32_SPEC_CTRL);
        }
    }
}

#[cfg(test)]
mod tests {
    use core::mem::offset_of;

    use super::*;

    #[test]
    fn an_entry_is_laid_out_as_the_manual_has_it() {
        assert_eq!((size_of::<Entry>(), align_of::<Entry>()), (16, 16));
        let offsets = (offset_of!(Entry, register), offset_of!(Entry, reserved), offset_of!(Entry, value));
        assert_eq!(offsets, (0, 4, 8));
        assert_eq!(Entry::new(5).register, 0x48);
    }

    #[test]
    fn a_guest_whose_bits_the_hypervisor_has_as_well_costs_nothing() {
        let enhanced = HostSpecCtrl { value: 0x401, at_each_exit: false };
        for guest in [0, 1, 0x400, 0x401] {
            assert!(!must_switch(enhanced, guest), "{guest:#x}");
        }
        // STIBP, SSBD, both beside IBRS.
        for guest in [2, 4, 7, 0x405] {
            assert!(must_switch(enhanced, guest), "{guest:#x}");
        }
    }

    #[test]
    fn ibrs_that_is_not_enhanced_is_written_at_each_exit_whatever_the_guest_has() {
        let legacy = HostSpecCtrl { value: 1, at_each_exit: true };
        assert!([0, 1, 4].into_iter().all(|guest| must_switch(legacy, guest)));
    }
}
