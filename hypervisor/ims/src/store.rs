//! What a trapped write of a store does: the dwords go into the slot, and then [`settle`] makes device and remapping table agree with the slot.
//!
//! A write takes the way `store_write`, `apply`, `write_slot`, `bring`, `settle`; the writes that drivers make most (a dword of a masked slot) end
//! in `write_slot`. [`message`] says which messages are the guest's right, and [`StoreAccess`] keeps the order of the steps.

use core::ops::RangeInclusive;

use hcall_abi::{DeviceId, Status};

use super::{
    counters::count,
    device::{Bank, Device},
    domain::Domain,
    message,
    ports::{Field, Ports},
    service::Service,
    slot::{Slot, State},
    spec::StoreName,
    store_access::StoreAccess,
};

/// Bytes of a slot.
const SLOT_SIZE: u64 = 16;

impl<P: Ports> Service<P> {
    /// Handles a guest's write of the low `width` bytes (1 to 8) of `value` at byte `offset` of a store. Bytes go into the dwords that they
    /// belong to, as in the device. Then the service makes each slot that they touch behave as its dwords say.
    ///
    /// The error is for the caller; the guest gets none, as on hardware. A write that is not wholly inside the store has no effect. Any
    /// other write shows in the shadow. If a slot's new contents are not allowed, the slot is masked in the device and keeps its entry, if
    /// it has one, until a later write makes the contents valid.
    #[inline(always)]
    pub fn store_write(
        &self,
        domain: &Domain,
        device: DeviceId,
        name: StoreName,
        offset: u64,
        width: u8,
        value: u64,
    ) -> Result<(), Status> {
        count(&domain.counts.trapped_writes);
        let result = self.apply(domain, device, name, offset, width, value);
        StoreAccess::<P>::counted(&domain.counts.refused, result)
    }

    /// Handles a guest's write of up to 64 bytes at byte `offset` of a store by one instruction. Each slot that the bytes touch takes all
    /// of its bytes in one step. Otherwise as [`store_write`](Self::store_write).
    pub fn store_write_bytes(
        &self,
        domain: &Domain,
        device: DeviceId,
        name: StoreName,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), Status> {
        count(&domain.counts.trapped_writes);
        let result = self.at_slots(domain, device, name, offset, bytes.len(), |access, bank, slots| {
            let mut result = Ok(());
            for index in slots {
                let slot = &mut *bank.lock(index)?;
                result = result.and(write_bytes(domain, access, bank, index, slot, (offset, bytes)));
            }
            access.commit(result)
        });
        StoreAccess::<P>::counted(&domain.counts.refused, result)
    }

    /// Handles a guest's read-modify-write of 1 to 16 bytes at byte `offset` of a store: it writes the result of `modify`. No other write
    /// of these bytes comes in between. The slot's lock is held; if the bytes belong to two slots, all slots of the device are held.
    /// Otherwise as [`store_write`](Self::store_write). `modify` is called once, or never if the write is refused before.
    pub fn store_modify(
        &self,
        domain: &Domain,
        device: DeviceId,
        name: StoreName,
        offset: u64,
        width: u8,
        modify: &mut dyn FnMut(u128) -> u128,
    ) -> Result<(), Status> {
        count(&domain.counts.trapped_writes);
        let width = usize::from(width.min(16));
        let crosses = offset % SLOT_SIZE + width as u64 > SLOT_SIZE;
        let result = if crosses {
            self.modify_two(domain, device, name, offset, width, modify)
        } else {
            self.at_slots(domain, device, name, offset, width, |access, bank, slots| {
                let index = *slots.start();
                let slot = &mut *bank.lock(index)?;
                let new = modify(seen(access, slot) >> (offset % SLOT_SIZE * 8) & ones(width)).to_le_bytes();
                access.commit(write_bytes(domain, access, bank, index, slot, (offset, &new[..width])))
            })
        };
        StoreAccess::<P>::counted(&domain.counts.refused, result)
    }

    fn modify_two(
        &self,
        domain: &Domain,
        device: DeviceId,
        name: StoreName,
        offset: u64,
        width: usize,
        modify: &mut dyn FnMut(u128) -> u128,
    ) -> Result<(), Status> {
        let device = self.written(domain, device, name)?;
        let access = StoreAccess::new(self, device, name)?;
        let slots = access.slots_at(offset, width)?;
        device.exclusively(|all| {
            if !all.attached {
                return Err(Status::NoSuchDevice);
            }
            let bank = all.bank(name);
            // One lock after the other: nobody holds two.
            let low = seen(&access, &*bank.lock(*slots.start())?);
            let high = seen(&access, &*bank.lock(*slots.end())?);
            let shift = (offset % SLOT_SIZE * 8) as u32;
            let new = modify((low >> shift | high << (128 - shift)) & ones(width)).to_le_bytes();
            let mut result = Ok(());
            for index in slots {
                let slot = &mut *bank.lock(index)?;
                result = result.and(write_bytes(domain, &access, bank, index, slot, (offset, &new[..width])));
            }
            access.commit(result)
        })
    }

