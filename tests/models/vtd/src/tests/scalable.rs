//! Scalable mode: root, context, PASID directory and PASID table, with their caches.

use super::*;
use crate::Requester;

const DOMAIN: u64 = 0x21;
const READ_WRITE: u64 = 3;
const FRAME: u64 = 0x80_0000;
const DIRECTORY: u64 = 0x5_2000;
const PASIDS: u64 = 0x5_3000;
const SCALABLE: u64 = 1 << 10;
/// The upper half of a root entry is for devices 16 to 31.
const UPPER: u64 = ROOT + 8;
const CONTEXT: u64 = CONTEXTS + 32 * (SID as u64 & 0x7f);
const PASIDE: u64 = 1 << 3;
/// A PASID that the tests use, in the second directory entry.
const PASID: u32 = 0x45;

fn config() -> Config {
    Config { scalable_mode: true, ..Config::default() }
}

/// A PASID table entry: four levels, second stage, page walks snooped.
fn set_pasid(ram: &mut Ram, pasid: u32, table: u64, domain: u64) {
    let at = PASIDS + 64 * u64::from(pasid & 0x3f);
    ram.set_u64(at + 8, domain | 1 << 23);
    ram.set_u64(at, table | 2 << 6 | 2 << 2 | 1);
}

/// All tables, by which PASIDs 0 and [`PASID`] lead to [`FRAME`] at 0x5000.
fn build(ram: &mut Ram) {
    ram.set_u64(UPPER, CONTEXTS | 1);
    ram.set_u64(CONTEXT, DIRECTORY | PASIDE | 1);
    ram.set_u64(DIRECTORY, PASIDS | 1);
    ram.set_u64(DIRECTORY + 8, PASIDS | 1);
    set_pasid(ram, 0, SS_TOP, DOMAIN);
    set_pasid(ram, PASID, SS_TOP, DOMAIN);
    for level in 0..3 {
        let table = SS_TOP + 0x1000 * level;
        ram.set_u64(table, (table + 0x1000) | READ_WRITE);
    }
    ram.set_u64(SS_TOP + 0x3000 + 8 * 5, FRAME | READ_WRITE);
}

fn wide_queue(config: Config) -> Rig {
    let mut rig = Rig::new(config);
    rig.write64(0x90, QUEUE | 1 << 11);
    rig.command(QIE);
    rig
}

/// Submits a descriptor of 256 bits.
fn submit(rig: &mut Rig, words: [u64; 4]) {
    for (at, word) in (QUEUE + rig.tail..).step_by(8).zip(words) {
        rig.ram.set_u64(at, word);
    }
    rig.tail = (rig.tail + 32) % 4096;
    rig.write64(IQT, rig.tail);
}

fn low(rig: &mut Rig, word: u64) {
    submit(rig, [word, 0, 0, 0]);
}

fn translating(config: Config) -> Rig {
    let mut rig = wide_queue(config);
    build(&mut rig.ram);
    rig.write64(0x20, ROOT | SCALABLE);
    rig.command(SRTP);
    low(&mut rig, 1 | 1 << 4);
    low(&mut rig, 7 | 3 << 4);
    low(&mut rig, 2 | 1 << 4);
    rig.command(TE);
    rig
}

fn access(rig: &mut Rig, pasid: Option<u32>, address: u64, access: Access) -> Result<u64, u8> {
    let result = rig.unit.dma(Requester { source_id: SID, pasid }, address, 4, access, &mut rig.ram);
    result.map_err(|fault| match fault {
        DmaFault::Blocked(reason) => reason,
        other => panic!("{other:?}"),
    })
}

fn read(rig: &mut Rig, pasid: Option<u32>) -> Result<u64, u8> {
    access(rig, pasid, 0x5000, Access::Read)
}

#[test]
fn scalable_mode_shows_in_ecap_and_only_then() {
    let mut rig = Rig::new(config());
    let ecap = rig.read64(0x10);
    assert_eq!(ecap & (1 << 40 | 1 << 43 | 1 << 46 | 1 << 48), 1 << 40 | 1 << 43 | 1 << 46 | 1 << 48);
    assert_eq!(ecap >> 35 & 0x1f, 19);
    assert_eq!(Rig::new(Config::default()).read64(0x10) >> 32, 0);
    let mut legacy = Rig::new(Config::default());
    legacy.write64(0x20, ROOT | SCALABLE);
    legacy.command(SRTP);
    assert_eq!((legacy.read32(GSTS) & SRTP, legacy.unit.violations().len()), (0, 1));
}

#[test]
fn paside_is_reserved_where_ecap_says_no_pasids() {
    let mut rig = translating(Config { pasids: false, ..config() });
    assert_eq!(rig.read64(0x10) >> 40 & 1, 0);
    assert_eq!(read(&mut rig, None), Err(0x42));
    assert_eq!(rig.record(0)[1] >> 32 & 0xff, 0x42);
    rig.ram.set_u64(CONTEXT, DIRECTORY | 1);
    assert_eq!(read(&mut rig, None), Ok(FRAME));
    assert_eq!(read(&mut rig, Some(PASID)), Err(0x45));
    rig.rules_kept();
}

