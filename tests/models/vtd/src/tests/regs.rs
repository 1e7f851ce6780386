//! Registers and global commands.

use super::*;

#[test]
fn capabilities_say_what_the_configuration_says() {
    let mut rig = Rig::new(Config::default());
    let cap = rig.read64(0x08);
    assert_eq!(cap & 7, 6, "ND: 16 bits");
    assert_eq!(cap >> 8 & 0x1f, 0b110, "SAGAW: 39 and 48 bits");
    assert_eq!(cap >> 16 & 0x3f, 47, "MGAW");
    assert_eq!(cap >> 34 & 0xf, 0b11, "SSLPS");
    assert_eq!(cap >> 40 & 0xff, 7, "NFR");
    assert_eq!(cap >> 59 & 1, 1, "PI");
    assert_eq!(cap >> 62, 0, "neither ESIRTPS nor ESRTPS");
    assert_eq!(cap >> 7 & 1, 0, "CM");
    let ecap = rig.read64(0x10);
    assert_eq!(ecap & 0b11111, 0b11011, "C, QI, IR, EIM and no DT");
    assert_eq!(ecap >> 7 & 1, 1, "SC");
    assert_eq!(ecap >> 20 & 0xf, 15, "MHMV");
    assert_eq!(rig.read32(0), 0x60);
    rig.rules_kept();
}

#[test]
fn each_capability_can_be_taken_away() {
    let mut rig = Rig::new(Config {
        posted_interrupts: false,
        extended_interrupt_mode: false,
        interrupt_remapping: false,
        queued_invalidation: false,
        pages_2m: false,
        pages_1g: false,
        four_level: false,
        domain_id_bits: 8,
        fault_records: 1,
        flush_on_sirtp: true,
        ..Config::default()
    });
    let cap = rig.read64(0x08);
    assert_eq!(cap & 7, 2);
    assert_eq!(cap >> 8 & 0x1f, 0b10);
    assert_eq!(cap >> 16 & 0x3f, 38);
    assert_eq!(cap >> 34 & 0xf, 0);
    assert_eq!(cap >> 40 & 0xff, 0);
    assert_eq!(cap >> 59 & 1, 0);
    assert_eq!(cap >> 62, 1);
    assert_eq!(rig.read64(0x10) & 0b11010, 0);
    for bit in [QIE, IRE, SIRTP, CFI] {
        rig.command(bit);
        assert_eq!(rig.read32(GSTS), 0);
    }
    assert_eq!(rig.unit.violations().len(), 4);
}

/// The bits that the model leaves out, by name; where its registers lie (FRO, IRO) is its own choice.
#[test]
fn presets_report_what_real_units_report_but_for_what_is_left_out() {
    const FRO: u64 = 0x3ff << 24;
    const FIVE_LEVELS: u64 = 1 << 11 | 1 << 60;
    const PROTECTED_MEMORY: u64 = 0b11 << 5;
    const MGAW: u64 = 0x3f << 16;
    const IRO: u64 = 0x3ff << 8;
    // MTS, NEST, ERS, SRS, NWFS, EAFS, DIT, PDS, SSADS, RPS, ADMS.
    const ECAP_LEFT_OUT: u64 = IRO | 0b11 << 25 | 0b11 << 30 | 0b11 << 33 | 0b11 << 41 | 1 << 45 | 1 << 49 | 1 << 52;
    for (config, cap, ecap, ignored) in [
        (Config::sapphire_rapids(), 0x19ed_008c_4078_0c66, 0x3_ee9e_86f0_50df, FIVE_LEVELS | MGAW),
        (Config::sapphire_rapids_accelerators(), 0x19ed_008c_4078_0c66, 0x3_ef9e_86f0_50df, FIVE_LEVELS | MGAW),
        (Config::meteor_lake(), 0xc9de_008c_ee69_0462, 0x12_ca9a_00f0_ef5e, 0),
    ] {
        let mut rig = Rig::new(config);
        let same =
            |read: u64, real: u64, ignored: u64| assert_eq!(read & !ignored, real & !ignored, "{read:x} {real:x}");
        same(rig.read64(0x08), cap, FRO | PROTECTED_MEMORY | ignored);
        same(rig.read64(0x10), ecap, ECAP_LEFT_OUT);
    }
}

