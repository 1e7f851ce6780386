use crate::spec::{flag, opcode};
use crate::testing::{Build, Machine};
use crate::{Config, Dsa};

const PASID: u32 = 9;
const RECORD: u64 = 0x3_0000;
const SOURCE: u64 = 0x1_0800;
const DESTINATION: u64 = 0x2_0800;

/// A device with ATS and PRI on; work queue 0 has the PASID, and its descriptors may wait.
fn ready() -> (Dsa, Machine) {
    let (mut dsa, mut machine) = (Dsa::new(Config { page_requests: true, ..Config::default() }), Machine::default());
    dsa.config_write(4, 2, 6, &mut machine);
    for (offset, len, value) in [(0x126, 2, 1), (0x146, 2, 1 << 15), (0x15c, 4, 32), (0x154, 2, 1)] {
        dsa.config_write(offset, len, value, &mut machine);
    }
    machine.configure(&mut dsa);
    dsa.bar0_write(0x2008, 4, (1 << 28 | PASID << 8 | 1 << 4 | 0b11).into(), &mut machine);
    assert_eq!(machine.command(&mut dsa, 1, 0), 0);
    assert_eq!(machine.command(&mut dsa, 6, 0), 0);
    (dsa, machine)
}

/// A move of two pages, which waits for them.
fn copy() -> Build {
    let flags = flag::BOF | flag::CRAV | flag::RCR;
    Build {
        opcode: opcode::MEMMOVE,
        flags,
        completion: RECORD,
        source: SOURCE,
        destination: DESTINATION,
        size: 0x1000,
        ..Build::default()
    }
}

fn submit(dsa: &mut Dsa, machine: &mut Machine, build: Build) {
    dsa.portal_write(0, &build.bytes());
    dsa.work(machine);
}

