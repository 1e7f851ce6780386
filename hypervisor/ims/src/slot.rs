//! A slot of a store, and the map of free slots.

use alloc::{vec, vec::Vec};
use core::num::NonZeroU16;

use hcall_abi::{MessagePair, Pasid, SlotHandle, Status, Target};

use super::{
    ctrl::{CTRL_MASK, CTRL_PASID_ENABLE, CTRL_PASID_SHIFT, CTRL_PENDING, pasid_bits},
    ports::{BindRequest, BoundEntry, EntryIndex, Field, HostRoute, PackedRoute},
};

/// The message address that a guest reads for a slot that it mapped by a call. The address looks remappable (VT-d 5.1.2.2, with SHV), so
/// that no reader takes it for a message to a local APIC. The message data is the slot's handle.
pub const OPAQUE_ADDRESS: u32 = 0xfee0_0018;

/// How the guest uses a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not in use, as after reset.
    Free,
    /// The guest writes messages into it.
    Raw,
    /// Allocated by a call.
    Allocated,
    /// A call is mapping it, and the new entry is still in the batch's buffer. No other operation binds or frees the slot.
    Mapping,
    /// Allocated and mapped by calls.
    Mapped,
}

impl BindRequest {
    /// What it got.
    pub fn binding(&self) -> Result<Binding, Status> {
        self.result.map(|BoundEntry { route, entry }| Binding { route: route.get(), target: self.target, entry })
    }
}

/// A remapping entry in use, and where it leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The route that the entry holds.
    pub route: HostRoute,
    /// The target that the guest asked for.
    pub target: Target,
    /// The entry's index.
    pub entry: EntryIndex,
}

/// A slot's state: 64 bytes with its lock.
///
/// These hold while nobody has the lock. A slot without a binding is masked in the device. Only a [`State::Raw`] or [`State::Mapped`] slot
/// has a binding, and a [`State::Mapped`] slot always has one. A slot whose entry may not be flushed is masked in the device, and so is a
/// [`State::Mapping`] slot.
#[derive(Clone, Debug)]
pub struct Slot {
    /// The binding's parts, which take less memory than the whole. Without a route there is no binding.
    route: Option<PackedRoute>,
    apic_id: u32,
    vector: u8,
    entry: EntryIndex,
    /// The guest's cookie for a mapped slot.
    pub cookie: u64,
    /// Address and data as the guest sees them.
    pub image: [u32; 3],
    /// The handle of the present allocation, or of the last one; generation 0 before the first.
    handle: u32,
    /// How the guest uses the slot.
    pub state: State,
    /// Whether the guest has masked the slot.
    pub masked: bool,
    /// Whether the slot is masked in the device.
    pub device_masked: bool,
    /// Whether the entry was flushed since it changed last: the cache holds the entry as it is in the table, or not at all.
    pub flushed: bool,
    /// The pending bit as it was last read.
    pub pending: bool,
    /// Whether the slot is masked in the device to find out whether it fires too fast.
    pub throttled: bool,
    /// Whether the slot was masked because it fired faster than its limit.
    pub limited: bool,
    /// Whether the slot's entry is not present, so that the unit drops its messages. The slot is masked in the device then.
    pub blocked: bool,
    /// The group that the allocation named.
    pub group: u8,
    /// The slot's PASID with its enable bit, as in the control dword.
    pasid: u32,
}

impl Slot {
    /// The state after reset: zeros, with the mask bit set.
    pub const RESET: Self = Self {
        route: None,
        apic_id: 0,
        vector: 0,
        entry: EntryIndex(0),
        cookie: 0,
        image: [0; 3],
        handle: 0,
        state: State::Free,
        masked: true,
        device_masked: true,
        flushed: true,
        pending: false,
        throttled: false,
        limited: false,
        blocked: false,
        group: 0,
        pasid: 0,
    };

    /// The entry in use, and where it leads.
    pub fn binding(&self) -> Option<Binding> {
        let target = Target { apic_id: self.apic_id, vector: self.vector };
        self.route.map(|route| Binding { route: route.get(), target, entry: self.entry })
    }

