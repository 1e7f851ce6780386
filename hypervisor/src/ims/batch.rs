//! The map call: many slots, one flush.

use hcall_abi::{ItemLayout, MapReply, MapRequest, MessagePair, SlotHandle, Status};

use super::{
    counters::count,
    device::Bank,
    domain::Domain,
    place::Place,
    ports::{EntryIndex, GuestMemory, Ports},
    slot::{Slot, State},
};
use crate::addr::{Gpa, PAGE_SIZE};

/// Most items in a batch: a page of them.
pub const BATCH_LIMIT: usize = PAGE_SIZE as usize / MapRequest::SIZE;

/// Room for a batch.
pub struct Batch {
    /// Its name among the device's.
    name: u8,
    /// Requests, then replies.
    items: [[u8; MapRequest::SIZE]; BATCH_LIMIT],
    plan: [Planned; BATCH_LIMIT],
    /// The entries that the flush is for.
    entries: [EntryIndex; BATCH_LIMIT],
    fresh: usize,
}

/// What is to be done for an item after the flush.
#[derive(Clone, Copy)]
enum Planned {
    /// Nothing: it failed.
    Failed,
    /// The slot was given an entry by this batch, or was mapped that way already.
    Bound { handle: SlotHandle, unmask: bool },
}

/// Checks what the registers say of a batch, and counts its items.
pub fn check(items: Gpa, number: u64, layout: u64) -> Result<usize, Status> {
    if ItemLayout(layout) != ItemLayout::V1 {
        return Err(Status::BadLayout);
    }
    let number = usize::try_from(number).map_err(|_| Status::InvalidArgument)?;
    if !(1..=BATCH_LIMIT).contains(&number) {
        return Err(Status::InvalidArgument);
    }
    if !items.is_aligned(MapRequest::SIZE as u64) {
        return Err(Status::BadAddress);
    }
    if items.page_offset() + (number * MapRequest::SIZE) as u64 > PAGE_SIZE {
        return Err(Status::CrossesPage);
    }
    Ok(number)
}

impl Batch {
    /// Room, empty.
    pub const fn new(name: u8) -> Self {
        Self {
            name,
            items: [[0; MapRequest::SIZE]; BATCH_LIMIT],
            plan: [Planned::Failed; BATCH_LIMIT],
            entries: [EntryIndex(0); BATCH_LIMIT],
            fresh: 0,
        }
    }

    /// Room for a page of handles instead of items.
    pub fn handles(&mut self) -> &mut [[u8; 4]] {
        self.items.as_flattened_mut().as_chunks_mut().0
    }

    /// Maps `number` items at `at`. The number of those that succeeded.
    ///
    /// The items are read once. Entries are programmed, then flushed together; the replies are written while everything can
    /// still be undone; what follows cannot fail: messages into the device, and unmask. Slots are locked one after another; between
    /// the first look at a slot and the last one [`State::Mapping`] keeps others away.
    pub fn map<P: Ports>(
        &mut self,
        domain: &Domain,
        place: &Place<P>,
        bank: &Bank,
        memory: &dyn GuestMemory,
        at: Gpa,
        number: usize,
    ) -> Result<u64, Status> {
        let items = self.items.get_mut(..number).ok_or(Status::InvalidArgument)?;
        memory.read(at, items.as_flattened_mut())?;
        self.fresh = 0;
        for n in 0..number {
            self.prepare_item(domain, place, bank, n);
        }
        let entries = self.entries.get(..self.fresh).unwrap_or_default();
        let flushed = if entries.is_empty() { Ok(()) } else { place.service.flush(entries) };
        let items = self.items.get(..number).unwrap_or_default();
        if let Err(status) = flushed.and_then(|()| memory.write(at, items.as_flattened())) {
            self.undo(place, bank, number);
            return Err(status);
        }
        let plan = self.plan.get(..number).unwrap_or_default();
        Ok(plan.iter().map(|planned| u64::from(self.finish(domain, place, bank, *planned))).sum())
    }

