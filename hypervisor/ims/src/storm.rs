//! Slots that fire too fast: [`Service::throttle`], [`Service::unthrottle`] and [`Service::block`].
//!
//! Throttling works on slots of interrupt message stores only, whose pending bits the service can read; virtual functions' tables are parts
//! of such stores. Blocking works on slots of any store.

use hcall_abi::{FaultKind, Target};

use super::{
    domain::Domain,
    faults::Attribution,
    ports::{EntryIndex, Field, Ports},
    service::{CHUNK, Service},
    slot::{Slot, State},
    spec::StoreName,
    store::settle,
    store_access::StoreAccess,
};

impl<P: Ports> Service<P> {
    /// Masks all slots that lead to `target` in their devices, which keep messages pending. The guest sees no mask and cannot remove it by
    /// unmasking, because it would exceed its limit that way. (Linux's perf throttles events in the same way.)
    pub fn throttle(&self, domain: &Domain, target: Target) {
        self.each_at(
            domain,
            target,
            |access| access.has_pending_bits(),
            |access, index, slot| {
                if !slot.device_masked && access.mask(index, slot).is_ok() {
                    slot.throttled = true;
                }
            },
        );
    }

    /// Checks the throttled slots. Slots with nothing pending are unmasked. The others send their pending message and are throttled once
    /// more. If this is the `last` check, they stay masked until the guest unmasks them; a fault record tells the guest, and `tell` is
    /// called for each of them. Returns how many slots are still throttled.
    pub fn unthrottle(&self, domain: &Domain, target: Target, last: bool, mut tell: impl FnMut(Attribution)) -> usize {
        let mut throttled = 0;
        self.each_at(
            domain,
            target,
            |access| access.has_pending_bits(),
            |access, index, slot| {
                if !core::mem::take(&mut slot.throttled) || !slot.device_masked || !access.may_send(slot) {
                    return;
                }
                access.read_pending(index, slot);
                match (slot.pending, last) {
                    (true, true) => tell(access.limit(index, slot)),
                    (pending, _) => {
                        // The guest may have written what it cannot send; or its flush fails, as any may. Then it stays masked.
                        let released = settle(domain, access, index, slot).is_ok();
                        if pending && released && access.mask(index, slot).is_ok() {
                            slot.throttled = true;
                            throttled += 1;
                        }
                    }
                }
            },
        );
        throttled
    }

    /// Masks all slots that lead to `target`, and has the remapping unit drop their messages without a record. A function can write
    /// messages by DMA past its slots, and may ignore the mask. The slots stay blocked until the guest unmasks or retargets them; a slot in
    /// the guest's own memory has no mask of ours, so only a new target helps there. A fault record tells the guest, and `tell` is called
    /// for each slot.
    pub fn block(&self, domain: &Domain, target: Target, mut tell: impl FnMut(Attribution)) {
        let mut flushes = Flushes::new();
        self.each_at(
            domain,
            target,
            |_| true,
            |access, index, slot| {
                slot.throttled = false;
                if let Some(entry) = access.block(index, slot) {
                    flushes.add(self, entry);
                    tell(access.limit(index, slot));
                }
            },
        );
        flushes.finish(self);
    }

    /// Calls `what` with every slot that leads to `target` and can fire, in the guest's stores that are `meant`.
    fn each_at(
        &self,
        domain: &Domain,
        target: Target,
        meant: impl Fn(&StoreAccess<P>) -> bool,
        mut what: impl FnMut(&StoreAccess<P>, u16, &mut Slot),
    ) {
        let stores = |device| [StoreName::Ims, StoreName::Msix, StoreName::Queue].map(|name| (device, name));
        for (device, name) in domain.devices.iter().flat_map(stores) {
            let Ok(access) = StoreAccess::new(self, device, name) else { continue };
            let Ok(slots) = device.slots() else { continue };
            if !meant(&access) {
                continue;
            }
            for (index, slot) in (0..=u16::MAX).zip(&slots.bank(name).slots) {
                let slot = &mut *slot.lock();
                let fires = matches!(slot.state, State::Raw | State::Mapped);
                if fires && slot.binding().is_some_and(|binding| binding.target == target) {
                    what(&access, index, slot);
                }
            }
            // A device that does not take it is the next call's error.
            let _ = access.commit(Ok(()));
        }
    }
}

/// Entries that are not present any more and are flushed many at a time. After a failed flush no further flush is tried: each slot is
/// flushed before it fires again.
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
        if let Some(room) = self.entries.get_mut(self.count) {
            *room = entry;
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

impl<P: Ports> StoreAccess<'_, P> {
    /// Keeps a slot that is masked in the device masked, and shows the guest the mask.
    fn limit(&self, index: u16, slot: &mut Slot) -> Attribution {
        slot.masked = true;
        slot.limited = true;
        self.show(index, slot, Field::Control);
        self.note_fault(index, slot, FaultKind::Storm)
    }
}
