//! Hypercalls that are wrong: attacks 5, 6 and 27.

use guests::bare::{apic, idle};
use guests::guest_shim::hcall_abi::{
    Call, DeviceInfo, ItemLayout, LifeCall, MapReply, MapRequest, SlotHandle, SlotInfo, Status, Target, result_from_rax,
};
use guests::guest_shim::vmcall::Vmcall;
use guests::guest_shim::{BatchPage, Hypercalls, Transport};
use guests::random::Random;

use crate::{Attacker, GOOD_SLOT, GOOD_VECTOR, PAGE, TICKS, mode32};

/// Calls with random numbers and arguments.
const RANDOM_CALLS: usize = 1500;
/// An address where the guest has no memory.
const NO_MEMORY: u64 = 0x70_0000_0000;
const V1: u64 = ItemLayout::V1.0;

/// What the calls are made with.
struct Caller<'a> {
    attacker: &'a mut Attacker,
    calls: &'a Hypercalls<Vmcall>,
    transport: Vmcall,
    device: u64,
}

/// Tries all of them.
pub fn all(attacker: &mut Attacker, calls: &Hypercalls<Vmcall>, mut page: BatchPage) {
    let device = u64::from(attacker.device.id().0);
    // SAFETY: the interface was found, and the guest runs at CPL 0.
    let transport = unsafe { Vmcall::new() };
    let mut caller = Caller { attacker, calls, transport, device };
    caller.numbers();
    caller.devices();
    caller.queries();
    caller.handles();
    caller.batches();
    caller.items();
    caller.all_vectors();
    caller.many();
    caller.slots();
    caller.guests_own();
    caller.random();
    caller.every_slot(&mut page);
    attacker.check_good();
}

