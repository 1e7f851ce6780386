//! The two ways to configuration space.

use super::device::DeviceMemory;
use super::port;
use crate::dsa::Registers;
use crate::pci::{ConfigSpace, Function};

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
pub struct Ecam(DeviceMemory);

impl Ecam {
    /// Bus 0's space at the address that MCFG gives.
    ///
    /// # Safety
    /// Configuration space is there.
    pub unsafe fn new(base: u64) -> Option<Self> {
        // SAFETY: the caller's promise.
        unsafe { DeviceMemory::new(base, 1 << 20) }.map(Self)
    }

    fn offset(function: Function, offset: u16) -> u64 {
        u64::from(function.0) << 12 | u64::from(offset & 0xffc)
    }
}

impl ConfigSpace for Ecam {
    fn read(&self, function: Function, offset: u16) -> u32 {
        self.0.read(Self::offset(function, offset))
    }

    fn write(&self, function: Function, offset: u16, value: u32) {
        let mut space = self.0;
        space.write(Self::offset(function, offset), value);
    }
}