fn status(machine: &Machine) -> (u8, u64) {
    let record = machine.get(RECORD, 16);
    (record[0], record[8..].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

#[test]
fn a_descriptor_waits_for_each_page_and_then_does_all_of_it_once() {
    let (mut dsa, mut machine) = ready();
    machine.put(SOURCE, &[7; 0x1000]);
    for page in [0x1_1000, 0x2_0000, RECORD] {
        machine.refuse_page(page);
    }
    submit(&mut dsa, &mut machine, copy());
    for (group, (address, write)) in (0..).zip([(0x1_1000, false), (DESTINATION, true), (RECORD, true)]) {
        assert_eq!(machine.take_asked(), [(PASID, address, write, group)]);
        assert!(!dsa.waiting(), "there is nothing to do");
        machine.bring_page(address);
        dsa.page_response(PASID, group, 0);
        assert!(dsa.waiting());
        dsa.work(&mut machine);
    }
    assert_eq!((status(&machine), machine.get(DESTINATION, 0x1000)), ((1, 0), vec![7; 0x1000]));
    let stats = dsa.stats();
    assert_eq!((stats.page_requests, stats.page_responses, stats.descriptors, stats.faults), (3, 3, 1, 0));
}

#[test]
fn one_that_may_not_wait_ends_in_a_page_fault() {
    let (mut dsa, mut machine) = ready();
    machine.refuse_page(0x2_1000);
    submit(&mut dsa, &mut machine, Build { flags: flag::CRAV | flag::RCR, ..copy() });
    assert_eq!((status(&machine), machine.take_asked()), ((0x83, 0x2_1000), vec![]));
}

#[test]
fn a_page_that_does_not_come_ends_the_descriptor() {
    for code in [1, 15] {
        let (mut dsa, mut machine) = ready();
        machine.refuse_page(0x2_1000);
        submit(&mut dsa, &mut machine, copy());
        dsa.page_response(PASID, 0, code);
        dsa.work(&mut machine);
        assert_eq!(status(&machine), (0x84, 0x2_1000));
        assert_eq!(dsa.config_read(0x156, 2) & 3, u32::from(code == 15), "a response failure");
    }
}

#[test]
fn answers_without_a_page_end_as_well() {
    let (mut dsa, mut machine) = ready();
    machine.refuse_page(0x2_1000);
    submit(&mut dsa, &mut machine, copy());
    let mut asked = 0;
    while let [(_, _, _, group)] = machine.take_asked()[..] {
        asked += 1;
        dsa.page_response(PASID, group, 0);
        dsa.work(&mut machine);
    }
    assert_eq!((asked, status(&machine)), (64, (0x83, 0x2_1000)));
}

#[test]
fn a_response_that_nobody_waits_for_is_noted() {
    let (mut dsa, mut machine) = ready();
    dsa.page_response(PASID, 3, 0);
    assert_eq!(dsa.config_read(0x156, 2) & 3, 2);
    dsa.config_write(0x156, 2, 2, &mut machine);
    assert_eq!(dsa.config_read(0x156, 2), 1 << 15);
}

#[test]
fn a_drain_waits_for_the_page_and_an_abort_does_not() {
    let (mut dsa, mut machine) = ready();
    machine.refuse_page(0x2_1000);
    submit(&mut dsa, &mut machine, copy());
    assert_eq!(machine.command(&mut dsa, 7, 1), 1 << 31, "disable work queue 0: under way");
    assert!(!dsa.work(&mut machine), "the engine rests");
    machine.bring_page(0x2_1000);
    dsa.page_response(PASID, 0, 0);
    dsa.work(&mut machine);
    dsa.work(&mut machine);
    assert_eq!((dsa.bar0_read(0xa8, 4), status(&machine).0), (0, 1));
    let (mut dsa, mut machine) = ready();
    machine.refuse_page(0x2_1000);
    submit(&mut dsa, &mut machine, copy());
    assert_eq!(machine.command(&mut dsa, 9, 1), 0, "abort work queue 0");
    dsa.page_response(PASID, 0, 0);
    assert!(!dsa.waiting());
    assert_eq!(status(&machine).0, 0);
}

#[test]
fn a_waiting_descriptor_keeps_its_engine() {
    let (mut dsa, mut machine) = ready();
    machine.refuse_page(0x2_1000);
    submit(&mut dsa, &mut machine, copy());
    submit(&mut dsa, &mut machine, Build { destination: 0x4_0000, ..copy() });
    assert_eq!((status(&machine).0, dsa.waiting()), (0, false), "the only one of the group");
    dsa.page_response(PASID, 0, 1);
    while dsa.work(&mut machine) {}
    assert_eq!((dsa.stats().descriptors, status(&machine).0), (2, 1));
}

#[test]
fn a_batch_waits_for_its_list_and_for_pages_of_those_that_may() {
    let (mut dsa, mut machine) = ready();
    let list = 0x5_0fc0;
    machine.put(list, &copy().bytes());
    machine.put(list + 64, &Build { flags: 0, completion: 0, destination: 0x6_0000, ..copy() }.bytes());
    for page in [0x5_1000, 0x2_1000, 0x6_0000] {
        machine.refuse_page(page);
    }
    let flags = flag::BOF | flag::CRAV | flag::RCR;
    let batch = Build { opcode: opcode::BATCH, flags, completion: 0x7_0000, source: list, size: 2, ..Build::default() };
    submit(&mut dsa, &mut machine, batch);
    for (group, address) in [(0, 0x5_1000), (1, 0x2_1000)] {
        assert_eq!(machine.take_asked(), [(PASID, address, address != 0x5_1000, group)]);
        machine.bring_page(address);
        dsa.page_response(PASID, group, 0);
        dsa.work(&mut machine);
    }
    assert_eq!((status(&machine).0, machine.get(0x7_0000, 1)[0]), (1, 5), "the other one fails");
}

#[test]
fn without_the_capabilities_nothing_waits() {
    let mut dsa = Dsa::new(Config::default());
    assert_eq!((dsa.config_read(0x120, 4) >> 20, dsa.config_read(0x140, 4)), (0, 0));
    let (with, machine) = (ready(), &mut Machine::default());
    assert_eq!([0x120, 0x140].map(|at| with.0.config_read(at, 4)), [0x1401_001b, 0x1501_000f]);
    assert_eq!((with.0.bar0_read(0x10, 1) & 1, with.0.config_read(0x64, 4)), (1, 1 << 21));
    dsa.config_write(4, 2, 6, machine);
    machine.configure(&mut dsa);
    assert_eq!(dsa.bar0_read(0x10, 1) & 1, 0);
    machine.command(&mut dsa, 1, 0);
    dsa.bar0_write(0x2008, 4, 1 << 4 | 0b11, machine);
    assert_eq!(machine.command(&mut dsa, 6, 0), 0x25, "block on fault is refused");
}
