//! The service's own state: who owns each remapping entry, and the quarantine of entries and routes whose flush failed. Entries are taken and
//! released here; which slot needs one is decided in `store`, `store_access` and `batch`.

use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use hcall_abi::{FaultKind, Status};

use super::{
    counters::{RemapCounters, RemapCounts, add, count},
    device::Device,
    faults::Attribution,
    ports::{BindRequest, EntryIndex, HostRoute, Ports, Span, UnitNumber},
    slot::{Binding, State},
    spec::{DeviceSpec, GuestId, StoreName},
};
use crate::{
    addr::Bdf,
    sync::{Mutex, Shared},
};

/// The number of slots that one flush covers when a guest is evicted.
pub(super) const CHUNK: usize = 256;

/// A binding that waits for a flush. Its entry and route are released after that.
#[derive(Clone, Copy, Debug)]
pub(super) struct PendingRelease {
    pub guest: GuestId,
    pub binding: Binding,
    /// Whether the entry is released as well. If not, the entry is in use with another route.
    pub with_entry: bool,
}

/// The most elements of the quarantine. The heap has memory for more.
const MOST_QUARANTINED: usize = 16_384;

/// Entries and routes that the cache may still hold after a failed flush.
#[derive(Default)]
struct Quarantine {
    releases: Vec<PendingRelease>,
    /// Guests whose entries and routes were not remembered, because the quarantine was full. They stay reserved for good.
    forgotten: Vec<GuestId>,
}

/// The service, for all guests of a machine.
pub struct Service<P> {
    pub(super) ports: P,
    /// Attached devices by number.
    pub(super) devices: Shared<Vec<Option<Arc<Device>>>>,
    /// The owner of each entry: see [`Owner`].
    owners: Vec<AtomicU64>,
    quarantine: Mutex<Quarantine>,
    /// Whether the quarantine holds anything.
    has_quarantine: AtomicBool,
    counts: RemapCounts,
}

/// An entry's owner in one word: device number 63:32, store 18:17, slot 16:1, valid 0.
#[derive(Clone, Copy)]
pub(super) struct Owner(u64);

impl Owner {
    /// The first slot of a store.
    pub fn new(device: u32, name: StoreName) -> Self {
        Self(u64::from(device) << 32 | (name as u64) << 17 | 1)
    }

    /// The owner for another slot of the same store.
    pub fn of(self, slot: u16) -> Self {
        Self(self.0 & !0x1fffe | u64::from(slot) << 1)
    }

    /// Device number, store and slot; `None` for an entry without an owner.
    fn parts(self) -> Option<(usize, StoreName, u16)> {
        let store = match self.0 >> 17 & 3 {
            0 => StoreName::Msix,
            1 => StoreName::Ims,
            _ => StoreName::Queue,
        };
        (self.0 & 1 != 0).then_some(((self.0 >> 32) as usize, store, (self.0 >> 1) as u16))
    }
}

impl<P: Ports> Service<P> {
    /// Bytes of the heap that the table of owners takes.
    pub fn owners_bytes(ports: &P) -> u64 {
        u64::from(ports.capacity()) * size_of::<AtomicU64>() as u64
    }

    /// A service on these ports, with no guest attached.
    pub fn new(ports: P) -> Self {
        let owners = (0..ports.capacity()).map(|_| AtomicU64::new(0)).collect();
        Self {
            ports,
            devices: Shared::new(Vec::new()),
            owners,
            quarantine: Mutex::new(Quarantine::default()),
            has_quarantine: AtomicBool::new(false),
            counts: RemapCounts::default(),
        }
    }

    /// The ports.
    pub fn ports(&self) -> &P {
        &self.ports
    }

    /// The owner of an entry. The call waits for the slot's lock, so the caller must hold no slot's lock and must not have interrupted a
    /// holder.
    pub fn lookup(&self, entry: EntryIndex) -> Option<Attribution> {
        self.owner(entry).map(|(_, whose)| whose)
    }

    fn owner(&self, entry: EntryIndex) -> Option<(Arc<Device>, Attribution)> {
        let (number, store, index) = Owner(self.owners.get(entry.0 as usize)?.load(Relaxed)).parts()?;
        let device = self.devices.read().get(number)?.clone()?;
        let cookie = {
            let slots = device.slots().ok()?;
            let slot = slots.bank(store).lock(index).ok()?;
            (slot.state == State::Mapped).then_some(slot.cookie)
        };
        let DeviceSpec { id, requester, .. } = device.spec;
        let whose = Attribution { guest: device.guest, device: id, requester, store, slot: index, cookie };
        Some((device, whose))
    }

    /// Notes a fault for the owner of `entry`: the remapping unit refused a message of `source` that named it, with this reason code.
    /// Returns the owner. Locks as [`Self::lookup`] does.
    pub fn refused_message(&self, entry: EntryIndex, source: Bdf, reason: u8) -> Option<Attribution> {
        let (device, whose) = self.owner(entry)?;
        device.faults.add(&whose, FaultKind::Remapping(reason), source != whose.requester);
        Some(whose)
    }

    /// Counts a pending interrupt that was dropped.
    pub(super) fn count_discarded(&self) {
        count(&self.counts.discarded);
    }

    /// The counters of the remapping unit's use.
    pub fn counters(&self) -> RemapCounters {
        RemapCounters {
            live: self.counts.live.load(Relaxed),
            high_water: self.counts.high_water.load(Relaxed),
            programmed: self.counts.programmed.load(Relaxed),
            flushes: self.counts.flushes.load(Relaxed),
            discarded: self.counts.discarded.load(Relaxed),
            quarantined: self.quarantine.lock().releases.len() as u64,
        }
    }

