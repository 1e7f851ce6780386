//! What the seeds ask for, one by one: the service's part.

use hcall_abi::{FaultKind, FaultRecord, Pasid, SlotInfo, call::QUEUE_SLOTS_MAX};

use super::*;

const DEVICE_ARG: u64 = DEVICE.0 as u64;

/// Handles as they lie in a page.
fn handles_in(page: &[u8; 4096], count: usize) -> Vec<SlotHandle> {
    let words = page.as_chunks::<4>().0.iter().take(count);
    words.map(|word| SlotHandle::from_bits(u32::from_le_bytes(*word)).unwrap()).collect()
}

fn page_of(handles: &[SlotHandle]) -> [u8; 4096] {
    let mut page = [0; 4096];
    for (place, handle) in page.as_chunks_mut::<4>().0.iter_mut().zip(handles) {
        *place = handle.bits().to_le_bytes();
    }
    page
}

impl Bench {
    fn alloc_many(&self, min: u32, max: u32, group: u64) -> Result<Vec<SlotHandle>, Status> {
        let mut page = [0; 4096];
        let range = u64::from(max) << 32 | u64::from(min);
        let count = self.call_with(Call::AllocMany, [DEVICE_ARG, PAGE.as_u64(), range, group], &mut page)?;
        Ok(handles_in(&page, count as usize))
    }

    fn free_many(&self, handles: &[SlotHandle]) -> (Result<u64, Status>, Vec<i32>) {
        let mut page = page_of(handles);
        let args = [DEVICE_ARG, PAGE.as_u64(), handles.len() as u64, 0];
        let freed = self.call_with(Call::FreeMany, args, &mut page);
        let words = page.as_chunks::<4>().0.iter().take(handles.len());
        (freed, words.map(|word| i32::from_le_bytes(*word)).collect())
    }

    pub(super) fn info(&self, handle: SlotHandle) -> Result<SlotInfo, Status> {
        let mut page = [0; 4096];
        page[..64].copy_from_slice(&SlotInfo::request());
        self.call_with(Call::QuerySlot, [DEVICE_ARG, handle.bits().into(), PAGE.as_u64(), 0], &mut page)?;
        SlotInfo::from_bytes(&page[..64].try_into().unwrap())
    }

    fn faults(&self, most: u64) -> Vec<FaultRecord> {
        let mut page = [0; 4096];
        let count = self.call_with(Call::ReadFaults, [PAGE.as_u64(), most, 0, 0], &mut page).unwrap();
        page.as_chunks().0.iter().take(count as usize).map(|bytes| FaultRecord::from_bytes(bytes).unwrap()).collect()
    }
}

#[test]
fn feature_grant_fewer_gives_what_there_is_or_refuses_and_changes_nothing() {
    let bench = Bench::new();
    let all = bench.alloc_many(1, 1000, 0).unwrap();
    assert_eq!(all.len(), IMS_SLOTS as usize);
    assert_eq!(bench.alloc_many(1, 1, 0), Err(Status::NoFreeSlot));
    assert_eq!(bench.free_many(&all[..10]), (Ok(10), vec![0; 10]));
    let before = bench.machine().snapshot();
    assert_eq!(bench.alloc_many(11, 20, 0), Err(Status::NoFreeSlot));
    assert_eq!(bench.machine().snapshot(), before);
    assert_eq!(bench.alloc_many(10, 20, 0).unwrap().len(), 10, "none was lost by the refusal");
}

#[test]
fn a_grant_whose_handles_cannot_be_written_takes_nothing() {
    let bench = Bench::new();
    let range = 5 << 32 | 1;
    assert_eq!(bench.call(Call::AllocMany, [DEVICE_ARG, 0x9000, range, 0]), Err(Status::BadAddress));
    assert_eq!(bench.alloc_many(IMS_SLOTS, 1000, 0).unwrap().len(), IMS_SLOTS as usize);
}

