//! The map call: many slots, one flush.

use alloc::vec::Vec;
use core::{
    iter::{Zip, once},
    num::NonZeroU16,
    slice,
};

use hcall_abi::{ItemLayout, MapReply, MapRequest, SlotHandle, Status, Target};

use super::{
    counters::add,
    device::Bank,
    domain::Domain,
    place::Place,
    ports::{Bound, GuestMemory, PackedRoute, Ports, Span, Wanted},
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
    /// The slots that this batch maps are those of the first so many, and what each wants.
    fresh: [Item; BATCH_LIMIT],
    wanted: [Wanted; BATCH_LIMIT],
    number: usize,
    /// The items whose slots were mapped that way already, perhaps by this batch. There is room for all.
    repeated: Vec<Item>,
}

/// An item that has not failed.
#[derive(Clone, Copy)]
struct Item {
    handle: SlotHandle,
    /// Its place in the batch.
    number: u8,
    unmask: bool,
}

impl Item {
    const NONE: Self = Self { handle: SlotHandle::new(0, NonZeroU16::MIN), number: 0, unmask: false };
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
    /// Bytes of memory that a room takes in all.
    pub const BYTES: u64 = (size_of::<Self>() + BATCH_LIMIT * size_of::<Item>()) as u64;

    /// Room, empty.
    pub fn new(name: u8) -> Self {
        Self {
            name,
            items: [[0; MapRequest::SIZE]; BATCH_LIMIT],
            fresh: [Item::NONE; BATCH_LIMIT],
            wanted: [Wanted::new(Target { apic_id: 0, vector: 0 }); BATCH_LIMIT],
            number: 0,
            repeated: Vec::with_capacity(BATCH_LIMIT),
        }
    }

    /// Room for a page of handles instead of items.
    pub fn handles(&mut self) -> &mut [[u8; 4]] {
        self.items.as_flattened_mut().as_chunks_mut().0
    }

