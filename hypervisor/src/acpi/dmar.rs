//! The remapping units: VT-d specification, chapter 8 (BIOS considerations).
//!
//! Firmware makes mistakes in this table, and the hypervisor uses such a machine all the same. It logs a defective structure
//! ([`Dmar::defects`]) and leaves it out, as Linux does (`dmar_walk_remapping_entries`, `dmar_parse_one_rmrr`). Leaving a structure out
//! must not confine other functions less. So a unit without usable registers stays in the list, and the functions that it names count as
//! served by no unit. If a unit's scopes are not known to the end, no function counts as one of "all the rest" ([`Dmar::unit_of`]). A
//! function behind a bridge that does not show itself counts as one of them only if no scope leads through such a bridge.
//!
//! ATS stays off, so the hypervisor skips where ATS would work (ATSR, 8.5), the names of devices of the ACPI name space (ANDD, 8.7) and the properties of integrated functions (SIDP, 8.9).

use alloc::vec::Vec;
use core::fmt;

use super::{bytes::u8_at, tables::Missing};
use crate::{
    addr::{Bdf, Hpa},
    memory::PhysRange,
};

mod structures;
#[cfg(test)]
mod tests;

/// A region that the firmware keeps for a device is at most this long; the largest are those of graphics.
const RESERVED_MOST: u64 = 1 << 30;

/// Where the remapping structures begin (8.1).
const STRUCTURES: usize = 48;

/// The table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dmar {
    /// Bits of a physical address that DMA can reach.
    pub host_address_width: u8,
    /// INTR_REMAP: the platform can remap interrupts.
    pub interrupt_remapping: bool,
    /// X2APIC_OPT_OUT: firmware asks not to use x2APIC mode.
    pub x2apic_opt_out: bool,
    /// The remapping units.
    pub units: Vec<Drhd>,
    /// Memory that devices use behind the operating system's back.
    pub reserved: Vec<Rmrr>,
    /// The integrated functions that have a translation cache (SATC, 8.8).
    pub caches: Vec<Satc>,
    /// What cannot be, in the table's order.
    pub defects: Vec<DmarDefect>,
    /// Structures may be missing: the walk ended before the table's end, and not at zeros.
    cut: bool,
}

/// A remapping unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drhd {
    /// INCLUDE_PCI_ALL: it serves all functions of the segment that no other unit serves.
    pub include_all: bool,
    /// The PCI segment.
    pub segment: u16,
    /// Its registers. `None` where the table gives an address that cannot be: nobody can use the unit.
    pub base: Option<Hpa>,
    /// Bytes of its registers.
    pub size: u64,
    /// The proximity domain that it is in (RHSA), if the firmware says so.
    pub domain: Option<u32>,
    /// What it serves.
    pub scopes: Vec<Scope>,
    /// All scopes could be read.
    whole: bool,
}

/// Memory that must stay reachable for some devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rmrr {
    /// The PCI segment.
    pub segment: u16,
    /// The first byte, page-aligned.
    pub base: Hpa,
    /// The last byte.
    pub limit: Hpa,
    /// The devices.
    pub scopes: Vec<Scope>,
}

/// Integrated functions with a translation cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Satc {
    /// ATC_REQUIRED: the functions need ATS to work as they should.
    pub required: bool,
    /// The PCI segment.
    pub segment: u16,
    /// The functions.
    pub scopes: Vec<Scope>,
}

/// What a scope names (8.3.1, table "Device Scope Structure Fields").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScopeKind {
    /// A PCI function.
    Endpoint,
    /// A bridge and everything behind it.
    Bridge,
    /// An I/O APIC, by its ID.
    IoApic(u8),
    /// An HPET block, by its number.
    Hpet(u8),
    /// A device of the ACPI name space, by its number.
    Namespace(u8),
}

/// A device scope (8.3.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// What it names.
    pub kind: ScopeKind,
    /// The bus on which the path begins.
    pub start_bus: u8,
    /// Device and function of each bridge on the way, then of the device.
    pub path: Vec<(u8, u8)>,
}

/// A table that ends before its fixed part: nothing of it can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooShort;

/// Why a machine has no unit that can be used. As text it says what can be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoUnits {
    /// There is no table, for this reason.
    NoTable(Missing),
    /// The table ends before its fixed part.
    TooShort,
    /// The platform does not remap interrupts.
    NoInterruptRemapping,
    /// The table lists no unit.
    NoneListed,
}

/// Something in the table that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmarDefect {
    /// The offset in the table.
    pub at: usize,
    /// The kind of oddity.
    pub what: DefectKind,
}

