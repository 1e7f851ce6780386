//! Descriptors from the portal to record and interrupt.

use crate::PortalWrite;
use crate::spec::{command, command_error, flag, opcode, register, status};
use crate::testing::{Build, Machine, device, made, nop};
use crate::{Config, Dsa, Stats};

const RECORD: u64 = 0x3_0000;
/// Work queue 0's portals.
const MSIX_PORTAL: u64 = 0;
const IMS_PORTAL: u64 = 0x2000;
/// Control of the PASID capability.
const PASID_CONTROL: u16 = 0x126;

fn ready() -> (Dsa, Machine) {
    let (mut dsa, mut machine) = device();
    machine.ready(&mut dsa);
    (dsa, machine)
}

fn with_record(build: Build) -> Build {
    Build { flags: build.flags | flag::CRAV | flag::RCR, completion: RECORD, ..build }
}

fn with_interrupt(build: Build, handle: u16) -> Build {
    Build { flags: build.flags | flag::RCI, handle, ..build }
}

fn run(dsa: &mut Dsa, machine: &mut Machine, portal: u64, build: &Build) {
    assert_eq!(dsa.portal_write(portal, &build.bytes()), PortalWrite::Queued);
    while dsa.work(machine) {}
}

#[test]
fn a_nop_writes_its_record_and_then_its_message() {
    let (mut dsa, mut machine) = ready();
    machine.ims(&mut dsa, 4095, 0xfee0_1000, 0x77);
    run(&mut dsa, &mut machine, IMS_PORTAL, &with_interrupt(with_record(nop()), 4095));
    assert_eq!(machine.get(RECORD, 1), [status::SUCCESS]);
    assert_eq!(machine.messages(), [(0xfee0_1000, 0x77)]);
    assert_eq!(machine.last_write(), 0xfee0_1000, "the message comes last");
    assert_eq!(dsa.stats(), Stats { descriptors: 1, messages: 1, ..Stats::default() });
}

#[test]
fn a_device_that_halts_takes_nothing_but_a_reset_and_halts_once() {
    let (mut dsa, mut machine) = made(Config { halts_after: 2, ..Config::default() });
    machine.ready(&mut dsa);
    machine.msix(&mut dsa, 0, 0xfee0_2000, 0x33);
    dsa.bar0_write(register::GENCTRL, 4, 2, &mut machine);
    (0..2).for_each(|_| run(&mut dsa, &mut machine, IMS_PORTAL, &with_record(nop())));
    assert_eq!(dsa.portal_write(IMS_PORTAL, &nop().bytes()), PortalWrite::Queued);
    while dsa.work(&mut machine) {}
    assert_eq!((dsa.bar0_read(register::GENSTS, 4), dsa.bar0_read(register::INTCAUSE, 4)), (3, 1 << 4));
    assert_eq!((dsa.stats().descriptors, machine.messages()), (2, vec![(0xfee0_2000, 0x33)]));
    assert_eq!(dsa.portal_write(IMS_PORTAL, &nop().bytes()), PortalWrite::Dropped);
    assert_eq!(machine.command(&mut dsa, command::ENABLE_DEVICE, 0), u64::from(command_error::HW_ERR));
    assert_eq!(machine.command(&mut dsa, command::RESET_DEVICE, 0), 0);
    assert_eq!(dsa.bar0_read(register::GENSTS, 4), 0);
    machine.configure(&mut dsa);
    machine.enable_device(&mut dsa);
    assert_eq!(dsa.bar0_read(register::GENSTS, 4), 1);
}

#[test]
fn nothing_happens_before_work() {
    let (mut dsa, mut machine) = ready();
    dsa.portal_write(IMS_PORTAL, &with_record(nop()).bytes());
    assert_eq!(machine.get(RECORD, 1), [0]);
    assert!(!dsa.work(&mut machine));
    assert_eq!(machine.get(RECORD, 1), [1]);
}

