//! The service: guests come and go, entries are attributed and given back.

use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use hcall_abi::{DeviceId, FaultKind, Status};

use super::{
    counters::{RemapCounters, RemapCounts, add, count},
    device::{Device, Slots},
    domain::{DeviceSpec, Domain, GuestId, GuestSpec},
    faults::FaultRing,
    place::Place,
    ports::{EntryIndex, Field, HostRoute, Ports, Span, UnitNumber, Wanted},
    slot::{Binding, CTRL_MASK, Slot, State, StoreName},
};
use crate::{
    addr::Bdf,
    sync::{Mutex, Shared},
};

/// How many slots are taken away with one flush.
pub(super) const CHUNK: usize = 256;

/// What an entry belongs to: for reports of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attribution {
    /// The guest.
    pub guest: GuestId,
    /// The device, as the guest names it.
    pub device: DeviceId,
    /// The source that the entry accepts.
    pub requester: Bdf,
    /// The store.
    pub store: StoreName,
    /// The slot in it.
    pub slot: u16,
    /// The guest's name for the interrupt, if it mapped the slot by a call.
    pub cookie: Option<u64>,
}

/// Something that waits for a flush before it is given back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub guest: GuestId,
    pub binding: Binding,
    /// Whether the entry goes, too; if not it is in use with another route.
    pub release: bool,
}

/// Most that the quarantine remembers: less than the heap has room for.
const MOST_QUARANTINED: usize = 16_384;

/// What the cache may still hold after a flush that failed.
#[derive(Default)]
struct Quarantine {
    held: Vec<Held>,
    /// Whose has been forgotten, because there was too much: that stays reserved for good.
    forgotten: Vec<GuestId>,
}

/// The service, for all guests of a machine.
pub struct Service<P> {
    pub(super) ports: P,
    /// Attached devices by number.
    devices: Shared<Vec<Option<Arc<Device>>>>,
    /// For each entry who uses it: see [`Owner`].
    owners: Vec<AtomicU64>,
    quarantine: Mutex<Quarantine>,
    /// Whether there is anything in quarantine.
    has_quarantine: AtomicBool,
    counts: RemapCounts,
}

/// Whose an entry is, in one word: device number 63:32, store 18:17, slot 16:1, valid 0.
#[derive(Clone, Copy)]
pub(super) struct Owner(u64);

impl Owner {
    /// The first slot of a store.
    pub fn new(device: u32, name: StoreName) -> Self {
        Self(u64::from(device) << 32 | (name as u64) << 17 | 1)
    }

    /// Another slot of the same store.
    pub fn of(self, slot: u16) -> Self {
        Self(self.0 & !0x1fffe | u64::from(slot) << 1)
    }

    /// Device number, store and slot; nothing of an entry that nobody has.
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
    /// Bytes of the heap that the service takes for saying whose each entry is.
    pub fn owners_bytes(ports: &P) -> u64 {
        u64::from(ports.capacity()) * size_of::<AtomicU64>() as u64
    }

    /// The service on a machine. No guest is attached.
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

    /// The machine.
    pub fn ports(&self) -> &P {
        &self.ports
    }

    /// Takes a guest in: its stores are masked throughout, and their shadows as after reset. `InvalidArgument` for a guest
    /// without processors, doubled names or impossible stores; `Exists` when another guest has one of the devices.
    pub fn attach(&self, spec: GuestSpec) -> Result<Arc<Domain>, Status> {
        spec.check()?;
        let mut list = self.devices.write();
        let taken = |device| list.iter().flatten().any(|other| other.spec.collides_with(device));
        if spec.devices.iter().any(taken) {
            return Err(Status::Exists);
        }
        let faults = Arc::new(FaultRing::default());
        let mut devices = Vec::with_capacity(spec.devices.len());
        for device in spec.devices {
            let number = list.iter().position(Option::is_none).unwrap_or(list.len());
            let name = u32::try_from(number).map_err(|_| Status::InvalidArgument)?;
            let unit = self.ports.unit_of(device.requester);
            let processors = spec.apic_ids.len();
            let device = Arc::new(Device::new(name, spec.guest, device, unit, faults.clone(), processors));
            match list.get_mut(number) {
                Some(place) => *place = Some(device.clone()),
                None => list.push(Some(device.clone())),
            }
            devices.push(device);
        }
        drop(list);
        for device in &devices {
            self.start(device);
        }
        Ok(Arc::new(Domain::new(spec.guest, spec.apic_ids, devices, spec.hypercalls, faults)))
    }

