//! A configuration space for tests.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
};

use super::config::{Buses, ConfigSpace};
use crate::addr::Bdf;

/// Functions made of doublewords, with BARs that answer probing.
#[derive(Default)]
pub struct TestConfig {
    words: RefCell<BTreeMap<(Bdf, u16), u32>>,
    /// Bits of a doubleword that can be written; BARs only, everything else keeps all bits.
    masks: BTreeMap<(Bdf, u16), u32>,
    writes: Cell<usize>,
    decoded: Cell<bool>,
}

impl TestConfig {
    /// Sets a doubleword.
    pub fn set(&mut self, bdf: Bdf, offset: u16, value: u32) {
        self.words.get_mut().insert((bdf, offset), value);
    }

    /// Makes a function: device and vendor ID, class and revision.
    pub fn function(&mut self, bdf: Bdf, ids: u32, class: u32) {
        (0..64).for_each(|i| self.set(bdf, 4 * i, 0));
        self.set(bdf, 0, ids);
        self.set(bdf, 8, class);
        (0..6).for_each(|i| _ = self.masks.insert((bdf, 0x10 + 4 * i), 0));
    }

    /// Sets the multi-function bit.
    pub fn multi_function(&mut self, bdf: Bdf) {
        self.set(bdf, 0x0c, 1 << 23);
    }

    /// Gives it a 32-bit memory BAR.
    pub fn bar(&mut self, bdf: Bdf, index: u16, base: u32, size: u32) {
        self.set(bdf, 0x10 + 4 * index, base);
        self.masks.insert((bdf, 0x10 + 4 * index), !(size - 1));
    }

    /// Gives it a 64-bit memory BAR.
    pub fn bar64(&mut self, bdf: Bdf, index: u16, base: u64, size: u64) {
        let mask = !(size - 1);
        self.set(bdf, 0x10 + 4 * index, base as u32 | 4);
        self.set(bdf, 0x14 + 4 * index, (base >> 32) as u32);
        self.masks.insert((bdf, 0x10 + 4 * index), mask as u32);
        self.masks.insert((bdf, 0x14 + 4 * index), (mask >> 32) as u32);
    }

    /// Puts a capability in front of the list: its doublewords, of which the first has no link yet.
    pub fn capability(&mut self, bdf: Bdf, at: u16, words: &[u32]) {
        let next = self.read(bdf, 0x34);
        self.set(bdf, 4, self.read(bdf, 4) | 1 << 20);
        self.set(bdf, 0x34, at.into());
        (0..).zip(words).for_each(|(i, &word)| self.set(bdf, at + 4 * i, word));
        self.set(bdf, at, words[0] | next << 8);
    }

    /// Appends an extended capability that is linked from the one before.
    pub fn extended(&mut self, bdf: Bdf, at: u16, id: u16, words: &[u32]) {
        let last =
            (0x100..at).rev().find(|&before| self.words.get_mut().get(&(bdf, before)).is_some_and(|w| w >> 16 == 1));
        if let Some(last) = last {
            self.set(bdf, last, self.read(bdf, last) | u32::from(at) << 20);
        }
        self.set(bdf, at, 1 << 16 | u32::from(id));
        (1..).zip(words).for_each(|(i, &word)| self.set(bdf, at + 4 * i, word));
    }

    /// All doublewords.
    pub fn snapshot(&self) -> BTreeMap<(Bdf, u16), u32> {
        self.words.borrow().clone()
    }

    /// How many writes there were.
    pub fn writes(&self) -> usize {
        self.writes.get()
    }

    /// Whether a BAR was written while the function decoded.
    pub fn decoded_while_probed(&self) -> bool {
        self.decoded.get()
    }
}

impl ConfigSpace for TestConfig {
    fn read(&self, bdf: Bdf, offset: u16) -> u32 {
        let absent = if self.words.borrow().contains_key(&(bdf, 0)) { 0 } else { u32::MAX };
        self.words.borrow().get(&(bdf, offset)).copied().unwrap_or(absent)
    }

    fn write(&self, bdf: Bdf, offset: u16, value: u32) {
        self.writes.set(self.writes.get() + 1);
        if (0x10..0x28).contains(&offset) && self.read(bdf, 4) & 3 != 0 {
            self.decoded.set(true);
        }
        let old = self.read(bdf, offset);
        // The upper half of the doubleword at 4 is the status register: ones clear bits, of which there are none here.
        let mask = if offset == 4 { 0xffff } else { self.masks.get(&(bdf, offset)).copied().unwrap_or(u32::MAX) };
        self.words.borrow_mut().insert((bdf, offset), old & !mask | value & mask);
    }

    fn buses(&self) -> Vec<Buses> {
        vec![Buses { segment: 0, first: 0, last: 255 }, Buses { segment: 1, first: 0x6a, last: 0x6a }]
    }

    fn has_extended(&self) -> bool {
        true
    }
}