#[test]
fn the_portal_decides_which_table_the_handle_names() {
    let (mut dsa, mut machine) = ready();
    machine.ims(&mut dsa, 5, 0xfee0_0000, 0x50);
    machine.msix(&mut dsa, 5, 0xfee0_0000, 0x60);
    run(&mut dsa, &mut machine, MSIX_PORTAL, &with_interrupt(nop(), 5));
    run(&mut dsa, &mut machine, IMS_PORTAL, &with_interrupt(nop(), 5));
    assert_eq!(machine.messages(), [(0xfee0_0000, 0x60), (0xfee0_0000, 0x50)]);
}

#[test]
fn a_masked_slot_sends_once_when_unmasked() {
    let (mut dsa, mut machine) = ready();
    machine.ims(&mut dsa, 1, 0xfee0_0000, 0x50);
    dsa.bar0_write(0x4_001c, 4, 1, &mut machine);
    run(&mut dsa, &mut machine, IMS_PORTAL, &with_interrupt(nop(), 1));
    run(&mut dsa, &mut machine, IMS_PORTAL, &with_interrupt(nop(), 1));
    assert_eq!(machine.messages(), []);
    assert_eq!(dsa.bar0_read(0x4_001c, 4), 3);
    dsa.bar0_write(0x4_0018, 4, 0x51, &mut machine);
    dsa.bar0_write(0x4_001c, 4, 0, &mut machine);
    assert_eq!(machine.messages(), [(0xfee0_0000, 0x51)], "the message is that of the unmask");
    assert_eq!((dsa.stats().pending, dsa.stats().messages), (2, 1));
}

#[test]
fn msix_waits_for_the_function_mask_and_is_silent_when_disabled() {
    let (mut dsa, mut machine) = ready();
    machine.msix(&mut dsa, 2, 0xfee0_0000, 0x60);
    dsa.config_write(0x82, 2, 0xc000, &mut machine);
    run(&mut dsa, &mut machine, MSIX_PORTAL, &with_interrupt(nop(), 2));
    assert_eq!((machine.messages(), dsa.bar0_read(0x5000, 8)), (vec![], 4));
    dsa.config_write(0x82, 2, 0x8000, &mut machine);
    assert_eq!((machine.messages(), dsa.bar0_read(0x5000, 8)), (vec![(0xfee0_0000, 0x60)], 0));
    dsa.config_write(0x82, 2, 0, &mut machine);
    run(&mut dsa, &mut machine, MSIX_PORTAL, &with_interrupt(nop(), 2));
    dsa.config_write(0x82, 2, 0x8000, &mut machine);
    assert_eq!(machine.messages().len(), 1);
}

#[test]
fn handles_beyond_the_table_complete_with_0x19_and_no_message() {
    let (mut dsa, mut machine) = ready();
    machine.ims(&mut dsa, 0, 0xfee0_0000, 0x50);
    for (portal, handle) in [(IMS_PORTAL, 4096), (IMS_PORTAL, 0xffff), (MSIX_PORTAL, 64)] {
        run(&mut dsa, &mut machine, portal, &with_interrupt(with_record(nop()), handle));
        assert_eq!(machine.get(RECORD, 1), [0x19]);
        machine.put(RECORD, &[0]);
    }
    assert_eq!(machine.messages(), []);
}

