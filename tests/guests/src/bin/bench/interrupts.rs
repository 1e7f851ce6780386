//! Interrupts, from the doorbell to the handler.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

use guests::bare::assigned::{AssignedDsa, Records, hypercalls};
use guests::bare::{apic, idle, interrupts, profile, smp};
use guests::command_line;
use guests::dsa::{Completion, Descriptor};
use guests::guest_shim::hcall_abi::cpuid::Features;

use crate::bench::{Bench, Scenario, now, timed};
use crate::pool::Pool;

/// Slots, each with a vector of its own, and descriptors under way at most.
const SLOTS: usize = 64;
/// Interrupts whose exits are counted, where they come one at a time.
const MARKED: usize = 16;

static RECORDS: Records<{ SLOTS * Completion::SIZE as usize }> = Records::new();
static HANDLED: AtomicU32 = AtomicU32::new(0);
static HANDLED_AT: AtomicU64 = AtomicU64::new(0);

/// How interrupts come, for the variants' names. The hypervisor decides it; the command line only says it.
pub struct Delivery {
    running: &'static str,
    /// Posted ones find a guest in MWAIT, injected ones one that has halted.
    idle: &'static str,
    many: &'static str,
    from_before: bool,
}

impl Delivery {
    /// From a command line with `delivery=posted`, or without.
    pub fn new(line: &str) -> Self {
        let from_before = command_line::option(line, "from") == Some("store");
        if command_line::option(line, "delivery") == Some("posted") {
            Self { running: "posted-running", idle: "posted-mwait", many: "posted", from_before }
        } else {
            Self { running: "injected-running", idle: "injected-idle", many: "injected", from_before }
        }
    }
}

/// How many interrupts came.
pub fn handled() -> u32 {
    HANDLED.load(SeqCst)
}

fn handler(_vector: u8) {
    HANDLED_AT.store(now(), SeqCst);
    HANDLED.fetch_add(1, SeqCst);
}

struct Doorbells {
    device: AssignedDsa,
    handles: [u16; SLOTS],
    /// Time runs from before the last store (`from=store` on the command line), not from after it: where a store is emulated, the device is
    /// done before the store is.
    from_before: bool,
}

impl Doorbells {
    fn descriptor(&self, n: usize) -> Descriptor {
        Descriptor::noop(RECORDS.address(n), self.handles[n])
    }

    fn ring(&self, n: usize) {
        self.device.portals[n % self.device.portals.len()].submit(&self.descriptor(n));
    }

    /// Submits to the first queue; the time from which what follows is counted. Not inlined, so that what is timed is the same code for all.
    #[inline(never)]
    fn rung(&self, descriptor: &Descriptor) -> u64 {
        let portal = &self.device.portals[0];
        if self.from_before {
            return portal.submit_noting(descriptor, now);
        }
        portal.submit(descriptor);
        now()
    }

    /// Rings once and waits; the time from the doorbell to the handler.
    fn one(&self, wait: impl FnOnce(u32)) -> u64 {
        let before = handled();
        let rung = self.rung(&self.descriptor(0));
        wait(before);
        HANDLED_AT.load(SeqCst).saturating_sub(rung)
    }
}

/// Latency with the guest running and idle, and many at a time.
pub fn measure(
    bench: &mut Bench,
    pool: &mut Pool,
    mut device: AssignedDsa,
    delivery: &Delivery,
) -> Result<(), &'static str> {
    interrupts::set_handler(handler);
    pool.fill(SLOTS);
    let mut handles = [0; SLOTS];
    for (n, handle) in handles.iter_mut().enumerate() {
        *handle = device.dsa.request_ims_handle(pool.index(n)).map_err(|_| "no handle for a slot")?;
    }
    let mut doorbells = Doorbells { device, handles, from_before: delivery.from_before };
    // Once in any case: what is measured has to work.
    doorbells.one(|before| while handled() == before {});
    latency(bench, &mut doorbells, delivery);
    stream(bench, &mut doorbells, delivery.many);
    if let Some(calls) = hypercalls().filter(|calls| calls.interface().features.contains(Features::PV_EOI)) {
        smp::install();
        apic::use_pv_eoi(&calls).map_err(|_| "interrupts cannot be ended without exits")?;
        running(bench, &mut doorbells, "injected-pv-eoi");
        stream(bench, &mut doorbells, "injected-pv-eoi");
    }
    Ok(())
}

/// Many at a time.
fn stream(bench: &mut Bench, doorbells: &mut Doorbells, variant: &'static str) {
    let all = |doorbells: &mut Doorbells| {
        let end = handled() + SLOTS as u32;
        timed(|| {
            (0..SLOTS).for_each(|n| doorbells.ring(n));
            while handled() < end {}
        })
    };
    bench.measure(Scenario::new("interrupt-stream", variant, SLOTS, SLOTS), doorbells, |_| {}, all);
}

/// One at a time, to a guest that waits for it.
fn running(bench: &mut Bench, doorbells: &mut Doorbells, variant: &'static str) {
    let scenario = Scenario { marked: MARKED, ..Scenario::new("interrupt-latency", variant, SLOTS, 1) };
    let one = |doorbells: &mut Doorbells| doorbells.one(|before| while handled() == before {});
    bench.measure(scenario, doorbells, |_| {}, one);
    // Until the guest goes on, the interrupt's end included.
    let whole = |doorbells: &mut Doorbells| {
        let before = handled();
        let rung = doorbells.rung(&doorbells.descriptor(0));
        while handled() == before {}
        now() - rung
    };
    bench.measure(Scenario { name: "interrupt-whole", ..scenario }, doorbells, |_| {}, whole);
}

fn latency(bench: &mut Bench, doorbells: &mut Doorbells, delivery: &Delivery) {
    let scenario = |name, variant| Scenario { marked: MARKED, ..Scenario::new(name, variant, SLOTS, 1) };
    let device = |doorbells: &mut Doorbells| {
        RECORDS.clear(0);
        let rung = doorbells.rung(&Descriptor::noop(RECORDS.address(0), 0).without_interrupt());
        while !RECORDS.complete(0) {}
        now() - rung
    };
    bench.measure(scenario("doorbell-to-record", "device"), doorbells, |_| {}, device);
    running(bench, doorbells, delivery.running);
    let sleeping = |doorbells: &mut Doorbells| {
        idle::disable_interrupts();
        doorbells.one(|before| idle::sleep_until(|| handled() != before))
    };
    bench.measure(scenario("interrupt-latency", delivery.idle), doorbells, |_| {}, sleeping);
    if profile::is_posted() {
        profile::halt_when_idle(true);
        bench.measure(scenario("interrupt-latency", "posted-hlt"), doorbells, |_| {}, sleeping);
        profile::halt_when_idle(false);
    }
}
