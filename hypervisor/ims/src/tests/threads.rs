//! Several virtual processors at once: threads that write and call as they like. The machine checks its invariants at every single
//! operation of each of them.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    thread,
};

use super::*;
use crate::{device::Bank, slot::OPAQUE_ADDRESS};

const THREADS: u16 = 4;
/// Operations of each thread: 100,000 altogether.
const OPERATIONS: u32 = 25_000;
/// How often they all rest, so that what came of it can be looked at.
const RESTS: u16 = 25;
/// Slots of the interrupt message store: few, so that the checks are quick and slots run out.
const SLOTS: u32 = 24;
/// Slots of the MSI-X table that each thread has for itself.
const OWN: u16 = 2;

/// Numbers that are the same in each run (xorshift, 64 bits).
struct Dice(u64);

impl Dice {
    fn of(thread: u16) -> Self {
        Self(0x9e37_79b9_7f4a_7c15 ^ u64::from(thread) << 32)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }

    fn target(&mut self) -> Target {
        target(PROCESSORS[self.below(3) as usize], 0x40 + self.below(8) as u8)
    }
}

fn bench() -> Bench {
    bench_with(64, 64)
}

/// On a machine with so many entries and vectors.
fn bench_with(entries: u32, vectors: usize) -> Bench {
    let service = Service::new(Machine::new(entries, vectors));
    let device = DeviceSpec { ims: Some(store(0x104_0000, SLOTS)), ..function(1) };
    for store in [device.msix, device.ims].into_iter().flatten() {
        service.ports().plug(store, device.requester, GuestId(1), &PROCESSORS);
    }
    // As many processors as there are threads, since each brings a batch.
    let apic_ids = [&PROCESSORS[..], &[7]].concat();
    let spec = GuestSpec { guest: GuestId(1), apic_ids, hypercalls: true, devices: vec![device] };
    let domain = service.attach(spec).unwrap();
    domain.enable(hcall_abi::VERSION_MINOR);
    Bench { service, domain }
}

/// What a thread knows of its own slots. Nobody else touches them, but all share entries, routes and the list of free slots.
struct Player<'a> {
    bench: &'a Bench,
    dice: Dice,
    number: u16,
    /// Its slots of the interrupt message store: where they go, and whether they are masked, if they are mapped.
    held: HashMap<SlotHandle, Option<(Target, bool)>>,
    /// Its slots of the MSI-X table: what they send while they are unmasked.
    written: [Option<Target>; OWN as usize],
}

impl<'a> Player<'a> {
    fn new(bench: &'a Bench, number: u16) -> Self {
        Self { bench, dice: Dice::of(number), number, held: HashMap::new(), written: [None; OWN as usize] }
    }

    fn any_handle(&mut self) -> Option<SlotHandle> {
        let mut handles: Vec<_> = self.held.keys().copied().collect();
        handles.sort_by_key(|handle| handle.bits());
        (!handles.is_empty()).then(|| handles[self.dice.below(handles.len() as u64) as usize])
    }

    fn step(&mut self) {
        match (self.dice.below(8), self.any_handle()) {
            (0, _) | (_, None) => self.alloc(),
            (1, Some(handle)) => {
                self.bench.on(Call::Free, handle).unwrap();
                self.held.remove(&handle);
                assert_eq!(self.bench.on(Call::Mask, handle), Err(Status::StaleHandle));
            }
            (2, Some(handle)) => {
                self.bench.on(Call::Unmap, handle).unwrap();
                self.held.insert(handle, None);
            }
            (3, Some(handle)) => self.affinity(handle),
            (4, Some(handle)) => self.mask(handle),
            (5, _) => self.write(),
            (_, Some(_)) => self.map(),
        }
    }

    fn alloc(&mut self) {
        if let Ok(handle) = self.bench.call(Call::Alloc, [DEVICE.0.into(), 0, 0, 0]) {
            let handle = SlotHandle::from_register(handle).unwrap();
            assert!(self.held.keys().all(|other| other.index() != handle.index()), "a slot that is taken");
            self.held.insert(handle, None);
        }
    }

    fn affinity(&mut self, handle: SlotHandle) {
        let target = self.dice.target();
        let done = self.bench.retarget(handle, target);
        match self.held.get_mut(&handle).unwrap() {
            Some((now, _)) => {
                assert_eq!(done, Ok(0));
                *now = target;
            }
            None => assert_eq!(done, Err(Status::NotMapped)),
        }
    }

