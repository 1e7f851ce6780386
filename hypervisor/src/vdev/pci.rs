//! The guest's PCI bus 0: a host bridge at 00:00.0 and the functions assigned to it at 00:01.0, 00:02.0, …
//!
//! Each function's 4 KiB of configuration space is a page that always holds the values that reads must return. So the page can be mapped
//! read-only into the guest's ECAM window, and reads cost no exit. Writes come through [`VirtualBus::write`], which changes the page and
//! returns the effect on the physical function.
//!
//! BARs do not move. Their addresses are fixed when the guest is built, as firmware would do. The sizing protocol works (a dword of ones
//! gives the size mask). Any other address is ignored, reads back as before, and is reported as [`Effect::BarMoved`].
//!
//! Each function has function level reset (PCIe 6.6.2). The reset gives the guest's settings their initial values; the caller resets the
//! function itself ([`Effect::Reset`]).

use alloc::{boxed::Box, vec::Vec};

use super::all_ones;
use crate::addr::{Bdf, Gpa};

/// Bytes of a function's configuration space.
pub const CONFIG_SIZE: usize = 4096;
/// Most functions on the bus, host bridge included.
pub const DEVICES: usize = 32;

const COMMAND: u16 = 0x04;
const CACHE_LINE_SIZE: u16 = 0x0c;
const BAR0: u16 = 0x10;
const BAR5: u16 = 0x24;
const SUBSYSTEM: u16 = 0x2c;
const CAPABILITIES: u16 = 0x34;
const INTERRUPT_LINE: u16 = 0x3c;
const EXTENDED: usize = 0x100;
const PCIE: u16 = 0x40;
const MSIX: u16 = 0x80;
const DEVICE_CAPABILITIES: u16 = PCIE + 4;
const DEVICE_CONTROL: u16 = PCIE + 8;
const MSIX_CONTROL: u16 = MSIX + 2;

const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// Memory, bus master, parity, SERR, INTx disable.
const COMMAND_WRITABLE: u16 = COMMAND_MEMORY | COMMAND_BUS_MASTER | 1 << 6 | 1 << 8 | 1 << 10;
const STATUS_CAPABILITIES: u16 = 1 << 4;
const BAR_64BIT: u32 = 1 << 2;
const BAR_PREFETCHABLE: u32 = 1 << 3;
const CAPABILITY_PCIE: u8 = 0x10;
const CAPABILITY_MSIX: u8 = 0x11;
/// Version 2, root complex integrated endpoint.
const PCIE_FLAGS: u16 = 9 << 4 | 2;
/// Role-based error reporting, which every function since version 1.1 has; function level reset (7.5.3.3).
const DEVICE_CAPABILITIES_OFFERED: u32 = 1 << 15 | 1 << 28;
/// Device control: initiate function level reset; reads as zero (7.5.3.4).
const INITIATE_RESET: u16 = 1 << 15;
const DEVICE_CONTROL_WRITABLE: u16 = !INITIATE_RESET;
/// Device control: largest payload, which a function level reset does not change (6.6.2).
const MAX_PAYLOAD: u16 = 0b111 << 5;
const MSIX_ENABLE: u16 = 1 << 15;
const MSIX_FUNCTION_MASK: u16 = 1 << 14;
const DVSEC_ID: u32 = 0x23;
const SMALLEST_BAR: u64 = 0x1000;

/// A memory BAR and its place in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarDescr {
    /// Bytes: a power of two, at least a page.
    pub size: u64,
    /// Where: a multiple of `size`.
    pub gpa: Gpa,
    /// Takes the next BAR's register as well.
    pub is_64bit: bool,
    /// Prefetchable.
    pub prefetchable: bool,
}

/// Most entries of an MSI-X table (PCIe 7.7.2.2).
pub const MOST_MSIX: u16 = 2048;

/// The MSI-X capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixDescr {
    /// Entries, 1 to [`MOST_MSIX`].
    pub size: u16,
    /// BAR with the table, and its offset there: a multiple of 8.
    pub table: (u8, u32),
    /// The same for the pending bits.
    pub pba: (u8, u32),
}