    /// Calls a function with the slots that `len` bytes at `offset` touch.
    fn at_slots(
        &self,
        domain: &Domain,
        device: DeviceId,
        name: StoreName,
        offset: u64,
        len: usize,
        what: impl FnOnce(&StoreAccess<P>, &Bank, RangeInclusive<u16>) -> Result<(), Status>,
    ) -> Result<(), Status> {
        let device = self.written(domain, device, name)?;
        let access = StoreAccess::new(self, device, name)?;
        let touched = access.slots_at(offset, len)?;
        let slots = device.slots()?;
        what(&access, slots.bank(name), touched)
    }

    /// The device, if the guest may write its store.
    fn written<'a>(&self, domain: &'a Domain, device: DeviceId, name: StoreName) -> Result<&'a Device, Status> {
        if name == StoreName::Ims && !domain.is_enabled() {
            return Err(Status::NotEnabled);
        }
        domain.device(device)
    }

    #[inline(always)]
    fn apply(
        &self,
        domain: &Domain,
        device: DeviceId,
        name: StoreName,
        offset: u64,
        width: u8,
        value: u64,
    ) -> Result<(), Status> {
        if !(1..=8).contains(&width) {
            return Err(Status::InvalidArgument);
        }
        if name == StoreName::Ims && !domain.is_enabled() {
            return Err(Status::NotEnabled);
        }
        let device = domain.device(device)?;
        let access = StoreAccess::new(self, device, name)?;
        let end = offset.checked_add(width.into()).ok_or(Status::NoSuchSlot)?;
        if end > u64::from(access.store.slots) * SLOT_SIZE {
            return Err(Status::NoSuchSlot);
        }
        let slots = device.slots()?;
        let bank = slots.bank(name);
        if width == 4 && offset.is_multiple_of(4) {
            // What drivers do.
            let field = Field::ALL[(offset / 4 % 4) as usize];
            let index = (offset / SLOT_SIZE) as u16;
            let dword = core::iter::once((field, value as u32, u32::MAX));
            return access.commit(write_slot(domain, &access, bank, index, dword));
        }
        let mut write = Write::new(offset, width, value);
        let mut result = Ok(());
        while let Some(index) = write.slot() {
            // The next slot is written whatever became of this one.
            let dwords = core::iter::from_fn(|| write.next_in(index));
            result = result.and(write_slot(domain, &access, bank, index, dwords));
        }
        access.commit(result)
    }
}

impl<P: Ports> StoreAccess<'_, P> {
    /// The slots that 1 to 64 bytes at `offset` touch.
    fn slots_at(&self, offset: u64, len: usize) -> Result<RangeInclusive<u16>, Status> {
        let end = offset.checked_add(len as u64).ok_or(Status::NoSuchSlot)?;
        if len == 0 || end > u64::from(self.store.slots) * SLOT_SIZE {
            return Err(Status::NoSuchSlot);
        }
        Ok((offset / SLOT_SIZE) as u16..=((end - 1) / SLOT_SIZE) as u16)
    }
}

/// The slot's bytes as the guest reads them.
fn seen<P: Ports>(access: &StoreAccess<P>, slot: &Slot) -> u128 {
    (0..).zip(Field::ALL).fold(0, |value, (n, field)| value | u128::from(access.seen(slot, field)) << (32 * n))
}

/// A mask of `bytes` bytes, 1 to 16.
const fn ones(bytes: usize) -> u128 {
    u128::MAX >> (128 - 8 * bytes as u32)
}

/// The dwords of slot `index` that `bytes` at `offset` of the store touch: the field, its new bits, and the mask of written bits.
fn dwords(index: u16, offset: u64, bytes: &[u8]) -> impl Iterator<Item = (Field, u32, u32)> {
    (0..).zip(Field::ALL).filter_map(move |(n, field)| {
        let first = u64::from(index) * SLOT_SIZE + 4 * n;
        let (value, mask) = (0..4).fold((0u32, 0u32), |(value, mask), at| {
            let byte = (first + at).checked_sub(offset).and_then(|place| bytes.get(place as usize));
            match byte {
                Some(&byte) => (value | u32::from(byte) << (8 * at), mask | 0xff << (8 * at)),
                None => (value, mask),
            }
        });
        (mask != 0).then_some((field, value, mask))
    })
}

/// The rest of a write.
struct Write {
    /// The next dword of the store.
    dword: u64,
    /// The bits of that dword and of the following ones.
    value: u128,
    /// The mask of written bits.
    bits: u128,
}

impl Write {
    /// A write of 1 to 8 bytes.
    fn new(offset: u64, width: u8, value: u64) -> Self {
        let shift = offset % 4 * 8;
        let bits = u128::from(u64::MAX >> (64 - u32::from(width) * 8));
        Self { dword: offset / 4, value: u128::from(value) << shift, bits: bits << shift }
    }

    /// The slot of the next dword.
    fn slot(&self) -> Option<u16> {
        if self.bits == 0 { None } else { u16::try_from(self.dword / 4).ok() }
    }

