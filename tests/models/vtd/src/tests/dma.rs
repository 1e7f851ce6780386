//! DMA translation and its caches.

use super::*;

const DOMAIN: u64 = 0x21;
const READ_WRITE: u64 = 3;
/// A frame that tests map.
const FRAME: u64 = 0x80_0000;

/// The root and context entries for [`SID`], four levels, and a table at each level for address 0.
fn build(ram: &mut Ram) {
    ram.set_u64(ROOT, CONTEXTS | 1);
    set_context(ram, [SS_TOP | 1, DOMAIN << 8 | 2]);
    for level in 0..3 {
        let table = SS_TOP + 0x1000 * level;
        ram.set_u64(table, (table + 0x1000) | READ_WRITE);
    }
}

fn set_context(ram: &mut Ram, words: [u64; 2]) {
    let at = CONTEXTS + 16 * u64::from(SID & 0xff);
    ram.set_u64(at, words[0]);
    ram.set_u64(at + 8, words[1]);
}

/// The entry of the level (1 to 4) for an address below 2 MiB.
fn slot(level: u64, address: u64) -> u64 {
    let index = if level == 1 { address >> 12 } else { 0 };
    SS_TOP + 0x1000 * (4 - level) + 8 * index
}

fn map(rig: &mut Rig, address: u64, entry: u64) {
    rig.ram.set_u64(slot(1, address), entry);
}

fn translating(config: Config) -> Rig {
    let mut rig = Rig::with_queue(config);
    build(&mut rig.ram);
    rig.translate([FLUSH_CONTEXTS, FLUSH_IOTLB]);
    rig
}

fn read(rig: &mut Rig, address: u64) -> Result<u64, DmaFault> {
    rig.dma(address, Access::Read)
}

fn read_fault(rig: &mut Rig, address: u64) -> u8 {
    match read(rig, address) {
        Err(DmaFault::Blocked(reason)) => reason,
        other => panic!("{other:x?}"),
    }
}

/// An IOTLB invalidation of pages.
fn pages(domain: u64, address: u64, mask: u64, leaves_only: bool) -> [u64; 2] {
    let low = 2 | 3 << 4 | domain << 16;
    [low, address | u64::from(leaves_only) << 6 | mask]
}

#[test]
fn addresses_pass_while_translation_is_off() {
    let mut rig = Rig::new(Config::default());
    assert_eq!(read(&mut rig, 0x1234), Ok(0x1234));
}

#[test]
fn a_mapped_page_is_reached() {
    let mut rig = translating(Config::default());
    map(&mut rig, 0x5000, FRAME | READ_WRITE);
    assert_eq!(read(&mut rig, 0x5ffc), Ok(FRAME + 0xffc));
    assert_eq!(rig.dma(0x5000, Access::Write), Ok(FRAME));
    rig.rules_kept();
}

#[test]
fn transfers_are_split_at_pages_and_stop_at_a_fault() {
    let mut rig = translating(Config::default());
    map(&mut rig, 0x1000, (FRAME + 0x3000) | READ_WRITE);
    map(&mut rig, 0x2000, FRAME | READ_WRITE);
    let data: Vec<u8> = (0..200).collect();
    let written = rig.unit.dma_write(SID, 0x1f9c, &data, &mut rig.ram);
    assert_eq!(written, Ok(()));
    assert_eq!(rig.ram.u64(FRAME + 0x3f9c) as u8, 0);
    assert_eq!(rig.ram.u64(FRAME) as u8, 100);
    let mut back = vec![0; 200];
    let done = rig.unit.dma_read(SID, 0x1f9c, &mut back, &mut rig.ram);
    assert_eq!((done, back), (Ok(()), data.clone()));
    let beyond = rig.unit.dma_write(SID, 0x2fff, &data, &mut rig.ram);
    assert_eq!(beyond, Err(DmaFault::Blocked(5)));
    assert_eq!(rig.ram.u64(FRAME + 0xff8) >> 56, 0, "its first byte is 0");
    let across = rig.unit.dma(SID, 0x1ffe, 4, Access::Read, &mut rig.ram);
    assert_eq!(across, Err(DmaFault::CrossesPage));
}

#[test]
fn memory_that_is_not_there_is_told() {
    let mut rig = translating(Config::default());
    map(&mut rig, 0, LIMIT | READ_WRITE);
    let written = rig.unit.dma_write(SID, 8, &[1], &mut rig.ram);
    assert_eq!(written, Err(DmaFault::NoMemory(LIMIT + 8)));
}