/// The description of a function for the guest.
#[derive(Clone, Debug, Default)]
pub struct FunctionDescr {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Class, subclass, programming interface: 24 bits.
    pub class: u32,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
    /// BARs 0 to 5.
    pub bars: [Option<BarDescr>; 6],
    /// MSI-X, if it has that.
    pub msix: Option<MsixDescr>,
    /// A designated vendor-specific extended capability with its header, as read from the function; empty for none. It is hidden
    /// until [`VirtualBus::reveal_stores`]. Its header is written anew: the list ends with it.
    pub dvsec: Vec<u8>,
}

/// Why a description makes no function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// This BAR's size, place or width.
    Bar(usize),
    /// The MSI-X table or its pending bits do not lie in a BAR.
    Msix,
    /// The extended capability's length.
    Dvsec,
    /// More functions than the bus has devices.
    BusFull,
}

/// What a write makes necessary on the physical function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// The command register has these now.
    Command {
        /// Memory decoding.
        memory: bool,
        /// Bus mastering.
        bus_master: bool,
    },
    /// The guest tried to move this BAR; it stays.
    BarMoved(u8),
    /// MSI-X control has these now.
    Msix {
        /// MSI-X enable.
        enable: bool,
        /// All entries masked.
        function_mask: bool,
    },
    /// The guest has reset the function: memory decoding, bus mastering and MSI-X are off.
    Reset,
}

/// A page of configuration space.
#[repr(C, align(4096))]
pub struct ConfigPage([u8; CONFIG_SIZE]);

impl ConfigPage {
    /// What a guest reads where no function is: to be mapped for all absent ones.
    pub const ABSENT: Self = Self([0xff; CONFIG_SIZE]);

    /// Its bytes.
    pub const fn bytes(&self) -> &[u8; CONFIG_SIZE] {
        &self.0
    }

    fn set(&mut self, offset: u16, bytes: &[u8]) {
        if let Some(place) = self.0.get_mut(offset as usize..offset as usize + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }

    fn get<const N: usize>(&self, offset: u16) -> [u8; N] {
        let bytes = self.0.get(offset as usize..offset as usize + N);
        bytes.and_then(|bytes| bytes.try_into().ok()).unwrap_or([0xff; N])
    }

    fn word(&self, offset: u16) -> u16 {
        u16::from_le_bytes(self.get(offset))
    }

    fn dword(&self, offset: u16) -> u32 {
        u32::from_le_bytes(self.get(offset))
    }

    fn read(&self, offset: u16, width: u8) -> u32 {
        match width {
            1 => self.get::<1>(offset)[0] as u32,
            2 => self.word(offset) as u32,
            _ => self.dword(offset),
        }
    }
}

/// The two values of a BAR register.
#[derive(Clone, Copy, Debug, Default)]
struct BarRegister {
    fixed: u32,
    mask: u32,
    /// The bits of the address in it; the others tell its kind.
    address: u32,
}

/// One function of the guest's bus.
pub struct VirtualFunction {
    page: Box<ConfigPage>,
    bars: [BarRegister; 6],
    /// What the guest does not see yet.
    hidden: Vec<u8>,
}

impl VirtualFunction {
    /// Builds the configuration space that `descr` describes; memory decoding and bus mastering are off.
    pub fn new(descr: &FunctionDescr) -> Result<Self, Error> {
        let mut page = Box::new(ConfigPage([0; CONFIG_SIZE]));
        let class = (descr.class & 0xff_ffff) << 8 | descr.revision as u32;
        page.set(0, &((descr.device as u32) << 16 | descr.vendor as u32).to_le_bytes());
        page.set(8, &class.to_le_bytes());
        page.set(SUBSYSTEM, &((descr.subsystem as u32) << 16 | descr.subsystem_vendor as u32).to_le_bytes());
        let bars = bar_registers(&descr.bars)?;
        for (index, bar) in bars.iter().enumerate() {
            page.set(BAR0 + index as u16 * 4, &bar.fixed.to_le_bytes());
        }
        page.set(COMMAND + 2, &STATUS_CAPABILITIES.to_le_bytes());
        page.set(CAPABILITIES, &[PCIE as u8]);
        let next = if descr.msix.is_some() { MSIX as u8 } else { 0 };
        page.set(PCIE, &[CAPABILITY_PCIE, next, PCIE_FLAGS as u8, 0]);
        page.set(DEVICE_CAPABILITIES, &DEVICE_CAPABILITIES_OFFERED.to_le_bytes());
        if let Some(msix) = &descr.msix {
            set_msix(&mut page, msix, &descr.bars)?;
        }
        check_dvsec(&descr.dvsec)?;
        Ok(Self { page, bars, hidden: descr.dvsec.clone() })
    }

