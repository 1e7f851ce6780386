//! The MSI-X table of a virtual function. The guest sees an MSI-X table. Its slots are a part of the parent function's interrupt message
//! store, or are signalled by the hypervisor.
//!
//! The service does slot by slot what hardware does with a whole table. While MSI-X is disabled or the function is masked, every slot is
//! masked in the device. The slot's own mask bit stays as the guest wrote it (PCIe 6.1.4.5, 7.7.2.2). A message that the device raises
//! meanwhile is pending, in the device or here, and is sent when neither mask is set.

use core::{iter::once, sync::atomic::Ordering::Relaxed};

use hcall_abi::{DeviceId, Status, Target};

use super::{
    ctrl::{CTRL_MASK, CTRL_PENDING},
    device::{Device, Slots},
    domain::Domain,
    message,
    ports::{EntryIndex, Field, HostRoute, Ports},
    service::{PendingRelease, Service},
    slot::{Binding, Slot},
    spec::{GuestId, StoreName},
    store,
    store_access::StoreAccess,
};
use crate::addr::Bdf;
use crate::sync::Mutex;

/// The target of a route without uses.
const NOBODY: Target = Target { apic_id: 0, vector: 0 };
const NO_GUEST: GuestId = GuestId(u16::MAX);

/// An entry for an interrupt of the hypervisor's own.
pub struct OwnEntry {
    entry: EntryIndex,
    route: HostRoute,
}

impl OwnEntry {
    /// The entry's index.
    pub const fn index(&self) -> EntryIndex {
        self.entry
    }
}

/// Bits of a word of the pending bit array (PCIe 7.7.2.4).
const WORD: u32 = 64;

/// Operations on a whole table fail with [`Status::NoSuchDevice`] when the guest does not have the device any more, and with
/// [`Status::Unsupported`] when the device has no table of this kind.
impl<P: Ports> Service<P> {
    /// Raises the interrupt of a slot that the hypervisor signals. The signal is pending while the slot or the table is masked, or while
    /// the slot has no message that the guest may send. Signals that are pending at the same time merge into one, as in hardware. Returns
    /// [`Status::NoSuchSlot`] for a slot that the device signals.
    pub fn signal(&self, domain: &Domain, device: DeviceId, index: u16) -> Result<(), Status> {
        let (device, access) = self.table(domain, device)?;
        if !access.store.is_emulated(index) {
            return Err(Status::NoSuchSlot);
        }
        let slots = device.slots()?;
        let slot = &*slots.msix.lock(index)?;
        device.signals.fetch_or(1 << index, Relaxed);
        access.send_signal(domain, index, slot)
    }

    /// Masks or unmasks a virtual function's table as a whole, for MSI-X enable and function mask. The slots' own mask bits stay.
    pub fn mask_table(&self, domain: &Domain, device: DeviceId, masked: bool) -> Result<(), Status> {
        let (device, access) = self.table(domain, device)?;
        let slots = device.slots()?;
        // A write that has not seen this yet has its slot's lock, so its slot comes after it.
        device.table_masked.store(masked, Relaxed);
        for index in (0..=u16::MAX).take(access.store.slots as usize) {
            // A slot that cannot be what its guest wrote stays masked: nobody is told, as for the write itself.
            let _ = store::settle(domain, &access, index, &mut *slots.msix.lock(index)?);
        }
        Ok(())
    }

    /// The pending bits of a virtual function's slots from `word` * 64 on. Returns [`Status::NoSuchSlot`] for a word beyond the last slot
    /// number.
    pub fn pending(&self, domain: &Domain, device: DeviceId, word: u32) -> Result<u64, Status> {
        let (device, access) = self.table(domain, device)?;
        let _attached = device.slots()?;
        let first = word.checked_mul(WORD).ok_or(Status::NoSuchSlot)?;
        let last = first.saturating_add(WORD).min(access.store.slots);
        let slots = (first..last).filter_map(|slot| u16::try_from(slot).ok());
        Ok(slots.filter(|&slot| access.is_pending(slot)).fold(0, |bits, slot| bits | 1 << (u32::from(slot) % WORD)))
    }

    /// Drops the function's pending interrupts, because the function was reset by itself. The table stays as it is. An error means that
    /// some may still be pending.
    pub fn drop_pending(&self, domain: &Domain, device: DeviceId) -> Result<(), Status> {
        let (device, access) = self.table(domain, device)?;
        device.exclusively(|slots| {
            if !slots.attached {
                return Err(Status::NoSuchDevice);
            }
            access.drop_signals();
            self.discard(&access, slots)
        })
    }