/// Attack 25: malformed DMA to 0xFEEx_xxxx.
#[test]
fn the_interrupt_range_is_no_memory() {
    let mut rig = translating(Config::default());
    assert_eq!(read(&mut rig, 0xfee0_0000), Err(DmaFault::InterruptRange));
    map(&mut rig, 0, 0xfee0_0000 | READ_WRITE);
    assert_eq!(read_fault(&mut rig, 0), 0x0e);
}

#[test]
fn every_fault_of_the_tables_has_its_reason() {
    let mut rig = translating(Config::default());
    let sid = u64::from(SID);
    assert_eq!(read_fault(&mut rig, 0x5000), 6);
    assert_eq!(rig.record(0), [0x5000, 0b11 << 62 | 6 << 32 | sid]);
    assert_eq!(rig.dma(0x6abc, Access::Write), Err(DmaFault::Blocked(5)));
    assert_eq!(rig.record(1), [0x6000, 1 << 63 | 5 << 32 | sid]);
    assert_eq!(read_fault(&mut rig, 1 << 48), 4);
    rig.ram.set_u64(slot(2, 0), LIMIT | READ_WRITE);
    rig.submit([2 | 1 << 4, 0]);
    assert_eq!(read_fault(&mut rig, 0), 7);
    let elsewhere = rig.unit.dma(0x0100, 0, 4, Access::Read, &mut rig.ram);
    assert_eq!(elsewhere, Err(DmaFault::Blocked(1)));
    let absent = rig.unit.dma(SID + 1, 0, 4, Access::Read, &mut rig.ram);
    assert_eq!(absent, Err(DmaFault::Blocked(2)));
}

#[test]
fn unreadable_root_and_context_tables_have_their_reasons() {
    let mut rig = translating(Config::default());
    rig.ram.set_u64(ROOT, LIMIT | 1);
    assert_eq!(read_fault(&mut rig, 0), 9);
    rig.write64(0x20, LIMIT);
    rig.command(SRTP);
    assert_eq!(read_fault(&mut rig, 0), 8);
}

#[test]
fn reserved_bits_of_a_root_entry_are_fault_0a() {
    for bit in (1..12).chain(46..128) {
        let mut rig = translating(Config::default());
        let at = ROOT + bit / 64 * 8;
        let old = rig.ram.u64(at);
        rig.ram.set_u64(at, old | 1 << (bit % 64));
        assert_eq!(read_fault(&mut rig, 0), 0x0a, "bit {bit}");
    }
}

#[test]
fn reserved_bits_of_a_context_entry_are_fault_0b() {
    for bit in (4..12).chain(46..64).chain([64 + 7]).chain(88..128) {
        let mut words = [SS_TOP | 1, DOMAIN << 8 | 2];
        words[bit / 64] |= 1 << (bit % 64);
        let mut rig = translating(Config::default());
        set_context(&mut rig.ram, words);
        assert_eq!(read_fault(&mut rig, 0), 0x0b, "bit {bit}");
    }
    let mut rig = translating(Config { domain_id_bits: 4, ..Config::default() });
    assert_eq!(read_fault(&mut rig, 0), 0x0b, "domain id too wide");
}

#[test]
fn types_and_widths_that_the_unit_lacks_are_fault_03() {
    let three_only = Config { four_level: false, pass_through: false, ..Config::default() };
    let cases = [
        (Config::default(), 1, 2),
        (Config::default(), 3, 2),
        (Config::default(), 0, 0),
        (Config::default(), 0, 3),
        (Config::default(), 2, 1),
        (three_only.clone(), 0, 2),
        (three_only, 2, 1),
    ];
    for (config, translation_type, width) in cases {
        let mut rig = translating(config);
        let words = [SS_TOP | translation_type << 2 | 1, DOMAIN << 8 | width];
        set_context(&mut rig.ram, words);
        assert_eq!(read_fault(&mut rig, 0), 3, "{translation_type} {width}");
    }
}

#[test]
fn snoop_control_is_for_leaves_of_units_that_have_it() {
    const SNP: u64 = 1 << 11;
    for (snoop_control, expected) in [(true, Ok(FRAME)), (false, Err(DmaFault::Blocked(0x0c)))] {
        let mut rig = translating(Config { snoop_control, ..Config::default() });
        map(&mut rig, 0, FRAME | SNP | READ_WRITE);
        assert_eq!(read(&mut rig, 0), expected);
    }
    let mut rig = translating(Config::default());
    map(&mut rig, 0, FRAME | READ_WRITE);
    let entry = rig.ram.u64(slot(2, 0));
    rig.ram.set_u64(slot(2, 0), entry | SNP);
    assert_eq!(read_fault(&mut rig, 0), 0x0c, "an entry that leads to a table");
}