    /// Flushes the entries in quarantine again and releases them if the flush succeeds. Returns how many are left.
    pub fn reclaim(&self) -> usize {
        let Quarantine { releases: quarantine, forgotten } = &mut *self.quarantine.lock();
        let (mut kept, all) = (0, quarantine.len());
        for first in (0..all).step_by(CHUNK) {
            let chunk = first..all.min(first + CHUNK);
            let releases = quarantine.get(chunk.clone()).unwrap_or_default();
            if self.flush_entries(releases).is_ok() {
                self.release(releases);
            } else {
                let length = chunk.len();
                quarantine.copy_within(chunk, kept);
                kept += length;
            }
        }
        quarantine.truncate(kept);
        self.has_quarantine.store(kept != 0 || !forgotten.is_empty(), Relaxed);
        kept
    }

    /// Refuses a guest with elements in quarantine with [`Status::HardwareError`]: if it could take more entries while a unit does not
    /// answer, the quarantine would grow with each call.
    #[inline]
    pub(super) fn admit(&self, guest: GuestId) -> Result<(), Status> {
        if self.has_quarantine.load(Relaxed) { self.admit_after_failure(guest) } else { Ok(()) }
    }

    #[cold]
    #[inline(never)]
    fn admit_after_failure(&self, guest: GuestId) -> Result<(), Status> {
        // Others' waits are none of this guest's time.
        if self.has_in_quarantine(guest) {
            self.reclaim();
            if self.has_in_quarantine(guest) {
                return Err(Status::HardwareError);
            }
        }
        Ok(())
    }

    /// Whether the quarantine holds elements of a guest. Until they are reclaimed, the unit may still send interrupts by their routes.
    pub fn has_in_quarantine(&self, guest: GuestId) -> bool {
        let quarantine = self.quarantine.lock();
        quarantine.forgotten.contains(&guest) || quarantine.releases.iter().any(|release| release.guest == guest)
    }

    /// Flushes the entries and then releases entries and routes. If the flush fails they go into quarantine: an index or a route that the
    /// cache may still hold is never used again.
    pub(super) fn give_back(&self, releases: &[PendingRelease]) {
        if releases.is_empty() {
            return;
        }
        if self.flush_entries(releases).is_ok() || self.flush_entries(releases).is_ok() {
            self.release(releases);
        } else {
            self.quarantine(releases);
        }
    }

    /// Puts bindings into quarantine.
    pub(super) fn quarantine(&self, releases: &[PendingRelease]) {
        let Quarantine { releases: quarantine, forgotten } = &mut *self.quarantine.lock();
        if quarantine.len() + releases.len() <= MOST_QUARANTINED {
            quarantine.extend_from_slice(releases);
        } else {
            for PendingRelease { guest, .. } in releases {
                if !forgotten.contains(guest) {
                    forgotten.push(*guest);
                }
            }
        }
        self.has_quarantine.store(true, Relaxed);
    }

    fn flush_entries(&self, releases: &[PendingRelease]) -> Result<(), Status> {
        self.flush(releases.iter().map(|release| release.binding.entry))
    }

    fn release(&self, releases: &[PendingRelease]) {
        for PendingRelease { guest, binding, with_entry } in releases {
            if *with_entry {
                self.ports.release(binding.entry);
                self.counts.given_back();
            }
            self.ports.unroute(*guest, binding.target, binding.route);
        }
    }

    /// Flushes entries and waits.
    pub(super) fn flush(&self, entries: impl Iterator<Item = EntryIndex> + Clone) -> Result<(), Status> {
        count(&self.counts.flushes);
        self.ports.flush(entries)
    }

    /// Flushes all entries of a span and waits.
    pub(super) fn flush_span(&self, span: Span) -> Result<(), Status> {
        count(&self.counts.flushes);
        self.ports.flush_span(span)
    }

    /// Takes an entry and makes it present.
    pub(super) fn bind(&self, unit: UnitNumber, requester: Bdf, route: HostRoute) -> Result<EntryIndex, Status> {
        let entry = self.ports.bind(unit, requester, route)?;
        self.count_bound(1);
        Ok(entry)
    }

    /// Takes routes and entries and makes the entries present.
    #[inline]
    pub(super) fn bind_all<'a, W: AsMut<BindRequest> + 'a>(
        &self,
        guest: GuestId,
        unit: UnitNumber,
        requester: Bdf,
        runs: impl Iterator<Item = &'a mut [W]>,
    ) -> (usize, Span) {
        let mut number = 0;
        let runs = runs.inspect(|run| number += run.len());
        let (failed, span) = self.ports.bind_all(guest, unit, requester, runs);
        self.count_bound(number.saturating_sub(failed) as u64);
        (failed, span)
    }

    fn count_bound(&self, entries: u64) {
        add(&self.counts.programmed, entries);
        self.counts.taken(entries);
    }

    /// Writes a present entry.
    pub(super) fn program(&self, entry: EntryIndex, route: HostRoute) {
        count(&self.counts.programmed);
        self.ports.program(entry, route);
    }

    /// Sets the owner of an entry.
    #[inline]
    pub(super) fn own(&self, entry: EntryIndex, owner: Owner) {
        if let Some(word) = self.owners.get(entry.0 as usize) {
            word.store(owner.0, Relaxed);
        }
    }

    /// Removes the owner of an entry.
    pub(super) fn disown(&self, entry: EntryIndex) {
        if let Some(owner) = self.owners.get(entry.0 as usize) {
            owner.store(0, Relaxed);
        }
    }
}
