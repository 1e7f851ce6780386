//! Operations on a slot that all paths share. Each keeps the order in which device, table and cache stay consistent.

use core::{iter::once, sync::atomic::AtomicU64};

use hcall_abi::{FaultKind, MessagePair, Pasid, SlotHandle, SlotInfo, Status, Target, info::Mapping};

use super::{
    counters::count,
    ctrl::{CTRL_MASK, CTRL_PENDING},
    device::{Bank, Device},
    domain::Domain,
    faults::Attribution,
    ports::{BindRequest, EntryIndex, Field, Message, Ports, Span},
    service::{Owner, PendingRelease, Service},
    slot::{Binding, Slot, State},
    spec::{DeviceSpec, GuestId, StoreLocation, StoreName, StoreSpec},
};

/// The minor version that introduced [`FaultKind::Refused`].
const REFUSALS_SINCE: u16 = 3;

/// A store of a device, with the service whose ports reach it.
pub struct StoreAccess<'a, P> {
    pub service: &'a Service<P>,
    pub device: &'a Device,
    pub name: StoreName,
    pub store: &'a StoreSpec,
}

impl<'a, P: Ports> StoreAccess<'a, P> {
    /// The store `name` of `device`.
    pub fn new(service: &'a Service<P>, device: &'a Device, name: StoreName) -> Result<Self, Status> {
        let store = device.spec.store(name).ok_or(Status::NoSuchDevice)?;
        Ok(Self { service, device, name, store })
    }

    fn guest(&self) -> GuestId {
        self.device.guest
    }

    /// A dword of a slot as the guest reads it. In an MSI-X table, vector control shows the mask bit only.
    pub fn seen(&self, slot: &Slot, field: Field) -> u32 {
        let control = field == Field::Control && self.store.backing.is_some();
        slot.field(field) & if control { CTRL_MASK } else { u32::MAX }
    }

    /// Puts a dword of a slot into the guest's shadow.
    pub fn show(&self, index: u16, slot: &Slot, field: Field) {
        self.service.ports.show(self.store, index, field, self.seen(slot, field));
    }

    /// Puts a slot into the guest's shadow.
    pub fn show_all(&self, index: u16, slot: &Slot) {
        self.service.ports.show_slot(self.store, index, Field::ALL.map(|field| self.seen(slot, field)));
    }

    /// Writes a slot's control dword in the device, together with the bits that all slots of the store have.
    pub fn write_ctrl(&self, index: u16, ctrl: u32) {
        self.service.ports.write(self.store, index, Field::Control, ctrl | self.store.fixed_ctrl());
    }

