//! The hypercall domain.

use hcall_abi::DeviceInfo;

use super::{machine::Op, *};

fn request(handle: SlotHandle, vector: u8) -> MapRequest {
    MapRequest { handle, target: target(0, vector), unmask: true, cookie: 0x1000 + u64::from(vector) }
}

#[test]
fn a_mapped_slot_shows_an_opaque_pair_and_its_interrupt_arrives() {
    let bench = Bench::new();
    let handle = bench.alloc();
    let pair = bench.map_one(request(handle, 0x40)).unwrap();
    assert_eq!(pair, MessagePair { address: 0xfee0_0018, data: handle.bits() });
    assert_eq!(bench.seen(handle.index()), [0xfee0_0018, 0, handle.bits(), 0]);
    assert_eq!(bench.fire(handle.index()), Some(target(0, 0x40)));
    let owner = bench.service.lookup(EntryIndex(0)).unwrap();
    assert_eq!((owner.cookie, owner.slot, owner.device), (Some(0x1040), handle.index(), DEVICE));
}

#[test]
fn a_batch_costs_one_flush_and_failed_items_change_nothing() {
    let bench = Bench::new();
    let handles: Vec<_> = (0..250).map(|_| bench.alloc()).collect();
    let mut items: Vec<_> = handles.iter().map(|handle| request(*handle, 0x40).to_bytes()).collect();
    let stale = SlotHandle::from_bits(handles[0].bits() + (1 << 16)).unwrap();
    let beyond = SlotHandle::from_bits(1 << 16 | IMS_SLOTS).unwrap();
    let elsewhere = MapRequest { target: target(2, 0x40), ..request(bench.alloc(), 0x40) };
    items.push(request(stale, 0x40).to_bytes());
    items.push(request(beyond, 0x40).to_bytes());
    items.push(elsewhere.to_bytes());
    items.push([0; 16]);
    bench.machine().log();
    let (done, replies) = bench.map_bytes(&items);
    assert_eq!(done, Ok(250));
    assert!(replies[..250].iter().all(Result::is_ok));
    let failed = [Status::StaleHandle, Status::NoSuchSlot, Status::BadTarget, Status::InvalidArgument].map(Err);
    assert_eq!(replies[250..], failed);
    let log = bench.machine().log();
    assert_eq!(log.iter().filter(|op| matches!(op, Op::Flush(_))).count(), 1);
    assert!(!log.iter().any(|op| matches!(op, Op::ReadBack(..))), "nothing needs to be masked");
    let flush = log.iter().position(|op| matches!(op, Op::Flush(_))).unwrap();
    assert!(!log[..flush].iter().any(|op| matches!(op, Op::Write(..))), "nothing reaches the device before the flush");
    assert!(handles.iter().all(|handle| bench.fire(handle.index()).is_some()));
    assert_eq!(bench.fire(elsewhere.handle.index()), None);
    assert_eq!(bench.machine().used(), (250, 1), "one route serves them all");
    assert_eq!(bench.service.counters().high_water, 250);
}

#[test]
fn mapping_again_is_the_same_pair_and_otherwise_exists() {
    let bench = Bench::new();
    let handle = bench.alloc();
    let first = request(handle, 0x40);
    let pair = bench.map_one(MapRequest { unmask: false, ..first });
    assert_eq!(bench.fire(handle.index()), None);
    assert_eq!(bench.map_one(first), pair);
    assert!(bench.fire(handle.index()).is_some(), "the second asked for unmask");
    assert_eq!(bench.map_one(request(handle, 0x41)), Err(Status::Exists));
    assert_eq!(bench.map_one(MapRequest { cookie: 1, ..first }), Err(Status::Exists));
    assert_eq!(bench.machine().used(), (1, 1));
    // The same within a batch.
    let handle = bench.alloc();
    let (done, replies) = bench.map(&[request(handle, 0x50), request(handle, 0x51), request(handle, 0x50)]);
    assert_eq!((done, replies[1], replies[0]), (Ok(2), Err(Status::Exists), replies[2]));
    assert_eq!(bench.machine().used(), (2, 2));
}

#[test]
fn free_and_unmap_take_the_entry_away_in_order() {
    let bench = Bench::new();
    let handle = bench.mapped(target(0, 0x40));
    bench.machine().log();
    assert_eq!(bench.on(Call::Unmap, handle), Ok(0));
    let order = [
        Op::Write(0, Field::Control, 1),
        Op::ReadBack(0, Field::Control),
        Op::Clear(0),
        Op::Flush(vec![0]),
        Op::Release(0),
        Op::Unroute(target(0, 0x40)),
    ];
    assert_eq!(bench.machine().log(), order);
    assert_eq!(bench.on(Call::Unmap, handle), Ok(0), "what is absent is unmapped");
    assert_eq!(bench.machine().log(), []);
    assert_eq!(bench.on(Call::Mask, handle), Err(Status::NotMapped));
    assert_eq!(bench.retarget(handle, target(0, 0x41)), Err(Status::NotMapped));
    bench.map_one(request(handle, 0x60)).unwrap();
    assert_eq!(bench.on(Call::Free, handle), Ok(0));
    assert_eq!(bench.machine().used(), (0, 0));
    for call in [Call::Free, Call::Unmap, Call::Mask, Call::Unmask] {
        assert_eq!(bench.on(call, handle), Err(Status::StaleHandle), "{call:?}");
    }
    assert_eq!(bench.map_one(request(handle, 0x60)), Err(Status::StaleHandle));
    let next = bench.alloc();
    assert_eq!(next.index(), handle.index());
    assert_ne!(next.generation(), handle.generation());
}

