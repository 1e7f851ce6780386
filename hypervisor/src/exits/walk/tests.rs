//! Each paging mode by tables built by hand.

use super::*;
use crate::exits::mmio::tests::Ram;

const PG: u64 = cr0::PG | cr0::WP | 1;
const ALL: u64 = PRESENT | WRITABLE | USER;

fn legacy() -> Paging {
    Paging { cr0: PG, cr3: 0x1000, cr4: cr4::PSE, physical_bits: 40, ..Paging::default() }
}

fn pae() -> Paging {
    Paging { cr4: cr4::PAE, efer: efer::NXE, ..legacy() }
}

fn long() -> Paging {
    Paging { efer: efer::NXE | efer::LMA, ..pae() }
}

/// 4-level tables that map `gva` 0x0000_1234_5678_9000 to 0x5000.
fn long_tables(leaf: u64) -> (Ram, Gva) {
    let gva = 0x0000_1234_5678_9000u64;
    let mut ram = Ram::new(16);
    for (level, value) in [(4, 0x2000 | ALL), (3, 0x3000 | ALL), (2, 0x4000 | ALL), (1, leaf)] {
        let table = (5 - level) * 0x1000;
        ram.put64(table + (gva >> (12 + 9 * (level - 1)) & 0x1ff) * 8, value);
    }
    (ram, Gva::new(gva))
}

fn go(ram: &mut Ram, paging: &Paging, gva: u64, access: Access) -> Result<u64, WalkError> {
    walk(ram, paging, Gva::new(gva), access).map(Gpa::as_u64)
}

#[test]
fn without_paging_linear_is_physical() {
    let paging = Paging::default();
    assert_eq!(go(&mut Ram::new(0), &paging, 0x1234_5678, Access::Write), Ok(0x1234_5678));
}

#[test]
fn legacy_paging_maps_4_kib_and_4_mib_above_4_gib() {
    let mut ram = Ram::new(16);
    ram.put32(0x1000 + 4, 0x2000 | ALL as u32);
    ram.put32(0x2000 + 4 * 2, 0x7000 | ALL as u32);
    ram.put32(0x1000 + 8, 0x0080_0000 | 3 << 13 | (ALL | LARGE) as u32);
    assert_eq!(go(&mut ram, &legacy(), 0x0040_2abc, Access::Read), Ok(0x7abc));
    assert_eq!(go(&mut ram, &legacy(), 0x0081_2345, Access::Read), Ok(0x3_0081_2345), "PSE-36");
    let without_pse = Paging { cr4: 0, ..legacy() };
    assert!(go(&mut ram, &without_pse, 0x0081_2345, Access::Read) != Ok(0x3_0081_2345));
    ram.put32(0x1000 + 12, 1 << 21 | (ALL | LARGE) as u32);
    assert_eq!(go(&mut ram, &legacy(), 0x00c0_0000, Access::Read), Err(WalkError::PageFault(0b1001)));
    let narrow = Paging { physical_bits: 33, ..legacy() };
    assert_eq!(go(&mut ram, &narrow, 0x0081_2345, Access::Read), Err(WalkError::PageFault(0b1001)), "bit 14 is bit 33");
}

#[test]
fn pae_paging_maps_4_kib_and_2_mib() {
    let mut ram = Ram::new(16);
    ram.put64(0x1020 + 8 * 3, 0x2000 | PRESENT);
    ram.put64(0x2000, 0x3000 | ALL);
    ram.put64(0x3000 + 8, 0xab_cdef_0000 & bits(12, 40) | ALL | NO_EXECUTE);
    ram.put64(0x2000 + 8, 0x0060_0000 | ALL | LARGE);
    let paging = Paging { cr3: 0x1020, ..pae() };
    assert_eq!(go(&mut ram, &paging, 0xc000_1004, Access::Write), Ok(0xab_cdef_0004));
    assert_eq!(go(&mut ram, &paging, 0xc020_1004, Access::Execute), Ok(0x0060_1004));
    assert_eq!(go(&mut ram, &paging, 0xc000_1004, Access::Execute), Err(WalkError::PageFault(0b1_0001)));
    ram.put64(0x1020 + 8 * 2, 0x2000 | PRESENT | WRITABLE);
    assert_eq!(go(&mut ram, &paging, 0x8000_1004, Access::Read), Err(WalkError::PageFault(0b1001)), "top entries");
    ram.put64(0x2000, 0x3000 | ALL | 1 << 52);
    assert_eq!(go(&mut ram, &paging, 0xc000_1004, Access::Read), Err(WalkError::PageFault(0b1001)), "bit 52");
}

