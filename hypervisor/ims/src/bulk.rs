//! Calls that allocate or free many slots.

use alloc::vec::Vec;

use hcall_abi::{SlotHandle, Status, call::HANDLES_MAX};

use super::{
    device::Bank,
    ports::{CallingGuest, Ports},
    service::{CHUNK, PendingRelease},
    slot::{Slot, State},
    store_access::StoreAccess,
};
use crate::addr::{Gpa, PAGE_SIZE};

/// Bytes of a handle, or of the status that replaces it.
const HANDLE_SIZE: usize = 4;

/// A page of handles, as it lies in the guest's memory.
type Handles = [[u8; HANDLE_SIZE]];

/// Checks the address and number of handles. Returns the number.
fn check(at: Gpa, number: u64) -> Result<usize, Status> {
    if !(1..=HANDLES_MAX).contains(&number) {
        return Err(Status::InvalidArgument);
    }
    if !at.is_aligned(HANDLE_SIZE as u64) {
        return Err(Status::BadAddress);
    }
    if at.page_offset() + number * HANDLE_SIZE as u64 > PAGE_SIZE {
        return Err(Status::CrossesPage);
    }
    Ok(number as usize)
}

/// Allocates from `min` to `max` slots, as many as are free, and writes their handles to `at`. Returns how many.
pub fn alloc_many(
    bank: &Bank,
    memory: &dyn CallingGuest,
    at: Gpa,
    [min, max]: [u32; 2],
    group: u8,
    room: &mut Handles,
) -> Result<u64, Status> {
    let max = check(at, max.into())?;
    if min == 0 || min as usize > max {
        return Err(Status::InvalidArgument);
    }
    let room = room.get_mut(..max).ok_or(Status::InvalidArgument)?;
    let mut count = 0;
    for place in room.iter_mut() {
        let Ok(handle) = bank.allocate(group) else { break };
        *place = handle.bits().to_le_bytes();
        count += 1;
    }
    let taken = room.get(..count).unwrap_or_default();
    let enough = if count < min as usize { Err(Status::NoFreeSlot) } else { Ok(()) };
    if let Err(status) = enough.and_then(|()| memory.write(at, taken.as_flattened())) {
        for handle in taken.iter().filter_map(|bits| SlotHandle::from_bits(u32::from_le_bytes(*bits)).ok()) {
            put_back(bank, handle);
        }
        return Err(status);
    }
    Ok(count as u64)
}

/// Frees a slot that this call has allocated. A guest that guessed the handle may have freed or mapped the slot already; then the slot
/// stays as it is.
fn put_back(bank: &Bank, handle: SlotHandle) {
    if let Ok(mut slot) = bank.lock_allocated(handle)
        && slot.state == State::Allocated
    {
        slot.forget_allocation();
        bank.free.lock().put(handle.index());
    }
}

/// Frees the slots whose handles lie at `at`, and replaces each handle by its status. Returns how many were freed.
pub fn free_many<P: Ports>(
    access: &StoreAccess<P>,
    bank: &Bank,
    memory: &dyn CallingGuest,
    at: Gpa,
    number: u64,
    room: &mut Handles,
) -> Result<u64, Status> {
    let number = check(at, number)?;
    let room = room.get_mut(..number).ok_or(Status::InvalidArgument)?;
    memory.read(at, room.as_flattened_mut())?;
    // Where the results cannot be written, nothing is to be freed.
    memory.write(at, room.as_flattened())?;
    let mut freeing = Freeing::new(access, bank);
    for item in room.iter_mut() {
        let freed = SlotHandle::from_bits(u32::from_le_bytes(*item)).and_then(|handle| freeing.free_allocated(handle));
        let code = freed.map_or_else(|status| -(status.code() as i32), |()| 0);
        *item = code.to_le_bytes();
    }
    let freed = freeing.finish();
    memory.write(at, room.as_flattened())?;
    Ok(freed)
}

/// Frees slots of a group, at most [`HANDLES_MAX`] per call, because each takes a read of the device while other guests wait. Returns how
/// many.
pub fn free_group<P: Ports>(access: &StoreAccess<P>, bank: &Bank, group: u8) -> u64 {
    let mut freeing = Freeing::new(access, bank);
    for (index, slot) in (0..=u16::MAX).zip(&bank.slots) {
        if freeing.freed == HANDLES_MAX {
            break;
        }
        let mut slot = slot.lock();
        if matches!(slot.state, State::Allocated | State::Mapped) && slot.group == group {
            // A slot that the device does not mask stays.
            let _ = freeing.free(index, &mut slot);
        }
    }
    freeing.finish()
}

/// Slots that are being freed. Their entries are flushed together.
struct Freeing<'a, P: Ports> {
    access: &'a StoreAccess<'a, P>,
    bank: &'a Bank,
    releases: Vec<PendingRelease>,
    freed: u64,
}

impl<'a, P: Ports> Freeing<'a, P> {
    fn new(access: &'a StoreAccess<'a, P>, bank: &'a Bank) -> Self {
        Self { access, bank, releases: Vec::new(), freed: 0 }
    }

    fn free_allocated(&mut self, handle: SlotHandle) -> Result<(), Status> {
        let bank = self.bank;
        self.free(handle.index(), &mut *bank.lock_allocated(handle)?)
    }

    /// Frees a locked slot. The slot is masked in the device, so the flush of its entry can wait for others.
    fn free(&mut self, index: u16, slot: &mut Slot) -> Result<(), Status> {
        if slot.state == State::Mapping {
            return Err(Status::NotMapped);
        }
        self.access.mask(index, slot)?;
        self.releases.extend(slot.take_binding().map(|binding| self.access.withdraw(binding)));
        self.access.vacate(self.bank, index, slot);
        self.freed += 1;
        if self.releases.len() == CHUNK {
            self.access.service.give_back(&self.releases);
            self.releases.clear();
        }
        Ok(())
    }

    fn finish(self) -> u64 {
        self.access.service.give_back(&self.releases);
        self.freed
    }
}