    /// The host bridge.
    fn host_bridge() -> Self {
        let mut page = Box::new(ConfigPage([0; CONFIG_SIZE]));
        // A generic PCIe host bridge: Red Hat's, which no driver binds to.
        page.set(0, &0x0008_1b36_u32.to_le_bytes());
        page.set(8, &0x0600_0000_u32.to_le_bytes());
        Self { page, bars: Default::default(), hidden: Vec::new() }
    }

    /// Shows the extended capability that was hidden.
    fn reveal(&mut self) {
        set_dvsec(&mut self.page, &core::mem::take(&mut self.hidden));
    }

    /// The page to map read-only into the ECAM window.
    pub const fn config_page(&self) -> &ConfigPage {
        &self.page
    }

    /// Memory decoding and bus mastering, as the guest set them.
    pub fn command(&self) -> Effect {
        let command = self.page.word(COMMAND);
        Effect::Command { memory: command & COMMAND_MEMORY != 0, bus_master: command & COMMAND_BUS_MASTER != 0 }
    }

    fn write(&mut self, offset: u16, width: u8, value: u32) -> Effect {
        let register = offset & !3;
        let (shift, mask) = (u32::from(offset & 3) * 8, all_ones(width));
        let (value, mask) = ((value & mask) << shift, mask << shift);
        match register {
            COMMAND => self.write_word(COMMAND, COMMAND_WRITABLE, value, mask, Self::command),
            BAR0..=BAR5 => self.write_bar((register - BAR0) / 4, value, mask),
            CACHE_LINE_SIZE | INTERRUPT_LINE => self.write_word(register, 0xff, value, mask, |_| Effect::None),
            DEVICE_CONTROL if self.page.get(PCIE) == [CAPABILITY_PCIE] => {
                self.write_word(register, DEVICE_CONTROL_WRITABLE, value, mask, |_| Effect::None);
                if value as u16 & INITIATE_RESET != 0 { self.reset() } else { Effect::None }
            }
            MSIX if self.page.get(MSIX) == [CAPABILITY_MSIX] => {
                let writable = MSIX_ENABLE | MSIX_FUNCTION_MASK;
                self.write_word(MSIX_CONTROL, writable, value >> 16, mask >> 16, Self::msix_control)
            }
            _ => Effect::None,
        }
    }

    /// Changes the bits in `writable` of the word at `offset`; tells the effect if that changed it.
    fn write_word(&mut self, offset: u16, writable: u16, value: u32, mask: u32, effect: fn(&Self) -> Effect) -> Effect {
        let old = self.page.word(offset);
        let changed = writable & mask as u16;
        let new = old & !changed | value as u16 & changed;
        if new == old {
            return Effect::None;
        }
        self.page.set(offset, &new.to_le_bytes());
        effect(self)
    }

    /// A function level reset. BARs are where they are always.
    fn reset(&mut self) -> Effect {
        let kept = self.page.word(DEVICE_CONTROL) & MAX_PAYLOAD;
        self.page.set(DEVICE_CONTROL, &kept.to_le_bytes());
        self.page.set(COMMAND, &[0, 0]);
        self.page.set(CACHE_LINE_SIZE, &[0]);
        self.page.set(INTERRUPT_LINE, &[0]);
        for (index, bar) in self.bars.iter().enumerate() {
            self.page.set(BAR0 + index as u16 * 4, &bar.fixed.to_le_bytes());
        }
        if self.page.get(MSIX) == [CAPABILITY_MSIX] {
            let off = self.page.word(MSIX_CONTROL) & !(MSIX_ENABLE | MSIX_FUNCTION_MASK);
            self.page.set(MSIX_CONTROL, &off.to_le_bytes());
        }
        Effect::Reset
    }

