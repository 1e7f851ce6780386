//! A DSA that does not say that it is one.

use guests::bare::assigned::{Records, submit_and_poll};
use guests::bare::device::DeviceMemory;
use guests::bare::{config, portal};
use guests::dsa::{Descriptor, Dsa, Portal, WorkQueue, spec};
use guests::pci::{self, Function};

use crate::{LIMIT, Work};

/// By what it is found: a device ID that the emulated machine gives it.
pub const VENDOR: u16 = spec::VENDOR;
pub const DEVICE: u16 = 0x5eed;
/// Bytes of its registers and tables.
const REGISTERS: u64 = 0x4000;
const QUEUE_SIZE: u16 = 16;

static RECORDS: Records<4096> = Records::new();

/// The device.
pub struct Worker {
    portal: Portal,
}

impl Work for Worker {
    /// With one work queue.
    fn start(function: Function) -> Result<Self, &'static str> {
        let bar = |n| pci::bar(&config::Ports, function, n).ok_or("a BAR has no place");
        // SAFETY: what a BAR names is the device's; it is given nothing but our own buffer's address.
        let registers = unsafe { DeviceMemory::new(bar(0)?, REGISTERS) }.ok_or("its registers are not mapped")?;
        let queue = WorkQueue { index: 0, size: QUEUE_SIZE, pasids: false };
        Dsa::new(registers).start(&[queue]).map_err(|_| "it does not start")?;
        // SAFETY: the first page of BAR 2 is the first work queue's portal for MSI-X handles.
        let portal = unsafe { portal::at(function, bar(2)?) }.ok_or("its portals are not mapped")?;
        Ok(Self { portal })
    }

    fn raise(&mut self, vector: u16) -> Result<(), &'static str> {
        let descriptor = Descriptor::noop(RECORDS.address(0), vector);
        let done = submit_and_poll(&self.portal, &descriptor, &RECORDS, 0, LIMIT).ok_or("it does not work")?;
        if done.succeeded() { Ok(()) } else { Err("its work fails") }
    }
}
