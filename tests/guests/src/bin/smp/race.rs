//! Processors that do not keep out of each other's way: all of them write, map, re-target and free the same slots, reset the device, and
//! interrupt, stop and start each other. Nothing has to come of it but that the hypervisor lives and gets everything back.

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use guests::bare::assigned::{AssignedDsa, hypercalls};
use guests::bare::lock::Lock;
use guests::bare::{Guest, apic, idle, interrupts, smp};
use guests::dsa::Descriptor;
use guests::guest_shim::Hypercalls;
use guests::guest_shim::hcall_abi::{SlotHandle, Target};
use guests::guest_shim::store::{Field, Store};
use guests::guest_shim::vmcall::Vmcall;
use guests::println;
use guests::random::Random;

/// Slots that all fight for.
const SLOTS: u64 = 4;
/// Ticks that the last processor gives the others between two restarts.
const BREATH: u64 = 20_000;

static DEVICE: Lock<Option<AssignedDsa>> = Lock::new(None);
static STOP: AtomicBool = AtomicBool::new(false);
static ROUNDS: AtomicUsize = AtomicUsize::new(0);

/// `rounds` operations of the first processor, and as many of the others as they get done meanwhile.
pub fn run(guest: &Guest, cpus: usize, rounds: u32) -> Result<(), &'static str> {
    *DEVICE.lock() = Some(AssignedDsa::start(guest).map_err(|_| "no device to work with")?);
    interrupts::set_handler(|_| {});
    for n in 1..cpus {
        smp::start(n, work);
    }
    let calls = hypercalls().ok_or("no hypercall domain")?;
    let mut random = Random::new(99);
    for round in 0..rounds {
        operate(&mut random, &calls);
        if round % 64 == 0 && cpus > 1 {
            disturb(&mut random, cpus);
        }
    }
    STOP.store(true, SeqCst);
    println!("smp: {rounds} rounds, and {} of the others", ROUNDS.load(SeqCst));
    Ok(())
}

fn work(number: usize) {
    idle::enable_interrupts();
    let mut random = Random::new((number + ROUNDS.load(SeqCst)) as u64);
    let Some(calls) = hypercalls() else { return };
    while !STOP.load(SeqCst) {
        operate(&mut random, &calls);
        ROUNDS.fetch_add(1, SeqCst);
    }
}

/// Sends something to another processor. One that was stopped in the middle of something is started anew.
fn disturb(random: &mut Random, cpus: usize) {
    let to = 1 + (random.next() % (cpus as u64 - 1)) as u32;
    match random.next() % 4 {
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
    let slot = (random.next() % SLOTS) as u16;
    let generation = core::num::NonZeroU16::new(random.next() as u16 % 8 + 1).expect("it is not 0");
    let handle = SlotHandle::new(slot, generation);
    let target = Target { apic_id: (random.next() % 5) as u32, vector: 0x30 + random.next() as u8 % 0x80 };
    match random.next() % 16 {
        0 => store.write(slot, Field::AddressLo, 0xfee0_0000 | target.apic_id << 12),
        1 => store.write(slot, Field::AddressHi, 0),
        2 | 3 => store.write(slot, Field::Data, target.vector.into()),
        4 | 5 => store.write(slot, Field::Control, random.next() as u32 & 1),
        6 => drop(calls.alloc(id, 0)),
        7 => drop(calls.free(id, handle)),
        8 => drop(calls.mask(id, handle)),
        9 => drop(calls.unmask(id, handle)),
        10 | 11 => drop(calls.set_affinity(id, handle, target)),
        12 => drop(calls.unmap(id, handle)),
        13 if random.next().is_multiple_of(64) => drop(device.restart()),
        _ => device.portals[0].submit(&Descriptor::noop(0, slot)),
    }
}
