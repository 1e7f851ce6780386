//! A device's slots, each behind its own lock.

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicBool, AtomicU64};

use hcall_abi::{SlotHandle, Status, call::QUEUE_SLOTS_MAX};
use imsvisor_sync::ReadGuard;

use super::{
    batch_buffer::Batch,
    faults::FaultRing,
    ports::UnitNumber,
    slot::{FreeMap, Slot, State},
    spec::{DeviceSpec, GuestId, StoreName, StoreSpec},
};
use crate::sync::{Mutex, MutexGuard, Shared};

/// The most bytes of memory that a device with `slots` slots takes for a guest with `processors` virtual processors, including all that the
/// guest can ask for. If this much is free for each device, no guest can take another one's memory.
pub const fn most_bytes(slots: u32, processors: u32) -> u64 {
    // Which are free are some bits more.
    let slot = size_of::<Mutex<Slot>>() as u64 + 1;
    (slots as u64 + QUEUE_SLOTS_MAX) * slot + processors as u64 * Batch::BYTES
}

/// Entries that the hypervisor takes for a device: one for the device's own interrupt, and one for interrupts that are dropped.
const OWN_ENTRIES: u32 = 2;

/// The most entries of the remapping table that a device with `slots` slots takes, including all that its guest can ask for. If this many
/// are free for each device, no guest can take another one's entries.
pub const fn most_entries(slots: u32) -> u32 {
    if slots == 0 { 0 } else { slots + QUEUE_SLOTS_MAX as u32 + OWN_ENTRIES }
}

/// A device of a guest.
pub struct Device {
    /// The device's place in the service's list. The owners of entries name it.
    pub number: u32,
    /// The guest that the device belongs to.
    pub guest: GuestId,
    /// The description of the device, which does not change.
    pub spec: DeviceSpec,
    /// The remapping unit that serves the device.
    pub unit: Result<UnitNumber, Status>,
    /// Where the service keeps faults of the device's slots for the guest.
    pub faults: Arc<FaultRing>,
    /// For a virtual function: whether its MSI-X table is masked as a whole.
    pub table_masked: AtomicBool,
    /// For a virtual function: a bit for each signal that is pending until its slot is unmasked. It changes under the slot's lock only.
    pub signals: AtomicU64,
    /// The slots. Writes and calls share the lock and lock single slots; a reset and detaching hold it exclusively.
    slots: Shared<Slots>,
    /// Buffers for batches, one for each virtual processor of the guest, so that a batch needs neither stack nor allocator.
    batches: Mutex<Vec<Box<Batch>>>,
}

/// All slots of a device.
pub struct Slots {
    /// False once the guest was detached. Operations are refused then.
    pub attached: bool,
    /// Slots of the MSI-X table.
    pub msix: Bank,
    /// Slots of the interrupt message store.
    pub ims: Bank,
    /// Slots of the store in the guest's own memory; none until the guest opens the store.
    pub queue: Bank,
}

impl Device {
    /// A device whose slots are as after reset, for a guest with `processors` virtual processors.
    pub fn new(
        number: u32,
        guest: GuestId,
        spec: DeviceSpec,
        unit: Result<UnitNumber, Status>,
        faults: Arc<FaultRing>,
        processors: usize,
    ) -> Self {
        let bank = |store: Option<StoreSpec>| Bank::new(store.map_or(0, |store| store.slots));
        let slots = Slots { attached: true, msix: bank(spec.msix), ims: bank(spec.ims), queue: Bank::new(0) };
        // A virtual function has no store that calls reach.
        let rooms = if spec.ims.is_none() && spec.shares_requester { 0 } else { processors };
        let batches = (0..rooms).map(|_| Box::new(Batch::new())).collect();
        Self {
            number,
            guest,
            spec,
            unit,
            faults,
            // MSI-X is disabled after reset.
            table_masked: AtomicBool::new(true),
            signals: AtomicU64::new(0),
            slots: Shared::new(slots),
            batches: Mutex::new(batches),
        }
    }