#[test]
fn requests_with_and_without_pasid_reach_their_pages() {
    let mut rig = translating(config());
    assert_eq!((read(&mut rig, None), read(&mut rig, Some(PASID))), (Ok(FRAME), Ok(FRAME)));
    assert_eq!(read(&mut rig, Some(0)), Ok(FRAME));
    assert_eq!(rig.unit.stats().scalable_roots, 1);
    rig.rules_kept();
}

#[test]
fn legacy_mode_blocks_requests_with_pasid_and_records_them() {
    let mut rig = Rig::with_queue(Config::default());
    rig.translate([FLUSH_CONTEXTS, FLUSH_IOTLB]);
    assert_eq!(access(&mut rig, Some(PASID), 0x5000, Access::Write), Err(0x31));
    let high = 1 << 63 | u64::from(PASID) << 40 | 0x31 << 32 | 1 << 31 | u64::from(SID);
    assert_eq!(rig.record(0), [0x5000, high]);
    rig.rules_kept();
}

#[test]
fn every_fault_on_the_way_has_its_reason() {
    let mut rig = translating(config());
    let pasid_entry = PASIDS + 64 * u64::from(PASID & 0x3f);
    let cases = [
        (UPPER, CONTEXTS, 0x39),
        (UPPER, CONTEXTS | 3, 0x3a),
        (UPPER, LIMIT | 1, 0x40),
        (CONTEXT, DIRECTORY | PASIDE, 0x41),
        (CONTEXT, DIRECTORY | PASIDE | 1 << 2 | 1, 0x42),
        (CONTEXT, DIRECTORY | PASIDE | 1 << 4 | 1, 0x42),
        (CONTEXT + 8, 1, 0x42),
        (CONTEXT + 24, 1 << 63, 0x42),
        (CONTEXT, DIRECTORY | 1, 0x45),
        (CONTEXT, LIMIT | PASIDE | 1, 0x50),
        (DIRECTORY + 8, PASIDS, 0x51),
        (DIRECTORY + 8, PASIDS | 5, 0x52),
        (DIRECTORY + 8, LIMIT | 1, 0x58),
        (pasid_entry, SS_TOP | 2 << 6 | 2 << 2, 0x59),
        (pasid_entry, SS_TOP | 2 << 6 | 2 << 2 | 1 << 9 | 1, 0x5a),
        (pasid_entry + 8, DOMAIN | 1 << 16, 0x5a),
        (pasid_entry + 16, 1, 0x5a),
        (pasid_entry + 56, 1, 0x5a),
        (pasid_entry, SS_TOP | 1 << 6 | 2 << 2 | 1, 0x5b),
        (pasid_entry, SS_TOP | 2 << 6 | 3 << 2 | 1, 0x5b),
        (pasid_entry, LIMIT | 2 << 6 | 2 << 2 | 1, 0x78),
        (SS_TOP, 0, 0x79),
        (SS_TOP, (SS_TOP + 0x1000) | READ_WRITE | 1 << 62, 0x7a),
        (SS_TOP, (SS_TOP + 0x1000) | 2, 0x86),
        (SS_TOP + 0x3000 + 8 * 5, 0xfee0_0000 | READ_WRITE, 0x87),
    ];
    for (at, value, reason) in cases {
        let old = rig.ram.u64(at);
        rig.ram.set_u64(at, value);
        assert_eq!(read(&mut rig, Some(PASID)), Err(reason), "{at:#x} {value:#x}");
        // A write of an entry that has caused a fault needs no flush, but those before it may have been cached.
        rig.ram.set_u64(at, old);
        low(&mut rig, 1 | 1 << 4);
        low(&mut rig, 7 | 3 << 4);
        low(&mut rig, 2 | 1 << 4);
    }
    assert_eq!(read(&mut rig, Some(PASID)), Ok(FRAME));
    assert_eq!(read(&mut rig, Some(0x2000)), Err(0x46));
    assert_eq!(access(&mut rig, None, 1 << 48, Access::Read), Err(0x83));
    rig.ram.set_u64(SS_TOP + 0x3000 + 8 * 6, FRAME | 1);
    assert_eq!(access(&mut rig, Some(PASID), 0x6000, Access::Write), Err(0x85));
    rig.rules_kept();
}

#[test]
fn a_request_with_pasid_to_the_interrupt_range_is_no_interrupt() {
    let mut rig = translating(config());
    assert_eq!(access(&mut rig, Some(PASID), 0xfee0_0000, Access::Write), Err(0x79));
    assert_eq!(rig.unit.dma(SID, 0xfee0_0000, 4, Access::Write, &mut rig.ram), Err(DmaFault::InterruptRange));
}