/// What cannot be, and what is done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefectKind {
    /// A structure is shorter than its type needs. It is left out.
    Short,
    /// A structure has length 0, and zeros follow up to the end: padding.
    Padding,
    /// A structure's length is less than its header's or reaches beyond the table: neither it nor what follows is used.
    Length,
    /// A unit's registers cannot be at this address.
    UnitAddress(u64),
    /// A second entry for the unit at this address, in the same segment. The unit serves what either names.
    SameUnit(u64),
    /// A unit whose registers, from this address on, are another one's, or that one's of another segment.
    TakenRegisters(u64),
    /// A region with these bounds cannot be. It is left out.
    Region(u64, u64),
    /// A scope's length is wrong. It and those behind it are left out.
    ScopeLength,
}

impl fmt::Display for NoUnits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoTable(Missing::NoAcpi) => {
                "the firmware's ACPI tables were not found, which list the remapping units. Check that the boot loader hands them over"
            }
            Self::NoTable(Missing::NotListed) => {
                "the firmware reports no remapping unit (no DMAR table). Enable VT-d in the firmware setup"
            }
            Self::NoTable(Missing::Unreadable(_)) => {
                "the firmware's DMAR table has a length that cannot be, and is not used. Only other firmware helps"
            }
            Self::TooShort => {
                "the firmware's DMAR table ends before its fixed part and cannot be used. Only other firmware helps"
            }
            Self::NoInterruptRemapping => {
                "the firmware says that interrupts cannot be remapped (DMAR flags). If its setup has interrupt remapping or x2APIC, enable it"
            }
            Self::NoneListed => "the firmware's DMAR table lists no remapping unit. Only other firmware helps",
        })
    }
}

impl fmt::Display for DmarDefect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "offset {:#x}: ", self.at)?;
        match self.what {
            DefectKind::Short => f.write_str("the structure is too short and is left out"),
            DefectKind::Padding => f.write_str("a structure of length 0 ends the table"),
            DefectKind::Length => f.write_str("the length is wrong; this structure and all behind it are left out"),
            DefectKind::UnitAddress(base) => write!(f, "no unit can be at {base:#x}; what it serves goes to no guest"),
            DefectKind::SameUnit(base) => {
                write!(f, "a second entry for the unit at {base:#x}; the unit serves what either names")
            }
            DefectKind::TakenRegisters(base) => {
                write!(
                    f,
                    "the registers at {base:#x} are another unit's already; what this one serves goes to no guest"
                )
            }
            DefectKind::Region(base, limit) => {
                write!(f, "no region (RMRR) can be {base:#x} to {limit:#x}; it is left out")
            }
            DefectKind::ScopeLength => {
                f.write_str("the length of a scope is wrong; it and those behind it in its structure are left out")
            }
        }
    }
}

impl Dmar {
    /// Reads a whole table (with its header). What cannot be is in [`Self::defects`]; structures of unknown types are skipped.
    pub fn parse(table: &[u8]) -> Result<Self, TooShort> {
        let (width, flags) = u8_at(table, 36).zip(u8_at(table, 37)).ok_or(TooShort)?;
        if table.len() < STRUCTURES {
            return Err(TooShort);
        }
        let mut dmar = Self {
            host_address_width: width.saturating_add(1).min(64),
            interrupt_remapping: flags & 1 != 0,
            x2apic_opt_out: flags & 2 != 0,
            ..Self::default()
        };
        dmar.walk(table, STRUCTURES);
        Ok(dmar)
    }

    /// The same of the firmware's table, if there is one.
    pub fn parse_found(table: Result<&[u8], Missing>) -> Result<Self, NoUnits> {
        Self::parse(table.map_err(NoUnits::NoTable)?).map_err(|TooShort| NoUnits::TooShort)
    }

    /// The units, if there are some and they remap interrupts.
    pub fn usable(&self) -> Result<&[Drhd], NoUnits> {
        match (self.interrupt_remapping, self.units.is_empty()) {
            (false, _) => Err(NoUnits::NoInterruptRemapping),
            (true, true) => Err(NoUnits::NoneListed),
            (true, false) => Ok(&self.units),
        }
    }

