//! A hostile guest whose device reads and writes where the guest has no memory: beyond its end, in the machine's devices, in its
//! own slots, in the window of interrupt messages. Nothing may be read or written there, no interrupt may come of it, and the
//! device must go on. Attacks 25 and 26.
#![no_std]
#![no_main]

use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering::SeqCst};

use guests::bare::assigned::{AssignedDsa, Records, submit_and_poll};
use guests::bare::dma::DmaBuffer;
use guests::bare::{Guest, apic, idle, interrupts, vector};
use guests::dsa::{Completion, Descriptor, Registers};
use guests::{command_line, println};

guests::guest!(main);

/// Ticks after which a completion is given up.
const LIMIT: u64 = 5_000_000;
/// Ticks in which an interrupt would have come.
const TICKS: u64 = 50_000;
const SIZE: u32 = 64;
const UNTOUCHED: u64 = 0x5a5a_5a5a_a5a5_a5a5;
/// Index of the slot whose bytes the device is told to write.
const SLOT: u64 = 7;

static BUFFER: DmaBuffer<4096> = DmaBuffer::new();
static RECORDS: Records<4096> = Records::new();
static INTERRUPTS: AtomicU32 = AtomicU32::new(0);

/// What became of the descriptors.
struct Attempts {
    device: AssignedDsa,
    cases: u32,
    faulted: u32,
    silent: u32,
    passed: u32,
    errors: u32,
}

fn main(guest: &Guest) -> u8 {
    let device = match AssignedDsa::start(guest) {
        Ok(device) => device,
        Err(missing) => {
            println!("stray-dma: {missing}");
            return 1;
        }
    };
    interrupts::set_handler(|_| {
        INTERRUPTS.fetch_add(1, SeqCst);
    });
    idle::enable_interrupts();
    let end = guest.boot.memory_map().filter(|range| range.is_ram()).map(|range| range.start + range.size).max();
    let end = end.unwrap_or(0).max(1 << 24);
    let mut attempts = Attempts { device, cases: 0, faulted: 0, silent: 0, passed: 0, errors: 0 };
    attempts.works("before all");
    for address in foreign_addresses(&attempts.device, end) {
        attempts.source(address);
        attempts.destination(address);
        attempts.record(address);
    }
    attempts.across_the_end(end);
    attempts.own_slot();
    attempts.forged_messages();
    for _ in 0..command_line::number(guest.command_line, "storm").unwrap_or(0) {
        attempts.destination(end);
    }
    attempts.works("after all");
    attempts.report()
}

/// Addresses that are not memory of the guest.
fn foreign_addresses(device: &AssignedDsa, end: u64) -> [u64; 12] {
    [
        end,
        end + (1 << 20),
        end + (1 << 30),
        0xfed9_0000,
        0xfec0_0000,
        0xe800_0000,
        device.bar0_address,
        device.ims_address(),
        0x1_0000_0000,
        1 << 45,
        0xffff_8000_0000_0000,
        0xffff_ffff_ffff_f000,
    ]
}

impl Attempts {
    fn error(&mut self, what: fmt::Arguments) {
        self.errors += 1;
        println!("stray-dma: error: {what}");
    }

    /// Submits without an interrupt. `None` when no record is written.
    fn submit(&mut self, descriptor: Descriptor) -> Option<Completion> {
        self.cases += 1;
        submit_and_poll(&self.device.portals[0], &descriptor.without_interrupt(), &RECORDS, 0, LIMIT)
    }

    /// Submits what must not succeed.
    fn must_fault(&mut self, what: &str, address: u64, descriptor: Descriptor) {
        match self.submit(descriptor) {
            Some(record) if record.succeeded() => {
                self.passed += 1;
                self.error(format_args!("{what} {address:#x} succeeded"));
            }
            Some(record) => {
                self.faulted += 1;
                if !record.page_fault() {
                    println!("stray-dma: {what} {address:#x}: {record:x?}");
                }
            }
            None => self.silent += 1,
        }
    }

    /// The device works.
    fn works(&mut self, when: &str) {
        BUFFER.fill(0, 64, 0);
        let destination = BUFFER.address();
        let descriptor = Descriptor::fill(0x1122_3344_5566_7788, destination, SIZE, RECORDS.address(0), 0);
        let completed = self.submit(descriptor).is_some_and(|record| record.succeeded());
        if !completed || BUFFER.read(56) != 0x1122_3344_5566_7788 {
            self.error(format_args!("{when}: the device does not work"));
        }
    }