#[test]
fn a_pasid_entry_stays_until_its_own_flush() {
    let mut rig = translating(config());
    let entry = PASIDS + 64 * u64::from(PASID & 0x3f);
    let domain = DOMAIN << 16;
    let select = |pasid: u32| u64::from(pasid) << 32;
    for (flush, gone) in [
        (1 | 1 << 4, false),
        (2 | 1 << 4, false),
        (7 | 1 << 4 | select(PASID) | 0x22 << 16, false),
        (7 | 1 << 4 | select(PASID + 1) | domain, false),
        (7 | 1 << 4 | select(PASID) | domain, true),
        (7 | domain, true),
        (7 | 3 << 4, true),
    ] {
        set_pasid(&mut rig.ram, PASID, SS_TOP, DOMAIN);
        assert_eq!(read(&mut rig, Some(PASID)), Ok(FRAME));
        rig.ram.set_u64(entry, 0);
        low(&mut rig, flush);
        assert_eq!(read(&mut rig, Some(PASID)), if gone { Err(0x59) } else { Ok(FRAME) }, "{flush:#x}");
        low(&mut rig, 7 | 3 << 4);
    }
    rig.rules_kept();
}

#[test]
fn pages_stay_until_the_domains_own_flush_not_the_pasids() {
    let mut rig = translating(config());
    assert_eq!(read(&mut rig, Some(PASID)), Ok(FRAME));
    rig.ram.set_u64(SS_TOP + 0x3000 + 8 * 5, 0);
    low(&mut rig, 6 | 2 << 4 | DOMAIN << 16 | u64::from(PASID) << 32);
    low(&mut rig, 7 | 3 << 4);
    assert_eq!(read(&mut rig, Some(PASID)), Ok(FRAME));
    low(&mut rig, 2 | 2 << 4 | DOMAIN << 16);
    assert_eq!(read(&mut rig, Some(PASID)), Err(0x79));
    assert_eq!((rig.unit.stats().pasid_iotlb_flushes, rig.queue_error()), (1, false));
}

#[test]
fn a_context_entry_stays_until_its_flush_whatever_the_domain_says() {
    let mut rig = translating(config());
    assert_eq!(read(&mut rig, None), Ok(FRAME));
    rig.ram.set_u64(CONTEXT, 0);
    low(&mut rig, 7 | 3 << 4);
    assert_eq!(read(&mut rig, None), Ok(FRAME), "the directory is in the context entry");
    rig.rules_kept();
    low(&mut rig, 1 | 2 << 4 | DOMAIN << 16);
    assert_eq!((read(&mut rig, None), rig.unit.violations().len()), (Ok(FRAME), 1));
    low(&mut rig, 1 | 3 << 4 | 0x7 << 16 | u64::from(SID) << 32);
    assert_eq!(read(&mut rig, None), Err(0x41));
}

#[test]
fn scalable_mode_wants_descriptors_of_256_bits_with_their_upper_half_zero() {
    let mut rig = wide_queue(config());
    submit(&mut rig, [4, 0, 1, 0]);
    assert!(rig.queue_error());
    let mut narrow = Rig::with_queue(config());
    narrow.submit([1 | 1 << 4, 0]);
    assert!(!narrow.queue_error());
    narrow.write64(0x20, ROOT | SCALABLE);
    narrow.command(SRTP);
    narrow.submit([1 | 1 << 4, 0]);
    assert!(narrow.queue_error());
    assert_eq!(narrow.read64(0xb0) & 0xf, 5);
}

#[test]
fn translation_wants_all_three_caches_flushed_in_order() {
    for flushes in [&[0x11, 0x12][..], &[0x37, 0x11, 0x12], &[0x11, 0x12, 0x37]] {
        let mut rig = wide_queue(config());
        build(&mut rig.ram);
        rig.write64(0x20, ROOT | SCALABLE);
        rig.command(SRTP);
        flushes.iter().for_each(|flush| low(&mut rig, *flush));
        rig.command(TE);
        assert_eq!(rig.unit.violations().len(), 1, "{flushes:x?}");
    }
}

#[test]
fn the_mode_does_not_change_while_translation_is_on() {
    let mut rig = translating(config());
    rig.write64(0x20, ROOT);
    rig.command(SRTP);
    assert_eq!((rig.unit.violations().len(), read(&mut rig, Some(PASID))), (1, Ok(FRAME)));
}

#[test]
fn one_domain_has_one_set_of_tables() {
    let mut rig = translating(config());
    set_pasid(&mut rig.ram, PASID, SS_TOP + 0x1000, DOMAIN);
    let _ = (read(&mut rig, None), read(&mut rig, Some(PASID)));
    assert_eq!(rig.unit.violations().len(), 1);
}