    /// Drops the pending messages. The device clears a pending bit only by sending the message, so the message is sent to a vector where it
    /// has no effect.
    pub(super) fn discard(&self, access: &StoreAccess<P>, slots: &mut Slots) -> Result<(), Status> {
        // One that is not masked in the device has sent what it had.
        let pending = |(index, slot): &(u16, &mut Mutex<Slot>)| {
            !access.store.is_emulated(*index) && slot.lock().device_masked && access.is_pending(*index)
        };
        let mut pending = (0..=u16::MAX).zip(&mut slots.msix.slots).filter(pending).peekable();
        let Some((first, _)) = pending.peek() else { return Ok(()) };
        self.admit(access.device.guest)?;
        let route = self.ports.nowhere();
        let entry = self.bind(access.device.unit?, access.device.spec.requester, route)?;
        self.own(entry, access.owner().of(*first));
        let nowhere = Binding { route, target: NOBODY, entry };
        let flushed = self.flush(once(entry));
        if flushed.is_ok() {
            pending.for_each(|(index, slot)| access.discard(index, slot.get_mut(), nowhere));
        }
        self.give_back(&[access.withdraw(nowhere)]);
        flushed
    }

    /// Takes an entry with `route` for an interrupt that `requester` sends to the hypervisor. The route counts no use. The error is that of
    /// [`Remap::bind`](super::Remap::bind), or of the flush.
    pub fn bind_own(&self, requester: Bdf, route: HostRoute) -> Result<OwnEntry, Status> {
        let own = OwnEntry { entry: self.bind(self.ports.unit_of(requester)?, requester, route)?, route };
        match self.flush(once(own.entry)) {
            Ok(()) => Ok(own),
            Err(status) => {
                self.give_back_own(&own);
                Err(status)
            }
        }
    }

    /// Gives the entry back. Nothing may send its message any more.
    pub fn give_back_own(&self, &OwnEntry { entry, route }: &OwnEntry) {
        self.ports.clear(entry);
        let binding = Binding { route, target: NOBODY, entry };
        self.give_back(&[PendingRelease { guest: NO_GUEST, binding, with_entry: true }]);
    }

    fn table<'a>(&'a self, domain: &'a Domain, device: DeviceId) -> Result<(&'a Device, StoreAccess<'a, P>), Status> {
        let device = domain.device(device)?;
        let access = StoreAccess::new(self, device, StoreName::Msix)?;
        if access.store.backing.is_some() { Ok((device, access)) } else { Err(Status::Unsupported) }
    }
}

impl<P: Ports> StoreAccess<'_, P> {
    /// Whether the table's mask stops all messages of the store.
    pub fn is_table_masked(&self) -> bool {
        self.store.backing.is_some() && self.device.table_masked.load(Relaxed)
    }

    /// Whether neither mask of the guest stops the slot's message.
    pub fn may_send(&self, slot: &Slot) -> bool {
        !slot.masked && !self.is_table_masked()
    }

    /// Delivers a slot's pending signal, if there is one and no mask stops it. The caller holds the slot's lock.
    pub fn send_signal(&self, domain: &Domain, index: u16, slot: &Slot) -> Result<(), Status> {
        let signal = 1 << index;
        if !self.may_send(slot) || self.device.signals.load(Relaxed) & signal == 0 {
            return Ok(());
        }
        let target = message::parse(domain, slot.image)?;
        self.device.signals.fetch_and(!signal, Relaxed);
        self.service.ports.deliver(domain.guest(), target);
        Ok(())
    }

    /// Drops all pending signals.
    pub fn drop_signals(&self) {
        if self.store.backing.is_some() {
            self.device.signals.store(0, Relaxed);
        }
    }

    /// Has the device send a slot's pending message to the binding `nowhere`. The slot is masked in the device before and after.
    fn discard(&self, index: u16, slot: &mut Slot, nowhere: Binding) {
        if !slot.device_masked {
            return;
        }
        self.store_message(index, nowhere.entry);
        for ctrl in [0, CTRL_MASK] {
            self.write_ctrl(index, ctrl);
            self.service.ports.read_back(self.store, index, Field::Control);
        }
        self.service.count_discarded();
        if let Some(binding) = slot.binding() {
            self.store_message(index, binding.entry);
        }
    }

    fn is_pending(&self, index: u16) -> bool {
        if self.store.is_emulated(index) {
            return self.device.signals.load(Relaxed) & 1 << index != 0;
        }
        self.service.ports.read_back(self.store, index, Field::Control) & CTRL_PENDING != 0
    }
}
