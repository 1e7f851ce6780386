//! Batches as a hostile guest makes them: wrong items between right ones, the same slot again and again, failures in the middle, and other
//! processors that use the time between a batch's first step and its last.

use proptest::prelude::*;

use super::*;

/// Slots that batches are about.
const SLOTS: usize = 5;

/// One bit of an item, or of what it says, that is wrong.
#[derive(Clone, Copy, Debug)]
enum Wrong {
    Nothing,
    SlotBeyond,
    Stale,
    NeverGiven,
    Flags,
    Vector,
    Processor,
}

/// An item in the making.
#[derive(Clone, Copy, Debug)]
struct Item {
    slot: usize,
    processor: usize,
    vector: u8,
    unmask: bool,
    cookie: u64,
    wrong: Wrong,
}

fn any_item() -> impl Strategy<Value = Item> {
    let wrong = prop_oneof![
        12 => Just(Wrong::Nothing),
        6 => prop::sample::select(vec![
            Wrong::SlotBeyond, Wrong::Stale, Wrong::NeverGiven, Wrong::Flags, Wrong::Vector, Wrong::Processor,
        ]),
    ];
    (0..SLOTS, 0..2usize, 0x40..0x42u8, any::<bool>(), 0..2u64, wrong).prop_map(
        |(slot, processor, vector, unmask, cookie, wrong)| Item { slot, processor, vector, unmask, cookie, wrong },
    )
}

impl Item {
    /// The same for each item of a slot: where a slot's first item finds no room, another target might.
    fn alike(self) -> Self {
        let n = self.slot;
        Self { processor: n % 2, vector: 0x40 + n as u8 / 2, cookie: n as u64, ..self }
    }

    fn request(&self, handles: &[SlotHandle]) -> MapRequest {
        let target = target(PROCESSORS[self.processor], self.vector);
        MapRequest { handle: handles[self.slot], target, unmask: self.unmask, cookie: self.cookie }
    }

    fn bytes(&self, handles: &[SlotHandle]) -> [u8; 16] {
        let mut bytes = self.request(handles).to_bytes();
        match self.wrong {
            Wrong::Nothing => {}
            Wrong::SlotBeyond => bytes[0..2].copy_from_slice(&(IMS_SLOTS as u16).to_le_bytes()),
            Wrong::Stale => bytes[2] ^= 2,
            Wrong::NeverGiven => bytes[2..4].fill(0),
            Wrong::Flags => bytes[7] |= 0x80,
            Wrong::Vector => bytes[6] = 15,
            Wrong::Processor => bytes[4] = 2,
        }
        bytes
    }
}

/// What can be seen of a slot from outside.
fn outside(bench: &Bench, handle: SlotHandle) -> impl PartialEq + std::fmt::Debug {
    let mut page = [0; 4096];
    page[..hcall_abi::SlotInfo::SIZE].copy_from_slice(&hcall_abi::SlotInfo::request());
    let args = [DEVICE.0.into(), handle.bits().into(), PAGE.as_u64(), 0];
    bench.call_with(Call::QuerySlot, args, &mut page).unwrap();
    let info: [u8; hcall_abi::SlotInfo::SIZE] = page[..hcall_abi::SlotInfo::SIZE].try_into().unwrap();
    (info, bench.fire(handle.index()), bench.seen(handle.index()))
}