#[test]
fn feature_alloc_any_time_singly_and_in_batches_while_others_live() {
    let bench = Bench::new();
    let lives = bench.mapped(target(1, 0x41));
    for _ in 0..50 {
        let one = bench.alloc();
        let many = bench.alloc_many(7, 7, 3).unwrap();
        assert!(!many.contains(&one));
        bench.on(Call::Free, one).unwrap();
        assert_eq!(bench.free_many(&many).0, Ok(7));
        assert_eq!(bench.fire(lives.index()), Some(target(1, 0x41)));
    }
    assert_eq!(bench.service.counters().live, 1);
}

#[test]
fn many_are_freed_by_one_flush_and_each_has_its_own_result() {
    let bench = Bench::new();
    let mapped: Vec<_> = (0..40).map(|n| bench.mapped(target(0, 0x40 + n))).collect();
    let flushes = bench.service.counters().flushes;
    let stale = SlotHandle::from_bits(mapped[3].bits() ^ 0x8000_0000).unwrap();
    let asked = [&mapped[..], &[stale, mapped[5]]].concat();
    let (freed, results) = bench.free_many(&asked);
    assert_eq!(freed, Ok(40));
    let stale_code = -(Status::StaleHandle.code() as i32);
    assert_eq!(results, [vec![0; 40], vec![stale_code; 2]].concat());
    assert_eq!(bench.service.counters().flushes, flushes + 1);
    assert_eq!(bench.machine().used(), (0, 0));
}

#[test]
fn feature_alloc_group_frees_the_groups_slots_and_no_others() {
    let bench = Bench::new();
    let others = bench.alloc_many(5, 5, 2).unwrap();
    let group = bench.alloc_many(300, 1000, 200);
    assert_eq!(group, Err(Status::NoFreeSlot));
    let group = bench.alloc_many(20, 20, 200).unwrap();
    let (_, replies) =
        bench.map(&group[..10].iter().map(|&handle| request(handle, target(0, 0x44))).collect::<Vec<_>>());
    assert!(replies.iter().all(Result::is_ok));
    assert_eq!(bench.call(Call::FreeGroup, [DEVICE_ARG, 200, 0, 0]), Ok(20));
    assert_eq!(bench.call(Call::FreeGroup, [DEVICE_ARG, 200, 0, 0]), Ok(0));
    assert_eq!(bench.machine().used(), (0, 0));
    assert!(group.iter().all(|&handle| bench.info(handle) == Err(Status::StaleHandle)));
    assert!(others.iter().all(|&handle| bench.info(handle).is_ok_and(|info| info.group == 2)));
}

#[test]
fn feature_alloc_group_a_call_frees_a_thousand_slots_at_most() {
    let bench = Bench::with_slots(2500);
    for count in [1000, 1000, 500] {
        assert_eq!(bench.alloc_many(count, count, 7).map(|group| group.len()), Ok(count as usize));
    }
    for freed in [1024, 1024, 452, 0] {
        assert_eq!(bench.call(Call::FreeGroup, [DEVICE_ARG, 7, 0, 0]), Ok(freed));
    }
    assert_eq!(bench.alloc_many(1000, 1024, 0).map(|group| group.len()), Ok(1024));
}

fn request(handle: SlotHandle, target: Target) -> MapRequest {
    MapRequest { handle, target, unmask: true, cookie: 0xc00c_1e00 + u64::from(handle.index()) }
}

#[test]
fn feature_cookie_comes_back_in_queries_and_in_fault_records() {
    let bench = Bench::new();
    let handle = bench.alloc();
    assert_eq!(bench.info(handle).unwrap().mapping, None);
    bench.map(&[request(handle, target(5, 0x51))]).0.unwrap();
    let info = bench.info(handle).unwrap();
    let mapping = info.mapping.unwrap();
    assert_eq!((mapping.target, mapping.cookie), (target(5, 0x51), 0xc00c_1e00 + u64::from(handle.index())));
    assert_eq!((mapping.pair.address, mapping.pair.data), (0xfee0_0018, handle.bits()));
    let entry = bench.entry_of(handle);
    bench.service.refused_message(entry, Bdf(0x123), 0x26);
    assert_eq!(bench.faults(8)[0].cookie, mapping.cookie);
}