    /// By a call or by a write.
    fn mask(&mut self, handle: SlotHandle) {
        let (masked, by_call) = (self.dice.below(2) == 1, self.dice.below(2) == 1);
        let Some((_, now)) = self.held.get_mut(&handle).unwrap() else { return };
        *now = masked;
        if by_call {
            self.bench.on(if masked { Call::Mask } else { Call::Unmask }, handle).unwrap();
        } else {
            self.bench.poke(handle.index(), Field::Control, masked.into()).unwrap();
        }
    }

    /// All own slots in one batch; those that are mapped otherwise exist.
    fn map(&mut self) {
        let requests: Vec<_> = self
            .held
            .keys()
            .map(|&handle| MapRequest { handle, target: self.dice.target(), unmask: true, cookie: 7 })
            .collect();
        let (done, replies) = self.bench.map(&requests);
        let good = replies.iter().filter(|reply| reply.is_ok()).count();
        assert_eq!(done, Ok(good as u64));
        for (request, reply) in requests.iter().zip(replies) {
            let slot = self.held.get_mut(&request.handle).unwrap();
            let exists = slot.is_some_and(|(target, _)| target != request.target);
            assert_eq!(reply.err(), exists.then_some(Status::Exists));
            if !exists {
                *slot = Some((request.target, false));
            }
        }
    }

    /// A message into a slot of the MSI-X table, or zeros.
    fn write(&mut self) {
        let own = self.dice.below(OWN.into());
        let slot = self.number * OWN + own as u16;
        let target = (self.dice.below(3) != 0).then(|| self.dice.target());
        let base = Field::AddressLo.offset(slot);
        let put = |at, value| self.bench.write(StoreName::Msix, base + at, 8, value).unwrap();
        put(8, 1 << 32);
        put(0, target.map_or(0, |target| (ADDRESS | target.apic_id << 12).into()));
        put(8, target.map_or(1 << 32, |target| target.vector.into()));
        self.written[own as usize] = target;
    }

    /// Each own slot sends what it should.
    fn check(&self) {
        let machine = self.bench.machine();
        let ims = store(0x104_0000, SLOTS);
        for (handle, mapped) in &self.held {
            let expected = mapped.and_then(|(target, masked)| (!masked).then_some(target));
            assert_eq!(machine.fire(&ims, handle.index()), expected, "{handle:?}");
        }
        for (slot, expected) in (self.number * OWN..).zip(self.written) {
            assert_eq!(machine.fire(&self.bench.spec(StoreName::Msix), slot), expected, "{slot}");
        }
    }
}

#[test]
fn several_processors_with_their_own_slots_do_not_notice_each_other() {
    let bench = bench();
    thread::scope(|scope| {
        for number in 0..THREADS {
            let bench = &bench;
            scope.spawn(move || {
                let mut player = Player::new(bench, number);
                for _ in 0..OPERATIONS {
                    player.step();
                    player.check();
                }
            });
        }
    });
    bench.service.detach(&bench.domain);
    assert_eq!((bench.machine().used(), bench.service.counters().live), ((0, 0), 0));
}

