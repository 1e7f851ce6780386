//! The remapping units: VT-d specification, chapter 8 (BIOS considerations).

use alloc::vec::Vec;
use core::fmt;

use super::bytes::{u8_at, u16_at, u64_at};
use crate::addr::{Bdf, Hpa, PAGE_SIZE};

/// Where the remapping structures begin (8.1).
const STRUCTURES: usize = 48;
/// Type of a DMA remapping hardware unit definition (8.3).
const DRHD: u16 = 0;
/// Type of a reserved memory region (8.4).
const RMRR: u16 = 1;
/// More of each than these are refused.
const MAX_STRUCTURES: usize = 64;
/// More scopes in one structure than these are refused.
const MAX_SCOPES: usize = 128;
/// Bridges on the way to a device, plus the device.
const MAX_PATH: usize = 16;

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
}

/// A remapping unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drhd {
    /// INCLUDE_PCI_ALL: it serves all functions of the segment that no other unit serves.
    pub include_all: bool,
    /// The PCI segment.
    pub segment: u16,
    /// Its registers.
    pub base: Hpa,
    /// Bytes of its registers.
    pub size: u64,
    /// What it serves.
    pub scopes: Vec<Scope>,
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

/// Why a table is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmarError {
    /// It ends before its fixed part.
    TooShort,
    /// A structure or scope at this offset is shorter than its type needs (0 included), or reaches beyond what holds it.
    BadLength(usize),
    /// A unit's base, or a region's bounds, at this offset, cannot be.
    BadAddress(usize),
    /// More structures or scopes than anyone has.
    TooMany,
}

impl fmt::Display for DmarError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooShort => f.write_str("it ends before its fixed part"),
            Self::BadLength(at) => write!(f, "a length at offset {at:#x} is wrong"),
            Self::BadAddress(at) => write!(f, "an address at offset {at:#x} cannot be"),
            Self::TooMany => f.write_str("it has more structures than any machine"),
        }
    }
}

impl Dmar {
    /// Reads a whole table (with its header). Structures of types other than DRHD and RMRR are skipped.
    pub fn parse(table: &[u8]) -> Result<Self, DmarError> {
        let (width, flags) = u8_at(table, 36).zip(u8_at(table, 37)).ok_or(DmarError::TooShort)?;
        let mut dmar = Self {
            host_address_width: width.saturating_add(1).min(64),
            interrupt_remapping: flags & 1 != 0,
            x2apic_opt_out: flags & 2 != 0,
            ..Self::default()
        };
        let mut at = STRUCTURES;
        if table.len() < at {
            return Err(DmarError::TooShort);
        }
        while at < table.len() {
            let structure = structure(table, at)?;
            dmar.add(structure, at)?;
            at += structure.len();
        }
        Ok(dmar)
    }

    fn add(&mut self, structure: &[u8], at: usize) -> Result<(), DmarError> {
        match u16_at(structure, 0) {
            Some(DRHD) => self.units.push(drhd(structure, at)?),
            Some(RMRR) => self.reserved.push(rmrr(structure, at)?),
            _ => {}
        }
        if self.units.len() > MAX_STRUCTURES || self.reserved.len() > MAX_STRUCTURES {
            return Err(DmarError::TooMany);
        }
        Ok(())
    }

    /// The unit that serves the function: the one that names it or a bridge above it, else the one for all the rest.
    /// `buses_behind` tells the secondary and subordinate bus of a bridge.
    pub fn unit_of(&self, segment: u16, bdf: Bdf, buses_behind: impl Fn(Bdf) -> Option<(u8, u8)>) -> Option<&Drhd> {
        let here = || self.units.iter().filter(|unit| unit.segment == segment);
        let names = |unit: &&Drhd| unit.scopes.iter().any(|scope| scope.covers(bdf, &buses_behind));
        here().find(names).or_else(|| here().find(|unit| unit.include_all))
    }

