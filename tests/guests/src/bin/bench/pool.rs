//! The slots, and bare calls: no more instructions than a call needs.

use core::{arch::asm, ptr::NonNull};

use guests::bare::assigned::AssignedDsa;
use guests::bare::dma::DmaBuffer;
use guests::bare::take_once::TakeOnce;
use guests::bare::{apic, vector};
use guests::guest_shim::hcall_abi::{Call, DeviceId, ItemLayout, MapRequest, SlotHandle, Target, result_from_rax};
use guests::guest_shim::store::Field;
use guests::guest_shim::vmcall::Vmcall;
use guests::guest_shim::{Interface, Transport};

/// Items of a batch.
pub const BATCH: usize = 256;
/// Most slots of a store.
pub const MOST: usize = 16_128;
/// Most devices.
pub const DEVICES: usize = 4;

static PAGE: DmaBuffer<4096> = DmaBuffer::new();
static HANDLES: [TakeOnce<[Option<SlotHandle>; MOST]>; DEVICES] = [const { TakeOnce::new([None; MOST]) }; DEVICES];

/// Writes a dword of a store: the instruction of all stores that are timed. The hypervisor remembers decoded instructions by their
/// addresses, and those near a page's end cost more; one instruction, aligned, makes the figures the same wherever the guest's code lies.
///
/// # Safety
/// `at` is a dword of a mapped store, which is the caller's.
#[inline(never)]
pub unsafe fn store(at: NonNull<u32>, value: u32) {
    // SAFETY: as the caller says.
    unsafe {
        asm!(".p2align 5", "mov dword ptr [{at}], {value:e}", at = in(reg) at.as_ptr(), value = in(reg) value,
            options(nostack, preserves_flags))
    }
}

/// The vector of the `n`-th slot: as many slots as there are share it.
pub const fn shared_vector(n: usize) -> u8 {
    vector::FIRST + (n % 128) as u8
}

/// A vector that only one slot of 32 has, and none that has a shared one.
pub const fn own_vector(n: usize) -> u8 {
    vector::FIRST + 128 + (n % 32) as u8
}

/// The device's slots: those taken by calls, and the last ones, which are written.
pub struct Pool {
    interface: Interface,
    device: DeviceId,
    transport: Vmcall,
    store: NonNull<u32>,
    handles: &'static mut [Option<SlotHandle>; MOST],
    count: usize,
    apic_id: u32,
    /// Processors that slots go to.
    cpus: u32,
    /// Slots of the store.
    pub slots: usize,
    /// Calls that failed.
    pub errors: u32,
    /// Turns with each round: for what has to be different each time.
    pub turn: bool,
}

impl Pool {
    /// No slot is taken. `number` is the device's, below [`DEVICES`].
    pub fn new(interface: Interface, device: &AssignedDsa, number: usize) -> Self {
        Self {
            interface,
            device: device.id(),
            // SAFETY: the guest runs at CPL 0, and the interface was found.
            transport: unsafe { Vmcall::new() },
            store: device.ims().cast(),
            handles: HANDLES[number].take(),
            count: 0,
            apic_id: apic::id(),
            cpus: 1,
            slots: (device.dsa.ims_slots() as usize).min(MOST),
            errors: 0,
            turn: false,
        }
    }

    /// Makes a call.
    pub fn call(&mut self, call: Call, args: [u64; 4]) -> u64 {
        let result = self.transport.call(self.interface.number(call), args);
        self.errors += u32::from(result as i64 > -4096 && (result as i64) < 0);
        result
    }

    /// A call that names the `n`-th taken slot.
    pub fn on_slot(&mut self, call: Call, n: usize, last: u64) {
        let handle = self.handles[n].map_or(0, SlotHandle::bits);
        self.call(call, [self.device.0.into(), handle.into(), last, 0]);
    }

    /// A target as a call's argument: this processor and a vector.
    pub fn target(&self, vector: u8) -> u64 {
        Target { apic_id: self.apic_id, vector }.to_register()
    }

