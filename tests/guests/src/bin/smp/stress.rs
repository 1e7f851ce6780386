//! Every processor works on its own slots of the one device, at random, and its interrupts go to any processor.

use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst};

use guests::bare::assigned::{AssignedDsa, Records, batch_page, hypercalls};
use guests::bare::dma::DmaBuffer;
use guests::bare::lock::Lock;
use guests::bare::take_once::TakeOnce;
use guests::bare::{Guest, apic, idle, interrupts, smp};
use guests::dsa::{Completion, Descriptor};
use guests::guest_shim::domain::SlotState;
use guests::guest_shim::hcall_abi::cpuid::Features;
use guests::guest_shim::hcall_abi::{Status, Target};
use guests::guest_shim::store::{CONTROL_MASK, Field, Store};
use guests::guest_shim::vmcall::Vmcall;
use guests::guest_shim::{Domain, Hypercalls, Interrupt, MmioStore, Request};
use guests::random::Random;
use guests::{command_line, println};

use crate::oracle;

/// Slots of a processor: half of them by hypercall, half by writing them.
const SLOTS: usize = 8;
/// The most slots a store has.
const STORE_SLOTS: usize = 1 << 12;
/// Ticks after which an interrupt is lost.
const LIMIT: u64 = 200_000_000;
/// Errors that are told.
const TOLD: u32 = 10;

static DEVICE: Lock<Option<AssignedDsa>> = Lock::new(None);
static CALLS: Lock<Option<Hypercalls<Vmcall>>> = Lock::new(None);
static RECORDS: Records<{ oracle::MOST * Completion::SIZE as usize }> = Records::new();
static PAGES: [DmaBuffer<4096>; smp::MOST] = [const { DmaBuffer::new() }; smp::MOST];
static STATES: [TakeOnce<[SlotState; STORE_SLOTS]>; smp::MOST] =
    [const { TakeOnce::new([SlotState::FREE; STORE_SLOTS]) }; smp::MOST];
static CPUS: AtomicUsize = AtomicUsize::new(1);
static OPS: AtomicU32 = AtomicU32::new(0);
static READY: AtomicUsize = AtomicUsize::new(0);
static DONE: AtomicUsize = AtomicUsize::new(0);
/// The most ticks that anyone waited for an interrupt.
static SLOWEST: AtomicU64 = AtomicU64::new(0);
static ERRORS: AtomicU32 = AtomicU32::new(0);
/// What the operations follow from: `seed=` on the command line.
static SEED: AtomicU32 = AtomicU32::new(0);
static LOG: Lock<()> = Lock::new(());

fn error(slot: usize, what: &str, status: Result<(), Status>) {
    if ERRORS.fetch_add(1, SeqCst) < TOLD {
        let _line = LOG.lock();
        println!("smp: slot {slot}: {what}: {status:?}");
    }
}

/// `ops` operations, shared out to `cpus` processors. The report tells of the interrupts between them, too.
pub fn run(guest: &Guest, cpus: usize, (ipis, wake, late): (u32, u64, u64), ops: u32) -> Result<(), &'static str> {
    *CALLS.lock() = Some(hypercalls().ok_or("no hypercall domain")?);
    *DEVICE.lock() = Some(AssignedDsa::start(guest).map_err(|_| "no device to work with")?);
    interrupts::set_handler(oracle::came);
    CPUS.store(cpus, SeqCst);
    SEED.store(command_line::number(guest.command_line, "seed").unwrap_or(0), SeqCst);
    OPS.store(ops / cpus as u32, SeqCst);
    for n in 1..cpus {
        if !smp::start(n, work) {
            return Err("a processor does not start again");
        }
    }
    work(0);
    let all = || DONE.load(SeqCst) == cpus;
    while !idle::poll_until(LIMIT, all) {}
    idle::linger(1_000_000);
    let sum = oracle::sum();
    let errors = ERRORS.load(SeqCst);
    println!(
        "@result cpus={cpus} ipis={ipis} wake={wake} late={late} ops={} raised={} lost={} doubled={} astray={} errors={errors} slowest={}",
        OPS.load(SeqCst) * cpus as u32,
        sum.raised,
        sum.lost,
        sum.doubled,
        sum.astray,
        SLOWEST.load(SeqCst)
    );
    if errors + sum.lost + sum.doubled + sum.astray == 0 { Ok(()) } else { Err("not everything was right") }
}