/// Anything at all, to any slot, with resets of the device in between.
fn play_foul(bench: &Bench, handles: &std::sync::Mutex<Vec<SlotHandle>>, dice: &mut Dice) {
    let pick = |dice: &mut Dice| {
        let handles = handles.lock().unwrap();
        let n = dice.below(handles.len().max(1) as u64) as usize;
        handles.get(n).copied().unwrap_or(SlotHandle::from_bits(0x1_0000).unwrap())
    };
    match dice.below(20) {
        0 | 1 => {
            if let Ok(handle) = bench.call(Call::Alloc, [DEVICE.0.into(), 0, 0, 0]) {
                let mut handles = handles.lock().unwrap();
                let at = dice.below(8) as usize;
                if at < handles.len() {
                    handles.remove(at);
                }
                handles.push(SlotHandle::from_register(handle).unwrap());
            }
        }
        2..5 => {
            let request =
                |_| MapRequest { handle: pick(dice), target: dice.target(), unmask: dice.below(2) == 1, cookie: 7 };
            let requests: Vec<_> = (0..4).map(request).collect();
            let _ = bench.map(&requests);
        }
        5..7 => {
            let (handle, target) = (pick(dice), dice.target());
            let _ = bench.retarget(handle, target);
        }
        7..11 => {
            let call = [Call::Free, Call::Unmap, Call::Mask, Call::Unmask][dice.below(4) as usize];
            let _ = bench.on(call, pick(dice));
        }
        11..13 => {
            let slot = dice.below(6) as u16;
            let _ = bench.program(slot, ADDRESS, 0x40 + dice.below(4) as u32);
            let _ = bench.poke(slot, Field::Control, dice.below(2) as u32);
        }
        13..15 => {
            let handle = pick(dice);
            let _ = bench.program(handle.index(), OPAQUE_ADDRESS, handle.bits());
        }
        15 => {
            let target = dice.target();
            bench.service.throttle(&bench.domain, target);
            bench.service.unthrottle(&bench.domain, target, dice.below(2) == 1, |_| {});
        }
        16 => {
            let pasid = [0, 1 << 31 | 0x101, 1 << 31 | 0x102][dice.below(3) as usize];
            let _ = bench.call(Call::SetAux, [DEVICE.0.into(), pick(dice).bits().into(), pasid, 0]);
        }
        17 => {
            let mut page = [0; 4096];
            for place in page.as_chunks_mut::<4>().0.iter_mut().take(5) {
                *place = pick(dice).bits().to_le_bytes();
            }
            let _ = bench.call_with(Call::FreeMany, [DEVICE.0.into(), PAGE.as_u64(), 5, 0], &mut page);
        }
        18 if dice.below(8) == 0 => {
            let _ = bench.call(Call::FreeGroup, [DEVICE.0.into(), 0, 0, 0]);
        }
        _ if dice.below(64) == 0 => bench.service.device_reset(&bench.domain, DEVICE).unwrap(),
        _ if dice.below(64) == 0 => {
            bench.service.function_reset(&bench.domain, DEVICE).unwrap();
            // Others have written meanwhile.
            bench.service.function_ready(&bench.domain, DEVICE).unwrap();
        }
        _ => {
            // Faults are attributed while all this goes on.
            if let Some(owner) = bench.service.lookup(EntryIndex(dice.below(64) as u32)) {
                assert_eq!(owner.device, DEVICE);
            }
        }
    }
}

/// Whether a slot sends its message: if it does, or does not, so it is shown.
fn sends_as_shown(bench: &Bench, slot: u16) -> bool {
    for (processor, vector) in PROCESSORS.into_iter().flat_map(|processor| (0x40..0x48).map(move |v| (processor, v))) {
        bench.service.unthrottle(&bench.domain, target(processor, vector), false, |_| {});
    }
    let spec = store(0x104_0000, SLOTS);
    let ([address, _, data, ctrl], fires) = (bench.machine().shadow(&spec, slot), bench.machine().fire(&spec, slot));
    let handle = SlotHandle::from_bits(data).ok().filter(|handle| address == OPAQUE_ADDRESS && handle.index() == slot);
    let mapped = handle.is_some_and(|handle| bench.retarget(handle, target(0, 0x40)).is_ok());
    let raw = address & 0xffff_0fff == ADDRESS && bench.poke(slot, Field::Data, data).is_ok();
    assert_eq!(fires.is_some(), ctrl & 1 == 0 && (mapped || raw), "slot {slot}: {address:#x} {data:#x} {ctrl:#x}");
    fires.is_some()
}

#[test]
fn processors_that_meet_in_every_slot_leave_nothing_unsafe_and_nothing_behind() {
    let bench = bench();
    let handles = std::sync::Mutex::new(Vec::new());
    let mut sending = 0;
    for round in 0..RESTS {
        thread::scope(|scope| {
            for number in 0..THREADS {
                let (bench, handles) = (&bench, &handles);
                scope.spawn(move || {
                    let mut dice = Dice::of(round * THREADS + number);
                    (0..OPERATIONS / 4 / u32::from(RESTS)).for_each(|_| play_foul(bench, handles, &mut dice));
                });
            }
        });
        let info = bench.service.counters();
        assert_eq!(info.live as usize, bench.machine().used().0, "an entry is lost");
        sending += (0..SLOTS as u16).filter(|&slot| sends_as_shown(&bench, slot)).count();
    }
    assert!(sending > usize::from(RESTS));
    bench.service.detach(&bench.domain);
    assert_eq!((bench.machine().used(), bench.service.counters().live), ((0, 0), 0));
    assert_eq!(bench.call(Call::Alloc, [DEVICE.0.into(), 0, 0, 0]), Err(Status::NoSuchDevice));
}

