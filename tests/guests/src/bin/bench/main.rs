//! The benchmarks: what the trap and remap path costs, as a guest sees it.
//!
//! A scenario is measured in rounds by the TSC, each round a few operations. One more round lies between two marks on the console,
//! after which the hypervisor tells the guest's VM exits (`exits=marks` among the module's options): their difference is what
//! the round's operations took. `only=` on the command line chooses scenarios by a part of their names.
#![no_std]
#![no_main]

mod bench;
mod calls;
mod floor;
mod interrupts;
mod live;
mod pool;
mod processors;
mod stores;

use bench::Bench;
use guests::bare::assigned::{AssignedDsa, hypercalls};
use guests::bare::{Guest, idle, smp};
use guests::guest_shim::Interface;
use guests::{command_line, println};
use interrupts::Delivery;
use pool::Pool;

guests::guest!(run);

fn run(guest: &Guest) -> Result<(), &'static str> {
    let interface = *hypercalls().ok_or("no hypercall domain, or bare metal")?.interface();
    let device = AssignedDsa::start(guest).map_err(|missing| {
        println!("bench: {missing}");
        "no device to work with"
    })?;
    let mut bench = Bench::new(guest.command_line);
    let mut pool = Pool::new(interface, &device, 0);
    idle::enable_interrupts();
    let cpus = command_line::number(guest.command_line, "cpus").unwrap_or(1) as usize;
    if cpus > 1 {
        processors::measure(&mut bench, &mut pool, device, interface, cpus.min(smp::MOST))?;
        return end(&pool, processors::handled_of_device());
    }
    floor::measure(&mut bench, &mut pool);
    interrupts::measure(&mut bench, &mut pool, device, &Delivery::new(guest.command_line))?;
    stores::measure(&mut bench, &mut pool);
    calls::measure(&mut bench, &mut pool);
    live::measure(&mut bench, &mut pool, &mut others(interface)?);
    end(&pool, interrupts::handled())
}

/// The slots of the devices that are there only to have some.
fn others(interface: Interface) -> Result<[Option<Pool>; pool::DEVICES - 1], &'static str> {
    let mut pools = [const { None }; pool::DEVICES - 1];
    for (n, (device, place)) in AssignedDsa::start_others().zip(&mut pools).enumerate() {
        let device = device.map_err(|_| "one of the other devices does not start")?;
        *place = Some(Pool::new(interface, &device, n + 1));
    }
    Ok(pools)
}

/// The report, of `handled` interrupts.
fn end(pool: &Pool, handled: u32) -> Result<(), &'static str> {
    let errors = pool.errors;
    println!("@result handled={handled} errors={errors}");
    if errors == 0 { Ok(()) } else { Err("a call failed") }
}
