//! Waiting, with a limit.

use core::arch::asm;

use super::{apic, interrupts};

/// Lets interrupts come.
pub fn enable_interrupts() {
    // SAFETY: every vector has a handler.
    unsafe { asm!("sti", options(nostack)) }
}

/// Keeps interrupts away.
pub fn disable_interrupts() {
    // SAFETY: keeps interrupts away; nothing else changes.
    unsafe { asm!("cli", options(nostack)) }
}

/// Sleeps until an interrupt comes; interrupts are off before and on after. STI holds interrupts back for one more
/// instruction, so none can come between and be slept through.
fn sleep() {
    // SAFETY: every vector has a handler.
    unsafe { asm!("sti", "hlt", options(nostack)) }
}

/// Sleeps until `done`, or until the TSC has gone on by `limit`. Returns whether it was done.
pub fn wait_until(limit: u64, done: impl Fn() -> bool) -> bool {
    let timeouts = interrupts::count(apic::TIMER_VECTOR);
    let mut armed = false;
    let in_time = loop {
        disable_interrupts();
        if done() {
            break true;
        }
        if interrupts::count(apic::TIMER_VECTOR) != timeouts {
            break false;
        }
        if !armed {
            apic::set_deadline(apic::tsc().saturating_add(limit));
            armed = true;
        }
        sleep();
    };
    if armed {
        apic::set_deadline(0);
    }
    enable_interrupts();
    in_time
}

/// Sleeps until `done`, however long that takes. Interrupts are on at the end; whoever had them off beforehand can be sure that
/// the guest sleeps before the next one comes.
pub fn sleep_until(done: impl Fn() -> bool) {
    disable_interrupts();
    while !done() {
        sleep();
        disable_interrupts();
    }
    enable_interrupts();
}

/// Looks again and again, without sleeping, until `done` or until the TSC has gone on by `limit`. Returns whether it was done.
pub fn poll_until(limit: u64, done: impl Fn() -> bool) -> bool {
    let end = apic::tsc().saturating_add(limit);
    while !done() {
        if apic::tsc() > end {
            return false;
        }
        core::hint::spin_loop();
    }
    true
}

/// Lets the TSC go on by `ticks`, with interrupts on.
pub fn linger(ticks: u64) {
    poll_until(ticks, || false);
}