#[test]
fn pass_through_passes() {
    let mut rig = translating(Config::default());
    set_context(&mut rig.ram, [2 << 2 | 1, DOMAIN << 8 | 2]);
    assert_eq!(read(&mut rig, 0x1234_5678), Ok(0x1234_5678));
    rig.rules_kept();
}

#[test]
fn three_levels_end_at_39_bits() {
    let mut rig = translating(Config::default());
    set_context(&mut rig.ram, [slot(3, 0) | 1, DOMAIN << 8 | 1]);
    map(&mut rig, 0x1000, FRAME | READ_WRITE);
    assert_eq!(read(&mut rig, 0x1010), Ok(FRAME + 0x10));
    assert_eq!(read_fault(&mut rig, 1 << 39), 4);
}

#[test]
fn permissions_are_those_of_all_levels() {
    for level in 1..=4 {
        let mut rig = translating(Config::default());
        map(&mut rig, 0, FRAME | READ_WRITE);
        let entry = rig.ram.u64(slot(level, 0));
        rig.ram.set_u64(slot(level, 0), entry & !2);
        assert_eq!(rig.dma(0, Access::Write), Err(DmaFault::Blocked(5)));
        assert_eq!(read(&mut rig, 0), Ok(FRAME));
        assert_eq!(rig.dma(0, Access::Write), Err(DmaFault::Blocked(5)));
    }
}

#[test]
fn reserved_bits_of_paging_entries_are_fault_0c() {
    for level in 1..=4 {
        for bit in [11, 46, 51, 62] {
            let mut rig = translating(Config { snoop_control: false, ..Config::default() });
            map(&mut rig, 0, FRAME | READ_WRITE);
            let entry = rig.ram.u64(slot(level, 0));
            rig.ram.set_u64(slot(level, 0), entry | 1 << bit);
            assert_eq!(read_fault(&mut rig, 0), 0x0c, "level {level} bit {bit}");
        }
        let mut rig = translating(Config::default());
        map(&mut rig, 0, FRAME | READ_WRITE | 0x77c | 0x3ff << 52 | 1 << 63);
        assert_eq!(read(&mut rig, 0), Ok(FRAME), "ignored bits");
    }
}

#[test]
fn large_pages_work_where_they_are_reported() {
    for (level, base, offset) in [(2, 0x60_0000, 0x12_3456), (3, 0x4000_0000, 0x2012_3456)] {
        let mut rig = translating(Config::default());
        rig.ram.set_u64(slot(level, 0), base | 1 << 7 | READ_WRITE);
        assert_eq!(read(&mut rig, offset), Ok(base + offset));
        assert_eq!(read(&mut rig, 0x1f_f000), Ok(base + 0x1f_f000), "cached");

        let mut rig = translating(Config::default());
        let misaligned = base | 0x1000 | 1 << 7 | READ_WRITE;
        rig.ram.set_u64(slot(level, 0), misaligned);
        assert_eq!(read_fault(&mut rig, offset), 0x0c, "level {level}");

        let mut rig = translating(Config { pages_2m: level != 2, pages_1g: level != 3, ..Config::default() });
        rig.ram.set_u64(slot(level, 0), base | 1 << 7 | READ_WRITE);
        assert_eq!(read_fault(&mut rig, offset), 0x0c, "level {level}");
    }
    let mut rig = translating(Config::default());
    rig.ram.set_u64(slot(4, 0), 1 << 7 | READ_WRITE);
    assert_eq!(read_fault(&mut rig, 0), 0x0c, "no 512 GiB pages");
}

#[test]
fn a_page_stays_until_an_invalidation_covers_it() {
    let flushes: [([u64; 2], bool); 8] = [
        ([2 | 1 << 4, 0], true),
        ([2 | 2 << 4 | DOMAIN << 16, 0], true),
        ([2 | 2 << 4 | (DOMAIN + 1) << 16, 0], false),
        (pages(DOMAIN, 0x5000, 0, false), true),
        (pages(DOMAIN, 0x4000, 0, false), false),
        (pages(DOMAIN, 0x4000, 1, true), true),
        (pages(DOMAIN + 1, 0x5000, 0, false), false),
        ([1 | 1 << 4, 0], false),
    ];
    for (flush, covers) in flushes {
        let mut rig = translating(Config::default());
        map(&mut rig, 0x5000, FRAME | READ_WRITE);
        assert_eq!(read(&mut rig, 0x5000), Ok(FRAME));
        map(&mut rig, 0x5000, 0);
        rig.submit(flush);
        assert_eq!(read(&mut rig, 0x5000).is_err(), covers, "{flush:x?}");
    }
}