impl Caller<'_> {
    /// Makes a call that must fail with `status`.
    fn fails(&mut self, call: Call, args: [u64; 4], status: Status) {
        self.gives(self.calls.interface().number(call), args, Err(status));
    }

    fn gives(&mut self, number: u64, args: [u64; 4], expected: Result<u64, Status>) {
        let got = result_from_rax(self.transport.call(number, args));
        self.attacker.cases += 1;
        if got != expected {
            self.attacker.error(format_args!("call {number:#x} with {args:x?}: {got:?}, not {expected:?}"));
        }
    }

    fn numbers(&mut self) {
        let base = u64::from(self.calls.interface().call_base);
        let beyond = base + (Call::ALL.len() + LifeCall::ALL.len()) as u64;
        for number in [0, 1, base - 1, beyond, base + 0xff, 1 << 32 | base, 1 << 63 | base, u64::MAX] {
            self.gives(number, [0; 4], Err(Status::UnknownCall));
        }
        // It does not manage guests.
        for call in LifeCall::ALL.into_iter().filter(|call| call.is_managers()) {
            self.gives(call.number(base as u32), [0; 4], Err(Status::UnknownCall));
        }
        self.gives(base, [0; 4], Ok(0));
        for n in 0..4 {
            let mut args = [0; 4];
            args[n] = 1 << (20 * n);
            self.fails(Call::Nop, args, Status::InvalidArgument);
        }
        self.attacker.cases += 1;
        let from_32_bit = mode32::vmcall(base as u32);
        if from_32_bit != Err(Status::NotPrivileged) {
            self.attacker.error(format_args!("a call from 32-bit code: {from_32_bit:?}"));
        }
    }

    fn devices(&mut self) {
        let device = self.device;
        self.gives(self.calls.interface().number(Call::Discover), [0; 4], Ok(device));
        self.fails(Call::Discover, [1, 0, 0, 0], Status::NoSuchDevice);
        self.fails(Call::Discover, [0, 1, 0, 0], Status::InvalidArgument);
        for call in [Call::Alloc, Call::QueryDevice, Call::Map] {
            let rest = match call {
                Call::Map => [PAGE.address(), 1, V1],
                Call::QueryDevice => [PAGE.address(), 0, 0],
                _ => [0; 3],
            };
            // Attack 5: a device that is not the guest's own.
            for foreign in [0, device ^ 1, device ^ 8, 0x1000 | device, 0xffff] {
                self.fails(call, [foreign, rest[0], rest[1], rest[2]], Status::NoSuchDevice);
            }
            for register in [0x2_0000 | device, 1 << 32 | device, u64::MAX] {
                self.fails(call, [register, rest[0], rest[1], rest[2]], Status::InvalidArgument);
            }
        }
        let groups = u64::from(self.calls.interface().limits.groups);
        for group in [groups, 0xffff_ffff, u64::MAX] {
            self.fails(Call::Alloc, [device, group, 0, 0], Status::InvalidArgument);
        }
        self.fails(Call::Alloc, [device, 0, 1, 0], Status::InvalidArgument);
    }

    fn queries(&mut self) {
        let (device, page) = (self.device, PAGE.address());
        put(0, &DeviceInfo::request());
        self.fails(Call::QueryDevice, [device, page, 1, 0], Status::InvalidArgument);
        self.fails(Call::QueryDevice, [device, page + 4096 - 32, 0, 0], Status::CrossesPage);
        for address in bad_addresses(self.attacker) {
            self.fails(Call::QueryDevice, [device, address, 0, 0], Status::BadAddress);
        }
        for (at, status) in [(0, Status::BadLayout), (4, Status::BadLayout), (8, Status::InvalidArgument)] {
            let mut request = DeviceInfo::request();
            request[at] ^= 0x40;
            put(0, &request);
            self.fails(Call::QueryDevice, [device, page, 0, 0], status);
        }
    }

    /// Takes a slot and names it wrongly.
    fn handles(&mut self) {
        let device = self.device;
        let Ok(handle) = self.calls.alloc(self.attacker.device.id(), 0) else {
            return self.attacker.error(format_args!("no slot to be had"));
        };
        let good = u64::from(handle.bits());
        let slots = u64::from(self.attacker.device.dsa.ims_slots());
        let target = Target { apic_id: apic::id(), vector: 0x40 }.to_register();
        for call in [Call::Unmap, Call::Mask, Call::Unmask, Call::SetAffinity, Call::Free] {
            let third = if call == Call::SetAffinity { target } else { 0 };
            for bits in [0, good & 0xffff, 1 << 32 | good, u64::MAX] {
                self.fails(call, [device, bits, third, 0], Status::InvalidArgument);
            }
            for stale in [good ^ 0x8000_0000, 0x0001_0000 | GOOD_SLOT as u64, 0x0001_0000 | (slots - 1)] {
                self.fails(call, [device, stale, third, 0], Status::StaleHandle);
            }
            if slots <= 0xffff {
                self.fails(call, [device, 0x0001_0000 | slots, third, 0], Status::NoSuchSlot);
            }
            self.fails(call, [device, good, third, 1], Status::InvalidArgument);
            self.fails(call, [device ^ 8, good, third, 0], Status::NoSuchDevice);
        }
        for call in [Call::Mask, Call::Unmask] {
            self.fails(call, [device, good, 0, 0], Status::NotMapped);
        }
        self.fails(Call::SetAffinity, [device, good, target, 0], Status::NotMapped);
        self.fails(Call::SetAffinity, [device, good, 15, 0], Status::BadVector);
        self.fails(Call::SetAffinity, [device, good, 0x140, 0], Status::InvalidArgument);
        let foreign = Target { apic_id: apic::id() + 1, vector: 0x40 }.to_register();
        self.fails(Call::SetAffinity, [device, good, foreign, 0], Status::BadTarget);
        self.gives(self.calls.interface().number(Call::Free), [device, good, 0, 0], Ok(0));
        self.fails(Call::Free, [device, good, 0, 0], Status::StaleHandle);
    }

    fn batches(&mut self) {
        let (device, page) = (self.device, PAGE.address());
        for layout in [0, 1, V1 + 1, V1 ^ 1 << 16, V1 | 1 << 32, u64::MAX] {
            self.fails(Call::Map, [device, page, 1, layout], Status::BadLayout);
        }
        for count in [0, BatchPage::ITEMS as u64 + 1, 1 << 32 | 1, 1 << 60, u64::MAX] {
            self.fails(Call::Map, [device, page, count, V1], Status::InvalidArgument);
        }
        for misaligned in [page + 1, page + 8, u64::MAX] {
            self.fails(Call::Map, [device, misaligned, 1, V1], Status::BadAddress);
        }
        self.fails(Call::Map, [device, page + 16, 256, V1], Status::CrossesPage);
        self.fails(Call::Map, [device, page + 4080, 2, V1], Status::CrossesPage);
        for address in bad_addresses(self.attacker) {
            self.fails(Call::Map, [device, address, 1, V1], Status::BadAddress);
        }
    }

    /// Items that are wrong in a batch whose registers are right.
    fn items(&mut self) {
        let Ok(handle) = self.calls.alloc(self.attacker.device.id(), 0) else {
            return self.attacker.error(format_args!("no slot to be had"));
        };
        let target = Target { apic_id: apic::id(), vector: 0x40 };
        let good = MapRequest { handle, target, unmask: false, cookie: 7 };
        let stale = SlotHandle::from_bits(handle.bits() ^ 0x8000_0000).unwrap_or(handle);
        let foreign = Target { apic_id: apic::id() + 1, ..target };
        let mut items = [
            (good.to_bytes(), Err(Status::InvalidArgument)),
            (good.to_bytes(), Err(Status::BadVector)),
            (MapRequest { handle: stale, ..good }.to_bytes(), Err(Status::StaleHandle)),
            (MapRequest { target: foreign, ..good }.to_bytes(), Err(Status::BadTarget)),
            ([0; 16], Err(Status::InvalidArgument)),
            ([0xff; 16], Err(Status::InvalidArgument)),
        ];
        items[0].0[7] = 2;
        items[1].0[6] = 15;
        for (n, (item, _)) in items.iter().enumerate() {
            put(n * 16, item);
        }
        let args = [self.device, PAGE.address(), items.len() as u64, V1];
        self.gives(self.calls.interface().number(Call::Map), args, Ok(0));
        for (n, (_, expected)) in items.iter().enumerate() {
            let reply = MapReply::from_bytes(&get(n * 16)).0;
            if reply.map(drop) != *expected {
                self.attacker.error(format_args!("item {n}: {reply:?}, not {expected:?}"));
            }
        }
        if self.calls.free(self.attacker.device.id(), handle).is_err() {
            self.attacker.error(format_args!("a slot is not taken back"));
        }
    }

    /// A batch that wants all vectors. Where the processor's run out in its middle, items behind that whose vector there is succeed. All
    /// comes back, so the next time there are as many.
    fn all_vectors(&mut self) {
        let (id, none) = (self.attacker.device.id(), SlotHandle::from_bits(1 << 16));
        let mut handles = [none; BatchPage::ITEMS];
        handles.fill_with(|| self.calls.alloc(id, 0));
        let first = self.map_all_vectors(&handles);
        let second = self.map_all_vectors(&handles);
        let least = if self.attacker.few_vectors { 100 } else { BatchPage::ITEMS };
        let most = if self.attacker.few_vectors { BatchPage::ITEMS - 1 } else { BatchPage::ITEMS };
        if first != second || !(least..=most).contains(&first) {
            self.attacker.error(format_args!("{first} slots were mapped, and then {second}"));
        }
        let freed = handles.into_iter().flatten().filter(|handle| self.calls.free(id, *handle).is_ok()).count();
        if freed != BatchPage::ITEMS {
            self.attacker.error(format_args!("{freed} slots are taken back"));
        }
        self.attacker.check_good();
    }

    /// Maps each slot to a vector of its own, but for every 16th: those have the good slot's. Unmaps them, and tells how many were mapped.
    fn map_all_vectors(&mut self, handles: &[Result<SlotHandle, Status>]) -> usize {
        self.attacker.cases += 1;
        let shares = |n: usize| n % 16 == 15;
        for (n, handle) in handles.iter().enumerate() {
            let vector = if shares(n) { GOOD_VECTOR } else { (16 + n - n / 16) as u8 };
            let target = Target { apic_id: apic::id(), vector };
            let Ok(handle) = *handle else { return 0 };
            put(n * 16, &MapRequest { handle, target, unmask: false, cookie: 0 }.to_bytes());
        }
        let args = [self.device, PAGE.address(), handles.len() as u64, V1];
        let done = result_from_rax(self.transport.call(self.calls.interface().number(Call::Map), args));
        let mut mapped = 0;
        for n in 0..handles.len() {
            match MapReply::from_bytes(&get(n * 16)).0 {
                Ok(_) => mapped += 1,
                Err(Status::NoFreeVector) if !shares(n) => {}
                other => self.attacker.error(format_args!("item {n}: {other:?}")),
            }
        }
        if done != Ok(mapped) {
            self.attacker.error(format_args!("{done:?} of a batch of which {mapped} succeeded"));
        }
        for handle in handles.iter().flatten() {
            if self.calls.unmap(self.attacker.device.id(), *handle).is_err() {
                self.attacker.error(format_args!("a slot is not unmapped"));
            }
        }
        // Vectors are free again when the processor has let everything in that waited.
        idle::linger(TICKS);
        mapped as usize
    }

    /// Calls that take many slots at a time.
    fn many(&mut self) {
        let (device, page) = (self.device, PAGE.address());
        for range in [0, 1, 1 << 32, 2 << 32 | 3, 1025 << 32 | 1, u64::MAX] {
            self.fails(Call::AllocMany, [device, page, range, 0], Status::InvalidArgument);
        }
        for count in [0, 1025, 1 << 32 | 1, u64::MAX] {
            self.fails(Call::FreeMany, [device, page, count, 0], Status::InvalidArgument);
        }
        for (call, one) in [(Call::AllocMany, 1 << 32 | 1), (Call::FreeMany, 1)] {
            for misaligned in [page + 1, page + 2, u64::MAX] {
                self.fails(call, [device, misaligned, one, 0], Status::BadAddress);
            }
            self.fails(
                call,
                [device, page + 4092, one + if call == Call::FreeMany { 1 } else { 1 << 32 }, 0],
                Status::CrossesPage,
            );
            for address in bad_addresses(self.attacker) {
                self.fails(call, [device, address, one, 0], Status::BadAddress);
            }
            self.fails(call, [device ^ 8, page, one, 0], Status::NoSuchDevice);
        }
        let groups = u64::from(self.calls.interface().limits.groups);
        self.fails(Call::AllocMany, [device, page, 1 << 32 | 1, groups], Status::InvalidArgument);
        self.fails(Call::FreeMany, [device, page, 1, 1], Status::InvalidArgument);
        self.fails(Call::FreeGroup, [device, groups, 0, 0], Status::InvalidArgument);
        self.fails(Call::FreeGroup, [device, 0, 1, 0], Status::InvalidArgument);
        self.frees_nonsense();
    }

    /// Handles that name nothing are answered one by one.
    fn frees_nonsense(&mut self) {
        put(0, &[0, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 1, 0]);
        self.gives(self.calls.interface().number(Call::FreeMany), [self.device, PAGE.address(), 4, 0], Ok(0));
        let codes = get(0);
        for (n, expected) in [Status::InvalidArgument, Status::InvalidArgument, Status::NoSuchSlot, Status::StaleHandle]
            .into_iter()
            .enumerate()
        {
            let code = i32::from_le_bytes([codes[4 * n], codes[4 * n + 1], codes[4 * n + 2], codes[4 * n + 3]]);
            if i64::from(code) != -(expected.code() as i64) {
                self.attacker.error(format_args!("handle {n} of nonsense: {code}, not {expected:?}"));
            }
        }
    }

    /// Calls that look at a slot, or set its PASID.
    fn slots(&mut self) {
        let (device, page) = (self.device, PAGE.address());
        let Ok(handle) = self.calls.alloc(self.attacker.device.id(), 0) else {
            return self.attacker.error(format_args!("no slot to be had"));
        };
        let good = u64::from(handle.bits());
        put(0, &SlotInfo::request());
        for call in [Call::QuerySlot, Call::SetAux] {
            let third = if call == Call::QuerySlot { page } else { 0 };
            self.fails(call, [device, good ^ 0x8000_0000, third, 0], Status::StaleHandle);
            self.fails(call, [device, good | 1 << 32, third, 0], Status::InvalidArgument);
            self.fails(call, [device, 0x0001_ffff, third, 0], Status::NoSuchSlot);
            self.fails(call, [device, good, third, 1], Status::InvalidArgument);
            self.fails(call, [device ^ 8, good, third, 0], Status::NoSuchDevice);
            self.fails(call, [device | 1 << 17, good, third, 0], Status::InvalidArgument);
        }
        for pasid in [1, 1 << 30, 1 << 31 | 1 << 20, 1 << 32, u64::MAX] {
            self.fails(Call::SetAux, [device, good, pasid, 0], Status::InvalidArgument);
        }
        for pasid in [0, 1, 0xf_ffff] {
            self.fails(Call::SetAux, [device, good, 1 << 31 | pasid, 0], Status::BadPasid);
        }
        self.fails(Call::QuerySlot, [device, good, page + 4096 - 63, 0], Status::CrossesPage);
        for address in bad_addresses(self.attacker) {
            self.fails(Call::QuerySlot, [device, good, address, 0], Status::BadAddress);
        }
        for (at, status) in [(0, Status::BadLayout), (4, Status::BadLayout), (8, Status::InvalidArgument)] {
            let mut request = SlotInfo::request();
            request[at] ^= 0x40;
            put(0, &request);
            self.fails(Call::QuerySlot, [device, good, page, 0], status);
        }
        self.gives(self.calls.interface().number(Call::Free), [device, good, 0, 0], Ok(0));
    }

    /// Enabling, faults, and stores of the guest's own.
    fn guests_own(&mut self) {
        let (device, page) = (self.device, PAGE.address());
        for version in [0, 1, 2 << 16, 0xffff_ffff] {
            self.fails(Call::Enable, [version, 0, 0, 0], Status::Unsupported);
        }
        self.fails(Call::Enable, [1 << 32 | 1 << 16, 0, 0, 0], Status::InvalidArgument);
        self.fails(Call::Enable, [1 << 16, 1, 0, 0], Status::InvalidArgument);
        for count in [0, 129, u64::MAX] {
            self.fails(Call::ReadFaults, [page, count, 0, 0], Status::InvalidArgument);
        }
        self.fails(Call::ReadFaults, [page + 16, 1, 0, 0], Status::BadAddress);
        self.fails(Call::ReadFaults, [page + 4064, 2, 0, 0], Status::CrossesPage);
        self.fails(Call::ReadFaults, [page, 1, 1, 0], Status::InvalidArgument);
        for address in bad_addresses(self.attacker) {
            self.fails(Call::ReadFaults, [address, 1, 0, 0], Status::BadAddress);
        }
        for slots in [0, 4097, 1 << 32 | 1, u64::MAX] {
            self.fails(Call::OpenQueue, [device, slots, 0, 0], Status::InvalidArgument);
        }
        self.fails(Call::SetPvEoi, [page, 0, 0, 0], Status::InvalidArgument);
        self.fails(Call::SetPvEoi, [page | 1, 1, 0, 0], Status::InvalidArgument);
        self.fails(Call::SetPvEoi, [(page + 2) | 1, 0, 0, 0], Status::BadAddress);
        for address in bad_addresses(self.attacker) {
            self.fails(Call::SetPvEoi, [address | 1, 0, 0, 0], Status::BadAddress);
        }
        self.fails(Call::OpenQueue, [device ^ 8, 1, 0, 0], Status::NoSuchDevice);
        self.fails(Call::OpenQueue, [device | 1 << 16, 1, 0, 0], Status::InvalidArgument);
        self.fails(Call::Alloc, [device | 1 << 16, 0, 0, 0], Status::NoFreeSlot);
        self.gives(self.calls.interface().number(Call::OpenQueue), [device, 2, 0, 0], Ok(0));
        self.fails(Call::OpenQueue, [device, 2, 0, 0], Status::Exists);
        for call in [Call::Mask, Call::Unmask] {
            self.fails(call, [device | 1 << 16, 0x1_0002, 0, 0], Status::NoSuchSlot);
            self.fails(call, [device | 1 << 16, 0x1_0001, 0, 0], Status::StaleHandle);
        }
    }

    /// Whatever the arguments are, an answer comes, and it is one of this version's.
    fn random(&mut self) {
        let mut random = Random::new(27 + self.attacker.seed);
        let base = u64::from(self.calls.interface().call_base);
        let addresses = bad_addresses(self.attacker);
        for _ in 0..RANDOM_CALLS {
            let number = base + random.next() % (Call::ALL.len() as u64 + 2);
            let mut args = [(); 4].map(|()| random.next() >> (random.next() % 64));
            if random.next().is_multiple_of(2) {
                args[0] = self.device;
            }
            // Answers go into the guest's memory: only the page is for that.
            let choice = random.next() as usize % (addresses.len() + 1);
            args[1] = addresses.get(choice).copied().unwrap_or(PAGE.address() + random.next() % 4096);
            let rax = self.transport.call(number, args);
            self.attacker.cases += 1;
            let status = (rax as i64).wrapping_neg();
            let known = (rax as i64) >= 0 || Status::ALL.iter().any(|known| known.code() as i64 == status);
            if !known {
                self.attacker.error(format_args!("call {number:#x} with {args:x?}: {rax:#x}"));
            }
        }
    }

    /// Takes every slot there is, and keeps them: the hypervisor has to take them back when the guest ends.
    fn every_slot(&mut self, page: &mut BatchPage) {
        let id = self.attacker.device.id();
        let free = self.calls.query(id, page).map_or(0, |info| info.free);
        let mut taken = 0;
        while taken < self.attacker.device.dsa.ims_slots() && self.calls.alloc(id, 0).is_ok() {
            taken += 1;
        }
        self.attacker.cases += 1;
        if taken != free {
            self.attacker.error(format_args!("{free} slots were said to be free, {taken} were"));
        }
        self.fails(Call::Alloc, [self.device, 0, 0, 0], Status::NoFreeSlot);
        let left = self.calls.query(id, page).map(|info| info.free);
        if left != Ok(0) {
            self.attacker.error(format_args!("{left:?} slots free when all are taken"));
        }
    }
}

/// Addresses that are not memory of the guest; all of them 16-byte aligned.
fn bad_addresses(attacker: &Attacker) -> [u64; 7] {
    [NO_MEMORY, 1 << 62, !0xfff, 0xfee0_0000, 0xfed9_0000, attacker.device.ims_address(), attacker.device.bar0_address]
}

/// Puts bytes into the page, at a multiple of 8.
fn put(at: usize, bytes: &[u8]) {
    let (words, _) = bytes.as_chunks();
    for (n, word) in words.iter().enumerate() {
        PAGE.write(at + n * 8, u64::from_le_bytes(*word));
    }
}

/// An item of the page.
fn get(at: usize) -> [u8; 16] {
    let words = u128::from(PAGE.read(at + 8)) << 64 | u128::from(PAGE.read(at));
    words.to_le_bytes()
}