#[test]
fn affinity_changes_without_touching_the_store_and_without_a_gap() {
    let bench = Bench::new();
    let handle = bench.mapped(target(0, 0x40));
    bench.machine().log();
    assert_eq!(bench.retarget(handle, target(5, 0x41)), Ok(0));
    let order = [Op::Route(target(5, 0x41)), Op::Program(0), Op::Flush(vec![0]), Op::Unroute(target(0, 0x40))];
    assert_eq!(bench.machine().log(), order);
    assert_eq!(bench.fire(handle.index()), Some(target(5, 0x41)));
    assert_eq!(bench.retarget(handle, target(4, 0x41)), Err(Status::BadTarget));
    assert_eq!(bench.retarget(handle, target(5, 0x41)), Ok(0));
    assert_eq!(bench.machine().log(), [], "the same place costs nothing");
}

#[test]
fn mask_and_unmask_keep_the_binding() {
    let bench = Bench::new();
    let handle = bench.mapped(target(0, 0x40));
    bench.machine().log();
    assert_eq!(bench.on(Call::Mask, handle), Ok(0));
    assert_eq!(bench.machine().log(), [Op::Write(0, Field::Control, 1), Op::ReadBack(0, Field::Control)]);
    assert_eq!(bench.seen(0)[3], 1);
    assert_eq!(bench.on(Call::Unmask, handle), Ok(0));
    assert_eq!(bench.machine().log(), [Op::Write(0, Field::Control, 0)]);
    assert_eq!(bench.seen(0)[3], 0);
}

#[test]
fn the_ctrl_dword_of_a_mapped_slot_masks_and_its_own_pair_may_be_written() {
    let bench = Bench::new();
    let handle = bench.mapped(target(0, 0x40));
    bench.poke(0, Field::Control, 1).unwrap();
    assert_eq!(bench.fire(0), None);
    bench.program(0, 0xfee0_0018, handle.bits()).unwrap();
    assert_eq!(bench.fire(0), Some(target(0, 0x40)));
}

#[test]
fn another_message_in_a_mapped_slot_masks_it_until_the_pair_is_back() {
    let bench = Bench::new();
    let handle = bench.mapped(target(0, 0x40));
    let other = bench.mapped(target(1, 0x41));
    for (address, data) in [(ADDRESS, 0x50), (0xfee0_0018, other.bits()), (0xfee0_0018, handle.bits() + (1 << 16))] {
        assert!(
            bench.write(StoreName::Ims, 0, 8, address.into()).is_err() || bench.poke(0, Field::Data, data).is_err()
        );
        assert_eq!(bench.poke(0, Field::Control, 0), Err(Status::InvalidArgument));
        assert_eq!(bench.fire(0), None);
        assert_eq!(bench.on(Call::Unmask, handle), Err(Status::InvalidArgument));
        let _ = bench.poke(0, Field::AddressLo, 0xfee0_0018);
        bench.poke(0, Field::Data, handle.bits()).unwrap();
        assert_eq!(bench.fire(0), Some(target(0, 0x40)));
    }
    assert!(bench.poke(0, Field::Data, 0).is_err());
    bench.map_one(MapRequest { handle, target: target(0, 0x40), unmask: false, cookie: 7 }).unwrap();
    assert_eq!(bench.fire(0), Some(target(0, 0x40)), "mapping again puts the pair back, and leaves the mask");
    assert_eq!(bench.machine().used(), (2, 2));
}

#[test]
fn raw_and_allocated_slots_do_not_mix() {
    let bench = Bench::new();
    bench.program(0, ADDRESS, 0x40).unwrap();
    let handle = bench.alloc();
    assert_eq!(handle.index(), 1, "slot 0 is not free");
    assert!(bench.program(1, ADDRESS, 0x41).is_err());
    assert_eq!(bench.fire(1), None);
    bench.map_one(request(handle, 0x50)).unwrap();
    assert_eq!(bench.fire(1), Some(target(0, 0x50)));
    bench.poke(0, Field::Control, 1).unwrap();
    bench.write(StoreName::Ims, 0, 8, 0).unwrap();
    bench.poke(0, Field::Data, 0).unwrap();
    assert_eq!(bench.alloc().index(), 0, "back to zeros is free");
}

#[test]
fn alloc_ends_when_all_slots_are_taken() {
    let bench = Bench::new();
    for _ in 0..IMS_SLOTS {
        bench.alloc();
    }
    assert_eq!(bench.call(Call::Alloc, [DEVICE.0.into(), 0, 0, 0]), Err(Status::NoFreeSlot));
}