impl Bench {
    /// The entry of a mapped slot.
    fn entry_of(&self, handle: SlotHandle) -> EntryIndex {
        let is_its = |entry: &EntryIndex| {
            let whose = self.service.lookup(*entry);
            whose.is_some_and(|whose| (whose.guest, whose.slot) == (GuestId(1), handle.index()))
        };
        (0..512).map(EntryIndex).find(is_its).expect("a mapped slot has an entry")
    }
}

#[test]
fn feature_fault_log_tells_a_guest_of_its_own_slots_only() {
    let bench = Bench::new();
    let neighbour = Bench::join(&bench.service, 2, &[9]);
    let mine = bench.mapped(target(0, 0x40));
    let entry = bench.entry_of(mine);
    bench.service.refused_message(entry, function(1).requester, 0x22);
    bench.service.refused_message(entry, Bdf(0x999), 0x26);
    assert_eq!(bench.service.refused_message(EntryIndex(500), Bdf(0x999), 0x22), None, "nobody's");
    let other = Bench { service: bench.service, domain: neighbour };
    assert_eq!(other.faults(8), []);
    let bench = Bench { domain: bench.domain, service: other.service };
    let faults = bench.faults(1);
    assert_eq!((faults[0].slot, faults[0].kind, faults[0].foreign), (mine.index(), FaultKind::Remapping(0x22), false));
    let faults = bench.faults(8);
    assert_eq!((faults.len(), faults[0].kind, faults[0].foreign), (1, FaultKind::Remapping(0x26), true));
    assert_eq!(bench.faults(8), [], "they are read once");
}

#[test]
fn feature_aux_pasid_is_set_only_if_the_guest_owns_it_and_a_forged_one_is_replaced() {
    let bench = Bench::new();
    let handle = bench.mapped(target(0, 0x40));
    let set = |pasid: u64| bench.call(Call::SetAux, [DEVICE_ARG, handle.bits().into(), pasid, 0]);
    let ctrl = |bench: &Bench| bench.machine().slot(&bench.spec(StoreName::Ims), handle.index())[3];
    for foreign in [0xff, 0x200, 0] {
        assert_eq!(set(1 << 31 | foreign), Err(Status::BadPasid), "{foreign:#x}");
    }
    assert_eq!(ctrl(&bench) & !1, 0);
    assert_eq!(set(1 << 31 | 0x180), Ok(0));
    assert_eq!((ctrl(&bench), bench.info(handle).unwrap().pasid), (0x180 << 12 | 8, Pasid::new(0x180)));
    for forged in [0xfffff << 12 | 8, 0x199 << 12 | 8, 1 << 3, 0] {
        bench.poke(handle.index(), Field::Control, forged).unwrap();
        assert_eq!(ctrl(&bench), 0x180 << 12 | 8, "{forged:#x}");
        assert_eq!(bench.seen(handle.index())[3], 0x180 << 12 | 8);
    }
    bench.on(Call::Mask, handle).unwrap();
    assert_eq!(ctrl(&bench), 0x180 << 12 | 9, "masking keeps it");
    bench.on(Call::Unmap, handle).unwrap();
    assert_eq!(bench.info(handle).unwrap().pasid, Pasid::new(0x180), "so does unmapping");
    bench.on(Call::Free, handle).unwrap();
    assert_eq!(ctrl(&bench), 1, "freeing does not");
    assert_eq!(bench.info(bench.alloc()).unwrap().pasid, None);
}

