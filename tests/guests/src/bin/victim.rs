//! A guest that computes all the time, and tells how much of each phase it had (in thousandths), and how late its timer's interrupts came. A `thief` on the
//! same processor attacks it by another way in each phase.
//!
//! It looks at the TSC again and again: between two looks that are near to each other it ran, and between others somebody else did.
#![no_std]
#![no_main]

use guests::bare::{Guest, apic, idle, interrupts};
use guests::phases::{PHASE, Phases};
use guests::{command_line, println};

guests::guest!(main);

/// Most phases.
const MOST: usize = 40;
/// Ticks between two looks at the TSC, at most, if nothing comes between them.
const NEAR: u64 = 200;
/// Ticks from one interrupt of the timer to the next one.
const TIMER: u64 = 150_000;

/// What became of a phase.
#[derive(Clone, Copy)]
struct Seen {
    /// Ticks that the guest ran.
    ran: u64,
    /// The most ticks that it did not run in a piece. A gap belongs to the phase in which it ends.
    gap: u64,
    /// The most ticks that an interrupt of the timer was late.
    late: u64,
}

fn main(guest: &Guest) -> u8 {
    let count = (command_line::number(guest.command_line, "phases").unwrap_or(1) as usize).min(MOST);
    idle::enable_interrupts();
    let phases = Phases::from(apic::tsc());
    let mut timer = Timer::arm();
    let mut seen = [Seen { ran: 0, gap: 0, late: 0 }; MOST];
    let mut last = apic::tsc();
    loop {
        let now = apic::tsc();
        let passed = now - last;
        last = now;
        let Some(number) = phases.at(now) else {
            // The first one is looked at when the phases have begun.
            if timer.fired().is_some() {
                timer = Timer::arm();
            }
            continue;
        };
        let Some(one) = seen[..count].get_mut(number as usize) else { break };
        if passed <= NEAR {
            one.ran += passed
        } else {
            one.gap = one.gap.max(passed)
        }
        if let Some(late) = timer.fired() {
            one.late = one.late.max(now.saturating_sub(late));
            timer = Timer::arm();
        }
    }
    apic::set_deadline(0);
    for (number, Seen { ran, gap, late }) in seen[..count].iter().enumerate() {
        println!("@phase number={number} had={} gap={gap} late={late}", ran * 1000 / PHASE);
    }
    println!("@result base={} phases={count} errors=0", phases.base);
    0
}

/// The local APIC's timer.
struct Timer {
    deadline: u64,
    /// How often it had fired when it was armed.
    before: u32,
}

impl Timer {
    fn arm() -> Self {
        let timer = Self { deadline: apic::tsc() + TIMER, before: interrupts::count(apic::TIMER_VECTOR) };
        apic::set_deadline(timer.deadline);
        timer
    }

    /// When it was to fire, if its interrupt has come.
    fn fired(&self) -> Option<u64> {
        (interrupts::count(apic::TIMER_VECTOR) != self.before).then_some(self.deadline)
    }
}