    /// Sets the binding, in place of an earlier one.
    pub fn bind(&mut self, Binding { route, target, entry }: Binding) {
        (self.route, self.entry) = (Some(PackedRoute::new(route)), entry);
        (self.apic_id, self.vector) = (target.apic_id, target.vector);
    }

    /// Removes and returns the binding.
    pub fn take_binding(&mut self) -> Option<Binding> {
        let binding = self.binding();
        (self.route, self.blocked) = (None, false);
        binding
    }

    /// Sets the slot to [`Self::RESET`], except for its handle. The binding must have been removed.
    pub fn reset(&mut self) {
        *self = Self { handle: self.handle, ..Self::RESET };
    }

    /// Sets the slot to the state after its allocation. The binding must have been removed.
    pub fn unmap(&mut self) {
        let Self { handle, group, pasid, .. } = *self;
        *self = Self { handle, group, pasid, state: State::Allocated, ..Self::RESET };
    }

    /// Allocates slot `index` for a call, in its next generation.
    pub fn allocate(&mut self, index: u16, group: u8) -> SlotHandle {
        let last = (self.handle >> 16) as u16;
        let handle = SlotHandle::new(index, NonZeroU16::new(last.wrapping_add(1)).unwrap_or(NonZeroU16::MIN));
        (self.handle, self.state, self.group) = (handle.bits(), State::Allocated, group);
        handle
    }

    /// Marks an allocated slot as being mapped by a batch.
    pub fn begin_mapping(&mut self, target: Target, cookie: u64) {
        (self.apic_id, self.vector, self.cookie) = (target.apic_id, target.vector, cookie);
        self.state = State::Mapping;
    }

    /// Completes the mapping with a flushed entry. The slot shows its pair; the caller unmasks it in the device afterwards unless it stays
    /// masked. Until then it is masked there, as every allocated slot is.
    #[inline]
    pub fn complete_mapping(&mut self, handle: SlotHandle, bound: BoundEntry, masked: bool) {
        (self.route, self.entry) = (Some(bound.route), bound.entry);
        self.image = [OPAQUE_ADDRESS, 0, handle.bits()];
        (self.masked, self.device_masked) = (masked, masked);
        self.state = State::Mapped;
    }

    /// Sets the slot to allocated again, because the batch failed.
    pub fn end_mapping(&mut self) {
        self.cookie = 0;
        self.state = State::Allocated;
    }

    /// Whether the slot is mapped, or is being mapped, to `target` with this cookie.
    pub fn is_mapped_as(&self, target: Target, cookie: u64) -> bool {
        let is_mapped = matches!(self.state, State::Mapping | State::Mapped);
        is_mapped && (self.apic_id, self.vector, self.cookie) == (target.apic_id, target.vector, cookie)
    }

    /// Undoes [`Self::allocate`] before the guest has seen the handle. The next allocation gets the same handle.
    pub fn forget_allocation(&mut self) {
        // Before generation 1 there is none, or all of them have been.
        *self = Self { handle: self.handle.wrapping_sub(1 << 16), ..Self::RESET };
    }

    /// Whether `handle` is the slot's present allocation.
    pub fn has_handle(&self, handle: SlotHandle) -> bool {
        !matches!(self.state, State::Free | State::Raw) && self.handle == handle.bits()
    }

    /// Whether `handle` is the slot's present allocation, and the slot is not mapped.
    pub fn is_allocated_as(&self, handle: SlotHandle) -> bool {
        self.state == State::Allocated && self.handle == handle.bits()
    }

    /// The PASID of the work that may raise the slot.
    pub fn pasid(&self) -> Option<Pasid> {
        if self.pasid & CTRL_PASID_ENABLE == 0 { None } else { Pasid::new(self.pasid >> CTRL_PASID_SHIFT) }
    }

    /// Restricts the slot to work with this PASID, or lifts the restriction.
    pub fn set_pasid(&mut self, pasid: Option<Pasid>) {
        self.pasid = pasid.map_or(0, pasid_bits);
    }

    /// The control dword for the device.
    pub fn device_ctrl(&self, masked: bool) -> u32 {
        self.pasid | (u32::from(masked) * CTRL_MASK)
    }

    /// The control dword as the guest reads it.
    pub fn ctrl(&self) -> u32 {
        self.device_ctrl(self.masked) | (u32::from(self.pending) * CTRL_PENDING)
    }