#[test]
fn a_write_that_cannot_be_had_reads_as_masked_and_is_among_the_guests_faults() {
    let bench = Bench::with(512, 2);
    for slot in [0, 1] {
        bench.program(slot, ADDRESS, 0x40 + u32::from(slot)).unwrap();
    }
    assert_eq!(bench.program(2, ADDRESS, 0x42), Err(Status::NoFreeVector));
    assert_eq!((bench.seen(2)[3] & 1, bench.fire(2)), (1, None));
    let faults = bench.faults(8);
    assert_eq!((faults.len(), faults[0].slot, faults[0].kind), (1, 2, FaultKind::Refused(Status::NoFreeVector)));
    // One that fires is sent where no vector is left.
    assert_eq!(bench.poke(1, Field::Data, 0x43), Err(Status::NoFreeVector));
    assert_eq!((bench.seen(1)[3] & 1, bench.fire(1), bench.faults(8).len()), (1, None, 1));
    // The guest gives one up, and tries again.
    bench.poke(0, Field::Control, 1).unwrap();
    bench.write(StoreName::Ims, 0, 8, 0).unwrap();
    bench.poke(0, Field::Data, 0).unwrap();
    assert_eq!(bench.poke(2, Field::Control, 0), Ok(()));
    assert_eq!((bench.seen(2)[3] & 1, bench.fire(2)), (0, Some(target(0, 0x42))));
    assert_eq!(bench.faults(8), []);
}

#[test]
fn a_guest_that_enabled_an_earlier_version_gets_no_fault_that_it_does_not_know() {
    let bench = Bench::with(512, 0);
    bench.domain.enable(2);
    assert_eq!(bench.program(2, ADDRESS, 0x42), Err(Status::NoFreeVector));
    assert_eq!((bench.seen(2)[3] & 1, bench.faults(8)), (1, vec![]));
}

#[test]
fn feature_hidden_when_unaware_nothing_is_done_for_a_guest_before_it_enables_the_interface() {
    let service = Service::new(Machine::new(16, 16));
    let device = function(1);
    for store in [device.msix, device.ims].into_iter().flatten() {
        service.ports().plug(store, device.requester, GuestId(1), &PROCESSORS);
    }
    let spec = GuestSpec { guest: GuestId(1), apic_ids: PROCESSORS.to_vec(), hypercalls: true, devices: vec![device] };
    let domain = service.attach(spec).unwrap();
    let bench = Bench { service, domain };
    let before = bench.machine().snapshot();
    for call in Call::ALL.into_iter().filter(|call| !matches!(call, Call::Nop | Call::Enable)) {
        assert_eq!(bench.call(call, [DEVICE_ARG, 0, 0, 0]), Err(Status::NotEnabled), "{call:?}");
    }
    assert_eq!(bench.program(0, ADDRESS, 0x40), Err(Status::NotEnabled));
    assert_eq!(bench.machine().snapshot(), before);
    assert_eq!(bench.write(StoreName::Msix, 8, 8, 0x40), Err(Status::InvalidArgument), "MSI-X is there");
    assert_eq!(bench.call(Call::Enable, [2 << 16, 0, 0, 0]), Err(Status::Unsupported));
    assert_eq!(bench.call(Call::Enable, [1 << 32 | 1 << 16, 0, 0, 0]), Err(Status::InvalidArgument));
    assert_eq!(bench.call(Call::Enable, [1 << 16 | 9, 0, 0, 0]), Ok(4), "the lower minor version");
    assert_eq!(bench.program(0, ADDRESS, 0x40), Ok(()));
    assert_eq!(bench.fire(0), Some(target(0, 0x40)));
}

