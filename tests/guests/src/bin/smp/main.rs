//! A guest with several processors. It starts them and sends every kind of interrupt between them. With `ops=` all of them map, mask,
//! re-target and free slots at random while the device raises them; with `race=` they fight for the same slots.
//! What is random follows from `seed=`.
#![no_std]
#![no_main]

mod ipis;
mod oracle;
mod race;
mod stress;

use guests::bare::{Guest, idle, smp};
use guests::{command_line, println};

guests::guest!(run);

fn run(guest: &Guest) -> Result<(), &'static str> {
    let number = |key| command_line::number(guest.command_line, key);
    let cpus = (number("cpus").unwrap_or(1) as usize).clamp(1, smp::MOST);
    smp::install();
    idle::enable_interrupts();
    let (ipis, wake, late) = ipis::all(cpus)?;
    println!("smp: {ipis} interrupts between {cpus} processors, in at most {wake} ticks to one that sleeps");
    if let Some(ops) = number("ops") {
        stress::run(guest, cpus, (ipis, wake, late), ops)?;
    }
    match number("race") {
        Some(rounds) => race::run(guest, cpus, rounds),
        None => Ok(()),
    }
}
