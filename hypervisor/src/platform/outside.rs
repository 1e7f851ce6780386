//! What a guest's exits reach outside of the guest: its console, its devices, the service.

use alloc::{string::String, sync::Arc};
use core::ptr::{read_volatile, write_volatile};

use hcall_abi::{DeviceId, Status};

use super::{
    assign::{Assigned, by_id},
    guest::Counts,
    ports::MachineService,
    windows::{Kind, Windows},
};
use crate::{
    addr::{Bdf, Gpa, Hpa},
    console,
    exits::Platform,
    ims::{Domain, GuestId, GuestMemory},
    memory::Ram,
    vdev::pci::{Effect, VirtualBus},
};

/// Lines that a guest may write before the hypervisor stops showing them: a guest cannot bury the others' (XSA-96).
const CONSOLE_LINES: u32 = 10_000;

/// What begins a line of the console after which a guest's VM exits so far are told, if its options ask for that.
const MARK: &str = "@mark";

/// A guest's console and windows.
pub struct Outside {
    /// The guest's name, before each line of its console.
    pub name: String,
    windows: Windows,
    lines: u32,
    marks: bool,
}

impl Outside {
    /// Shows a line of the guest's console. Returns whether the guest's VM exits so far are to be told.
    pub fn console(&mut self, line: &str) -> bool {
        self.lines = self.lines.saturating_add(1);
        if self.lines < CONSOLE_LINES {
            console::line(format_args!("[{}] {line}", self.name));
            return self.marks && line.starts_with(MARK);
        } else if self.lines == CONSOLE_LINES {
            log::warn!("guest {} has written {CONSOLE_LINES} lines; no more are shown", self.name);
        }
        false
    }

    /// Whether a line could be shown now, or would not be in any case.
    pub fn has_room(&self) -> bool {
        self.lines >= CONSOLE_LINES || console::has_room()
    }

    /// For a guest named `name`; `marks` as in its options.
    pub fn new(name: String, windows: Windows, marks: bool) -> Self {
        Self { name, windows, lines: 0, marks }
    }
}

/// Everything outside of one guest that the guest can reach.
pub struct Reach<'a> {
    /// Which guest.
    pub guest: GuestId,
    /// What happened to it so far.
    pub counts: &'a Counts,
    /// Its console and windows.
    pub outside: &'a mut Outside,
    /// The functions assigned to it.
    pub functions: &'a mut [Assigned],
    /// The service.
    pub service: &'static MachineService,
    /// Its interrupt domain.
    pub domain: &'a Arc<Domain>,
}

/// The guest's memory, as the service wants it.
struct Memory<'a>(&'a Ram);

impl GuestMemory for Memory<'_> {
    fn read(&self, from: Gpa, into: &mut [u8]) -> Result<(), Status> {
        self.0.read(from, into).map_err(|_| Status::BadAddress)
    }

    fn write(&self, to: Gpa, bytes: &[u8]) -> Result<(), Status> {
        self.0.write(to, bytes).map_err(|_| Status::BadAddress)
    }
}

