//! First-stage tables: walks, rights, accessed and dirty bits, caches.

use super::*;
use crate::Requester;

const DOMAIN: u64 = 0x21;
const FRAME: u64 = 0x80_0000;
const DIRECTORY: u64 = 0x5_2000;
const PASIDS: u64 = 0x5_3000;
pub(super) const CONTEXT: u64 = CONTEXTS + 32 * (SID as u64 & 0x7f);
pub(super) const PASID: u32 = 5;
/// Present, writable, for users.
const ALL: u64 = 0b111;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;

/// The entry of the level (1 to 4) for an address below 2 MiB.
pub(super) fn slot(level: u64, address: u64) -> u64 {
    let index = if level == 1 { address >> 12 } else { 0 };
    SS_TOP + 0x1000 * (4 - level) + 8 * index
}

/// A unit that translates by first-stage tables for [`PASID`] and for requests without one; 0x5000 leads to [`FRAME`].
pub(super) fn translating(config: Config) -> Rig {
    let mut rig = Rig::new(config);
    let ram = &mut rig.ram;
    ram.set_u64(ROOT + 8, CONTEXTS | 1);
    ram.set_u64(CONTEXT, DIRECTORY | 1 << 3 | 1);
    ram.set_u64(DIRECTORY, PASIDS | 1);
    for pasid in [0, u64::from(PASID)] {
        let at = PASIDS + 64 * pasid;
        ram.set_u64(at + 8, DOMAIN | 1 << 23);
        ram.set_u64(at + 16, SS_TOP);
        ram.set_u64(at, 1 << 6 | 1);
    }
    for level in 2..=4 {
        ram.set_u64(slot(level, 0), slot(level - 1, 0) | ALL);
    }
    ram.set_u64(slot(1, 0x5000), FRAME | ALL);
    rig.write64(0x90, QUEUE | 1 << 11);
    rig.command(QIE);
    rig.write64(0x20, ROOT | 1 << 10);
    rig.command(SRTP);
    for word in [1 | 1 << 4, 7 | 3 << 4, 2 | 1 << 4] {
        submit(&mut rig, [word, 0]);
    }
    rig.command(TE);
    rig
}

pub(super) fn config() -> Config {
    Config { scalable_mode: true, first_stage: true, ..Config::default() }
}

/// Submits a descriptor of 256 bits.
pub(super) fn submit(rig: &mut Rig, words: [u64; 2]) {
    for (at, word) in (QUEUE + rig.tail..).step_by(8).zip([words[0], words[1], 0, 0]) {
        rig.ram.set_u64(at, word);
    }
    rig.tail = (rig.tail + 32) % 4096;
    rig.write64(IQT, rig.tail);
}

fn access(rig: &mut Rig, pasid: Option<u32>, address: u64, access: Access) -> Result<u64, u8> {
    let result = rig.unit.dma(Requester { source_id: SID, pasid }, address, 4, access, &mut rig.ram);
    result.map_err(|fault| match fault {
        DmaFault::Blocked(reason) => reason,
        other => panic!("{other:x?}"),
    })
}

fn read(rig: &mut Rig, address: u64) -> Result<u64, u8> {
    access(rig, Some(PASID), address, Access::Read)
}

fn write(rig: &mut Rig, address: u64) -> Result<u64, u8> {
    access(rig, Some(PASID), address, Access::Write)
}

#[test]
fn the_capabilities_say_so() {
    let mut rig = Rig::new(config());
    assert_eq!((rig.read64(0x10) >> 47 & 1, rig.read64(0x08) >> 56 & 1), (1, 1));
    let mut without = Rig::new(Config { scalable_mode: true, ..Config::default() });
    assert_eq!((without.read64(0x10) >> 47 & 1, without.read64(0x08) >> 56 & 1), (0, 0));
    let mut rig = translating(Config { first_stage: false, ..config() });
    assert_eq!(read(&mut rig, 0x5000), Err(0x5a), "their fields are reserved then");
}

#[test]
fn accessed_is_set_on_the_way_and_dirty_by_a_write() {
    let mut rig = translating(config());
    assert_eq!(read(&mut rig, 0x5004), Ok(FRAME + 4));
    for level in 1..=4 {
        assert_eq!(rig.ram.u64(slot(level, 0x5000)) & (ACCESSED | DIRTY), ACCESSED, "level {level}");
    }
    assert_eq!(write(&mut rig, 0x5004), Ok(FRAME + 4), "what is cached is not dirty yet");
    assert_eq!(rig.ram.u64(slot(1, 0x5000)) & DIRTY, DIRTY);
    assert_eq!(rig.ram.u64(slot(2, 0)) & DIRTY, 0, "a page's alone");
    assert_eq!(access(&mut rig, None, 0x5000, Access::Read), Ok(FRAME), "a request without PASID has PASID 0");
    assert_eq!(rig.unit.stats().first_stage_walks, 3);
    assert_eq!(write(&mut rig, 0x5008), Ok(FRAME + 8));
    assert_eq!(rig.unit.stats().first_stage_walks, 3, "cached");
    rig.rules_kept();
}