    fn msix_control(&self) -> Effect {
        let control = self.page.word(MSIX_CONTROL);
        Effect::Msix { enable: control & MSIX_ENABLE != 0, function_mask: control & MSIX_FUNCTION_MASK != 0 }
    }

    fn write_bar(&mut self, index: u16, value: u32, mask: u32) -> Effect {
        let Some(bar) = self.bars.get(index as usize).copied() else { return Effect::None };
        let offset = BAR0 + index * 4;
        let asked = self.page.dword(offset) & !mask | value;
        let sizing = asked == u32::MAX;
        self.page.set(offset, &if sizing { bar.mask } else { bar.fixed }.to_le_bytes());
        if sizing || bar.mask == 0 || (asked ^ bar.fixed) & bar.address == 0 {
            return Effect::None;
        }
        Effect::BarMoved(index as u8)
    }
}

fn bar_registers(descr: &[Option<BarDescr>; 6]) -> Result<[BarRegister; 6], Error> {
    let mut registers = [BarRegister::default(); 6];
    for (index, bar) in descr.iter().enumerate() {
        let Some(bar) = bar else { continue };
        let end = bar.gpa.checked_add(bar.size).ok_or(Error::Bar(index))?.as_u64();
        let valid = bar.size.is_power_of_two() && bar.size >= SMALLEST_BAR && bar.gpa.is_aligned(bar.size);
        if !valid || !bar.is_64bit && end > 1 << 32 {
            return Err(Error::Bar(index));
        }
        let kind = if bar.is_64bit { BAR_64BIT } else { 0 } | if bar.prefetchable { BAR_PREFETCHABLE } else { 0 };
        let mask = !(bar.size - 1);
        let gpa = bar.gpa.as_u64();
        registers[index] = BarRegister { fixed: gpa as u32 | kind, mask: mask as u32 | kind, address: mask as u32 };
        if bar.is_64bit {
            let free = descr.get(index + 1).is_some_and(Option::is_none);
            let upper = registers.get_mut(index + 1).filter(|_| free).ok_or(Error::Bar(index))?;
            let mask = (mask >> 32) as u32;
            *upper = BarRegister { fixed: (gpa >> 32) as u32, mask, address: mask };
        }
    }
    Ok(registers)
}

fn set_msix(page: &mut ConfigPage, msix: &MsixDescr, bars: &[Option<BarDescr>; 6]) -> Result<(), Error> {
    let inside = |(bir, offset): (u8, u32), bytes: u64| {
        let bar = bars.get(bir as usize).copied().flatten();
        offset & 7 == 0 && bar.is_some_and(|bar| offset as u64 + bytes <= bar.size)
    };
    let table = msix.size as u64 * 16;
    let pending = (msix.size as u64).div_ceil(64) * 8;
    if !(1..=MOST_MSIX).contains(&msix.size) || !inside(msix.table, table) || !inside(msix.pba, pending) {
        return Err(Error::Msix);
    }
    page.set(MSIX, &[CAPABILITY_MSIX, 0]);
    page.set(MSIX_CONTROL, &(msix.size - 1).to_le_bytes());
    for (at, (bir, offset)) in [(MSIX + 4, msix.table), (MSIX + 8, msix.pba)] {
        page.set(at, &(offset | bir as u32).to_le_bytes());
    }
    Ok(())
}

fn check_dvsec(dvsec: &[u8]) -> Result<(), Error> {
    let fits = (12..=CONFIG_SIZE - EXTENDED).contains(&dvsec.len()) && dvsec.len().is_multiple_of(4);
    if dvsec.is_empty() || fits { Ok(()) } else { Err(Error::Dvsec) }
}

/// Puts a capability there that has been checked.
fn set_dvsec(page: &mut ConfigPage, dvsec: &[u8]) {
    if dvsec.is_empty() {
        return;
    }
    page.set(EXTENDED as u16, dvsec);
    page.set(EXTENDED as u16, &(1 << 16 | DVSEC_ID).to_le_bytes());
    // The length that is there, not the one the function claims: bits 31:20 of the second dword.
    let header = page.dword(EXTENDED as u16 + 4);
    page.set(EXTENDED as u16 + 4, &(header & 0xf_ffff | (dvsec.len() as u32) << 20).to_le_bytes());
}

/// Bus 0 of a guest.
pub struct VirtualBus {
    functions: Vec<VirtualFunction>,
    /// CONFIG_ADDRESS, port 0xCF8.
    address: u32,
}

impl Default for VirtualBus {
    fn default() -> Self {
        Self { functions: alloc::vec![VirtualFunction::host_bridge()], address: 0 }
    }
}

impl VirtualBus {
    /// A bus with its host bridge.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a function on the next device number and says where that is.
    pub fn add(&mut self, function: VirtualFunction) -> Result<Bdf, Error> {
        if self.functions.len() >= DEVICES {
            return Err(Error::BusFull);
        }
        self.functions.push(function);
        Ok(Bdf::new(0, (self.functions.len() - 1) as u8, 0))
    }

