//! A machine in memory, for people who try the service or write a port of it: one remapping unit with its cache, devices' stores with their
//! shadows, and host vectors. It is the shortest implementation of all [`ports`](super::ports) that keeps their promises.

use alloc::{collections::BTreeMap, vec, vec::Vec};

use hcall_abi::{Status, Target};
use imsvisor_sync::Mutex;

use super::{
    Bind, BindRequest, BoundEntry, Delivery, EntryIndex, Field, GuestId, HostRoute, Message, PackedRoute, Remap,
    Shadow, Span, Store, StoreSpec, UnitNumber,
};
use crate::addr::{Bdf, Hpa};

/// Entries of the unit's table.
const ENTRIES: usize = 256;
/// The first host vector that routes get.
const FIRST_VECTOR: u8 = 0x30;
/// Control bit 0: the device sends no message of the slot.
const MASKED: u32 = 1;
/// The address of messages in remappable format (VT-d 5.1.2.2); the message data holds the index.
const REMAPPABLE: u64 = 0xfee0_0018;

/// An entry in use: the source that it accepts, and its route while it is present.
type Entry = (Bdf, Option<HostRoute>);

#[derive(Default)]
struct State {
    /// The table. A free entry is `None`.
    table: Vec<Option<Entry>>,
    /// The unit's cache of the table, which lasts until a flush.
    cache: BTreeMap<u32, Entry>,
    /// Dwords of stores, by their addresses.
    memory: BTreeMap<u64, u32>,
    /// The host vectors in use, with the number of their uses.
    vectors: BTreeMap<(GuestId, u32, u8), (u8, u32)>,
    /// Interrupts that were delivered without a device.
    delivered: Vec<(GuestId, Target)>,
}

/// The machine.
pub struct Fake(Mutex<State>);

impl Default for Fake {
    fn default() -> Self {
        Self(Mutex::new(State { table: vec![None; ENTRIES], ..State::default() }))
    }
}

impl Fake {
    /// A device raises the interrupt of a slot of its store at `base`, and the unit remaps the message. Returns where the interrupt goes; `None`
    /// if the slot is masked, or the unit refuses the message: no entry is present, or the entry is another source's.
    pub fn fire(&self, requester: Bdf, base: Hpa, slot: u16) -> Option<HostRoute> {
        let state = &mut *self.0.lock();
        let dword = |field: Field| state.memory.get(&(base.as_u64() + field.offset(slot))).copied();
        if dword(Field::Control)? & MASKED != 0 || u64::from(dword(Field::AddressLo)?) != REMAPPABLE {
            return None;
        }
        let index = dword(Field::Data)?;
        let entry = match state.cache.get(&index) {
            Some(entry) => *entry,
            None => state.table.get(index as usize).copied().flatten()?,
        };
        state.cache.insert(index, entry);
        entry.1.filter(|_| entry.0 == requester)
    }

    /// The dword of a slot that the guest reads in the shadow at `shadow`.
    pub fn guest_reads(&self, shadow: Hpa, slot: u16, field: Field) -> u32 {
        self.0.lock().memory.get(&(shadow.as_u64() + field.offset(slot))).copied().unwrap_or(0)
    }

    /// The virtual processor and the guest's vector behind a host vector.
    pub fn owner(&self, route: HostRoute) -> Option<(GuestId, Target)> {
        let HostRoute::Remapped { vector: host, .. } = route else { return None };
        let state = self.0.lock();
        let owner = state.vectors.iter().find(|(_, (vector, _))| *vector == host);
        owner.map(|(&(guest, apic_id, vector), _)| (guest, Target { apic_id, vector }))
    }

    /// The number of entries in use.
    pub fn entries_in_use(&self) -> usize {
        self.0.lock().table.iter().flatten().count()
    }

    /// The targets that [`Delivery::deliver`] was called with.
    pub fn delivered(&self) -> Vec<(GuestId, Target)> {
        self.0.lock().delivered.clone()
    }

    fn change(&self, entry: EntryIndex, route: Option<HostRoute>) {
        if let Some(Some((_, old))) = self.0.lock().table.get_mut(entry.0 as usize) {
            *old = route;
        }
    }
}

impl Remap for Fake {
    fn capacity(&self) -> u32 {
        ENTRIES as u32
    }

    fn unit_of(&self, _: Bdf) -> Result<UnitNumber, Status> {
        Ok(UnitNumber(0))
    }

    fn bind(&self, _: UnitNumber, requester: Bdf, route: HostRoute) -> Result<EntryIndex, Status> {
        let state = &mut *self.0.lock();
        let free = state.table.iter().position(Option::is_none).ok_or(Status::NoFreeEntry)?;
        state.table[free] = Some((requester, Some(route)));
        Ok(EntryIndex(free as u32))
    }

