//! A PCI function and its properties: PCI Local Bus Specification 3.0, section 6.1 and 6.2.

use bit_field::BitField;

use super::{
    bar::{self, BARS, Bar},
    capability::{self, Express, MsiX, Siov, TableLocation},
    config::{COMMAND, ConfigSpace, set_command},
};
use crate::{
    addr::{Bdf, Hpa},
    quirks,
};

/// The function answers in memory.
const COMMAND_MEMORY: u16 = 1 << 1;
/// The function may send DMA and messages.
const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// The function does not raise its interrupt pin.
const COMMAND_NO_INTX: u16 = 1 << 10;

/// The dword of the PASID capability with control in its upper half, and the enable bit there (PCIe 7.8.9.3).
const PASID_CONTROL: u16 = 4;
const PASID_ENABLE: u32 = 1 << 16;

/// Class of display controllers.
const DISPLAY: u32 = 0x03;
/// A function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Where it is.
    pub bdf: Bdf,
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Class, subclass, programming interface: 24 bits.
    pub class: u32,
    /// Revision.
    pub revision: u8,
    /// Subsystem vendor and ID; zeros for a bridge.
    pub subsystem: (u16, u16),
    /// The BARs. `None` for bridges and host bridges, whose decoding must not pause, and for functions with other registers in place of
    /// BARs.
    pub bars: [Option<Bar>; BARS],
    /// The MSI capability's offset.
    pub msi: Option<u16>,
    /// MSI-X.
    pub msix: Option<MsiX>,
    /// PCI Express.
    pub express: Option<Express>,
    /// Scalable I/O virtualization.
    pub siov: Option<Siov>,
    /// The PASID capability's offset.
    pub pasid: Option<u16>,
    /// For a PCI-to-PCI bridge: what lies behind.
    pub bridge: Option<Bridge>,
}

/// The buses behind a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// The first.
    pub secondary: u8,
    /// The last.
    pub subordinate: u8,
}

impl Function {
    /// Reads the function at `bdf`, if there is one. It does not decode its memory for a moment.
    pub fn read(config: &(impl ConfigSpace + ?Sized), bdf: Bdf) -> Option<Self> {
        let ids = config.read(bdf, 0);
        if ids as u16 == 0xffff || ids == 0 {
            return None;
        }
        let class = config.read(bdf, 0x08);
        let header = config.read(bdf, 0x0c).get_bits(16..23);
        let (vendor, device) = (ids as u16, (ids >> 16) as u16);
        let no_bars = quirks::has_other_registers(vendor, device);
        if no_bars {
            log::info!("{bdf}: {vendor:04x}:{device:04x} has other registers in place of BARs; they are not looked at");
        }
        let plain = header == 0 && class >> 16 != 0x0600 && !no_bars;
        let subsystem = if header == 0 { config.read(bdf, 0x2c) } else { 0 };
        let found = capability::read(config, bdf);
        Some(Self {
            bdf,
            vendor,
            device,
            class: class >> 8,
            revision: class as u8,
            subsystem: (subsystem as u16, (subsystem >> 16) as u16),
            bars: if plain { bar::probe(config, bdf) } else { [None; BARS] },
            msi: found.msi,
            msix: found.msix,
            express: found.express,
            siov: found.siov,
            pasid: found.pasid,
            bridge: (header == 1).then(|| Bridge::read(config, bdf)),
        })
    }

    /// Whether it is a display controller.
    pub fn is_display(&self) -> bool {
        self.class >> 16 == DISPLAY
    }

    /// Whether it is graphics whose remapping unit must not stop translating once it does.
    pub fn must_stay_translated(&self) -> bool {
        self.is_display() && quirks::must_stay_translated(self.vendor, self.device)
    }

    /// Whether it can be reset by itself: [`super::reset::reset`].
    pub fn resets(&self) -> bool {
        self.bridge.is_none() && self.express.is_some_and(|express| express.resets)
    }

    /// Where a table is, if its BAR is placed and holds `bytes` from there.
    pub fn locate(&self, table: TableLocation, bytes: u64) -> Option<Hpa> {
        let (base, size) = self.bars.get(usize::from(table.bar))?.as_ref()?.memory()?;
        let end = u64::from(table.offset).checked_add(bytes)?;
        if end <= size { base.checked_add(table.offset.into()) } else { None }
    }
}

impl Bridge {
    fn read(config: &(impl ConfigSpace + ?Sized), bdf: Bdf) -> Self {
        let buses = config.read(bdf, 0x18);
        Self { secondary: buses.get_bits(8..16) as u8, subordinate: buses.get_bits(16..24) as u8 }
    }
}

/// Lets the function decode its memory and send DMA and messages; no interrupt pin.
pub fn enable(config: &(impl ConfigSpace + ?Sized), bdf: Bdf) {
    let command = config.read(bdf, COMMAND) as u16;
    set_command(config, bdf, command | COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_NO_INTX);
}

/// Lets the function decode its memory, and send nothing.
pub fn enable_memory(config: &(impl ConfigSpace + ?Sized), bdf: Bdf) {
    let command = config.read(bdf, COMMAND) as u16;
    set_command(config, bdf, command & !COMMAND_BUS_MASTER | COMMAND_MEMORY | COMMAND_NO_INTX);
}

/// Calls `look` while the function decodes its memory, and restores the command register. Firmware leaves decoding off if it needs no
/// registers itself.
pub fn while_decoding<T>(config: &(impl ConfigSpace + ?Sized), bdf: Bdf, look: impl FnOnce() -> T) -> T {
    let command = config.read(bdf, COMMAND) as u16;
    set_command(config, bdf, command | COMMAND_MEMORY);
    let seen = look();
    set_command(config, bdf, command);
    seen
}

/// Takes from the function the right to send DMA and messages.
pub fn disable_bus_master(config: &(impl ConfigSpace + ?Sized), bdf: Bdf) {
    let command = config.read(bdf, COMMAND) as u16;
    set_command(config, bdf, command & !COMMAND_BUS_MASTER);
}

/// Lets the function send requests with PASIDs, or forbids it; `pasid` is the capability's offset. Not while the function does anything.
pub fn set_pasid_enable(config: &(impl ConfigSpace + ?Sized), bdf: Bdf, pasid: u16, enable: bool) {
    let at = pasid + PASID_CONTROL;
    let old = config.read(bdf, at);
    let new = if enable { old | PASID_ENABLE } else { old & !PASID_ENABLE };
    config.write(bdf, at, new);
}
/// MSI-X control, behind the capability's header: enable, function mask.
const MSIX_ENABLE: u32 = 1 << 31;
const MSIX_FUNCTION_MASK: u32 = 1 << 30;

/// Writes MSI-X control.
pub fn set_msix(config: &dyn ConfigSpace, function: &Function, enable: bool, function_mask: bool) {
    let Some(msix) = function.msix else { return };
    let old = config.read(function.bdf, msix.capability);
    let bit = |set: bool, mask: u32| if set { mask } else { 0 };
    let control = bit(enable, MSIX_ENABLE) | bit(function_mask, MSIX_FUNCTION_MASK);
    config.write(function.bdf, msix.capability, old & !(MSIX_ENABLE | MSIX_FUNCTION_MASK) | control);
}
