use super::*;
use proptest::prelude::*;

const DEV: Bdf = Bdf::new(0, 1, 0);

fn dsa() -> FunctionDescr {
    let bar = |size, gpa, is_64bit| Some(BarDescr { size, gpa: Gpa::new(gpa), is_64bit, prefetchable: is_64bit });
    let mut dvsec = vec![0xff; 16];
    dvsec[4..10].copy_from_slice(&[0x86, 0x80, 0, 0xff, 5, 0]);
    FunctionDescr {
        vendor: 0x8086,
        device: 0x0b25,
        revision: 3,
        class: 0x08_8000,
        subsystem_vendor: 0x8086,
        subsystem: 0x1234,
        bars: [bar(0x8_0000, 0xc000_0000, false), None, bar(0x2_0000, 0x1_c004_0000, true), None, None, None],
        msix: Some(MsixDescr { size: 64, table: (0, 0x4000), pba: (0, 0x5000) }),
        dvsec,
    }
}

fn bus() -> VirtualBus {
    let mut bus = VirtualBus::new();
    assert_eq!(bus.add(VirtualFunction::new(&dsa()).unwrap()), Ok(DEV));
    bus
}

#[test]
fn the_identity_is_that_of_the_physical_function() {
    let bus = bus();
    assert_eq!(bus.read(DEV, 0, 4), 0x0b25_8086);
    assert_eq!(bus.read(DEV, 8, 4), 0x0880_0003);
    assert_eq!(bus.read(DEV, 0x2c, 4), 0x1234_8086);
    assert_eq!((bus.read(DEV, 2, 2), bus.read(DEV, 0xb, 1), bus.read(DEV, 0xe, 1)), (0x0b25, 8, 0));
    assert_eq!(bus.read(Bdf::new(0, 0, 0), 0xa, 2), 0x0600, "host bridge");
}

#[test]
fn capabilities_are_found_by_walking_the_list() {
    let bus = bus();
    let (mut at, mut found) = (bus.read(DEV, 0x34, 1) as u16, Vec::new());
    while at != 0 {
        found.push(bus.read(DEV, at, 1));
        at = bus.read(DEV, at + 1, 1) as u16;
    }
    assert_eq!(found, [0x10, 0x11]);
    assert_eq!(bus.read(DEV, MSIX_CONTROL, 2), 63);
    assert_eq!((bus.read(DEV, MSIX + 4, 4), bus.read(DEV, MSIX + 8, 4)), (0x4000, 0x5000));
}

#[test]
fn feature_hidden_when_unaware_there_is_no_extended_capability_until_stores_are_revealed() {
    let mut bus = bus();
    for offset in (0x100..0x1000).step_by(4) {
        assert_eq!(bus.read(DEV, offset, 4), 0, "{offset:#x}");
    }
    bus.reveal_stores();
    assert_eq!(bus.read(DEV, 0x100, 4), 0x0001_0023, "the list ends with the DVSEC");
    assert_eq!(bus.read(DEV, 0x104, 4), 16 << 20 | 0x8086, "its length is the real one");
    assert_eq!(bus.read(DEV, 0x108, 2), 5);
}

#[test]
fn bars_tell_their_size_and_stay_where_they_are() {
    let mut bus = bus();
    for (offset, fixed, mask) in [
        (0x10, 0xc000_0000, 0xfff8_0000),
        (0x14, 0, 0),
        (0x18, 0xc004_000c, 0xfffe_000c),
        (0x1c, 1, 0xffff_ffff),
        (0x20, 0, 0),
        (0x30, 0, 0),
    ] {
        assert_eq!(bus.read(DEV, offset, 4), fixed);
        assert_eq!(bus.write(DEV, offset, 4, u32::MAX), Effect::None);
        assert_eq!(bus.read(DEV, offset, 4), mask, "size at {offset:#x}");
        assert_eq!(bus.write(DEV, offset, 4, fixed), Effect::None);
        assert_eq!(bus.read(DEV, offset, 4), fixed);
    }
}

#[test]
fn attack_23_a_moved_bar_is_reported_and_stays() {
    let mut bus = bus();
    assert_eq!(bus.write(DEV, 0x10, 4, 0xfee0_0000), Effect::BarMoved(0));
    assert_eq!(bus.write(DEV, 0x1c, 4, 2), Effect::BarMoved(3));
    assert_eq!(bus.write(DEV, 0x13, 1, 0xd0), Effect::BarMoved(0));
    assert_eq!((bus.read(DEV, 0x10, 4), bus.read(DEV, 0x1c, 4)), (0xc000_0000, 1));
}