#[test]
fn the_hint_keeps_the_paging_structure_caches() {
    for leaves_only in [true, false] {
        let mut rig = translating(Config::default());
        map(&mut rig, 0x5000, FRAME | READ_WRITE);
        assert_eq!(read(&mut rig, 0x5000), Ok(FRAME));
        rig.ram.set_u64(slot(2, 0), 0);
        rig.submit(pages(DOMAIN, 0x5000, 0, leaves_only));
        assert_eq!(read(&mut rig, 0x5000).is_ok(), leaves_only);
    }
}

#[test]
fn an_absent_page_is_not_cached() {
    let mut rig = translating(Config::default());
    assert_eq!(read_fault(&mut rig, 0x5000), 6);
    map(&mut rig, 0x5000, FRAME | READ_WRITE);
    assert_eq!(read(&mut rig, 0x5000), Ok(FRAME));
}

#[test]
fn a_context_entry_stays_until_an_invalidation_covers_it() {
    let device = |domain: u64, sid: u64, mask: u64| 1 | 3 << 4 | domain << 16 | sid << 32 | mask << 48;
    let sid = u64::from(SID);
    let flushes = [
        (1 | 1 << 4, true),
        (1 | 2 << 4 | DOMAIN << 16, true),
        (1 | 2 << 4 | (DOMAIN + 1) << 16, false),
        (device(DOMAIN, sid, 0), true),
        (device(DOMAIN, sid | 7, 0), false),
        (device(DOMAIN, sid | 4, 1), true),
        (device(DOMAIN, sid | 6, 1), false),
        (device(DOMAIN, sid | 6, 2), true),
        (device(DOMAIN, sid | 7, 3), true),
        (device(DOMAIN + 1, sid, 0), false),
        (2 | 1 << 4, false),
    ];
    for (flush, covers) in flushes {
        let mut rig = translating(Config::default());
        map(&mut rig, 0x5000, FRAME | READ_WRITE);
        assert_eq!(read(&mut rig, 0x5000), Ok(FRAME));
        set_context(&mut rig.ram, [0, 0]);
        rig.submit([flush, 0]);
        assert_eq!(read(&mut rig, 0x5000).is_err(), covers, "{flush:#x}");
    }
}

#[test]
fn a_flushed_context_alone_leaves_the_domains_pages() {
    let mut rig = translating(Config::default());
    map(&mut rig, 0x5000, FRAME | READ_WRITE);
    assert_eq!(read(&mut rig, 0x5000), Ok(FRAME));
    // The same domain, other tables: the old page comes from the IOTLB.
    set_context(&mut rig.ram, [0x7_0000 | 1, DOMAIN << 8 | 2]);
    rig.submit([1 | 1 << 4, 0]);
    assert_eq!(read(&mut rig, 0x5000), Ok(FRAME));
    rig.submit([2 | 2 << 4 | DOMAIN << 16, 0]);
    assert_eq!(read_fault(&mut rig, 0x5000), 6);
}

#[test]
fn one_domain_with_two_sets_of_tables_is_noted() {
    let mut rig = translating(Config::default());
    map(&mut rig, 0x5000, FRAME | READ_WRITE);
    assert_eq!(read(&mut rig, 0x5000), Ok(FRAME));
    let other = CONTEXTS + 16 * (u64::from(SID) + 8);
    rig.ram.set_u64(other, 0x7_0000 | 1);
    rig.ram.set_u64(other + 8, DOMAIN << 8 | 2);
    let shared = rig.unit.dma(SID + 8, 0x5000, 4, Access::Read, &mut rig.ram);
    assert_eq!(shared, Ok(FRAME), "the IOTLB knows domains only");
    assert_eq!(rig.unit.violations().len(), 1);
}

#[test]
fn fpd_of_a_context_entry_suppresses_qualified_faults() {
    let mut rig = translating(Config::default());
    set_context(&mut rig.ram, [SS_TOP | 0b11, DOMAIN << 8 | 2]);
    assert_eq!(read_fault(&mut rig, 0x5000), 6);
    set_context(&mut rig.ram, [0b10, 0]);
    rig.submit([1 | 1 << 4, 0]);
    assert_eq!(read_fault(&mut rig, 0x5000), 2);
    assert_eq!(rig.unit.stats().faults_recorded, 0);
    rig.ram.set_u64(ROOT, 0);
    assert_eq!(read_fault(&mut rig, 0x5000), 1);
    assert_eq!(rig.unit.stats().faults_recorded, 1);
}