    /// Masks the slot in the device. When this returns `Ok`, the device sends no message of the slot any more. If the device did not accept
    /// the mask, the slot is unmasked as before.
    #[inline(always)]
    pub fn mask(&self, index: u16, slot: &mut Slot) -> Result<(), Status> {
        if slot.device_masked {
            return Ok(());
        }
        self.write_ctrl(index, slot.device_ctrl(true));
        let ctrl = self.service.ports.read_back(self.store, index, Field::Control);
        if ctrl & CTRL_MASK == 0 {
            return self.not_masked(index, slot);
        }
        slot.device_masked = true;
        self.take_pending(slot, ctrl);
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn not_masked(&self, index: u16, slot: &Slot) -> Result<(), Status> {
        self.write_ctrl(index, slot.device_ctrl(false));
        Err(Status::HardwareError)
    }

    /// Masks the slot as far as the device allows, because its entry cannot be relied on.
    fn mask_regardless(&self, index: u16, slot: &mut Slot) {
        if !slot.device_masked {
            self.write_ctrl(index, slot.device_ctrl(true));
            self.service.ports.read_back(self.store, index, Field::Control);
            slot.device_masked = true;
        }
    }

    /// Reads the pending bit of a slot that is masked in the device.
    pub fn read_pending(&self, index: u16, slot: &mut Slot) {
        let ctrl = self.service.ports.read_back(self.store, index, Field::Control);
        self.take_pending(slot, ctrl);
    }

    fn take_pending(&self, slot: &mut Slot, ctrl: u32) {
        slot.pending = self.has_pending_bits() && ctrl & CTRL_PENDING != 0;
    }

    /// Whether the slots' control dword has a pending bit. In a device's own MSI-X table, bit 1 is not a pending bit: the pending bit array
    /// holds those.
    pub fn has_pending_bits(&self) -> bool {
        self.name == StoreName::Ims || self.store.backing.is_some()
    }

    /// Restricts the slot in the device to work with this PASID, or lifts the restriction. Returns `BadPasid` for a PASID that the guest
    /// does not own.
    pub fn set_pasid(&self, index: u16, slot: &mut Slot, pasid: Option<Pasid>) -> Result<(), Status> {
        if pasid.is_some_and(|pasid| !self.device.spec.owns(pasid)) {
            return Err(Status::BadPasid);
        }
        slot.set_pasid(pasid);
        self.write_ctrl(index, slot.device_ctrl(slot.device_masked));
        self.service.ports.read_back(self.store, index, Field::Control);
        self.show(index, slot, Field::Control);
        Ok(())
    }

    /// The state of an allocated slot that the guest may read.
    pub fn info(&self, index: u16, slot: &mut Slot) -> SlotInfo {
        if slot.device_masked && slot.state == State::Mapped {
            self.read_pending(index, slot);
        }
        let binding = slot.binding().filter(|_| slot.state == State::Mapped);
        let mapping = binding.map(|binding| Mapping {
            target: binding.target,
            cookie: slot.cookie,
            pair: if self.name == StoreName::Queue { self.message(binding.entry) } else { slot.pair() },
        });
        SlotInfo {
            mapping,
            masked: slot.masked,
            pending: slot.pending,
            limited: slot.limited,
            group: slot.group.into(),
            pasid: slot.pasid(),
        }
    }

    /// The message that selects an entry. Only a guest that writes it into its own memory reads it.
    fn message(&self, entry: EntryIndex) -> MessagePair {
        let Message { address, data } = self.service.ports.message(entry);
        MessagePair { address, data }
    }

    /// Unmasks the slot in the device. The slot must have a binding. If its entry may not be flushed, the flush comes first. A throttled
    /// slot stays masked until [`Service::unthrottle`].
    pub fn unmask(&self, index: u16, slot: &mut Slot) -> Result<(), Status> {
        if !slot.device_masked || slot.throttled {
            return Ok(());
        }
        self.unblock(slot)?;
        self.complete_flush(slot)?;
        self.let_send(index, slot);
        Ok(())
    }

    /// Masks a bound slot and makes its entry not present, so that the unit drops all messages for it. Returns the entry, which the caller
    /// has to flush; `None` if the slot is blocked already or has no binding.
    pub fn block(&self, index: u16, slot: &mut Slot) -> Option<EntryIndex> {
        let binding = slot.binding().filter(|_| !slot.blocked)?;
        self.mask_regardless(index, slot);
        self.service.ports.block(binding.entry);
        (slot.blocked, slot.flushed) = (true, false);
        Some(binding.entry)
    }

    /// Makes a blocked slot's entry present again.
    fn unblock(&self, slot: &mut Slot) -> Result<(), Status> {
        if core::mem::take(&mut slot.blocked) {
            let binding = slot.binding().ok_or(Status::NotMapped)?;
            self.service.program(binding.entry, binding.route);
            slot.flushed = false;
        }
        Ok(())
    }

    /// Unmasks a slot in the device. The slot has a message, and its entry is flushed.
    #[inline]
    pub fn let_send(&self, index: u16, slot: &mut Slot) {
        self.write_ctrl(index, slot.device_ctrl(false));
        slot.device_masked = false;
        slot.pending = false;
        slot.throttled = false;
        slot.limited = false;
    }

    /// Stores the message of a slot that a batch has mapped, unmasks the slot unless it is to stay masked, and shows it. `store` is a copy
    /// of `self.store`.
    #[inline(always)]
    pub fn begin_to_send(&self, store: &StoreSpec, slot: &Slot, handle: SlotHandle, entry: EntryIndex) {
        let (ports, index) = (&self.service.ports, handle.index());
        // Calls reach no MSI-X table, where something of ctrl would be fixed or hidden.
        let ctrl = slot.device_ctrl(slot.masked);
        ports.write_slot(store, index, ports.message(entry), ctrl);
        let MessagePair { address, data } = Slot::pair_of(handle);
        ports.show_slot(store, index, [address as u32, (address >> 32) as u32, data, ctrl]);
    }

    /// Flushes the entry of a bound slot if it may not be flushed.
    pub fn complete_flush(&self, slot: &mut Slot) -> Result<(), Status> {
        let binding = slot.binding().ok_or(Status::NotMapped)?;
        if !slot.flushed {
            self.service.flush(once(binding.entry))?;
            slot.flushed = true;
        }
        Ok(())
    }

    /// Acquires a route to `target` and an entry that holds it. The entry is present, but not yet flushed.
    pub fn acquire(&self, index: u16, target: Target) -> Result<Binding, Status> {
        let binding = self.bind_one(target)?;
        self.service.own(binding.entry, self.owner().of(index));
        Ok(binding)
    }

    /// The same for a slot that is not known yet.
    pub fn bind_one(&self, target: Target) -> Result<Binding, Status> {
        let service = self.service;
        let route = service.ports.route(self.guest(), target)?;
        let entry = self.device.unit.and_then(|unit| service.bind(unit, self.device.spec.requester, route));
        let entry = entry.inspect_err(|_| service.ports.unroute(self.guest(), target, route))?;
        Ok(Binding { route, target, entry })
    }

    /// Acquires routes and entries for several slots. The entries are present, but not yet flushed. Returns how many requests failed, and
    /// the span of the other requests' entries.
    #[inline]
    pub fn bind_all<'w, W: AsMut<BindRequest> + 'w>(&self, runs: impl Iterator<Item = &'w mut [W]>) -> (usize, Span) {
        match self.device.unit {
            Ok(unit) => self.service.bind_all(self.guest(), unit, self.device.spec.requester, runs),
            Err(status) => (runs.flatten().map(|request| request.as_mut().result = Err(status)).count(), Span::NONE),
        }
    }

    /// The owner of entries that slots of the store use.
    pub fn owner(&self) -> Owner {
        Owner::new(self.device.number, self.name)
    }

    /// Clears the entry of a slot that is masked in the device or never had its message. The caller passes the result to
    /// [`Service::give_back`].
    pub fn withdraw(&self, binding: Binding) -> PendingRelease {
        self.service.ports.clear(binding.entry);
        self.service.disown(binding.entry);
        PendingRelease { guest: self.guest(), binding, with_entry: true }
    }

    /// Binds a slot that has no binding, stores its message and leaves it masked.
    pub fn bind(&self, index: u16, slot: &mut Slot, target: Target) -> Result<(), Status> {
        self.service.admit(self.guest())?;
        let binding = self.acquire(index, target)?;
        if let Err(status) = self.service.flush(once(binding.entry)) {
            self.service.give_back(&[self.withdraw(binding)]);
            return Err(status);
        }
        self.store_message(index, binding.entry);
        slot.bind(binding);
        slot.flushed = true;
        Ok(())
    }

    /// Stores the message in the device. The slot is masked there, so the order of the dwords does not matter.
    pub fn store_message(&self, index: u16, entry: EntryIndex) {
        let ports = &self.service.ports;
        ports.write_message(self.store, index, ports.message(entry));
    }

    /// Changes a bound slot's target. The entry is present all the time, and both routes work until the flush is complete. So no interrupt
    /// is lost, and the slot need not be masked.
    pub fn retarget(&self, index: u16, slot: &mut Slot, target: Target) -> Result<(), Status> {
        let old = slot.binding().ok_or(Status::NotMapped)?;
        self.unblock(slot)?;
        if !slot.flushed {
            self.make_up_for_flush(index, slot)?;
        }
        if old.target == target {
            return Ok(());
        }
        let service = self.service;
        let route = service.ports.route(self.guest(), target)?;
        let new = Binding { route, target, entry: old.entry };
        service.program(new.entry, route);
        match service.flush(once(new.entry)) {
            Ok(()) => {
                service.ports.unroute(self.guest(), old.target, old.route);
                slot.bind(new);
                if core::mem::take(&mut slot.throttled) {
                    // `unthrottle` looks at slots of the old target only.
                    self.send_again(index, slot);
                }
                Ok(())
            }
            Err(status) => {
                self.return_to(index, slot, old, new);
                Err(status)
            }
        }
    }

    /// Repeats a flush that failed before the slot changes its target. Otherwise each try would leave one more route that the cache may
    /// hold.
    #[cold]
    fn make_up_for_flush(&self, index: u16, slot: &mut Slot) -> Result<(), Status> {
        self.complete_flush(slot)?;
        self.send_again(index, slot);
        Ok(())
    }

    /// Unmasks a slot in the device unless something keeps it masked.
    #[cold]
    fn send_again(&self, index: u16, slot: &mut Slot) {
        if !slot.throttled && self.may_send(slot) && slot.is_sound() {
            self.let_send(index, slot);
        }
    }

    /// Returns the slot to `old` after a retarget whose flush failed. If this flush fails as well, the cache may hold `new`, so the route
    /// of `new` stays and the slot waits, masked.
    fn return_to(&self, index: u16, slot: &mut Slot, old: Binding, new: Binding) {
        let service = self.service;
        service.program(old.entry, old.route);
        let abandoned = PendingRelease { guest: self.guest(), binding: new, with_entry: false };
        if service.flush(once(old.entry)).is_ok() {
            service.ports.unroute(abandoned.guest, new.target, new.route);
            slot.flushed = true;
        } else {
            self.mask_regardless(index, slot);
            slot.flushed = false;
            service.quarantine(&[abandoned]);
        }
    }

    /// Removes a slot's binding. An error means that the device does not mask the slot; nothing has changed then.
    pub fn unbind(&self, index: u16, slot: &mut Slot) -> Result<(), Status> {
        self.mask(index, slot)?;
        if let Some(binding) = slot.take_binding() {
            self.service.give_back(&[self.withdraw(binding)]);
            slot.flushed = true;
        }
        Ok(())
    }

    /// Handles a valid write of the guest that could not be carried out: no vector, no entry, or no answer of the unit. The slot reads as
    /// masked, and a fault record holds the reason.
    #[cold]
    pub fn refuse(&self, domain: &Domain, index: u16, slot: &mut Slot, status: Status) {
        let unmasked = !core::mem::replace(&mut slot.masked, true);
        self.show(index, slot, Field::Control);
        if !unmasked || !domain.knows(REFUSALS_SINCE) {
            return;
        }
        self.note_fault(index, slot, FaultKind::Refused(status));
    }

    /// Adds a fault of a slot for the guest to read. Returns the slot's owner.
    pub fn note_fault(&self, index: u16, slot: &Slot, kind: FaultKind) -> Attribution {
        let cookie = (slot.state == State::Mapped).then_some(slot.cookie);
        let DeviceSpec { id, requester, .. } = self.device.spec;
        let guest = self.device.guest;
        let whose = Attribution { guest, device: id, requester, store: self.name, slot: index, cookie };
        self.device.faults.add(&whose, kind, false);
        whose
    }

    /// Frees a slot that has no binding and is masked in the device.
    pub fn vacate(&self, bank: &Bank, index: u16, slot: &mut Slot) {
        if slot.pasid().is_some() {
            self.write_ctrl(index, CTRL_MASK);
        }
        slot.reset();
        self.show_all(index, slot);
        bank.free.lock().put(index);
    }

    /// Completes an operation that may have written to the store: its writes are in the device when this returns.
    #[inline]
    pub fn commit<T>(&self, result: Result<T, Status>) -> Result<T, Status> {
        if self.store.location == StoreLocation::DeviceMemory {
            return result;
        }
        let committed = self.service.ports.commit(self.store);
        result.and_then(|value| committed.map(|()| value))
    }

    /// Counts an error, and returns the result.
    pub fn counted<T>(counter: &AtomicU64, result: Result<T, Status>) -> Result<T, Status> {
        if result.is_err() {
            count(counter);
        }
        result
    }
}