    fn program(&self, entry: EntryIndex, route: HostRoute) {
        self.change(entry, Some(route));
    }

    fn clear(&self, entry: EntryIndex) {
        self.change(entry, None);
    }

    fn block(&self, entry: EntryIndex) {
        self.change(entry, None);
    }

    fn flush(&self, mut entries: impl Iterator<Item = EntryIndex> + Clone) -> Result<(), Status> {
        let cache = &mut self.0.lock().cache;
        entries.by_ref().for_each(|entry| _ = cache.remove(&entry.0));
        Ok(())
    }

    fn flush_span(&self, Span { lowest, highest }: Span) -> Result<(), Status> {
        self.flush((lowest.0..=highest.0).map(EntryIndex))
    }

    fn release(&self, entry: EntryIndex) {
        if let Some(place) = self.0.lock().table.get_mut(entry.0 as usize) {
            *place = None;
        }
    }

    fn message(&self, entry: EntryIndex) -> Message {
        Message { address: REMAPPABLE, data: entry.0 }
    }
}

impl Store for Fake {
    fn write(&self, store: &StoreSpec, slot: u16, field: Field, value: u32) {
        self.0.lock().memory.insert(store.base.as_u64() + field.offset(slot), value);
    }

    fn write_message(&self, store: &StoreSpec, slot: u16, message: Message) {
        self.write(store, slot, Field::AddressLo, message.address as u32);
        self.write(store, slot, Field::AddressHi, (message.address >> 32) as u32);
        self.write(store, slot, Field::Data, message.data);
    }

    fn read_back(&self, store: &StoreSpec, slot: u16, field: Field) -> u32 {
        self.guest_reads(store.base, slot, field)
    }

    fn commit(&self, _: &StoreSpec) -> Result<(), Status> {
        Ok(())
    }
}

impl Shadow for Fake {
    fn show(&self, store: &StoreSpec, slot: u16, field: Field, value: u32) {
        self.0.lock().memory.insert(store.shadow.as_u64() + field.offset(slot), value);
    }

    fn show_slot(&self, store: &StoreSpec, slot: u16, dwords: [u32; 4]) {
        for (field, value) in Field::ALL.into_iter().zip(dwords) {
            self.show(store, slot, field, value);
        }
    }
}

impl Delivery for Fake {
    fn route(&self, guest: GuestId, target: Target) -> Result<HostRoute, Status> {
        let vectors = &mut self.0.lock().vectors;
        let taken = |vector: &u8| !vectors.values().any(|(other, _)| other == vector);
        let free = (FIRST_VECTOR..=u8::MAX).find(taken);
        let key = (guest, target.apic_id, target.vector);
        let (vector, uses) = match vectors.get(&key) {
            Some(&known) => known,
            None => (free.ok_or(Status::NoFreeVector)?, 0),
        };
        vectors.insert(key, (vector, uses + 1));
        Ok(HostRoute::Remapped { vector, destination: 0 })
    }

    fn unroute(&self, guest: GuestId, target: Target, route: HostRoute) {
        let HostRoute::Remapped { vector, .. } = route else { return };
        let (vectors, key) = (&mut self.0.lock().vectors, (guest, target.apic_id, target.vector));
        match vectors.get_mut(&key) {
            Some((host, uses)) if *host == vector && *uses > 1 => *uses -= 1,
            Some((host, _)) if *host == vector => _ = vectors.remove(&key),
            _ => {}
        }
    }

    fn nowhere(&self) -> HostRoute {
        HostRoute::Remapped { vector: FIRST_VECTOR - 1, destination: 0 }
    }

    fn deliver(&self, guest: GuestId, target: Target) {
        self.0.lock().delivered.push((guest, target));
    }
}

impl Bind for Fake {
    fn bind_all<'a, W: AsMut<BindRequest> + 'a>(
        &self,
        guest: GuestId,
        unit: UnitNumber,
        requester: Bdf,
        runs: impl Iterator<Item = &'a mut [W]>,
    ) -> (usize, Span) {
        let (mut failed, mut span) = (0, Span::NONE);
        for request in runs.flatten().map(AsMut::as_mut) {
            request.result = self.route(guest, request.target).and_then(|route| {
                let entry = self.bind(unit, requester, route);
                let entry = entry.inspect_err(|_| self.unroute(guest, request.target, route))?;
                Ok(BoundEntry { route: PackedRoute::new(route), entry })
            });
            match request.result {
                Ok(bound) => span.add(bound.entry),
                Err(_) => failed += 1,
            }
        }
        (failed, span)
    }
}
