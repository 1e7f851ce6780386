//! Each operation, with each of its port calls failing in turn.

use super::*;
use crate::{service::PendingRelease, slot::Binding};

/// What is done, on a bench prepared for it.
struct Scenario {
    name: &'static str,
    prepare: fn(&Bench) -> SlotHandle,
    act: fn(&Bench, SlotHandle) -> Result<(), Status>,
}

fn batch(bench: &Bench, first: SlotHandle) -> Vec<MapRequest> {
    let mut handles = vec![first];
    handles.extend((0..3).map(|_| bench.alloc()));
    let request =
        |(n, handle): (u8, _)| MapRequest { handle, target: target(0, 0x40 + n % 2), unmask: n != 1, cookie: 1 };
    (0..).zip(handles).map(request).collect()
}

/// Maps a batch whose slots were allocated: allocation has no port calls, and is not undone.
fn map_batch(bench: &Bench, first: SlotHandle) -> Result<(), Status> {
    bench.map(&batch(bench, first)).0.map(drop)
}

fn mapped(bench: &Bench) -> SlotHandle {
    bench.mapped(target(0, 0x40))
}

const CALLS: &[Scenario] = &[
    Scenario {
        name: "map",
        prepare: Bench::alloc,
        act: |bench, handle| {
            let request = MapRequest { handle, target: target(0, 0x40), unmask: true, cookie: 1 };
            bench.map_one(request).map(drop)
        },
    },
    Scenario {
        name: "affinity",
        prepare: mapped,
        act: |bench, handle| bench.retarget(handle, target(1, 0x41)).map(drop),
    },
    Scenario { name: "mask", prepare: mapped, act: |bench, handle| bench.on(Call::Mask, handle).map(drop) },
    Scenario {
        name: "unmask",
        prepare: |bench| {
            let handle = mapped(bench);
            bench.on(Call::Mask, handle).unwrap();
            handle
        },
        act: |bench, handle| bench.on(Call::Unmask, handle).map(drop),
    },
    Scenario { name: "unmap", prepare: mapped, act: |bench, handle| bench.on(Call::Unmap, handle).map(drop) },
    Scenario { name: "free", prepare: mapped, act: |bench, handle| bench.on(Call::Free, handle).map(drop) },
];

const WRITES: &[Scenario] = &[
    Scenario { name: "first unmask", prepare: Bench::alloc, act: |bench, _| bench.program(9, ADDRESS, 0x40) },
    Scenario { name: "change in place", prepare: programmed, act: |bench, _| bench.poke(9, Field::Data, 0x41) },
    Scenario { name: "mask", prepare: programmed, act: |bench, _| bench.poke(9, Field::Control, 1) },
    Scenario { name: "wrong message", prepare: programmed, act: |bench, _| bench.poke(9, Field::Data, 0) },
    Scenario {
        name: "give up",
        prepare: programmed,
        act: |bench, _| {
            bench.write(StoreName::Ims, 9 * 16 + 8, 8, 1 << 32)?;
            bench.write(StoreName::Ims, 9 * 16, 8, 0)
        },
    },
];

fn programmed(bench: &Bench) -> SlotHandle {
    bench.program(9, ADDRESS, 0x40).unwrap();
    bench.alloc()
}

/// Runs a scenario with the `k`-th call failing, and `count` altogether, for all `k`.
fn each_failure(
    scenario: &Scenario,
    count: usize,
    check: impl Fn(&Bench, SlotHandle, machine::Snapshot, Result<(), Status>),
) {
    for k in 0.. {
        assert!(k < 50, "{} does not come to an end", scenario.name);
        let bench = Bench::new();
        let handle = (scenario.prepare)(&bench);
        let before = bench.machine().snapshot();
        bench.machine().fail(k, count);
        let result = (scenario.act)(&bench, handle);
        if !bench.machine().mend() {
            return;
        }
        check(&bench, handle, before, result);
        bench.service.reclaim();
        bench.service.detach(&bench.domain);
        assert_eq!(bench.machine().used(), (0, 0), "{} leaks when call {k} fails", scenario.name);
        assert_eq!(bench.service.counters().live, 0);
        assert_eq!(bench.service.counters().quarantined, 0);
    }
}

