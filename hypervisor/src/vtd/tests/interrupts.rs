//! Interrupt remapping, numbered by the attacks that it has to survive.

use proptest::prelude::*;

use super::*;
use crate::{
    addr::Hpa,
    vtd::{
        Error, Reason, Request, Route,
        spec::registers::{GCMD, global},
    },
};

const HERE: Route = Route::Remapped { vector: 0x41, destination: 0x123 };
const THERE: Route = Route::Remapped { vector: 0x52, destination: 7 };

fn bench() -> Bench {
    Bench::new(capable())
}

#[test]
fn an_interrupt_goes_where_its_entry_says() {
    let bench = bench();
    let remapper = bench.start();
    let index = remapper.reserve(DSA).unwrap();
    assert_eq!(blocked(bench.fire(DSA, index)), Some(0x22));
    remapper.program(index, HERE).unwrap();
    assert_eq!(remapped(bench.fire(DSA, index)), Some((0x41, 0x123)));
    bench.assert_clean();
}

#[test]
fn without_extended_mode_destinations_have_eight_bits() {
    let bench = Bench::new(vtd_model::Config { extended_interrupt_mode: false, ..capable() });
    let remapper = bench.start_with(Config { wide_destinations: false, ..CONFIG });
    let index = remapper.reserve(DSA).unwrap();
    assert_eq!(remapper.program(index, HERE), Err(Error::BadDestination));
    assert_eq!(remapper.program(index, Route::Remapped { vector: 64, destination: 0xff }), Err(Error::BadDestination));
    remapper.program(index, Route::Remapped { vector: 64, destination: 0xfe }).unwrap();
    assert_eq!(remapped(bench.fire(DSA, index)), Some((64, 0xfe)));
}

#[test]
fn a_posted_entry_sets_the_vectors_bit_and_notifies_once() {
    let bench = bench();
    let remapper = bench.start();
    let descriptor = bench.page().checked_add(64).unwrap();
    // NV = F2H, NDST = 9 (VT-d 9.12).
    let control = 0xf2u64 << 16 | 9 << 32;
    assert!(HostMemory(&bench.frames).write(descriptor.as_u64() + 32, &control.to_le_bytes()));
    let index = remapper.reserve(DSA).unwrap();
    remapper.program(index, Route::Posted { descriptor, vector: 70 }).unwrap();
    assert_eq!(bench.fire(DSA, index), InterruptResult::Posted { notify: Some((0xf2, 9)) });
    assert_eq!(bench.quadword(descriptor.as_u64() + 8), 1 << (70 - 64));
    assert_eq!(bench.fire(DSA, index), InterruptResult::Posted { notify: None });
    bench.assert_clean();
}

#[test]
fn attack_10_an_entry_changes_between_posted_and_remapped_form() {
    let bench = bench();
    let remapper = bench.start();
    let index = remapper.reserve(DSA).unwrap();
    let posted = Route::Posted { descriptor: bench.page(), vector: 70 };
    for _ in 0..2 {
        remapper.program(index, posted).unwrap();
        remapper.flush_entries([index].into_iter()).unwrap();
        assert!(matches!(bench.fire(DSA, index), InterruptResult::Posted { .. }));
        remapper.program(index, HERE).unwrap();
        remapper.flush_entries([index].into_iter()).unwrap();
        assert_eq!(remapped(bench.fire(DSA, index)), Some((0x41, 0x123)));
    }
    bench.assert_clean();
}

#[test]
fn attack_01_compatibility_format_is_blocked_and_recorded() {
    let bench = Bench::new(vtd_model::Config { extended_interrupt_mode: false, ..capable() });
    // As firmware may leave it.
    bench.write32(GCMD, global::CFI);
    let remapper = bench.start_with(Config { wide_destinations: false, ..CONFIG });
    assert_eq!(remapper.unit().status() & global::CFI, 0);
    assert_eq!(blocked(bench.send(DSA, 0xfee0_1000, 0x41)), Some(0x25));
    let fault = faults(&remapper)[0];
    assert_eq!((fault.source, fault.reason), (DSA, Reason(0x25)));
    assert_eq!(fault.to_string(), "00:1e.0 interrupt 0: compatibility-format interrupt blocked (0x25)");
}

