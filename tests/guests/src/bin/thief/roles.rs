//! What the virtual processors on the victim's processor do.

use core::arch::asm;
use core::sync::atomic::{AtomicU8, Ordering::SeqCst};

use guests::bare::{apic, idle, smp};
use guests::println;

use crate::victims_side;

/// What they do.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Role {
    /// They wait for a start-up command.
    Absent,
    /// They sleep, and no interrupt wakes them.
    Deaf,
    /// They sleep, with interrupts on, and a priority that lets none of the attack's in.
    Masked,
    /// They sleep until an interrupt comes, and again.
    Asleep,
    /// They sleep until the next tick of a timer that fires as often as it can.
    Ticking,
    /// They compute.
    Busy,
    /// They execute an instruction that exits, again and again.
    Exiting,
    /// They write lines to the console.
    Talking,
}

static ROLE: AtomicU8 = AtomicU8::new(0);

/// Puts the virtual processors into a role.
pub fn enter(cpus: usize, role: Role) -> Result<(), &'static str> {
    ROLE.store(role as u8, SeqCst);
    for number in victims_side(cpus) {
        apic::send(number as u32, apic::INIT);
        if role != Role::Absent && !smp::start(number, play) {
            return Err("a processor did not start");
        }
    }
    Ok(())
}

fn is(role: Role) -> bool {
    ROLE.load(SeqCst) == role as u8
}

fn play(number: usize) {
    if is(Role::Deaf) {
        loop {
            // SAFETY: nothing but NMIs, INIT and start-up commands comes; the first find a handler.
            unsafe { asm!("cli", "hlt", options(nomem, nostack)) }
        }
    }
    if is(Role::Masked) {
        apic::set_priority(0xf0);
    }
    if is(Role::Masked) || is(Role::Asleep) {
        loop {
            // SAFETY: every vector has a handler.
            unsafe { asm!("sti", "hlt", options(nostack)) }
        }
    }
    while is(Role::Ticking) {
        idle::wait_until(1, || false);
        idle::wait_until(2_000, || false);
    }
    while is(Role::Busy) {
        core::hint::spin_loop();
    }
    while is(Role::Exiting) {
        core::hint::black_box(core::arch::x86_64::__cpuid(0));
    }
    while is(Role::Talking) {
        println!("virtual processor {number} has something to say, and says it again and again");
    }
}