#[test]
fn feature_storm_the_slot_that_fires_is_masked_and_those_beside_it_lose_nothing() {
    let bench = Bench::new();
    let [storm, quiet, once] = [(); 3].map(|()| bench.mapped(target(0, 0x40)));
    let away = bench.mapped(target(0, 0x41));
    let round = |last| {
        let mut told = Vec::new();
        let held = bench.service.unthrottle(&bench.domain, target(0, 0x40), last, |slot| told.push(slot.slot));
        (held, told)
    };
    bench.service.throttle(&bench.domain, target(0, 0x40));
    assert_eq!(bench.fire(away.index()), Some(target(0, 0x41)), "another vector's slot is not held");
    for slot in [storm, once] {
        assert_eq!(bench.fire(slot.index()), None);
        bench.machine().set_pending(&bench.spec(StoreName::Ims), slot.index(), true);
    }
    assert_eq!(bench.seen(storm.index())[3] & 1, 0, "the guest does not see that it is held");
    assert_eq!(round(false), (2, vec![]));
    assert_eq!(bench.fire(quiet.index()), Some(target(0, 0x40)), "nothing was pending there");
    bench.machine().set_pending(&bench.spec(StoreName::Ims), storm.index(), true);
    assert_eq!(round(true), (0, vec![storm.index()]));
    assert_eq!([once, quiet].map(|slot| bench.fire(slot.index())), [Some(target(0, 0x40)); 2]);
    assert_eq!(bench.fire(storm.index()), None);
    let info = bench.info(storm).unwrap();
    assert!(info.masked && info.limited && info.pending);
    let faults = bench.faults(8);
    assert_eq!((faults.len(), faults[0].slot, faults[0].kind), (1, storm.index(), FaultKind::Storm));
    bench.on(Call::Unmask, storm).unwrap();
    assert!(!bench.info(storm).unwrap().limited);
    assert_eq!(bench.fire(storm.index()), Some(target(0, 0x40)));
}

#[test]
fn feature_storm_messages_that_a_function_writes_past_its_slots_are_dropped_by_the_unit() {
    let bench = Bench::new();
    let [slot, away] = [0x40, 0x41].map(|vector| bench.mapped(target(0, vector)));
    let source = function(1).requester;
    let by_dma = |handle| {
        let Message { address, data } = bench.machine().message(bench.entry_of(handle));
        bench.machine().deliver(MessagePair { address, data }, source)
    };
    assert_eq!(by_dma(slot), Some(target(0, 0x40)));
    let block = || {
        let mut told = Vec::new();
        bench.service.block(&bench.domain, target(0, 0x40), |slot| told.push(slot.slot));
        told
    };
    bench.service.throttle(&bench.domain, target(0, 0x40));
    assert_eq!(block(), [slot.index()]);
    assert_eq!((by_dma(slot), bench.fire(slot.index())), (None, None));
    assert_eq!(by_dma(away), Some(target(0, 0x41)), "another vector's");
    assert_eq!(block(), [], "it is told once");
    let info = bench.info(slot).unwrap();
    assert!(info.masked && info.limited);
    assert_eq!((bench.faults(8).len(), bench.seen(slot.index())[3] & 1), (1, 1));
    bench.on(Call::Unmask, slot).unwrap();
    assert_eq!((by_dma(slot), bench.fire(slot.index())), (Some(target(0, 0x40)), Some(target(0, 0x40))));
    // One that is sent elsewhere meanwhile, and one that is given up.
    assert_eq!(block(), [slot.index()]);
    bench.retarget(slot, target(1, 0x42)).unwrap();
    assert_eq!((by_dma(slot), bench.fire(slot.index())), (Some(target(1, 0x42)), None));
    bench.on(Call::Unmask, slot).unwrap();
    assert_eq!(bench.fire(slot.index()), Some(target(1, 0x42)));
    bench.service.block(&bench.domain, target(1, 0x42), |_| ());
    for handle in [slot, away] {
        bench.on(Call::Free, handle).unwrap();
    }
    assert_eq!(bench.machine().used(), (0, 0));
}

