//! Trapped writes.

use super::{machine::Op, *};

#[test]
fn a_driver_programs_a_slot_and_its_interrupt_arrives() {
    let bench = Bench::new();
    bench.program(9, ADDRESS | 5 << 12, 0x41).unwrap();
    assert_eq!(bench.fire(9), Some(target(5, 0x41)));
    assert_eq!(bench.seen(9), [ADDRESS | 5 << 12, 0, 0x41, 0], "the guest sees its own values");
    assert_ne!(bench.machine().slot(&bench.spec(StoreName::Ims), 9)[0], ADDRESS | 5 << 12, "the device does not");
}

#[test]
fn a_slot_takes_what_one_instruction_gives_it_in_one_step() {
    let bench = Bench::new();
    let message: u128 = u128::from(ADDRESS) | 0x41 << 64;
    let write =
        |offset, bytes: &[u8]| bench.service.store_write_bytes(&bench.domain, DEVICE, StoreName::Ims, offset, bytes);
    write(0x90, &message.to_le_bytes()).unwrap();
    assert_eq!(bench.fire(9), Some(target(0, 0x41)));
    bench.machine().log();
    let other = u128::from(ADDRESS | 5 << 12) | 0x42 << 64;
    write(0x90, &other.to_le_bytes()).unwrap();
    let programs = bench.machine().log().iter().filter(|op| matches!(op, Op::Program(_))).count();
    assert_eq!((bench.fire(9), programs), (Some(target(5, 0x42)), 1), "never half of each");
    // 64 bytes are four slots.
    let four: Vec<u8> = (0..4).flat_map(|n: u128| (u128::from(ADDRESS) | (0x50 + n) << 64).to_le_bytes()).collect();
    write(0x100, &four).unwrap();
    for n in 0..4 {
        assert_eq!(bench.fire(16 + n), Some(target(0, 0x50 + n as u8)));
    }
    // Any bytes of any slots.
    write(0x21c, &[0xff; 21]).unwrap();
    assert_eq!(
        [33, 34, 35].map(|slot| bench.seen(slot)),
        [[0, 0, 0, 1], [u32::MAX, u32::MAX, u32::MAX, 1], [0xff, 0, 0, 1]]
    );
    assert_eq!(bench.fire(34), None);
    let end = u64::from(bench.spec(StoreName::Ims).slots) * 16;
    assert_eq!(write(end - 8, &[0; 16]), Err(Status::NoSuchSlot));
    assert_eq!(write(u64::MAX - 3, &[0; 16]), Err(Status::NoSuchSlot));
}

#[test]
fn a_wide_write_is_what_as_many_writes_of_a_byte_are_in_the_end() {
    let (wide, narrow) = (Bench::new(), Bench::new());
    for offset in [0x20, 0x23, 0x28, 0x2c, 0x2f] {
        for len in [9, 16, 31, 32, 64] {
            let bytes: Vec<u8> = (0..len).map(|n| (n * 7 + len + offset) as u8).collect();
            wide.service.store_write_bytes(&wide.domain, DEVICE, StoreName::Ims, offset, &bytes).unwrap_or(());
            for (at, byte) in (offset..).zip(&bytes) {
                let _ = narrow.write(StoreName::Ims, at, 1, u64::from(*byte));
            }
            for slot in 0..8 {
                assert_eq!(wide.seen(slot), narrow.seen(slot), "slot {slot}, {len} bytes at {offset:#x}");
            }
        }
    }
}

