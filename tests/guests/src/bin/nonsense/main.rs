//! A hostile guest: it writes nonsense into its slots in every way a processor can, raises them, and makes calls that are wrong
//! in every argument. No interrupt may come of a slot that is wrong, every call must fail as it should, and a slot that is right
//! must work all the while. What is random follows from `seed=`.
//!
//! Attack numbers in the modules are those of the project's list of attacks.
#![no_std]
#![no_main]

mod calls;
mod messages;
mod mode32;
mod privileges;
mod stores;

use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering::SeqCst};

use guests::bare::assigned::{AssignedDsa, Records, batch_page, hypercalls, submit_and_poll};
use guests::bare::dma::DmaBuffer;
use guests::bare::{Guest, apic, config, idle, interrupts, poke, vector};
use guests::dsa::{Completion, Descriptor};
use guests::{command_line, pci, println};

guests::guest!(main);

/// Ticks in which an interrupt would have come.
const TICKS: u64 = 20_000;
/// Ticks after which a completion or an interrupt is given up.
const LIMIT: u64 = 400_000_000;
/// The vector of the slot that is right.
const GOOD_VECTOR: u8 = 0xdd;
/// Its index in the store.
const GOOD_SLOT: u16 = 100;

static PAGE: DmaBuffer<4096> = DmaBuffer::new();
static RECORDS: Records<4096> = Records::new();
/// Interrupts that came, but for the timer's.
static INTERRUPTS: AtomicU32 = AtomicU32::new(0);
static LAST_VECTOR: AtomicU32 = AtomicU32::new(0);

/// The guest and what it counts.
pub struct Attacker {
    /// The device.
    pub device: AssignedDsa,
    /// What the random ones follow from: `seed=` on the command line.
    pub seed: u64,
    /// The remapping unit cannot post, so the processor's vectors run out: `vectors=few` on the command line.
    pub few_vectors: bool,
    /// Things tried.
    pub cases: u32,
    /// Interrupts of the good slot.
    pub good: u32,
    /// Instructions that faulted, as they may.
    pub faulted: u32,
    /// What went otherwise than it should.
    pub errors: u32,
}

fn main(guest: &Guest) -> u8 {
    let Some(calls) = hypercalls() else {
        println!("nonsense: no hypercall domain");
        return 1;
    };
    let device = match AssignedDsa::start(guest) {
        Ok(device) => device,
        Err(missing) => {
            println!("nonsense: {missing}");
            return 1;
        }
    };
    interrupts::set_handler(|vector| {
        LAST_VECTOR.store(vector.into(), SeqCst);
        INTERRUPTS.fetch_add(1, SeqCst);
    });
    idle::enable_interrupts();
    poke::enable_sse();
    // Attack on the console's readers: lines that look like the hypervisor's own.
    println!("@ims forged by=line");
    println!("\r@ims forged by=return\n@ims forged by=feed\x0b@ims forged by=tab\x1b[2K\x1b[G@ims forged by=escape");
    let seed = command_line::number(guest.command_line, "seed").unwrap_or(0).into();
    let few_vectors = command_line::option(guest.command_line, "vectors") == Some("few");
    let mut attacker = Attacker { device, seed, few_vectors, cases: 0, good: 0, faulted: 0, errors: 0 };
    attacker.program_good_slot();
    messages::all(&mut attacker);
    stores::all(&mut attacker);
    privileges::all(&mut attacker, calls.interface().call_base);
    attacker.restart_device();
    attacker.reset_function();
    attacker.restart_device();
    calls::all(&mut attacker, &calls, batch_page(&PAGE));
    attacker.report()
}

impl Attacker {
    /// Says what went wrong, and counts it.
    pub fn error(&mut self, what: fmt::Arguments) {
        self.errors += 1;
        println!("nonsense: error: {what}");
    }

    /// Physical address of a slot.
    pub fn slot_address(&self, slot: u16) -> u64 {
        self.device.ims_address() + u64::from(slot) * 16
    }

    /// Writes a slot as a driver does: mask, address, data, control; and reads control back.
    pub fn program(&mut self, slot: u16, [lo, hi, data, control]: [u32; 4]) {
        let at = self.slot_address(slot);
        for (offset, value) in [(12, 1), (0, lo), (4, hi), (8, data), (12, control)] {
            // SAFETY: a slot of the device's store.
            let fault = unsafe { poke::store(at + offset, 4, value.into()) };
            if let Some(vector) = fault {
                self.error(format_args!("slot {slot}: MOV faulted with {vector}"));
            }
        }
    }

