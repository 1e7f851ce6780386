//! Processors that do not keep out of each other's way: all of them write, map, re-target and free the same slots, reset the device, and
//! interrupt, stop and start each other. Nothing has to come of it but that the hypervisor lives and gets everything back.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst};

use guests::bare::assigned::{AssignedDsa, hypercalls};
use guests::bare::dma::DmaBuffer;
use guests::bare::lock::Lock;
use guests::bare::{Guest, apic, idle, interrupts, profile, smp};
use guests::dsa::Descriptor;
use guests::guest_shim::hcall_abi::{
    Call, DeviceId, ItemLayout, MapRequest, SlotHandle, Status, Target, result_from_rax,
};
use guests::guest_shim::store::{Field, Store};
use guests::guest_shim::vmcall::Vmcall;
use guests::guest_shim::{BatchPage, Hypercalls, Transport};
use guests::random::Random;
use guests::{command_line, println};

/// Slots that all fight for.
const SLOTS: u64 = 4;
/// Ticks that the last processor gives the others between two restarts.
const BREATH: u64 = 20_000;
/// Ticks in which all processors have been started.
const LIMIT: u64 = 1_000_000_000;

static DEVICE: Lock<Option<AssignedDsa>> = Lock::new(None);
/// All have been started once. Before that nothing fires: see [`profile`].
static GO: AtomicBool = AtomicBool::new(false);
static STOP: AtomicBool = AtomicBool::new(false);
static ROUNDS: AtomicUsize = AtomicUsize::new(0);
/// Items of batches that succeeded.
static MAPPED: AtomicUsize = AtomicUsize::new(0);
/// Where all make their batches.
static PAGE: DmaBuffer<4096> = DmaBuffer::new();
/// Where all have handles written. As items of a batch they would name vectors that are the processor's own for exceptions.
static TAKEN: DmaBuffer<4096> = DmaBuffer::new();
/// Handles that were given out last.
static HANDLES: [AtomicU32; 8] = [const { AtomicU32::new(0) }; 8];

/// `rounds` operations of the first processor, and as many of the others as they get done meanwhile.
pub fn run(guest: &Guest, cpus: usize, rounds: u32) -> Result<(), &'static str> {
    *DEVICE.lock() = Some(AssignedDsa::start(guest).map_err(|_| "no device to work with")?);
    interrupts::set_handler(|_| {});
    for n in 1..cpus {
        smp::start(n, work);
    }
    GO.store(true, SeqCst);
    let calls = hypercalls().ok_or("no hypercall domain")?;
    let mut random = Random::new(command_line::number(guest.command_line, "seed").unwrap_or(99).into());
    for round in 0..rounds {
        operate(&mut random, &calls);
        if round % 64 == 0 && cpus > 1 {
            disturb(&mut random, cpus);
        }
    }
    STOP.store(true, SeqCst);
    let mapped = MAPPED.load(SeqCst);
    println!("smp: {rounds} rounds, and {} of the others; {mapped} items of batches", ROUNDS.load(SeqCst));
    if mapped != 0 { Ok(()) } else { Err("no batch maps anything") }
}

fn work(number: usize) {
    idle::enable_interrupts();
    idle::poll_until(LIMIT, || GO.load(SeqCst));
    let mut random = Random::new((number + ROUNDS.load(SeqCst)) as u64);
    let Some(calls) = hypercalls() else { return };
    while !STOP.load(SeqCst) {
        operate(&mut random, &calls);
        ROUNDS.fetch_add(1, SeqCst);
    }
}

/// Sends something to another processor. One that was stopped in the middle of something is started anew, but not where interrupts find
/// it before it can take any, in real mode ([`profile`]).
fn disturb(random: &mut Random, cpus: usize) {
    let to = 1 + (random.next() % (cpus as u64 - 1)) as u32;
    match random.next() % if profile::is_posted() { 2 } else { 4 } {
        0 => apic::send(to, apic::NMI),
        1 => apic::send(to, apic::FIXED | apic::TO_OTHERS | (0x40 + random.next() % 64)),
        2 => apic::send(to, apic::INIT),
        _ => {
            smp::start(to as usize, work);
        }
    }
    idle::linger(BREATH);
}

/// The device without its lock: whoever holds that may have been stopped for good.
fn device() -> AssignedDsa {
    // SAFETY: the value was stored before any other processor was started, and nobody changes it.
    unsafe { DEVICE.peek() }.expect("it was started")
}