    /// Gives an item's slot its entry, or finds that it has it, and puts the reply in the item's place.
    fn prepare_item<P: Ports>(&mut self, domain: &Domain, place: &Place<P>, bank: &Bank, n: usize) {
        let (Some(item), Some(planned), Some(entry)) =
            (self.items.get_mut(n), self.plan.get_mut(n), self.entries.get_mut(self.fresh))
        else {
            return;
        };
        let own = State::Mapping { batch: self.name };
        let prepared = MapRequest::from_bytes(item).and_then(|request| {
            *planned = Planned::Bound { handle: request.handle, unmask: request.unmask };
            prepare(domain, place, bank, own, request, entry)
        });
        let reply = match prepared {
            Ok((slot, fresh)) => {
                self.fresh += usize::from(fresh);
                Ok(slot)
            }
            Err(status) => {
                *planned = Planned::Failed;
                Err(status)
            }
        };
        *item = MapReply(reply).to_bytes();
    }

    /// Takes back what [`prepare`] gave, last first.
    fn undo<P: Ports>(&self, place: &Place<P>, bank: &Bank, number: usize) {
        let mut held = alloc::vec::Vec::new();
        for planned in self.plan.iter().take(number).rev() {
            if let Planned::Bound { handle, .. } = planned
                && let Ok(mut slot) = bank.held(*handle)
                && slot.state == (State::Mapping { batch: self.name })
            {
                held.extend(slot.take_binding().map(|binding| place.withdraw(binding)));
                slot.state = State::Allocated;
                slot.cookie = 0;
                slot.flushed = true;
            }
        }
        place.service.give_back(&held);
    }

    /// Stores and unmasks, after the flush. Whether the item succeeded.
    fn finish<P: Ports>(&self, domain: &Domain, place: &Place<P>, bank: &Bank, planned: Planned) -> bool {
        let Planned::Bound { handle, unmask } = planned else {
            count(&domain.counts.refused);
            return false;
        };
        // A slot that was mapped before may have been freed since: then that came last.
        let Ok(mut slot) = bank.held(handle) else { return true };
        let (index, slot) = (handle.index(), &mut *slot);
        if slot.state == (State::Mapping { batch: self.name }) {
            slot.state = State::Mapped;
            slot.flushed = true;
            slot.masked = true;
            if let Some(binding) = slot.binding() {
                place.store_message(index, binding);
            }
        }
        if slot.state == State::Mapped {
            show_pair(place, index, slot, unmask);
            // Cannot fail: the slot has a binding, and but for a failed retarget meanwhile it is flushed.
            return slot.masked || place.unmask(index, slot).is_ok();
        }
        true
    }
}

/// Gives a slot an entry, which is noted, or finds that it has it. The slot stays masked in the device. The pair for the guest, and
/// whether the entry is fresh.
fn prepare<P: Ports>(
    domain: &Domain,
    place: &Place<P>,
    bank: &Bank,
    own: State,
    request: MapRequest,
    entry: &mut EntryIndex,
) -> Result<(MessagePair, bool), Status> {
    let MapRequest { handle, target, cookie, .. } = request;
    let index = handle.index();
    let slot = &mut *bank.held(handle)?;
    let target = domain.own(target)?;
    if slot.state == State::Allocated {
        let binding = place.acquire(index, target)?;
        *entry = binding.entry;
        slot.bind(binding);
        slot.flushed = false;
        slot.state = own;
        slot.cookie = cookie;
        return Ok((slot.pair(index), true));
    }
    let same = slot.binding().is_some_and(|binding| binding.target == target) && slot.cookie == cookie;
    if !same || slot.state != own && slot.state != State::Mapped {
        return Err(Status::Exists);
    }
    if slot.state == State::Mapped {
        place.complete_flush(slot)?;
    }
    Ok((slot.pair(index), false))
}

/// The guest sees the pair, whatever was there.
fn show_pair<P: Ports>(place: &Place<P>, index: u16, slot: &mut Slot, unmask: bool) {
    slot.image = slot.pair_image(index);
    if unmask {
        slot.masked = false;
        slot.pending = false;
    }
    place.show_all(index, slot);
}