#[test]
fn attack_05_another_requester_cannot_use_an_entry() {
    let bench = bench();
    let remapper = bench.start();
    let index = remapper.reserve(DSA).unwrap();
    remapper.program(index, HERE).unwrap();
    assert_eq!(blocked(bench.fire(OTHER, index)), Some(0x26));
    let expected = Fault { source: OTHER, pasid: None, reason: Reason(0x26), request: Request::Interrupt(index) };
    assert_eq!(faults(&remapper), [expected]);
    assert_eq!(faults(&remapper), []);
    assert_eq!(remapper.statistics().faults, 1);
}

/// Also the proof that the model would show a flush left out.
#[test]
fn attack_08_a_cleared_entry_works_until_it_is_flushed_and_not_after() {
    let bench = bench();
    let remapper = bench.start();
    let index = remapper.reserve(DSA).unwrap();
    remapper.program(index, HERE).unwrap();
    bench.fire(DSA, index);
    remapper.clear(index).unwrap();
    assert_eq!(remapped(bench.fire(DSA, index)), Some((0x41, 0x123)));
    remapper.flush_entries([index].into_iter()).unwrap();
    assert_eq!(blocked(bench.fire(DSA, index)), Some(0x22));
}

#[test]
fn attack_07_a_retarget_takes_effect_with_its_flush_and_is_never_absent() {
    let bench = bench();
    let remapper = bench.start();
    let index = remapper.reserve(DSA).unwrap();
    remapper.program(index, HERE).unwrap();
    assert_eq!(remapped(bench.fire(DSA, index)), Some((0x41, 0x123)));
    remapper.program(index, THERE).unwrap();
    assert_eq!(remapped(bench.fire(DSA, index)), Some((0x41, 0x123)));
    remapper.flush_entries([index].into_iter()).unwrap();
    assert_eq!(remapped(bench.fire(DSA, index)), Some((0x52, 7)));
    assert_eq!(bench.stats().blocked, 0);
}

#[test]
fn an_index_is_given_back_only_when_it_is_cleared_and_flushed() {
    let bench = bench();
    let remapper = bench.start();
    let index = remapper.reserve(DSA).unwrap();
    remapper.program(index, HERE).unwrap();
    assert_eq!(remapper.release(index), Err(Error::NotFlushed));
    remapper.flush_entries([index].into_iter()).unwrap();
    assert_eq!(remapper.release(index), Err(Error::NotFlushed));
    remapper.clear(index).unwrap();
    assert_eq!(remapper.release(index), Err(Error::NotFlushed));
    remapper.flush_entries([index].into_iter()).unwrap();
    remapper.release(index).unwrap();
    assert_eq!(remapper.release(index), Err(Error::NotReserved));
    assert_eq!(remapper.program(index, HERE), Err(Error::NotReserved));
    assert_eq!(remapper.reserve(OTHER), Ok(index));
    remapper.program(index, HERE).unwrap();
    assert_eq!(blocked(bench.fire(DSA, index)), Some(0x26));
}

#[test]
fn attack_03_when_all_entries_are_reserved_the_next_is_an_error() {
    let bench = bench();
    let remapper = bench.start();
    let all: Vec<_> = (0..256).map(|_| remapper.reserve(DSA).unwrap()).collect();
    assert_eq!(remapper.reserve(DSA), Err(Error::NoFreeEntry));
    remapper.release(all[7]).unwrap();
    assert_eq!(remapper.reserve(DSA), Ok(7));
    let statistics = remapper.statistics();
    assert_eq!((statistics.live, statistics.high_water), (256, 256));
}