/// What a processor does.
fn work(number: usize) {
    // Every second one ends its interrupts without exits, where it can be.
    let calls = *CALLS.lock();
    if let Some(calls) = calls.filter(|calls| number % 2 == 1 && calls.interface().features.contains(Features::PV_EOI))
    {
        apic::use_pv_eoi(&calls).unwrap_or_else(|status| error(number, "ends of interrupts", Err(status)));
    }
    idle::enable_interrupts();
    // A processor that has not come so far takes no interrupts yet.
    READY.fetch_add(1, SeqCst);
    while READY.load(SeqCst) != CPUS.load(SeqCst) {
        core::hint::spin_loop();
    }
    let mut worker = Worker::new(number);
    for n in 0..SLOTS {
        worker.take(n);
    }
    for _ in 0..OPS.load(SeqCst) {
        worker.operate();
    }
    for n in 0..SLOTS {
        worker.give_back(n);
    }
    DONE.fetch_add(1, SeqCst);
}

type ImsDomain = Domain<'static, Vmcall, MmioStore>;

struct Held {
    interrupt: Interrupt,
    /// What a descriptor says to raise it.
    handle: u16,
    target: Target,
    masked: bool,
    mapped: bool,
}

struct Worker {
    number: usize,
    cpus: usize,
    random: Random,
    by_hypercall: ImsDomain,
    by_store: ImsDomain,
    store: MmioStore,
    held: [Option<Held>; SLOTS],
}

impl Worker {
    fn new(number: usize) -> Self {
        let device = DEVICE.lock();
        let device = device.as_ref().expect("it was started");
        let calls = CALLS.lock().expect("they were found");
        let by_hypercall = Domain::hypercall(calls, device.id(), batch_page(&PAGES[number]));
        let mut by_store = Domain::native(device.store(), STATES[number].take());
        // A driver that writes the store has its own slots: from the upper half, each processor a range.
        let first = (device.dsa.ims_slots() / 2) as u16 + (number * SLOTS) as u16;
        if let Domain::Native(native) = &mut by_store {
            native.reserve(|index| !(first..first + SLOTS as u16).contains(&index));
        }
        let cpus = CPUS.load(SeqCst);
        let held = [const { None }; SLOTS];
        let random = Random::new((u64::from(SEED.load(SeqCst)) << 8) + number as u64 + 1);
        Self { number, cpus, random, by_hypercall, by_store, store: device.store(), held }
    }

    /// The oracle's number for own slot `n`.
    const fn slot(&self, n: usize) -> usize {
        self.number * SLOTS + n
    }

    fn way(&mut self, n: usize) -> &mut ImsDomain {
        if n.is_multiple_of(2) { &mut self.by_hypercall } else { &mut self.by_store }
    }

    /// Allocates and maps a slot.
    fn take(&mut self, n: usize) {
        let slot = self.slot(n);
        let interrupt = match self.way(n).alloc(0) {
            Ok(interrupt) => interrupt,
            Err(status) => return error(slot, "alloc", Err(status)),
        };
        let handle = {
            let mut device = DEVICE.lock();
            device.as_mut().expect("it was started").dsa.request_ims_handle(interrupt.index())
        };
        let Ok(handle) = handle else { return error(slot, "no handle", Ok(())) };
        let target = oracle::target(slot, self.cpus, self.random.next());
        self.held[n] = Some(Held { interrupt, handle, target, masked: true, mapped: false });
        self.map(n);
    }

    fn map(&mut self, n: usize) {
        let slot = self.slot(n);
        let target = oracle::target(slot, self.cpus, self.random.next());
        let unmask = self.random.next() & 1 != 0;
        oracle::allow_only(slot, target);
        self.with(n, "map", |way, held| {
            (held.target, held.masked, held.mapped) = (target, !unmask, true);
            way.map(&held.interrupt, &Request { target, unmask, cookie: slot as u64 })
        });
    }

