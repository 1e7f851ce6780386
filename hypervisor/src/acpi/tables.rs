//! Finds tables from the root pointer: ACPI 6.5, sections 5.2.5 to 5.2.8.

use super::bytes::{sums_to_zero, u8_at, u32_at, u64_at};
use crate::addr::Hpa;

/// Bytes of the header of every table.
pub(super) const HEADER: usize = 36;
/// No table that matters here is longer.
const MAX_TABLE: usize = 1 << 20;

/// Memory that firmware has written its tables to.
pub trait FirmwareMemory {
    /// `len` bytes at `address`; `None` outside of memory.
    fn bytes(&self, address: Hpa, len: usize) -> Option<&[u8]>;
}

/// The firmware's memory in the identity map.
pub struct IdentityMapped {
    end: u64,
}

impl IdentityMapped {
    /// Everything from the first page up to `end` can be read.
    ///
    /// # Safety
    /// The memory is mapped while the result is used, and its firmware tables do not change.
    pub const unsafe fn new(end: Hpa) -> Self {
        Self { end: end.as_u64() }
    }
}

impl FirmwareMemory for IdentityMapped {
    fn bytes(&self, address: Hpa, len: usize) -> Option<&[u8]> {
        let end = address.checked_add(len as u64)?;
        let inside = address.as_u64() >= crate::addr::PAGE_SIZE && end.as_u64() <= self.end && len <= MAX_TABLE;
        // SAFETY: the range is not null and `new`'s caller vouched that it is mapped and does not change.
        inside.then(|| unsafe { core::slice::from_raw_parts(address.as_u64() as *const u8, len) })
    }
}

/// The root system description pointer: where the list of tables is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rsdp {
    /// The address of the list with entries of eight bytes, if there is one.
    xsdt: Option<Hpa>,
    /// The address of the list with entries of four bytes.
    rsdt: Hpa,
}

impl Rsdp {
    /// From the structure's bytes, as the boot loader hands them over. None unless signature and checksum are right.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let first = bytes.get(..20)?;
        if !first.starts_with(b"RSD PTR ") || !sums_to_zero(first) {
            return None;
        }
        let xsdt = bytes.get(..36).filter(|all| u8_at(all, 15) >= Some(2) && sums_to_zero(all));
        let xsdt = xsdt.and_then(|all| u64_at(all, 24)).filter(|&xsdt| xsdt != 0).map(Hpa::new);
        Some(Self { xsdt, rsdt: Hpa::new(u32_at(first, 16)?.into()) })
    }

    /// Looks for it in the BIOS's area, 0xE_0000 to 0xF_FFFF, at multiples of 16 (section 5.2.5.1).
    pub fn scan(memory: &impl FirmwareMemory) -> Option<Self> {
        let area = memory.bytes(Hpa::new(0xe_0000), 0x2_0000)?;
        (0..area.len()).step_by(16).find_map(|at| Self::parse(area.get(at..)?))
    }
}

/// A table with its header, with the length that it reports. Firmware gets checksums wrong. Linux uses such a table all the same, and so
/// does the hypervisor, which logs it. Only the root pointer's checksum decides, because it distinguishes a root pointer from other bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table<'m> {
    /// Its bytes.
    pub bytes: &'m [u8],
    /// Whether they add up to zero (5.2.6).
    pub sums_up: bool,
}

/// Why a table cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The firmware has no tables, or their list cannot be read.
    NoAcpi,
    /// The firmware has no such table.
    NotListed,
    /// The table at this address has a length that cannot be.
    Unreadable(Hpa),
}

/// The firmware's tables.
pub struct Tables<'m, M: FirmwareMemory> {
    memory: &'m M,
    list: &'m [u8],
    wide: bool,
    /// Whether the list's own checksum is right.
    pub list_sums_up: bool,
}