#[test]
fn a_call_that_fails_changes_nothing() {
    for scenario in CALLS {
        each_failure(scenario, 1, |bench, _, before, result| {
            if result.is_err() {
                assert_eq!(bench.machine().snapshot(), before, "{}", scenario.name);
            }
        });
    }
}

#[test]
fn a_call_can_be_made_again_after_any_failure() {
    for scenario in CALLS {
        for count in [1, 2, 3, usize::MAX] {
            each_failure(scenario, count, |bench, handle, _, result| {
                if result.is_err() {
                    assert_eq!((scenario.act)(bench, handle), Ok(()), "{}", scenario.name);
                }
            });
        }
    }
}

#[test]
fn a_mask_that_the_device_did_not_take_is_tried_again_at_the_next_write() {
    let bench = Bench::new();
    bench.program(9, ADDRESS, 0x40).unwrap();
    bench.machine().fail(0, 1);
    assert_eq!(bench.poke(9, Field::Control, 1), Err(Status::HardwareError));
    assert!(bench.machine().mend() && bench.fire(9).is_some());
    assert_eq!(bench.poke(9, Field::Data, 0x41), Ok(()));
    assert_eq!(bench.fire(9), None);
}

#[test]
fn a_batch_whose_flush_or_reply_fails_changes_nothing() {
    for k in 0.. {
        let bench = Bench::new();
        let requests = batch(&bench, bench.alloc());
        let before = bench.machine().snapshot();
        bench.machine().fail(k, 1);
        let (done, replies) = bench.map(&requests);
        if !bench.machine().mend() {
            assert!(k >= 11, "read, 4 routes, 4 entries, flush, write");
            break;
        }
        match done {
            Err(_) => assert_eq!(bench.machine().snapshot(), before),
            Ok(count) => {
                assert_eq!((count, replies.iter().filter(|reply| reply.is_err()).count()), (3, 1));
                assert_eq!(bench.machine().used().0, 3);
            }
        }
        let (done, _) = bench.map(&requests);
        assert_eq!(done, Ok(4), "what failed can be done again");
        let fires: Vec<_> = requests.iter().map(|request| bench.fire(request.handle.index()).is_some()).collect();
        assert_eq!(fires, [true, false, true, true]);
    }
}

#[test]
fn an_item_that_repeats_another_one_fails_as_that_does() {
    for (k, status) in [(1, Status::NoFreeVector), (2, Status::NoFreeEntry)] {
        let bench = Bench::new();
        let [first, second] = [0, 1].map(|_| bench.alloc());
        let request = |handle, vector| MapRequest { handle, target: target(0, vector), unmask: true, cookie: 1 };
        let requests = [request(first, 0x40), request(second, 0x41), request(first, 0x40), request(first, 0x42)];
        bench.machine().fail(k, 1);
        let (done, replies) = bench.map(&requests);
        assert_eq!(done, Ok(1));
        assert_eq!([replies[0], replies[2], replies[3]], [Err(status), Err(status), Err(Status::Exists)]);
        assert_eq!((bench.fire(first.index()), bench.machine().used()), (None, (1, 1)));
        assert_eq!(bench.on(Call::Unmask, first), Err(Status::NotMapped));
        let (done, _) = bench.map(&requests);
        assert_eq!(done, Ok(3));
        assert_eq!(bench.fire(first.index()), Some(target(0, 0x40)));
        assert_eq!(bench.domain.counters().refused, 3 + 1 + 1, "with what unmask asked for");
    }
}

#[test]
fn a_slot_that_is_mapped_again_to_be_unmasked_counts_if_it_is() {
    for k in 0.. {
        let bench = Bench::new();
        let request = MapRequest { handle: bench.alloc(), target: target(0, 0x40), unmask: false, cookie: 1 };
        bench.map_one(request).unwrap();
        bench.machine().fail(k, 1);
        let (done, _) = bench.map(&[MapRequest { unmask: true, ..request }]);
        let has_failed = bench.machine().mend();
        let fires = bench.fire(request.handle.index()).is_some();
        assert_eq!(done.unwrap_or(0), fires.into(), "call {k} failed");
        if !has_failed {
            assert!(fires);
            break;
        }
    }
}

