//! Page requests: their queue, its event, responses; requests for translations.

use super::first_stage::{CONTEXT, PASID, config, slot, submit, translating};
use super::*;
use crate::{PageRequest, PageResponse, Requester};

const PQH: u64 = 0xc0;
const PQT: u64 = 0xc8;
const PQA: u64 = 0xd0;
const PRS: u64 = 0xdc;
const PECTL: u64 = 0xe0;
const REQUESTS: u64 = 0x7_0000;
const REQUESTER: Requester = Requester { source_id: SID, pasid: Some(PASID) };
/// DTE and PRE of a context entry.
const DTE: u64 = 1 << 2;
const PRE: u64 = 1 << 4;

fn sva() -> Config {
    Config { device_tlb: true, page_requests: true, ..config() }
}

/// A unit with a queue of one page (128 places) and an event, and a function that may ask.
fn asking() -> Rig {
    let mut rig = translating(sva());
    allow(&mut rig, DTE | PRE);
    rig.write64(PQH, 0);
    rig.write64(PQT, 0);
    rig.write64(PQA, REQUESTS);
    for (at, value) in [(4, 0x41), (8, 0xfee0_1000), (0, 0)] {
        rig.write32(PECTL + at, value);
    }
    rig
}

/// Sets bits of the context entry, and has the unit look again.
fn allow(rig: &mut Rig, bits: u64) {
    let entry = rig.ram.u64(CONTEXT);
    rig.ram.set_u64(CONTEXT, entry & !(DTE | PRE) | bits);
    submit(rig, [1 | 1 << 4, 0]);
}

fn ask(rig: &mut Rig, group: u16) {
    rig.unit.page_request(PageRequest { requester: REQUESTER, address: 0x6123, write: true, group }, &mut rig.ram);
}

fn translation(rig: &mut Rig, address: u64, access: Access) -> Result<bool, DmaFault> {
    rig.unit.translation_request(REQUESTER, address, access, &mut rig.ram)
}

/// Software's response: for the test's function and PASID.
fn response(group: u64, code: u64) -> [u64; 2] {
    [9 | 1 << 4 | code << 12 | u64::from(SID) << 16 | u64::from(PASID) << 32, group << 3]
}

#[test]
fn the_capabilities_say_so() {
    let bits = |config: Config| [2, 29, 42].map(|bit| Rig::new(config.clone()).read64(0x10) >> bit & 1);
    assert_eq!(bits(sva()), [1, 1, 1]);
    assert_eq!(bits(Config { device_tlb: false, ..sva() }), [0; 3], "only with device-TLBs");
    assert_eq!(bits(Config { scalable_mode: false, ..sva() }), [1, 0, 0], "only in scalable mode");
}

#[test]
fn a_missing_page_is_no_fault_for_a_translation_request() {
    let mut rig = asking();
    assert_eq!(translation(&mut rig, 0x5000, Access::Write), Ok(true));
    assert_eq!(translation(&mut rig, 0x6000, Access::Read), Ok(false));
    let entry = rig.ram.u64(slot(1, 0x5000));
    rig.ram.set_u64(slot(1, 0x5000), entry & !(1 << 1));
    submit(&mut rig, [6 | 2 << 4 | 0x21 << 16 | u64::from(PASID) << 32, 0]);
    assert_eq!(translation(&mut rig, 0x5000, Access::Write), Ok(false), "nor a missing right");
    assert_eq!(rig.read32(FSTS), 0);
    let stats = rig.unit.stats();
    assert_eq!((stats.translations_granted, stats.translations_denied, stats.dma_faults), (1, 2, 0));
    allow(&mut rig, PRE);
    assert_eq!(translation(&mut rig, 0x5000, Access::Read), Err(DmaFault::Blocked(0x44)), "without DTE");
    assert_eq!(rig.record(0)[1] >> 32 & 0xff, 0x44);
    rig.rules_kept();
}