#[test]
fn the_largest_table_reaches_its_last_entry() {
    let bench = bench();
    let remapper = bench.start_with(Config { entries: 65_536, ..CONFIG });
    assert_eq!(remapper.capacity(), 65_536);
    let last = (0..65_536).map(|_| remapper.reserve(DSA).unwrap()).last();
    assert_eq!(last, Some(0xffff));
    remapper.program(0xffff, HERE).unwrap();
    assert_eq!(remapped(bench.fire(DSA, 0xffff)), Some((0x41, 0x123)));
    bench.assert_clean();
}

#[test]
fn attack_12_to_14_routes_that_cannot_be_change_nothing() {
    let bench = bench();
    let remapper = bench.start();
    let index = remapper.reserve(DSA).unwrap();
    remapper.program(index, HERE).unwrap();
    let before = remapper.entry(index);
    let descriptor = Hpa::new(0x1000);
    let bad = [
        (Route::Remapped { vector: 15, destination: 1 }, Error::BadVector),
        (Route::Posted { vector: 0, descriptor }, Error::BadVector),
        (Route::Remapped { vector: 32, destination: u32::MAX }, Error::BadDestination),
        (Route::Posted { vector: 32, descriptor: Hpa::new(0x1020) }, Error::BadAddress),
        (Route::Posted { vector: 32, descriptor: Hpa::new(1 << 52) }, Error::BadAddress),
    ];
    for (route, error) in bad {
        assert_eq!(remapper.program(index, route), Err(error));
    }
    assert_eq!(remapper.entry(index), before);
}

#[test]
fn a_unit_that_does_not_post_is_not_asked_to() {
    let bench = Bench::new(vtd_model::Config { posted_interrupts: false, ..capable() });
    let remapper = bench.start();
    let index = remapper.reserve(DSA).unwrap();
    let posted = Route::Posted { descriptor: Hpa::new(0x1000), vector: 70 };
    assert_eq!(remapper.program(index, posted), Err(Error::NoPosting));
}

#[test]
fn a_batch_has_one_wait_and_a_run_few_flushes() {
    let bench = bench();
    let remapper = bench.start();
    let before = bench.stats();
    remapper.flush_entries(0..256).unwrap();
    let after = bench.stats();
    assert_eq!((after.waits - before.waits, after.iec_flushes - before.iec_flushes), (1, 1));
    remapper.flush_entries((0..256).step_by(2)).unwrap();
    assert_eq!((bench.stats().waits - after.waits, bench.stats().iec_flushes - after.iec_flushes), (1, 128));
}

#[test]
fn faults_beyond_the_records_are_told_to_be_lost() {
    let bench = Bench::new(vtd_model::Config { fault_records: 4, ..capable() });
    let remapper = bench.start();
    (0..6).for_each(|index| _ = bench.fire(DSA, index));
    let mut found = Vec::new();
    assert!(remapper.take_faults(|fault| found.push(fault.request)));
    assert_eq!(found, (0..4).map(Request::Interrupt).collect::<Vec<_>>());
    assert!(!remapper.take_faults(|_| ()));
    (6..9).for_each(|index| _ = bench.fire(DSA, index));
    assert_eq!(faults(&remapper).len(), 3);
}

#[test]
fn a_fault_event_is_sent_as_told() {
    let bench = bench();
    let remapper = bench.start();
    remapper.unit().set_fault_event(0xfee0_0000, 0x33);
    bench.fire(DSA, 0);
    assert_eq!(bench.model.lock().unwrap().take_fault_event(), Some((0xfee0_0000, 0x33)));
}

#[derive(Clone, Debug)]
enum Step {
    Reserve(Bdf),
    Program(u16, Route),
    Clear(u16),
    Flush(Vec<u16>),
    Release(u16),
    Fire(u16),
}

