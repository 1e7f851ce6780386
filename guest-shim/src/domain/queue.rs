//! A store in the guest's own memory, which the device reads: the queue store.

use hcall_abi::{DeviceId, Status, StoreId, Target};

use super::{Interrupt, Request};
use crate::calls::{BatchPage, Hypercalls};
use crate::store::{CONTROL_MASK, CONTROL_PENDING, Field, Store};
use crate::transport::Transport;

/// The interrupts of a queue store: the hypervisor gives entries and says which messages select them, the driver writes those into
/// `memory`, where nobody watches. Only for a guest that has the whole function ([`Status::NotIsolated`]).
///
/// How the device is told where the memory is, and that it is to look at a slot again, is the driver's business.
#[derive(Debug)]
pub struct QueueDomain<'a, T, S> {
    calls: Hypercalls<T>,
    store: StoreId,
    page: BatchPage<'a>,
    memory: S,
}

impl<'a, T: Transport, S: Store> QueueDomain<'a, T, S> {
    /// Opens the store: `memory` has its slots, all of which are masked now. `page` is used for calls.
    ///
    /// # Errors
    /// [`Status::NotIsolated`] for a part of a function, [`Status::Exists`] when the store is open already.
    pub fn open(calls: Hypercalls<T>, device: DeviceId, page: BatchPage<'a>, mut memory: S) -> Result<Self, Status> {
        calls.open_queue(device, memory.slots())?;
        for slot in (0..=u16::MAX).take(memory.slots() as usize) {
            memory.write(slot, Field::Control, CONTROL_MASK);
        }
        Ok(Self { calls, store: StoreId::queue(device), page, memory })
    }

    /// Takes a free slot, in a group; it stays masked. [`Status::NoFreeSlot`] when all are taken.
    pub fn alloc(&mut self, group: u32) -> Result<Interrupt, Status> {
        self.calls.alloc(self.store, group).map(Interrupt)
    }

    /// Sends a slot's interrupts to a target. As with [`Domain::map`](super::Domain::map).
    pub fn map(&mut self, interrupt: &Interrupt, request: &Request) -> Result<(), Status> {
        let item = request.item(interrupt);
        self.calls.map(self.store, &mut core::iter::once(item), &mut self.page)?;
        self.page.reply(0).0?;
        let info = self.calls.query_slot(self.store, interrupt.0, &mut self.page)?;
        let pair = info.mapping.ok_or(Status::NotMapped)?.pair;
        let (slot, address) = (interrupt.index(), pair.address);
        for (field, value) in
            [(Field::AddressLo, address as u32), (Field::AddressHi, (address >> 32) as u32), (Field::Data, pair.data)]
        {
            self.memory.write(slot, field, value);
        }
        if request.unmask {
            self.unmask(interrupt);
        }
        Ok(())
    }

    /// Masks a slot. A message that the device is sending already may still come.
    pub fn mask(&mut self, interrupt: &Interrupt) {
        self.memory.write(interrupt.index(), Field::Control, CONTROL_MASK);
    }

    /// Unmasks a slot. Whether an interrupt came meanwhile: then the device is to be told to look at the slot again.
    pub fn unmask(&mut self, interrupt: &Interrupt) -> bool {
        let pending = self.memory.read(interrupt.index(), Field::Control) & CONTROL_PENDING;
        self.memory.write(interrupt.index(), Field::Control, pending);
        pending != 0
    }

    /// Sends a slot's interrupts elsewhere, losing none. The memory stays as it is.
    ///
    /// # Errors
    /// [`Status::BadVector`], [`Status::BadTarget`], or [`Status::NotMapped`].
    pub fn set_affinity(&mut self, interrupt: &Interrupt, target: Target) -> Result<(), Status> {
        self.calls.set_affinity(self.store, interrupt.0, target)
    }

    /// Gives a slot back. Its message leads nowhere from then on.
    pub fn free(&mut self, interrupt: Interrupt) -> Result<(), Status> {
        self.mask(&interrupt);
        self.calls.free(self.store, interrupt.0)
    }

    /// The memory, to look at.
    pub const fn memory(&mut self) -> &mut S {
        &mut self.memory
    }
}
