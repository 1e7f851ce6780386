//! Counts how often the processor goes on at the wrong instruction after a VM exit that comes right behind an exception.
//!
//! The guest takes invalid-opcode exceptions without end while its timer, whose exits come at any instruction, fires. The emulator with
//! several processors saves the address of the faulting instruction at such an exit, although the exception has been delivered
//! (`tests/MACHINES.md`): the instruction faults once more, with the first exception's frame on the stack.
#![no_std]
#![no_main]

use core::arch::asm;

use guests::bare::{Guest, apic, faults, idle, interrupts};
use guests::println;

guests::guest!(main);

/// How often the timer fires.
const ROUNDS: u32 = 1_000;
/// TSC ticks until it does, at least, and what comes on top in turn, so that it fires at every place.
const TICKS: u64 = 2_000;
const SPREAD: u64 = 331;

fn main(_: &Guest) -> u8 {
    let (mut taken, mut stale) = (0_u32, 0_u32);
    idle::enable_interrupts();
    for round in 0..ROUNDS {
        let fired = interrupts::count(apic::TIMER_VECTOR);
        apic::set_deadline(apic::tsc() + TICKS + u64::from(round) * 7 % SPREAD);
        while interrupts::count(apic::TIMER_VECTOR) == fired {
            taken += 1;
            stale += u32::from(!fault_leaves_the_stack_as_it_was());
        }
    }
    println!("@result faults={taken} rounds={ROUNDS} stale={stale} errors=0");
    0
}

/// Takes an exception. Whether the stack pointer is the same when its handler has returned.
fn fault_leaves_the_stack_as_it_was() -> bool {
    let (before, after): (u64, u64);
    // SAFETY: the handler goes on at the label with all registers as they were but, by the emulator's fault, the stack pointer, which is
    // put back before anything uses it, and the interrupt flag, which is on here.
    unsafe {
        asm!(
            "lea {after}, [rip + 9f]",
            "mov [rip + {resume}], {after}",
            "mov {before}, rsp",
            "ud2",
            "9:",
            "mov {after}, rsp",
            "mov rsp, {before}",
            "sti",
            "cld",
            before = out(reg) before,
            after = out(reg) after,
            resume = sym faults::RESUME,
        );
    }
    faults::take();
    before == after
}
