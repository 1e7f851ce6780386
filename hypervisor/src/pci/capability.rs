//! Capabilities: PCI Local Bus Specification 3.0, section 6.7; PCI Express Base Specification 6.0, sections 7.6 and 7.9.6
//! (DVSEC); Intel Scalable I/O Virtualization Technical Specification, section "SIOV capability".

use alloc::vec::Vec;

use bit_field::BitField;

use super::config::{CONVENTIONAL, ConfigSpace};
use crate::addr::Bdf;

/// Capability IDs.
const MSI: u8 = 0x05;
const PCI_EXPRESS: u8 = 0x10;
const MSI_X: u8 = 0x11;
/// Device capabilities of PCI Express, and their bit for function level reset (7.5.3.3).
const DEVICE_CAPABILITIES: u16 = 4;
const RESETS: usize = 28;
/// Extended capability ID: PASID (PCIe 7.8.9), and its bytes.
const PASID: u16 = 0x1b;
const PASID_BYTES: u16 = 8;
/// Extended capability ID: designated vendor-specific.
const DVSEC: u16 = 0x23;
/// Intel's DVSEC for scalable I/O virtualization: the vendor and its ID.
const SIOV_DVSEC: (u16, u16) = (0x8086, 5);
/// Offset of the SIOV DVSEC's capabilities doubleword, whose bit 0 says that the function has an interrupt message store.
const SIOV_CAPABILITIES: u16 = 0x14;

const STATUS: u16 = 0x04;
const STATUS_CAPABILITIES: usize = 20;
const POINTER: u16 = 0x34;
/// As many capabilities as fit; a longer list has a loop.
const MAX_CAPABILITIES: usize = 48;
const MAX_EXTENDED: usize = 480;

/// A table in a BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableLocation {
    /// The BAR's index, 0 to 5.
    pub bar: u8,
    /// Bytes from its start.
    pub offset: u32,
}

/// MSI-X (PCIe 7.7.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiX {
    /// Offset of the capability in configuration space.
    pub capability: u16,
    /// Entries of the table, 1 to 2048.
    pub entries: u16,
    /// The table: 16 bytes an entry.
    pub table: TableLocation,
    /// The pending bits: 8 bytes for 64 entries.
    pub pba: TableLocation,
}

/// PCI Express (PCIe 7.5.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Express {
    /// Offset of the capability in configuration space.
    pub capability: u16,
    /// Function level reset: the function can be reset by itself.
    pub resets: bool,
}

/// The SIOV DVSEC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Siov {
    /// Offset of the capability in configuration space.
    pub capability: u16,
    /// The function has an interrupt message store.
    pub ims: bool,
}

/// What the capability lists say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// The MSI capability's offset.
    pub msi: Option<u16>,
    /// MSI-X.
    pub msix: Option<MsiX>,
    /// PCI Express.
    pub express: Option<Express>,
    /// The SIOV DVSEC.
    pub siov: Option<Siov>,
    /// The PASID capability's offset.
    pub pasid: Option<u16>,
}

/// Walks both lists.
pub(super) fn read(config: &(impl ConfigSpace + ?Sized), bdf: Bdf) -> Capabilities {
    let mut found = Capabilities::default();
    for (id, offset) in list(config, bdf) {
        match id {
            MSI if found.msi.is_none() => found.msi = Some(offset),
            MSI_X if found.msix.is_none() => found.msix = msix(config, bdf, offset),
            PCI_EXPRESS => found.express = Some(express(config, bdf, offset)),
            _ => {}
        }
    }
    // A conventional function answers offsets beyond 0xFF with those below.
    if found.express.is_some() || config.has_extended() {
        let extended = extended_list(config, bdf);
        let all = |id| extended.iter().filter(move |&&(found, _)| found == id).map(|&(_, offset)| offset);
        found.siov = all(DVSEC).find_map(|offset| siov(config, bdf, offset));
        found.pasid = all(PASID).find(|&offset| offset <= 0x1000 - PASID_BYTES);
    }
    found
}

/// The conventional list: ID and offset, at most [`MAX_CAPABILITIES`], each once.
fn list(config: &(impl ConfigSpace + ?Sized), bdf: Bdf) -> Vec<(u8, u16)> {
    let mut found: Vec<(u8, u16)> = Vec::new();
    if !config.read(bdf, STATUS).get_bit(STATUS_CAPABILITIES) {
        return found;
    }
    let mut at = config.read(bdf, POINTER) as u16 & 0xfc;
    while at >= 0x40 && found.len() < MAX_CAPABILITIES && found.iter().all(|&(_, seen)| seen != at) {
        let header = config.read(bdf, at);
        found.push((header as u8, at));
        at = (header >> 8) as u16 & 0xfc;
    }
    found
}

/// The extended list: ID and offset, at most [`MAX_EXTENDED`], ascending or not, each once.
fn extended_list(config: &(impl ConfigSpace + ?Sized), bdf: Bdf) -> Vec<(u16, u16)> {
    let mut found: Vec<(u16, u16)> = Vec::new();
    let mut at = CONVENTIONAL;
    while at >= CONVENTIONAL && found.len() < MAX_EXTENDED && found.iter().all(|&(_, seen)| seen != at) {
        let header = config.read(bdf, at);
        if header == 0 || header == u32::MAX {
            break;
        }
        found.push((header as u16, at));
        at = header.get_bits(20..32) as u16 & 0xffc;
    }
    found
}

fn express(config: &(impl ConfigSpace + ?Sized), bdf: Bdf, capability: u16) -> Express {
    Express { capability, resets: config.read(bdf, capability + DEVICE_CAPABILITIES).get_bit(RESETS) }
}

fn msix(config: &(impl ConfigSpace + ?Sized), bdf: Bdf, capability: u16) -> Option<MsiX> {
    let entries = config.read(bdf, capability).get_bits(16..27) as u16 + 1;
    let location = |offset| {
        let value = config.read(bdf, capability + offset);
        let bar = (value & 7) as u8;
        (bar < 6).then_some(TableLocation { bar, offset: value & !7 })
    };
    Some(MsiX { capability, entries, table: location(4)?, pba: location(8)? })
}

/// The DVSEC at `capability`, if it is Intel's for SIOV and long enough to say something.
fn siov(config: &(impl ConfigSpace + ?Sized), bdf: Bdf, capability: u16) -> Option<Siov> {
    let first = config.read(bdf, capability.checked_add(4).filter(|&at| at < 0x1000)?);
    let second = config.read(bdf, capability.checked_add(8).filter(|&at| at < 0x1000)?);
    let at = capability.checked_add(SIOV_CAPABILITIES).filter(|&at| at < 0x1000)?;
    let long_enough = first.get_bits(20..32) >= u32::from(SIOV_CAPABILITIES) + 4;
    let is_siov = (first as u16, second as u16) == SIOV_DVSEC && long_enough;
    is_siov.then(|| Siov { capability, ims: config.read(bdf, at).get_bit(0) })
}