    fn source(&mut self, address: u64) {
        BUFFER.fill(0, 64, UNTOUCHED);
        let descriptor = Descriptor::memmove(address, BUFFER.address(), SIZE, RECORDS.address(0), 0);
        self.must_fault("source", address, descriptor);
        if (0..64).step_by(8).any(|at| BUFFER.read(at) != UNTOUCHED) {
            self.error(format_args!("source {address:#x}: something was read"));
        }
    }

    fn destination(&mut self, address: u64) {
        let descriptor = Descriptor::fill(!0, address, SIZE, RECORDS.address(0), 0);
        self.must_fault("destination", address, descriptor);
    }

    /// A record that cannot be written leaves the queue as it is.
    fn record(&mut self, address: u64) {
        BUFFER.fill(0, 64, 0);
        self.cases += 1;
        let descriptor = Descriptor::fill(UNTOUCHED, BUFFER.address(), SIZE, address & !31, 0);
        self.device.portals[1].submit(&descriptor.without_interrupt());
        idle::linger(TICKS);
        self.silent += 1;
        self.works("after a stray record");
    }

    /// A transfer that begins in memory and ends beyond it.
    fn across_the_end(&mut self, end: u64) {
        let descriptor = Descriptor::memmove(BUFFER.address(), end - 32, SIZE, RECORDS.address(0), 0);
        self.must_fault("across the end, to", end - 32, descriptor);
        let descriptor = Descriptor::memmove(end - 32, BUFFER.address(), SIZE, RECORDS.address(0), 0);
        self.must_fault("across the end, from", end - 32, descriptor);
    }

    /// The device writes a message into its own slot, behind the hypervisor: by way of memory it must not get there.
    fn own_slot(&mut self) {
        let slot = self.device.ims_address() + SLOT * 16;
        let before = self.slot();
        BUFFER.write(0, apic::message_address(apic::id()).into());
        BUFFER.write(8, u64::from(vector::FIRST));
        let descriptor = Descriptor::memmove(BUFFER.address(), slot, 16, RECORDS.address(0), 0);
        self.must_fault("own slot", slot, descriptor);
        if self.slot() != before {
            self.error(format_args!("the device wrote its own slot"));
        }
        if let Ok(handle) = self.device.dsa.request_ims_handle(SLOT as u16) {
            let descriptor = Descriptor::noop(RECORDS.address(0), handle);
            submit_and_poll(&self.device.portals[0], &descriptor, &RECORDS, 0, LIMIT);
        }
        self.no_interrupt("own slot");
    }

    fn slot(&self) -> [u32; 4] {
        let at = self.device.dsa.ims_offset() + SLOT * 16;
        [0, 4, 8, 12].map(|field| self.device.bar0.read(at + field))
    }

    /// The device writes messages by itself: in compatibility format, and with handles of remapping entries. The guest has
    /// mapped nothing, so that no entry is its own.
    fn forged_messages(&mut self) {
        let own = apic::message_address(apic::id()).into();
        self.forge(own, vector::FIRST.into());
        self.forge(own | 0xff << 12, vector::FIRST.into());
        self.forge(own, 0x4400 | u32::from(vector::FIRST));
        for handle in 0..48 {
            self.forge(0xfee0_0010 | handle << 5, 0);
            self.forge(0xfee0_0018, handle as u32);
        }
        for address in [0xfee0_0001, 0xfee0_0ffd, 0xfeef_fffe] {
            self.forge(address, vector::FIRST.into());
        }
        self.no_interrupt("forged messages");
    }

    /// The unit takes such a write for a message whatever becomes of it, so success is an answer, too.
    fn forge(&mut self, address: u64, data: u32) {
        BUFFER.write(0, data.into());
        let descriptor = Descriptor::memmove(BUFFER.address(), address, 4, RECORDS.address(0), 0);
        match self.submit(descriptor) {
            Some(record) if record.succeeded() => self.passed += 1,
            Some(_) => self.faulted += 1,
            None => self.silent += 1,
        }
    }

    fn no_interrupt(&mut self, what: &str) {
        idle::linger(TICKS);
        let came = INTERRUPTS.swap(0, SeqCst);
        if came != 0 {
            self.error(format_args!("{what}: {came} interrupts"));
        }
    }

    fn report(mut self) -> u8 {
        self.no_interrupt("all");
        println!(
            "@result cases={} faulted={} silent={} passed={} errors={}",
            self.cases, self.faulted, self.silent, self.passed, self.errors
        );
        u8::from(self.errors != 0)
    }
}