    /// The unit that serves the function: the one that names it or a bridge above it, else the one for all the rest, unless another unit
    /// could name it: by scopes that are not known to the end, or through a bridge that is not seen. `buses_behind` tells the secondary and
    /// subordinate bus of a bridge; `top` is the bus of the topmost bridge above the function that is seen, or the function's own.
    pub fn unit_of(&self, bdf: Bdf, top: u8, buses_behind: impl Fn(Bdf) -> Option<(u8, u8)>) -> Option<&Drhd> {
        let here = || self.units.iter().filter(|unit| unit.segment == bdf.segment());
        let covers = |scope: &Scope| scope.covers(bdf, &buses_behind);
        let named = here().find(|unit| unit.scopes.iter().any(covers));
        let scopes = || here().flat_map(|unit| &unit.scopes);
        let is_root = || top == 0 || scopes().any(|scope| scope.start_bus == top);
        let hides = |scope: &Scope| scope.start_bus < top && scope.leads_nowhere(bdf.segment(), &buses_behind);
        let of_the_rest = || self.is_whole(bdf.segment()) && (is_root() || !scopes().any(hides));
        named.or_else(|| here().find(|unit| unit.include_all).filter(|_| of_the_rest()))
    }

    /// Whether all units of the segment are known, with all that they name.
    pub fn is_whole(&self, segment: u16) -> bool {
        !self.cut && self.units.iter().all(|unit| unit.whole || unit.include_all || unit.segment != segment)
    }

    /// The regions that the function needs.
    pub fn reserved_of<'a>(
        &'a self,
        bdf: Bdf,
        buses_behind: impl Fn(Bdf) -> Option<(u8, u8)> + 'a,
    ) -> impl Iterator<Item = &'a Rmrr> + 'a {
        let needs = move |region: &&Rmrr| {
            region.segment == bdf.segment() && region.scopes.iter().any(|scope| scope.covers(bdf, &buses_behind))
        };
        self.reserved.iter().filter(needs)
    }

    /// Whether the firmware says that the function needs ATS (SATC, ATC_REQUIRED).
    pub fn requires_ats(&self, bdf: Bdf, buses_behind: impl Fn(Bdf) -> Option<(u8, u8)>) -> bool {
        let names = |scope: &Scope| scope.covers(bdf, &buses_behind);
        let here = |satc: &&Satc| satc.required && satc.segment == bdf.segment();
        self.caches.iter().filter(here).any(|satc| satc.scopes.iter().any(names))
    }
}

impl Rmrr {
    /// Its memory.
    pub fn range(&self) -> PhysRange {
        PhysRange::new(self.base, self.limit.as_u64().saturating_sub(self.base.as_u64()).saturating_add(1))
    }

    /// Whether it can be what the table says of it, memory that the firmware keeps: no part of it is `usable` by the memory map. Linux warns
    /// of others (`arch_rmrr_sanity_check`).
    pub fn is_firmwares(&self, usable: &[PhysRange]) -> bool {
        let range = self.range();
        range.len <= RESERVED_MOST && !usable.iter().any(|memory| memory.overlaps(&range))
    }
}

impl Scope {
    /// The function at the path's end in a segment, found through the bridges' secondary buses.
    pub fn function(&self, segment: u16, buses_behind: impl Fn(Bdf) -> Option<(u8, u8)>) -> Option<Bdf> {
        let (&(device, function), bridges) = self.path.split_last()?;
        let at = |bus, device, function| Bdf::new(bus, device, function).in_segment(segment);
        let through = |bus, &(device, function): &(u8, u8)| Some(buses_behind(at(bus, device, function))?.0);
        let bus = bridges.iter().try_fold(self.start_bus, through)?;
        Some(at(bus, device, function))
    }

    /// Whether the function that the scope names cannot be known: its path leads through a bridge, or ends at one, that is not seen. Bridges have buses of higher
    /// numbers than their own behind them, so all of that is beyond the scope's first bus.
    fn leads_nowhere(&self, segment: u16, buses_behind: impl Fn(Bdf) -> Option<(u8, u8)>) -> bool {
        match (self.kind, self.function(segment, &buses_behind)) {
            (ScopeKind::Endpoint | ScopeKind::Bridge, None) => true,
            (ScopeKind::Bridge, Some(bridge)) => buses_behind(bridge).is_none(),
            _ => false,
        }
    }

    /// Whether it names the function, or a bridge above it. A structure's scopes lie in the structure's segment, which is the function's.
    fn covers(&self, bdf: Bdf, buses_behind: impl Fn(Bdf) -> Option<(u8, u8)>) -> bool {
        if !matches!(self.kind, ScopeKind::Endpoint | ScopeKind::Bridge) {
            return false;
        }
        let Some(named) = self.function(bdf.segment(), &buses_behind) else { return false };
        let behind = || buses_behind(named).is_some_and(|(first, last)| (first..=last).contains(&bdf.bus()));
        named == bdf || self.kind == ScopeKind::Bridge && behind()
    }
}