#[test]
fn long_mode_maps_every_page_size() {
    let (mut ram, gva) = long_tables(0x5000 | ALL);
    let gva = gva.as_u64();
    assert_eq!(go(&mut ram, &long(), gva + 0x123, Access::Write), Ok(0x5123));
    ram.put64(0x3000 + (gva >> 21 & 0x1ff) * 8, 0x4020_0000 | ALL | LARGE);
    assert_eq!(go(&mut ram, &long(), gva, Access::Read), Ok(0x4020_0000 | gva & 0x1f_ffff));
    ram.put64(0x2000 + (gva >> 30 & 0x1ff) * 8, 0x8000_0000 | ALL | LARGE);
    assert_eq!(go(&mut ram, &long(), gva, Access::Read), Ok(0x8000_0000 | gva & 0x3fff_ffff));
    ram.put64(0x2000 + (gva >> 30 & 0x1ff) * 8, 0x8020_0000 | ALL | LARGE);
    assert_eq!(go(&mut ram, &long(), gva, Access::Read), Err(WalkError::PageFault(0b1001)), "bit 21 of a 1 GiB page");
    ram.put64(0x1000 + (gva >> 39 & 0x1ff) * 8, 0x2000 | ALL | LARGE);
    assert_eq!(go(&mut ram, &long(), gva, Access::Read), Err(WalkError::PageFault(0b1001)), "no 512 GiB pages");
}

#[test]
fn five_levels_are_walked_when_la57_is_set() {
    let (mut ram, gva) = long_tables(0x5000 | ALL);
    ram.put64(0x8000 + 8, 0x1000 | ALL);
    let paging = Paging { cr3: 0x8000, cr4: cr4::PAE | cr4::LA57, ..long() };
    assert_eq!(go(&mut ram, &paging, gva.as_u64() | 1 << 48, Access::Read), Ok(0x5000));
    assert_eq!(go(&mut ram, &paging, gva.as_u64(), Access::Read), Err(WalkError::PageFault(0)));
}

#[test]
fn rights_follow_the_manual() {
    let user = Paging { cpl: 3, ..long() };
    let smap = Paging { cr4: cr4::PAE | cr4::SMAP | cr4::SMEP, ..long() };
    let fault = |code| Err(WalkError::PageFault(code));
    let cases = [
        ("user page, user", 0, user, Access::Write, Ok(0x5000)),
        ("supervisor page, user", USER, user, Access::Read, fault(0b0101)),
        ("read-only page, user", WRITABLE, user, Access::Write, fault(0b0111)),
        ("read-only page, supervisor with WP", WRITABLE, long(), Access::Write, fault(0b0011)),
        ("read-only page, no WP", WRITABLE, Paging { cr0: cr0::PG, ..long() }, Access::Write, Ok(0x5000)),
        ("SMAP", 0, smap, Access::Read, fault(0b0001)),
        ("SMAP and AC", 0, Paging { ac: true, ..smap }, Access::Read, Ok(0x5000)),
        ("SMAP, supervisor page", USER, smap, Access::Write, Ok(0x5000)),
        ("SMEP", 0, smap, Access::Execute, fault(0b1_0001)),
        ("SMEP, supervisor page", USER, smap, Access::Execute, Ok(0x5000)),
        ("not present", PRESENT, user, Access::Write, fault(0b0110)),
    ];
    for (what, missing, paging, access, expected) in cases {
        let (mut ram, gva) = long_tables(0x5000 | ALL & !missing);
        assert_eq!(go(&mut ram, &paging, gva.as_u64(), access), expected, "{what}");
    }
    let (mut ram, gva) = long_tables(0x5000 | ALL | NO_EXECUTE);
    assert_eq!(go(&mut ram, &long(), gva.as_u64(), Access::Execute), fault(0b1_0001), "NX");
    let without_nx = Paging { efer: efer::LMA, ..long() };
    assert_eq!(go(&mut ram, &without_nx, gva.as_u64(), Access::Read), fault(0b1001), "NX is reserved");
}

#[test]
fn flags_are_set_as_the_processor_sets_them_and_only_when_access_is_allowed() {
    let (mut ram, gva) = long_tables(0x5000 | ALL & !WRITABLE);
    let leaf = 0x4000 + (gva.as_u64() >> 12 & 0x1ff) * 8;
    assert!(walk(&mut ram, &long(), gva, Access::Write).is_err());
    assert_eq!(ram.get64(leaf) & (ACCESSED | DIRTY), 0);
    assert!(walk(&mut ram, &long(), gva, Access::Read).is_ok());
    assert_eq!(ram.get64(leaf) & (ACCESSED | DIRTY), ACCESSED);
    ram.put64(leaf, 0x5000 | ALL);
    assert!(walk(&mut ram, &long(), gva, Access::Write).is_ok());
    assert_eq!(ram.get64(leaf), 0x5000 | ALL | ACCESSED | DIRTY);
    assert_eq!(
        ram.get64(0x3000 + (gva.as_u64() >> 21 & 0x1ff) * 8),
        0x4000 | ALL | ACCESSED,
        "no D in a table's entry"
    );
}

#[test]
fn attack_19_an_entry_that_changes_during_the_walk_means_again() {
    let (mut ram, gva) = long_tables(0x5000 | ALL);
    ram.lose_races = true;
    assert_eq!(walk(&mut ram, &long(), gva, Access::Read), Err(WalkError::Changed));
}