fn operate(random: &mut Random, calls: &Hypercalls<Vmcall>) {
    let mut device = device();
    let id = device.id();
    let mut store = device.store();
    let handle = any_handle(random);
    let slot = if random.next().is_multiple_of(2) { handle.index() } else { (random.next() % SLOTS) as u16 };
    let target = any_target(random);
    match random.next() % 20 {
        0 => store.write(slot, Field::AddressLo, apic::message_address(target.apic_id)),
        1 => store.write(slot, Field::AddressHi, 0),
        2 | 3 => store.write(slot, Field::Data, target.vector.into()),
        4 | 5 => store.write(slot, Field::Control, random.next() as u32 & 1),
        6 => remember(random, calls.alloc(id, 0)),
        7 => drop(calls.free(id, handle)),
        8 => drop(calls.mask(id, handle)),
        9 => drop(calls.unmask(id, handle)),
        10 | 11 => drop(calls.set_affinity(id, handle, target)),
        12 => drop(calls.unmap(id, handle)),
        13 if random.next().is_multiple_of(64) => drop(device.restart()),
        13 if random.next().is_multiple_of(64) => drop(calls.free_group(id, 0)),
        14..16 => map(random, calls, id),
        16 => many(random, calls, id),
        _ => device.portals[0].submit(&Descriptor::noop(0, slot)),
    }
}

fn any_target(random: &mut Random) -> Target {
    Target { apic_id: (random.next() % 5) as u32, vector: 0x30 + random.next() as u8 % 0x80 }
}

/// One of the handles that were given out last, to whomever, or one that perhaps was.
fn any_handle(random: &mut Random) -> SlotHandle {
    let bits = HANDLES[random.next() as usize % HANDLES.len()].load(SeqCst);
    let guess = SlotHandle::new((random.next() % SLOTS) as u16, core::num::NonZeroU16::MIN);
    SlotHandle::from_bits(bits).unwrap_or(guess)
}

fn remember(random: &mut Random, handle: Result<SlotHandle, Status>) {
    if let Ok(handle) = handle {
        HANDLES[random.next() as usize % HANDLES.len()].store(handle.bits(), SeqCst);
    }
}

/// Some items of the page that all have, and call it a batch: others write there before, meanwhile, and after.
fn map(random: &mut Random, calls: &Hypercalls<Vmcall>, id: DeviceId) {
    let at = random.next() as usize % BatchPage::ITEMS;
    let target = any_target(random);
    for n in at..(at + 12).min(BatchPage::ITEMS) {
        // Most are for one processor.
        let target = if random.next().is_multiple_of(4) { any_target(random) } else { target };
        let (handle, unmask) = (any_handle(random), !random.next().is_multiple_of(4));
        let item = MapRequest { handle, target, unmask, cookie: random.next() % 2 }.to_bytes();
        for (word, bytes) in item.as_chunks::<8>().0.iter().enumerate() {
            PAGE.write(n * MapRequest::SIZE + word * 8, u64::from_le_bytes(*bytes));
        }
    }
    let first = if random.next().is_multiple_of(8) { 0 } else { at };
    let number = BatchPage::ITEMS.min(at + 12) - first;
    let page = PAGE.address() + (first * MapRequest::SIZE) as u64;
    let mapped = raw(calls, Call::Map, [id.0.into(), page, number as u64, ItemLayout::V1.0]);
    MAPPED.fetch_add(mapped.unwrap_or(0) as usize, SeqCst);
}

/// Takes several slots at a time, or frees what one of the pages says.
fn many(random: &mut Random, calls: &Hypercalls<Vmcall>, id: DeviceId) {
    let (page, number) = (TAKEN.address(), 1 + random.next() % 8);
    match random.next() % 4 {
        0 => drop(raw(calls, Call::FreeMany, [id.0.into(), PAGE.address(), 4 * number, 0])),
        1 => drop(raw(calls, Call::FreeMany, [id.0.into(), page, number, 0])),
        _ => {
            if let Ok(1..) = raw(calls, Call::AllocMany, [id.0.into(), page, number << 32 | 1, 0]) {
                remember(random, SlotHandle::from_bits(TAKEN.read(0) as u32));
            }
        }
    }
}

fn raw(calls: &Hypercalls<Vmcall>, call: Call, args: [u64; 4]) -> Result<u64, Status> {
    // SAFETY: the interface was found, and the guest runs at CPL 0.
    let transport = unsafe { Vmcall::new() };
    result_from_rax(transport.call(calls.interface().number(call), args))
}