#[test]
fn wide_registers_are_read_and_written_by_halves() {
    let mut rig = Rig::new(Config::default());
    rig.write32(0xb8, 0x3_000f);
    rig.write32(0xbc, 0x12);
    assert_eq!(rig.read64(0xb8), 0x12_0003_000f);
    assert_eq!(rig.read32(0xbc), 0x12);
    assert_eq!(u64::from(rig.read32(0x0c)), rig.read64(0x08) >> 32);
    rig.rules_kept();
}

#[test]
fn accesses_of_other_widths_do_nothing_and_are_noted() {
    let mut rig = Rig::new(Config::default());
    rig.write64(FECTL, u64::MAX);
    rig.unit.write(0xb8, 1, 0xff, &mut rig.ram);
    rig.unit.write(0xba, 4, 0xff, &mut rig.ram);
    assert_eq!(rig.read64(0x3c), 0);
    assert_eq!(rig.unit.read(0x08, 2), 0);
    assert_eq!(rig.read64(0xb8), 0);
    assert_eq!(rig.read32(FECTL), 1 << 31);
    assert_eq!(rig.unit.stats().violations, 5);
}

#[test]
fn table_pointers_take_effect_only_when_they_are_set() {
    let mut rig = Rig::remapping(Config::default(), true);
    rig.set_entry(3, entry(0x33, 0));
    rig.write64(0xb8, 0x8_0000 | 1 << 11);
    assert_eq!(rig.vector(3), Some(0x33), "the new IRTA is not latched");
    rig.command(SIRTP);
    assert_eq!(rig.vector(3), None, "now it is, and has two entries");
    assert_eq!(rig.reason(3), Some(0x21));
    rig.rules_kept();
}

#[test]
fn two_fields_in_one_write_are_noted_and_carried_out() {
    let mut rig = Rig::new(Config::default());
    rig.write64(0x90, QUEUE);
    rig.write32(GCMD, QIE | CFI);
    assert_eq!(rig.read32(GSTS), QIE | CFI);
    assert_eq!(rig.unit.violations().len(), 1);
    rig.write32(GCMD, QIE);
    assert_eq!(rig.read32(GSTS), QIE, "one field at a time is right");
    assert_eq!(rig.unit.violations().len(), 1);
    rig.write32(GCMD, QIE | CFI | 1);
    assert_eq!(rig.read32(GSTS), QIE | CFI, "reserved bits are ignored");
    assert_eq!(rig.unit.violations().len(), 2);
}

/// Xen's habit: GSTS with one more bit, so the status of a command repeats the command.
#[test]
fn a_status_bit_that_is_written_back_repeats_its_command() {
    let mut rig = Rig::with_queue(Config::default());
    rig.write64(0x20, ROOT);
    rig.command(SRTP);
    rig.submit([FLUSH_CONTEXTS, 0]);
    rig.submit([FLUSH_IOTLB, 0]);
    rig.rules_kept();
    let status = rig.read32(GSTS);
    rig.write32(GCMD, status | TE);
    assert_eq!(rig.read32(GSTS), status | TE);
    let rules: Vec<&str> = rig.unit.violations().iter().map(|one| one.rule).collect();
    assert!(rules[0].contains("one field at a time") && rules[1].contains("globally"), "{rules:?}");
    assert_eq!(rules.len(), 2);
}

#[test]
fn of_two_fields_the_one_whose_conditions_are_met_is_carried_out() {
    let mut rig = Rig::new(Config::default());
    rig.write32(GCMD, CFI | IRE);
    assert_eq!(rig.read32(GSTS), CFI, "there is no table");
    assert_eq!(rig.unit.violations().len(), 2);
}

#[test]
fn remapping_waits_for_its_table_and_for_the_queue() {
    let mut rig = Rig::new(Config::default());
    rig.command(IRE);
    assert_eq!(rig.read32(GSTS), 0);
    rig.write64(0xb8, TABLE | 7);
    rig.command(SIRTP);
    rig.command(IRE);
    assert_eq!(rig.read32(GSTS), SIRTP, "still no queue");
    rig.command(TE);
    assert_eq!(rig.read32(GSTS), SIRTP, "no root table");
    assert_eq!(rig.unit.violations().len(), 3);
}

#[test]
fn a_missing_global_flush_after_sirtp_is_noted() {
    let mut rig = Rig::with_queue(Config::default());
    rig.write64(0xb8, TABLE | 7);
    rig.command(SIRTP);
    rig.submit(iec(0, 15));
    rig.command(IRE);
    assert_eq!(rig.read32(GSTS) & IRE, IRE);
    assert_eq!(rig.unit.violations().len(), 1);
}