    /// The regions that the function needs.
    pub fn reserved_of<'a>(
        &'a self,
        segment: u16,
        bdf: Bdf,
        buses_behind: impl Fn(Bdf) -> Option<(u8, u8)> + 'a,
    ) -> impl Iterator<Item = &'a Rmrr> + 'a {
        let needs = move |region: &&Rmrr| {
            region.segment == segment && region.scopes.iter().any(|scope| scope.covers(bdf, &buses_behind))
        };
        self.reserved.iter().filter(needs)
    }
}

impl Scope {
    /// The function at the path's end, found through the bridges' secondary buses.
    pub fn function(&self, buses_behind: impl Fn(Bdf) -> Option<(u8, u8)>) -> Option<Bdf> {
        let (&(device, function), bridges) = self.path.split_last()?;
        let through = |bus, &(device, function): &(u8, u8)| Some(buses_behind(Bdf::new(bus, device, function))?.0);
        let bus = bridges.iter().try_fold(self.start_bus, through)?;
        Some(Bdf::new(bus, device, function))
    }

    /// Whether it names the function, or a bridge above it.
    fn covers(&self, bdf: Bdf, buses_behind: impl Fn(Bdf) -> Option<(u8, u8)>) -> bool {
        if !matches!(self.kind, ScopeKind::Endpoint | ScopeKind::Bridge) {
            return false;
        }
        let Some(named) = self.function(&buses_behind) else { return false };
        let behind = || buses_behind(named).is_some_and(|(first, last)| (first..=last).contains(&bdf.bus()));
        named == bdf || self.kind == ScopeKind::Bridge && behind()
    }
}

/// The structure at `at`, as long as it says.
fn structure(table: &[u8], at: usize) -> Result<&[u8], DmarError> {
    let rest = table.get(at..).unwrap_or_default();
    let len = u16_at(rest, 2).map(usize::from).filter(|&len| len >= 4);
    len.and_then(|len| rest.get(..len)).ok_or(DmarError::BadLength(at))
}

/// 8.3: flags, size, segment, base, scopes.
fn drhd(structure: &[u8], at: usize) -> Result<Drhd, DmarError> {
    let short = DmarError::BadLength(at);
    let base = u64_at(structure, 8).ok_or(short)?;
    let size = PAGE_SIZE << (u8_at(structure, 5).ok_or(short)? & 0xf);
    if base == 0 || !base.is_multiple_of(PAGE_SIZE) || base.checked_add(size).is_none_or(|end| end > 1 << 52) {
        return Err(DmarError::BadAddress(at));
    }
    Ok(Drhd {
        include_all: u8_at(structure, 4).ok_or(short)? & 1 != 0,
        segment: u16_at(structure, 6).ok_or(short)?,
        base: Hpa::new(base),
        size,
        scopes: scopes(structure, 16, at)?,
    })
}

/// 8.4: segment, base, limit, scopes.
fn rmrr(structure: &[u8], at: usize) -> Result<Rmrr, DmarError> {
    let short = DmarError::BadLength(at);
    let (base, limit) = u64_at(structure, 8).zip(u64_at(structure, 16)).ok_or(short)?;
    if !base.is_multiple_of(PAGE_SIZE) || limit < base || limit >= 1 << 52 || !(limit + 1).is_multiple_of(PAGE_SIZE) {
        return Err(DmarError::BadAddress(at));
    }
    Ok(Rmrr {
        segment: u16_at(structure, 6).ok_or(short)?,
        base: Hpa::new(base),
        limit: Hpa::new(limit),
        scopes: scopes(structure, 24, at)?,
    })
}

