//! The processors: ACPI 6.5, section 5.2.12 (multiple APIC description table).

use alloc::{collections::BTreeSet, vec::Vec};

use super::bytes::{u8_at, u32_at};
use crate::addr::Hpa;

/// Where the entries begin: after the header, the local APIC's address and the flags.
const ENTRIES: usize = 44;

/// A processor that firmware has enabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Processor {
    /// Its local APIC's ID.
    pub apic_id: u32,
}

/// The enabled processors in the table's order, each once. The walk ends at the first entry that cannot be; its offset comes with them,
/// unless nothing but zeros follows.
pub fn processors(madt: &[u8]) -> (Vec<Processor>, Option<usize>) {
    let (mut found, mut seen) = (Vec::new(), BTreeSet::new());
    let mut rest = madt.get(ENTRIES..).unwrap_or_default();
    while let Some((entry, next)) = split(rest) {
        rest = next;
        if let Some(apic_id) = apic_id(entry).filter(|id| seen.insert(*id)) {
            found.push(Processor { apic_id });
        }
    }
    let odd = rest.iter().any(|&byte| byte != 0).then_some(madt.len() - rest.len());
    (found, odd)
}

/// The addresses of the I/O APICs (type 1), in the table's order. Addresses below 1 MiB and addresses that are not page-aligned are left out.
pub fn io_apics(madt: &[u8]) -> Vec<Hpa> {
    let mut rest = madt.get(ENTRIES..).unwrap_or_default();
    let mut found = Vec::new();
    while let Some((entry, next)) = split(rest) {
        rest = next;
        let address = if u8_at(entry, 0) == Some(1) { u32_at(entry, 4) } else { None };
        found
            .extend(address.map(|at| Hpa::new(at.into())).filter(|at| at.page_offset() == 0 && at.as_u64() >> 20 != 0));
    }
    found
}

/// The first entry and the following bytes; `None` at the end, or if the length is too small or too large.
fn split(rest: &[u8]) -> Option<(&[u8], &[u8])> {
    let len = usize::from(u8_at(rest, 1)?);
    if len < 2 { None } else { rest.split_at_checked(len) }
}

/// The APIC ID in an entry of type 0 (local APIC) or 9 (local x2APIC) whose flags say "enabled".
fn apic_id(entry: &[u8]) -> Option<u32> {
    let (apic_id, flags) = match u8_at(entry, 0)? {
        0 => (u8_at(entry, 3)?.into(), u32_at(entry, 4)?),
        9 => (u32_at(entry, 4)?, u32_at(entry, 8)?),
        _ => return None,
    };
    // 0xFF and 0xFFFF_FFFF are broadcasts, no processor's.
    let broadcast = if u8_at(entry, 0)? == 0 { 0xff } else { u32::MAX };
    (flags & 1 != 0 && apic_id != broadcast).then_some(apic_id)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ids(entries: &[u8]) -> Vec<u32> {
        let madt = [&[0; ENTRIES], entries].concat();
        processors(&madt).0.iter().map(|processor| processor.apic_id).collect()
    }

    #[test]
    fn enabled_processors_of_both_kinds_are_listed_once() {
        let entries = [
            &[0, 8, 0, 2, 1, 0, 0, 0][..],
            &[1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0, 8, 1, 3, 0, 0, 0, 0],
            &[9, 16, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
            &[0, 8, 0, 2, 1, 0, 0, 0],
            &[0, 8, 0, 0xff, 1, 0, 0, 0],
        ];
        assert_eq!(ids(&entries.concat()), [2, 256]);
    }

    #[test]
    fn io_apics_are_listed_where_they_can_be() {
        let io_apic = |address: u32| [&[1, 12, 7, 0][..], &address.to_le_bytes(), &[0; 4]].concat();
        let entries = [io_apic(0xfec0_0000), vec![0, 8, 0, 2, 1, 0, 0, 0], io_apic(0xfec0_1004), io_apic(0x9000)];
        assert_eq!(io_apics(&[vec![0; ENTRIES], entries.concat()].concat()), [Hpa::new(0xfec0_0000)]);
    }

    #[test]
    fn a_length_of_zero_or_too_large_ends_the_walk() {
        assert_eq!(ids(&[0, 0, 0, 1, 1, 0, 0, 0]), [0u32; 0]);
        assert_eq!(ids(&[0, 9, 0, 1, 1, 0, 0, 0]), [0u32; 0]);
        assert_eq!(ids(&[0, 4, 0, 1]), [0u32; 0]);
        let good = [0, 8, 0, 5, 1, 0, 0, 0];
        let madt = |end: &[u8]| [&[0; ENTRIES], &good[..], end].concat();
        assert_eq!(processors(&madt(&[0, 0, 0, 1, 1, 0, 0, 0])), (vec![Processor { apic_id: 5 }], Some(ENTRIES + 8)));
        assert_eq!(processors(&madt(&[0; 6])), (vec![Processor { apic_id: 5 }], None), "padding");
        assert_eq!(processors(&madt(&[])).1, None);
    }

    proptest! {
        #[test]
        fn random_tables_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(processors(&bytes).0.len() <= bytes.len() / 8);
        }
    }
}