    /// A dword as the guest reads it.
    pub fn field(&self, field: Field) -> u32 {
        self.image.get(field as usize).copied().unwrap_or_else(|| self.ctrl())
    }

    /// Puts the bits of `value` that `bits` selects into a dword. In the control dword only the mask bit is writable, as in hardware. The
    /// PASID field keeps the PASID that a call has set.
    pub fn merge(&mut self, field: Field, value: u32, bits: u32) {
        match self.image.get_mut(field as usize) {
            Some(dword) => *dword = *dword & !bits | value & bits,
            None if bits & CTRL_MASK != 0 => self.masked = value & CTRL_MASK != 0,
            None => {}
        }
    }

    /// Whether a write of a message dword needs no other step than storing it: the slot is in use, and masked for every reason, and stays
    /// masked.
    pub fn is_at_rest(&self) -> bool {
        self.masked && self.device_masked && self.state != State::Free && self.image != [0; 3]
    }

    /// Whether the slot is as after reset.
    pub fn is_blank(&self) -> bool {
        self.masked && self.image == [0; 3]
    }

    /// Whether the slot holds the pair that the guest was given.
    pub fn holds_pair(&self) -> bool {
        self.image == self.pair_image()
    }

    /// Whether nothing that the guest wrote makes the slot's message invalid. For a slot that the guest maps by writing, the caller checks
    /// the message.
    pub fn is_sound(&self) -> bool {
        self.state != State::Mapped || self.holds_pair()
    }

    /// The pair as the slot's dwords hold it.
    pub fn pair_image(&self) -> [u32; 3] {
        [OPAQUE_ADDRESS, 0, self.handle]
    }

    /// The pair for a mapped slot.
    pub fn pair(&self) -> MessagePair {
        MessagePair { address: OPAQUE_ADDRESS.into(), data: self.handle }
    }

    /// The pair for the slot that a handle names.
    pub fn pair_of(handle: SlotHandle) -> MessagePair {
        MessagePair { address: OPAQUE_ADDRESS.into(), data: handle.bits() }
    }
}

/// The free slots of at most 65,536. Three levels of bits make a search take the same time in a store of any size.
#[derive(Clone, Debug)]
pub struct FreeMap {
    words: Vec<u64>,
    /// A bit for each word of the lowest level that is not zero.
    summary: Vec<u64>,
    /// A bit for each word of the summary that is not zero: there are at most 16.
    top: u64,
    count: u32,
}

impl FreeMap {
    /// A map of `slots` free slots.
    pub fn new(slots: u32) -> Self {
        let words = slots.div_ceil(64) as usize;
        let mut map = Self { words: vec![0; words], summary: vec![0; words.div_ceil(64)], top: 0, count: 0 };
        for slot in 0..slots.min(1 << 16) {
            map.put(slot as u16);
        }
        map
    }

    /// The number of free slots.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The lowest free slot.
    pub fn lowest(&self) -> Option<u16> {
        let group = self.top.trailing_zeros() as usize;
        let word = group * 64 + self.summary.get(group)?.trailing_zeros() as usize;
        let slot = word * 64 + self.words.get(word)?.trailing_zeros() as usize;
        u16::try_from(slot).ok()
    }

    /// Marks a slot as taken.
    pub fn take(&mut self, slot: u16) {
        let (word, bit) = Self::place(slot);
        let Some(bits) = self.words.get_mut(word) else { return };
        self.count -= u32::from(*bits & bit != 0);
        *bits &= !bit;
        if *bits == 0
            && let Some(summary) = self.summary.get_mut(word / 64)
        {
            *summary &= !(1 << (word % 64));
            if *summary == 0 {
                self.top &= !(1 << (word / 64));
            }
        }
    }

    /// Marks a slot as free.
    pub fn put(&mut self, slot: u16) {
        let (word, bit) = Self::place(slot);
        let Some(bits) = self.words.get_mut(word) else { return };
        self.count += u32::from(*bits & bit == 0);
        *bits |= bit;
        if let Some(summary) = self.summary.get_mut(word / 64) {
            *summary |= 1 << (word % 64);
            self.top |= 1 << (word / 64);
        }
    }