#[test]
fn rights_are_those_of_all_levels() {
    for level in 1..=4 {
        for (bit, reads, writes) in [(1, Ok(FRAME), Err(0x85)), (2, Err(0x81), Err(0x81))] {
            let mut rig = translating(config());
            let entry = rig.ram.u64(slot(level, 0x5000));
            rig.ram.set_u64(slot(level, 0x5000), entry & !(1 << bit));
            assert_eq!((write(&mut rig, 0x5000), read(&mut rig, 0x5000)), (writes, reads), "level {level} bit {bit}");
        }
    }
}

#[test]
fn every_fault_has_its_reason() {
    let mut rig = translating(config());
    assert_eq!(read(&mut rig, 0x6000), Err(0x71));
    assert_eq!(read(&mut rig, 1 << 47), Err(0x80));
    assert_eq!(read(&mut rig, u64::MAX << 47), Err(0x71), "canonical");
    for bit in [46, 51] {
        let mut rig = translating(config());
        rig.ram.set_u64(slot(1, 0x5000), FRAME | ALL | 1 << bit);
        assert_eq!(read(&mut rig, 0x5000), Err(0x72), "bit {bit}");
    }
    let mut rig = translating(config());
    rig.ram.set_u64(slot(3, 0), LIMIT | ALL);
    assert_eq!(read(&mut rig, 0x5000), Err(0x70));
    let mut rig = translating(config());
    rig.ram.set_u64(slot(1, 0x5000), 0xfee0_0000 | ALL);
    assert_eq!(read(&mut rig, 0x5000), Err(0x87));
}

#[test]
fn reserved_fields_of_the_pasid_entry_are_reserved() {
    for (word, bit) in [(0, 5), (1, 16), (2, 0), (2, 2), (2, 7), (2, 46), (3, 0), (7, 63)] {
        let mut rig = translating(config());
        let at = PASIDS + 64 * u64::from(PASID) + 8 * word;
        let old = rig.ram.u64(at);
        rig.ram.set_u64(at, old | 1 << bit);
        assert_eq!(read(&mut rig, 0x5000), Err(0x5a), "word {word} bit {bit}");
    }
}

#[test]
fn large_pages_lie_where_they_say() {
    let mut rig = translating(config());
    rig.ram.set_u64(slot(2, 0), 0x60_0000 | 1 << 7 | 1 << 12 | ALL);
    assert_eq!(read(&mut rig, 0x12_3456 & !3), Ok(0x60_0000 + (0x12_3456 & !3)), "bit 12 is PAT");
    let mut rig = translating(config());
    rig.ram.set_u64(slot(2, 0), 0x60_2000 | 1 << 7 | ALL);
    assert_eq!(read(&mut rig, 0), Err(0x72));
    let mut rig = translating(Config { first_stage_1g: false, ..config() });
    rig.ram.set_u64(slot(3, 0), 0x4000_0000 | 1 << 7 | ALL);
    assert_eq!(read(&mut rig, 0), Err(0x72));
}

#[test]
fn a_page_stays_cached_until_an_invalidation_of_its_pasid_covers_it() {
    let did = DOMAIN << 16;
    let pasid = u64::from(PASID) << 32;
    for (words, gone) in [
        ([6 | 2 << 4 | did | pasid, 0], true),
        ([6 | 3 << 4 | did | pasid, 0x5000], true),
        ([6 | 3 << 4 | did | pasid, 0x6000], false),
        ([6 | 3 << 4 | did | pasid, 35], true),
        ([6 | 3 << 4 | did | pasid, 52], true),
        ([6 | 3 << 4 | did | pasid, 1 << 63 | 35], false),
        ([6 | 3 << 4 | did | pasid, 1 << 63 | 63], true),
        ([6 | 2 << 4 | did | (pasid + (1 << 32)), 0], false),
        ([6 | 2 << 4 | (did + (1 << 16)) | pasid, 0], false),
        ([2 | 2 << 4 | did, 0], true),
        ([2 | 3 << 4 | did, 0x5000], false),
        ([2 | 1 << 4, 0], true),
    ] {
        let mut rig = translating(config());
        assert_eq!(read(&mut rig, 0x5000), Ok(FRAME));
        rig.ram.set_u64(slot(1, 0x5000), 0);
        submit(&mut rig, words);
        assert_eq!(read(&mut rig, 0x5000), if gone { Err(0x71) } else { Ok(FRAME) }, "{words:x?}");
    }
}