#[test]
fn processors_that_meet_while_all_runs_out_and_fails_leave_nothing_behind() {
    // Fewer of each than slots.
    let bench = bench_with(12, 9);
    let handles = std::sync::Mutex::new(Vec::new());
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut dice = Dice::of(THREADS);
            while !done.load(SeqCst) {
                match dice.below(64) {
                    0 => bench.machine().silence(),
                    1..8 => drop(bench.machine().mend()),
                    _ => bench.machine().fail(dice.below(16) as usize, 1 + dice.below(4) as usize),
                }
                thread::yield_now();
            }
        });
        let players = [0, 1, 2, 3].map(|number| {
            let (bench, handles) = (&bench, &handles);
            scope.spawn(move || {
                let mut dice = Dice::of(number);
                (0..OPERATIONS / 8).for_each(|_| play_foul(bench, handles, &mut dice));
            })
        });
        let ends = players.map(|player| player.join());
        done.store(true, SeqCst);
        ends.into_iter().for_each(|end| end.unwrap());
    });
    bench.machine().mend();
    assert_eq!(bench.service.reclaim(), 0);
    assert_eq!(bench.service.counters().live as usize, bench.machine().used().0, "an entry is lost");
    bench.service.detach(&bench.domain);
    assert_eq!((bench.machine().used(), bench.service.counters().live), ((0, 0), 0));
}

#[test]
fn a_slot_is_given_to_one_at_a_time() {
    let bank = Bank::new(3);
    let taken = [const { AtomicBool::new(false) }; 3];
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for _ in 0..4 * OPERATIONS {
                    let Ok(handle) = bank.allocate(0) else { continue };
                    let taken = &taken[usize::from(handle.index())];
                    assert!(!taken.swap(true, SeqCst), "it is somebody's");
                    taken.store(false, SeqCst);
                    let mut slot = bank.lock_allocated(handle).unwrap();
                    slot.reset();
                    bank.free.lock().put(handle.index());
                }
            });
        }
    });
    assert_eq!(bank.free.lock().count(), 3);
}

/// Memory of a guest whose other virtual processor does all it can to a slot while a batch that maps it is between its flush and its end.
struct Meddler<'a>(&'a Bench, SlotHandle);

impl CallingGuest for Meddler<'_> {
    fn read(&self, _: Gpa, into: &mut [u8]) -> Result<(), Status> {
        let item = MapRequest { handle: self.1, target: target(1, 0x40), unmask: true, cookie: 7 };
        into.copy_from_slice(&item.to_bytes());
        Ok(())
    }

    fn write(&self, _: Gpa, _: &[u8]) -> Result<(), Status> {
        let &Self(bench, handle) = self;
        for call in [Call::Mask, Call::Unmask, Call::Unmap, Call::Free] {
            assert_eq!(bench.on(call, handle), Err(Status::NotMapped), "{call:?}");
        }
        assert_eq!(bench.retarget(handle, target(0, 0x41)), Err(Status::NotMapped));
        let again = MapRequest { handle, target: target(1, 0x40), unmask: true, cookie: 7 };
        assert_eq!(bench.map_one(again), Err(Status::Exists));
        assert_eq!(bench.program(handle.index(), OPAQUE_ADDRESS, handle.bits()), Err(Status::NotMapped));
        assert_eq!(bench.fire(handle.index()), None);
        Ok(())
    }
}

#[test]
fn a_slot_that_is_being_mapped_is_left_alone_by_everyone_else() {
    let bench = bench();
    let handle = bench.alloc();
    let args = [DEVICE.0.into(), PAGE.as_u64(), 1, ItemLayout::V1.0];
    let done = bench.service.hypercall(&bench.domain, Call::Map.number(CALL_BASE), args, &Meddler(&bench, handle));
    assert_eq!(result_from_rax(done), Ok(1));
    assert_eq!(bench.machine().fire(&store(0x104_0000, SLOTS), handle.index()), Some(target(1, 0x40)));
}
