//! Attaching and detaching guests, and resets of their devices.

use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::Ordering::Relaxed;

use hcall_abi::{DeviceId, Status};

use super::{
    ctrl::CTRL_MASK,
    device::{Device, Slots},
    domain::Domain,
    faults::FaultRing,
    ports::{Field, Ports},
    service::{CHUNK, Service},
    slot::{Slot, State},
    spec::{GuestSpec, StoreName},
    store_access::StoreAccess,
};
use crate::sync::Mutex;

impl<P: Ports> Service<P> {
    /// Attaches a guest. All its stores are masked, and their shadows are as after reset. Returns `InvalidArgument` for a guest without
    /// processors, duplicate names or impossible stores, and `Exists` when another guest has one of the devices.
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
            let Ok(access) = StoreAccess::new(self, device, name) else { continue };
            for index in (0..=u16::MAX).take(access.store.slots as usize) {
                access.write_ctrl(index, CTRL_MASK);
                access.show_all(index, &Slot::RESET);
            }
            self.ports.read_back(access.store, 0, Field::Control);
        }
    }

    /// Detaches a guest that has stopped, was reset (attach it again) or crashed. All slots and entries are taken back. From then on the
    /// domain answers every request with `NoSuchDevice`.
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

    /// Handles a reset of the device by the guest. The slots of the device's message stores are as after reset, and their handles are
    /// stale. The MSI-X table belongs to the PCI function and keeps its contents (Linux's `idxd` relies on that), whether the device has
    /// kept them or not. The caller calls this when the device answers again.
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

    /// Handles a reset of the whole function by the guest (PCIe 6.6.2). All slots are as after reset, including those of the MSI-X table,
    /// and no interrupt stays pending. A virtual function's table is masked as a whole, because MSI-X is disabled. An error other than
    /// `NoSuchDevice` means that an interrupt may still be pending.
    ///
    /// The caller calls this while the function can be written: before a reset that makes it unreachable.
    pub fn function_reset(&self, domain: &Domain, device: DeviceId) -> Result<(), Status> {
        let device = domain.device(device)?;
        device.exclusively(|slots| {
            if !slots.attached {
                return Err(Status::NoSuchDevice);
            }
            device.table_masked.store(true, Relaxed);
            self.evict(device, slots, &[StoreName::Msix, StoreName::Ims, StoreName::Queue]);
            match StoreAccess::new(self, device, StoreName::Msix) {
                Ok(access) if access.store.backing.is_some() => self.discard(&access, slots),
                _ => Ok(()),
            }
        })
    }

    /// Writes the MSI-X table of a function that answers again after its reset. The guest may have written entries while the function did
    /// not answer.
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

    /// Writes a device's MSI-X table again; the device may have lost it.
    fn write_again(&self, device: &Device, slots: &mut Slots) {
        let Ok(access) = StoreAccess::new(self, device, StoreName::Msix) else { return };
        for (index, slot) in (0..=u16::MAX).zip(slots.msix.slots.iter_mut().map(Mutex::get_mut)) {
            if let Some(binding) = slot.binding() {
                access.store_message(index, binding.entry);
                access.write_ctrl(index, slot.device_ctrl(slot.device_masked));
            }
        }
    }

    /// Resets all slots of a device in these stores.
    fn evict(&self, device: &Device, slots: &mut Slots, stores: &[StoreName]) {
        for &name in stores {
            let Ok(access) = StoreAccess::new(self, device, name) else { continue };
            access.drop_signals();
            let bank = slots.bank_mut(name);
            for (first, slots) in (0..=u16::MAX).step_by(CHUNK).zip(bank.slots.chunks_mut(CHUNK)) {
                self.evict_chunk(&access, first, slots);
                (first..=u16::MAX).take(slots.len()).for_each(|index| bank.free.get_mut().put(index));
            }
        }
    }

    /// Masks all slots of a chunk first. One read then makes sure that the writes have arrived. The entries are released after that, with
    /// one flush.
    fn evict_chunk(&self, access: &StoreAccess<P>, first: u16, slots: &mut [Mutex<Slot>]) {
        let mut last = None;
        for (index, slot) in (first..=u16::MAX).zip(slots.iter_mut()) {
            if !slot.get_mut().device_masked {
                access.write_ctrl(index, CTRL_MASK);
                last = Some(index);
            }
        }
        if let Some(index) = last {
            self.ports.read_back(access.store, index, Field::Control);
        }
        let mut releases = Vec::new();
        for (index, slot) in (first..=u16::MAX).zip(slots.iter_mut().map(Mutex::get_mut)) {
            if slot.state != State::Free {
                releases.extend(slot.take_binding().map(|binding| access.withdraw(binding)));
                slot.reset();
                access.show_all(index, slot);
            }
        }
        self.give_back(&releases);
    }
}