    /// Masks all slots in the device, and shows them as after reset.
    fn start(&self, device: &Device) {
        for name in [StoreName::Msix, StoreName::Ims] {
            let Ok(place) = Place::new(self, device, name) else { continue };
            for index in (0..=u16::MAX).take(place.store.slots as usize) {
                place.write_ctrl(index, CTRL_MASK);
                place.show_all(index, &Slot::RESET);
            }
            self.ports.read_back(place.store, 0, Field::Ctrl);
        }
    }

    /// Takes everything back that the guest holds. Its domain is good for nothing from then on: all it asks for is
    /// `NoSuchDevice`. For a guest that stopped, was reset (attach it again) or crashed.
    pub fn detach(&self, domain: &Domain) {
        for device in &domain.devices {
            device.exclusively(|slots| {
                if core::mem::replace(&mut slots.attached, false) {
                    self.evict(device, slots, &[StoreName::Msix, StoreName::Ims, StoreName::Queue]);
                }
            });
        }
        let mut list = self.devices.write();
        for place in list.iter_mut() {
            if place.as_ref().is_some_and(|device| domain.devices.iter().any(|own| Arc::ptr_eq(own, device))) {
                *place = None;
            }
        }
        drop(list);
        self.reclaim();
    }

    /// The guest reset the device: the slots of its message stores are as after reset, handles are stale. Its MSI-X table is the PCI
    /// function's and stays (Linux's `idxd` counts on that), whether the device has kept it or not. To be called when the device answers
    /// again.
    pub fn device_reset(&self, domain: &Domain, device: DeviceId) -> Result<(), Status> {
        let device = domain.device(device)?;
        device.exclusively(|slots| {
            if !slots.attached {
                return Err(Status::NoSuchDevice);
            }
            self.evict(device, slots, &[StoreName::Ims, StoreName::Queue]);
            self.write_again(device, slots);
            Ok(())
        })
    }

    /// The guest resets the function as a whole (PCIe 6.6.2): all its slots are as after reset, those of its MSI-X table too, and nothing
    /// is pending any more. For a virtual function its table is masked as a whole, since MSI-X is disabled. An error other than
    /// `NoSuchDevice` says that something may be pending still.
    ///
    /// To be called while the function can be written: before a reset that takes that away.
    pub fn function_reset(&self, domain: &Domain, device: DeviceId) -> Result<(), Status> {
        let device = domain.device(device)?;
        device.exclusively(|slots| {
            if !slots.attached {
                return Err(Status::NoSuchDevice);
            }
            device.table_masked.store(true, Relaxed);
            self.evict(device, slots, &[StoreName::Msix, StoreName::Ims, StoreName::Queue]);
            match Place::new(self, device, StoreName::Msix) {
                Ok(place) if place.store.backing.is_some() => self.discard(&place, slots),
                _ => Ok(()),
            }
        })
    }

    /// A function that did not answer while it was reset answers again: what its guest has written into its MSI-X table meanwhile gets
    /// there.
    pub fn function_ready(&self, domain: &Domain, device: DeviceId) -> Result<(), Status> {
        let device = domain.device(device)?;
        device.exclusively(|slots| {
            if !slots.attached {
                return Err(Status::NoSuchDevice);
            }
            self.write_again(device, slots);
            Ok(())
        })
    }

    /// Puts into a device's MSI-X table what is there already if the device has kept it.
    fn write_again(&self, device: &Device, slots: &mut Slots) {
        let Ok(place) = Place::new(self, device, StoreName::Msix) else { return };
        for (index, slot) in (0..=u16::MAX).zip(slots.msix.slots.iter_mut().map(Mutex::get_mut)) {
            if let Some(binding) = slot.binding() {
                place.store_message(index, binding.entry);
                place.write_ctrl(index, slot.device_ctrl(slot.device_masked));
            }
        }
    }

    /// Resets all slots of a device in these stores.
    fn evict(&self, device: &Device, slots: &mut Slots, stores: &[StoreName]) {
        for &name in stores {
            let Ok(place) = Place::new(self, device, name) else { continue };
            place.drop_signals();
            let bank = slots.bank_mut(name);
            for (first, slots) in (0..=u16::MAX).step_by(CHUNK).zip(bank.slots.chunks_mut(CHUNK)) {
                self.evict_chunk(&place, first, slots);
                (first..=u16::MAX).take(slots.len()).for_each(|index| bank.free.get_mut().put(index));
            }
        }
    }

    /// Masks first, all of them; one read pushes the writes out; then the entries go, with one flush.
    fn evict_chunk(&self, place: &Place<P>, first: u16, slots: &mut [Mutex<Slot>]) {
        let mut last = None;
        for (index, slot) in (first..=u16::MAX).zip(slots.iter_mut()) {
            if !slot.get_mut().device_masked {
                place.write_ctrl(index, CTRL_MASK);
                last = Some(index);
            }
        }
        if let Some(index) = last {
            self.ports.read_back(place.store, index, Field::Ctrl);
        }
        let mut held = Vec::new();
        for (index, slot) in (first..=u16::MAX).zip(slots.iter_mut().map(Mutex::get_mut)) {
            if slot.state != State::Free {
                held.extend(slot.take_binding().map(|binding| place.withdraw(binding)));
                slot.reset();
                place.show_all(index, slot);
            }
        }
        self.give_back(&held);
    }