    /// Maps `number` items at `at`. The number of those that succeeded.
    ///
    /// The items are read once. Entries are programmed all together, then flushed together; the replies are written while everything can
    /// still be undone; what follows cannot fail: messages into the device, and unmask. Slots are locked one after another; between
    /// the first look at a slot and the last one [`State::Mapping`] keeps others away.
    #[inline(never)]
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
        let wrong = self.begin(domain, place, bank, number);
        let (unbound, run) = self.bind(place, bank);
        let failed = wrong + unbound;
        let flushed = self.flush(place, run);
        let items = self.items.get(..number).unwrap_or_default();
        if let Err(status) = flushed.and_then(|()| memory.write(at, items.as_flattened())) {
            self.undo(place, bank);
            return Err(status);
        }
        add(&domain.counts.refused, failed);
        self.finish(place, bank);
        Ok(number as u64 - failed - self.repeat(place, bank))
    }

    /// What the slots that this batch maps want.
    fn wanted(&self) -> &[Wanted] {
        self.wanted.get(..self.number).unwrap_or_default()
    }

    /// The slots that this batch maps, with what they want.
    fn fresh(&self) -> impl DoubleEndedIterator<Item = (&Item, &Wanted)> + ExactSizeIterator {
        let fresh = self.fresh.get(..self.number).unwrap_or_default();
        fresh.iter().zip(self.wanted())
    }

    /// Looks at the items' slots, and marks those that are to be mapped. The replies are as if all that follows succeeded. How many
    /// items failed.
    // A function of its own, as the others that walk the batch are: in its caller the compiler runs out of registers.
    #[inline(never)]
    fn begin<P: Ports>(&mut self, domain: &Domain, place: &Place<P>, bank: &Bank, number: usize) -> u64 {
        self.repeated.clear();
        let name = self.name;
        let mut rooms = self.fresh.iter_mut().zip(&mut self.wanted);
        // A processor of the guest's, once there was one.
        let mut known = u64::MAX;
        // There are no more items than a byte can number.
        let (mut n, mut failed) = (0u8, 0);
        for bytes in self.items.get_mut(..number).unwrap_or_default() {
            if let Some(handle) = begin_usual(domain, bank, &mut known, bytes, name, n, &mut rooms) {
                *bytes = MapReply(Ok(Slot::pair_of(handle))).to_bytes();
            } else {
                failed += look_again(domain, place, bank, bytes, name, n, &mut self.repeated);
            }
            n = n.wrapping_add(1);
        }
        self.number = BATCH_LIMIT - rooms.len();
        failed
    }

    /// Has entries bound for the slots that are marked. How many items failed, and the entries if there are none in between.
    fn bind<P: Ports>(&mut self, place: &Place<P>, bank: &Bank) -> (u64, Option<Span>) {
        let wanted = self.wanted.get_mut(..self.number).unwrap_or_default();
        let (failed, span) = match wanted {
            [] => (0, Span::NONE),
            // Alone it is faster.
            [wanted] => {
                wanted.bound = place
                    .bind_one(wanted.target)
                    .map(|binding| Bound { route: PackedRoute::new(binding.route), entry: binding.entry });
                (usize::from(wanted.bound.is_err()), Span::NONE)
            }
            many => place.bind_all(many),
        };
        // No entry is bound twice, so their number tells.
        let run = span.is_run_of(self.number - failed).then_some(span);
        (if failed == 0 { 0 } else { self.fail(bank) }, run)
    }

    /// Flushes the entries that were bound.
    fn flush<P: Ports>(&self, place: &Place<P>, run: Option<Span>) -> Result<(), Status> {
        match (run, self.wanted()) {
            (Some(run), _) => place.service.flush_span(run),
            (None, [one]) => one.bound.map_or(Ok(()), |bound| place.service.flush(once(bound.entry))),
            (None, many) => flush_each(place, many),
        }
    }

    /// The items whose slots got no entry fail, and so do those that counted on them. How many.
    #[cold]
    fn fail(&mut self, bank: &Bank) -> u64 {
        let mut failed = 0;
        let mut fail = |item: &Item, status: Status| {
            failed += 1;
            if let Some(bytes) = self.items.get_mut(usize::from(item.number)) {
                *bytes = MapReply(Err(status)).to_bytes();
            }
        };
        let fresh = self.fresh.iter().zip(&self.wanted).take(self.number);
        for (item, wanted) in fresh.clone() {
            if let Err(status) = wanted.bound {
                fail(item, status);
                if let Ok(mut slot) = bank.lock(item.handle.index()) {
                    slot.end_mapping();
                }
            }
        }
        for item in &self.repeated {
            let first = fresh.clone().find(|(first, _)| first.handle == item.handle);
            if let Some(Err(status)) = first.map(|(_, wanted)| wanted.bound) {
                fail(item, status);
            }
        }
        failed
    }

    /// Takes back what the slots got, last first.
    #[cold]
    fn undo<P: Ports>(&self, place: &Place<P>, bank: &Bank) {
        let mut held = Vec::new();
        for (item, wanted) in self.fresh().rev() {
            if let Ok(binding) = wanted.binding()
                && let Ok(mut slot) = bank.lock(item.handle.index())
            {
                slot.end_mapping();
                held.push(place.withdraw(binding));
            }
        }
        place.service.give_back(&held);
    }

    /// Stores and unmasks, after the flush.
    #[inline(never)]
    fn finish<P: Ports>(&self, place: &Place<P>, bank: &Bank) {
        let (owner, service) = (place.owner(), place.service);
        // One of its own: what is known of it does not change while slots are written.
        let store = *place.store;
        for (&Item { handle, unmask, .. }, Wanted { bound, .. }) in self.fresh() {
            let index = handle.index();
            let Ok(bound) = *bound else { continue };
            service.own(bound.entry, owner.of(index));
            // Nobody else has touched it.
            let Ok(mut slot) = bank.lock(index) else { continue };
            slot.complete_mapping(handle, bound, unmask);
            place.begin_to_send(&store, &slot, handle, bound.entry, unmask);
        }
    }

    /// Shows and unmasks what was mapped already. How many failed.
    fn repeat<P: Ports>(&self, place: &Place<P>, bank: &Bank) -> u64 {
        let mut failed = 0;
        for item in &self.repeated {
            // A slot that was mapped before may have been freed since: then that came last.
            if let Ok(mut slot) = bank.held(item.handle)
                && slot.state == State::Mapped
                && show_pair(place, item.handle.index(), &mut slot, item.unmask).is_err()
            {
                failed += 1;
            }
        }
        failed
    }
}