#[test]
fn a_slot_that_is_blocked_while_no_flush_comes_to_an_end_is_flushed_before_it_fires() {
    let bench = Bench::new();
    let slot = bench.mapped(target(0, 0x40));
    bench.machine().silence();
    bench.service.block(&bench.domain, target(0, 0x40), |_| ());
    assert_eq!(bench.fire(slot.index()), None);
    bench.on(Call::Unmask, slot).unwrap_err();
    assert_eq!(bench.fire(slot.index()), None);
    bench.machine().mend();
    bench.on(Call::Unmask, slot).unwrap();
    assert_eq!(bench.fire(slot.index()), Some(target(0, 0x40)));
}

#[test]
fn a_slot_that_the_guest_changes_while_it_is_held_is_the_guests() {
    let bench = Bench::new();
    let [masked, unmasked, freed, moved, both, written] = [(); 6].map(|()| bench.mapped(target(0, 0x40)));
    bench.service.throttle(&bench.domain, target(0, 0x40));
    bench.on(Call::Mask, both).unwrap();
    bench.retarget(both, target(1, 0x41)).unwrap();
    assert_eq!(bench.fire(both.index()), None, "it was masked before it moved");
    bench.on(Call::Unmask, both).unwrap();
    assert_eq!(bench.fire(both.index()), Some(target(1, 0x41)));
    bench.retarget(moved, target(1, 0x41)).unwrap();
    bench.on(Call::Mask, masked).unwrap();
    bench.on(Call::Unmask, unmasked).unwrap();
    bench.on(Call::Free, freed).unwrap();
    bench.poke(written.index(), Field::AddressLo, 0).unwrap_err();
    assert_eq!(bench.fire(unmasked.index()), None, "it is held as before, or nobody had a limit");
    assert_eq!(bench.service.unthrottle(&bench.domain, target(0, 0x40), true, |_| panic!("nobody is a storm")), 0);
    assert_eq!(bench.fire(masked.index()), None);
    assert_eq!(bench.fire(written.index()), None, "it is not what the guest was given");
    assert_eq!(bench.fire(unmasked.index()), Some(target(0, 0x40)));
    assert_eq!(bench.fire(freed.index()), None);
    assert_eq!(bench.fire(moved.index()), Some(target(1, 0x41)), "it is not forgotten where it went");
}

#[test]
fn feature_opaque_nothing_that_a_guest_reads_depends_on_the_hosts_entries_and_vectors() {
    // Two machines on which the same guest does the same; on the second one others hold entries and vectors before it.
    let play = |beside_another: bool| {
        let service = Service::new(Machine::new(512, 512));
        if !beside_another {
            return finish(service);
        }
        let domain = Bench::join(&service, 2, &[0, 1, 5]);
        let neighbour = Bench { service, domain };
        (0..30).for_each(|n| _ = neighbour.mapped(target(0, 0x40 + n)));
        finish(neighbour.service)
    };
    fn finish(service: Service<Machine>) -> Vec<String> {
        let domain = Bench::join(&service, 1, &PROCESSORS);
        let bench = Bench { service, domain };
        let mut seen = Vec::new();
        for n in 0..20u8 {
            let handle = bench.alloc();
            let (done, replies) = bench.map(&[request(handle, target(u32::from(n) % 2, 0x40 + n))]);
            bench.poke(200 + u16::from(n), Field::AddressLo, ADDRESS).unwrap();
            bench.poke(200 + u16::from(n), Field::Control, 0).unwrap_err();
            bench.program(250 + u16::from(n), ADDRESS, 0x50).unwrap();
            seen.push(format!("{done:?} {replies:?} {:?}", bench.info(handle)));
            bench.service.refused_message(bench.entry_of(handle), Bdf(0x777), 0x26);
        }
        seen.push(format!("{:?}", bench.faults(64)));
        seen.extend((0..IMS_SLOTS as u16).map(|slot| format!("{:x?}", bench.seen(slot))));
        seen
    }
    for (alone, beside_another) in std::iter::zip(play(false), play(true)) {
        assert_eq!(alone, beside_another);
    }
}