    /// Whose entry this is. Waits for the slot's lock, so the caller must hold none, nor have interrupted a holder.
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

    /// The remapping unit refused a message of `source` that named this entry, with this reason code: noted for the guest whose entry
    /// it is. Whose that is. Locks as [`Self::lookup`] does.
    pub fn refused_message(&self, entry: EntryIndex, source: Bdf, reason: u8) -> Option<Attribution> {
        let (device, whose) = self.owner(entry)?;
        device.faults.add(&whose, FaultKind::Remapping(reason), source != whose.requester);
        Some(whose)
    }

    /// A pending interrupt was sent nowhere.
    pub(super) fn count_discarded(&self) {
        count(&self.counts.discarded);
    }

    /// What was done with the remapping unit so far.
    pub fn counters(&self) -> RemapCounters {
        RemapCounters {
            live: self.counts.live.load(Relaxed),
            high_water: self.counts.high_water.load(Relaxed),
            programmed: self.counts.programmed.load(Relaxed),
            flushes: self.counts.flushes.load(Relaxed),
            discarded: self.counts.discarded.load(Relaxed),
            quarantined: self.quarantine.lock().held.len() as u64,
        }
    }

    /// Tries once more to flush what is in quarantine, and gives it back if that works. How much is left.
    pub fn reclaim(&self) -> usize {
        let Quarantine { held: quarantine, forgotten } = &mut *self.quarantine.lock();
        let (mut kept, all) = (0, quarantine.len());
        for first in (0..all).step_by(CHUNK) {
            let chunk = first..all.min(first + CHUNK);
            let held = quarantine.get(chunk.clone()).unwrap_or_default();
            if self.flush_held(held).is_ok() {
                self.release(held);
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

    /// Whether a guest may take more: not while something of its is in quarantine, or what is there would be more with each call when a
    /// unit does not answer. [`Status::HardwareError`].
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

    /// Whether something of a guest's is in quarantine: until it is reclaimed, the unit may still send an interrupt by one of its routes.
    pub fn has_in_quarantine(&self, guest: GuestId) -> bool {
        let quarantine = self.quarantine.lock();
        quarantine.forgotten.contains(&guest) || quarantine.held.iter().any(|held| held.guest == guest)
    }

    /// Flushes, and only then releases. What cannot be flushed goes into quarantine: an index or a route that the cache may
    /// still hold is never used for anything else.
    pub(super) fn give_back(&self, held: &[Held]) {
        if held.is_empty() {
            return;
        }
        if self.flush_held(held).is_ok() || self.flush_held(held).is_ok() {
            self.release(held);
        } else {
            self.quarantine(held);
        }
    }

    /// Keeps what the cache may still hold.
    pub(super) fn quarantine(&self, held: &[Held]) {
        let Quarantine { held: quarantine, forgotten } = &mut *self.quarantine.lock();
        if quarantine.len() + held.len() <= MOST_QUARANTINED {
            quarantine.extend_from_slice(held);
        } else {
            for Held { guest, .. } in held {
                if !forgotten.contains(guest) {
                    forgotten.push(*guest);
                }
            }
        }
        self.has_quarantine.store(true, Relaxed);
    }

    fn flush_held(&self, held: &[Held]) -> Result<(), Status> {
        self.flush(held.iter().map(|held| held.binding.entry))
    }

    fn release(&self, held: &[Held]) {
        for Held { guest, binding, release } in held {
            if *release {
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

    /// Takes an entry, which is present at once.
    pub(super) fn bind(&self, unit: UnitNumber, requester: Bdf, route: HostRoute) -> Result<EntryIndex, Status> {
        let entry = self.ports.bind(unit, requester, route)?;
        self.count_bound(1);
        Ok(entry)
    }

    /// Takes routes and entries, which are present at once.
    #[inline]
    pub(super) fn bind_all<'a, W: AsMut<Wanted> + 'a>(
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

    /// An entry is for a slot.
    #[inline]
    pub(super) fn own(&self, entry: EntryIndex, owner: Owner) {
        if let Some(word) = self.owners.get(entry.0 as usize) {
            word.store(owner.0, Relaxed);
        }
    }

    /// An entry is not for a slot any more.
    pub(super) fn disown(&self, entry: EntryIndex) {
        if let Some(owner) = self.owners.get(entry.0 as usize) {
            owner.store(0, Relaxed);
        }
    }
}