/// Flushes the entries of those that have one.
#[cold]
fn flush_each<P: Ports>(place: &Place<P>, wanted: &[Wanted]) -> Result<(), Status> {
    let entries = wanted.iter().filter_map(|wanted| Some(wanted.bound.ok()?.entry));
    if entries.clone().next().is_none() { Ok(()) } else { place.service.flush(entries) }
}

/// What nearly every item is: a sound one for an allocated slot. The slot is marked, and has its room. `None` for whatever else it is, and
/// nothing has been done.
#[inline(always)]
fn begin_usual(
    domain: &Domain,
    bank: &Bank,
    known: &mut u64,
    bytes: &[u8; MapRequest::SIZE],
    batch: u8,
    number: u8,
    rooms: &mut Zip<slice::IterMut<'_, Item>, slice::IterMut<'_, Wanted>>,
) -> Option<SlotHandle> {
    let MapRequest { handle, target, unmask, cookie } = MapRequest::from_bytes(bytes).ok()?;
    if *known != target.apic_id.into() {
        *known = other_processor(domain, target)?;
    }
    let slot = &mut *bank.lock(handle.index()).ok().filter(|slot| slot.is_allocated_as(handle))?;
    let (item, wanted) = rooms.next()?;
    slot.begin_mapping(target, cookie, batch);
    wanted.target = target;
    *item = Item { handle, number, unmask };
    Some(handle)
}

#[cold]
#[inline(never)]
fn other_processor(domain: &Domain, target: Target) -> Option<u64> {
    domain.own(target).ok().map(|target| target.apic_id.into())
}

/// An item that is not as the others: wrong, or its slot is mapped so already. Writes its reply. How many failed.
#[cold]
#[inline(never)]
fn look_again<P: Ports>(
    domain: &Domain,
    place: &Place<P>,
    bank: &Bank,
    bytes: &mut [u8; MapRequest::SIZE],
    batch: u8,
    number: u8,
    repeated: &mut Vec<Item>,
) -> u64 {
    let mut look = || {
        let MapRequest { handle, target, unmask, cookie } = MapRequest::from_bytes(bytes)?;
        let slot = &mut *bank.held(handle)?;
        check_mapped(place, slot, batch, domain.own(target)?, cookie)?;
        repeated.push(Item { handle, number, unmask });
        Ok(Slot::pair_of(handle))
    };
    let reply = MapReply(look());
    *bytes = reply.to_bytes();
    reply.0.is_err().into()
}

/// The slot is mapped so, and its entry flushed; or this batch is mapping it so.
fn check_mapped<P: Ports>(
    place: &Place<P>,
    slot: &mut Slot,
    own: u8,
    target: Target,
    cookie: u64,
) -> Result<(), Status> {
    match slot.state {
        _ if !slot.is_mapped_as(target, cookie) => Err(Status::Exists),
        State::Mapping { batch } if batch == own => Ok(()),
        State::Mapped => place.complete_flush(slot),
        _ => Err(Status::Exists),
    }
}

/// The guest sees the pair, whatever was there; and the slot is unmasked, if it is to be.
fn show_pair<P: Ports>(place: &Place<P>, index: u16, slot: &mut Slot, unmask: bool) -> Result<(), Status> {
    slot.image = slot.pair_image(index);
    if unmask {
        slot.masked = false;
        slot.pending = false;
    }
    place.show_all(index, slot);
    if slot.masked { Ok(()) } else { place.unmask(index, slot) }
}
