//! The same work on one, two and four processors at a time: their total throughput, and the cost of an interrupt between them.
//!
//! A round's time is that of all processors' operations, so that a row says how much faster they are together.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst};

use guests::bare::assigned::{AssignedDsa, Records};
use guests::bare::lock::Lock;
use guests::bare::{apic, idle, interrupts, smp, vector};
use guests::dsa::{Completion, Descriptor};
use guests::guest_shim::hcall_abi::{Call, SlotHandle, Target};
use guests::guest_shim::vmcall::Vmcall;
use guests::guest_shim::{Interface, Transport};

use crate::bench::{Bench, Scenario, now, timed};
use crate::floor;
use crate::pool::{self, Pool};

/// Operations of a processor in a round.
const OPS: usize = 16;
/// Slots that interrupts come from: as many as descriptors may be under way.
const SLOTS: usize = 64;
/// Processors at work.
const COUNTS: [usize; 3] = [1, 2, 4];
/// Of an interrupt between processors, and how many are counted.
const IPI: u8 = vector::LAST;
const MARKED: usize = 16;

/// What the other processors do in a round.
#[derive(Clone, Copy)]
enum Job {
    Write,
    Retarget,
}

static JOB: AtomicUsize = AtomicUsize::new(0);
static ROUND: AtomicU32 = AtomicU32::new(0);
/// Processors that work in the round.
static WORKERS: AtomicUsize = AtomicUsize::new(0);
static DONE: AtomicUsize = AtomicUsize::new(0);
static TOOLS: [Lock<Option<Tools>>; smp::MOST] = [const { Lock::new(None) }; smp::MOST];
static HANDLED: [AtomicU32; smp::MOST] = [const { AtomicU32::new(0) }; smp::MOST];
static HANDLED_AT: AtomicU64 = AtomicU64::new(0);
static RECORDS: Records<{ SLOTS * Completion::SIZE as usize }> = Records::new();

/// A processor's own: a slot that it writes, and one that it re-targets.
struct Tools {
    data: NonNull<u32>,
    handle: SlotHandle,
    device: u64,
    interface: Interface,
    transport: Vmcall,
    number: usize,
    turn: usize,
}

// SAFETY: the slot is one processor's at a time, that of the lock's holder.
unsafe impl Send for Tools {}

impl Tools {
    fn work(&mut self, job: Job) {
        for _ in 0..OPS {
            self.turn ^= 1;
            let vector = vector::FIRST + 0x80 + (self.number * 2 + self.turn) as u8;
            match job {
                // SAFETY: the slot's data, mapped, and nobody else's.
                Job::Write => unsafe { pool::store(self.data, vector.into()) },
                Job::Retarget => {
                    let target = Target { apic_id: self.number as u32, vector }.to_register();
                    let call = self.interface.number(Call::SetAffinity);
                    self.transport.call(call, [self.device, self.handle.bits().into(), target, 0]);
                }
            }
        }
    }
}

fn handler(_vector: u8) {
    HANDLED_AT.store(now(), SeqCst);
    HANDLED[smp::number()].fetch_add(1, SeqCst);
}

fn handled() -> u32 {
    HANDLED.iter().map(|count| count.load(SeqCst)).sum()
}

/// Interrupts of the device that were handled.
pub fn handled_of_device() -> u32 {
    handled() - interrupts::count(IPI)
}

/// What every processor but the first does: it waits for a round, and never sleeps.
fn follow(number: usize) {
    idle::enable_interrupts();
    let mut seen = ROUND.load(SeqCst);
    loop {
        while ROUND.load(SeqCst) == seen {
            core::hint::spin_loop();
        }
        seen = ROUND.load(SeqCst);
        if number < WORKERS.load(SeqCst) {
            work(number);
        }
    }
}