#[test]
fn a_slot_bound_to_a_pasid_refuses_other_pasids() {
    let (mut dsa, mut machine) = ready();
    machine.ims(&mut dsa, 3, 0xfee0_0000, 0x50);
    dsa.bar0_write(0x4_003c, 4, 0x0000_9008, &mut machine);
    run(&mut dsa, &mut machine, IMS_PORTAL, &with_interrupt(with_record(nop()), 3));
    assert_eq!(machine.get(RECORD, 1), [0x19]);
    machine.command(&mut dsa, 7, 1);
    dsa.config_write(0x126, 2, 1, &mut machine);
    dsa.bar0_write(0x2008, 4, 1 | 1 << 4 | 9 << 8 | 1 << 28, &mut machine);
    machine.command(&mut dsa, 6, 0);
    run(&mut dsa, &mut machine, IMS_PORTAL, &with_interrupt(with_record(nop()), 3));
    assert_eq!((machine.get(RECORD, 1), machine.messages().len()), (vec![1], 1));
    dsa.bar0_write(0x3000, 4, 0x0000_8008, &mut machine);
    machine.msix(&mut dsa, 0, 0xfee0_0000, 0x60);
    run(&mut dsa, &mut machine, MSIX_PORTAL, &with_interrupt(with_record(nop()), 0));
    assert_eq!(machine.get(RECORD, 1), [0x19]);
}

#[test]
fn operations_work_from_end_to_end() {
    let (mut dsa, mut machine) = ready();
    machine.put(0x1_0000, b"123456789");
    let copy = Build { opcode: opcode::MEMMOVE, source: 0x1_0000, destination: 0x2_0000, size: 9, ..Build::default() };
    run(&mut dsa, &mut machine, IMS_PORTAL, &with_record(copy));
    assert_eq!(machine.get(0x2_0000, 9), b"123456789");
    let crc = Build { opcode: opcode::CRCGEN, source: 0x2_0000, size: 9, ..Build::default() };
    run(&mut dsa, &mut machine, IMS_PORTAL, &with_record(crc));
    assert_eq!(machine.get(RECORD + 16, 8), 0xe306_9283u64.to_le_bytes());
    let same = Build { opcode: opcode::COMPARE, source: 0x1_0000, destination: 0x2_0000, size: 9, ..Build::default() };
    run(&mut dsa, &mut machine, IMS_PORTAL, &with_record(same));
    assert_eq!(machine.get(RECORD, 8), [1, 0, 0, 0, 9, 0, 0, 0]);
    let fill = Build {
        opcode: opcode::MEMFILL,
        source: 0x4141_4141_4141_4141,
        destination: 0x2_0000,
        size: 9,
        ..Build::default()
    };
    run(&mut dsa, &mut machine, IMS_PORTAL, &with_record(fill));
    assert_eq!(machine.get(0x2_0000, 10), b"AAAAAAAAA\0");
    assert_eq!(dsa.stats().bytes, 36);
}

#[test]
fn errors_go_to_the_record_even_if_none_was_asked_for() {
    let (mut dsa, mut machine) = ready();
    let bad = Build { opcode: 9, flags: flag::CRAV, completion: RECORD, ..Build::default() };
    run(&mut dsa, &mut machine, IMS_PORTAL, &bad);
    assert_eq!(machine.get(RECORD, 1), [status::BAD_OPCODE]);
    let flags = Build { flags: flag::CRAV | flag::BOF, completion: RECORD, ..Build::default() };
    run(&mut dsa, &mut machine, IMS_PORTAL, &flags);
    assert_eq!((machine.get(RECORD, 1), machine.get(RECORD + 16, 3)), (vec![0x11], vec![2, 0, 0]));
    assert_eq!(dsa.bar0_read(0xc0, 8), 0);
    let quiet = Build { flags: flag::CRAV, completion: RECORD + 0x100, ..Build::default() };
    run(&mut dsa, &mut machine, IMS_PORTAL, &quiet);
    assert_eq!(machine.get(RECORD + 0x100, 1), [0], "success without RCR writes nothing");
}

