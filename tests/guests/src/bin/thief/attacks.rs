//! The ways to have others' time.

use guests::bare::{apic, idle};
use guests::println;

use crate::{armed::Armed, roles::Role, victims_side};

/// What the attacker has.
pub struct Means {
    /// Its virtual processors.
    pub cpus: usize,
    /// Its device, if it has one.
    pub armed: Option<Armed>,
}

/// An attack: the role of the virtual processors on the victim's processor, and what virtual processor 0 does, once.
pub struct Attack {
    pub name: &'static str,
    pub role: Role,
    pub once: fn(&mut Means),
}

/// A vector below the priority of [`Role::Masked`].
const VECTOR: u64 = 0x41;

const fn attack(name: &'static str, role: Role, once: fn(&mut Means)) -> Attack {
    Attack { name, role, once }
}

/// All of them; the first one is none, for comparison.
pub const ALL: [Attack; 24] = [
    attack("none", Role::Absent, rest),
    attack("init-to-absent", Role::Absent, |means| send(means, apic::INIT)),
    attack("nmi-to-absent", Role::Absent, |means| send(means, apic::NMI)),
    attack("fixed-to-absent", Role::Absent, |means| send(means, apic::FIXED | VECTOR)),
    attack("restarts", Role::Deaf, |means| {
        send(means, apic::INIT);
        send(means, apic::START_UP | 0x10);
    }),
    attack("fixed-to-deaf", Role::Deaf, |means| send(means, apic::FIXED | VECTOR)),
    attack("nmi-to-deaf", Role::Deaf, |means| send(means, apic::NMI)),
    attack("fixed-to-masked", Role::Masked, |means| send(means, apic::FIXED | VECTOR)),
    attack("fixed-to-asleep", Role::Asleep, |means| send(means, apic::FIXED | VECTOR)),
    attack("fixed-to-busy", Role::Busy, |means| send(means, apic::FIXED | VECTOR)),
    attack("timers", Role::Ticking, rest),
    attack("busy", Role::Busy, rest),
    attack("exits", Role::Exiting, rest),
    attack("lines", Role::Talking, |_| {
        println!("virtual processor 0 has something to say, and says it again and again")
    }),
    attack("all-at-once", Role::Asleep, |means| {
        send(means, apic::FIXED | VECTOR);
        send(means, apic::NMI);
        println!("virtual processor 0 has something to say, and says it again and again");
    }),
    attack("device-to-absent", Role::Absent, raise),
    attack("device-to-deaf", Role::Deaf, raise),
    attack("device-to-masked", Role::Masked, raise),
    attack("device-to-asleep", Role::Asleep, raise),
    attack("device-to-busy", Role::Busy, raise),
    attack("forged-to-masked", Role::Masked, |means| means.armed.iter_mut().for_each(Armed::forge)),
    attack("forged-to-asleep", Role::Asleep, |means| means.armed.iter_mut().for_each(Armed::forge)),
    attack("dma-faults", Role::Absent, |means| means.armed.iter_mut().for_each(Armed::fault)),
    attack("device-resets", Role::Absent, |means| means.armed.iter_mut().for_each(Armed::reset)),
];

fn raise(means: &mut Means) {
    means.armed.iter_mut().for_each(Armed::raise);
}

fn rest(_: &mut Means) {
    idle::wait_until(1_000_000, || false);
}

fn send(means: &mut Means, command: u64) {
    victims_side(means.cpus).for_each(|number| apic::send(number as u32, command));
}