#[test]
fn the_command_register_takes_its_bits_and_reports_changes() {
    let mut bus = bus();
    let command = |memory, bus_master| Effect::Command { memory, bus_master };
    assert_eq!(bus.write(DEV, 4, 2, 0xffff), command(true, true));
    assert_eq!(bus.read(DEV, 4, 4), 0x0010_0546, "no I/O decoding; status untouched");
    assert_eq!(bus.write(DEV, 4, 2, 0x0546), Effect::None, "no change");
    assert_eq!(bus.write(DEV, 4, 4, 0xffff_0002), command(true, false));
    assert_eq!(bus.write(DEV, 6, 2, 0xffff), Effect::None);
    assert_eq!(bus.write(DEV, 5, 1, 4), command(true, false));
    assert_eq!(bus.read(DEV, 4, 2), 0x402);
}

#[test]
fn msix_control_is_reported_for_words_bytes_and_dwords() {
    let mut bus = bus();
    let msix = |enable, function_mask| Effect::Msix { enable, function_mask };
    assert_eq!(bus.write(DEV, MSIX_CONTROL, 2, 0xc000), msix(true, true));
    assert_eq!(bus.read(DEV, MSIX_CONTROL, 2), 0xc03f, "the size stays");
    assert_eq!(bus.write(DEV, MSIX_CONTROL + 1, 1, 0x80), msix(true, false));
    assert_eq!(bus.write(DEV, MSIX, 4, 0x0000_ffff), msix(false, false));
    assert_eq!(bus.write(DEV, MSIX + 4, 4, 0), Effect::None);
    assert_eq!(bus.read(DEV, MSIX + 4, 4), 0x4000, "the table does not move");
}

#[test]
fn what_is_read_only_stays() {
    let mut bus = bus();
    let before = *bus.function(DEV).unwrap().config_page().bytes();
    for offset in [0, 8, 0x2c, 0x34, PCIE, PCIE + 4, MSIX + 8, 0x100, 0x104, 0x108, 0xffc] {
        assert_eq!(bus.write(DEV, offset, 4, 0xa5a5_a5a5), Effect::None);
    }
    assert_eq!(*bus.function(DEV).unwrap().config_page().bytes(), before);
}

#[test]
fn nothing_answers_at_other_places() {
    let mut bus = bus();
    for bdf in [Bdf::new(0, 1, 1), Bdf::new(0, 2, 0), Bdf::new(1, 1, 0), Bdf::new(255, 31, 7)] {
        assert_eq!((bus.read(bdf, 0, 4), bus.read(bdf, 0, 2), bus.read(bdf, 0, 1)), (u32::MAX, 0xffff, 0xff));
        assert_eq!(bus.write(bdf, 4, 2, 6), Effect::None);
    }
    assert_eq!(bus.read(DEV, 1, 2), 0xffff, "unaligned");
    assert_eq!(bus.read(DEV, 0x1000, 4), u32::MAX);
}

#[test]
fn mechanism_1_selects_by_its_address_register() {
    let mut bus = bus();
    assert_eq!(bus.io_read(4, 4), u32::MAX, "not enabled");
    assert_eq!(bus.io_write(0, 4, 0x8000_0800), None);
    assert_eq!(bus.io_read(0, 4), 0x8000_0800);
    assert_eq!((bus.io_read(4, 4), bus.io_read(6, 2), bus.io_read(7, 1)), (0x0b25_8086, 0x0b25, 0x0b));
    bus.io_write(0, 1, 0);
    assert_eq!(bus.io_read(0, 4), 0x8000_0800, "bytes do not reach the address");
    bus.io_write(0, 4, 0x8000_0804);
    let enabled = Effect::Command { memory: true, bus_master: false };
    assert_eq!(bus.io_write(4, 2, 2), Some((DEV, enabled)));
    assert_eq!(bus.io_read(7, 2), 0xffff, "beyond the register");
    assert_eq!(VirtualBus::ecam(0x8104), (DEV, 0x104));
}

