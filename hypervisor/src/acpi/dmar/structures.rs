//! The structures behind the table's fixed part: VT-d specification, 8.2 to 8.9.

use alloc::vec::Vec;

use super::{DefectKind, Dmar, DmarDefect, Drhd, Rmrr, Satc, Scope, ScopeKind};
use crate::{
    acpi::bytes::{u8_at, u16_at, u32_at, u64_at},
    addr::{Hpa, PAGE_SIZE},
    memory::PhysRange,
};

/// Type of a DMA remapping hardware unit definition (8.3).
pub(super) const DRHD: u16 = 0;
/// Type of a reserved memory region (8.4).
pub(super) const RMRR: u16 = 1;
/// Type of a remapping unit's static affinity (8.6).
pub(super) const RHSA: u16 = 3;
/// Type of the translation caches of integrated functions (8.8).
pub(super) const SATC: u16 = 5;
/// Bytes of a structure's header: type and length.
const HEADER: usize = 4;
/// Where addresses end.
const ADDRESSES_END: u64 = 1 << 52;

/// The structures' scopes, from the first that cannot be on, are unknown.
struct Scopes {
    found: Vec<Scope>,
    whole: bool,
}

impl Dmar {
    /// Takes the structures from offset `at` on.
    pub(super) fn walk(&mut self, table: &[u8], mut at: usize) {
        while at < table.len() {
            let rest = table.get(at..).unwrap_or_default();
            let len = u16_at(rest, 2).map(usize::from);
            match len.filter(|&len| len >= HEADER).and_then(|len| rest.get(..len)) {
                Some(structure) => {
                    self.add(structure, at);
                    at += structure.len();
                }
                None => return self.end(rest, at),
            }
        }
    }

    /// The walk ends here, before the table's end.
    fn end(&mut self, rest: &[u8], at: usize) {
        let padding = rest.iter().all(|&byte| byte == 0);
        self.cut = !padding;
        self.note(at, if padding { DefectKind::Padding } else { DefectKind::Length });
    }

    fn note(&mut self, at: usize, what: DefectKind) {
        self.defects.push(DmarDefect { at, what });
    }

    fn add(&mut self, structure: &[u8], at: usize) {
        let read = match u16_at(structure, 0) {
            Some(DRHD) => self.drhd(structure, at),
            Some(RMRR) => self.rmrr(structure, at),
            Some(RHSA) => self.rhsa(structure),
            Some(SATC) => self.satc(structure, at),
            _ => Some(()),
        };
        if read.is_none() {
            // A unit that nothing is known of could serve anything.
            self.cut |= u16_at(structure, 0) == Some(DRHD);
            self.note(at, DefectKind::Short);
        }
    }

    /// 8.3: flags, size, segment, base, scopes. `None`: it is too short.
    fn drhd(&mut self, structure: &[u8], at: usize) -> Option<()> {
        let base = u64_at(structure, 8)?;
        let size = PAGE_SIZE << (u8_at(structure, 5)? & 0xf);
        let (flags, segment) = (u8_at(structure, 4)?, u16_at(structure, 6)?);
        let fits = base.checked_add(size).is_some_and(|end| end <= ADDRESSES_END);
        let usable = base != 0 && base.is_multiple_of(PAGE_SIZE) && fits;
        let mut unit = Drhd {
            include_all: flags & 1 != 0,
            segment,
            base: usable.then(|| Hpa::new(base)),
            size,
            domain: None,
            scopes: Vec::new(),
            whole: false,
        };
        if !usable {
            self.note(at, DefectKind::UnitAddress(base));
        }
        Scopes { found: unit.scopes, whole: unit.whole } = self.scopes(structure, 16, at);
        self.add_unit(unit, at);
        Some(())
    }