proptest! {
    #[test]
    fn a_batch_is_as_its_items_one_by_one(
        before in prop::collection::vec(any_item(), 0..3),
        written in prop::collection::vec((0..SLOTS, 0..4usize, 0..2u32), 0..3),
        items in prop::collection::vec(any_item(), 1..14),
        room in prop::option::of((1..8u32, 1..6usize)),
    ) {
        let (entries, vectors) = room.unwrap_or((512, 512));
        let items: Vec<_> = items.into_iter().map(|item| if room.is_some() { item.alike() } else { item }).collect();
        let benches = [0, 1].map(|_| Bench::with(entries, vectors));
        let handles = [0, 1].map(|n| (0..SLOTS).map(|_| benches[n].alloc()).collect::<Vec<_>>());
        prop_assert_eq!(&handles[0], &handles[1]);
        let handles = &handles[0];
        for bench in &benches {
            for item in &before {
                let _ = bench.map_one(item.request(handles));
            }
            for &(slot, field, value) in &written {
                let _ = bench.poke(slot as u16, Field::ALL[field], value);
            }
        }
        let bytes: Vec<_> = items.iter().map(|item| item.bytes(handles)).collect();
        let (done, replies) = benches[0].map_bytes(&bytes);
        let singly: Vec<_> = bytes.iter().map(|bytes| benches[1].map_bytes(&[*bytes]).1[0]).collect();
        prop_assert_eq!(&replies, &singly);
        prop_assert_eq!(done, Ok(singly.iter().filter(|reply| reply.is_ok()).count() as u64));
        prop_assert_eq!(benches[0].machine().used(), benches[1].machine().used());
        for &handle in handles {
            prop_assert_eq!(outside(&benches[0], handle), outside(&benches[1], handle));
        }
        for bench in &benches {
            prop_assert_eq!(bench.service.counters().live as usize, bench.machine().used().0);
            bench.service.detach(&bench.domain);
            prop_assert_eq!(bench.machine().used(), (0, 0));
        }
    }
}

/// Memory of a guest whose other virtual processor does something between a batch's flush and its end.
struct Between<'a, F: Fn(&Bench)>(&'a Bench, &'a [MapRequest], F);

impl<F: Fn(&Bench)> CallingGuest for Between<'_, F> {
    fn read(&self, _: Gpa, into: &mut [u8]) -> Result<(), Status> {
        let items: Vec<_> = self.1.iter().map(MapRequest::to_bytes).collect();
        into.copy_from_slice(items.as_flattened());
        Ok(())
    }

    fn write(&self, _: Gpa, _: &[u8]) -> Result<(), Status> {
        self.2(self.0);
        Ok(())
    }
}

fn map_between(bench: &Bench, requests: &[MapRequest], between: impl Fn(&Bench)) -> Result<u64, Status> {
    let args = [DEVICE.0.into(), PAGE.as_u64(), requests.len() as u64, ItemLayout::V1.0];
    let memory = Between(bench, requests, between);
    result_from_rax(bench.service.hypercall(&bench.domain, Call::Map.number(CALL_BASE), args, &memory))
}

/// A batch of an item that gets no entry and of one that repeats it. Before its end another processor maps the slot so, and leaves it masked;
/// then comes `after`.
fn map_twice_without_entries(bench: &Bench, handle: SlotHandle, after: impl Fn(&Bench)) -> Result<u64, Status> {
    let request = MapRequest { handle, target: target(0, 0x40), unmask: true, cookie: 1 };
    bench.machine().fail(1, 1);
    map_between(bench, &[request, request], |bench| {
        bench.machine().mend();
        bench.map_one(MapRequest { unmask: false, ..request }).unwrap();
        after(bench);
    })
}

#[test]
fn an_item_that_failed_does_nothing_to_what_another_processor_has_mapped_since() {
    let bench = Bench::new();
    let handle = bench.alloc();
    assert_eq!(map_twice_without_entries(&bench, handle, |_| {}), Ok(0));
    assert_eq!(bench.fire(handle.index()), None, "it is masked, as who mapped it has asked");
}

#[test]
fn what_failed_items_repeat_is_counted_once() {
    let bench = Bench::new();
    let handle = bench.alloc();
    let done = map_twice_without_entries(&bench, handle, |bench| {
        // The unit fails while the slot goes elsewhere, and from then on: it cannot be unmasked.
        bench.machine().fail(1, usize::MAX);
        bench.retarget(handle, target(1, 0x41)).unwrap_err();
    });
    assert_eq!(done, Ok(0));
}

#[test]
fn while_no_flush_comes_to_an_end_a_slot_that_is_sent_about_keeps_two_routes_at_most() {
    let bench = Bench::new();
    let handle = bench.mapped(target(0, 0x40));
    bench.program(9, ADDRESS, 0x40).unwrap();
    bench.machine().silence();
    for round in 0..50 {
        bench.retarget(handle, target(PROCESSORS[round % 3], 0x50 + round as u8)).unwrap_err();
        let _ = bench.poke(9, Field::Data, 0x50 + round as u32);
        assert_eq!((bench.seen(9)[3] & 1, bench.fire(9)), (1, None));
        bench.poke(9, Field::Control, 0).unwrap_err();
    }
    assert_eq!((bench.service.counters().quarantined, bench.machine().used()), (2, (2, 2)));
    bench.machine().mend();
    assert_eq!(bench.service.reclaim(), 0);
    bench.retarget(handle, target(1, 0x41)).unwrap();
    bench.poke(9, Field::Data, 0x42).unwrap();
    bench.poke(9, Field::Control, 0).unwrap();
    assert_eq!([handle.index(), 9].map(|slot| bench.fire(slot)), [Some(target(1, 0x41)), Some(target(0, 0x42))]);
    assert_eq!(bench.machine().used(), (2, 2));
}