#[test]
fn tables_outside_memory_are_an_error_and_no_panic() {
    let (mut ram, gva) = long_tables(0x5000 | ALL);
    ram.put64(0x1000 + (gva.as_u64() >> 39 & 0x1ff) * 8, 0xff_ffff_f000 | ALL);
    let at = Gpa::new(0xff_ffff_f000 + (gva.as_u64() >> 30 & 0x1ff) * 8);
    assert_eq!(walk(&mut ram, &long(), gva, Access::Read), Err(WalkError::Outside(OutsideMemory(at))));
}

proptest::proptest! {
    #[test]
    fn no_tables_and_no_registers_panic(entries in proptest::collection::vec(proptest::num::u64::ANY, 64),
        cr0: u64, cr3: u64, cr4: u64, efer: u64, cpl in 0u8..4, physical_bits: u8, gva: u64) {
        let mut ram = Ram::new(4);
        for at in 0..4 * 512 {
            // Point back into the four pages, or rarely anywhere.
            let entry = entries[at as usize % 64];
            ram.put64(at * 8, if entry >> 60 == 0 { entry } else { entry & 0x3fff | PRESENT });
        }
        let paging = Paging { cr0: cr0 | cr0::PG, cr3: cr3 & 0x3fff, cr4, efer, cpl, ac: false, physical_bits };
        for access in [Access::Read, Access::Write, Access::Execute] {
            let _ = walk(&mut ram, &paging, Gva::new(gva), access);
        }
    }

    #[test]
    fn the_short_way_agrees_with_the_long_one(flips in proptest::collection::vec((1u64..5, 0u32..64), 0..6),
        smap: bool, nxe: bool, wp: bool, cpl in 0u8..4, access in 0usize..3) {
        let access = [Access::Read, Access::Write, Access::Execute][access];
        let (mut ram, gva) = long_tables(0x5000 | ALL);
        let at = |level: u64| (5 - level) * 0x1000 + (gva.as_u64() >> (12 + 9 * (level - 1)) & 0x1ff) * 8;
        for level in 1..5 {
            let flags = ACCESSED | if level == 1 { DIRTY } else { 0 };
            ram.put64(at(level), ram.get64(at(level)) | flags);
        }
        for (level, bit) in flips {
            ram.put64(at(level), ram.get64(at(level)) ^ 1 << bit);
        }
        let cr4 = cr4::PAE | if smap { cr4::SMAP | cr4::SMEP } else { 0 };
        let efer = efer::LMA | if nxe { efer::NXE } else { 0 };
        let paging = Paging { cr0: cr0::PG | if wp { cr0::WP } else { 0 }, cr4, efer, cpl, ..long() };
        if let Some(walked) = walk_quickly(&ram, &paging, gva.as_u64(), access) {
            let gpa = walked.gpa(gva.as_u64());
            proptest::prop_assert_eq!(walk_any(&mut ram, &paging, Format::Long(4), gva, access), Ok(gpa));
            proptest::prop_assert_eq!(walked.again(&ram, &paging, gva.as_u64()), Some(gpa));
        }
    }

    #[test]
    fn the_short_way_is_taken_when_nothing_is_amiss(offset in 0u64..4096, write: bool) {
        let (mut ram, gva) = long_tables(0x5000 | ALL);
        let gva = gva.as_u64() + offset;
        let access = if write { Access::Write } else { Access::Read };
        proptest::prop_assert!(walk_quickly(&ram, &long(), gva, access).is_none(), "flags are to be set");
        let gpa = go(&mut ram, &long(), gva, access);
        let walked = walk_quickly(&ram, &long(), gva, access).map(|walked| walked.gpa(gva).as_u64());
        proptest::prop_assert_eq!(walked.ok_or(WalkError::Changed), gpa);
    }

    #[test]
    fn a_walk_is_not_taken_for_another_one(bit in 0u32..64, register in 0usize..7) {
        let (mut ram, gva) = long_tables(0x5000 | ALL);
        let gva = gva.as_u64();
        go(&mut ram, &long(), gva, Access::Read).unwrap();
        let walked = walk_quickly(&ram, &long(), gva, Access::Read).unwrap();
        proptest::prop_assert!(walked.again(&ram, &long(), gva ^ 1 << bit).is_none() == (bit >= 12), "another page");
        let mut other = long();
        match register {
            0 => other.cr0 ^= 1 << bit,
            1 => other.cr3 ^= 1 << bit,
            2 => other.cr4 ^= 1 << bit,
            3 => other.efer ^= 1 << bit,
            4 => other.cpl ^= 3,
            5 => other.ac ^= true,
            _ => other.physical_bits -= 1,
        }
        proptest::prop_assert_eq!(walked.again(&ram, &other, gva), None);
        for (at, entry) in walked.entries {
            ram.put64(at.as_u64(), entry ^ 1 << bit);
            proptest::prop_assert_eq!(walked.again(&ram, &long(), gva), None);
            ram.put64(at.as_u64(), entry);
        }
        proptest::prop_assert_eq!(walked.again(&ram, &long(), gva), Some(walked.gpa(gva)));
    }
}
