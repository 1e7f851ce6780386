//! A guest that knows nothing of interrupt message stores: it drives virtual functions of a DSA by the PCI specification's and the device's
//! rules alone, with as many MSI-X vectors as their tables have.
//!
//! Each interrupt is counted, and must come once and where it belongs; what must not come is waited for as well.
#![no_std]
#![no_main]

mod commands;
mod crash;
mod emulated;
mod flood;
mod function;
mod halt;
mod level_reset;
mod masks;
mod odd;
mod processors;
mod storm;
mod tenant;
mod together;

use function::{COUNTS, Vf};
use guests::bare::{Guest, config, idle, interrupts, smp, vector};
use guests::dsa::spec;
use guests::{command_line, pci, println};

guests::guest!(run);

fn run(guest: &Guest) -> Result<(), &'static str> {
    let mut functions = pci::find_all(&config::Ports, spec::VENDOR, &spec::DEVICES);
    let mut take = |number| {
        let function = functions.next().ok_or("a function is missing")?;
        Vf::find(guest, function, number)
    };
    smp::install();
    idle::enable_interrupts();
    let mut first = take(0)?;
    if let Some(case) = command_line::option(guest.command_line, "case") {
        if case == "tenant" {
            return tenant::run(&mut first);
        }
        first.start()?;
        return match case {
            "storm" => storm::run(&mut first),
            "crash" => crash::run(&mut first),
            "flood" => flood::run(&mut first),
            "halt" => halt::run(&mut first),
            "commands" => commands::give(&mut first),
            "drain" => {
                let mut second = take(1)?;
                second.start()?;
                commands::drain(&mut first, &mut second)
            }
            _ => Err("no such case"),
        };
    }
    let mut second = take(1)?;
    interrupts::set_handler(arrived);
    for vf in [&mut first, &mut second] {
        vf.start()?;
        println!("vfunc: {} has {} vectors", vf.function, vf.vectors);
        vf.fire_all();
    }
    let fired = COUNTS.total();
    for vf in [&mut first, &mut second] {
        masks::all(vf);
        emulated::all(vf);
        odd::all(vf);
    }
    together::all(&mut first, &mut second);
    if command_line::number(guest.command_line, "processors") == Some(2) {
        processors::all(&mut first);
    }
    for vf in [&mut first, &mut second] {
        level_reset::all(vf);
    }
    let errors = function::errors() + COUNTS.strays();
    if COUNTS.strays() != 0 {
        println!("vfunc: {} strays, the last on vector {:#x}", COUNTS.strays(), COUNTS.last_stray());
    }
    println!(
        "@result vectors={} fired={fired} handled={} emulated={} foreign_refused={} errors={errors}",
        first.vectors + second.vectors,
        COUNTS.total(),
        first.signals + second.signals,
        first.refused + second.refused,
    );
    if errors == 0 { Ok(()) } else { Err("not everything was right") }
}

/// An interrupt has come. Those of the hypervisor's own are counted by their vectors alone.
fn arrived(vector: u8) {
    processors::note();
    if vector <= vector::LAST {
        COUNTS.arrived(vector);
    }
}
