//! The map call. It maps many slots with one flush.

use alloc::vec::Vec;
use core::iter::once;

use hcall_abi::{ItemLayout, MapReply, MapRequest, Status, Target};

use super::{
    batch_buffer::{BATCH_LIMIT, Batch, Fresh, FreshRuns, Repeated},
    counters::add,
    device::Bank,
    domain::Domain,
    ports::{BoundEntry, CallingGuest, PackedRoute, Ports, Span},
    slot::{Slot, State},
    spec::{StoreLocation, StoreSpec},
    store_access::StoreAccess,
};
use crate::addr::{Gpa, PAGE_SIZE};
use crate::sync::Mutex;

/// Checks the registers that describe a batch. Returns the number of its items.
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
    /// Maps `number` items at `at`. Returns how many succeeded.
    ///
    /// The call reads the items once. It programs all entries, then flushes them together, and writes the replies while everything can
    /// still be undone. The remaining steps cannot fail: the messages go into the device, and the slots are unmasked. Slots are locked one
    /// after another. [`State::Mapping`] keeps other calls and writes away from a slot between the first step and the last.
    #[inline(never)]
    pub fn map<P: Ports>(
        &mut self,
        domain: &Domain,
        access: &StoreAccess<P>,
        bank: &Bank,
        memory: &dyn CallingGuest,
        at: Gpa,
        number: usize,
    ) -> Result<u64, Status> {
        let items = self.items.get_mut(..number).ok_or(Status::InvalidArgument)?;
        memory.read(at, items.as_flattened_mut())?;
        let wrong = self.begin(domain, access, bank, number);
        let (unbound, run) = self.bind(access, bank, number);
        let failed = wrong + unbound;
        let flushed = self.flush(access, run);
        let items = self.items.get(..number).unwrap_or_default();
        if let Err(status) = flushed.and_then(|()| memory.write(at, items.as_flattened())) {
            self.undo(access, bank);
            return Err(status);
        }
        add(&domain.counts.refused, failed);
        self.finish(access, bank);
        Ok(number as u64 - failed - self.repeat(access, bank))
    }

    /// Checks the items' slots and marks those that are to be mapped. Writes the replies as if all later steps succeeded. Returns how many
    /// items failed.
    fn begin<P: Ports>(&mut self, domain: &Domain, access: &StoreAccess<P>, bank: &Bank, number: usize) -> u64 {
        self.repeated.clear();
        let (mut taken, mut failed) = (0, 0);
        let mut rest = self.items.get_mut(..number).unwrap_or_default();
        while let Some(first) = rest.first() {
            // Nearly always that is all of them.
            let mut done = match usual(domain, first) {
                Some(like) => begin_run(bank, like, rest, self.fresh.get_mut(taken..).unwrap_or_default()),
                None => 0,
            };
            taken += done;
            if done == 0
                && let Some(first) = rest.first_mut()
            {
                let fresh = self.fresh.get(..taken).unwrap_or_default();
                failed += look_again(domain, access, bank, first, fresh, &mut self.repeated);
                done = 1;
            }
            rest = rest.get_mut(done..).unwrap_or_default();
        }
        self.number = taken;
        failed
    }

    /// Binds entries for the marked slots. Returns how many of the batch's `items` failed, and the span of the entries if it holds no
    /// others.
    fn bind<P: Ports>(&mut self, access: &StoreAccess<P>, bank: &Bank, items: usize) -> (u64, Option<Span>) {
        let (failed, span) = match self.fresh.get_mut(..self.number).unwrap_or_default() {
            [] => (0, Span::NONE),
            // Alone it is faster.
            [Fresh { request, .. }] => {
                request.result = access
                    .bind_one(request.target)
                    .map(|binding| BoundEntry { route: PackedRoute::new(binding.route), entry: binding.entry });
                (usize::from(request.result.is_err()), Span::NONE)
            }
            many => access.bind_all(FreshRuns(many)),
        };
        // No entry is bound twice, so their number tells.
        let run = span.is_run_of(self.number - failed).then_some(span);
        (if failed == 0 { 0 } else { self.fail(bank, items) }, run)
    }

    /// Flushes the bound entries.
    fn flush<P: Ports>(&self, access: &StoreAccess<P>, run: Option<Span>) -> Result<(), Status> {
        match (run, self.fresh()) {
            (Some(run), _) => access.service.flush_span(run),
            (None, [one]) => one.request.result.map_or(Ok(()), |bound| access.service.flush(once(bound.entry))),
            (None, many) => flush_each(access, many),
        }
    }

    /// Fails the items whose slots got no entry, and the repeated items of the same slots. Returns how many failed.
    #[cold]
    fn fail(&mut self, bank: &Bank, items: usize) -> u64 {
        let mut failed = 0;
        let items = self.items.get_mut(..items).unwrap_or_default();
        for Fresh { request, handle, .. } in self.fresh.iter().take(self.number) {
            let Err(status) = request.result else { continue };
            let reply = MapReply(Ok(Slot::pair_of(*handle))).to_bytes();
            for bytes in items.iter_mut().filter(|bytes| **bytes == reply) {
                *bytes = MapReply(Err(status)).to_bytes();
                failed += 1;
            }
            // Whoever maps the slot from now on minds no item of ours.
            self.repeated.retain(|repeated| repeated.handle != *handle);
            if let Ok(mut slot) = bank.lock(handle.index()) {
                slot.end_mapping();
            }
        }
        failed
    }

    /// Releases the slots' entries and routes, the last slot first.
    #[cold]
    fn undo<P: Ports>(&self, access: &StoreAccess<P>, bank: &Bank) {
        let mut releases = Vec::new();
        for Fresh { request, handle, .. } in self.fresh().iter().rev() {
            if let Ok(binding) = request.binding()
                && let Ok(mut slot) = bank.lock(handle.index())
            {
                slot.end_mapping();
                releases.push(access.withdraw(binding));
            }
        }
        access.service.give_back(&releases);
    }

    /// Writes the messages and unmasks the slots, after the flush.
    #[inline(never)]
    fn finish<P: Ports>(&self, access: &StoreAccess<P>, bank: &Bank) {
        match access.store.location {
            // So the compiler makes a loop without the other ways.
            StoreLocation::DeviceMemory => {
                self.finish_in(access, bank, StoreSpec { location: StoreLocation::DeviceMemory, ..*access.store })
            }
            _ => self.finish_in(access, bank, *access.store),
        }
    }

    /// The same with an own copy of the store's description, so that the compiler knows that it does not change meanwhile.
    #[inline(always)]
    fn finish_in<P: Ports>(&self, access: &StoreAccess<P>, bank: &Bank, store: StoreSpec) {
        let (owner, service, slots) = (access.owner(), access.service, bank.slots.as_slice());
        let Some(fresh) = self.fresh.get(..self.number) else { return };
        for &Fresh { request, handle, masked, .. } in fresh {
            let index = handle.index();
            let Ok(bound) = request.result else { continue };
            service.own(bound.entry, owner.of(index));
            // Nobody else has touched it.
            let Some(mut slot) = slots.get(usize::from(index)).map(Mutex::lock) else { continue };
            slot.complete_mapping(handle, bound, masked);
            access.begin_to_send(&store, &slot, handle, bound.entry);
        }
    }

    /// Shows and unmasks the slots that were mapped before. Returns how many items failed.
    fn repeat<P: Ports>(&self, access: &StoreAccess<P>, bank: &Bank) -> u64 {
        let mut failed = 0;
        for item in &self.repeated {
            // A slot that was mapped before may have been freed since: then that came last.
            if let Ok(mut slot) = bank.lock_allocated(item.handle)
                && slot.state == State::Mapped
                && show_pair(access, item.handle.index(), &mut slot, item.unmask).is_err()
            {
                failed += 1;
            }
        }
        failed
    }
}

