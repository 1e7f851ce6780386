//! The bare-metal test's reads of SMBIOS (DMTF DSP0134): whether the firmware says "virtual machine", the system's maker, and its product
//! name. It is for guests without an operating system. The tables are untrusted: every read stays within their bounds.

/// Where the entry point lies on a PC without UEFI: at a multiple of 16 in the 64 KiB from here (5.2.1).
pub const AREA: u64 = 0xf_0000;
/// Bytes of the area.
pub const AREA_SIZE: usize = 0x1_0000;

const PARAGRAPH: usize = 16;
const TYPE_BIOS: u8 = 0;
const TYPE_SYSTEM: u8 = 1;
const TYPE_END: u8 = 127;
const HEADER: usize = 4;
/// Offsets of the string numbers of manufacturer and product name in type 1 (7.2).
const MANUFACTURER: usize = 4;
const PRODUCT: usize = 5;

/// Where the structures are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// Physical address.
    pub address: u64,
    /// Bytes, at most.
    pub length: u32,
}

/// Finds the entry point in [`AREA`], the 64-bit one if there are both (5.2.2).
pub fn entry_point(area: &[u8]) -> Option<Table> {
    let starts = || (0..area.len()).step_by(PARAGRAPH).filter_map(|at| area.get(at..));
    starts().find_map(entry_64).or_else(|| starts().find_map(entry_32))
}

/// `_SM3_`: length at 6, maximum size at 0x0c, address at 0x10.
fn entry_64(bytes: &[u8]) -> Option<Table> {
    let length = usize::from(*bytes.get(6)?);
    let right = bytes.starts_with(b"_SM3_") && length >= 0x18 && sums_to_zero(bytes.get(..length)?);
    let address = u64::from_le_bytes(bytes.get(0x10..0x18)?.try_into().ok()?);
    right.then_some(Table { address, length: word(bytes, 0x0c)? })
}

/// `_SM_`: length at 5; behind it `_DMI_` with the tables' length at 0x16 and address at 0x18.
fn entry_32(bytes: &[u8]) -> Option<Table> {
    let length = usize::from(*bytes.get(5)?);
    let right = bytes.starts_with(b"_SM_") && length >= 0x1e && sums_to_zero(bytes.get(..length)?);
    let tables = u16::from_le_bytes(bytes.get(0x16..0x18)?.try_into().ok()?);
    right.then_some(Table { address: word(bytes, 0x18)?.into(), length: tables.into() })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn sums_to_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) == 0
}

/// A structure and the strings that belong to it.
#[derive(Clone, Copy, Debug)]
struct Structure<'a> {
    formatted: &'a [u8],
    strings: &'a [u8],
}

impl<'a> Structure<'a> {
    /// String `number`, counted from 1; there is no string 0 (6.1.3).
    fn string(&self, number: u8) -> Option<&'a str> {
        let nth = usize::from(number).checked_sub(1)?;
        let text = self.strings.split(|byte| *byte == 0).nth(nth).filter(|text| !text.is_empty())?;
        core::str::from_utf8(text).ok()
    }
}

/// The structures of a table, up to the first that does not fit.
fn structures(mut table: &[u8]) -> impl Iterator<Item = Structure<'_>> {
    core::iter::from_fn(move || {
        let length = usize::from(*table.get(1)?);
        if length < HEADER || table.first() == Some(&TYPE_END) {
            return None;
        }
        let (formatted, rest) = table.split_at_checked(length)?;
        // Two zeros end the strings, also where there are none.
        let end = rest.windows(2).position(|pair| pair == [0, 0])?;
        table = rest.get(end + 2..)?;
        Some(Structure { formatted, strings: rest.get(..end)? })
    })
}

/// The BIOS information (type 0), from its first byte: what [`Facts::smbios_bios`](super::Facts) wants.
pub fn bios(table: &[u8]) -> Option<&[u8]> {
    structures(table).map(|structure| structure.formatted).find(|formatted| formatted.first() == Some(&TYPE_BIOS))
}