#[test]
fn what_is_modified_is_read_as_the_guest_sees_it_and_written_as_any_write_is() {
    let bench = Bench::new();
    let modify = |offset, width, f: &mut dyn FnMut(u128) -> u128| {
        bench.service.store_modify(&bench.domain, DEVICE, StoreName::Ims, offset, width, f)
    };
    bench.program(2, ADDRESS, 0x41).unwrap();
    modify(0x28, 4, &mut |old| old + 1).unwrap();
    assert_eq!(bench.fire(2), Some(target(0, 0x42)));
    modify(0x20, 16, &mut |old| {
        assert_eq!(old, u128::from(ADDRESS) | 0x42 << 64);
        old | 1 << 96
    })
    .unwrap();
    assert_eq!((bench.seen(2), bench.fire(2)), ([ADDRESS, 0, 0x42, 1], None));
    // Across two slots.
    modify(0x2e, 4, &mut |old| {
        assert_eq!(old, 0);
        0xffff_ffff
    })
    .unwrap();
    assert_eq!((bench.seen(2), bench.seen(3)), ([ADDRESS, 0, 0x42, 1], [0xffff, 0, 0, 1]));
    let end = u64::from(bench.spec(StoreName::Ims).slots) * 16;
    let refused = modify(end - 4, 8, &mut |_| panic!("beyond the end"));
    assert_eq!(refused, Err(Status::NoSuchSlot));
}

#[test]
fn no_write_comes_between_the_read_and_the_write_of_a_modification() {
    const TIMES: u32 = 5_000;
    let bench = Bench::new();
    let modify = |offset, width, f: &mut dyn FnMut(u128) -> u128| {
        bench.service.store_modify(&bench.domain, DEVICE, StoreName::Ims, offset, width, f).unwrap();
    };
    std::thread::scope(|scope| {
        for n in 0..2 {
            let (modify, bench) = (&modify, &bench);
            scope.spawn(move || {
                for _ in 0..TIMES {
                    // A counter within a slot, one that crosses two, and a plain write beside the first.
                    modify(0x28, 4, &mut |old| old + 1);
                    modify(0x4c + 2, 4, &mut |old| old.wrapping_add(0x1_0000) & 0xffff_ffff);
                    bench.write(StoreName::Ims, 0x20 + 4 * n, 4, 0).unwrap();
                }
            });
        }
    });
    assert_eq!(bench.seen(2)[2], 2 * TIMES);
    // Of the control dword only the mask is kept, so the upper half of the second counter is all that counts.
    assert_eq!(bench.seen(5)[0] & 0xffff, (2 * TIMES) & 0xffff);
}

#[test]
fn msix_entries_work_as_ims_slots_do() {
    let bench = Bench::new();
    for (offset, value) in [(0, ADDRESS), (4, 0), (8, 0x30), (12, 0)] {
        bench.write(StoreName::Msix, 3 * 16 + offset, 4, value.into()).unwrap();
    }
    assert_eq!(bench.machine().fire(&bench.spec(StoreName::Msix), 3), Some(target(0, 0x30)));
    assert_eq!(bench.fire(3), None, "the other store is another");
    assert_eq!(bench.service.lookup(EntryIndex(0)).unwrap().store, StoreName::Msix);
}

#[test]
fn the_order_is_route_entry_flush_message_unmask_and_back() {
    let bench = Bench::new();
    bench.write(StoreName::Ims, 0, 8, ADDRESS.into()).unwrap();
    bench.poke(0, Field::Data, 0x41).unwrap();
    bench.machine().log();
    bench.poke(0, Field::Control, 0).unwrap();
    let bind = [
        Op::Route(target(0, 0x41)),
        Op::Reserve(0),
        Op::Program(0),
        Op::Flush(vec![0]),
        Op::Write(0, Field::AddressLo, 0xfee0_0010),
        Op::Write(0, Field::AddressHi, 0),
        Op::Write(0, Field::Data, 0),
        Op::Write(0, Field::Control, 0),
    ];
    assert_eq!(bench.machine().log(), bind);
    bench.poke(0, Field::Data, 0x42).unwrap();
    let retarget = [Op::Route(target(0, 0x42)), Op::Program(0), Op::Flush(vec![0]), Op::Unroute(target(0, 0x41))];
    assert_eq!(bench.machine().log(), retarget, "in place, never cleared, never masked");
    bench.poke(0, Field::Control, 1).unwrap();
    assert_eq!(bench.machine().log(), [Op::Write(0, Field::Control, 1), Op::ReadBack(0, Field::Control)]);
    bench.poke(0, Field::Control, 0).unwrap();
    assert_eq!(bench.machine().log(), [Op::Write(0, Field::Control, 0)], "the binding was kept");
    bench.poke(0, Field::Control, 1).unwrap();
    bench.machine().log();
    bench.write(StoreName::Ims, 0, 8, 0).unwrap();
    bench.poke(0, Field::Data, 0).unwrap();
    let release = [Op::Clear(0), Op::Flush(vec![0]), Op::Release(0), Op::Unroute(target(0, 0x42))];
    assert_eq!(bench.machine().log(), release);
    assert_eq!(bench.machine().used(), (0, 0));
}

