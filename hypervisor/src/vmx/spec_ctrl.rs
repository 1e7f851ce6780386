//! IA32_SPEC_CTRL of a guest beside the hypervisor's.
//!
//! While the bits that a guest has set are among the hypervisor's own, its writes exit, and it runs with the hypervisor's value: entries and
//! exits cost nothing. From its first other value on, and from the beginning where the hypervisor's IBRS has to be written after each exit,
//! the processor exchanges the values by the VMCS's MSR areas (SDM vol. 3, 26.7.2 and 26.8.2), and the guest has the register for itself.

use alloc::boxed::Box;

use super::{bitmap::MsrBitmap, root::Host};
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

impl SpecCtrl {
    /// The guest has written `value`, whose bits the processor has; or it begins, with 0. Returns the addresses of the guest's entry and of the
    /// hypervisor's if the values have to be exchanged from now on: the guest's is for VM exit to store to and for VM entry to load from, the
    /// hypervisor's for VM exit to load from. The guest has the register for itself then. The entries live as long as `self`.
    pub(super) fn set(&mut self, value: u64) -> Option<[u64; 2]> {
        // With areas the guest's writes do not exit: the value there is the processor's to keep.
        if self.areas.is_some() || !must_switch(self.host, value) {
            return None;
        }
        let areas = Box::new(Areas { guest: Entry::new(value), host: Entry::new(self.host.value) });
        let Areas { guest, host } = &**self.areas.insert(areas);
        // SAFETY: the bitmap is the virtual processor's own, which does not run.
        unsafe { MsrBitmap::at(self.msr_bitmap) }.let_through(IA32_SPEC_CTRL);
        Some([guest.address(), host.address()])
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
    fn a_guest_has_the_register_for_itself_from_its_first_foreign_bit_on() {
        let page = Box::into_raw(Box::new([0xff_u8; 4096]));
        let msr_bitmap = Hpa::new(page as u64);
        let host = HostSpecCtrl { value: 0x401, at_each_exit: false };
        let mut own = SpecCtrl { host, msr_bitmap, areas: None };
        // SAFETY: the page was leaked above, and `set` is done with it when this reads.
        let passed = || unsafe { [(*page)[0x48 / 8], (*page)[2048 + 0x48 / 8]] }.map(|byte| byte & 1 == 0);
        assert_eq!((own.set(0), own.set(1), own.set(0x401), passed()), (None, None, None, [false; 2]));
        let [guest, hypervisor] = own.set(5).expect("SSBD is not the hypervisor's");
        let value = |address: u64| {
            // SAFETY: the entries live in `own`.
            unsafe { (*(address as *const Entry)).value }
        };
        assert_eq!((value(guest), value(hypervisor), passed()), (5, 0x401, [true; 2]));
        assert!(guest.is_multiple_of(16) && hypervisor.is_multiple_of(16));
        assert_eq!(own.set(0), None, "its writes do not exit any more");
    }

    #[test]
    fn ibrs_that_is_not_enhanced_is_written_at_each_exit_whatever_the_guest_has() {
        let legacy = HostSpecCtrl { value: 1, at_each_exit: true };
        assert!([0, 1, 4].into_iter().all(|guest| must_switch(legacy, guest)));
    }
}