fn work(number: usize) {
    let job = if JOB.load(SeqCst) == 0 { Job::Write } else { Job::Retarget };
    if let Some(tools) = TOOLS[number].lock().as_mut() {
        tools.work(job);
    }
    DONE.fetch_add(1, SeqCst);
}

/// One round of `workers` processors.
fn together(workers: usize) -> u64 {
    timed(|| {
        DONE.store(0, SeqCst);
        WORKERS.store(workers, SeqCst);
        ROUND.fetch_add(1, SeqCst);
        work(0);
        while DONE.load(SeqCst) != workers {
            core::hint::spin_loop();
        }
    })
}

/// On a guest with `cpus` processors.
pub fn measure(
    bench: &mut Bench,
    pool: &mut Pool,
    device: AssignedDsa,
    interface: Interface,
    cpus: usize,
) -> Result<(), &'static str> {
    smp::install();
    interrupts::set_handler(handler);
    for n in 1..cpus {
        if !smp::start(n, follow) {
            return Err("a processor does not start");
        }
    }
    // Its counter is a mean of all processors', so the floor is measured with the others at what they do beside the other scenarios.
    floor::measure(bench, pool);
    for workers in COUNTS.into_iter().filter(|&workers| workers <= cpus) {
        stream(bench, pool, device, workers)?;
    }
    pool.fill(cpus);
    for (number, place) in TOOLS.iter().enumerate().take(cpus) {
        let handle = pool.handle(number).ok_or("no slot")?;
        let id = device.id().0.into();
        let (data, transport) = (pool.data(number), pool.transport());
        *place.lock() = Some(Tools { data, handle, device: id, interface, transport, number, turn: 0 });
    }
    for (job, name, variant) in [(Job::Write, "slot-write", "data-of-each"), (Job::Retarget, "retarget", "each")] {
        JOB.store(job as usize, SeqCst);
        for workers in COUNTS.into_iter().filter(|&workers| workers <= cpus) {
            let scenario = Scenario { vcpus: workers, ..Scenario::new(name, variant, cpus, OPS * workers) };
            bench.measure(scenario, pool, |_| {}, |_| together(workers));
        }
    }
    if cpus > 1 {
        between(bench, pool);
    }
    Ok(())
}

/// The device raises as many interrupts as it can, to all processors in turn. They spin meanwhile, but for the first, which rings.
fn stream(bench: &mut Bench, pool: &mut Pool, mut device: AssignedDsa, workers: usize) -> Result<(), &'static str> {
    pool.fill(0);
    pool.fill_to(SLOTS, workers);
    let mut handles = [0; SLOTS];
    for (n, handle) in handles.iter_mut().enumerate() {
        *handle = device.dsa.request_ims_handle(pool.index(n)).map_err(|_| "no handle for a slot")?;
    }
    let all = |_: &mut Pool| {
        let end = handled() + SLOTS as u32;
        timed(|| {
            for (n, &handle) in handles.iter().enumerate() {
                device.portals[n % device.portals.len()].submit(&Descriptor::noop(RECORDS.address(n), handle));
            }
            while handled() < end {}
        })
    };
    let scenario = Scenario::new("interrupt-stream", "injected-on-4", SLOTS, SLOTS);
    bench.measure(Scenario { vcpus: workers, ..scenario }, pool, |_| {}, all);
    Ok(())
}

/// From the interrupt command to the handler on another processor, which spins.
fn between(bench: &mut Bench, pool: &mut Pool) {
    let scenario =
        Scenario { vcpus: 2, marked: MARKED, ..Scenario::new("interrupt-between", "injected-running", 0, 1) };
    let one = |_: &mut Pool| {
        let before = HANDLED[1].load(SeqCst);
        let sent = now();
        apic::send(1, apic::FIXED | u64::from(IPI));
        while HANDLED[1].load(SeqCst) == before {
            core::hint::spin_loop();
        }
        HANDLED_AT.load(SeqCst).saturating_sub(sent)
    };
    bench.measure(scenario, pool, |_| {}, one);
}
