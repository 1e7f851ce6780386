//! A guest that resets its DSA again and again: by the device's command, and as a function (PCIe 6.6.2). After each reset the device has to work.
//! It tells how long the longest of the resets took. `rounds=`: how many of each kind.
#![no_std]
#![no_main]

use guests::bare::assigned::{AssignedDsa, Records, submit_and_poll};
use guests::bare::{Guest, apic, config};
use guests::dsa::Descriptor;
use guests::{command_line, pci, println};

guests::guest!(main);

/// Ticks after which a completion is given up.
const LIMIT: u64 = 5_000_000;

static RECORDS: Records<4096> = Records::new();

fn main(guest: &Guest) -> Result<(), &'static str> {
    let rounds = command_line::number(guest.command_line, "rounds").unwrap_or(1);
    let mut device = AssignedDsa::start_any().map_err(|_| "the device does not start")?;
    let (mut commands, mut levels, mut errors) = (0, 0, 0);
    for _ in 0..rounds {
        let began = apic::tsc();
        device.restart().map_err(|_| "the device does not start again")?;
        commands = commands.max(apic::tsc() - began);
        errors += u32::from(!works(&device));
        let began = apic::tsc();
        pci::initiate_reset(&config::Ports, device.function).ok_or("no function level reset")?;
        levels = levels.max(apic::tsc() - began);
        errors += u32::from(!pci::is_as_after_reset(&config::Ports, device.function));
        pci::enable(&config::Ports, device.function);
        device.restart().map_err(|_| "the device does not start after a function level reset")?;
        errors += u32::from(!works(&device));
    }
    println!("@result rounds={rounds} commands={commands} levels={levels} errors={errors}");
    if errors == 0 { Ok(()) } else { Err("the device does not work") }
}

fn works(device: &AssignedDsa) -> bool {
    let descriptor = Descriptor::noop(RECORDS.address(0), 0).without_interrupt();
    submit_and_poll(&device.portals[0], &descriptor, &RECORDS, 0, LIMIT).is_some_and(|record| record.succeeded())
}
