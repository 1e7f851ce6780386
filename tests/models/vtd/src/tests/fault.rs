//! Fault recording and the fault event.

use super::*;

/// A unit that remaps interrupts into an empty table, so that each interrupt faults, with its fault event on.
fn faulting(config: Config) -> Rig {
    let mut rig = Rig::remapping(config, true);
    rig.write32(0x3c, 0x4f);
    rig.write32(0x40, 0xfee0_2000);
    rig.write32(0x44, 0x100);
    rig.write32(FECTL, 0);
    rig
}

const EVENT: Option<(u64, u32)> = Some((0x100_fee0_2000, 0x4f));

#[test]
fn a_fault_is_recorded_and_announced() {
    let mut rig = faulting(Config::default());
    assert_eq!(rig.reason(7), Some(0x22));
    assert_eq!(rig.record(0), [7 << 48, 1 << 63 | 0x22 << 32 | 0xf0]);
    assert_eq!(rig.read32(FSTS), 0b10);
    assert_eq!(rig.unit.take_fault_event(), EVENT);
    rig.rules_kept();
}

#[test]
fn further_faults_fill_further_records_without_an_event() {
    let mut rig = faulting(Config::default());
    for index in 0..3 {
        rig.reason(index);
    }
    assert_eq!(rig.unit.take_fault_event(), EVENT);
    assert_eq!(rig.unit.take_fault_event(), None);
    for index in 0..3 {
        assert_eq!(rig.record(index)[0], index << 48);
    }
    rig.clear_record(0);
    assert_eq!(rig.read32(FSTS), 0b10, "others are pending");
    rig.clear_record(1);
    rig.clear_record(2);
    assert_eq!(rig.read32(FSTS), 0);
    rig.reason(9);
    assert_eq!(rig.read32(FSTS), 3 << 8 | 0b10, "FRI follows");
    assert_eq!(rig.unit.take_fault_event(), EVENT);
}

#[test]
fn records_are_used_in_a_ring_and_overflow_loses_faults() {
    let mut rig = faulting(Config { fault_records: 2, ..Config::default() });
    for index in 0..4 {
        rig.reason(index);
    }
    assert_eq!(rig.read32(FSTS), 0b11, "PFO and PPF");
    assert_eq!(rig.unit.stats().faults_recorded, 2);
    assert_eq!(rig.unit.stats().faults_lost, 2);
    rig.clear_record(0);
    rig.reason(5);
    assert_eq!(rig.record(0)[1] >> 63, 0, "nothing is recorded while PFO is set");
    rig.write32(FSTS, 1);
    rig.reason(6);
    assert_eq!(rig.record(0)[0], 6 << 48);
    assert_eq!(rig.record(1)[0], 1 << 48, "only F can be cleared");
}

#[test]
fn only_f_of_a_record_can_be_written() {
    let mut rig = faulting(Config::default());
    rig.reason(7);
    let before = rig.record(0);
    let base = (rig.read64(0x08) >> 24 & 0x3ff) * 16;
    rig.write64(base, u64::MAX);
    rig.write32(base + 8, u32::MAX);
    rig.write32(base + 12, u32::MAX >> 1);
    assert_eq!(rig.record(0), before);
    rig.write64(base + 8, 1 << 63);
    assert_eq!(rig.record(0), [before[0], before[1] & !(1 << 63)]);
}

#[test]
fn compression_keeps_one_pending_record_a_requester() {
    let mut rig = faulting(Config { fault_compression: true, ..Config::default() });
    rig.reason(1);
    rig.reason(2);
    rig.interrupt_from(0x0100, 3);
    assert_eq!(rig.unit.stats().faults_recorded, 2);
    assert_eq!(rig.record(1)[1] as u16, 0x0100);
    rig.clear_record(0);
    rig.reason(4);
    assert_eq!(rig.record(2)[0], 4 << 48);
}

#[test]
fn a_masked_event_waits_and_is_withdrawn_when_serviced() {
    let mut rig = faulting(Config::default());
    rig.write32(FECTL, 1 << 31);
    rig.reason(1);
    assert_eq!(rig.read32(FECTL), 0b11 << 30);
    rig.write32(FECTL, 0);
    assert_eq!(rig.unit.take_fault_event(), EVENT);
    rig.clear_record(0);
    rig.write32(FECTL, 1 << 31);
    rig.reason(2);
    rig.clear_record(1);
    rig.write32(FECTL, 0);
    assert_eq!(rig.unit.take_fault_event(), None);
}

#[test]
fn a_queue_error_is_a_fault_event_unless_one_is_pending() {
    let mut rig = faulting(Config::default());
    rig.submit([15, 0]);
    assert_eq!(rig.unit.take_fault_event(), EVENT);
    rig.reason(1);
    assert_eq!(rig.unit.take_fault_event(), None);
    assert_eq!(rig.read32(FSTS), 0b1_0010);
}

#[test]
fn an_event_to_plain_memory_is_noted() {
    let mut rig = Rig::remapping(Config::default(), true);
    rig.write32(FECTL, 0);
    rig.reason(1);
    assert_eq!(rig.unit.violations().len(), 1);
}
