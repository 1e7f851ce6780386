//! The ways to have others' time.

use guests::bare::{apic, idle};
use guests::println;

use crate::{roles::Role, victims_side};

/// An attack: the role of the virtual processors on the victim's processor, and what virtual processor 0 does, once.
pub struct Attack {
    pub name: &'static str,
    pub role: Role,
    pub once: fn(usize),
}

/// A vector below the priority of [`Role::Masked`].
const VECTOR: u64 = 0x41;

const fn attack(name: &'static str, role: Role, once: fn(usize)) -> Attack {
    Attack { name, role, once }
}

/// All of them; the first one is none, for comparison.
pub const ALL: [Attack; 15] = [
    attack("none", Role::Absent, rest),
    attack("init-to-absent", Role::Absent, |cpus| send(cpus, apic::INIT)),
    attack("nmi-to-absent", Role::Absent, |cpus| send(cpus, apic::NMI)),
    attack("fixed-to-absent", Role::Absent, |cpus| send(cpus, apic::FIXED | VECTOR)),
    attack("restarts", Role::Deaf, |cpus| {
        send(cpus, apic::INIT);
        send(cpus, apic::START_UP | 0x10);
    }),
    attack("fixed-to-deaf", Role::Deaf, |cpus| send(cpus, apic::FIXED | VECTOR)),
    attack("nmi-to-deaf", Role::Deaf, |cpus| send(cpus, apic::NMI)),
    attack("fixed-to-masked", Role::Masked, |cpus| send(cpus, apic::FIXED | VECTOR)),
    attack("fixed-to-asleep", Role::Asleep, |cpus| send(cpus, apic::FIXED | VECTOR)),
    attack("fixed-to-busy", Role::Busy, |cpus| send(cpus, apic::FIXED | VECTOR)),
    attack("timers", Role::Ticking, rest),
    attack("busy", Role::Busy, rest),
    attack("exits", Role::Exiting, rest),
    attack("lines", Role::Talking, |_| {
        println!("virtual processor 0 has something to say, and says it again and again")
    }),
    attack("all-at-once", Role::Asleep, |cpus| {
        send(cpus, apic::FIXED | VECTOR);
        send(cpus, apic::NMI);
        println!("virtual processor 0 has something to say, and says it again and again");
    }),
];

fn rest(_: usize) {
    idle::wait_until(1_000_000, || false);
}

fn send(cpus: usize, command: u64) {
    victims_side(cpus).for_each(|number| apic::send(number as u32, command));
}
