//! Configuration space by I/O ports (PCI Local Bus Specification 3.0, section 3.2.2.3.2), for machines without an MCFG.

use alloc::vec::Vec;

use super::config::{Buses, CONVENTIONAL, ConfigSpace};
use crate::addr::Bdf;
use crate::sync::Mutex;

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;

/// The two ports.
pub struct ConfigPorts(Mutex<()>);

impl ConfigPorts {
    /// The machine's ports.
    ///
    /// # Safety
    /// Privilege level 0, there is one such value, and what configures functions through it knows what it does to their
    /// drivers.
    pub const unsafe fn new() -> Self {
        Self(Mutex::new(()))
    }

    fn select(bdf: Bdf, offset: u16) {
        let address = 1 << 31 | u32::from(bdf.requester_id()) << 8 | u32::from(offset & 0xfc);
        // SAFETY: the caller of `new` gave us these ports; the lock is held.
        unsafe { core::arch::asm!("out dx, eax", in("dx") ADDRESS, in("eax") address, options(nomem, nostack)) };
    }
}

impl ConfigSpace for ConfigPorts {
    fn read(&self, bdf: Bdf, offset: u16) -> u32 {
        if offset >= CONVENTIONAL || bdf.segment() != 0 {
            return u32::MAX;
        }
        let _pair = self.0.lock();
        Self::select(bdf, offset);
        let value: u32;
        // SAFETY: as in `select`.
        unsafe { core::arch::asm!("in eax, dx", in("dx") DATA, out("eax") value, options(nomem, nostack)) };
        value
    }

    fn write(&self, bdf: Bdf, offset: u16, value: u32) {
        if offset >= CONVENTIONAL || bdf.segment() != 0 {
            return;
        }
        let _pair = self.0.lock();
        Self::select(bdf, offset);
        // SAFETY: as in `select`.
        unsafe { core::arch::asm!("out dx, eax", in("dx") DATA, in("eax") value, options(nomem, nostack)) };
    }

    fn buses(&self) -> Vec<Buses> {
        alloc::vec![Buses { segment: 0, first: 0, last: 255 }]
    }

    fn has_extended(&self) -> bool {
        false
    }
}