#[test]
fn descriptions_that_make_no_function_are_refused() {
    let error = |change: fn(&mut FunctionDescr)| {
        let mut descr = dsa();
        change(&mut descr);
        VirtualFunction::new(&descr).err()
    };
    assert_eq!(error(|d| d.bars[0] = d.bars[0].map(|b| BarDescr { size: 0x3000, ..b })), Some(Error::Bar(0)));
    assert_eq!(error(|d| d.bars[0] = d.bars[0].map(|b| BarDescr { size: 0, ..b })), Some(Error::Bar(0)));
    assert_eq!(error(|d| d.bars[0] = d.bars[0].map(|b| BarDescr { gpa: Gpa::new(0x1000), ..b })), Some(Error::Bar(0)));
    assert_eq!(error(|d| d.bars[0] = d.bars[2].map(|b| BarDescr { is_64bit: false, ..b })), Some(Error::Bar(0)));
    assert_eq!(error(|d| d.bars[1] = d.bars[2]), Some(Error::Bar(1)), "its upper half is taken");
    assert_eq!(error(|d| d.bars[5] = d.bars[2]), Some(Error::Bar(5)));
    assert_eq!(error(|d| d.msix = d.msix.map(|m| MsixDescr { size: 0, ..m })), Some(Error::Msix));
    assert_eq!(error(|d| d.msix = d.msix.map(|m| MsixDescr { table: (1, 0), ..m })), Some(Error::Msix));
    assert_eq!(error(|d| d.msix = d.msix.map(|m| MsixDescr { table: (0, 0x7_fff8), ..m })), Some(Error::Msix));
    assert_eq!(error(|d| d.msix = d.msix.map(|m| MsixDescr { pba: (9, 0), ..m })), Some(Error::Msix));
    assert_eq!(error(|d| d.dvsec.truncate(8)), Some(Error::Dvsec));
    assert_eq!(error(|d| d.dvsec.resize(0xf04, 0)), Some(Error::Dvsec));
    let mut bus = VirtualBus::new();
    for _ in 1..DEVICES {
        bus.add(VirtualFunction::new(&FunctionDescr::default()).unwrap()).unwrap();
    }
    assert_eq!(bus.add(VirtualFunction::new(&dsa()).unwrap()), Err(Error::BusFull));
}

#[test]
fn every_function_offers_to_be_reset_by_itself() {
    let bus = bus();
    assert_eq!(bus.read(DEV, PCIE + 4, 4), 0x1000_8000);
    let mut plain = VirtualBus::new();
    plain.add(VirtualFunction::new(&FunctionDescr::default()).unwrap()).unwrap();
    assert_eq!(plain.read(DEV, PCIE + 4, 4) >> 28 & 1, 1);
    assert_eq!(plain.write(DEV, PCIE + 8, 2, 0x8000), Effect::Reset);
}

#[test]
fn a_function_level_reset_leaves_configuration_as_at_first_but_for_the_payload() {
    let mut bus = bus();
    bus.reveal_stores();
    let first = *bus.function(DEV).unwrap().config_page().bytes();
    for (offset, width, value) in [
        (4, 2, 0xffff),
        (0x0c, 1, 0x10),
        (0x3c, 1, 0x0b),
        (0x10, 4, u32::MAX),
        (0x1c, 4, u32::MAX),
        (MSIX_CONTROL, 2, 0xc000),
        (DEVICE_CONTROL, 2, 0x7fff),
    ] {
        bus.write(DEV, offset, width, value);
    }
    assert_eq!(bus.read(DEV, DEVICE_CONTROL, 2), 0x7fff);
    assert_eq!(bus.write(DEV, DEVICE_CONTROL + 1, 1, 0xff), Effect::Reset);
    assert_eq!(bus.read(DEV, DEVICE_CONTROL, 2), 0xe0, "the largest payload stays, and the bit that resets reads as 0");
    bus.write(DEV, DEVICE_CONTROL, 2, 0);
    assert_eq!(*bus.function(DEV).unwrap().config_page().bytes(), first);
}

#[test]
fn only_a_one_in_the_resets_own_bit_resets() {
    let mut bus = bus();
    for (offset, width, value) in [
        (DEVICE_CONTROL, 1, 0x80),
        (DEVICE_CONTROL, 2, 0x7fff),
        (DEVICE_CONTROL + 1, 1, 0x7f),
        (DEVICE_CONTROL + 2, 2, 0x8000),
        (DEVICE_CONTROL, 4, 0x8000_7fff),
        (PCIE + 4, 4, u32::MAX),
        (PCIE + 0x10, 4, u32::MAX),
    ] {
        assert_eq!(bus.write(DEV, offset, width, value), Effect::None, "{offset:#x}");
    }
    assert_eq!(bus.write(DEV, DEVICE_CONTROL, 4, 0x8000), Effect::Reset);
    assert_eq!(bus.write(Bdf::new(0, 0, 0), DEVICE_CONTROL, 2, 0x8000), Effect::None, "the host bridge has none");
}

proptest! {
    #[test]
    fn identity_and_bars_survive_every_write(
        writes in proptest::collection::vec((any::<u16>(), prop_oneof![Just(1_u8), Just(2), Just(4), any::<u8>()], any::<u32>()), 0..200)
    ) {
        let mut bus = bus();
        for (offset, width, value) in writes {
            bus.write(DEV, offset & 0x11f, width, value);
            bus.io_write(offset & 7, width, value);
            bus.io_read(offset & 7, width);
        }
        prop_assert_eq!(bus.read(DEV, 0, 4), 0x0b25_8086);
        prop_assert_eq!(bus.read(DEV, MSIX + 4, 4), 0x4000);
        bus.write(DEV, 0x10, 4, 0);
        prop_assert_eq!(bus.read(DEV, 0x10, 4), 0xc000_0000);
    }
}
