//! A hostile guest that tries to have time which is not its own. In each phase it goes another way; a `victim` on the processor that runs the
//! guest's odd virtual processors tells what it lost.
//!
//! Virtual processor 0 conducts: it puts the odd ones into a state, and then does to them, as often as it can, what may cost others time.
#![no_std]
#![no_main]

mod armed;
mod attacks;
mod roles;

use guests::bare::{Guest, apic, idle, interrupts, smp};
use guests::phases::Phases;
use guests::{command_line, println};

guests::guest!(main);

/// The virtual processors on the victim's processor.
pub fn victims_side(cpus: usize) -> impl Iterator<Item = usize> {
    (1..cpus).step_by(2)
}

fn main(guest: &Guest) -> Result<(), &'static str> {
    let number = |key| command_line::number(guest.command_line, key);
    let cpus = (number("cpus").unwrap_or(1) as usize).clamp(1, smp::MOST);
    smp::install();
    interrupts::set_handler(|_| ());
    idle::enable_interrupts();
    let with_device = command_line::option(guest.command_line, "device") == Some("yes");
    let armed = with_device.then(|| armed::Armed::new(guest, cpus)).transpose()?;
    let mut means = attacks::Means { cpus, armed };
    let forges = command_line::option(guest.command_line, "forge") != Some("no");
    let mut phases = Phases::from(apic::tsc());
    if let Some(millions) = number("phase") {
        phases = Phases { base: apic::tsc(), ticks: u64::from(millions.clamp(1, 1000)) * 1_000_000 };
    }
    let mut tries = [0u64; attacks::ALL.len()];
    for (number, (attack, tries)) in (0..).zip(attacks::ALL.iter().zip(&mut tries)) {
        roles::enter(cpus, attack.role)?;
        idle::poll_until(u64::MAX, || phases.at(apic::tsc()).is_some_and(|now| now >= number));
        // The victim has the end of each phase for itself: what an attack leaves behind is not the next one's.
        let end = phases.end(number) - phases.ticks / 8;
        while (forges || !attack.name.starts_with("forged")) && apic::tsc() < end {
            (attack.once)(&mut means);
            *tries += 1;
        }
    }
    roles::enter(cpus, roles::Role::Absent)?;
    for (number, (attack, tries)) in attacks::ALL.iter().zip(tries).enumerate() {
        println!("@attack number={number} name={} tries={tries}", attack.name);
    }
    println!("@result base={} attacks={} errors=0", phases.base, attacks::ALL.len());
    Ok(())
}