#[test]
fn attack_03_when_entries_or_vectors_run_out_the_slot_stays_masked_and_can_be_tried_again() {
    for (entries, vectors, status) in [(2, 9, Status::NoFreeEntry), (9, 2, Status::NoFreeVector)] {
        let bench = Bench::with(entries, vectors);
        bench.program(0, ADDRESS, 0x40).unwrap();
        bench.program(1, ADDRESS, 0x41).unwrap();
        assert_eq!(bench.program(2, ADDRESS, 0x42), Err(status));
        assert_eq!(bench.machine().slot(&bench.spec(StoreName::Ims), 2)[3], 1);
        assert_eq!(bench.machine().used(), (2, 2), "nothing is left over of the attempt");
        assert_eq!(bench.domain.counters().refused, 1);
        bench.poke(0, Field::Control, 1).unwrap();
        bench.write(StoreName::Ims, 0, 8, 0).unwrap();
        bench.poke(0, Field::Data, 0).unwrap();
        bench.poke(2, Field::Control, 0).unwrap();
        assert_eq!(bench.fire(2), Some(target(0, 0x42)));
    }
}

#[test]
fn attack_05_a_guest_reaches_no_other_guests_device() {
    let bench = Bench::new();
    let other = Bench::join(&bench.service, 2, &[0]);
    let none = bench.service.store_write(&bench.domain, DeviceId(0x11), StoreName::Ims, 0, 4, 0);
    assert_eq!(none, Err(Status::NoSuchDevice));
    bench.program(0, ADDRESS, 0x40).unwrap();
    bench.service.store_write(&other, DEVICE, StoreName::Ims, 0, 8, ADDRESS.into()).unwrap();
    bench.service.store_write(&other, DEVICE, StoreName::Ims, 8, 8, 0x40).unwrap();
    assert_eq!(bench.machine().used(), (2, 2), "each has its own entry and route, though they look alike");
    assert_eq!(bench.service.lookup(EntryIndex(1)).unwrap().guest, GuestId(2));
    let again = GuestSpec { guest: GuestId(3), apic_ids: vec![0], hypercalls: true, devices: vec![function(2)] };
    assert_eq!(bench.service.attach(again).unwrap_err(), Status::Exists, "a function belongs to one guest");
}

#[test]
fn attack_06_what_a_device_answers_selects_no_entry() {
    let bench = Bench::new();
    bench.program(0, ADDRESS, 0x40).unwrap();
    bench.program(1, ADDRESS, 0x41).unwrap();
    bench.machine().log();
    // The device now says that slot 0 holds slot 1's message.
    let spec = bench.spec(StoreName::Ims);
    let [lo, ..] = bench.machine().slot(&spec, 1);
    bench.machine().write(&spec, 0, Field::AddressLo, lo);
    bench.machine().log();
    bench.poke(0, Field::Data, 0x50).unwrap();
    assert!(bench.machine().log().contains(&Op::Program(0)));
    assert_eq!(bench.fire(1), Some(target(0, 0x41)), "the other's entry is untouched");
}

#[test]
fn attack_07_and_08_no_entry_or_cache_keeps_what_was_retargeted_or_freed() {
    let bench = Bench::new();
    bench.program(0, ADDRESS, 0x40).unwrap();
    bench.poke(0, Field::Data, 0x41).unwrap();
    assert_eq!(bench.machine().used(), (1, 1), "the old route is gone, and the machine checked that no cache had it");
    bench.poke(0, Field::Control, 1).unwrap();
    bench.write(StoreName::Ims, 0, 8, 0).unwrap();
    bench.poke(0, Field::Data, 0).unwrap();
    // The index is used again at once, and must be clean (checked at each operation).
    bench.program(1, ADDRESS | 1 << 12, 0x50).unwrap();
    assert_eq!(bench.fire(1), Some(target(1, 0x50)));
    assert_eq!(bench.service.lookup(EntryIndex(0)).unwrap().slot, 1);
}

