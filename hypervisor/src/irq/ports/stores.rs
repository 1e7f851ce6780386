//! The service's ports [`Store`] and [`Shadow`]: they read and write slots in devices, and the shadows that guests read. Addresses come from the
//! store's description, which `devices::passthrough` has made.

use core::ptr::{read_volatile, write_volatile};

use hcall_abi::Status;

use super::MachinePorts;
use crate::{
    addr::{Bdf, Hpa},
    clock,
    ims::{Field, Message, Shadow, Store, StoreLocation, StoreSpec},
    irq::slow_store::{CommandFailed, SlowStore},
    memory::Mmio,
    sync::Mutex,
};

impl MachinePorts {
    /// The number of a function's slow store, by which [`StoreLocation::SlowStore`] names it. `None` if it has none.
    pub fn slow_store(&self, bdf: Bdf, registers: Mmio) -> Option<u16> {
        let mut stores = self.slow_stores.write();
        let number = match stores.iter().position(|(whose, _)| *whose == bdf) {
            Some(number) => {
                stores[number].1.get_mut().mend();
                number
            }
            None => {
                stores.push((bdf, Mutex::new(SlowStore::find(registers, clock::current())?)));
                stores.len() - 1
            }
        };
        u16::try_from(number).ok()
    }

    /// Lets a function's slow store work again after a failure, because the function was reset and answers again.
    pub fn mend_slow_store(&self, bdf: Bdf) {
        if let Some((_, store)) = self.slow_stores.read().iter().find(|(whose, _)| *whose == bdf) {
            store.lock().mend();
        }
    }

    /// Writes to a store that is not device memory.
    #[cold]
    #[inline(never)]
    fn write_elsewhere(&self, store: &StoreSpec, slot: u16, which: Field, value: u32) {
        if let StoreLocation::SlowStore(number) = store.location {
            // A device that is stuck takes nothing; whoever reads back or commits gets to know.
            let _ = self.on_slow_store(number, |slow| slow.write(slot, which, value));
        }
    }

    #[cold]
    #[inline(never)]
    fn write_message_elsewhere(&self, store: &StoreSpec, slot: u16, message: Message) {
        self.write_elsewhere(store, slot, Field::AddressLo, message.address as u32);
        self.write_elsewhere(store, slot, Field::AddressHi, (message.address >> 32) as u32);
        self.write_elsewhere(store, slot, Field::Data, message.data);
    }

    /// Reads a store that is not device memory. A guest's own store is not read: it counts as masked.
    #[cold]
    #[inline(never)]
    fn read_elsewhere(&self, store: &StoreSpec, slot: u16, which: Field) -> u32 {
        let StoreLocation::SlowStore(number) = store.location else { return u32::from(which == Field::Control) };
        let dwords = self.on_slow_store(number, |slow| slow.read(slot));
        dwords.map_or(0, |dwords| dwords[which as usize])
    }

    /// Calls `what` with a slow store, under its bus lock.
    #[cold]
    fn on_slow_store<T>(
        &self,
        number: u16,
        what: impl FnOnce(&mut SlowStore<Mmio>) -> Result<T, CommandFailed>,
    ) -> Result<T, Status> {
        let stores = self.slow_stores.read();
        let (_, store) = stores.get(usize::from(number)).ok_or(Status::HardwareError)?;
        what(&mut store.lock()).map_err(|CommandFailed| Status::HardwareError)
    }
}

/// The address of a slot's field.
fn field(base: Hpa, slot: u16, field: Field) -> u64 {
    base.as_u64() + field.offset(slot)
}

impl Store for MachinePorts {
    fn write(&self, store: &StoreSpec, slot: u16, which: Field, value: u32) {
        if store.location != StoreLocation::DeviceMemory {
            return self.write_elsewhere(store, slot, which, value);
        }
        // SAFETY: `MachinePorts::new` was promised that `base` has `slots` slots of mapped device memory, and the service has checked
        // `slot` against that. The device sends what is written here through the remapping unit, so it is no way to memory.
        unsafe { write_volatile(field(store.base, slot, which) as *mut u32, value) }
    }

    #[inline]
    fn write_message(&self, store: &StoreSpec, slot: u16, message: Message) {
        if store.location != StoreLocation::DeviceMemory {
            return self.write_message_elsewhere(store, slot, message);
        }
        let at = field(store.base, slot, Field::AddressLo) as *mut u32;
        // SAFETY: as in `write`.
        unsafe {
            write_volatile(at, message.address as u32);
            write_volatile(at.add(1), (message.address >> 32) as u32);
            write_volatile(at.add(2), message.data);
        }
    }

    fn read_back(&self, store: &StoreSpec, slot: u16, which: Field) -> u32 {
        if store.location != StoreLocation::DeviceMemory {
            return self.read_elsewhere(store, slot, which);
        }
        // SAFETY: as in `write`; reading a slot has no side effect.
        unsafe { read_volatile(field(store.base, slot, which) as *const u32) }
    }

    fn commit(&self, store: &StoreSpec) -> Result<(), Status> {
        match store.location {
            StoreLocation::DeviceMemory | StoreLocation::GuestMemory => Ok(()),
            StoreLocation::SlowStore(number) => self.on_slow_store(number, SlowStore::commit),
        }
    }
}

impl Shadow for MachinePorts {
    fn show(&self, store: &StoreSpec, slot: u16, which: Field, value: u32) {
        if store.location == StoreLocation::GuestMemory {
            return;
        }
        // SAFETY: `MachinePorts::new` was promised that `shadow` has room for `slots` slots in frames of its own, and the service has
        // checked `slot`. The guest reads them meanwhile; no Rust reference leads there.
        unsafe { write_volatile(field(store.shadow, slot, which) as *mut u32, value) }
    }

    fn show_slot(&self, store: &StoreSpec, slot: u16, [lo, hi, data, ctrl]: [u32; 4]) {
        if store.location == StoreLocation::GuestMemory {
            return;
        }
        let at = field(store.shadow, slot, Field::AddressLo) as *mut u64;
        // SAFETY: as in `show`; a slot is aligned to its 16 bytes.
        unsafe {
            write_volatile(at, u64::from(hi) << 32 | u64::from(lo));
            write_volatile(at.add(1), u64::from(ctrl) << 32 | u64::from(data));
        }
    }
}