#[test]
fn a_device_is_discovered_and_described() {
    let bench = Bench::new();
    bench.alloc();
    assert_eq!(bench.call(Call::Discover, [0; 4]), Ok(DEVICE.0.into()));
    assert_eq!(bench.call(Call::Discover, [1, 0, 0, 0]), Err(Status::NoSuchDevice));
    let mut page = [0; 4096];
    page[..64].copy_from_slice(&DeviceInfo::request());
    let query = [DEVICE.0.into(), PAGE.as_u64(), 0, 0];
    assert_eq!(bench.call_with(Call::QueryDevice, query, &mut page), Ok(0));
    let info = DeviceInfo::from_bytes(&page[..64].try_into().unwrap()).unwrap();
    assert_eq!((info.slots, info.free, info.offset), (IMS_SLOTS, IMS_SLOTS - 1, function(1).ims.unwrap().offset));
}

#[test]
fn attack_27_what_makes_no_sense_is_refused_and_changes_nothing() {
    let bench = Bench::new();
    let handle = u64::from(bench.mapped(target(0, 0x40)).bits());
    let before = bench.machine().snapshot();
    let (device, page, v1) = (u64::from(DEVICE.0), PAGE.as_u64(), ItemLayout::V1.0);
    let refused = [
        (Call::Nop, [0, 0, 0, 1], Status::InvalidArgument),
        (Call::Discover, [0, 1, 0, 0], Status::InvalidArgument),
        (Call::Alloc, [device, 256, 0, 0], Status::InvalidArgument),
        (Call::Alloc, [device | 1 << 40, 0, 0, 0], Status::InvalidArgument),
        (Call::Alloc, [device + 1, 0, 0, 0], Status::NoSuchDevice),
        (Call::Free, [device, handle, 1, 0], Status::InvalidArgument),
        (Call::Free, [device, handle | 1 << 32, 0, 0], Status::InvalidArgument),
        (Call::Free, [device, handle + 1, 0, 0], Status::StaleHandle),
        (Call::Mask, [device, 1 << 16 | 0xffff, 0, 0], Status::NoSuchSlot),
        (Call::SetAffinity, [device, handle, 0x140, 0], Status::InvalidArgument),
        (Call::SetAffinity, [device, handle, 0x0f, 0], Status::BadVector),
        (Call::SetAffinity, [device, handle, 0x40, 1], Status::InvalidArgument),
        (Call::Map, [device, page, 1, v1 + 1], Status::BadLayout),
        (Call::Map, [device, page, 0, v1], Status::InvalidArgument),
        (Call::Map, [device, page, 257, v1], Status::InvalidArgument),
        (Call::Map, [device, page, u64::MAX, v1], Status::InvalidArgument),
        (Call::Map, [device, page + 8, 1, v1], Status::BadAddress),
        (Call::Map, [device, page + 16, 256, v1], Status::CrossesPage),
        (Call::Map, [device, 0, 1, v1], Status::BadAddress),
        (Call::Map, [device, u64::MAX - 15, 1, v1], Status::BadAddress),
        (Call::QueryDevice, [device, page + 4096 - 63, 0, 0], Status::CrossesPage),
        (Call::AllocMany, [device, page + 64, 1020 << 32 | 1, 0], Status::CrossesPage),
        (Call::FreeMany, [device, page + 64, 1020, 0], Status::CrossesPage),
        (Call::QueryDevice, [device, 0, 0, 0], Status::BadAddress),
        (Call::QueryDevice, [device, page, 0, 0], Status::BadLayout),
    ];
    for (call, args, status) in refused {
        assert_eq!(bench.call(call, args), Err(status), "{call:?} {args:x?}");
    }
    let memory = OnePage { bytes: RefCell::new([0; 4096]), machine: bench.machine() };
    for number in [0, 0x4000_0000, u64::from(CALL_BASE) + Call::ALL.len() as u64, u64::MAX] {
        let rax = bench.service.hypercall(&bench.domain, number, [0; 4], &memory);
        assert_eq!(rax as i64, -1000);
    }
    assert_eq!(bench.machine().snapshot(), before);
    assert_eq!(bench.domain.counters().refused, refused.len() as u64 + 4);
}

#[test]
fn a_full_page_of_handles_does_not_cross_its_end() {
    let bench = Bench::new();
    let args = [DEVICE.0.into(), PAGE.as_u64(), 1024 << 32 | 1, 0];
    assert_eq!(bench.call(Call::AllocMany, args), Ok(IMS_SLOTS.into()));
}

#[test]
fn the_memory_that_is_set_aside_for_a_device_holds_its_slots_and_batches() {
    use crate::{batch_buffer::Batch, most_bytes};
    let item = size_of::<crate::batch_buffer::Repeated>() as u64;
    assert!(Batch::BYTES >= size_of::<Batch>() as u64 + 256 * item);
    let slot = size_of::<crate::sync::Mutex<crate::slot::Slot>>() as u64;
    assert!(most_bytes(64, 3) - most_bytes(0, 0) >= 64 * slot + 3 * Batch::BYTES);
    assert!(most_bytes(0, 0) >= hcall_abi::call::QUEUE_SLOTS_MAX * slot);
}
