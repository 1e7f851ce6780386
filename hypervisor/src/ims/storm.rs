//! Slots that fire too fast: [`Service::hold`], [`Service::sift`] and [`Service::block`].
//!
//! The first two are for slots of interrupt message stores, which show by themselves whether a message is pending; the tables of virtual
//! functions are parts of such. The last one is for slots of any store.

use hcall_abi::{FaultKind, Target};

use super::{
    domain::Domain,
    faults::Attribution,
    place::Place,
    ports::{EntryIndex, Field, Ports},
    service::{CHUNK, Service},
    slot::{Slot, State},
    spec::StoreName,
    store::settle,
};

impl<P: Ports> Service<P> {
    /// Masks all slots that lead to `target` in their devices, which note what comes meanwhile. The guest does not see that they are
    /// masked, and does not let them go by unmasking them: so it could get past its limit.
    pub fn hold(&self, domain: &Domain, target: Target) {
        self.each_at(
            domain,
            target,
            |place| place.has_pending_bits(),
            |place, index, slot| {
                if !slot.device_masked && place.mask(index, slot).is_ok() {
                    slot.held = true;
                }
            },
        );
    }

    /// Looks at the slots that are held: those with nothing pending are let go. The others are held once more, after what is pending was
    /// sent; or, if it is the `last` look, stay masked until the guest unmasks them, which it can read in its faults; `tell` gets to
    /// know of them. Returns how many are still held.
    pub fn sift(&self, domain: &Domain, target: Target, last: bool, mut tell: impl FnMut(Attribution)) -> usize {
        let mut held = 0;
        self.each_at(
            domain,
            target,
            |place| place.has_pending_bits(),
            |place, index, slot| {
                if !core::mem::take(&mut slot.held) || !slot.device_masked || !place.may_send(slot) {
                    return;
                }
                place.read_pending(index, slot);
                match (slot.pending, last) {
                    (true, true) => tell(place.limit(index, slot)),
                    (pending, _) => {
                        // The guest may have written what it cannot send; or its flush fails, as any may. Then it stays masked.
                        let released = settle(domain, place, index, slot).is_ok();
                        if pending && released && place.mask(index, slot).is_ok() {
                            slot.held = true;
                            held += 1;
                        }
                    }
                }
            },
        );
        held
    }

    /// Masks all slots that lead to `target`, and has the remapping unit drop their messages, without a record: a function can write them by
    /// DMA, past its slots, and may refuse the mask. They stay so until the guest unmasks them or sends them elsewhere (those in its own
    /// memory, which have no mask of ours, by the latter); it can read of them in its faults, and `tell` gets to know of them.
    pub fn block(&self, domain: &Domain, target: Target, mut tell: impl FnMut(Attribution)) {
        let mut flushes = Flushes::new();
        self.each_at(
            domain,
            target,
            |_| true,
            |place, index, slot| {
                slot.held = false;
                if let Some(entry) = place.block(index, slot) {
                    flushes.add(self, entry);
                    tell(place.limit(index, slot));
                }
            },
        );
        flushes.finish(self);
    }

    /// Does something with every slot that leads to `target` and can fire, in those of the guest's stores that are `meant`.
    fn each_at(
        &self,
        domain: &Domain,
        target: Target,
        meant: impl Fn(&Place<P>) -> bool,
        mut what: impl FnMut(&Place<P>, u16, &mut Slot),
    ) {
        let stores = |device| [StoreName::Ims, StoreName::Msix, StoreName::Queue].map(|name| (device, name));
        for (device, name) in domain.devices.iter().flat_map(stores) {
            let Ok(place) = Place::new(self, device, name) else { continue };
            let Ok(slots) = device.slots() else { continue };
            if !meant(&place) {
                continue;
            }
            for (index, slot) in (0..=u16::MAX).zip(&slots.bank(name).slots) {
                let slot = &mut *slot.lock();
                let fires = matches!(slot.state, State::Raw | State::Mapped);
                if fires && slot.binding().is_some_and(|binding| binding.target == target) {
                    what(&place, index, slot);
                }
            }
            // A device that does not take it is the next call's error.
            let _ = place.commit(Ok(()));
        }
    }
}

/// Entries that are not present any more and are to be flushed, many at a time. After a flush that fails no further one is tried: each slot
/// is flushed before it fires again.
struct Flushes {
    entries: [EntryIndex; CHUNK],
    count: usize,
    has_failed: bool,
}

impl Flushes {
    const fn new() -> Self {
        Self { entries: [EntryIndex(0); CHUNK], count: 0, has_failed: false }
    }

    fn add<P: Ports>(&mut self, service: &Service<P>, entry: EntryIndex) {
        if self.count == CHUNK {
            self.finish(service);
        }
        if let Some(place) = self.entries.get_mut(self.count) {
            *place = entry;
            self.count += 1;
        }
    }

    fn finish<P: Ports>(&mut self, service: &Service<P>) {
        let entries = self.entries.get(..core::mem::take(&mut self.count)).unwrap_or_default();
        if !self.has_failed && !entries.is_empty() {
            self.has_failed = service.flush(entries.iter().copied()).is_err();
        }
    }
}

impl<P: Ports> Place<'_, P> {
    /// A slot that is masked in the device stays so, for the guest to see.
    fn limit(&self, index: u16, slot: &mut Slot) -> Attribution {
        slot.masked = true;
        slot.limited = true;
        self.show(index, slot, Field::Ctrl);
        self.note_fault(index, slot, FaultKind::Storm)
    }
}
