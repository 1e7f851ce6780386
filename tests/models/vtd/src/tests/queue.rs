//! The invalidation queue.

use super::*;

const ICS: u64 = 0x9c;
const IECTL: u64 = 0xa0;

fn error_code(rig: &mut Rig) -> u64 {
    rig.read64(0xb0) & 0xf
}

#[test]
fn a_wait_writes_its_status_and_moves_the_head() {
    let mut rig = Rig::with_queue(Config::default());
    rig.submit(wait(0xabcd_1234));
    assert_eq!(rig.ram.u64(STATUS), 0xabcd_1234);
    assert_eq!(rig.read64(0x80), 16);
    assert_eq!(rig.unit.stats().waits, 1);
    rig.rules_kept();
}

#[test]
fn nothing_runs_while_the_queue_is_off() {
    let mut rig = Rig::new(Config::default());
    rig.write64(0x90, QUEUE);
    rig.submit(wait(1));
    assert_eq!(rig.ram.u64(STATUS), 0);
    rig.command(QIE);
    assert_eq!(rig.read32(GSTS), 0, "IQT is not zero");
}

#[test]
fn the_queue_wraps_and_can_be_longer_than_a_page() {
    let mut rig = Rig::with_queue(Config::default());
    for round in 1..=600 {
        rig.submit(wait(round));
        assert_eq!(rig.ram.u64(STATUS), u64::from(round));
    }
    assert_eq!(rig.read64(0x80), 600 % 256 * 16);

    let mut rig = Rig::new(Config::default());
    rig.write64(0x90, QUEUE | 1);
    rig.command(QIE);
    rig.ram.set_u64(QUEUE + 4096, wait(9)[0]);
    rig.ram.set_u64(QUEUE + 4104, STATUS);
    for at in (0..4096).step_by(16) {
        rig.ram.set_u64(QUEUE + at, 4);
    }
    rig.write64(IQT, 4096 + 16);
    assert_eq!(rig.ram.u64(STATUS), 9);
    assert_eq!(rig.unit.stats().iec_flushes, 256);
}

#[test]
fn a_bad_tail_is_a_queue_error() {
    for tail in [4096, 8] {
        let mut rig = Rig::with_queue(Config::default());
        rig.write64(IQT, tail);
        assert!(rig.queue_error());
        assert_eq!(error_code(&mut rig), 1);
        assert_eq!(rig.read64(0x80), 0);
    }
}

#[test]
fn a_queue_outside_memory_is_a_queue_error() {
    let mut rig = Rig::new(Config::default());
    rig.write64(0x90, LIMIT);
    rig.command(QIE);
    rig.write64(IQT, 16);
    assert!(rig.queue_error());
    assert_eq!(error_code(&mut rig), 2);
}

#[test]
fn wide_descriptors_are_a_queue_error() {
    let mut rig = Rig::new(Config::default());
    rig.write64(0x90, QUEUE | 1 << 11);
    rig.command(QIE);
    rig.submit(wait(1));
    assert_eq!(error_code(&mut rig), 5);
}

#[test]
fn unknown_types_are_a_queue_error() {
    for kind in [0, 3, 6, 7, 8, 9, 15, 5 | 1 << 9] {
        let mut rig = Rig::with_queue(Config::default());
        rig.submit([kind, 0]);
        assert!(rig.queue_error(), "type {kind:#x}");
        assert_eq!(error_code(&mut rig), 3);
    }
    let mut rig = Rig::with_queue(Config { interrupt_remapping: false, ..Config::default() });
    rig.submit([4, 0]);
    assert_eq!(error_code(&mut rig), 3);
}

/// Each descriptor with its non-reserved bits: word 0, word 1.
const DESCRIPTORS: [([u64; 2], [u64; 2]); 4] = [
    ([1 | 1 << 4, 0], [0x0003_ffff_ffff_0e3f, 0]),
    ([2 | 1 << 4, 0], [0x0000_0000_ffff_0eff, 0xffff_ffff_ffff_f07f]),
    ([4, 0], [0x0000_ffff_f800_0e1f, 0]),
    ([5, STATUS], [0xffff_ffff_0000_0e7f, 0xffff_ffff_ffff_fffc]),
];

#[test]
fn every_reserved_bit_is_a_queue_error() {
    for (good, allowed) in DESCRIPTORS {
        let mut rig = Rig::with_queue(Config::default());
        rig.submit(good);
        assert!(!rig.queue_error());
        for bit in (0..128).filter(|bit| allowed[bit / 64] >> (bit % 64) & 1 == 0) {
            let mut words = good;
            words[bit / 64] |= 1 << (bit % 64);
            let mut rig = Rig::with_queue(Config::default());
            rig.submit(words);
            assert!(rig.queue_error(), "type {}, bit {bit}", good[0] & 15);
            assert_eq!(error_code(&mut rig), 4);
        }
    }
}