    /// Works on a slot that is held.
    fn with(&mut self, n: usize, what: &str, work: impl FnOnce(&mut ImsDomain, &mut Held) -> Result<(), Status>) {
        let slot = self.slot(n);
        let Some(mut held) = self.held[n].take() else { return };
        let result = work(self.way(n), &mut held);
        if result.is_err() {
            error(slot, what, result);
        }
        if self.store.read(held.interrupt.index(), Field::Control) & CONTROL_MASK != u32::from(held.masked) {
            error(slot, "its mask is not what it should be", Ok(()));
        }
        self.held[n] = Some(held);
    }

    /// One operation on one slot.
    fn operate(&mut self) {
        let n = (self.random.next() % SLOTS as u64) as usize;
        let Some(held) = &self.held[n] else { return };
        if !held.mapped {
            return self.map(n);
        }
        match self.random.next() % 16 {
            0..=4 => self.raise(n),
            5..=6 => self.mask(n),
            7..=8 => self.unmask(n),
            9..=12 => self.retarget(n),
            13 => self.settle(n),
            14 => {
                self.settle(n);
                self.with(n, "unmap", |way, held| {
                    (held.masked, held.mapped) = (true, false);
                    way.unmap(&held.interrupt)
                });
            }
            _ => {
                self.give_back(n);
                self.take(n);
            }
        }
    }

    fn raise(&mut self, n: usize) {
        let slot = self.slot(n);
        if oracle::is_under_way(slot) {
            return self.settle(n);
        }
        let Some(held) = &self.held[n] else { return };
        oracle::raise(slot);
        let descriptor = Descriptor::noop(RECORDS.address(slot), held.handle);
        let device = DEVICE.lock();
        let portals = &device.as_ref().expect("it was started").portals;
        portals[self.number % portals.len()].submit(&descriptor);
    }

    fn mask(&mut self, n: usize) {
        self.with(n, "mask", |way, held| {
            held.masked = true;
            way.mask(&held.interrupt)
        });
    }

    fn unmask(&mut self, n: usize) {
        self.with(n, "unmask", |way, held| {
            held.masked = false;
            way.unmask(&held.interrupt)
        });
    }

    /// With one under way or not: it comes at the old place or at the new one, once. The pair in the store stays what it was if the
    /// hypervisor keeps it.
    fn retarget(&mut self, n: usize) {
        let slot = self.slot(n);
        let target = oracle::target(slot, self.cpus, self.random.next());
        let pair = self.pair(n);
        oracle::allow(slot, target);
        self.with(n, "retarget", |way, held| {
            held.target = target;
            way.set_affinity(&held.interrupt, target)
        });
        if n.is_multiple_of(2) && self.pair(n) != pair {
            error(slot, "its pair has changed", Ok(()));
        }
        if !oracle::is_under_way(slot) {
            oracle::allow_only(slot, target);
        }
    }

    fn pair(&self, n: usize) -> Option<[u32; 3]> {
        let index = self.held[n].as_ref()?.interrupt.index();
        Some([Field::AddressLo, Field::AddressHi, Field::Data].map(|field| self.store.read(index, field)))
    }

    /// Waits until none is under way.
    fn settle(&mut self, n: usize) {
        let slot = self.slot(n);
        if self.held[n].as_ref().is_some_and(|held| held.mapped && held.masked) {
            self.unmask(n);
        }
        let began = apic::tsc();
        if !idle::poll_until(LIMIT, || !oracle::is_under_way(slot)) {
            error(slot, "an interrupt is lost", Ok(()));
        }
        SLOWEST.fetch_max(apic::tsc() - began, SeqCst);
        if let Some(held) = &self.held[n] {
            oracle::allow_only(slot, held.target);
        }
    }

    fn give_back(&mut self, n: usize) {
        let slot = self.slot(n);
        self.settle(n);
        if let Some(held) = self.held[n].take() {
            let result = self.way(n).free(held.interrupt);
            if result.is_err() {
                error(slot, "free", result);
            }
        }
    }
}
