//! The calls.

/// A call's number, relative to the call base that CPUID gives.
///
/// *device* is a [`StoreId`](crate::StoreId): a device, and which of its stores. *handle* is a [`SlotHandle`](crate::SlotHandle),
/// *target* a [`Target`](crate::Target), each in the low bits of its register.
///
/// What every call can end with is said at [`Status`](crate::Status): a device, a slot or a handle that is not the guest's, memory that is
/// not its own, not aligned or crosses a page, a register that is out of its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Call {
    /// Does nothing and returns 0: the floor of every measurement.
    Nop = 0,
    /// RBX = number *n*, from 0. Returns the ID of the guest's *n*-th device with a store, [`NoSuchDevice`] when there are no more.
    ///
    /// [`NoSuchDevice`]: crate::Status::NoSuchDevice
    Discover = 1,
    /// RBX = device, RCX = guest-physical address of a [`DeviceInfo`](crate::DeviceInfo), in one page, whose `size` and `version`
    /// are set. Fills it in and returns 0.
    QueryDevice = 2,
    /// RBX = device, RCX = group, below the number of groups. Takes a free slot, which stays masked, and returns its handle.
    /// [`NoFreeSlot`] when all are taken.
    ///
    /// [`NoFreeSlot`]: crate::Status::NoFreeSlot
    Alloc = 3,
    /// RBX = device, RCX = handle. Masks and unmaps the slot and gives it back; the handle is stale from then on. Returns 0.
    Free = 4,
    /// RBX = device, RCX = guest-physical address of the items, RDX = their number (1 up to the batch limit), RSI =
    /// [`ItemLayout`](crate::ItemLayout). Items lie in one page, 16-byte aligned, and are read once. Each
    /// [`MapRequest`](crate::MapRequest) is answered in place by a [`MapReply`](crate::MapReply). Returns the number of items
    /// that succeeded. The entry of every item that succeeded is in the remapping table, flushed, and in the device's store.
    Map = 5,
    /// RBX = device, RCX = handle. Masks the slot and takes its entry away; the slot stays allocated. A slot that is not
    /// mapped is left as it is. Returns 0.
    Unmap = 6,
    /// RBX = device, RCX = handle. Returns 0 when the device sends no message of the slot any more. [`NotMapped`] for a slot without a
    /// target. The mask is the device's: it does not stop a device that is made to write the slot's message by DMA.
    ///
    /// [`NotMapped`]: crate::Status::NotMapped
    Mask = 7,
    /// RBX = device, RCX = handle. A message that came while the slot was masked is sent. [`NotMapped`] for a slot without a target;
    /// [`InvalidArgument`] for one whose message the guest has overwritten in the store, until it is mapped again. Returns 0.
    ///
    /// [`NotMapped`]: crate::Status::NotMapped
    /// [`InvalidArgument`]: crate::Status::InvalidArgument
    Unmask = 8,
    /// RBX = device, RCX = handle, RDX = target. Sends the slot's interrupts elsewhere; the pair in the store stays as it
    /// is and no interrupt is lost. [`NotMapped`] for a slot without a target. Returns 0.
    ///
    /// [`NotMapped`]: crate::Status::NotMapped
    SetAffinity = 9,
    /// RBX = the version that the guest speaks (major 31:16, minor 15:0). Has the guest's devices show that they have interrupt
    /// message stores; until then they show none, and every other call but `Nop` is [`NotEnabled`]. Returns the minor version
    /// that both speak. [`Unsupported`] for another major version.
    ///
    /// [`NotEnabled`]: crate::Status::NotEnabled
    /// [`Unsupported`]: crate::Status::Unsupported
    Enable = 10,
    /// RBX = device, RCX = guest-physical address of room for *max* handles of 4 bytes each, in one page, aligned to 4; RDX =
    /// *min* 31:0 and *max* 63:32 (1 ≤ *min* ≤ *max* ≤ [`HANDLES_MAX`]), RSI = group. Takes as many free slots as there are, at most
    /// *max*, and returns their number; with fewer than *min*, [`NoFreeSlot`] and none is taken.
    ///
    /// [`NoFreeSlot`]: crate::Status::NoFreeSlot
    AllocMany = 11,
    /// RBX = device, RCX = guest-physical address of handles as `AllocMany` writes them, RDX = their number (1 to
    /// [`HANDLES_MAX`]). Frees each, by one flush for many, and puts its result in its place: 0, or minus a
    /// [`Status`](crate::Status). Returns the number of those that were freed.
    FreeMany = 12,
    /// RBX = device, RCX = group. Frees slots that were allocated with this group, at most [`HANDLES_MAX`] by one call. Returns their
    /// number: with [`HANDLES_MAX`] there may be more of them.
    FreeGroup = 13,
    /// RBX = device, RCX = handle, RDX = PASID 19:0 and bit 31 set, or 0 for none. From then on the device takes the slot only for
    /// work that was submitted with this PASID. [`BadPasid`] when the guest does not own it. Returns 0.
    ///
    /// [`BadPasid`]: crate::Status::BadPasid
    SetAux = 14,
    /// RBX = device, RCX = handle, RDX = guest-physical address of a [`SlotInfo`](crate::SlotInfo), in one page, whose `size` and
    /// `version` are set. Fills it in and returns 0.
    QuerySlot = 15,
    /// RBX = guest-physical address of room for RCX (1 to [`FAULTS_MAX`]) [`FaultRecord`](crate::FaultRecord)s, in one page, aligned to
    /// 32. Moves the oldest faults of the guest's slots there and returns their number.
    ReadFaults = 16,
    /// RBX = device, RCX = number of slots (1 to [`QUEUE_SLOTS_MAX`]). Opens a store in the guest's own memory beside the device's: a
    /// queue store, whose slots the guest writes and the device reads. Nobody watches what is written there, so the requester ID has
    /// to be the guest's alone ([`NotIsolated`]): then an entry that it names can only be its own. Its slots are taken, mapped and
    /// freed by the same calls, with [`StoreId::queue`](crate::StoreId::queue) in RBX; what to write for a slot that is mapped is
    /// told by `QuerySlot`, and is the real message. Masks and PASIDs are the guest's business, in its memory: `Mask`, `Unmask` and
    /// `SetAux` are [`Unsupported`]. A slot that is unmapped or freed sends nothing any more, whatever its memory says. It is
    /// [`Exists`] when it is open already. Returns 0.
    ///
    /// [`NotIsolated`]: crate::Status::NotIsolated
    /// [`Unsupported`]: crate::Status::Unsupported
    /// [`Exists`]: crate::Status::Exists
    OpenQueue = 17,
    /// RBX = guest-physical address of 4 bytes that are 0, aligned to 4, with [`PV_EOI_ENABLE`]; or 0 to take them away. It is about
    /// the virtual processor that calls. From then on an interrupt that is delivered while no other one waits comes with
    /// [`PV_EOI_PENDING`] set there. The handler that finds the bit and clears it, by one instruction, has ended the interrupt, and
    /// does not write EOI, which is an exit; otherwise it writes EOI as ever. Bytes that were named before are the guest's own again
    /// when the call returns; an interrupt in service that has not ended by then ends by EOI. INIT takes the bytes away, and leaves
    /// what they hold. [`Unsupported`] where the processor keeps the local APIC, because EOI is no exit there. Returns 0.
    ///
    /// [`Unsupported`]: crate::Status::Unsupported
    SetPvEoi = 18,
}

