//! Writes to a store, trapped.

use hcall_abi::{DeviceId, Status};

use super::{
    counters::count,
    device::Bank,
    domain::Domain,
    message,
    place::Place,
    ports::{Field, Ports},
    service::Service,
    slot::{Slot, State, StoreName},
};

/// Bytes of a slot.
const SLOT_SIZE: u64 = 16;

impl<P: Ports> Service<P> {
    /// The guest wrote the low `width` bytes (1 to 8) of `value` at byte `offset` of a store. Bytes land in the dwords they
    /// belong to, as in the device; each slot they touch is then brought to what it says.
    ///
    /// An error is for the caller's information: the guest is not told, as hardware would not. A write that does not lie
    /// wholly in the store does nothing. Else the shadow takes the write, and a slot that cannot be what the guest wrote is
    /// masked in the device, keeping its entry if it has one, until a later write makes it right.
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
        Place::<P>::counted(&domain.counts.refused, result)
    }

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
        let place = Place::new(self, device, name)?;
        let end = offset.checked_add(width.into()).ok_or(Status::NoSuchSlot)?;
        if end > u64::from(place.store.slots) * SLOT_SIZE {
            return Err(Status::NoSuchSlot);
        }
        let slots = device.slots()?;
        let bank = slots.bank(name);
        if width == 4 && offset.is_multiple_of(4) {
            // What drivers do.
            let field = Field::ALL[(offset / 4 % 4) as usize];
            let index = (offset / SLOT_SIZE) as u16;
            let dword = core::iter::once((field, value as u32, u32::MAX));
            return place.commit(write_slot(domain, &place, bank, index, dword));
        }
        let mut write = Write::new(offset, width, value);
        let mut result = Ok(());
        while let Some(index) = write.slot() {
            // The next slot is written whatever became of this one.
            let dwords = core::iter::from_fn(|| write.next_in(index));
            result = result.and(write_slot(domain, &place, bank, index, dwords));
        }
        place.commit(result)
    }
}

/// What is left to do of a write.
struct Write {
    /// The next dword of the store.
    dword: u64,
    /// Its new bits and those that follow.
    value: u128,
    /// Which of them are written.
    bits: u128,
}

impl Write {
    /// Of 1 to 8 bytes.
    fn new(offset: u64, width: u8, value: u64) -> Self {
        let shift = offset % 4 * 8;
        let bits = u128::from(u64::MAX >> (64 - u32::from(width) * 8));
        Self { dword: offset / 4, value: u128::from(value) << shift, bits: bits << shift }
    }

    /// The slot of the next dword.
    fn slot(&self) -> Option<u16> {
        if self.bits == 0 { None } else { u16::try_from(self.dword / 4).ok() }
    }

    /// The next dword, if it belongs to slot `index`: its field, its new bits and which of them are written.
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

/// Takes dwords of a slot (field, new bits, and which of them are written), and makes the slot what it says.
#[inline(always)]
fn write_slot<P: Ports>(
    domain: &Domain,
    place: &Place<P>,
    bank: &Bank,
    index: u16,
    dwords: impl Iterator<Item = (Field, u32, u32)>,
) -> Result<(), Status> {
    let slot = &mut *bank.lock(index)?;
    let mut ctrl_written = false;
    for (field, value, bits) in dwords {
        slot.merge(field, value, bits);
        if field == Field::Ctrl {
            ctrl_written = true;
        } else {
            place.show(index, slot, field);
        }
    }
    if !ctrl_written && slot.is_at_rest() {
        return Ok(());
    }
    bring(domain, place, bank, index, slot, ctrl_written)
}

/// Makes a slot what it says, and takes note whether it is in use.
#[inline(never)]
fn bring<P: Ports>(
    domain: &Domain,
    place: &Place<P>,
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
    let result = settle(domain, place, index, slot);
    if let Err(status @ (Status::NoFreeVector | Status::NoFreeEntry | Status::HardwareError)) = result {
        place.refuse(domain, index, slot, status);
    }
    if ctrl_written {
        // A driver masks and looks for the pending bit; if masking did not read it just now, do so.
        if slot.masked && was_masked && slot.binding().is_some() {
            place.read_pending(index, slot);
        }
        place.show(index, slot, Field::Ctrl);
    }
    if slot.state == State::Raw && slot.is_blank() && slot.binding().is_none() {
        slot.reset();
        bank.free.lock().put(index);
    }
    result
}

/// Brings the device and the table to what the slot says.
pub(super) fn settle<P: Ports>(domain: &Domain, place: &Place<P>, index: u16, slot: &mut Slot) -> Result<(), Status> {
    if place.store.is_emulated(index) {
        return place.send_signal(domain, index, slot);
    }
    match slot.state {
        State::Free => Ok(()),
        State::Raw if slot.is_blank() => place.unbind(index, slot),
        _ if !place.may_send(slot) => place.mask(index, slot),
        State::Raw => {
            let result = settle_message(domain, place, index, slot);
            or_masked(place, index, slot, result)
        }
        // Taken by a call, so only a call can map it.
        State::Allocated | State::Mapping => Err(Status::NotMapped),
        State::Mapped if slot.holds_pair() => place.unmask(index, slot),
        State::Mapped => or_masked(place, index, slot, Err(Status::InvalidArgument)),
    }
}

/// Makes an unmasked slot send the message that the guest wrote.
fn settle_message<P: Ports>(domain: &Domain, place: &Place<P>, index: u16, slot: &mut Slot) -> Result<(), Status> {
    let target = message::parse(domain, slot.image)?;
    if slot.binding().is_some() {
        place.retarget(index, slot, target)?;
    } else {
        place.bind(index, slot, target)?;
    }
    place.unmask(index, slot)
}

/// A slot that cannot be what the guest wrote sends nothing.
fn or_masked<P: Ports>(
    place: &Place<P>,
    index: u16,
    slot: &mut Slot,
    result: Result<(), Status>,
) -> Result<(), Status> {
    result.or_else(|status| place.mask(index, slot).and(Err(status)))
}
