//! Interrupt remapping, posting, and the interrupt entry cache.

use super::*;
use crate::Compatibility;

#[test]
fn an_entry_gives_the_interrupt_its_properties() {
    let mut rig = Rig::remapping(Config::default(), true);
    let mut words = entry(0x55, 0x1234_5678);
    words[0] |= 1 << 2 | 1 << 3 | 1 << 4 | 4 << 5 | 0xf << 8;
    rig.set_entry(9, words);
    let expected = Remapped {
        vector: 0x55,
        dest: 0x1234_5678,
        dest_mode_logical: true,
        redirection_hint: true,
        delivery_mode: 4,
        trigger_level: true,
        index: 9,
    };
    assert_eq!(rig.interrupt(9), InterruptResult::Remapped(expected));
    rig.rules_kept();
    assert_eq!(rig.unit.stats().remapped, 1);
}

#[test]
fn remapping_off_passes_messages_as_they_are() {
    let mut rig = Rig::new(Config::default());
    let outcome = rig.unit.interrupt_request(SID, 0xfee0_500c, 0xc141, &mut rig.ram);
    let expected = Compatibility {
        vector: 0x41,
        dest: 5,
        dest_mode_logical: true,
        redirection_hint: true,
        delivery_mode: 1,
        trigger_level: true,
        asserted: true,
    };
    assert_eq!(outcome, InterruptResult::Compatibility(expected));
}

/// Attack 1: a compatibility-format message.
#[test]
fn compatibility_format_needs_cfi_and_xapic_mode() {
    for (eime, cfi, passes) in [(false, true, true), (false, false, false), (true, true, false), (true, false, false)] {
        let mut rig = Rig::remapping(Config::default(), eime);
        if cfi {
            rig.command(CFI);
        }
        let outcome = rig.unit.interrupt_request(SID, 0xfee0_0000, 0x41, &mut rig.ram);
        assert_eq!(matches!(outcome, InterruptResult::Compatibility(_)), passes);
        assert_eq!(blocked(outcome).is_none(), passes);
        let record = rig.record(0)[1];
        let fault = 1 << 63 | 0x25 << 32 | u64::from(SID);
        assert_eq!(record, if passes { 0 } else { fault });
    }
}

#[test]
fn what_is_no_dword_write_to_the_range_is_refused() {
    let mut rig = Rig::remapping(Config::default(), true);
    rig.set_entry(0, entry(0x30, 0));
    for address in [0xfee0_0011, 0xfef0_0010, 0x1_fee0_0010] {
        let outcome = rig.unit.interrupt_request(SID, address, 0, &mut rig.ram);
        assert_eq!(outcome, InterruptResult::Blocked { reason: None });
    }
    assert_eq!(rig.unit.stats().interrupt_faults, 0);
}

#[test]
fn the_index_is_handle_plus_valid_subhandle() {
    let mut rig = Rig::with_queue(Config::default());
    rig.write64(0xb8, 0x10_0000 | 1 << 11 | 15);
    rig.command(SIRTP);
    rig.submit([4, 0]);
    rig.command(IRE);
    for index in [0, 5, 0x7fff, 0x8000, 0xffff] {
        let at = 0x10_0000 + 16 * u64::from(index);
        rig.ram.set_u64(at, entry(index as u8, 0)[0]);
        rig.ram.set_u64(at + 8, entry(0, 0)[1]);
        assert_eq!(rig.vector(index), Some(index as u8), "handle {index:#x}");
        let all_subhandle = rig.unit.interrupt_request(SID, 0xfee0_0018, index, &mut rig.ram);
        assert!(matches!(all_subhandle, InterruptResult::Remapped(r) if r.index == index));
    }
    // Handle 0xffff plus subhandle 1 lies beyond every table: no wrap to 0.
    let (address, _) = message(0xffff);
    let beyond = rig.unit.interrupt_request(SID, address | 1 << 3, 1, &mut rig.ram);
    assert_eq!(blocked(beyond), Some(0x21));
}

#[test]
fn reserved_bits_of_the_request_are_fault_20() {
    let mut rig = Rig::remapping(Config::default(), true);
    rig.set_entry(0, entry(0x30, 0));
    for (address, data) in [(0xfee0_0018, 1 << 16), (0xfee0_0010, 1)] {
        let outcome = rig.unit.interrupt_request(SID, address, data, &mut rig.ram);
        assert_eq!(blocked(outcome), Some(0x20));
    }
}

