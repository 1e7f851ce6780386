//! A message store behind a command interface. Each access takes a command and a wait, so writes are gathered and go to the device slot by
//! slot at the end of a batch, a call or a trapped write. Linux's `irq_bus_lock` and `irq_bus_sync_unlock` do the same for interrupt
//! controllers on slow buses.
#![forbid(unsafe_code)]

use alloc::vec::Vec;
use core::time::Duration;

use crate::{
    clock::{Clock, poll},
    ims::Field,
    memory::Registers,
};

/// Registers of the command interface, from `tests/MACHINES.md`.
const SLOT: usize = 0x00;
const MASK: usize = 0x04;
const COMMAND: usize = 0x08;
const PRESENT: usize = 0x0c;
const DWORDS: usize = 0x10;
const GO: u32 = 1;
const BUSY: u32 = 1 << 0;
const FAILED: u32 = 1 << 1;

/// The most slots that are gathered before a command: a batch's.
const MOST: usize = 256;
/// The time limit of a command, which writes 16 bytes. No manual sets one.
const LIMIT: Duration = Duration::from_millis(100);

/// A command has failed, or did not end in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandFailed;

/// The gathered writes of a slot.
#[derive(Clone, Copy, Debug)]
struct Gathered {
    slot: u16,
    /// A bit for each gathered dword.
    mask: u32,
    dwords: [u32; 4],
}

/// The store. The caller has exclusive access: its lock is the bus lock.
pub struct SlowStore<R> {
    registers: R,
    clock: &'static dyn Clock,
    gathered: Vec<Gathered>,
    /// The device did not finish a command, so no other command is waited for.
    failed: bool,
}

impl<R: Registers> SlowStore<R> {
    /// The store behind these registers; `None` if the device has no such store. `clock` limits waits. The memory for gathered writes is
    /// allocated at once.
    pub fn find(registers: R, clock: &'static dyn Clock) -> Option<Self> {
        let there = registers.read32(PRESENT) == 1;
        there.then(|| Self { registers, clock, gathered: Vec::with_capacity(MOST), failed: false })
    }

    /// Gathers a write. [`Self::commit`] passes it to the device, or an earlier write that finds the buffer full.
    pub fn write(&mut self, slot: u16, field: Field, value: u32) -> Result<(), CommandFailed> {
        // Dwords of a slot come one after another; only when slots come again others have to be looked at.
        let place = match self.gathered.iter().rposition(|gathered| gathered.slot == slot) {
            Some(place) => place,
            None => {
                if self.gathered.len() == MOST {
                    self.commit()?;
                }
                self.gathered.push(Gathered { slot, mask: 0, dwords: [0; 4] });
                self.gathered.len() - 1
            }
        };
        let gathered = &mut self.gathered[place];
        gathered.mask |= 1 << field as u32;
        gathered.dwords[field as usize] = value;
        Ok(())
    }

    /// Passes all gathered writes to the device. If a command fails, the rest is dropped: the device is broken.
    pub fn commit(&mut self) -> Result<(), CommandFailed> {
        let mut result = Ok(());
        for gathered in self.gathered.drain(..) {
            if result.is_ok() && !self.failed {
                result = put(&self.registers, self.clock, &gathered);
            }
        }
        self.failed |= result.is_err();
        if self.failed { Err(CommandFailed) } else { Ok(()) }
    }

    /// Lets the store work again after a failure, because the device was reset. Writes from before the reset are dropped.
    pub fn mend(&mut self) {
        self.gathered.clear();
        self.failed = false;
    }

    /// Reads a slot, after all gathered writes have reached the device.
    pub fn read(&mut self, slot: u16) -> Result<[u32; 4], CommandFailed> {
        self.commit()?;
        let read = put(&self.registers, self.clock, &Gathered { slot, mask: 0, dwords: [0; 4] });
        self.failed |= read.is_err();
        read?;
        Ok([0, 4, 8, 12].map(|at| self.registers.read32(DWORDS + at)))
    }
}

/// One command. A mask of 0 reads.
fn put(registers: &impl Registers, clock: &dyn Clock, gathered: &Gathered) -> Result<(), CommandFailed> {
    registers.write32(SLOT, gathered.slot.into());
    registers.write32(MASK, gathered.mask);
    for (n, dword) in gathered.dwords.into_iter().enumerate().filter(|(n, _)| gathered.mask >> n & 1 != 0) {
        registers.write32(DWORDS + 4 * n, dword);
    }
    registers.write32(COMMAND, GO);
    let mut status = BUSY;
    let done = poll(clock, LIMIT, || {
        status = registers.read32(COMMAND);
        status & BUSY == 0
    });
    if done && status & FAILED == 0 { Ok(()) } else { Err(CommandFailed) }
}

#[cfg(test)]
mod tests {
    use core::cell::{Cell, RefCell};
    use std::{collections::HashMap, vec, vec::Vec};

    use super::*;
    use crate::clock::testing::MILLISECONDS;