    fn place(slot: u16) -> (usize, u64) {
        (usize::from(slot) / 64, 1 << (slot % 64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Hpa;

    #[test]
    fn a_slot_costs_64_bytes_with_its_lock() {
        assert_eq!(size_of::<crate::sync::Mutex<Slot>>(), 64);
    }

    #[test]
    fn a_binding_comes_out_as_it_was_put_in() {
        for route in [
            HostRoute::Remapped { vector: 0xfe, destination: u32::MAX },
            HostRoute::Remapped { vector: 0x10, destination: 0 },
            HostRoute::Posted { descriptor: Hpa::new((1 << 52) - 64), vector: 0xff },
            HostRoute::Posted { descriptor: Hpa::new(64), vector: 0x10 },
        ] {
            let target = Target { apic_id: 0xffff_fff0, vector: 0xef };
            let binding = Binding { route, target, entry: EntryIndex(0x1_ffff) };
            let mut slot = Slot::RESET;
            slot.bind(binding);
            assert_eq!(slot.binding(), Some(binding));
            assert_eq!((slot.take_binding(), slot.binding()), (Some(binding), None));
        }
    }

    #[test]
    fn a_generation_is_never_zero_and_never_the_last_one_again() {
        let mut slot = Slot::RESET;
        let mut last = 0;
        for _ in 0..=u32::from(u16::MAX) {
            let generation = slot.allocate(3, 0).generation();
            assert_ne!(generation, 0);
            assert_ne!(generation, last);
            last = generation;
        }
        assert_eq!(slot.allocate(3, 0).generation(), 2, "65,535 of them, round and round");
    }

    fn take_lowest(map: &mut FreeMap) -> Option<u16> {
        let slot = map.lowest()?;
        map.take(slot);
        Some(slot)
    }

    #[test]
    fn every_slot_is_found_free_once() {
        for slots in [1, 63, 64, 65, 4096, 65_536] {
            let mut map = FreeMap::new(slots);
            assert_eq!(map.count(), slots);
            for expected in 0..slots {
                assert_eq!(take_lowest(&mut map), Some(expected as u16));
            }
            assert_eq!((take_lowest(&mut map), map.count()), (None, 0));
            map.put((slots - 1) as u16);
            map.put((slots - 1) as u16);
            assert_eq!(map.count(), 1);
            assert_eq!(take_lowest(&mut map), Some((slots - 1) as u16));
        }
    }

    proptest::proptest! {
        #[test]
        fn the_lowest_free_slot_is_found_in_the_largest_store(slots in proptest::collection::vec(proptest::num::u16::ANY, 1..200)) {
            let mut map = FreeMap::new(1 << 16);
            (0..=u16::MAX).for_each(|slot| map.take(slot));
            let mut free = std::collections::BTreeSet::new();
            for slot in slots {
                if free.remove(&slot) {
                    map.take(slot);
                } else {
                    free.insert(slot);
                    map.put(slot);
                }
                proptest::prop_assert_eq!(map.lowest(), free.first().copied());
                proptest::prop_assert_eq!(map.count() as usize, free.len());
            }
        }
    }

    #[test]
    fn attack_22_a_pasid_forged_in_ctrl_is_dropped() {
        let mut slot = Slot::RESET;
        slot.merge(Field::Control, 0xffff_fffe, u32::MAX);
        assert_eq!(slot.ctrl(), 0);
        slot.merge(Field::Control, 0xffff_ffff, u32::MAX);
        assert_eq!(slot.ctrl(), CTRL_MASK);
        slot.set_pasid(Pasid::new(0x12345));
        slot.merge(Field::Control, 0xfedc_b000, u32::MAX);
        assert_eq!(slot.ctrl(), 0x1234_5008, "it is replaced by the one that a call has set");
        assert_eq!(slot.pasid(), Pasid::new(0x12345));
    }

    #[test]
    fn a_write_beside_the_mask_bit_leaves_it() {
        let mut slot = Slot::RESET;
        slot.merge(Field::Control, 0, 0xffff_ff00);
        assert!(slot.masked);
        slot.merge(Field::AddressHi, 0x1234_5678, 0x00ff_ff00);
        assert_eq!(slot.image, [0, 0x0034_5600, 0]);
    }
}