/// The system's manufacturer (type 1): what [`Facts::system_vendor`](super::Facts) wants.
pub fn system_vendor(table: &[u8]) -> Option<&str> {
    system_string(table, MANUFACTURER)
}

/// The system's product name (type 1): what [`Facts::system_product`](super::Facts) wants.
pub fn system_product(table: &[u8]) -> Option<&str> {
    system_string(table, PRODUCT)
}

/// The string of the system (type 1) whose number is at `offset`.
fn system_string(table: &[u8], offset: usize) -> Option<&str> {
    let system = structures(table).find(|structure| structure.formatted.first() == Some(&TYPE_SYSTEM))?;
    system.string(*system.formatted.get(offset)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn structure(kind: u8, formatted: &[u8], strings: &[&str]) -> Vec<u8> {
        let mut bytes = vec![kind, 4 + formatted.len() as u8, 0, 0];
        bytes.extend(formatted);
        strings.iter().for_each(|text| bytes.extend(text.bytes().chain([0])));
        bytes.extend(if strings.is_empty() { &[0, 0][..] } else { &[0] });
        bytes
    }

    fn table() -> Vec<u8> {
        let bios = structure(0, &[1, 2, 0, 0xf0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x1c], &["Maker", "1.0", "today"]);
        let system = structure(1, &[2, 1, 0, 0], &["Model 5", "Dell Inc."]);
        [bios, structure(32, &[], &[]), system, structure(127, &[], &[])].concat()
    }

    #[test]
    fn bios_and_vendor_are_found_behind_structures_of_all_kinds() {
        let table = table();
        assert_eq!(bios(&table).map(|bios| (bios.len(), bios[0x13])), Some((20, 0x1c)));
        assert_eq!((system_vendor(&table), system_product(&table)), (Some("Dell Inc."), Some("Model 5")));
        assert_eq!(system_product(&structure(1, &[1], &["x"])), None, "no such field");
        assert_eq!(system_vendor(&structure(1, &[0], &["x"])), None, "string 0 is none");
        assert_eq!(system_vendor(&structure(1, &[3], &["x", "y"])), None);
        assert_eq!(system_vendor(&[structure(127, &[], &[]), table].concat()), None, "nothing comes after the end");
    }

    #[test]
    fn tables_that_are_cut_anywhere_give_what_is_whole_and_nothing_else() {
        let table = table();
        for end in 0..table.len() {
            let cut = &table[..end];
            assert!(system_vendor(cut).is_none_or(|vendor| vendor == "Dell Inc."), "{end}");
            assert!(bios(cut).is_none_or(|bios| bios.len() == 20), "{end}");
        }
    }

    fn with_checksum(mut entry: Vec<u8>, at: usize) -> Vec<u8> {
        entry[at] = entry.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
        entry
    }

    #[test]
    fn either_entry_point_is_found_and_the_64_bit_one_is_preferred() {
        let mut old = b"_SM_".to_vec();
        old.resize(0x1f, 0);
        (old[5], old[0x16], old[0x17]) = (0x1f, 0x34, 0x12);
        old[0x18..0x1c].copy_from_slice(&0xf_1230u32.to_le_bytes());
        let old = with_checksum(old, 4);
        let mut new = b"_SM3_".to_vec();
        new.resize(0x18, 0);
        (new[6], new[0x0c]) = (0x18, 0x80);
        new[0x10..0x18].copy_from_slice(&0x1_0000_0000u64.to_le_bytes());
        let new = with_checksum(new, 5);
        let mut area = vec![0u8; 0x200];
        area[0x40..0x40 + old.len()].copy_from_slice(&old);
        assert_eq!(entry_point(&area), Some(Table { address: 0xf_1230, length: 0x1234 }));
        area[0x100..0x100 + new.len()].copy_from_slice(&new);
        assert_eq!(entry_point(&area), Some(Table { address: 1 << 32, length: 0x80 }));
        area[0x105] ^= 1;
        area[0x44] ^= 1;
        assert_eq!(entry_point(&area), None, "the checksums are wrong");
    }
}
