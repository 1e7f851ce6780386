//! The invalidation queue when all goes well, and when it does not.

use std::cell::Cell;

use super::*;
use crate::vtd::{
    Error, QueueError, Route, Unit,
    coherence::Coherence,
    queue::{CAPACITY, Queue},
    spec::{
        descriptor::InterruptEntryCache,
        registers::{FSTS, IQT},
    },
};

/// A queue in use, and its unit.
fn queue(bench: &Bench) -> (Unit<&Bench>, Queue) {
    let unit = Unit::new(bench, 4096, true, &MILLISECONDS).unwrap();
    let queue = Queue::new(&bench.frames, Coherence(true), false).unwrap();
    queue.enable(&unit).unwrap();
    (unit, queue)
}

/// Descriptor type 3: device-TLB invalidation.
const DEVICE_TLB: u128 = 3;
/// A type that does not exist.
const NONSENSE: u128 = 0xf;

#[test]
fn the_queue_wraps_around() {
    let bench = Bench::new(capable());
    let (unit, mut queue) = queue(&bench);
    for count in (1..200).chain([CAPACITY, CAPACITY]) {
        (0..count).for_each(|_| queue.push(InterruptEntryCache::NEW.0));
        assert_eq!(queue.submit(&unit), Ok(()));
    }
    assert_eq!(bench.stats().iec_flushes as usize, (1..200).sum::<usize>() + 2 * CAPACITY);
    bench.assert_clean();
}

#[test]
fn what_does_not_fit_is_not_written_over_others() {
    let bench = Bench::new(capable());
    let (unit, mut queue) = queue(&bench);
    (0..CAPACITY + 10).for_each(|_| queue.push(InterruptEntryCache::NEW.0));
    assert!(queue.is_full());
    assert_eq!(queue.submit(&unit), Ok(()));
    assert_eq!(bench.stats().iec_flushes as usize, CAPACITY);
}

#[test]
fn more_than_fits_is_submitted_in_turns() {
    let bench = Bench::new(capable());
    let remapper = bench.start_with(Config { entries: 4096, ..CONFIG });
    let before = bench.stats();
    remapper.flush_entries((0..4096).step_by(2)).unwrap();
    assert_eq!(bench.stats().iec_flushes - before.iec_flushes, 2048);
    assert_eq!(bench.stats().waits - before.waits, 2048u64.div_ceil(CAPACITY as u64));
    bench.assert_clean();
}

#[test]
fn attack_28_a_refused_descriptor_is_an_error_and_the_queue_goes_on() {
    let bench = Bench::new(capable());
    let (unit, mut queue) = queue(&bench);
    for _ in 0..600 {
        queue.push(InterruptEntryCache::NEW.0);
        queue.push(NONSENSE);
        queue.push(InterruptEntryCache::NEW.0);
        assert_eq!(queue.submit(&unit), Err(QueueError::Refused(3)));
        queue.push(InterruptEntryCache::NEW.0);
        assert_eq!(queue.submit(&unit), Ok(()));
    }
    assert_eq!(unit.fault_status().iqe(), 0);
}

/// QEMU's way: when the error is cleared the unit stays where it is, until the tail is written.
struct Lazy<'a> {
    bench: &'a Bench,
    /// What was written to FSTS since.
    cleared: Cell<u32>,
}

impl Registers for Lazy<'_> {
    fn read32(&self, offset: usize) -> u32 {
        let cleared = if offset == FSTS { self.cleared.get() } else { 0 };
        self.bench.read32(offset) & !cleared
    }

    fn read64(&self, offset: usize) -> u64 {
        self.bench.read64(offset)
    }

    fn write32(&self, offset: usize, value: u32) {
        match offset {
            FSTS => self.cleared.set(self.cleared.get() | value),
            _ => self.bench.write32(offset, value),
        }
    }

    fn write64(&self, offset: usize, value: u64) {
        if offset == IQT {
            self.bench.write32(FSTS, self.cleared.take());
        }
        self.bench.write64(offset, value);
    }
}

#[test]
fn a_unit_that_looks_at_its_queue_only_when_the_tail_is_written_goes_on_as_well() {
    let bench = Bench::new(capable());
    let lazy = Lazy { bench: &bench, cleared: Cell::new(0) };
    let unit = Unit::new(lazy, 4096, true, &MILLISECONDS).unwrap();
    let mut queue = Queue::new(&bench.frames, Coherence(true), false).unwrap();
    queue.enable(&unit).unwrap();
    for _ in 0..10 {
        queue.push(NONSENSE);
        assert_eq!(queue.submit(&unit), Err(QueueError::Refused(3)));
        queue.push(InterruptEntryCache::NEW.0);
        assert_eq!(queue.submit(&unit), Ok(()));
    }
}

#[test]
fn a_device_that_does_not_answer_is_an_error_and_the_queue_goes_on() {
    let bench = Bench::new(vtd_model::Config { device_tlb: true, ..capable() });
    let (unit, mut queue) = queue(&bench);
    bench.model.lock().unwrap().lose_device_tlb_answers(true);
    queue.push(DEVICE_TLB);
    assert_eq!(queue.submit(&unit), Err(QueueError::DeviceTlb));
    bench.model.lock().unwrap().lose_device_tlb_answers(false);
    queue.push(InterruptEntryCache::NEW.0);
    assert_eq!(queue.submit(&unit), Ok(()));
}

#[test]
fn attack_28_a_unit_that_hangs_is_an_error_until_it_has_caught_up() {
    let bench = Bench::new(capable());
    let (unit, mut queue) = queue(&bench);
    bench.model.lock().unwrap().hang(true);
    for _ in 0..3 {
        (0..CAPACITY).for_each(|_| queue.push(InterruptEntryCache::NEW.0));
        assert_eq!(queue.submit(&unit), Err(QueueError::TimedOut));
    }
    bench.model.lock().unwrap().hang(false);
    // The model goes on at any write of FSTS, as a unit would by itself.
    unit.clear_queue_errors();
    queue.push(InterruptEntryCache::NEW.0);
    assert_eq!(queue.submit(&unit), Err(QueueError::TimedOut));
    queue.push(InterruptEntryCache::NEW.0);
    assert_eq!(queue.submit(&unit), Ok(()));
    assert_eq!(bench.stats().queue_errors, 0);
    bench.assert_clean();
}

#[test]
fn after_a_failed_flush_no_index_can_be_released() {
    let bench = Bench::new(capable());
    let remapper = bench.start();
    let index = remapper.reserve(DSA).unwrap();
    remapper.program(index, Route::Remapped { vector: 32, destination: 0 }).unwrap();
    remapper.clear(index).unwrap();
    bench.model.lock().unwrap().hang(true);
    assert_eq!(remapper.flush_entries([index].into_iter()), Err(Error::Queue(QueueError::TimedOut)));
    assert_eq!(remapper.release(index), Err(Error::NotFlushed));
}
