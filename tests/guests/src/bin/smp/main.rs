//! A guest with several processors. It starts them, sends every kind of interrupt between them, and then has all of them map, mask,
//! re-target and free slots at random while the device raises them.
#![no_std]
#![no_main]

mod ipis;
mod oracle;
mod stress;

use guests::bare::{Guest, idle, smp};
use guests::{command_line, println};

guests::guest!(main);

fn main(guest: &Guest) -> u8 {
    match run(guest) {
        Ok(()) => 0,
        Err(why) => {
            println!("smp: {why}");
            1
        }
    }
}

fn run(guest: &Guest) -> Result<(), &'static str> {
    let number = |key| command_line::number(guest.command_line, key);
    let cpus = (number("cpus").unwrap_or(1) as usize).clamp(1, smp::MOST);
    smp::install();
    idle::enable_interrupts();
    ipis::all(cpus)?;
    match number("ops") {
        Some(ops) => stress::run(guest, cpus, ops as u32),
        None => Ok(()),
    }
}