#[test]
fn attack_12_to_14_refused_messages_mask_the_slot_until_a_right_one_comes() {
    let bench = Bench::new();
    let bad = [
        (ADDRESS, 0x240),             // SMI
        (ADDRESS, 0x740),             // ExtINT
        (ADDRESS, 0x8040),            // level
        (ADDRESS | 2 << 12, 0x40),    // not its processor
        (ADDRESS | 0xff << 12, 0x40), // broadcast
        (ADDRESS | 0xff << 12 | 4, 0x40),
        (ADDRESS, 0x0f),
        (ADDRESS | 0x10, 0x40), // remappable
        (0, 0x40),
        (0xfed0_0000, 0x40),
    ];
    for (slot, (address, data)) in (0..).zip(bad) {
        bench.program(slot, ADDRESS, 0x40).unwrap();
        assert!(bench.fire(slot).is_some());
        let _ = bench.write(StoreName::Ims, Field::AddressLo.offset(slot), 4, address.into());
        let _ = bench.poke(slot, Field::Data, data);
        assert_eq!(bench.fire(slot), None, "{address:#x} {data:#x}");
        assert_eq!(bench.seen(slot)[3], 0, "the guest did not mask it");
        let _ = bench.poke(slot, Field::Data, 0x41);
        bench.poke(slot, Field::AddressLo, ADDRESS).unwrap();
        assert_eq!(bench.fire(slot), Some(target(0, 0x41)));
    }
    assert_eq!(bench.service.counters().high_water, bad.len() as u64, "the entries were kept");
    assert!(bench.domain.counters().refused >= bad.len() as u64);
}

#[test]
fn attack_15_writes_of_every_width_and_alignment_do_what_dwords_would() {
    // The message of slot 1, unmasked, within slots that are masked and empty.
    let mut request = [0u8; 48];
    request[12] = 1;
    request[44] = 1;
    request[16..20].copy_from_slice(&(ADDRESS | 1 << 12).to_le_bytes());
    request[24] = 0x77;
    for width in 1..=8usize {
        for start in 0..width {
            let bench = Bench::new();
            let mut at = start;
            while at < 48 {
                let width = width.min(48 - at);
                let mut value = [0; 8];
                value[..width].copy_from_slice(&request[at..at + width]);
                let _ = bench.write(StoreName::Ims, at as u64, width as u8, u64::from_le_bytes(value));
                at += width;
            }
            assert_eq!(bench.fire(1), Some(target(1, 0x77)), "{width} bytes from {start}");
            assert_eq!((bench.fire(0), bench.fire(2)), (None, None));
            assert_eq!(bench.seen(1), [ADDRESS | 1 << 12, 0, 0x77, 0]);
            assert_eq!(bench.machine().used(), (1, 1));
        }
    }
    let bench = Bench::new();
    for width in [0, 9, 255] {
        assert_eq!(bench.write(StoreName::Ims, 0, width, 0), Err(Status::InvalidArgument));
    }
}

#[test]
fn attack_15_bytes_beyond_the_width_are_not_written() {
    let bench = Bench::new();
    bench.write(StoreName::Ims, 1, 2, 0xffff_ffff_ffff_ffff).unwrap();
    assert_eq!(bench.seen(0), [0x00ff_ff00, 0, 0, 1]);
}

#[test]
fn attack_16_writes_beyond_the_store_do_nothing() {
    let bench = Bench::new();
    let before = bench.machine().snapshot();
    let end = u64::from(IMS_SLOTS) * 16;
    for (offset, width) in [(end, 4), (end - 4, 8), (end - 1, 2), (u64::MAX, 1), (u64::MAX - 3, 8), (1 << 36, 4)] {
        assert_eq!(bench.write(StoreName::Ims, offset, width, 0), Err(Status::NoSuchSlot), "{offset:#x}");
    }
    assert_eq!(bench.machine().snapshot(), before);
    assert_eq!(bench.domain.counters().refused, 6);
    let last = (IMS_SLOTS - 1) as u16;
    bench.program(last, ADDRESS, 0x40).unwrap();
    assert!(bench.fire(last).is_some());
}

