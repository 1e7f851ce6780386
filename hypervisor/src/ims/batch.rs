//! The map call: many slots, one flush.

use hcall_abi::{ItemLayout, MapReply, MapRequest, Status};

use super::{
    counters::count,
    device::{Bank, DeviceState},
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
    /// Requests, then replies.
    items: [[u8; MapRequest::SIZE]; BATCH_LIMIT],
    plan: [Planned; BATCH_LIMIT],
    entries: [EntryIndex; BATCH_LIMIT],
}

/// What is to be done for an item after the flush.
#[derive(Clone, Copy)]
enum Planned {
    /// Nothing: it failed.
    Failed(Status),
    /// The slot was bound by this batch.
    Fresh { index: u16, unmask: bool },
    /// It was mapped that way already.
    Again { index: u16, unmask: bool },
}

impl Batch {
    /// Room, empty.
    pub const fn new() -> Self {
        Self {
            items: [[0; MapRequest::SIZE]; BATCH_LIMIT],
            plan: [Planned::Failed(Status::InvalidArgument); BATCH_LIMIT],
            entries: [EntryIndex(0); BATCH_LIMIT],
        }
    }
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

/// Maps `number` items at `at`. The number of those that succeeded.
///
/// The items are read once. Entries are programmed, then flushed together; the replies are written while everything can
/// still be undone; what follows cannot fail: messages into the device, and unmask.
pub fn map<P: Ports>(
    domain: &Domain,
    place: &Place<P>,
    state: &mut DeviceState,
    memory: &dyn GuestMemory,
    at: Gpa,
    number: usize,
) -> Result<u64, Status> {
    let DeviceState { ims: bank, batch, .. } = state;
    let Batch { items, plan, entries } = &mut **batch;
    let items = items.get_mut(..number).ok_or(Status::InvalidArgument)?;
    memory.read(at, items.as_flattened_mut())?;

    let mut to_flush = Entries { entries, count: 0 };
    for (item, planned) in items.iter().zip(plan.iter_mut()) {
        let prepared = MapRequest::from_bytes(item).and_then(|request| prepare(domain, place, bank, request));
        *planned = prepared.unwrap_or_else(Planned::Failed);
        to_flush.note(bank, *planned);
    }
    let plan = plan.get(..number).ok_or(Status::InvalidArgument)?;

    let flushed = if to_flush.count == 0 { Ok(()) } else { place.service.flush(to_flush.get()) };
    let done = flushed.and_then(|()| {
        for (item, planned) in items.iter_mut().zip(plan) {
            *item = reply(bank, *planned).to_bytes();
        }
        memory.write(at, items.as_flattened())
    });
    if let Err(status) = done {
        undo(place, bank, plan);
        return Err(status);
    }
    Ok(plan.iter().map(|planned| u64::from(finish(domain, place, bank, *planned))).sum())
}

/// The entries that one flush is for.
struct Entries<'a> {
    entries: &'a mut [EntryIndex; BATCH_LIMIT],
    count: usize,
}

impl Entries<'_> {
    /// Notes the entry of a planned item, unless it is flushed already.
    fn note(&mut self, bank: &Bank, planned: Planned) {
        if let Planned::Fresh { index, .. } | Planned::Again { index, .. } = planned
            && let Some(slot) = bank.slots.get(usize::from(index)).filter(|slot| !slot.flushed)
            && let Some(binding) = slot.binding
            && let Some(place) = self.entries.get_mut(self.count)
        {
            *place = binding.entry;
            self.count += 1;
        }
    }

    fn get(&self) -> &[EntryIndex] {
        self.entries.get(..self.count).unwrap_or_default()
    }
}

/// Gives an item's slot its entry, or finds that it has it. The slot stays masked in the device.
fn prepare<P: Ports>(
    domain: &Domain,
    place: &Place<P>,
    bank: &mut Bank,
    request: MapRequest,
) -> Result<Planned, Status> {
    let MapRequest { handle, target, unmask, cookie } = request;
    let index = handle.index();
    let slot = bank.held(handle)?;
    let target = domain.own(target)?;
    if let Some(binding) = slot.binding {
        let same = binding.target == target && slot.cookie == cookie;
        return if same { Ok(Planned::Again { index, unmask }) } else { Err(Status::Exists) };
    }
    slot.binding = Some(place.acquire(index, target)?);
    slot.flushed = false;
    slot.state = State::Mapped;
    slot.cookie = cookie;
    Ok(Planned::Fresh { index, unmask })
}

fn reply(bank: &Bank, planned: Planned) -> MapReply {
    MapReply(match planned {
        Planned::Failed(status) => Err(status),
        Planned::Fresh { index, .. } | Planned::Again { index, .. } => {
            bank.slots.get(usize::from(index)).map(|slot| slot.pair(index)).ok_or(Status::NoSuchSlot)
        }
    })
}

/// Takes back what [`prepare`] gave, last first.
fn undo<P: Ports>(place: &Place<P>, bank: &mut Bank, plan: &[Planned]) {
    let mut held = alloc::vec::Vec::new();
    for planned in plan.iter().rev() {
        if let Planned::Fresh { index, .. } = planned
            && let Some(slot) = bank.slots.get_mut(usize::from(*index))
        {
            held.extend(slot.binding.take().map(|binding| place.withdraw(binding)));
            slot.state = State::Allocated;
            slot.cookie = 0;
            slot.flushed = true;
        }
    }
    place.service.give_back(&held);
}

/// Stores and unmasks, after the flush. Whether the item succeeded.
fn finish<P: Ports>(domain: &Domain, place: &Place<P>, bank: &mut Bank, planned: Planned) -> bool {
    let (index, unmask, fresh) = match planned {
        Planned::Failed(_) => {
            count(&domain.counts.refused);
            return false;
        }
        Planned::Fresh { index, unmask } => (index, unmask, true),
        Planned::Again { index, unmask } => (index, unmask, false),
    };
    let Some(slot) = bank.slots.get_mut(usize::from(index)) else { return false };
    slot.flushed = true;
    if fresh {
        if let Some(binding) = slot.binding {
            place.store_message(index, binding);
        }
        slot.masked = true;
    }
    show_pair(place, index, slot, unmask);
    // Cannot fail: the slot has a binding, and it is flushed.
    slot.masked || place.unmask(index, slot).is_ok()
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
