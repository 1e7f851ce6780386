//! QEMU's device for teaching (docs/specs/edu.rst): a DMA engine with a buffer of 4 KiB, and an interrupt by MSI.

use core::time::Duration;

use imsvisor::{
    addr::Bdf,
    clock::{self, poll_every},
    machine::{discovery::Machine, memory::map_device},
    memory::{Mmio, Registers},
    pci::{self, ConfigSpace, Function},
};

const ID: usize = 0x00;
/// Bits 7:0 of the identification.
const ID_EDU: u32 = 0xed;
const RAISE: usize = 0x60;
const ACKNOWLEDGE: usize = 0x64;
const DMA_SOURCE: usize = 0x80;
const DMA_DESTINATION: usize = 0x88;
const DMA_COUNT: usize = 0x90;
const DMA_COMMAND: usize = 0x98;
const DMA_RUN: u64 = 1;
const DMA_TO_MEMORY: u64 = 2;

/// Where the engine sees its buffer.
const BUFFER: u64 = 0x40000;

/// A DMA takes 100 ms.
const LIMIT: Duration = Duration::from_secs(5);
const STEP: Duration = Duration::from_millis(1);

/// MSI (PCI Local Bus Specification 3.0, 6.8.1), with 64-bit addresses: offsets from the capability, enable bit.
const MSI_ADDRESS: u16 = 4;
const MSI_DATA: u16 = 12;
const MSI_ENABLE: u32 = 1 << 16;

/// The device.
pub struct Edu {
    /// Its requester ID.
    pub bdf: Bdf,
    registers: Mmio,
    msi: u16,
    config: &'static dyn ConfigSpace,
}

impl Edu {
    /// Enables it.
    pub fn new(machine: &'static Machine, function: &Function) -> Result<Self, &'static str> {
        let registers = registers(function)?;
        pci::function::enable(machine.config(), function.bdf);
        if registers.read32(ID) & 0xff != ID_EDU {
            return Err("edu does not answer");
        }
        let msi = function.msi.ok_or("edu has no MSI")?;
        Ok(Self { bdf: function.bdf, registers, msi, config: machine.config() })
    }

    /// DMA from memory at `from` to the buffer's byte `at`.
    pub fn load(&self, from: u64, at: u64, bytes: u64) -> Result<(), &'static str> {
        self.dma(from, BUFFER + at, bytes, DMA_RUN)
    }

    /// DMA from the buffer's byte `at` to memory at `to`.
    pub fn store(&self, at: u64, to: u64, bytes: u64) -> Result<(), &'static str> {
        self.dma(BUFFER + at, to, bytes, DMA_RUN | DMA_TO_MEMORY)
    }

    fn dma(&self, from: u64, to: u64, bytes: u64, command: u64) -> Result<(), &'static str> {
        self.registers.write64(DMA_SOURCE, from);
        self.registers.write64(DMA_DESTINATION, to);
        self.registers.write64(DMA_COUNT, bytes);
        self.registers.write64(DMA_COMMAND, command);
        let ended = || self.registers.read64(DMA_COMMAND) & DMA_RUN == 0;
        poll_every(clock::current(), LIMIT, STEP, ended).then_some(()).ok_or("edu's DMA does not end")
    }

    /// Has its MSI send this message from now on.
    pub fn set_msi(&self, (address, data): (u64, u32)) {
        self.config.write(self.bdf, self.msi + MSI_ADDRESS, address as u32);
        self.config.write(self.bdf, self.msi + MSI_ADDRESS + 4, (address >> 32) as u32);
        self.config.write(self.bdf, self.msi + MSI_DATA, data);
        let control = self.config.read(self.bdf, self.msi);
        self.config.write(self.bdf, self.msi, control | MSI_ENABLE);
    }

    /// Interrupts once.
    pub fn interrupt(&self) {
        self.registers.write32(RAISE, 1);
        self.registers.write32(ACKNOWLEDGE, 1);
    }
}

/// The registers behind a function's first BAR, mapped.
pub fn registers(function: &Function) -> Result<Mmio, &'static str> {
    let bar = function.bars.first().and_then(|bar| bar.as_ref()?.memory());
    let (base, size) = bar.ok_or("a device without registers")?;
    map_device(base, size).map_err(|_| "registers that cannot be mapped")?;
    // SAFETY: the registers were mapped just now, and are no memory. Where the device's DMA goes is the unit's to say.
    unsafe { Mmio::new(base, size as usize) }.ok_or("misplaced registers")
}
