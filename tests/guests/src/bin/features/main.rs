//! What the interface offers, one thing after another, by a driver: `case=` says which. Each case ends with a line of figures, which the
//! tests look at.
#![no_std]
#![no_main]

mod coexist;
mod detect;
mod faults;
mod handles;
mod many;
mod msix;
mod opaque;
mod pasid;
mod policy;
mod queue;
mod rig;
mod slots;
mod storm;
mod vectors;

use guests::bare::{Guest, idle};
use guests::command_line;

guests::guest!(run);

fn run(guest: &Guest) -> Result<(), &'static str> {
    idle::enable_interrupts();
    match command_line::option(guest.command_line, "case") {
        Some("slots") => slots::run(guest),
        Some("many") => many::run(guest),
        Some("handles") => handles::run(guest),
        Some("coexist") => coexist::run(guest),
        Some("victim") => faults::be_victim(guest),
        Some("thief") => faults::be_thief(guest),
        Some("policy") => policy::run(guest),
        Some("detect") => detect::run(guest),
        Some("pasid") => pasid::run(guest),
        Some("opaque") => opaque::run(guest),
        Some("queue") => queue::run(guest),
        Some("not-isolated") => queue::be_refused(),
        Some("storm") => storm::run(guest),
        Some("storm-by-dma") => storm::run_past(guest),
        Some("vectors") => vectors::run(guest),
        _ => Err("no such case"),
    }
}
