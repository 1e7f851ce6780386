//! The native domain: the driver writes the slots itself, with messages in x86's compatibility format.
//!
//! A slot's dwords are written while it is masked, and it is unmasked last. Each change ends with a read, so that the earlier writes have
//! reached the device (as in the `ims_array` interrupt chip of the proposed Linux driver).

use core::num::NonZeroU16;

use hcall_abi::info::Mapping;
use hcall_abi::{MapRequest, MessagePair, Pasid, SlotHandle, SlotInfo, Status, Target};

use super::{Interrupt, Report};
use crate::store::{CONTROL_MASK, CONTROL_PASID_ENABLE, CONTROL_PASID_SHIFT, CONTROL_PENDING, Field, Store};

/// What the driver knows of a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotState {
    /// Counts the times the slot was allocated.
    generation: u16,
    taken: bool,
    unmasked: bool,
    target: Option<Target>,
    cookie: u64,
    group: u32,
    pasid: Option<Pasid>,
}

impl SlotState {
    /// A slot that was never used: what an array of them begins with.
    pub const FREE: Self =
        Self { generation: 0, taken: false, unmasked: false, target: None, cookie: 0, group: 0, pasid: None };
}

/// A device's interrupts, programmed into its store.
#[derive(Debug)]
pub struct NativeDomain<'a, S> {
    store: S,
    states: &'a mut [SlotState],
}

/// A message of this format can name x2APIC IDs up to here (SDM vol. 3, 12.11.1: destination ID in address 19:12).
const MAX_APIC_ID: u32 = 0xff;
/// The window of interrupt messages.
const MESSAGE_BASE: u32 = 0xfee0_0000;

/// The message {address, data} for a target: fixed delivery, edge, physical destination (SDM vol. 3, 12.11).
fn compose(target: Target) -> Result<(u32, u32), Status> {
    let target = Target::new(target.apic_id, target.vector)?;
    if target.apic_id >= MAX_APIC_ID {
        // 0xff is everybody.
        Err(Status::BadTarget)
    } else {
        Ok((MESSAGE_BASE | target.apic_id << 12, target.vector.into()))
    }
}

impl<'a, S: Store> NativeDomain<'a, S> {
    pub(super) fn new(store: S, states: &'a mut [SlotState]) -> Self {
        let usable = usize::try_from(store.slots()).unwrap_or(usize::MAX).min(1 << 16);
        let length = states.len().min(usable);
        let states = &mut states[..length];
        states.fill(SlotState::default());
        Self { store, states }
    }

    /// Keeps the slots that `used` is true for out of [`Domain::alloc`](super::Domain::alloc): somebody else has them.
    pub fn reserve(&mut self, mut used: impl FnMut(u16) -> bool) {
        for (index, state) in (0..=u16::MAX).zip(self.states.iter_mut()) {
            state.taken |= used(index);
        }
    }

    /// The store, to look at.
    pub const fn store(&self) -> &S {
        &self.store
    }

    fn state(&mut self, handle: SlotHandle) -> Result<&mut SlotState, Status> {
        let state = self.states.get_mut(usize::from(handle.index())).ok_or(Status::NoSuchSlot)?;
        if state.taken && state.generation == handle.generation() { Ok(state) } else { Err(Status::StaleHandle) }
    }

    fn mapped(&mut self, handle: SlotHandle) -> Result<&mut SlotState, Status> {
        self.state(handle).and_then(|state| if state.target.is_some() { Ok(state) } else { Err(Status::NotMapped) })
    }

    pub(super) fn alloc(&mut self, group: u32) -> Result<SlotHandle, Status> {
        let free = (0..=u16::MAX).zip(self.states.iter_mut()).find(|(_, state)| !state.taken);
        let (index, state) = free.ok_or(Status::NoFreeSlot)?;
        let generation = NonZeroU16::new(state.generation.wrapping_add(1)).unwrap_or(NonZeroU16::MIN);
        *state = SlotState { generation: generation.get(), taken: true, group, ..SlotState::FREE };
        self.write_control(index, false);
        Ok(SlotHandle::new(index, generation))
    }

    pub(super) fn free(&mut self, handle: SlotHandle) -> Result<(), Status> {
        self.unmap(handle)?;
        let state = self.state(handle)?;
        *state = SlotState { generation: state.generation, ..SlotState::FREE };
        self.write_control(handle.index(), false);
        Ok(())
    }

    pub(super) fn alloc_many(
        &mut self,
        group: u32,
        min: usize,
        out: &mut dyn ExactSizeIterator<Item = &mut Option<Interrupt>>,
    ) -> Result<(), Status> {
        super::alloc_each(min, out, &mut || self.alloc(group))
    }