#[test]
fn an_index_beyond_the_table_is_fault_21() {
    let mut rig = Rig::remapping(Config::default(), true);
    rig.set_entry(255, entry(0x30, 0));
    rig.set_entry(256, entry(0x31, 0));
    assert_eq!(rig.vector(255), Some(0x30));
    assert_eq!(rig.reason(256), Some(0x21));
    assert_eq!(rig.record(0), [256 << 48, 1 << 63 | 0x21 << 32 | 0xf0]);
}

#[test]
fn an_absent_entry_is_fault_22_and_is_not_cached() {
    let mut rig = Rig::remapping(Config::default(), true);
    assert_eq!(rig.reason(4), Some(0x22));
    assert!(!rig.unit.caches_interrupt_entry(4));
    rig.set_entry(4, entry(0x34, 0));
    assert_eq!(rig.vector(4), Some(0x34), "no flush needed for a new entry");
}

#[test]
fn an_unreadable_table_is_fault_23() {
    let mut rig = Rig::with_queue(Config::default());
    rig.write64(0xb8, LIMIT | 7);
    rig.command(SIRTP);
    rig.submit([4, 0]);
    rig.command(IRE);
    assert_eq!(rig.reason(0), Some(0x23));
}

/// The bits of an entry that are not reserved, for each format, in extended interrupt mode.
const REMAPPED_BITS: [u64; 2] = [0xffff_ffff_00ff_8fff, 0xf_ffff];
const POSTED_BITS: [u64; 2] = [0xffff_ffc0_00ff_cf03, 0xffff_ffff_000f_ffff];

#[test]
fn every_reserved_bit_of_an_entry_is_fault_24_and_is_not_cached() {
    for (good, allowed) in [(entry(0x30, 0), REMAPPED_BITS), (posted(0x30), POSTED_BITS)] {
        let mut rig = Rig::remapping(Config::default(), true);
        for bit in (0..128).filter(|bit| allowed[bit / 64] >> (bit % 64) & 1 == 0) {
            let mut words = good;
            words[bit / 64] |= 1 << (bit % 64);
            rig.set_entry(1, words);
            assert_eq!(rig.reason(1), Some(0x24), "bit {bit}");
        }
        rig.set_entry(1, good);
        assert_eq!(blocked(rig.interrupt(1)), None);
    }
}

#[test]
fn reserved_codes_of_an_entry_are_fault_24() {
    let mut rig = Rig::remapping(Config::default(), true);
    for wrong in [3 << 5, 6 << 5] {
        let mut words = entry(0x30, 0);
        words[0] |= wrong;
        rig.set_entry(1, words);
        assert_eq!(rig.reason(1), Some(0x24), "delivery mode");
    }
    let mut words = entry(0x30, 0);
    words[1] |= 3 << 18;
    rig.set_entry(1, words);
    assert_eq!(rig.reason(1), Some(0x24), "SVT 3");
    let mut words = posted(0x30);
    words[1] |= 1 << 63;
    rig.set_entry(1, words);
    assert_eq!(rig.reason(1), Some(0x24), "beyond the host address width");
}

#[test]
fn an_xapic_destination_is_bits_15_to_8() {
    let mut rig = Rig::remapping(Config::default(), false);
    rig.set_entry(1, entry(0x30, 0x0700));
    assert!(matches!(rig.interrupt(1), InterruptResult::Remapped(r) if r.dest == 7));
    for wrong in [1, 1 << 7, 1 << 16, 1 << 31] {
        rig.set_entry(2, entry(0x30, wrong));
        assert_eq!(rig.reason(2), Some(0x24), "destination {wrong:#x}");
    }
}