fn step() -> impl Strategy<Value = Step> {
    let index = || 0u16..20;
    let route = (any::<u8>(), 0u32..300).prop_map(|(vector, destination)| Route::Remapped { vector, destination });
    prop_oneof![
        prop_oneof![Just(DSA), Just(OTHER)].prop_map(Step::Reserve),
        (index(), route).prop_map(|(index, route)| Step::Program(index, route)),
        index().prop_map(Step::Clear),
        prop::collection::vec(index(), 0..8).prop_map(Step::Flush),
        index().prop_map(Step::Release),
        index().prop_map(Step::Fire),
    ]
}

/// Has the unit hold all of its table's 256 entries in its cache.
fn cache_all(bench: &Bench, remapper: &Remapper<'_, &Bench, TestFrames>) {
    for _ in 0..256 {
        let index = remapper.reserve(DSA).unwrap();
        remapper.program(index, HERE).unwrap();
        bench.fire(DSA, index);
    }
}

/// Which of them it still holds.
fn cached(bench: &Bench) -> Vec<u16> {
    let model = bench.model.lock().unwrap();
    (0..256).filter(|&index| model.caches_interrupt_entry(index.into())).collect()
}

proptest! {
    /// What must always be true, 2 and 4: SVT and SID are right in each present entry, and an index that changes hands is in no
    /// cache.
    #[test]
    fn attack_04_whatever_is_asked_sources_are_checked_and_reused_indexes_not_cached(
        config in prop::sample::select(all()),
        steps in prop::collection::vec(step(), 0..120),
    ) {
        let bench = Bench::new(config);
        let remapper = bench.start();
        let mut owner = std::collections::BTreeMap::new();
        for step in steps {
            match step {
                Step::Reserve(source) => {
                    let index = remapper.reserve(source).unwrap();
                    prop_assert!(!bench.model.lock().unwrap().caches_interrupt_entry(index.into()));
                    prop_assert_eq!(owner.insert(index, source), None);
                }
                Step::Program(index, route) => _ = remapper.program(index, route),
                Step::Clear(index) => _ = remapper.clear(index),
                Step::Flush(list) => remapper.flush_entries(list.into_iter()).unwrap(),
                Step::Release(index) => if remapper.release(index).is_ok() {
                    owner.remove(&index);
                },
                Step::Fire(index) => for source in [DSA, OTHER] {
                    if remapped(bench.fire(source, index)).is_some() {
                        prop_assert_eq!(owner.get(&index), Some(&source));
                    }
                },
            }
            for index in 0..20 {
                let entry = remapper.entry(index).unwrap();
                if entry.p() != 0 {
                    prop_assert_eq!((entry.svt(), entry.sq()), (1, 0));
                    prop_assert_eq!(Some(&Bdf(entry.sid() as u32)), owner.get(&index));
                }
            }
        }
        bench.assert_clean();
    }

    #[test]
    fn a_flush_reaches_what_it_names(
        list in prop::collection::vec(0u16..256, 0..200),
        sorted in any::<bool>(),
        max_handle_mask in 0u32..16,
    ) {
        let mut list = list;
        if sorted {
            list.sort_unstable();
        }
        let bench = Bench::new(vtd_model::Config { max_handle_mask, ..capable() });
        let remapper = bench.start();
        cache_all(&bench, &remapper);
        remapper.flush_entries(list.iter().copied()).unwrap();
        prop_assert_eq!(cached(&bench), (0..256).filter(|index| !list.contains(index)).collect::<Vec<_>>());
        bench.assert_clean();
    }

    #[test]
    fn a_flush_of_a_run_reaches_all_of_it_and_nothing_else(
        first in 0u16..256,
        more in 0u16..256,
        max_handle_mask in 0u32..16,
    ) {
        let last = (first + more).min(255);
        let bench = Bench::new(vtd_model::Config { max_handle_mask, ..capable() });
        let remapper = bench.start();
        cache_all(&bench, &remapper);
        remapper.flush_run(first, last).unwrap();
        prop_assert_eq!(cached(&bench), (0..256).filter(|index| !(first..=last).contains(index)).collect::<Vec<_>>());
        bench.assert_clean();
    }
}