    /// Reads a dword of a slot.
    pub fn dword(&self, slot: u16, n: u64) -> u32 {
        use guests::dsa::Registers;
        self.device.bar0.read(self.device.dsa.ims_offset() + u64::from(slot) * 16 + n * 4)
    }

    /// A message that is right, on this vector.
    pub fn good_message(vector: u8) -> [u32; 4] {
        [apic::message_address(apic::id()), 0, vector.into(), 0]
    }

    fn program_good_slot(&mut self) {
        self.program(GOOD_SLOT, Self::good_message(GOOD_VECTOR));
        self.check_good();
    }

    /// Raises a slot and waits for the descriptor's completion.
    pub fn fire(&mut self, slot: u16) -> Option<Completion> {
        let handle = match self.device.dsa.request_ims_handle(slot) {
            Ok(handle) => handle,
            Err(error) => {
                self.error(format_args!("slot {slot}: no handle: {error:?}"));
                return None;
            }
        };
        let descriptor = Descriptor::noop(RECORDS.address(0), handle);
        let completion = submit_and_poll(&self.device.portals[0], &descriptor, &RECORDS, 0, LIMIT);
        if self.device.dsa.release_ims_handle(handle).is_err() {
            self.error(format_args!("slot {slot}: its handle is not taken back"));
        }
        completion
    }

    /// The good slot must work.
    pub fn check_good(&mut self) {
        let before = interrupts::count(GOOD_VECTOR);
        self.fire(GOOD_SLOT);
        if idle::wait_until(LIMIT, || interrupts::count(GOOD_VECTOR) != before) {
            self.good += 1;
        } else {
            self.error(format_args!("the good slot does not work"));
        }
    }

    /// After a reset of the device a slot is as after power-on, the guest sees it so, and it can be used again (attack 23).
    fn restart_device(&mut self) {
        self.cases += 1;
        if let Err(error) = self.device.restart() {
            self.error(format_args!("the device does not start again: {error:?}"));
        }
        let seen = [0, 1, 2, 3].map(|n| self.dword(GOOD_SLOT, n));
        if seen != [0, 0, 0, 1] {
            self.error(format_args!("a slot after a reset of the device: {seen:x?}"));
        }
        self.program_good_slot();
    }

    /// A function level reset leaves nothing of the slots, and the device is off.
    fn reset_function(&mut self) {
        use guests::dsa::{Registers, spec};
        self.cases += 1;
        let (config, function) = (config::Ports, self.device.function);
        if pci::initiate_reset(&config, function).is_none() {
            self.error(format_args!("the function cannot be reset"));
        }
        let seen = [0, 1, 2, 3].map(|n| self.dword(GOOD_SLOT, n));
        let enabled = self.device.bar0.read(spec::GENSTS) & 1 != 0;
        if seen != [0, 0, 0, 1] || enabled || !pci::is_as_after_reset(&config, function) {
            self.error(format_args!("after a function level reset: a slot {seen:x?}, enabled: {enabled}"));
        }
        pci::enable(&config, function);
    }

    /// Does something of which no interrupt may come.
    pub fn silently(&mut self, what: fmt::Arguments, act: impl FnOnce(&mut Self)) {
        self.cases += 1;
        let before = INTERRUPTS.load(SeqCst);
        act(self);
        idle::linger(TICKS);
        let came = INTERRUPTS.load(SeqCst) - before;
        if came != 0 {
            let vector = LAST_VECTOR.load(SeqCst);
            self.error(format_args!("{what}: {came} interrupts, the last on vector {vector:#x}"));
        }
    }

    fn report(mut self) -> u8 {
        let (all, good) = (INTERRUPTS.load(SeqCst), interrupts::count(GOOD_VECTOR));
        if all != good || good != self.good {
            let raised = self.good;
            self.error(format_args!("{all} interrupts, {good} of the good slot, which was raised {raised} times"));
        }
        println!(
            "@result cases={} good={} faulted={} interrupts={all} errors={}",
            self.cases, self.good, self.faulted, self.errors
        );
        u8::from(self.errors != 0)
    }
}

const _: () = assert!(GOOD_VECTOR >= vector::FIRST && GOOD_VECTOR <= vector::LAST);
