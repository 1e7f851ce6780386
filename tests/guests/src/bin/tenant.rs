//! A tenant: it works until it is asked to stop, and says then how much it has done. `rounds=` ends it by itself after so many rounds, `code=`
//! is its exit code, and with `deaf=yes` it does not listen when it is asked. With `busy=yes` it never sleeps, and tells the longest time for which
//! it did not run (`gap`, in ticks).
#![no_std]
#![no_main]

use guest_shim::hcall_abi::Target;
use guests::bare::{Guest, apic, assigned, idle, interrupts};
use guests::{command_line, println};

guests::guest!(main);

/// The vector of the request to stop.
const STOP: u8 = 0xe0;
/// Ticks of a round: some of them asleep.
const WORK: u64 = 100_000;
const SLEEP: u64 = 20_000;

fn main(guest: &Guest) -> u8 {
    let number = |key| command_line::number(guest.command_line, key);
    let Some(calls) = assigned::hypercalls() else {
        println!("tenant: there is no hypervisor that can ask");
        return 1;
    };
    interrupts::set_handler(|_| ());
    idle::enable_interrupts();
    let mut errors = 0;
    // A call that others have.
    if !calls.can_manage()
        && calls.start_guest(guest_shim::hcall_abi::GuestNumber(0)) != Err(guest_shim::hcall_abi::Status::UnknownCall)
    {
        println!("tenant: it can start guests");
        errors += 1;
    }
    if command_line::option(guest.command_line, "deaf") != Some("yes")
        && let Err(status) = calls.set_stop_request(Some(Target { apic_id: 0, vector: STOP }))
    {
        println!("tenant: {status}");
        errors += 1;
    }
    let (mut rounds, limit) = (0_u64, number("rounds").map_or(u64::MAX, u64::from));
    let is_asked = || interrupts::count(STOP) != 0;
    let is_busy = command_line::option(guest.command_line, "busy") == Some("yes");
    let (mut gap, mut last) = (0, apic::tsc());
    while is_busy && rounds < limit && !is_asked() {
        let now = apic::tsc();
        gap = gap.max(now - last);
        last = now;
        rounds += 1;
    }
    while rounds < limit && !is_asked() {
        idle::poll_until(WORK, is_asked);
        idle::wait_until(SLEEP, is_asked);
        rounds += 1;
    }
    println!("@result rounds={rounds} gap={gap} errors={errors}");
    if errors != 0 { 1 } else { number("code").unwrap_or(0) as u8 }
}