#[test]
fn errors_without_a_record_go_to_swerr_with_an_interrupt_if_enabled() {
    let (mut dsa, mut machine) = ready();
    machine.msix(&mut dsa, 0, 0xfee0_0000, 0x60);
    run(&mut dsa, &mut machine, IMS_PORTAL, &Build { opcode: 9, ..Build::default() });
    assert_eq!(dsa.bar0_read(0xc0, 8), 0x9_0000_100d);
    assert_eq!((dsa.bar0_read(0x98, 4), machine.messages()), (1, vec![]));
    dsa.bar0_write(0xc0, 4, 3, &mut machine);
    dsa.bar0_write(0x88, 4, 1, &mut machine);
    let misaligned = Build { flags: flag::CRAV | flag::RCR, completion: RECORD + 16, ..Build::default() };
    run(&mut dsa, &mut machine, IMS_PORTAL, &misaligned);
    assert_eq!(dsa.bar0_read(0xc0, 4), 0x1b0d);
    assert_eq!(machine.messages(), [(0xfee0_0000, 0x60)]);
    run(&mut dsa, &mut machine, IMS_PORTAL, &misaligned);
    assert_eq!(dsa.bar0_read(0xc0, 4), 0x1b0f, "overflow");
}

#[test]
fn a_record_that_cannot_be_written_goes_to_swerr() {
    let (mut dsa, mut machine) = ready();
    machine.refuse_page(RECORD);
    run(&mut dsa, &mut machine, IMS_PORTAL, &with_record(nop()));
    assert_eq!((dsa.bar0_read(0xc0, 4), dsa.bar0_read(0xd0, 8)), (0x1a2d, RECORD));
}

#[test]
fn a_dma_fault_is_a_page_fault_completion() {
    let (mut dsa, mut machine) = ready();
    machine.refuse_page(0x1_0000);
    let copy = Build { opcode: opcode::MEMMOVE, source: 0x1_0010, destination: 0x2_0000, size: 64, ..Build::default() };
    run(&mut dsa, &mut machine, IMS_PORTAL, &with_record(copy));
    assert_eq!(machine.get(RECORD, 16), [3, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 1, 0, 0, 0, 0, 0]);
    assert_eq!(dsa.stats().faults, 1);
}

#[test]
fn transfers_beyond_the_queues_limit_are_refused() {
    let (mut dsa, mut machine) = ready();
    let fill = Build { opcode: opcode::MEMFILL, destination: 0x2_0000, size: 0x1_0001, ..Build::default() };
    run(&mut dsa, &mut machine, IMS_PORTAL, &with_record(fill));
    assert_eq!(machine.get(RECORD, 1), [status::XFER_ERANGE]);
}

#[test]
fn a_batch_runs_its_list_and_stops_at_a_fence_after_a_failure() {
    let (mut dsa, mut machine) = ready();
    let list = 0x4_0000;
    machine.put(list, &nop().bytes());
    machine.put(list + 64, &with_record(nop()).bytes());
    let record = RECORD + 32;
    let batch = Build {
        opcode: opcode::BATCH,
        source: list,
        size: 2,
        flags: flag::CRAV | flag::RCR,
        completion: record,
        ..Build::default()
    };
    run(&mut dsa, &mut machine, IMS_PORTAL, &batch);
    assert_eq!((machine.get(RECORD, 1), machine.get(record, 8)), (vec![1], vec![1, 0, 0, 0, 2, 0, 0, 0]));
    assert_eq!(dsa.stats().descriptors, 3);
    machine.put(list, &Build { opcode: 9, ..Build::default() }.bytes());
    machine.put(list + 64, &Build { flags: flag::FENCE, ..nop() }.bytes());
    run(&mut dsa, &mut machine, IMS_PORTAL, &batch);
    assert_eq!(machine.get(record, 8), [status::BATCH_FAIL, 0, 0, 0, 1, 0, 0, 0]);
    machine.refuse_page(list);
    run(&mut dsa, &mut machine, IMS_PORTAL, &batch);
    assert_eq!(machine.get(record, 1), [status::BATCH_PAGE_FAULT]);
}