    /// The next dword, if it belongs to slot `index`: its field, its new bits and the mask of written bits.
    fn next_in(&mut self, index: u16) -> Option<(Field, u32, u32)> {
        if self.slot() != Some(index) {
            return None;
        }
        let field = Field::ALL.get((self.dword % 4) as usize).copied()?;
        let next = (field, self.value as u32, self.bits as u32);
        self.value >>= 32;
        self.bits >>= 32;
        self.dword += 1;
        Some(next)
    }
}

/// Writes dwords of a slot (field, new bits, and mask of written bits), and makes the slot behave as they say.
#[inline(always)]
fn write_slot<P: Ports>(
    domain: &Domain,
    access: &StoreAccess<P>,
    bank: &Bank,
    index: u16,
    dwords: impl Iterator<Item = (Field, u32, u32)>,
) -> Result<(), Status> {
    let slot = &mut *bank.lock(index)?;
    write_locked(domain, access, bank, index, slot, dwords)
}

/// [`write_slot`] with bytes at `offset` of the store. The plain store that drivers make does not come here, so that its path stays short.
#[inline(never)]
fn write_bytes<P: Ports>(
    domain: &Domain,
    access: &StoreAccess<P>,
    bank: &Bank,
    index: u16,
    slot: &mut Slot,
    (offset, bytes): (u64, &[u8]),
) -> Result<(), Status> {
    write_locked(domain, access, bank, index, slot, dwords(index, offset, bytes))
}

/// [`write_slot`] for a slot whose lock is held.
#[inline(always)]
fn write_locked<P: Ports>(
    domain: &Domain,
    access: &StoreAccess<P>,
    bank: &Bank,
    index: u16,
    slot: &mut Slot,
    dwords: impl Iterator<Item = (Field, u32, u32)>,
) -> Result<(), Status> {
    let mut ctrl_written = false;
    for (field, value, bits) in dwords {
        slot.merge(field, value, bits);
        if field == Field::Control {
            ctrl_written = true;
        } else {
            access.show(index, slot, field);
        }
    }
    if !ctrl_written && slot.is_at_rest() {
        return Ok(());
    }
    bring(domain, access, bank, index, slot, ctrl_written)
}

/// Makes a slot behave as its dwords say, and keeps the map of free slots up to date.
#[inline(never)]
fn bring<P: Ports>(
    domain: &Domain,
    access: &StoreAccess<P>,
    bank: &Bank,
    index: u16,
    slot: &mut Slot,
    ctrl_written: bool,
) -> Result<(), Status> {
    if slot.state == State::Free && !slot.is_blank() {
        slot.state = State::Raw;
        bank.free.lock().take(index);
    }
    let was_masked = slot.device_masked;
    let result = settle(domain, access, index, slot);
    if let Err(status @ (Status::NoFreeVector | Status::NoFreeEntry | Status::HardwareError)) = result {
        access.refuse(domain, index, slot, status);
    }
    if ctrl_written {
        // A driver masks and looks for the pending bit; if masking did not read it just now, do so.
        if slot.masked && was_masked && slot.binding().is_some() {
            access.read_pending(index, slot);
        }
        access.show(index, slot, Field::Control);
    }
    if slot.state == State::Raw && slot.is_blank() && slot.binding().is_none() {
        slot.reset();
        bank.free.lock().put(index);
    }
    result
}

/// Makes the device and the table agree with the slot.
pub(super) fn settle<P: Ports>(
    domain: &Domain,
    access: &StoreAccess<P>,
    index: u16,
    slot: &mut Slot,
) -> Result<(), Status> {
    if access.store.is_emulated(index) {
        return access.send_signal(domain, index, slot);
    }
    match slot.state {
        State::Free => Ok(()),
        State::Raw if slot.is_blank() => access.unbind(index, slot),
        _ if !access.may_send(slot) => access.mask(index, slot),
        State::Raw => {
            let result = settle_message(domain, access, index, slot);
            or_masked(access, index, slot, result)
        }
        // Taken by a call, so only a call can map it.
        State::Allocated | State::Mapping => Err(Status::NotMapped),
        State::Mapped if slot.holds_pair() => access.unmask(index, slot),
        State::Mapped => or_masked(access, index, slot, Err(Status::InvalidArgument)),
    }
}

/// Has an unmasked slot send the message that the guest wrote.
fn settle_message<P: Ports>(
    domain: &Domain,
    access: &StoreAccess<P>,
    index: u16,
    slot: &mut Slot,
) -> Result<(), Status> {
    let target = message::parse(domain, slot.image)?;
    if slot.binding().is_some() {
        access.retarget(index, slot, target)?;
    } else {
        access.bind(index, slot, target)?;
    }
    access.unmask(index, slot)
}

/// Masks a slot if the guest's message is not allowed.
fn or_masked<P: Ports>(
    access: &StoreAccess<P>,
    index: u16,
    slot: &mut Slot,
    result: Result<(), Status>,
) -> Result<(), Status> {
    result.or_else(|status| access.mask(index, slot).and(Err(status)))
}