    pub(super) fn free_all(&mut self, handles: &mut dyn Iterator<Item = SlotHandle>) -> usize {
        handles.filter(|handle| self.free(*handle).is_ok()).count()
    }

    pub(super) fn free_group(&mut self, group: u32) -> Result<usize, Status> {
        let mut freed = 0;
        for index in (0..=u16::MAX).take(self.states.len()) {
            let state = self.states[usize::from(index)];
            if let Some(generation) = NonZeroU16::new(state.generation)
                && state.taken
                && state.group == group
            {
                self.free(SlotHandle::new(index, generation))?;
                freed += 1;
            }
        }
        Ok(freed)
    }

    pub(super) fn set_pasid(&mut self, handle: SlotHandle, pasid: Option<Pasid>) -> Result<(), Status> {
        let state = self.state(handle)?;
        state.pasid = pasid;
        let unmasked = state.unmasked;
        self.write_control(handle.index(), unmasked);
        Ok(())
    }

    pub(super) fn query(&mut self, handle: SlotHandle) -> Result<SlotInfo, Status> {
        let SlotState { unmasked, target, cookie, group, pasid, .. } = *self.state(handle)?;
        let mapping = target.map(|target| {
            let (address, data) = compose(target).unwrap_or_default();
            Mapping { target, cookie, pair: MessagePair { address: address.into(), data } }
        });
        let pending = self.store.read(handle.index(), Field::Control) & CONTROL_PENDING != 0;
        let group = group as u16;
        Ok(SlotInfo { mapping, masked: !unmasked, pending, limited: false, group, pasid })
    }

    pub(super) fn map_each(
        &mut self,
        items: &mut dyn Iterator<Item = MapRequest>,
        report: Report,
    ) -> Result<(), Status> {
        for (n, item) in items.enumerate() {
            report(n, self.map(&item));
        }
        Ok(())
    }

    fn map(&mut self, item: &MapRequest) -> Result<(), Status> {
        let message = compose(item.target)?;
        let state = self.state(item.handle)?;
        match state.target {
            Some(target) if target == item.target => {}
            Some(_) => return Err(Status::Exists),
            None => {
                (state.target, state.cookie) = (Some(item.target), item.cookie);
                self.write_message(item.handle.index(), message);
            }
        }
        if item.unmask { self.unmask(item.handle) } else { Ok(()) }
    }

    pub(super) fn unmap(&mut self, handle: SlotHandle) -> Result<(), Status> {
        let state = self.state(handle)?;
        if state.target.take().is_some() {
            state.unmasked = false;
            self.write_control(handle.index(), false);
            self.write_message(handle.index(), (0, 0));
        }
        Ok(())
    }

    pub(super) fn mask(&mut self, handle: SlotHandle) -> Result<(), Status> {
        self.mapped(handle)?.unmasked = false;
        self.write_control(handle.index(), false);
        Ok(())
    }

    pub(super) fn unmask(&mut self, handle: SlotHandle) -> Result<(), Status> {
        self.mapped(handle)?.unmasked = true;
        self.write_control(handle.index(), true);
        Ok(())
    }

    pub(super) fn set_affinity(&mut self, handle: SlotHandle, target: Target) -> Result<(), Status> {
        let message = compose(target)?;
        let state = self.mapped(handle)?;
        state.target = Some(target);
        let unmasked = state.unmasked;
        // Address and data are two writes: a message between them would go to neither place. Masked, it waits instead.
        self.write_control(handle.index(), false);
        self.write_message(handle.index(), message);
        if unmasked {
            self.write_control(handle.index(), true);
        }
        Ok(())
    }

    fn write_message(&mut self, slot: u16, (address, data): (u32, u32)) {
        self.store.write(slot, Field::AddressLo, address);
        self.store.write(slot, Field::AddressHi, 0);
        self.store.write(slot, Field::Data, data);
        self.store.read(slot, Field::Data);
    }

    fn write_control(&mut self, slot: u16, unmasked: bool) {
        let mask = if unmasked { 0 } else { CONTROL_MASK };
        let pasid = self.states.get(usize::from(slot)).and_then(|state| state.pasid);
        let pasid = pasid.map_or(0, |pasid| pasid.value() << CONTROL_PASID_SHIFT | CONTROL_PASID_ENABLE);
        self.store.write(slot, Field::Control, pasid | mask);
        self.store.read(slot, Field::Control);
    }
}