#[test]
fn a_slot_whose_flush_failed_sends_again_when_it_went_elsewhere_after_all() {
    let bench = Bench::new();
    let handle = bench.mapped(target(0, 0x40));
    bench.machine().fail(1, 2);
    bench.retarget(handle, target(1, 0x41)).unwrap_err();
    bench.machine().mend();
    assert_eq!(bench.fire(handle.index()), None);
    bench.retarget(handle, target(1, 0x41)).unwrap();
    assert_eq!(bench.fire(handle.index()), Some(target(1, 0x41)), "nobody has masked it");
}

#[test]
fn while_no_flush_comes_to_an_end_a_guest_gets_no_more_than_one_call_asks_for() {
    let bench = Bench::new();
    let other = Bench::join(&bench.service, 2, &[0]);
    let kept = bench.mapped(target(0, 0x40));
    let requests: Vec<_> = (0..100)
        .map(|n| MapRequest { handle: bench.alloc(), target: target(0, 0x41 + n % 2), unmask: true, cookie: 0 })
        .collect();
    bench.machine().silence();
    for _ in 0..4 {
        assert_eq!(bench.map(&requests).0, Err(Status::HardwareError));
        assert_eq!(bench.map_one(requests[0]), Err(Status::HardwareError));
        bench.program(200, ADDRESS, 0x43).unwrap_err();
        bench.poke(200, Field::Control, 1).unwrap();
    }
    assert_eq!((bench.service.counters().quarantined, bench.machine().used()), (100, (101, 3)));
    let write =
        |field: Field, value| bench.service.store_write(&other, DEVICE, StoreName::Ims, field.offset(0), 4, value);
    write(Field::AddressLo, ADDRESS.into()).unwrap();
    write(Field::Data, 0x40).unwrap();
    bench.machine().mend();
    write(Field::Control, 0).unwrap();
    assert_eq!(
        (bench.service.counters().quarantined, bench.machine().used()),
        (100, (102, 4)),
        "the other guest waits for nobody"
    );
    assert_eq!(bench.map(&requests).0, Ok(100));
    assert_eq!((bench.service.counters().quarantined, bench.machine().used()), (0, (102, 4)));
    assert_eq!(bench.fire(kept.index()), Some(target(0, 0x40)));
}

#[test]
fn a_slot_that_is_held_and_overwritten_is_not_let_go_by_being_sent_elsewhere() {
    let bench = Bench::new();
    let handle = bench.mapped(target(0, 0x40));
    bench.service.throttle(&bench.domain, target(0, 0x40));
    assert_eq!(bench.poke(handle.index(), Field::Data, 0x99), Err(Status::InvalidArgument));
    bench.retarget(handle, target(1, 0x41)).unwrap();
    assert_eq!(bench.fire(handle.index()), None, "what it shows is not what it would send");
    bench.poke(handle.index(), Field::Data, handle.bits()).unwrap();
    assert_eq!(bench.fire(handle.index()), Some(target(1, 0x41)));
}

#[test]
fn a_slot_that_is_held_stays_so_when_its_flush_is_made_up_for() {
    let bench = Bench::new();
    let handle = bench.mapped(target(0, 0x40));
    bench.service.throttle(&bench.domain, target(0, 0x40));
    bench.machine().fail(1, 2);
    bench.retarget(handle, target(1, 0x41)).unwrap_err();
    bench.machine().mend();
    bench.retarget(handle, target(0, 0x40)).unwrap();
    assert_eq!(bench.fire(handle.index()), None);
    assert_eq!(bench.service.unthrottle(&bench.domain, target(0, 0x40), true, |_| panic!("it has not fired")), 0);
    assert_eq!(bench.fire(handle.index()), Some(target(0, 0x40)));
}