    /// Shares the slots, to lock some of them one after another. Returns `NoSuchDevice` once the guest was detached.
    #[inline]
    pub fn slots(&self) -> Result<ReadGuard<'_, Slots>, Status> {
        let slots = self.slots.read();
        if slots.attached { Ok(slots) } else { Err(Status::NoSuchDevice) }
    }

    /// Calls `what` with all slots while no other operation uses any. Later operations wait, so `what` begins soon.
    pub fn exclusively<T>(&self, what: impl FnOnce(&mut Slots) -> T) -> T {
        what(&mut self.slots.write())
    }

    /// Lends a buffer for a batch. Returns `NoFreeSlot` while as many batches are under way as the guest has virtual processors.
    pub fn with_batch<T>(&self, what: impl FnOnce(&mut Batch) -> Result<T, Status>) -> Result<T, Status> {
        let mut batch = self.batches.lock().pop().ok_or(Status::NoFreeSlot)?;
        let result = what(&mut batch);
        self.batches.lock().push(batch);
        result
    }
}

impl Slots {
    /// The slots of a store.
    pub fn bank(&self, name: StoreName) -> &Bank {
        match name {
            StoreName::Msix => &self.msix,
            StoreName::Ims => &self.ims,
            StoreName::Queue => &self.queue,
        }
    }

    /// The slots of a store, all for the caller.
    pub fn bank_mut(&mut self, name: StoreName) -> &mut Bank {
        match name {
            StoreName::Msix => &mut self.msix,
            StoreName::Ims => &mut self.ims,
            StoreName::Queue => &mut self.queue,
        }
    }
}

/// The slots of a store.
pub struct Bank {
    /// All of them.
    pub slots: Vec<Mutex<Slot>>,
    /// Those in [`State::Free`], whenever nobody holds the slot's lock: changed only by who does.
    pub free: Mutex<FreeMap>,
}

impl Bank {
    /// So many, as after reset.
    pub fn new(slots: u32) -> Self {
        let all = (0..slots).map(|_| Mutex::new(Slot::RESET)).collect();
        Self { slots: all, free: Mutex::new(FreeMap::new(slots)) }
    }

    /// The same when a guest asks for it: `NoFreeSlot` when there is no memory for so many.
    pub fn try_new(slots: u32) -> Result<Self, Status> {
        let mut all = Vec::new();
        all.try_reserve_exact(slots as usize).map_err(|_| Status::NoFreeSlot)?;
        all.extend((0..slots).map(|_| Mutex::new(Slot::RESET)));
        Ok(Self { slots: all, free: Mutex::new(FreeMap::new(slots)) })
    }

    /// A slot, locked.
    #[inline(always)]
    pub fn lock(&self, index: u16) -> Result<MutexGuard<'_, Slot>, Status> {
        self.slots.get(usize::from(index)).map(Mutex::lock).ok_or(Status::NoSuchSlot)
    }

    /// The slot that a call names, locked.
    #[inline]
    pub fn lock_allocated(&self, handle: SlotHandle) -> Result<MutexGuard<'_, Slot>, Status> {
        let slot = self.lock(handle.index())?;
        if slot.has_handle(handle) { Ok(slot) } else { Err(Status::StaleHandle) }
    }

    /// Allocates the lowest free slot, with a group.
    pub fn allocate(&self, group: u8) -> Result<SlotHandle, Status> {
        // Who takes a slot from under us has got one, so not every try can fail.
        for _ in 0..=self.slots.len() {
            let index = self.free.lock().lowest().ok_or(Status::NoFreeSlot)?;
            let mut slot = self.lock(index)?;
            if slot.state == State::Free {
                self.free.lock().take(index);
                return Ok(slot.allocate(index, group));
            }
        }
        Err(Status::NoFreeSlot)
    }
}
