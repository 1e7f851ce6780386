//! Faults that come while the records are read.

use core::cell::Cell;

use super::*;
use crate::vtd::{spec::registers::FRCD_CLEAR, unit::Unit};

/// A unit whose device sends more messages as soon as a record has been cleared.
struct Busy<'a> {
    bench: &'a Bench,
    more: Cell<u16>,
}

impl Registers for Busy<'_> {
    fn read32(&self, offset: usize) -> u32 {
        self.bench.read32(offset)
    }

    fn read64(&self, offset: usize) -> u64 {
        self.bench.read64(offset)
    }

    fn write32(&self, offset: usize, value: u32) {
        self.bench.write32(offset, value);
        if offset >= 0x100 && value == FRCD_CLEAR {
            (0..self.more.take()).for_each(|index| _ = self.bench.fire(DSA, index));
        }
    }

    fn write64(&self, offset: usize, value: u64) {
        self.bench.write64(offset, value);
    }
}

/// Whether an event still comes when `first` faults are recorded and `more` come while they are taken.
fn events_go_on(first: u16, more: u16) -> bool {
    let bench = Bench::new(vtd_model::Config { fault_records: 4, ..capable() });
    let remapper = bench.start();
    remapper.unit().set_fault_event(0xfee0_0000, 0x33);
    (0..first).for_each(|index| _ = bench.fire(DSA, index));
    // The event that has the records read.
    assert!(bench.model.lock().unwrap().take_fault_event().is_some());
    let unit = Unit::new(Busy { bench: &bench, more: Cell::new(more) }, 4096, true, &MILLISECONDS).unwrap();
    unit.take_faults(|_| ());
    while bench.model.lock().unwrap().take_fault_event().is_some() {
        unit.take_faults(|_| ());
    }
    bench.fire(DSA, 99);
    bench.model.lock().unwrap().take_fault_event().is_some()
}

#[test]
fn events_go_on_after_faults_that_came_while_records_were_read() {
    let stopped: Vec<_> = (1..=4)
        .flat_map(|first| (0..8).map(move |more| (first, more)))
        .filter(|&(first, more)| !events_go_on(first, more))
        .collect();
    assert_eq!(stopped, [], "(recorded, come meanwhile) after which no event comes any more");
}