/// `SetPvEoi`: bit 0 of RBX, beside the address.
pub const PV_EOI_ENABLE: u64 = 1;
/// `SetPvEoi`: the interrupt in service with the highest priority needs no write of EOI if this bit is cleared instead.
pub const PV_EOI_PENDING: u32 = 1;

/// Most slots of a queue store.
pub const QUEUE_SLOTS_MAX: u64 = 4096;

/// Most handles that one call takes: a page of them.
pub const HANDLES_MAX: u64 = 1024;
/// Most fault records that one call gives: a page of them.
pub const FAULTS_MAX: u64 = 128;

impl Call {
    /// Every call there is.
    pub const ALL: [Call; 19] = [
        Call::Nop,
        Call::Discover,
        Call::QueryDevice,
        Call::Alloc,
        Call::Free,
        Call::Map,
        Call::Unmap,
        Call::Mask,
        Call::Unmask,
        Call::SetAffinity,
        Call::Enable,
        Call::AllocMany,
        Call::FreeMany,
        Call::FreeGroup,
        Call::SetAux,
        Call::QuerySlot,
        Call::ReadFaults,
        Call::OpenQueue,
        Call::SetPvEoi,
    ];

    /// The call with number `base + n`, given that number.
    pub fn from_number(number: u64, base: u32) -> Option<Self> {
        let n = number.checked_sub(u64::from(base))?;
        Self::ALL.get(usize::try_from(n).ok()?).copied()
    }

    /// The number to put into RAX.
    pub const fn number(self, base: u32) -> u64 {
        base as u64 + self as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpuid::CALL_BASE;

    #[test]
    fn numbers_and_calls_match_both_ways() {
        for call in Call::ALL {
            assert_eq!(Call::from_number(call.number(CALL_BASE), CALL_BASE), Some(call));
        }
    }

    #[test]
    fn numbers_around_the_range_are_no_calls() {
        let base = u64::from(CALL_BASE);
        for number in [0, base - 1, base + Call::ALL.len() as u64, u64::MAX, 1 << 32 | base] {
            assert_eq!(Call::from_number(number, CALL_BASE), None, "{number:#x}");
        }
    }
}