impl<'m, M: FirmwareMemory> Tables<'m, M> {
    /// The tables that `rsdp` leads to: by the XSDT, or by the RSDT where no XSDT can be read. None if no list can be read.
    pub fn new(memory: &'m M, rsdp: Rsdp) -> Option<Self> {
        let list = |address, signature| table(memory, address, signature)?.ok();
        let wide = rsdp.xsdt.and_then(|xsdt| Some((list(xsdt, b"XSDT")?, true)));
        let (list, wide) = wide.or_else(|| Some((list(rsdp.rsdt, b"RSDT")?, false)))?;
        Some(Self { memory, list: list.bytes.get(HEADER..)?, wide, list_sums_up: list.sums_up })
    }

    /// The first table with this signature and a right checksum; if none has one, the first with this signature that can be read.
    pub fn find(&self, signature: &[u8; 4]) -> Result<Table<'m>, Missing> {
        let size = if self.wide { 8 } else { 4 };
        let all = || {
            self.list.chunks_exact(size).filter_map(|entry| {
                let address = if self.wide { u64_at(entry, 0)? } else { u32_at(entry, 0)?.into() };
                table(self.memory, Hpa::new(address), signature)
            })
        };
        let good = all().flatten().find(|table| table.sums_up).or_else(|| all().flatten().next());
        good.ok_or_else(|| all().find_map(Result::err).map_or(Missing::NotListed, Missing::Unreadable))
    }
}

