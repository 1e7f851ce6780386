//! A device's slots, behind its lock.

use alloc::{boxed::Box, vec, vec::Vec};

use hcall_abi::{SlotHandle, Status};
use spin::Mutex;

use super::{
    batch::Batch,
    domain::{DeviceSpec, GuestId},
    slot::{FreeMap, Slot, StoreName},
};

/// A device of a guest.
pub struct Device {
    /// Its place in the service's list: what entries are attributed to.
    pub number: u32,
    /// Its guest.
    pub guest: GuestId,
    /// What is fixed.
    pub spec: DeviceSpec,
    /// What changes.
    pub state: Mutex<DeviceState>,
}

/// What changes of a device.
pub struct DeviceState {
    /// False once the guest was detached: nothing is done then any more.
    pub attached: bool,
    /// Slots of the MSI-X table.
    pub msix: Bank,
    /// Slots of the interrupt message store.
    pub ims: Bank,
    /// Room for one batch, so that it needs neither stack nor allocator.
    pub batch: Box<Batch>,
}

impl Device {
    /// A device whose slots are as after reset.
    pub fn new(number: u32, guest: GuestId, spec: DeviceSpec) -> Self {
        let slots = |store: Option<super::StoreSpec>| Bank::new(store.map_or(0, |store| store.slots));
        let (msix, ims) = (slots(spec.msix), slots(spec.ims));
        Self {
            number,
            guest,
            spec,
            state: Mutex::new(DeviceState { attached: true, msix, ims, batch: Box::new(Batch::new()) }),
        }
    }
}

impl DeviceState {
    /// The slots of a store.
    pub fn bank(&mut self, name: StoreName) -> &mut Bank {
        match name {
            StoreName::Msix => &mut self.msix,
            StoreName::Ims => &mut self.ims,
        }
    }
}

/// The slots of a store.
pub struct Bank {
    /// All of them.
    pub slots: Vec<Slot>,
    /// Those in [`State::Free`](super::slot::State::Free).
    pub free: FreeMap,
}

impl Bank {
    fn new(slots: u32) -> Self {
        Self { slots: vec![Slot::RESET; slots as usize], free: FreeMap::new(slots) }
    }

    /// The slot that a call names.
    pub fn held(&mut self, handle: SlotHandle) -> Result<&mut Slot, Status> {
        let slot = self.slots.get_mut(usize::from(handle.index())).ok_or(Status::NoSuchSlot)?;
        if slot.is_held_by(handle) { Ok(slot) } else { Err(Status::StaleHandle) }
    }
}