const QUEUE_ARG: u64 = DEVICE_ARG | 1 << 16;

impl Bench {
    fn in_queue(&self, call: Call, handle: SlotHandle) -> Result<u64, Status> {
        self.call(call, [QUEUE_ARG, handle.bits().into(), 0, 0])
    }

    /// Takes and maps a slot of the queue store; its message.
    fn queued(&self, target: Target) -> (SlotHandle, MessagePair) {
        let handle = SlotHandle::from_register(self.call(Call::Alloc, [QUEUE_ARG, 0, 0, 0]).unwrap()).unwrap();
        let mut page = [0; 4096];
        page[..16].copy_from_slice(&request(handle, target).to_bytes());
        let args = [QUEUE_ARG, PAGE.as_u64(), 1, ItemLayout::V1.0];
        assert_eq!(self.call_with(Call::Map, args, &mut page), Ok(1));
        page[..64].copy_from_slice(&SlotInfo::request());
        self.call_with(Call::QuerySlot, [QUEUE_ARG, handle.bits().into(), PAGE.as_u64(), 0], &mut page).unwrap();
        let info = SlotInfo::from_bytes(&page[..64].try_into().unwrap()).unwrap();
        (handle, info.mapping.unwrap().pair)
    }
}

#[test]
fn feature_store_queue_its_messages_are_real_and_lead_nowhere_when_their_slots_are_freed() {
    let bench = Bench::new();
    assert_eq!(bench.call(Call::Alloc, [QUEUE_ARG, 0, 0, 0]), Err(Status::NoFreeSlot), "it is not open");
    for (slots, status) in [(0, Status::InvalidArgument), (4097, Status::InvalidArgument), (8, Status::UnknownCall)] {
        let opened = bench.call(Call::OpenQueue, [DEVICE_ARG, slots, 0, 0]);
        assert_eq!(opened, if slots == 8 { Ok(0) } else { Err(status) });
    }
    assert_eq!(bench.call(Call::OpenQueue, [DEVICE_ARG, 8, 0, 0]), Err(Status::Exists));
    let array = bench.mapped(target(0, 0x40));
    let (first, _) = bench.queued(target(0, 0x44));
    let (handle, pair) = bench.queued(target(1, 0x41));
    assert_eq!(bench.machine().deliver(pair, Bdf(0xf1)), Some(target(1, 0x41)));
    assert_eq!(bench.machine().deliver(pair, Bdf(0xf2)), None, "nobody else can use it");
    let affinity = [QUEUE_ARG, handle.bits().into(), target(5, 0x42).to_register(), 0];
    assert_eq!(bench.call(Call::SetAffinity, affinity), Ok(0));
    assert_eq!(bench.machine().deliver(pair, Bdf(0xf1)), Some(target(5, 0x42)), "the message stays");
    for call in [Call::Mask, Call::Unmask, Call::SetAux] {
        assert_eq!(bench.in_queue(call, handle), Err(Status::Unsupported));
    }
    assert_eq!(bench.on(Call::Mask, handle), Err(Status::StaleHandle), "the array has its own slots");
    let before = bench.machine().slot(&bench.spec(StoreName::Ims), 0);
    assert_eq!((bench.in_queue(Call::Free, handle), bench.in_queue(Call::Unmap, first)), (Ok(0), Ok(0)));
    assert_eq!(bench.machine().deliver(pair, Bdf(0xf1)), None);
    assert_eq!(bench.machine().slot(&bench.spec(StoreName::Ims), 0), before, "the device was not touched");
    assert_eq!(bench.fire(array.index()), Some(target(0, 0x40)));
    let (_, again) = bench.queued(target(0, 0x43));
    bench.service.device_reset(&bench.domain, DEVICE).unwrap();
    assert_eq!(bench.machine().deliver(again, Bdf(0xf1)), None, "after a reset");
    assert_eq!(bench.machine().used(), (0, 0));
}

