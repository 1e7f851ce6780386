//! Which processors and which memory are near to each other: ACPI 6.5, section 5.2.16 (system resource affinity table).

use alloc::vec::Vec;

use super::bytes::{u8_at, u32_at, u64_at};
use crate::{addr::Hpa, memory::PhysRange};

/// The offset of the table's revision. Domains have 8 bits before revision 2, as in Linux (`acpi_parse_srat`).
const REVISION: usize = 8;
const WIDE_DOMAINS: u8 = 2;
/// Where the structures begin: after the header and 12 reserved bytes.
const STRUCTURES: usize = 48;

/// The table: what each proximity domain has. A domain is a number of the firmware's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Srat {
    /// Processors, by APIC ID, and their domains.
    processors: Vec<(u32, u32)>,
    /// Memory and its domain, in the table's order.
    memory: Vec<(PhysRange, u32)>,
    /// The offset of the structure whose length cannot be, unless nothing but zeros follows. Structures behind it are not known.
    pub odd: Option<usize>,
}

/// What a structure says.
enum Affinity {
    Processor(u32, u32),
    Memory(PhysRange, u32),
}

impl Srat {
    /// Reads a whole table (with its header). Structures of other types, disabled ones and ones that are too short are skipped. Of several
    /// domains of a processor the first counts.
    pub fn parse(table: &[u8]) -> Self {
        let wide = u8_at(table, REVISION).is_some_and(|revision| revision >= WIDE_DOMAINS);
        let mut found = Self::default();
        let mut rest = table.get(STRUCTURES..).unwrap_or_default();
        while let Some((structure, next)) = split(rest) {
            rest = next;
            match affinity(structure, wide) {
                Some(Affinity::Processor(apic_id, domain)) if found.of_processor(apic_id).is_none() => {
                    found.processors.push((apic_id, domain));
                }
                Some(Affinity::Memory(range, domain)) => found.memory.push((range, domain)),
                _ => {}
            }
        }
        found.odd = rest.iter().any(|&byte| byte != 0).then_some(table.len() - rest.len());
        found
    }

    /// The domain of the processor with this APIC ID.
    pub fn of_processor(&self, apic_id: u32) -> Option<u32> {
        self.processors.iter().find(|(id, _)| *id == apic_id).map(|(_, domain)| *domain)
    }

    /// The memory of a domain; ranges that touch or overlap are one. The table may name ranges without memory: only the memory map lists memory
    /// that exists.
    pub fn memory_of(&self, domain: u32) -> Vec<PhysRange> {
        let mut all: Vec<PhysRange> = Vec::new();
        for &(mut range, _) in self.memory.iter().filter(|(range, own)| *own == domain && range.len != 0) {
            // Of those so far, it takes the ones that it touches.
            while let Some(at) = all.iter().position(|other| other.start <= range.end() && range.start <= other.end()) {
                let other = all.swap_remove(at);
                let (start, end) = (range.start.min(other.start), range.end().max(other.end()));
                range = PhysRange::new(start, end.as_u64().saturating_sub(start.as_u64()));
            }
            all.push(range);
        }
        all
    }

    /// The number of domains that have a processor.
    pub fn domains(&self) -> usize {
        let first =
            |(at, (_, domain)): (usize, &(u32, u32))| self.processors[..at].iter().all(|(_, own)| own != domain);
        self.processors.iter().enumerate().filter(|&one| first(one)).count()
    }
}

/// The first structure and the following bytes; `None` at the end, or if the length is too small or too large.
fn split(rest: &[u8]) -> Option<(&[u8], &[u8])> {
    let len = usize::from(u8_at(rest, 1)?);
    if len < 2 { None } else { rest.split_at_checked(len) }
}