#[test]
fn attack_20_an_eight_byte_write_that_reaches_ctrl_unmasks_last() {
    let bench = Bench::new();
    bench.write(StoreName::Ims, 0, 8, ADDRESS.into()).unwrap();
    bench.machine().log();
    bench.write(StoreName::Ims, 8, 8, 0x44).unwrap();
    assert_eq!(bench.machine().log().last(), Some(&Op::Write(0, Field::Control, 0)));
    assert_eq!(bench.fire(0), Some(target(0, 0x44)));
    // And one that masks while it changes the data leaves the entry alone.
    bench.write(StoreName::Ims, 8, 8, 1 << 32 | 0x55).unwrap();
    assert_eq!(bench.fire(0), None);
    bench.poke(0, Field::Control, 0).unwrap();
    assert_eq!(bench.fire(0), Some(target(0, 0x55)));
}

#[test]
fn attack_20_unmask_before_the_message_waits_for_the_message() {
    let bench = Bench::new();
    assert!(bench.poke(0, Field::Control, 0).is_err());
    assert!(bench.poke(0, Field::Data, 0x40).is_err());
    assert_eq!(bench.machine().used(), (0, 0));
    bench.poke(0, Field::AddressLo, ADDRESS).unwrap();
    assert_eq!(bench.fire(0), Some(target(0, 0x40)));
}

#[test]
fn attack_21_and_22_a_device_gets_the_mask_bit_only() {
    // The machine checks what reaches the device.
    let bench = Bench::new();
    bench.program(0, ADDRESS, 0x40).unwrap();
    for ctrl in [0xffff_f008, 0xffff_f009, 0xffff_ffff, 0x0000_0ffe, 6] {
        bench.poke(0, Field::Control, ctrl).unwrap();
        assert_eq!(bench.seen(0)[3], ctrl & 1, "{ctrl:#x}");
        assert_eq!(bench.fire(0).is_some(), ctrl & 1 == 0);
    }
}

#[test]
fn attack_23_after_a_device_reset_all_is_as_after_reset_but_the_msix_table() {
    let bench = Bench::new();
    let msix = |slot: u64, ctrl: u64| {
        bench.write(StoreName::Msix, slot * 16, 8, ADDRESS.into()).unwrap();
        bench.write(StoreName::Msix, slot * 16 + 8, 8, ctrl << 32 | 0x60 | slot).unwrap();
    };
    msix(2, 0);
    msix(3, 0);
    msix(3, 1);
    bench.program(0, ADDRESS, 0x40).unwrap();
    let handle = bench.mapped(target(1, 0x50));
    bench.machine().reset(&bench.spec(StoreName::Ims));
    bench.machine().reset(&bench.spec(StoreName::Msix));
    bench.service.device_reset(&bench.domain, DEVICE).unwrap();
    assert_eq!(bench.machine().used(), (2, 2));
    let comes_out = |slot: u16| bench.machine().fire(&bench.spec(StoreName::Msix), slot);
    assert_eq!((comes_out(2), comes_out(3)), (Some(target(0, 0x62)), None), "the device had forgotten them");
    assert_eq!(bench.machine().shadow(&bench.spec(StoreName::Msix), 3), [ADDRESS, 0, 0x63, 1]);
    msix(3, 0);
    assert_eq!(comes_out(3), Some(target(0, 0x63)));
    assert_eq!((bench.seen(0), bench.seen(handle.index())), ([0, 0, 0, 1], [0, 0, 0, 1]));
    assert_eq!(bench.on(Call::Unmask, handle), Err(Status::StaleHandle));
    let next: Vec<_> = (0..2).map(|_| bench.alloc()).collect();
    assert_eq!((next[0].index(), next[1].index()), (0, 1), "all slots are free");
    assert_ne!(next[1], handle);
}