#[test]
fn a_trapped_write_that_fails_leaves_a_safe_slot_that_mends_itself() {
    for scenario in WRITES {
        for count in [1, 2, 3, usize::MAX] {
            each_failure(scenario, count, |bench, _, _, _| {
                // What the guest sees is what it wrote, and the next write makes it work.
                assert!(bench.seen(9)[2] < 0x42);
                bench.poke(9, Field::Control, 1).unwrap();
                bench.program(9, ADDRESS, 0x43).unwrap();
                assert_eq!(bench.fire(9), Some(target(0, 0x43)), "{}", scenario.name);
            });
        }
    }
}

#[test]
fn a_unit_that_never_answers_again_keeps_what_it_may_still_use() {
    let bench = Bench::new();
    let handle = mapped(&bench);
    programmed(&bench);
    bench.machine().fail(0, usize::MAX);
    bench.service.detach(&bench.domain);
    assert_eq!(bench.machine().used(), (2, 1), "neither index nor route is given to anybody else");
    assert_eq!(bench.service.counters().quarantined, 2);
    assert_eq!([1, 2].map(|guest| bench.service.has_in_quarantine(GuestId(guest))), [true, false]);
    assert_eq!(bench.fire(handle.index()), None);
    bench.machine().mend();
    assert_eq!(bench.service.reclaim(), 0);
    assert!(!bench.service.has_in_quarantine(GuestId(1)));
    assert_eq!(bench.machine().used(), (0, 0));
}

#[test]
fn map_fails_whole_when_nothing_can_be_flushed() {
    let bench = Bench::new();
    let first = bench.alloc();
    bench.machine().fail(2 * 4 + 1, usize::MAX);
    assert_eq!(map_batch(&bench, first), Err(Status::HardwareError));
    assert_eq!(bench.service.counters().quarantined, 4);
    bench.machine().mend();
    assert_eq!(bench.on(Call::Unmask, first), Err(Status::NotMapped));
    assert_eq!(bench.service.reclaim(), 0);
    assert_eq!(bench.machine().used(), (0, 0));
}

#[test]
fn an_entry_that_is_not_surely_flushed_waits_masked_for_a_flush() {
    let bench = Bench::new();
    let handle = mapped(&bench);
    bench.machine().fail(1, usize::MAX);
    assert_eq!(bench.retarget(handle, target(1, 0x41)), Err(Status::HardwareError));
    assert_eq!(bench.fire(handle.index()), None, "neither the old place nor the new one is sure");
    assert_eq!(bench.on(Call::Unmask, handle), Err(Status::HardwareError));
    assert_eq!(bench.machine().used(), (1, 2), "the cache may have either route");
    bench.machine().mend();
    bench.machine().log();
    assert_eq!(bench.on(Call::Unmask, handle), Ok(0));
    assert_eq!(bench.machine().log(), [machine::Op::Flush(vec![0]), machine::Op::Write(0, Field::Control, 0)]);
    assert_eq!(bench.fire(handle.index()), Some(target(0, 0x40)));
    assert_eq!(bench.service.reclaim(), 0);
    assert_eq!(bench.machine().used(), (1, 1));
}

#[test]
fn more_than_the_quarantine_remembers_stays_reserved_and_its_guest_gets_nothing_more() {
    let bench = Bench::new();
    let route = machine::NOWHERE;
    let held = |guest| PendingRelease {
        guest: GuestId(guest),
        binding: Binding { route, target: target(0, 0x40), entry: EntryIndex(0) },
        with_entry: false,
    };
    (0..64).for_each(|_| bench.service.quarantine(&[held(2); 256]));
    assert_eq!(bench.service.counters().quarantined, 16_384);
    (0..3).for_each(|_| bench.service.quarantine(&[held(1)]));
    assert_eq!(bench.service.counters().quarantined, 16_384);
    assert_eq!(bench.service.reclaim(), 0);
    assert_eq!([1, 2].map(|guest| bench.service.has_in_quarantine(GuestId(guest))), [true, false]);
    let request = MapRequest { handle: bench.alloc(), target: target(0, 0x40), unmask: true, cookie: 1 };
    assert_eq!(bench.map_one(request), Err(Status::HardwareError));
}