/// Flushes the entries of the slots that have one.
#[cold]
fn flush_each<P: Ports>(access: &StoreAccess<P>, fresh: &[Fresh]) -> Result<(), Status> {
    let entries = fresh.iter().filter_map(|fresh| Some(fresh.request.result.ok()?.entry));
    if entries.clone().next().is_none() { Ok(()) } else { access.service.flush(entries) }
}

/// The item, if it is valid by itself.
fn usual(domain: &Domain, bytes: &[u8; MapRequest::SIZE]) -> Option<MapRequest> {
    MapRequest::from_bytes(bytes).ok().filter(|request| domain.own(request.target).is_ok())
}

/// Marks the slots of the usual items up to the first unusual one. A usual item names an allocated slot and the processor of `like`. Each
/// gets an element of `fresh` and its reply. Returns how many there are.
// A function of its own, as the others that walk the batch are: in its caller the compiler runs out of registers.
#[inline(never)]
fn begin_run(bank: &Bank, like: MapRequest, items: &mut [[u8; MapRequest::SIZE]], fresh: &mut [Fresh]) -> usize {
    let slots = bank.slots.as_slice();
    let mut rooms = fresh.iter_mut();
    for bytes in items {
        let Some(MapRequest { handle, target, unmask, cookie }) = like.another(bytes) else { break };
        let Some(mut slot) = slots.get(usize::from(handle.index())).map(Mutex::lock) else { break };
        if !slot.is_allocated_as(handle) {
            break;
        }
        let Some(fresh) = rooms.next() else { break };
        slot.begin_mapping(target, cookie);
        fresh.request.target = target;
        (fresh.handle, fresh.masked) = (handle, !unmask);
        *bytes = MapReply(Ok(Slot::pair_of(handle))).to_bytes();
    }
    let free = rooms.len();
    let done = fresh.len() - free;
    if let Some(first) = fresh.first_mut() {
        // At most a batch.
        first.run = done as u16;
    }
    done
}