fn affinity(structure: &[u8], wide: bool) -> Option<Affinity> {
    let is_enabled = |flags: usize| u32_at(structure, flags).is_some_and(|flags| flags & 1 != 0);
    match u8_at(structure, 0)? {
        // Local APIC: bits 7:0 of the domain, ID, flags, SAPIC EID, bits 31:8 of the domain.
        0 if is_enabled(4) => {
            let high = u32_at(structure, 8)? >> 8 << 8;
            let domain = u32::from(u8_at(structure, 2)?) | if wide { high } else { 0 };
            // 0xff is a broadcast, no processor's ID.
            let apic_id = u8_at(structure, 3).filter(|id| *id != 0xff)?;
            Some(Affinity::Processor(apic_id.into(), domain))
        }
        // Memory: domain, base, length, flags.
        1 if is_enabled(28) => {
            let domain = u32_at(structure, 2)? & if wide { u32::MAX } else { 0xff };
            let range = PhysRange::new(Hpa::new(u64_at(structure, 8)?), u64_at(structure, 16)?);
            Some(Affinity::Memory(range, domain))
        }
        // x2APIC: domain, ID, flags.
        2 if is_enabled(12) => {
            let apic_id = u32_at(structure, 8).filter(|id| *id != u32::MAX)?;
            Some(Affinity::Processor(apic_id, u32_at(structure, 4)?))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table(revision: u8, structures: &[Vec<u8>]) -> Vec<u8> {
        let mut table = vec![0; STRUCTURES];
        table[..4].copy_from_slice(b"SRAT");
        table[REVISION] = revision;
        table.extend(structures.concat());
        table
    }

    fn apic(id: u8, domain: u32, flags: u32) -> Vec<u8> {
        let [low, high @ ..] = domain.to_le_bytes();
        [&[0, 16, low, id][..], &flags.to_le_bytes(), &[0], &high, &[0; 4]].concat()
    }

    fn x2apic(id: u32, domain: u32, flags: u32) -> Vec<u8> {
        let words = [domain, id, flags, 0, 0].map(u32::to_le_bytes).concat();
        [vec![2, 24, 0, 0], words].concat()
    }

    fn memory(base: u64, len: u64, domain: u32, flags: u32) -> Vec<u8> {
        let mut structure = vec![0; 40];
        structure[..2].copy_from_slice(&[1, 40]);
        structure[2..6].copy_from_slice(&domain.to_le_bytes());
        structure[8..16].copy_from_slice(&base.to_le_bytes());
        structure[16..24].copy_from_slice(&len.to_le_bytes());
        structure[28..32].copy_from_slice(&flags.to_le_bytes());
        structure
    }

    fn ranges(srat: &Srat, domain: u32) -> Vec<(u64, u64)> {
        srat.memory_of(domain).iter().map(|range| (range.start.as_u64(), range.len)).collect()
    }

    #[test]
    fn two_sockets_have_their_processors_and_their_memory() {
        let all = [
            apic(0, 0, 1),
            x2apic(0x100, 7, 1),
            apic(4, 7, 1),
            apic(5, 7, 0),
            memory(0, 0xa0000, 0, 1),
            memory(0x10_0000, 1 << 30, 0, 1),
            memory(4 << 30, 1 << 30, 7, 3),
            memory(8 << 30, 1 << 30, 7, 2),
        ];
        let srat = Srat::parse(&table(3, &all));
        assert_eq!([0, 0x100, 4, 5].map(|id| srat.of_processor(id)), [Some(0), Some(7), Some(7), None]);
        assert_eq!(ranges(&srat, 0), [(0, 0xa0000), (0x10_0000, 1 << 30)]);
        assert_eq!(ranges(&srat, 7), [(4 << 30, 1 << 30)], "the last is disabled");
        assert_eq!((srat.domains(), srat.odd), (2, None));
    }

    #[test]
    fn memory_in_adjacent_pieces_is_one() {
        let pieces = [(96, 32), (64, 32), (70, 4), (200, 0), (300, 5), (u64::MAX - 1, 9)];
        let all: Vec<_> = pieces.iter().map(|&(base, len)| memory(base, len, 1, 1)).collect();
        let srat = Srat::parse(&table(2, &all));
        assert_eq!(ranges(&srat, 1), [(64, 64), (300, 5), (u64::MAX - 1, 9)]);
    }

    #[test]
    fn the_first_revision_has_domains_of_8_bits() {
        let all = [apic(1, 0xaabb_cc02, 1), memory(0, 1, 0xaabb_cc02, 1)];
        let old = Srat::parse(&table(1, &all));
        assert_eq!((old.of_processor(1), ranges(&old, 2)), (Some(2), vec![(0, 1)]));
        let new = Srat::parse(&table(2, &all));
        assert_eq!((new.of_processor(1), ranges(&new, 0xaabb_cc02)), (Some(0xaabb_cc02), vec![(0, 1)]));
    }

    #[test]
    fn broadcasts_are_no_processor_and_of_two_domains_the_first_counts() {
        let srat = Srat::parse(&table(2, &[apic(0xff, 1, 1), x2apic(u32::MAX, 1, 1), apic(3, 1, 1), apic(3, 2, 1)]));
        assert_eq!([0xff, u32::MAX, 3].map(|id| srat.of_processor(id)), [None, None, Some(1)]);
        assert_eq!(Srat::parse(&table(2, &[x2apic(0xff, 1, 1)])).of_processor(0xff), Some(1), "an x2APIC's ID");
    }

    #[test]
    fn a_length_that_cannot_be_ends_the_walk() {
        let srat = Srat::parse(&table(2, &[apic(1, 1, 1), vec![0, 0, 1, 2]]));
        assert_eq!((srat.domains(), srat.odd), (1, Some(STRUCTURES + 16)));
        assert_eq!(Srat::parse(&table(2, &[apic(1, 1, 1), vec![0; 9]])).odd, None, "padding");
        assert_eq!(Srat::parse(&[]), Srat::default());
    }

    proptest! {
        #[test]
        fn random_tables_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300), id: u32) {
            let srat = Srat::parse(&bytes);
            let _ = (srat.of_processor(id), srat.domains());
        }
    }
}