    /// A device that takes a command in three reads of its status, and keeps those that it was given.
    #[derive(Default)]
    struct Device {
        registers: RefCell<HashMap<usize, u32>>,
        slots: RefCell<HashMap<u32, [u32; 4]>>,
        commands: RefCell<Vec<(u32, u32)>>,
        failed: Cell<bool>,
    }

    impl Registers for &Device {
        fn read32(&self, offset: usize) -> u32 {
            let mut registers = self.registers.borrow_mut();
            match offset {
                PRESENT => 1,
                COMMAND => {
                    let left = registers.entry(COMMAND).or_default();
                    *left = left.saturating_sub(u32::from(!self.failed.get()));
                    u32::from(*left != 0)
                }
                _ => registers.get(&offset).copied().unwrap_or(0),
            }
        }

        fn read64(&self, _: usize) -> u64 {
            panic!("dwords only")
        }

        fn write64(&self, _: usize, _: u64) {
            panic!("dwords only")
        }

        fn write32(&self, offset: usize, value: u32) {
            let mut registers = self.registers.borrow_mut();
            assert_eq!(registers.get(&COMMAND).copied().unwrap_or(0), 0, "a command is under way");
            registers.insert(offset, if offset == COMMAND { 3 } else { value });
            if offset != COMMAND {
                return;
            }
            let (slot, mask) = (registers[&SLOT], registers[&MASK]);
            self.commands.borrow_mut().push((slot, mask));
            let mut slots = self.slots.borrow_mut();
            let dwords = slots.entry(slot).or_insert([0, 0, 0, 1]);
            for (n, dword) in dwords.iter_mut().enumerate() {
                if mask >> n & 1 != 0 {
                    *dword = registers[&(DWORDS + 4 * n)];
                }
                registers.insert(DWORDS + 4 * n, *dword);
            }
        }
    }

    #[test]
    fn feature_bus_lock_the_dwords_of_a_slot_go_in_one_command_at_the_end() {
        let device = Device::default();
        let mut store = SlowStore::find(&device, &MILLISECONDS).unwrap();
        for slot in [7, 9, 7] {
            for (n, field) in Field::ALL.into_iter().enumerate() {
                store.write(slot, field, u32::from(slot) * 10 + n as u32).unwrap();
            }
        }
        assert!(device.commands.borrow().is_empty());
        store.commit().unwrap();
        assert_eq!(*device.commands.borrow(), [(7, 0xf), (9, 0xf)]);
        assert_eq!(device.slots.borrow()[&9], [90, 91, 92, 93]);
        store.commit().unwrap();
        assert_eq!(device.commands.borrow().len(), 2, "nothing is written twice");
    }

    #[test]
    fn a_read_comes_after_what_was_gathered() {
        let device = Device::default();
        let mut store = SlowStore::find(&device, &MILLISECONDS).unwrap();
        store.write(3, Field::Data, 0x55).unwrap();
        assert_eq!(store.read(3), Ok([0, 0, 0x55, 1]));
        assert_eq!(*device.commands.borrow(), [(3, 4), (3, 0)]);
    }

    #[test]
    fn more_than_there_is_room_for_goes_to_the_device_before() {
        let device = Device::default();
        let mut store = SlowStore::find(&device, &MILLISECONDS).unwrap();
        (0..=MOST as u16).for_each(|slot| store.write(slot, Field::Control, 0).unwrap());
        assert_eq!(device.commands.borrow().len(), MOST);
        store.commit().unwrap();
        assert_eq!(device.commands.borrow().last(), Some(&(MOST as u32, 8)));
    }

    #[test]
    fn a_device_that_never_finishes_is_an_error_and_no_hang() {
        let device = Device { failed: Cell::new(true), ..Device::default() };
        let mut store = SlowStore::find(&device, &MILLISECONDS).unwrap();
        store.write(0, Field::Control, 0).unwrap();
        store.write(1, Field::Control, 0).unwrap();
        assert_eq!(store.commit(), Err(CommandFailed));
        assert_eq!(device.commands.borrow().len(), 1, "it is told nothing more");
        assert_eq!(
            (store.write(2, Field::Control, 0), store.commit(), store.read(2)),
            (Ok(()), Err(CommandFailed), Err(CommandFailed))
        );
        assert_eq!(vec![(0, 8)], *device.commands.borrow(), "nor is it waited for again");
    }

    #[test]
    fn a_store_that_failed_works_again_after_a_reset_and_forgets_what_it_was_to_write() {
        let device = Device { failed: Cell::new(true), ..Device::default() };
        let mut store = SlowStore::find(&device, &MILLISECONDS).unwrap();
        store.write(0, Field::Control, 0).unwrap();
        assert_eq!(store.commit(), Err(CommandFailed));
        store.write(1, Field::Control, 0).unwrap();
        device.failed.set(false);
        device.registers.borrow_mut().remove(&COMMAND);
        device.commands.borrow_mut().clear();
        store.mend();
        assert_eq!(store.commit(), Ok(()));
        store.write(2, Field::Data, 5).unwrap();
        assert_eq!((store.commit(), vec![(2, 4)]), (Ok(()), device.commands.take()));
    }
}
