//! Waiting, with a limit.

use core::arch::asm;

use super::{apic, interrupts, profile};

/// The longest sleep where the machine may sleep through an interrupt: see `profile`.
const BACKSTOP: u64 = 200_000;

/// Lets interrupts come.
pub fn enable_interrupts() {
    if profile::is_posted() {
        profile::set_priority(0);
    }
    // SAFETY: every vector has a handler.
    unsafe { asm!("sti", options(nostack)) }
}

/// Keeps interrupts away.
pub fn disable_interrupts() {
    if profile::is_posted() {
        return profile::set_priority(15);
    }
    // SAFETY: keeps interrupts away; nothing else changes.
    unsafe { asm!("cli", options(nostack)) }
}

/// Sleeps until an interrupt comes, unless it is `done`; interrupts are on after that. STI holds interrupts back for one more
/// instruction, so none can come between and be slept through.
fn sleep_unless(done: impl Fn() -> bool) {
    if profile::is_posted() {
        enable_interrupts();
        return profile::sleep_unless(done);
    }
    disable_interrupts();
    if done() {
        return enable_interrupts();
    }
    // SAFETY: every vector has a handler.
    unsafe { asm!("sti", "hlt", options(nostack)) }
}

/// Sleeps until `done`, or until the TSC has gone on by `limit`. Returns whether it was done.
pub fn wait_until(limit: u64, done: impl Fn() -> bool) -> bool {
    let end = apic::tsc().saturating_add(limit);
    let longest = if profile::is_posted() { BACKSTOP } else { limit };
    let mut armed = None;
    let in_time = loop {
        if done() {
            break true;
        }
        let now = apic::tsc();
        if now >= end {
            break false;
        }
        let timeouts = interrupts::count(apic::TIMER_VECTOR);
        if armed != Some(timeouts) {
            apic::set_deadline(now.saturating_add(longest).min(end));
            armed = Some(timeouts);
        }
        sleep_unless(|| done() || interrupts::count(apic::TIMER_VECTOR) != timeouts);
    };
    if armed.is_some() {
        apic::set_deadline(0);
    }
    enable_interrupts();
    in_time
}

/// Sleeps until `done`, however long that takes: a sleep that the machine is to be blamed for ends with the hypervisor's next slice.
/// Interrupts are on at the end; whoever had them off beforehand can be sure that
/// the guest sleeps before the next one comes.
pub fn sleep_until(done: impl Fn() -> bool) {
    while !done() {
        sleep_unless(&done);
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