#[test]
fn without_bus_master_nothing_leaves_the_device() {
    let (mut dsa, mut machine) = ready();
    machine.ims(&mut dsa, 0, 0xfee0_0000, 0x50);
    dsa.config_write(4, 2, 2, &mut machine);
    run(&mut dsa, &mut machine, IMS_PORTAL, &with_interrupt(with_record(nop()), 0));
    assert_eq!((machine.messages(), machine.get(RECORD, 1)), (vec![], vec![0]));
    assert_eq!((dsa.stats().messages, dsa.bar0_read(0xc0, 4)), (0, 0x1a2d));
}

#[test]
fn a_disabled_queue_or_device_takes_nothing() {
    let (mut dsa, mut machine) = device();
    assert_eq!(dsa.portal_write(0, &nop().bytes()), PortalWrite::Dropped);
    machine.ready(&mut dsa);
    assert_eq!(dsa.portal_write(0x4000, &nop().bytes()), PortalWrite::Dropped);
    assert_eq!(dsa.stats().refused, 2);
}

#[test]
fn queues_of_a_group_are_served_in_turn() {
    let (mut dsa, mut machine) = device();
    machine.configure(&mut dsa);
    dsa.bar0_write(0x2040, 8, 2 << 32 | 16, &mut machine);
    dsa.bar0_write(0x2048, 8, 1 | 1 << 4, &mut machine);
    dsa.bar0_write(0x1000, 4, 3, &mut machine);
    machine.command(&mut dsa, 1, 0);
    machine.command(&mut dsa, 6, 0);
    machine.command(&mut dsa, 6, 1);
    for _ in 0..8 {
        dsa.portal_write(0x0000, &nop().bytes());
        dsa.portal_write(0x4000, &nop().bytes());
    }
    for _ in 0..8 {
        dsa.work(&mut machine);
    }
    let left = |dsa: &Dsa, queue: u64| dsa.bar0_read(0x2018 + queue * 64, 4) & 0xffff;
    assert!(left(&dsa, 1) < 8 && left(&dsa, 0) < 8);
    assert_eq!(left(&dsa, 0) + left(&dsa, 1), 8);
}

#[test]
fn any_descriptor_is_survived() {
    let (mut dsa, mut machine) = ready();
    let mut state = 1u64;
    for _ in 0..20_000 {
        let mut bytes = [0; 64];
        for byte in &mut bytes {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *byte = (state >> 56) as u8 & (state >> 40) as u8;
        }
        bytes[7] %= 6;
        bytes[34..36].fill(0);
        dsa.portal_write(IMS_PORTAL, &bytes);
        dsa.work(&mut machine);
    }
    assert_eq!(dsa.stats().descriptors, 20_000);
}

#[test]
fn what_a_queue_with_pasids_does_has_its_pasid_and_messages_have_none() {
    let (mut dsa, mut machine) = device();
    dsa.config_write(PASID_CONTROL, 2, 1, &mut machine);
    machine.enable_device(&mut dsa);
    dsa.bar0_write(0x2008, 4, 1 << 28 | 0x155 << 8 | 1 << 4 | 1, &mut machine);
    assert_eq!(machine.command(&mut dsa, 6, 0), 0);
    machine.ims(&mut dsa, 3, 0xfee0_1000, 0x77);
    machine.take_pasids();
    let copy = Build { opcode: opcode::MEMMOVE, source: 0x1_0000, destination: 0x2_0000, size: 64, ..nop() };
    run(&mut dsa, &mut machine, IMS_PORTAL, &with_record(copy));
    assert_eq!(machine.get(RECORD, 1), [status::SUCCESS]);
    assert_eq!(machine.take_pasids(), [[Some(0x155)].into(), [Some(0x155)].into()]);
    run(&mut dsa, &mut machine, IMS_PORTAL, &with_interrupt(nop(), 3));
    assert_eq!(machine.take_pasids(), [[].into(), [None].into()]);
    dsa.config_write(PASID_CONTROL, 2, 0, &mut machine);
    run(&mut dsa, &mut machine, IMS_PORTAL, &with_record(copy));
    assert_eq!(machine.take_pasids(), [[].into(), [].into()], "the function may not send requests with PASIDs");
}
