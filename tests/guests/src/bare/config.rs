//! The two ways to configuration space.

use super::device::DeviceMemory;
use super::port;
use crate::dsa::Registers;
use crate::pci::{ConfigSpace, Function};
use guest_shim::detect::cpuid_hypervisor_bit;
use guest_shim::discover::NativeCpuid;

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
const ADDRESS_ENABLE: u32 = 1 << 31;

/// By I/O ports (PCI 3.0, 3.2.2.3.2): the first 256 bytes of a function.
#[derive(Clone, Copy, Debug)]
pub struct Ports;

impl Ports {
    fn select(function: Function, offset: u16) {
        let address = ADDRESS_ENABLE | u32::from(function.0) << 8 | u32::from(offset & 0xfc);
        // SAFETY: only names what the data port reaches.
        unsafe { port::write_u32(ADDRESS, address) }
    }
}

impl ConfigSpace for Ports {
    /// imsvisor's guests have bus 0, and each look at another bus of theirs would be an exit.
    fn last_bus(&self) -> u8 {
        if cpuid_hypervisor_bit(&NativeCpuid) { 0 } else { u8::MAX }
    }

    fn read(&self, function: Function, offset: u16) -> u32 {
        Self::select(function, offset);
        // SAFETY: reading configuration space changes nothing.
        unsafe { port::read_u32(DATA) }
    }

    fn write(&self, function: Function, offset: u16, value: u32) {
        Self::select(function, offset);
        // SAFETY: guests have no device but those they drive.
        unsafe { port::write_u32(DATA, value) }
    }
}

/// In memory (PCIe 7.2.2): all 4,096 bytes of each function.
#[derive(Clone, Copy, Debug)]
pub struct Ecam {
    space: DeviceMemory,
    last_bus: u8,
}

impl Ecam {
    /// The space of bus 0 to `last_bus` at the address that MCFG gives.
    ///
    /// # Safety
    /// Configuration space is there.
    pub unsafe fn new(base: u64, last_bus: u8) -> Option<Self> {
        // SAFETY: the caller's promise.
        let space = unsafe { DeviceMemory::new(base, (u64::from(last_bus) + 1) << 20) }?;
        Some(Self { space, last_bus })
    }

    fn offset(function: Function, offset: u16) -> u64 {
        u64::from(function.0) << 12 | u64::from(offset & 0xffc)
    }
}

impl ConfigSpace for Ecam {
    fn last_bus(&self) -> u8 {
        self.last_bus
    }

    fn read(&self, function: Function, offset: u16) -> u32 {
        self.space.read(Self::offset(function, offset))
    }

    fn write(&self, function: Function, offset: u16, value: u32) {
        let mut space = self.space;
        space.write(Self::offset(function, offset), value);
    }
}