/// Memory that says where such a message goes is the guest's, and the device may send it long after.
#[test]
fn feature_store_queue_its_entries_are_given_back_when_the_guest_leaves_or_resets_the_function() {
    let leave = |bench: &Bench| bench.service.detach(&bench.domain);
    let reset = |bench: &Bench| bench.service.function_reset(&bench.domain, DEVICE).unwrap();
    for gone in [&leave as &dyn Fn(&Bench), &reset] {
        let bench = Bench::new();
        bench.call(Call::OpenQueue, [DEVICE_ARG, 8, 0, 0]).unwrap();
        bench.mapped(target(0, 0x40));
        let pairs = [0x44, 0x45].map(|vector| bench.queued(target(0, vector)).1);
        assert_eq!(bench.machine().deliver(pairs[1], Bdf(0xf1)), Some(target(0, 0x45)));
        gone(&bench);
        assert_eq!(pairs.map(|pair| bench.machine().deliver(pair, Bdf(0xf1))), [None; 2]);
        assert_eq!((bench.machine().used(), bench.service.counters().live), ((0, 0), 0));
    }
}

#[test]
fn feature_storm_messages_of_a_store_in_the_guests_memory_are_dropped_until_they_are_sent_elsewhere() {
    let bench = Bench::new();
    bench.call(Call::OpenQueue, [DEVICE_ARG, 8, 0, 0]).unwrap();
    let (handle, pair) = bench.queued(target(0, 0x41));
    let mut told = 0;
    bench.service.block(&bench.domain, target(0, 0x41), |_| told += 1);
    assert_eq!((told, bench.machine().deliver(pair, Bdf(0xf1))), (1, None));
    let affinity = [QUEUE_ARG, handle.bits().into(), target(1, 0x42).to_register(), 0];
    assert_eq!(bench.call(Call::SetAffinity, affinity), Ok(0));
    assert_eq!(bench.machine().deliver(pair, Bdf(0xf1)), Some(target(1, 0x42)));
}

#[test]
fn a_guest_that_takes_all_that_it_can_leaves_the_others_their_entries() {
    let most = crate::most_entries(MSIX_SLOTS + IMS_SLOTS);
    let bench = Bench::with(most, 512);
    bench.call(Call::OpenQueue, [DEVICE_ARG, QUEUE_SLOTS_MAX, 0, 0]).unwrap();
    (0..QUEUE_SLOTS_MAX).for_each(|_| _ = bench.queued(target(0, 0x44)));
    (0..IMS_SLOTS).for_each(|_| _ = bench.mapped(target(0, 0x44)));
    for slot in 0..MSIX_SLOTS as u16 {
        for (field, value) in [(Field::AddressLo, ADDRESS), (Field::Data, 0x44), (Field::Control, 0)] {
            bench.write(StoreName::Msix, field.offset(slot), 4, value.into()).unwrap();
        }
    }
    let live = bench.service.counters().live;
    assert_eq!(live, QUEUE_SLOTS_MAX + u64::from(MSIX_SLOTS + IMS_SLOTS));
    assert!(live < most.into(), "{live} of {most}");
}

#[test]
fn feature_store_queue_is_refused_where_others_share_the_requester_id() {
    let service = Service::new(Machine::new(16, 16));
    let shared = DeviceSpec { shares_requester: true, ims: None, msix: None, ..function(1) };
    let spec = GuestSpec { guest: GuestId(1), apic_ids: vec![0], hypercalls: true, devices: vec![shared] };
    let domain = service.attach(spec).unwrap();
    domain.enable(hcall_abi::VERSION_MINOR);
    let bench = Bench { service, domain };
    assert_eq!(bench.call(Call::OpenQueue, [DEVICE_ARG, 8, 0, 0]), Err(Status::NotIsolated));
    assert_eq!(bench.call(Call::Alloc, [QUEUE_ARG, 0, 0, 0]), Err(Status::NoFreeSlot));
}