/// Attack 5: another requester uses the handle.
#[test]
fn source_validation_checks_what_svt_and_sq_say() {
    let cases: [(u64, u16, &[u16], &[u16]); 6] = [
        (0 << 2, 0x1234, &[0, 0x1234, 0xffff], &[]),
        (1 << 2, 0x1234, &[0x1234], &[0x1230, 0x1235, 0x0234]),
        (1 << 2 | 1, 0x1234, &[0x1234, 0x1230], &[0x1235, 0x1236]),
        (1 << 2 | 2, 0x1234, &[0x1230, 0x1232, 0x1236], &[0x1235]),
        (1 << 2 | 3, 0x1234, &[0x1230, 0x1237], &[0x1238, 0x1334]),
        (2 << 2, 0x1214, &[0x1200, 0x14ff], &[0x11ff, 0x1500]),
    ];
    for (check, sid, good, bad) in cases {
        let mut rig = Rig::remapping(Config::default(), true);
        rig.set_entry(1, [entry(0x30, 0)[0], u64::from(sid) | check << 16]);
        for source_id in good {
            assert_eq!(blocked(rig.interrupt_from(*source_id, 1)), None);
        }
        for source_id in bad {
            assert_eq!(blocked(rig.interrupt_from(*source_id, 1)), Some(0x26));
        }
    }
}

/// Attack 8: a stale entry stays in the cache.
#[test]
fn a_changed_entry_takes_effect_only_after_its_flush() {
    let mut rig = Rig::remapping(Config::default(), true);
    rig.set_entry(8, entry(0x38, 0));
    assert_eq!(rig.vector(8), Some(0x38));
    rig.set_entry(8, entry(0x39, 0));
    assert_eq!(rig.vector(8), Some(0x38), "stale");
    rig.submit(iec(9, 0));
    assert_eq!(rig.vector(8), Some(0x38), "another index was flushed");
    rig.submit(iec(8, 0));
    assert_eq!(rig.vector(8), Some(0x39));
    rig.set_entry(8, [0, 0]);
    assert_eq!(rig.vector(8), Some(0x39), "freed and still alive");
    rig.submit([4, 0]);
    assert_eq!(rig.reason(8), Some(0x22));
    rig.rules_kept();
}

#[test]
fn an_index_mask_flushes_an_aligned_group() {
    let mut rig = Rig::remapping(Config::default(), true);
    for index in 0..16 {
        rig.set_entry(index, entry(0x30, 0));
        assert_eq!(rig.vector(index as u32), Some(0x30));
    }
    rig.submit(iec(6, 2));
    for index in 0..16 {
        let kept = !(4..8).contains(&index);
        assert_eq!(rig.unit.caches_interrupt_entry(index), kept);
    }
}

#[test]
fn sirtp_flushes_only_where_it_says_so() {
    for flush_on_sirtp in [false, true] {
        let mut rig = Rig::remapping(Config { flush_on_sirtp, ..Config::default() }, true);
        rig.set_entry(1, entry(0x31, 0));
        assert_eq!(rig.vector(1), Some(0x31));
        rig.command(SIRTP);
        assert_eq!(rig.unit.caches_interrupt_entry(1), !flush_on_sirtp);
    }
}

#[test]
fn fpd_suppresses_qualified_faults_only() {
    let mut rig = Rig::remapping(Config::default(), true);
    rig.set_entry(1, [1 << 1, 0]);
    assert_eq!(rig.reason(1), Some(0x22));
    let mut words = entry(0x30, 0);
    words[0] |= 1 << 1;
    rig.set_entry(2, words);
    assert_eq!(blocked(rig.interrupt_from(1, 2)), Some(0x26));
    words[0] |= 1 << 24;
    rig.set_entry(3, words);
    assert_eq!(rig.reason(3), Some(0x24));
    let mut words = posted(0x30);
    words[0] |= 1 << 1;
    rig.set_entry(4, words);
    rig.ram.set_u64(PID + 32, 1 << 2);
    assert_eq!(rig.reason(4), Some(0x28));
    assert_eq!(rig.unit.stats().faults_recorded, 0);
    assert_eq!(rig.unit.stats().interrupt_faults, 4);
    assert_eq!(rig.reason(256), Some(0x21));
    assert_eq!(rig.unit.stats().faults_recorded, 1);
}

