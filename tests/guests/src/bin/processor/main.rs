//! Holds the virtual processor to the manual where a hypervisor has a part in what an instruction does: traps, faults, flags, the local
//! APIC. On a machine without one the same checks hold. With a device the same of what an instruction does to a message store; with
//! `cpus=` what several processors do to one at a time.
//!
//! `way=` makes it do one thing instead that the hypervisor does not carry out, and that ends the guest: [`ways`].
#![no_std]
#![no_main]

mod apic;
mod debug;
mod forms;
mod speculation;
mod stores;
mod together;
mod ways;

use guests::bare::assigned::AssignedDsa;
use guests::bare::{Guest, poke};
use guests::{command_line, println};

guests::guest!(main);

/// What was checked, and what was wrong.
#[derive(Default)]
pub struct Checks {
    made: u32,
    errors: u32,
}

impl Checks {
    /// Counts a check, and tells one that failed.
    pub fn check(&mut self, what: &str, good: bool) {
        self.made += 1;
        if !good {
            self.errors += 1;
            println!("processor: error: {what}");
        }
    }
}

fn main(guest: &Guest) -> u8 {
    poke::enable_sse();
    if let Some(way) = command_line::option(guest.command_line, "way") {
        ways::go(guest, way);
    }
    let mut checks = Checks::default();
    apic::all(&mut checks);
    debug::all(&mut checks);
    speculation::all(&mut checks);
    let mut carried_out = 0;
    if let Ok(device) = AssignedDsa::start(guest) {
        stores::all(&mut checks, &device);
        carried_out = forms::all(&mut checks, &device, stores::enable_avx());
        if let Some(cpus) = command_line::number(guest.command_line, "cpus") {
            together::all(&mut checks, &device, cpus as usize);
        }
    }
    println!("@result checks={} carried_out={carried_out} errors={}", checks.made, checks.errors);
    u8::from(checks.errors != 0)
}