#[test]
fn a_request_goes_into_the_queue_and_software_is_told_once() {
    let mut rig = asking();
    ask(&mut rig, 0x155);
    ask(&mut rig, 0x156);
    let words = [0, 8, 16, 24].map(|at| rig.ram.u64(REQUESTS + at));
    let rights = 0b111;
    let expected = [1 | 1 << 8 | u64::from(SID) << 16 | u64::from(PASID) << 32, 0x6000 | 0x155 << 3 | rights, 0, 0];
    assert_eq!(words, expected);
    assert_eq!((rig.read64(PQH), rig.read64(PQT), rig.read32(PRS)), (0, 64, 1));
    assert_eq!(rig.unit.take_fault_event(), Some((0xfee0_1000, 0x41)));
    assert_eq!(rig.unit.take_fault_event(), None, "PPR was set already");
    rig.write32(PRS, 1);
    rig.write64(PQH, 64);
    ask(&mut rig, 0x157);
    assert_eq!(rig.unit.take_fault_event(), Some((0xfee0_1000, 0x41)));
    assert_eq!(rig.unit.take_page_response(), None);
    rig.rules_kept();
}

#[test]
fn a_response_finds_its_request() {
    let mut rig = asking();
    ask(&mut rig, 7);
    submit(&mut rig, response(7, 0));
    assert_eq!(rig.unit.take_page_response(), Some(PageResponse { requester: REQUESTER, group: 7, code: 0 }));
    rig.rules_kept();
    submit(&mut rig, response(7, 0));
    assert_eq!(rig.unit.violations().len(), 1, "answered twice");
    let mut rig = asking();
    ask(&mut rig, 7);
    submit(&mut rig, response(8, 1));
    assert_eq!(rig.unit.violations().len(), 1, "another group's");
    for words in [response(7, 2), [response(7, 0)[0] | 1 << 5, 7 << 3], [response(7, 0)[0], 7 << 3 | 1 << 12]] {
        let mut rig = asking();
        submit(&mut rig, words);
        assert!(rig.queue_error(), "{words:x?}");
    }
}

#[test]
fn a_full_queue_loses_requests_and_answers_them_at_once() {
    let mut rig = asking();
    (0..127).for_each(|group| ask(&mut rig, group));
    assert_eq!((rig.read64(PQT), rig.read32(PRS)), (127 * 32, 1));
    ask(&mut rig, 127);
    assert_eq!((rig.read64(PQT), rig.read32(PRS)), (127 * 32, 3), "one place stays free");
    assert_eq!(rig.unit.take_page_response(), Some(PageResponse { requester: REQUESTER, group: 127, code: 0 }));
    rig.write64(PQH, 127 * 32);
    ask(&mut rig, 128);
    assert_eq!(rig.read64(PQT), 127 * 32, "until software has cleared PRO");
    rig.write32(PRS, 3);
    ask(&mut rig, 129);
    assert_eq!((rig.read64(PQT), rig.read32(PRS)), (0, 1));
    assert_eq!((rig.unit.stats().page_requests, rig.unit.stats().page_requests_lost), (128, 2));
    rig.rules_kept();
}

#[test]
fn who_may_not_ask_is_told_so() {
    for (bits, reason) in [(DTE, 0x47), (DTE | PRE, 0)] {
        let mut rig = asking();
        allow(&mut rig, bits);
        ask(&mut rig, 1);
        let refused = rig.unit.take_page_response().map(|response| response.code);
        assert_eq!(refused, (reason != 0).then_some(1));
        assert_eq!(rig.record(0)[1] >> 32 & 0xff, reason);
    }
}

#[test]
fn the_queues_registers_have_their_rules() {
    for (offset, value) in [(PQA, REQUESTS | 1 << 4), (PQH, 1), (PQH, 64), (PQT, 64)] {
        let mut rig = asking();
        rig.write64(offset, value);
        assert!(!rig.unit.violations().is_empty(), "{offset:x} {value:x}");
    }
    let mut rig = translating(config());
    rig.write64(PQA, REQUESTS);
    assert_eq!((rig.read64(PQA), rig.unit.violations().len()), (0, 1), "there is none");
    allow(&mut rig, PRE);
    assert_eq!(rig.dma(0x5000, Access::Read), Err(DmaFault::Blocked(0x42)), "PRE is reserved then");
    let mut rig = asking();
    submit(&mut rig, [8 | u64::from(SID) << 16 | u64::from(PASID) << 32, 0x5000 | 1 << 11]);
    submit(&mut rig, [wait(3)[0] | 1 << 7, STATUS]);
    assert_eq!((rig.ram.u64(STATUS), rig.unit.stats().device_tlb_flushes), (3, 1), "a drain");
    rig.rules_kept();
}