/// The table at `address`, if it is the one that `signature` names. `Err` holds the address of a table with an impossible length: shorter
/// than the header, longer than [`MAX_TABLE`], or beyond the memory.
fn table<'m>(memory: &'m impl FirmwareMemory, address: Hpa, signature: &[u8; 4]) -> Option<Result<Table<'m>, Hpa>> {
    let header = memory.bytes(address, HEADER)?;
    if !header.starts_with(signature) {
        return None;
    }
    let len = u32_at(header, 4).and_then(|len| usize::try_from(len).ok());
    let len = len.filter(|len| (HEADER..=MAX_TABLE).contains(len));
    let bytes = len.and_then(|len| memory.bytes(address, len));
    Some(bytes.map(|bytes| Table { bytes, sums_up: sums_to_zero(bytes) }).ok_or(address))
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Memory from address 0.
    pub struct Image(pub Vec<u8>);

    impl FirmwareMemory for Image {
        fn bytes(&self, address: Hpa, len: usize) -> Option<&[u8]> {
            self.0.get(usize::try_from(address.as_u64()).ok()?..)?.get(..len)
        }
    }

    /// Mends the checksum at `at`.
    fn checksum(bytes: &mut [u8], at: usize) {
        bytes[at] = 0;
        bytes[at] = bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_sub(byte));
    }

    /// A table with a right header.
    pub fn make(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
        let mut table = vec![0; HEADER];
        table[..4].copy_from_slice(signature);
        table[4..8].copy_from_slice(&((HEADER + body.len()) as u32).to_le_bytes());
        table.extend(body);
        checksum(&mut table, 9);
        table
    }

    fn rsdp(revision: u8, rsdt: u32, xsdt: u64) -> Vec<u8> {
        let mut rsdp = b"RSD PTR \0OEMOEM".to_vec();
        rsdp.push(revision);
        rsdp.extend(rsdt.to_le_bytes());
        checksum(&mut rsdp[..20], 8);
        rsdp.extend(36u32.to_le_bytes());
        rsdp.extend(xsdt.to_le_bytes());
        rsdp.extend([0; 4]);
        checksum(&mut rsdp, 32);
        rsdp
    }

    fn image() -> Image {
        let mut image = vec![0; 0x4000];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x1000, &make(b"RSDT", &[0x3000u32.to_le_bytes(), 0x2000u32.to_le_bytes()].concat()));
        put(0x1800, &make(b"XSDT", &0x2000u64.to_le_bytes()));
        put(0x2000, &make(b"DMAR", &[1, 2, 3]));
        let mut broken = make(b"DMAR", &[9]);
        broken[20] ^= 1;
        put(0x3000, &broken);
        Image(image)
    }

    #[test]
    fn tables_are_found_by_both_kinds_of_list_and_those_with_right_checksums_first() {
        let memory = image();
        for root in [rsdp(0, 0x1000, 0), rsdp(2, 0, 0x1800), rsdp(2, 0x1000, 0)] {
            let tables = Tables::new(&memory, Rsdp::parse(&root).unwrap()).unwrap();
            let dmar = tables.find(b"DMAR").unwrap();
            assert_eq!((&dmar.bytes[HEADER..], dmar.sums_up, tables.list_sums_up), (&[1, 2, 3][..], true, true));
            assert_eq!(tables.find(b"MCFG"), Err(Missing::NotListed));
        }
    }

    #[test]
    fn a_table_with_a_wrong_checksum_is_used_and_told_of() {
        let mut memory = image();
        memory.0[0x2000 + 20] ^= 1;
        memory.0[0x1800 + 20] ^= 1;
        let tables = Tables::new(&memory, Rsdp::parse(&rsdp(2, 0, 0x1800)).unwrap()).unwrap();
        let dmar = tables.find(b"DMAR").unwrap();
        assert_eq!((&dmar.bytes[HEADER..], dmar.sums_up, tables.list_sums_up), (&[1, 2, 3][..], false, false));
    }

    #[test]
    fn a_table_whose_length_cannot_be_is_told_apart_from_one_that_is_not_there() {
        for length in [0u32, 35, 0x10_0001, 0x3000] {
            let mut memory = image();
            memory.0[0x2004..0x2008].copy_from_slice(&length.to_le_bytes());
            let only = Tables::new(&memory, Rsdp::parse(&rsdp(2, 0, 0x1800)).unwrap()).unwrap();
            assert_eq!(only.find(b"DMAR"), Err(Missing::Unreadable(Hpa::new(0x2000))), "{length:#x}");
            let other = Tables::new(&memory, Rsdp::parse(&rsdp(0, 0x1000, 0)).unwrap()).unwrap();
            assert_eq!(other.find(b"DMAR").unwrap().bytes[HEADER..], [9], "the one that can be read");
        }
    }

    #[test]
    fn an_xsdt_that_cannot_be_read_leaves_the_rsdt() {
        let memory = image();
        for nowhere in [0x3f00, 0x2000, u64::MAX] {
            let tables = Tables::new(&memory, Rsdp::parse(&rsdp(2, 0x1000, nowhere)).unwrap()).unwrap();
            assert!(!tables.wide && tables.find(b"DMAR").is_ok());
        }
    }

    #[test]
    fn the_root_pointer_is_found_in_the_bios_area() {
        let mut memory = vec![0; 0x10_0000];
        memory[0xe_0010..0xe_0034].copy_from_slice(&rsdp(0, 0x77, 0));
        assert_eq!(Rsdp::scan(&Image(memory)), Rsdp::parse(&rsdp(0, 0x77, 0)));
    }

    #[test]
    fn a_root_pointer_with_a_wrong_checksum_is_none() {
        let mut bytes = rsdp(0, 0x1000, 0);
        bytes[16] ^= 4;
        assert_eq!(Rsdp::parse(&bytes), None);
    }

    #[test]
    fn the_first_page_and_what_wraps_are_no_firmware_memory() {
        // SAFETY: nothing is read: all ranges are refused.
        let memory = unsafe { IdentityMapped::new(Hpa::new(1 << 32)) };
        for (address, len) in [(0, 4), (u64::MAX - 2, 4), (0xffff_fffe, 4), (0x1000, MAX_TABLE + 1)] {
            assert_eq!(memory.bytes(Hpa::new(address), len), None);
        }
    }

    proptest! {
        #[test]
        fn random_memory_is_survived(mut bytes in prop::collection::vec(any::<u8>(), 0..512), list in 0u32..512) {
            let root = Rsdp::parse(&rsdp(0, list, 0)).unwrap();
            if let Some(at) = bytes.get_mut(list as usize..) && at.len() >= HEADER {
                at[..4].copy_from_slice(b"RSDT");
                at[5..8].fill(0);
            }
            let memory = Image(bytes);
            if let Some(tables) = Tables::new(&memory, root) {
                let _ = tables.find(b"DMAR");
            }
        }
    }
}
