//! The demo: a driver for a DSA with an interrupt message store.
//!
//! It programs half of its slots by hypercall and the other half by writing them, as a driver that knows of no hypervisor does (on
//! bare metal it writes all of them); moves data and checksums it through both work queues with every completion taken by an
//! interrupt of the store; then masks, re-targets, unmaps, frees and takes slots again. Each interrupt is counted, and must come once
//! and where it belongs.
#![no_std]
#![no_main]

mod driver;
mod exercise;
mod work;

use driver::Driver;
use guests::bare::assigned::{AssignedDsa, batch_page, decision, hypercalls};
use guests::bare::dma::DmaBuffer;
use guests::bare::{Guest, idle, interrupts};
use guests::guest_shim::Decision;
use guests::{command_line, println};

guests::guest!(run);

/// Slots, unless the command line says `slots=`.
const SLOTS: u16 = 256;

static PAGE: DmaBuffer<4096> = DmaBuffer::new();

fn run(guest: &Guest) -> Result<(), &'static str> {
    let slots = command_line::number(guest.command_line, "slots").and_then(|slots| u16::try_from(slots).ok());
    let slots = slots.unwrap_or(SLOTS).clamp(2, driver::MAX_SLOTS as u16);
    let calls = match decision() {
        Decision::Hypercall(interface) => {
            println!(
                "demo: not on bare metal; hypercall domain 1.{} at CPUID {:#x}, batches of {}",
                interface.minor,
                interface.base,
                interface.batch()
            );
            Some(hypercalls().ok_or("the interface cannot be enabled")?)
        }
        Decision::Native => {
            println!("demo: on bare metal");
            None
        }
        Decision::Refuse(why) => {
            println!("demo: {why}");
            return Err("no way to the message store");
        }
    };
    let device = AssignedDsa::start(guest).map_err(|missing| {
        println!("demo: {missing}");
        "no device to work with"
    })?;
    println!("demo: DSA at {}, {} slots in its message store", device.function, device.dsa.ims_slots());

    interrupts::set_handler(|vector| driver::TALLY.arrived(vector));
    idle::enable_interrupts();
    let mut driver = Driver::new(device, calls, batch_page(&PAGE))?;
    driver.take_slots(slots)?;
    work::move_and_check(&mut driver);
    exercise::all(&mut driver);
    driver.report()
}