    /// Takes a slot and gives it back.
    pub fn alloc_and_free(&mut self) {
        let device = self.device.0.into();
        let handle = self.call(Call::Alloc, [device, 0, 0, 0]);
        self.call(Call::Free, [device, handle, 0, 0]);
    }

    /// The slot behind the `n`-th taken one.
    pub fn index(&self, n: usize) -> u16 {
        self.handles[n].map_or(0, SlotHandle::index)
    }

    /// The handle of the `n`-th taken slot.
    pub fn handle(&self, n: usize) -> Option<SlotHandle> {
        self.handles[n]
    }

    /// The data of a slot that is counted from the store's end.
    pub fn data(&self, from_end: usize) -> NonNull<u32> {
        assert!(from_end < self.slots);
        // SAFETY: the dword lies in the store (checked).
        unsafe { self.store.add((self.slots - 1 - from_end) * 4 + Field::Data as usize) }
    }

    /// The way to the hypervisor.
    pub const fn transport(&self) -> Vmcall {
        self.transport
    }

    /// Takes and maps slots until there are `count`, to the first `cpus` processors in turn.
    pub fn fill_to(&mut self, count: usize, cpus: usize) {
        self.cpus = cpus as u32;
        self.fill(count);
        self.cpus = 1;
    }

    /// Puts the items into the page that map the taken slots from `first` on to the vectors of their numbers.
    pub fn put_items(&mut self, first: usize, count: usize, vector: fn(usize) -> u8) {
        for n in 0..count {
            let Some(handle) = self.handles[first + n] else { continue };
            let apic_id = self.apic_id + (first + n) as u32 % self.cpus;
            let target = Target { apic_id, vector: vector(first + n) };
            let item = MapRequest { handle, target, unmask: true, cookie: n as u64 };
            let bytes = item.to_bytes();
            for (half, word) in bytes.as_chunks().0.iter().enumerate() {
                PAGE.write(n * MapRequest::SIZE + half * 8, u64::from_le_bytes(*word));
            }
        }
    }

    /// Maps the page's items, `count` from the `first` on.
    pub fn map_items(&mut self, first: usize, count: usize) {
        let at = PAGE.address() + (first * MapRequest::SIZE) as u64;
        let done = self.call(Call::Map, [self.device.0.into(), at, count as u64, ItemLayout::V1.0]);
        self.errors += u32::from(result_from_rax(done) != Ok(count as u64));
    }

    /// Takes and maps slots until there are `count`, or gives some back.
    pub fn fill(&mut self, count: usize) {
        while self.count > count {
            self.count -= 1;
            self.on_slot(Call::Free, self.count, 0);
        }
        while self.count < count {
            let (first, some) = (self.count, (count - self.count).min(BATCH));
            for n in first..first + some {
                let handle = self.call(Call::Alloc, [self.device.0.into(), 0, 0, 0]);
                self.handles[n] = SlotHandle::from_register(handle).ok();
            }
            self.put_items(first, some, shared_vector);
            self.map_items(0, some);
            self.count += some;
        }
    }

    /// Writes a dword of the store, with one instruction. Slots are counted from the store's end.
    pub fn write(&mut self, from_end: usize, field: Field, value: u32) {
        assert!(from_end < self.slots);
        let dword = (self.slots - 1 - from_end) * 4 + field as usize;
        // SAFETY: the dword lies in the store (checked), which is mapped; the last slots are nobody else's.
        unsafe { store(self.store.add(dword), value) }
    }

    /// Writes a message into a slot, and leaves its control as it is.
    pub fn write_message(&mut self, from_end: usize, vector: u8) {
        self.write(from_end, Field::AddressLo, apic::message_address(self.apic_id));
        self.write(from_end, Field::AddressHi, 0);
        self.write(from_end, Field::Data, vector.into());
    }

    /// Makes a slot as after reset: masked zeros.
    pub fn blank(&mut self, from_end: usize) {
        self.write(from_end, Field::Control, 1);
        for field in [Field::AddressLo, Field::AddressHi, Field::Data] {
            self.write(from_end, field, 0);
        }
    }
}