    /// Adds a unit. An entry with the base and segment of an earlier one describes the same unit: their scopes are merged. An entry whose
    /// registers overlap another unit's otherwise is unusable. The registers that the entry adds to those of the same unit must be free as well.
    fn add_unit(&mut self, mut unit: Drhd, at: usize) {
        let registers = unit.registers();
        let meets = |other: &&mut Drhd| registers.zip(other.registers()).is_some_and(|(a, b)| a.overlaps(&b));
        let mut others = self.units.iter_mut().filter(meets);
        let Some(earlier) = others.next() else { return self.units.push(unit) };
        let is_same = (earlier.base, earlier.segment) == (unit.base, unit.segment) && others.next().is_none();
        let base = registers.map_or(0, |registers| registers.start.as_u64());
        let what = if is_same {
            earlier.join(unit);
            DefectKind::SameUnit(base)
        } else {
            unit.base = None;
            self.units.push(unit);
            DefectKind::TakenRegisters(base)
        };
        self.note(at, what);
    }

    /// 8.4: segment, base, limit, scopes.
    fn rmrr(&mut self, structure: &[u8], at: usize) -> Option<()> {
        let (base, limit, segment) = (u64_at(structure, 8)?, u64_at(structure, 16)?, u16_at(structure, 6)?);
        let pages = base.is_multiple_of(PAGE_SIZE) && limit.checked_add(1).is_some_and(|end| end % PAGE_SIZE == 0);
        if !pages || limit <= base || limit >= ADDRESSES_END {
            self.note(at, DefectKind::Region(base, limit));
            return Some(());
        }
        let scopes = self.scopes(structure, 24, at).found;
        self.reserved.push(Rmrr { segment, base: Hpa::new(base), limit: Hpa::new(limit), scopes });
        Some(())
    }

    /// 8.6: the unit's base, and its domain. The structures lie behind those of the units; one for no unit is passed over.
    fn rhsa(&mut self, structure: &[u8]) -> Option<()> {
        let (base, domain) = (u64_at(structure, 8)?, u32_at(structure, 16)?);
        let units = self.units.iter_mut().filter(|unit| unit.base.is_some_and(|at| at.as_u64() == base));
        units.for_each(|unit| unit.domain = Some(domain));
        Some(())
    }

    /// 8.8: flags, segment, scopes.
    fn satc(&mut self, structure: &[u8], at: usize) -> Option<()> {
        let (flags, segment) = (u8_at(structure, 4)?, u16_at(structure, 6)?);
        let scopes = self.scopes(structure, 8, at).found;
        self.caches.push(Satc { required: flags & 1 != 0, segment, scopes });
        Some(())
    }

    /// The scopes of a structure from offset `from` on; those of unknown types are skipped.
    fn scopes(&mut self, structure: &[u8], from: usize, at: usize) -> Scopes {
        let mut scopes = Scopes { found: Vec::new(), whole: true };
        let mut rest = structure.get(from..).unwrap_or_default();
        while !rest.is_empty() {
            let len = u8_at(rest, 1).map(usize::from).filter(|len| *len >= 8 && len.is_multiple_of(2));
            let Some((scope, next)) = len.and_then(|len| rest.split_at_checked(len)) else {
                // Zeros up to the structure's end name nothing.
                scopes.whole = rest.iter().all(|&byte| byte == 0);
                self.note(at + structure.len() - rest.len(), DefectKind::ScopeLength);
                break;
            };
            rest = next;
            if let Some(kind) = kind(scope[0], scope[4]) {
                let path = scope[6..].chunks_exact(2).map(|hop| (hop[0], hop[1])).collect();
                scopes.found.push(Scope { kind, start_bus: scope[5], path });
            }
        }
        scopes
    }
}

impl Drhd {
    fn registers(&self) -> Option<PhysRange> {
        Some(PhysRange::new(self.base?, self.size))
    }

    /// Takes what another entry for the same unit says.
    fn join(&mut self, other: Self) {
        self.include_all |= other.include_all;
        self.size = self.size.max(other.size);
        self.scopes.extend(other.scopes);
        self.whole &= other.whole;
    }
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
