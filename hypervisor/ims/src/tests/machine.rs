//! A machine that believes nothing: writes to a device are posted until they are read back, the cache may hold all that an
//! entry was since its last flush, and after each operation every slot that may be unmasked must be safe in all these ways.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard},
};

use hcall_abi::{MessagePair, Status, Target};

use crate::{
    Bind, BindRequest, BoundEntry, Delivery, EntryIndex, Field, GuestId, HostRoute, Message, PackedRoute, Remap,
    Shadow, Span, Store, StoreLocation, StoreSpec, UnitNumber, addr::Bdf,
};

/// What a port was asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Route(Target),
    Unroute(Target),
    Reserve(u32),
    Program(u32),
    Clear(u32),
    Flush(Vec<u32>),
    Release(u32),
    Write(u16, Field, u32),
    ReadBack(u16, Field),
    Deliver(GuestId, Target),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Entry {
    requester: Option<Bdf>,
    /// What it may be in the cache; the last is what it is.
    maybe: Vec<Option<HostRoute>>,
}

impl Entry {
    fn now(&self) -> Option<HostRoute> {
        *self.maybe.last().unwrap()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Device {
    requester: Bdf,
    guest: GuestId,
    processors: Vec<u32>,
    /// What each slot may be; the last is what it will be when all writes have arrived.
    slots: Vec<Vec<[u32; 4]>>,
    shadow: Vec<[u32; 4]>,
    pending: Vec<bool>,
}

type Route = (GuestId, u32, u8);

#[derive(Debug, Default)]
struct Inner {
    log: Vec<Op>,
    /// Calls that can fail, so far.
    fallible: usize,
    /// From which of them on they fail, and how many do.
    failing: std::ops::Range<usize>,
    /// No flush comes to an end.
    silent: bool,
    entries: Vec<Entry>,
    free: Vec<u32>,
    vectors: usize,
    routes: HashMap<HostRoute, (Route, u32)>,
    devices: HashMap<u64, Device>,
}

/// All that an operation can change, without what was only passing.
#[derive(Debug, PartialEq, Eq)]
pub struct Snapshot {
    entries: Vec<Entry>,
    routes: HashMap<HostRoute, (Route, u32)>,
    devices: HashMap<u64, Device>,
}

/// Where nobody minds an interrupt.
pub const NOWHERE: HostRoute = HostRoute::Remapped { vector: 0xf1, destination: u32::MAX };

/// Most operations that are remembered.
const LOG: usize = 1 << 16;

#[derive(Debug)]
pub struct Machine(Mutex<Inner>);

impl Machine {
    /// With `entries` entries in the table and `vectors` routes.
    pub fn new(entries: u32, vectors: usize) -> Self {
        Self(Mutex::new(Inner {
            entries: (0..entries).map(|_| Entry { requester: None, maybe: vec![None] }).collect(),
            free: (0..entries).rev().collect(),
            vectors,
            ..Inner::default()
        }))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// Puts a store on the bus..
    pub fn plug(&self, store: StoreSpec, requester: Bdf, guest: GuestId, processors: &[u32]) {
        let slots = store.slots as usize;
        let device = Device {
            requester,
            guest,
            processors: processors.to_vec(),
            slots: vec![vec![[0, 0, 0, 1]]; slots],
            shadow: vec![[!0; 4]; slots],
            pending: vec![false; slots],
        };
        self.inner().devices.insert(store.base.as_u64(), device);
    }

    /// The `k`-th call from now that can fail does, and so do `count` altogether.
    pub fn fail(&self, k: usize, count: usize) {
        let mut inner = self.inner();
        let start = inner.fallible + k;
        inner.failing = start..start.saturating_add(count);
    }

    /// From now on no flush comes to an end, until [`Self::mend`].
    pub fn silence(&self) {
        self.inner().silent = true;
    }

    /// Nothing fails from now on. Whether anything did since [`Self::fail`].
    pub fn mend(&self) -> bool {
        let mut inner = self.inner();
        let failed = inner.fallible > inner.failing.start;
        (inner.failing, inner.silent) = (0..0, false);
        failed
    }

    /// Counts a call that can fail.
    pub fn fails(&self) -> bool {
        let mut inner = self.inner();
        inner.fallible += 1;
        let this = inner.fallible - 1;
        inner.failing.contains(&this)
    }

    /// What was done since this was last asked.
    pub fn log(&self) -> Vec<Op> {
        std::mem::take(&mut self.inner().log)
    }

    pub fn snapshot(&self) -> Snapshot {
        let inner = self.inner();
        let mut snapshot =
            Snapshot { entries: inner.entries.clone(), routes: inner.routes.clone(), devices: inner.devices.clone() };
        for slot in snapshot.devices.values_mut().flat_map(|device| &mut device.slots) {
            slot.drain(..slot.len() - 1);
        }
        snapshot
    }

    /// Entries and routes in use.
    pub fn used(&self) -> (usize, usize) {
        let inner = self.inner();
        (inner.entries.len() - inner.free.len(), inner.routes.len())
    }

    /// What a device's slot holds.
    pub fn slot(&self, store: &StoreSpec, slot: u16) -> [u32; 4] {
        *self.inner().devices[&store.base.as_u64()].slots[usize::from(slot)].last().unwrap()
    }

    pub fn shadow(&self, store: &StoreSpec, slot: u16) -> [u32; 4] {
        self.inner().devices[&store.base.as_u64()].shadow[usize::from(slot)]
    }

    pub fn set_pending(&self, store: &StoreSpec, slot: u16, pending: bool) {
        let mut inner = self.inner();
        inner.devices.get_mut(&store.base.as_u64()).unwrap().pending[usize::from(slot)] = pending;
    }

    /// The device resets itself.
    pub fn reset(&self, store: &StoreSpec) {
        let mut inner = self.inner();
        inner.devices.get_mut(&store.base.as_u64()).unwrap().slots.fill(vec![[0, 0, 0, 1]]);
    }

    /// The device raises the slot's interrupt. Where it comes out, unless it is masked.
    pub fn fire(&self, store: &StoreSpec, slot: u16) -> Option<Target> {
        let inner = self.inner();
        let device = &inner.devices[&store.base.as_u64()];
        let slot = *device.slots[usize::from(slot)].last().unwrap();
        if slot[3] & 1 != 0 {
            return None;
        }
        let route = inner.entries[index(slot)].now().unwrap();
        let ((guest, apic_id, vector), _) = inner.routes[&route];
        assert_eq!(guest, device.guest);
        Some(Target { apic_id, vector })
    }

    /// A function writes a message by itself. Where it comes out; `None` if its entry refuses it.
    pub fn deliver(&self, message: MessagePair, source: Bdf) -> Option<Target> {
        let inner = self.inner();
        let lo = message.address as u32;
        let entry = inner.entries.get(index([lo, 0, message.data, 0]))?;
        let route = entry.now().filter(|_| entry.requester == Some(source))?;
        let ((_, apic_id, vector), _) = inner.routes[&route];
        Some(Target { apic_id, vector })
    }

    fn done(&self, op: Op) {
        let mut inner = self.inner();
        // Whoever never looks has no use for more.
        if inner.log.len() < LOG {
            inner.log.push(op);
        }
        inner.check();
    }

    fn entry<T>(&self, entry: EntryIndex, what: impl FnOnce(&mut Entry) -> T) -> T {
        let mut inner = self.inner();
        let entry = &mut inner.entries[entry.0 as usize];
        assert!(entry.requester.is_some(), "an entry that is not reserved");
        what(entry)
    }
}

/// The index in a remappable message without subhandle (VT-d 5.1.2.2).
fn index([lo, hi, data, _]: [u32; 4]) -> usize {
    assert_eq!(
        (lo & 0xfff0_0018, hi, data),
        (0xfee0_0010, 0, 0),
        "not a remappable message: {lo:#x} {hi:#x} {data:#x}"
    );
    (lo >> 5 & 0x7fff | (lo >> 2 & 1) << 15) as usize
}

impl Inner {
    /// Invariants 1, 2, 3: whatever has arrived at the device and whatever the cache holds, a slot that may be unmasked has a
    /// present entry, of its device, to a processor of its guest.
    fn check(&self) {
        for device in self.devices.values() {
            for slot in device.slots.iter().flatten().filter(|slot| slot[3] & 1 == 0) {
                let entry = &self.entries[index(*slot)];
                assert_eq!(entry.requester, Some(device.requester), "another device's entry");
                for route in &entry.maybe {
                    let route = route.expect("unmasked, and the entry is not present or not flushed");
                    if route == NOWHERE {
                        continue;
                    }
                    let ((guest, apic_id, vector), _) = self.routes.get(&route).expect("the route was given back");
                    assert_eq!(*guest, device.guest, "another guest's route");
                    assert!(device.processors.contains(apic_id) && *vector >= 16);
                }
            }
        }
    }
}

impl Remap for Machine {
    fn capacity(&self) -> u32 {
        self.inner().entries.len() as u32
    }

    fn unit_of(&self, _: Bdf) -> Result<UnitNumber, Status> {
        Ok(UnitNumber(0))
    }

    fn bind(&self, _: UnitNumber, requester: Bdf, route: HostRoute) -> Result<EntryIndex, Status> {
        if self.fails() {
            return Err(Status::NoFreeEntry);
        }
        // The one that was last given back comes first: nothing stale is ever old.
        let index = self.inner().free.pop().ok_or(Status::NoFreeEntry)?;
        self.inner().entries[index as usize].requester = Some(requester);
        self.done(Op::Reserve(index));
        self.program(EntryIndex(index), route);
        Ok(EntryIndex(index))
    }

    fn program(&self, entry: EntryIndex, route: HostRoute) {
        self.entry(entry, |entry| entry.maybe.push(Some(route)));
        self.done(Op::Program(entry.0));
    }

    fn clear(&self, entry: EntryIndex) {
        self.entry(entry, |entry| entry.maybe.push(None));
        self.done(Op::Clear(entry.0));
    }

    fn block(&self, entry: EntryIndex) {
        self.clear(entry);
    }

    fn flush(&self, entries: impl Iterator<Item = EntryIndex> + Clone) -> Result<(), Status> {
        let entries: Vec<_> = entries.collect();
        assert!(!entries.is_empty() && entries.len() <= 256);
        // It takes its time, and whatever need not wait for it goes on.
        std::thread::yield_now();
        let failed = self.fails() || self.inner().silent;
        if !failed {
            for &entry in &entries {
                let maybe = &mut self.inner().entries[entry.0 as usize].maybe;
                maybe.drain(..maybe.len() - 1);
            }
        }
        self.done(Op::Flush(entries.iter().map(|entry| entry.0).collect()));
        if failed { Err(Status::HardwareError) } else { Ok(()) }
    }

    fn flush_span(&self, Span { lowest, highest }: Span) -> Result<(), Status> {
        self.flush((lowest.0..=highest.0).map(EntryIndex))
    }

    fn release(&self, entry: EntryIndex) {
        self.entry(entry, |entry| {
            assert_eq!(entry.maybe, [None], "released before its flush completed (invariant 4)");
            entry.requester = None;
        });
        self.inner().free.push(entry.0);
        self.done(Op::Release(entry.0));
    }

    fn message(&self, entry: EntryIndex) -> Message {
        let address = 0xfee0_0010 | (entry.0 & 0x7fff) << 5 | (entry.0 >> 15 & 1) << 2;
        Message { address: address.into(), data: 0 }
    }
}

impl Bind for Machine {
    fn bind_all<'a, W: AsMut<BindRequest> + 'a>(
        &self,
        guest: GuestId,
        unit: UnitNumber,
        requester: Bdf,
        runs: impl Iterator<Item = &'a mut [W]>,
    ) -> (usize, Span) {
        let (mut failed, mut span) = (0, Span::NONE);
        for BindRequest { target, result } in runs.flatten().map(AsMut::as_mut) {
            *result = self.route(guest, *target).and_then(|route| {
                let entry = self.bind(unit, requester, route);
                let entry = entry.inspect_err(|_| self.unroute(guest, *target, route))?;
                span.add(entry);
                Ok(BoundEntry { route: PackedRoute::new(route), entry })
            });
            failed += usize::from(result.is_err());
        }
        (failed, span)
    }
}

impl Store for Machine {
    fn write(&self, store: &StoreSpec, slot: u16, field: Field, value: u32) {
        if store.location == StoreLocation::GuestMemory {
            return;
        }
        let mut inner = self.inner();
        let device = inner.devices.get_mut(&store.base.as_u64()).unwrap();
        let states = &mut device.slots[usize::from(slot)];
        let mut state = *states.last().unwrap();
        state[field as usize] = value;
        // The guests of these tests own PASIDs 0x100 to 0x1ff.
        let right =
            matches!(state[3] & !1, 0) || matches!(state[3] & !1, 0x10_0008..=0x1f_f008 if state[3] & 0xff6 == 0);
        assert!(
            right,
            "only the mask bit, and PASIDs of the guest's, are ever set in a device's ctrl: {:#x}",
            state[3]
        );
        states.push(state);
        // What was pending is sent.
        device.pending[usize::from(slot)] &= state[3] & 1 != 0;
        drop(inner);
        self.done(Op::Write(slot, field, value));
    }

    fn write_message(&self, store: &StoreSpec, slot: u16, Message { address, data }: Message) {
        self.write(store, slot, Field::AddressLo, address as u32);
        self.write(store, slot, Field::AddressHi, (address >> 32) as u32);
        self.write(store, slot, Field::Data, data);
    }

    fn commit(&self, store: &StoreSpec) -> Result<(), Status> {
        assert!(!matches!(store.location, StoreLocation::SlowStore(_)), "no store here is slow");
        Ok(())
    }

    fn read_back(&self, store: &StoreSpec, slot: u16, field: Field) -> u32 {
        if store.location == StoreLocation::GuestMemory {
            return u32::from(field == Field::Control);
        }
        let failed = self.fails();
        let mut inner = self.inner();
        let device = inner.devices.get_mut(&store.base.as_u64()).unwrap();
        let mut arrived = *device.slots[usize::from(slot)].last().unwrap();
        arrived[3] |= u32::from(device.pending[usize::from(slot)]) << 1;
        for states in &mut device.slots {
            states.drain(..states.len() - 1);
        }
        drop(inner);
        self.done(Op::ReadBack(slot, field));
        // A device that fails says that it is not masked.
        arrived[field as usize] & !u32::from(failed)
    }
}

impl Shadow for Machine {
    fn show(&self, store: &StoreSpec, slot: u16, field: Field, value: u32) {
        if store.location == StoreLocation::GuestMemory {
            return;
        }
        let mut inner = self.inner();
        let base = store.base.as_u64();
        assert_eq!(store.shadow.as_u64(), base + 0x1_0000_0000);
        inner.devices.get_mut(&base).unwrap().shadow[usize::from(slot)][field as usize] = value;
    }

    fn show_slot(&self, store: &StoreSpec, slot: u16, dwords: [u32; 4]) {
        if store.location == StoreLocation::GuestMemory {
            return;
        }
        for (field, value) in Field::ALL.into_iter().zip(dwords) {
            self.show(store, slot, field, value);
        }
    }
}

impl Delivery for Machine {
    fn route(&self, guest: GuestId, target: Target) -> Result<HostRoute, Status> {
        if self.fails() {
            return Err(Status::NoFreeVector);
        }
        let mut inner = self.inner();
        let destination = u32::from(guest.0) << 16 | target.apic_id;
        let route = HostRoute::Remapped { vector: target.vector, destination };
        if inner.routes.len() == inner.vectors && !inner.routes.contains_key(&route) {
            return Err(Status::NoFreeVector);
        }
        inner.routes.entry(route).or_insert(((guest, target.apic_id, target.vector), 0)).1 += 1;
        drop(inner);
        self.done(Op::Route(target));
        Ok(route)
    }

    fn unroute(&self, guest: GuestId, target: Target, route: HostRoute) {
        if route == NOWHERE {
            return;
        }
        let mut inner = self.inner();
        let (route_of, uses) = inner.routes.get_mut(&route).expect("a route that is not in use");
        assert_eq!(*route_of, (guest, target.apic_id, target.vector));
        *uses -= 1;
        if *uses == 0 {
            inner.routes.remove(&route);
            let held = inner.entries.iter().any(|entry| entry.maybe.contains(&Some(route)));
            assert!(!held, "an entry or the cache still has a route that is given back");
        }
        drop(inner);
        self.done(Op::Unroute(target));
    }

    fn nowhere(&self) -> HostRoute {
        NOWHERE
    }

    fn deliver(&self, guest: GuestId, target: Target) {
        self.done(Op::Deliver(guest, target));
    }
}