/// Handles an unusual item: it is wrong, or its slot is mapped already. Writes the item's reply. Returns how many failed, 0 or 1.
#[cold]
#[inline(never)]
fn look_again<P: Ports>(
    domain: &Domain,
    access: &StoreAccess<P>,
    bank: &Bank,
    bytes: &mut [u8; MapRequest::SIZE],
    fresh: &[Fresh],
    repeated: &mut Vec<Repeated>,
) -> u64 {
    let mut look = || {
        let MapRequest { handle, target, unmask, cookie } = MapRequest::from_bytes(bytes)?;
        let slot = &mut *bank.lock_allocated(handle)?;
        let is_own = || fresh.iter().any(|fresh| fresh.handle == handle);
        check_mapped(access, slot, is_own, domain.own(target)?, cookie)?;
        repeated.push(Repeated { handle, unmask });
        Ok(Slot::pair_of(handle))
    };
    let reply = MapReply(look());
    *bytes = reply.to_bytes();
    reply.0.is_err().into()
}

/// Checks that the slot is mapped as the item asks and its entry is flushed, or that this batch is mapping it so.
fn check_mapped<P: Ports>(
    access: &StoreAccess<P>,
    slot: &mut Slot,
    is_own: impl FnOnce() -> bool,
    target: Target,
    cookie: u64,
) -> Result<(), Status> {
    match slot.state {
        _ if !slot.is_mapped_as(target, cookie) => Err(Status::Exists),
        State::Mapping if is_own() => Ok(()),
        State::Mapped => access.complete_flush(slot),
        _ => Err(Status::Exists),
    }
}

/// Shows the guest the slot's message pair, and unmasks the slot if `unmask` is set.
fn show_pair<P: Ports>(access: &StoreAccess<P>, index: u16, slot: &mut Slot, unmask: bool) -> Result<(), Status> {
    slot.image = slot.pair_image();
    if unmask {
        slot.masked = false;
        slot.pending = false;
    }
    access.show_all(index, slot);
    if slot.masked { Ok(()) } else { access.unmask(index, slot) }
}