    /// Has the functions show their interrupt message stores, because the guest has enabled the interface.
    pub fn reveal_stores(&mut self) {
        self.functions.iter_mut().for_each(VirtualFunction::reveal);
    }

    /// Every function with its place, the host bridge first.
    pub fn functions(&self) -> impl Iterator<Item = (Bdf, &VirtualFunction)> {
        self.functions.iter().enumerate().map(|(device, function)| (Bdf::new(0, device as u8, 0), function))
    }

    /// The function at `bdf`.
    pub fn function(&self, bdf: Bdf) -> Option<&VirtualFunction> {
        self.functions.get(bdf.device() as usize).filter(|_| bdf.bus() == 0 && bdf.function() == 0)
    }

    /// Which register of which function an offset in the ECAM window is.
    pub const fn ecam(offset: u64) -> (Bdf, u16) {
        (Bdf((offset >> 12) as u32 & 0xffff), (offset & 0xfff) as u16)
    }

    /// Reads `width` (1, 2 or 4) bytes. All ones where nothing is, and for a read that is not aligned.
    pub fn read(&self, bdf: Bdf, offset: u16, width: u8) -> u32 {
        match self.function(bdf) {
            Some(function) if is_access(offset, width) => function.page.read(offset, width),
            _ => all_ones(width),
        }
    }

    /// Writes `width` (1, 2 or 4) bytes. Nothing happens where nothing is, and for a write that is not aligned.
    pub fn write(&mut self, bdf: Bdf, offset: u16, width: u8, value: u32) -> Effect {
        if self.function(bdf).is_none() || !is_access(offset, width) {
            return Effect::None;
        }
        match self.functions.get_mut(bdf.device() as usize) {
            Some(function) => function.write(offset, width, value),
            None => Effect::None,
        }
    }

    /// IN from ports 0xCF8 to 0xCFF: configuration mechanism 1. `port` is relative to 0xCF8.
    pub fn io_read(&self, port: u16, width: u8) -> u32 {
        match (port, width) {
            (0, 4) => self.address,
            (4..=7, _) => self.selected(port).map_or(all_ones(width), |(bdf, offset)| self.read(bdf, offset, width)),
            _ => all_ones(width),
        }
    }

    /// OUT to ports 0xCF8 to 0xCFF: the address takes dwords only. With the function that was written to.
    pub fn io_write(&mut self, port: u16, width: u8, value: u32) -> Option<(Bdf, Effect)> {
        match (port, width) {
            (0, 4) => self.address = value & 0x80ff_fffc,
            (4..=7, _) => {
                let (bdf, offset) = self.selected(port)?;
                return Some((bdf, self.write(bdf, offset, width, value)));
            }
            _ => {}
        }
        None
    }

    const fn selected(&self, port: u16) -> Option<(Bdf, u16)> {
        if self.address >> 31 == 0 {
            return None;
        }
        Some((Bdf(self.address >> 8 & 0xffff), (self.address & 0xfc) as u16 | port & 3))
    }
}

const fn is_access(offset: u16, width: u8) -> bool {
    matches!(width, 1 | 2 | 4) && offset.is_multiple_of(width as u16) && (offset as usize) < CONFIG_SIZE
}

#[cfg(test)]
mod tests;