#[test]
fn the_iotlb_is_flushed_after_the_context_cache() {
    let mut rig = Rig::with_queue(Config::default());
    rig.translate([FLUSH_IOTLB, FLUSH_CONTEXTS]);
    assert_eq!(rig.unit.violations().len(), 1, "wrong order");

    let mut rig = Rig::with_queue(Config::default());
    rig.translate([FLUSH_CONTEXTS, FLUSH_IOTLB]);
    rig.rules_kept();
}

#[test]
fn a_misaligned_or_unreachable_table_is_not_latched() {
    let mut rig = Rig::new(Config::default());
    for irta in [0x8000 | 15, 1 << 46] {
        rig.write64(0xb8, irta);
        rig.command(SIRTP);
        assert_eq!(rig.read32(GSTS), 0);
    }
    rig.write64(0x20, ROOT | 1 << 10);
    rig.command(SRTP);
    assert_eq!(rig.read32(GSTS), 0, "scalable mode is not reported");
    rig.write64(0xb8, 0x10_0000 | 15);
    rig.command(SIRTP);
    assert_eq!(rig.read32(GSTS), SIRTP);
    assert_eq!(rig.unit.violations().len(), 3);
}

#[test]
fn eime_needs_the_capability() {
    let mut rig = Rig::new(Config { extended_interrupt_mode: false, ..Config::default() });
    rig.write64(0xb8, TABLE | 1 << 11);
    assert_eq!(rig.read64(0xb8), TABLE);
    assert_eq!(rig.unit.violations().len(), 1);
}

#[test]
fn a_hung_unit_completes_nothing() {
    let mut rig = Rig::with_queue(Config::default());
    rig.unit.hang(true);
    rig.write64(0xb8, TABLE | 7);
    rig.command(SIRTP);
    rig.submit(wait(7));
    rig.write64(0x28, 1 << 63 | 1 << 61);
    assert_eq!(rig.read32(GSTS), QIE);
    assert_eq!(rig.ram.u64(STATUS), 0);
    assert_eq!(rig.read64(0x28) >> 63, 1);
    rig.unit.hang(false);
    rig.write64(IQT, rig.tail);
    assert_eq!(rig.ram.u64(STATUS), 7);
}

#[test]
fn reset_forgets_registers_and_caches_and_keeps_counters() {
    let mut rig = Rig::remapping(Config::default(), true);
    rig.set_entry(1, entry(0x31, 0));
    assert_eq!(rig.vector(1), Some(0x31));
    assert!(rig.unit.caches_interrupt_entry(1));
    rig.unit.reset();
    assert_eq!(rig.read32(GSTS), 0);
    assert_eq!(rig.read64(0xb8), 0);
    assert_eq!(rig.read64(IQT), 0);
    assert_eq!(rig.read32(FECTL), 1 << 31);
    assert!(!rig.unit.caches_interrupt_entry(1));
    assert_eq!(rig.unit.stats().remapped, 1);
}

#[test]
fn register_based_invalidation_works_until_the_queue_is_on() {
    let mut rig = Rig::new(Config::default());
    let iotlb = (rig.read64(0x10) >> 8 & 0x3ff) * 16 + 8;
    rig.write64(0x28, 1 << 63 | 1 << 61);
    assert_eq!(rig.read64(0x28) >> 59, 0b00101, "ICC clear, CAIG global");
    rig.write32(iotlb + 4, 1 << 31 | 2 << 28 | 5);
    assert_eq!(rig.read64(iotlb) >> 57, 0b0010010, "IVT clear, IAIG domain");
    rig.rules_kept();
    assert_eq!(rig.unit.stats().context_flushes, 1);
    assert_eq!(rig.unit.stats().iotlb_flushes, 1);

    rig.write64(0x28, 1 << 63);
    assert_eq!(rig.read64(0x28) >> 59, 0, "granularity 0 does nothing");
    rig.write64(0x90, QUEUE);
    rig.command(QIE);
    rig.write64(0x28, 1 << 63 | 1 << 61);
    assert_eq!(rig.read64(0x28) >> 59 & 3, 0);
    assert_eq!(rig.unit.stats().context_flushes, 1);
    assert_eq!(rig.unit.violations().len(), 1);
}