impl Platform for Reach<'_> {
    fn console_has_room(&mut self) -> bool {
        self.outside.has_room()
    }

    fn console(&mut self, line: &str) {
        if self.outside.console(line) {
            self.counts.report_exits(self.guest);
        }
    }

    fn pci(&mut self, function: Bdf, effect: Effect) {
        if let Some(assigned) = by_id(self.functions, DeviceId(function.0)) {
            assigned.configure(effect);
        }
    }

    fn mmio_read(&mut self, bus: &VirtualBus, gpa: Gpa, bytes: u8) -> u64 {
        match self.outside.windows.find(gpa) {
            Some((Kind::Store { shadow, .. }, offset)) => {
                // SAFETY: `Windows::add` was promised the shadow, and `find` gave an offset in it.
                unsafe { read_shadow(shadow, offset, bytes) }
            }
            Some((Kind::Registers { base, .. }, offset)) => {
                // SAFETY: `Windows::add` was promised the registers, and `find` gave an offset in them.
                unsafe { read_device(base, offset, bytes) }
            }
            Some((Kind::Ecam, offset)) => {
                let (function, register) = VirtualBus::ecam(offset);
                bus.read(function, register, bytes).into()
            }
            None => u64::MAX,
        }
    }

    fn mmio_write(&mut self, bus: &mut VirtualBus, gpa: Gpa, bytes: u8, value: u64) {
        match self.outside.windows.find(gpa) {
            Some((Kind::Store { device, name, .. }, offset)) => {
                // The service counts what it refuses. A guest is not told, as hardware would not.
                let _ = self.service.store_write(self.domain, device, name, offset, bytes, value);
            }
            Some((Kind::Registers { device, base, commands }, offset)) => {
                // SAFETY: `Windows::add` was promised the registers, and `find` gave an offset in them. What the device is told, its DMA
                // included, stays within the guest: its requester ID has the guest's second-level tables.
                unsafe { write_device(base, offset, bytes, value) };
                if commands && let Some(assigned) = by_id(self.functions, device) {
                    assigned.command_written(offset, bytes, value, self.service, self.domain);
                }
            }
            Some((Kind::Ecam, offset)) => {
                let (function, register) = VirtualBus::ecam(offset);
                let effect = bus.write(function, register, bytes, value as u32);
                self.pci(function, effect);
            }
            None => {}
        }
    }

    fn hypercall(&mut self, ram: &Ram, number: u64, arguments: [u64; 4]) -> u64 {
        self.service.hypercall(self.domain, number, arguments, &Memory(ram))
    }
}

/// Reads a store's shadow, at any alignment.
///
/// # Safety
/// The shadow is mapped over the whole page that `offset` leads to.
unsafe fn read_shadow(shadow: Hpa, offset: u64, bytes: u8) -> u64 {
    (0..u64::from(bytes.min(8))).fold(0, |value, at| {
        // SAFETY: the caller vouches for the page, and an access does not leave it.
        let byte = unsafe { read_volatile((shadow.as_u64() + offset + at) as *const u8) };
        value | u64::from(byte) << (8 * at)
    })
}

/// Reads a register as wide as the guest did. What is not aligned reads as ones, as on a bus that knows no
/// such access.
///
/// # Safety
/// Registers are mapped at `base`, uncached, over the whole page that `offset` leads to.
unsafe fn read_device(base: Hpa, offset: u64, bytes: u8) -> u64 {
    let address = base.as_u64() + offset;
    if !address.is_multiple_of(u64::from(bytes.max(1))) {
        return u64::MAX;
    }
    // SAFETY: the caller vouches for the page, and an aligned access does not leave it.
    unsafe {
        match bytes {
            1 => read_volatile(address as *const u8).into(),
            2 => read_volatile(address as *const u16).into(),
            4 => read_volatile(address as *const u32).into(),
            8 => read_volatile(address as *const u64),
            _ => u64::MAX,
        }
    }
}

/// Writes a register as wide as the guest did. What is not aligned is dropped.
///
/// # Safety
/// As for [`read_device`]; besides, the device reaches no memory but its guest's.
unsafe fn write_device(base: Hpa, offset: u64, bytes: u8, value: u64) {
    let address = base.as_u64() + offset;
    if !address.is_multiple_of(u64::from(bytes.max(1))) {
        return;
    }
    // SAFETY: the caller vouches for the page and the device, and an aligned access does not leave the page.
    unsafe {
        match bytes {
            1 => write_volatile(address as *mut u8, value as u8),
            2 => write_volatile(address as *mut u16, value as u16),
            4 => write_volatile(address as *mut u32, value as u32),
            8 => write_volatile(address as *mut u64, value),
            _ => {}
        }
    }
}