/// The scopes of a structure from offset `from` on; those of unknown types are skipped.
fn scopes(structure: &[u8], from: usize, at: usize) -> Result<Vec<Scope>, DmarError> {
    let mut found = Vec::new();
    let mut rest = structure.get(from..).ok_or(DmarError::BadLength(at))?;
    while !rest.is_empty() {
        let bad = DmarError::BadLength(at + structure.len() - rest.len());
        let len = u8_at(rest, 1).map(usize::from).filter(|len| *len >= 8 && len.is_multiple_of(2)).ok_or(bad)?;
        let (scope, next) = rest.split_at_checked(len).ok_or(bad)?;
        rest = next;
        let path: Vec<_> = scope[6..].chunks_exact(2).map(|hop| (hop[0], hop[1])).collect();
        if found.len() == MAX_SCOPES || path.len() > MAX_PATH {
            return Err(DmarError::TooMany);
        }
        if let Some(kind) = kind(scope[0], scope[4]) {
            found.push(Scope { kind, start_bus: scope[5], path });
        }
    }
    Ok(found)
}

fn kind(number: u8, enumeration_id: u8) -> Option<ScopeKind> {
    Some(match number {
        1 => ScopeKind::Endpoint,
        2 => ScopeKind::Bridge,
        3 => ScopeKind::IoApic(enumeration_id),
        4 => ScopeKind::Hpet(enumeration_id),
        5 => ScopeKind::Namespace(enumeration_id),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UNIT: u64 = 0xfed9_0000;

    fn scope(kind: u8, id: u8, bus: u8, path: &[(u8, u8)]) -> Vec<u8> {
        let mut scope = vec![kind, 6 + 2 * path.len() as u8, 0, 0, id, bus];
        path.iter().for_each(|hop| scope.extend([hop.0, hop.1]));
        scope
    }

    fn with_length(kind: u16, body: &[u8]) -> Vec<u8> {
        [&kind.to_le_bytes()[..], &(4 + body.len() as u16).to_le_bytes(), body].concat()
    }

    fn unit(flags: u8, base: u64, scopes: &[Vec<u8>]) -> Vec<u8> {
        with_length(DRHD, &[&[flags, 0, 0, 0][..], &base.to_le_bytes(), &scopes.concat()].concat())
    }

    fn region(base: u64, limit: u64, scopes: &[Vec<u8>]) -> Vec<u8> {
        with_length(RMRR, &[&[0; 4][..], &base.to_le_bytes(), &limit.to_le_bytes(), &scopes.concat()].concat())
    }

    fn table(structures: &[Vec<u8>]) -> Vec<u8> {
        let mut table = vec![0; STRUCTURES];
        (table[36], table[37]) = (45, 1);
        table.extend(structures.concat());
        table
    }

    fn no_bridges(_: Bdf) -> Option<(u8, u8)> {
        None
    }

    #[test]
    fn a_units_flags_base_and_scopes_are_read() {
        let scopes = [scope(3, 9, 0xf0, &[(0x1f, 7)]), scope(1, 0, 0, &[(2, 0)]), scope(77, 0, 0, &[(1, 0)])];
        let dmar = Dmar::parse(&table(&[unit(1, UNIT, &scopes), with_length(3, &[0; 16])])).unwrap();
        assert_eq!((dmar.host_address_width, dmar.interrupt_remapping, dmar.x2apic_opt_out), (46, true, false));
        let unit = &dmar.units[0];
        assert_eq!((unit.include_all, unit.base, unit.size), (true, Hpa::new(UNIT), 4096));
        assert_eq!(unit.scopes.len(), 2);
        assert_eq!(unit.scopes[0].kind, ScopeKind::IoApic(9));
        assert_eq!(unit.scopes[1].function(no_bridges), Some(Bdf::new(0, 2, 0)));
    }

    #[test]
    fn the_unit_that_names_a_function_goes_before_the_one_for_all() {
        let named = unit(0, UNIT, &[scope(1, 0, 0, &[(2, 0)]), scope(2, 0, 0, &[(1, 0)])]);
        let dmar = Dmar::parse(&table(&[unit(1, UNIT + 0x1000, &[]), named])).unwrap();
        let behind = |bridge: Bdf| (bridge == Bdf::new(0, 1, 0)).then_some((4, 6));
        let base = |bdf| dmar.unit_of(0, bdf, behind).map(|unit| unit.base.as_u64());
        assert_eq!(base(Bdf::new(0, 2, 0)), Some(UNIT));
        assert_eq!(base(Bdf::new(5, 3, 1)), Some(UNIT));
        assert_eq!(base(Bdf::new(7, 0, 0)), Some(UNIT + 0x1000));
        assert_eq!(dmar.unit_of(1, Bdf::new(0, 2, 0), behind), None);
    }

    #[test]
    fn a_path_leads_through_bridges() {
        let region = region(0x1000, 0x2fff, &[scope(1, 0, 0, &[(1, 0), (3, 0)])]);
        let dmar = Dmar::parse(&table(&[region])).unwrap();
        let behind = |bridge: Bdf| (bridge == Bdf::new(0, 1, 0)).then_some((4, 4));
        assert_eq!(dmar.reserved_of(0, Bdf::new(4, 3, 0), behind).count(), 1);
        assert_eq!(dmar.reserved_of(0, Bdf::new(0, 3, 0), behind).count(), 0);
    }

    /// Attack 28.
    #[test]
    fn lengths_that_are_zero_or_too_large_are_refused() {
        let mut zero = unit(1, UNIT, &[]);
        zero[2] = 0;
        assert_eq!(Dmar::parse(&table(&[unit(1, UNIT, &[]), zero])), Err(DmarError::BadLength(64)));
        let mut beyond = unit(1, UNIT, &[]);
        beyond[2] = 17;
        assert_eq!(Dmar::parse(&table(&[beyond])), Err(DmarError::BadLength(48)));
        let mut short = with_length(DRHD, &[0; 8]);
        assert_eq!(Dmar::parse(&table(&[short.clone()])), Err(DmarError::BadLength(48)));
        short.truncate(3);
        assert_eq!(Dmar::parse(&table(&[short])), Err(DmarError::BadLength(48)));
        for len in [0, 2, 7, 10, 255] {
            let mut scope = scope(1, 0, 0, &[(2, 0)]);
            scope[1] = len;
            assert_eq!(Dmar::parse(&table(&[unit(0, UNIT, &[scope])])), Err(DmarError::BadLength(64)));
        }
        assert_eq!(Dmar::parse(&[0; 47]), Err(DmarError::TooShort));
    }

    #[test]
    fn bases_that_cannot_be_are_refused() {
        let bad = Err(DmarError::BadAddress(48));
        for base in [0, UNIT + 8, u64::MAX - 0xfff] {
            assert_eq!(Dmar::parse(&table(&[unit(1, base, &[])])), bad);
        }
        for (base, limit) in [(0x2000, 0x1fff), (0x2000, 0x2000), (0x10, 0xfff), (0, u64::MAX)] {
            assert_eq!(Dmar::parse(&table(&[region(base, limit, &[])])), bad);
        }
    }

    #[test]
    fn more_units_than_anyone_has_are_refused() {
        let units = vec![unit(1, UNIT, &[]); MAX_STRUCTURES + 1];
        assert_eq!(Dmar::parse(&table(&units)), Err(DmarError::TooMany));
    }

    proptest! {
        #[test]
        fn random_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..400), good in any::<bool>()) {
            let _ = Dmar::parse(&bytes);
            let head = if good { table(&[unit(1, UNIT, &[])]) } else { table(&[]) };
            if let Ok(dmar) = Dmar::parse(&[head, bytes].concat()) {
                dmar.unit_of(0, Bdf(5), |_| Some((0, 255)));
            }
        }

        #[test]
        fn flipped_bytes_are_survived(at in 0usize..120, value in any::<u8>()) {
            let scopes = [scope(3, 9, 0xf0, &[(0x1f, 7)]), scope(1, 0, 0, &[(2, 0), (3, 0)])];
            let mut bytes = table(&[unit(1, UNIT, &scopes), region(0x1000, 0x1fff, &scopes)]);
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
            let _ = Dmar::parse(&bytes);
        }
    }
}