#[test]
fn granularity_zero_and_masks_too_large_are_a_queue_error() {
    let narrow = Config { max_address_mask: 9, max_handle_mask: 3, domain_id_bits: 8, ..Config::default() };
    for words in [[1, 0], [2, 0], [2 | 3 << 4, 10], iec(0, 4), [1 | 2 << 4 | 1 << 24, 0]] {
        let mut rig = Rig::with_queue(narrow.clone());
        rig.submit(words);
        assert_eq!(error_code(&mut rig), 4, "{words:x?}");
    }
    let mut rig = Rig::with_queue(narrow);
    rig.submit([2 | 3 << 4, 9]);
    rig.submit(iec(0, 3));
    assert!(!rig.queue_error());
}

#[test]
fn an_error_halts_the_queue_until_software_clears_it() {
    let mut rig = Rig::with_queue(Config::default());
    rig.enqueue(wait(1));
    rig.enqueue([15, 0]);
    rig.submit(wait(2));
    assert_eq!(rig.ram.u64(STATUS), 1);
    assert_eq!(rig.read64(0x80), 16, "the head stays at the wrong one");
    rig.submit(wait(3));
    assert_eq!(rig.ram.u64(STATUS), 1, "halted");
    rig.ram.set_u64(QUEUE + 16, 4);
    rig.write32(FSTS, 1 << 4);
    assert!(!rig.queue_error());
    assert_eq!(error_code(&mut rig), 0);
    assert_eq!(rig.ram.u64(STATUS), 3);
}

#[test]
fn clearing_without_mending_sets_the_error_again() {
    let mut rig = Rig::with_queue(Config::default());
    rig.submit([15, 0]);
    rig.write32(FSTS, 1 << 4);
    assert!(rig.queue_error());
    assert_eq!(rig.unit.stats().queue_errors, 2);
}

#[test]
fn a_completion_interrupt_is_sent_once_until_serviced() {
    let mut rig = Rig::with_queue(Config::default());
    rig.write32(0xa4, 0x41);
    rig.write32(0xa8, 0xfee0_1000);
    rig.write32(IECTL, 0);
    rig.submit([5 | 1 << 4, 0]);
    rig.submit([5 | 1 << 4, 0]);
    assert_eq!(rig.unit.take_fault_event(), Some((0xfee0_1000, 0x41)));
    assert_eq!(rig.unit.take_fault_event(), None);
    rig.write32(ICS, 1);
    rig.submit([5 | 1 << 4, 0]);
    assert_eq!(rig.unit.take_fault_event(), Some((0xfee0_1000, 0x41)));
    assert_eq!(rig.read32(ICS), 1);
}

#[test]
fn a_masked_completion_interrupt_waits_for_the_mask() {
    let mut rig = Rig::with_queue(Config::default());
    rig.write32(0xa8, 0xfee0_0000);
    rig.submit([5 | 1 << 4, 0]);
    assert_eq!(rig.read32(IECTL), 0b11 << 30);
    assert_eq!(rig.unit.take_fault_event(), None);
    rig.write32(IECTL, 0);
    assert_eq!(rig.unit.take_fault_event(), Some((0xfee0_0000, 0)));
    rig.write32(IECTL, 1 << 31);
    rig.write32(ICS, 1);
    rig.submit([5 | 1 << 4, 0]);
    rig.write32(ICS, 1);
    assert_eq!(rig.read32(IECTL), 1 << 31, "serviced while masked");
    rig.write32(IECTL, 0);
    assert_eq!(rig.unit.take_fault_event(), None);
}

#[test]
fn a_lost_device_tlb_answer_aborts_the_wait() {
    let mut rig = Rig::with_queue(Config { device_tlb: true, ..Config::default() });
    let flush = [3 | u64::from(SID) << 32, 0];
    rig.enqueue(flush);
    rig.submit(wait(1));
    assert_eq!(rig.ram.u64(STATUS), 1);
    rig.unit.lose_device_tlb_answers(true);
    rig.enqueue(flush);
    rig.enqueue(wait(2));
    rig.submit(wait(3));
    assert_eq!(rig.read32(FSTS) & 1 << 6, 1 << 6);
    assert_eq!(rig.ram.u64(STATUS), 1, "aborted, and the queue halts");
    rig.unit.lose_device_tlb_answers(false);
    rig.write32(FSTS, 1 << 6);
    assert_eq!(rig.ram.u64(STATUS), 3);
    assert_eq!(rig.unit.stats().waits, 2);
}

#[test]
fn the_queue_goes_off_only_when_empty() {
    let mut rig = Rig::with_queue(Config::default());
    rig.submit([15, 0]);
    rig.command_off(QIE);
    assert_eq!(rig.read32(GSTS), QIE);
    rig.ram.set_u64(QUEUE, 4);
    rig.write32(FSTS, 1 << 4);
    rig.command_off(QIE);
    assert_eq!(rig.read32(GSTS), 0);
    assert_eq!(rig.read64(0x80), 0);
}

#[test]
fn iqa_is_fixed_while_the_queue_is_on() {
    let mut rig = Rig::with_queue(Config::default());
    rig.write64(0x90, 0);
    assert_eq!(rig.read64(0x90), QUEUE);
    assert_eq!(rig.unit.violations().len(), 1);
}

#[test]
fn a_status_write_outside_memory_is_noted() {
    let mut rig = Rig::with_queue(Config::default());
    rig.submit([5 | 1 << 5, LIMIT]);
    assert_eq!(rig.unit.violations().len(), 1);
}