#[test]
fn after_a_function_level_reset_the_msix_table_is_as_after_reset_too() {
    let bench = Bench::new();
    let (msix, spec) = (StoreName::Msix, bench.spec(StoreName::Msix));
    let program = |slot: u64, vector: u64| {
        bench.write(msix, slot * 16, 8, ADDRESS.into()).unwrap();
        bench.write(msix, slot * 16 + 8, 8, vector).unwrap();
    };
    program(2, 0x62);
    bench.program(0, ADDRESS, 0x40).unwrap();
    let handle = bench.mapped(target(1, 0x50));
    bench.service.function_reset(&bench.domain, DEVICE).unwrap();
    assert_eq!((bench.machine().used(), bench.service.counters().live), ((0, 0), 0));
    assert_eq!((bench.machine().fire(&spec, 2), bench.fire(0)), (None, None), "masked before the function is touched");
    assert_eq!((bench.machine().shadow(&spec, 2), bench.seen(0)), ([0, 0, 0, 1], [0, 0, 0, 1]));
    assert_eq!(bench.on(Call::Unmask, handle), Err(Status::StaleHandle));
    // The function answers late, and has not seen what was written meanwhile.
    program(3, 0x63);
    bench.machine().reset(&spec);
    assert_eq!(bench.machine().fire(&spec, 3), None);
    bench.service.function_ready(&bench.domain, DEVICE).unwrap();
    assert_eq!((bench.machine().fire(&spec, 3), bench.machine().fire(&spec, 2)), (Some(target(0, 0x63)), None));
    bench.service.detach(&bench.domain);
    let late =
        [Service::function_reset, Service::function_ready].map(|call| call(&bench.service, &bench.domain, DEVICE));
    assert_eq!(late, [Err(Status::NoSuchDevice); 2]);
}

#[test]
fn the_pending_bit_is_shown_when_a_driver_masks_and_looks_again() {
    let bench = Bench::new();
    let spec = bench.spec(StoreName::Ims);
    bench.program(0, ADDRESS, 0x40).unwrap();
    bench.poke(0, Field::Control, 1).unwrap();
    assert_eq!(bench.seen(0)[3], 1);
    bench.machine().set_pending(&spec, 0, true);
    bench.poke(0, Field::Control, 1).unwrap();
    assert_eq!(bench.seen(0)[3], 3);
    bench.poke(0, Field::Control, 0).unwrap();
    assert_eq!(bench.seen(0)[3], 0);
}

#[test]
fn a_detached_guest_holds_nothing_and_can_do_nothing() {
    let bench = Bench::new();
    bench.program(0, ADDRESS, 0x40).unwrap();
    let handle = bench.mapped(target(1, 0x50));
    bench.service.detach(&bench.domain);
    assert_eq!(bench.machine().used(), (0, 0));
    assert_eq!(bench.poke(0, Field::Control, 0), Err(Status::NoSuchDevice));
    assert_eq!(bench.on(Call::Mask, handle), Err(Status::NoSuchDevice));
    assert_eq!(bench.service.device_reset(&bench.domain, DEVICE), Err(Status::NoSuchDevice));
    assert_eq!(bench.service.lookup(EntryIndex(0)), None);
    bench.service.detach(&bench.domain);
    Bench::join(&bench.service, 1, &[0]);
    assert_eq!(bench.service.counters().live, 0);
}

#[test]
fn impossible_guests_are_refused() {
    let service = Service::new(Machine::new(4, 4));
    let good = GuestSpec { guest: GuestId(1), apic_ids: vec![0], hypercalls: true, devices: vec![] };
    let device = function(1);
    let doubled = DeviceSpec { requester: Bdf(1), ..device };
    let empty = DeviceSpec { ims: Some(store(0, 0)), ..device };
    let huge = DeviceSpec { ims: Some(store(0, 65_537)), ..device };
    for bad in [
        GuestSpec { apic_ids: vec![], ..good.clone() },
        GuestSpec { apic_ids: vec![1, 1], ..good.clone() },
        GuestSpec { devices: vec![device, doubled], ..good.clone() },
        GuestSpec { devices: vec![empty], ..good.clone() },
        GuestSpec { devices: vec![huge], ..good.clone() },
    ] {
        assert_eq!(service.attach(bad).unwrap_err(), Status::InvalidArgument);
    }
    assert!(service.attach(good).is_ok());
}