#[test]
fn posting_sets_the_request_and_notifies_once() {
    let mut rig = Rig::remapping(Config::default(), true);
    rig.set_entry(1, posted(0x85));
    rig.set_entry(2, posted(0xff));
    rig.ram.set_u64(PID + 32, 0xf2 << 16 | 0x1234_5678 << 32);
    let notify = Some((0xf2, 0x1234_5678));
    assert_eq!(rig.interrupt(1), InterruptResult::Posted { notify });
    assert_eq!(rig.ram.u64(PID + 16), 1 << 5);
    assert_eq!(rig.ram.u64(PID + 32) & 3, 1, "ON");
    assert_eq!(rig.interrupt(2), InterruptResult::Posted { notify: None });
    assert_eq!(rig.ram.u64(PID + 24), 1 << 63);
    assert_eq!((rig.unit.stats().posted, rig.unit.stats().posted_merged), (2, 0));
    assert_eq!(rig.unit.stats().notifications, 1);
    rig.rules_kept();
}

#[test]
fn a_vector_that_is_posted_again_before_it_was_taken_has_merged() {
    let mut rig = Rig::remapping(Config::default(), true);
    rig.set_entry(1, posted(0x85));
    rig.interrupt(1);
    rig.interrupt(1);
    assert_eq!((rig.unit.stats().posted, rig.unit.stats().posted_merged), (2, 1));
    rig.ram.set_u64(PID + 16, 0);
    rig.interrupt(1);
    assert_eq!((rig.unit.stats().posted, rig.unit.stats().posted_merged), (3, 1));
}

#[test]
fn suppressed_notification_waits_unless_urgent() {
    let mut rig = Rig::remapping(Config::default(), true);
    rig.set_entry(1, posted(0x40));
    rig.ram.set_u64(PID + 32, 2);
    assert_eq!(rig.interrupt(1), InterruptResult::Posted { notify: None });
    assert_eq!(rig.ram.u64(PID + 8), 1);
    assert_eq!(rig.ram.u64(PID + 32), 2, "ON stays clear");
    let mut urgent = posted(0x41);
    urgent[0] |= 1 << 14;
    rig.set_entry(2, urgent);
    let notify = Some((0, 0));
    assert_eq!(rig.interrupt(2), InterruptResult::Posted { notify });
    assert_eq!(rig.ram.u64(PID + 32), 3);
}

#[test]
fn the_posted_descriptor_is_never_cached() {
    let mut rig = Rig::remapping(Config::default(), true);
    rig.set_entry(1, posted(0x40));
    rig.interrupt(1);
    rig.ram.set_u64(PID + 8, 0);
    rig.ram.set_u64(PID + 32, 0x33 << 16);
    let notify = Some((0x33, 0));
    assert_eq!(rig.interrupt(1), InterruptResult::Posted { notify });
}

#[test]
fn an_unreachable_descriptor_is_fault_27() {
    let mut rig = Rig::remapping(Config::default(), true);
    let mut words = posted(0x40);
    words[0] = words[0] & 0xffff_ffff | LIMIT >> 6 << 38;
    rig.set_entry(1, words);
    assert_eq!(rig.reason(1), Some(0x27));
}

#[test]
fn reserved_bits_of_the_descriptor_are_fault_28() {
    let reserved = (258..272).chain(280..288).chain(320..512);
    for bit in reserved {
        let mut rig = Rig::remapping(Config::default(), true);
        rig.set_entry(1, posted(0x40));
        rig.ram.set_u64(PID + bit / 64 * 8, 1 << (bit % 64));
        assert_eq!(rig.reason(1), Some(0x28), "bit {bit}");
        assert_eq!(rig.ram.u64(PID + 8), 0, "nothing is posted");
    }
}

#[test]
fn an_xapic_notification_destination_is_bits_15_to_8() {
    let mut rig = Rig::remapping(Config::default(), false);
    rig.set_entry(1, posted(0x40));
    rig.ram.set_u64(PID + 32, 0x0900 << 32);
    let notify = Some((0, 9));
    assert_eq!(rig.interrupt(1), InterruptResult::Posted { notify });
    rig.ram.set_u64(PID + 32, 9 << 32);
    assert_eq!(rig.reason(1), Some(0x28));
}

#[test]
fn posted_format_needs_the_capability() {
    let mut rig = Rig::remapping(Config { posted_interrupts: false, ..Config::default() }, true);
    rig.set_entry(1, posted(0x40));
    assert_eq!(rig.reason(1), Some(0x24));
}
