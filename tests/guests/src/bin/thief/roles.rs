//! What the virtual processors on the victim's processor do.

use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::SeqCst};

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

/// All of them have started. Until then they sleep: those that compute would keep the others from starting.
static GO: AtomicBool = AtomicBool::new(false);

/// The vector that wakes them then.
const WAKE: u64 = 0x40;

/// How many of them are in a role in which they sleep. An attack that comes too early would find them at work.
static SETTLED: AtomicU32 = AtomicU32::new(0);
/// Ticks in which they are.
const LIMIT: u64 = 8_000_000;

/// Puts the virtual processors into a role.
pub fn enter(cpus: usize, role: Role) -> Result<(), &'static str> {
    ROLE.store(role as u8, SeqCst);
    GO.store(false, SeqCst);
    SETTLED.store(0, SeqCst);
    for number in victims_side(cpus) {
        apic::send(number as u32, apic::INIT);
        if role != Role::Absent && !smp::start(number, play) {
            return Err("a processor did not start");
        }
    }
    GO.store(true, SeqCst);
    if role != Role::Absent {
        victims_side(cpus).for_each(|number| apic::send(number as u32, apic::FIXED | WAKE));
    }
    let sleeps = matches!(role, Role::Deaf | Role::Masked | Role::Asleep);
    let have_settled = || SETTLED.load(SeqCst) as usize == victims_side(cpus).count();
    if sleeps && !idle::poll_until(LIMIT, have_settled) {
        return Err("the processors do not settle");
    }
    Ok(())
}

fn is(role: Role) -> bool {
    ROLE.load(SeqCst) == role as u8
}

fn play(number: usize) {
    while !GO.load(SeqCst) {
        // SAFETY: every vector has a handler. STI lets nothing in before HLT has begun; the look in between finds what came before it.
        unsafe { asm!("cli", options(nostack)) }
        if GO.load(SeqCst) {
            break;
        }
        // SAFETY: as above.
        unsafe { asm!("sti", "hlt", options(nostack)) }
    }
    idle::enable_interrupts();
    if is(Role::Deaf) {
        SETTLED.fetch_add(1, SeqCst);
        loop {
            // SAFETY: nothing but NMIs, INIT and start-up commands comes; the first find a handler.
            unsafe { asm!("cli", "hlt", options(nomem, nostack)) }
        }
    }
    if is(Role::Masked) {
        apic::set_priority(0xf0);
    }
    if is(Role::Masked) || is(Role::Asleep) {
        SETTLED.fetch_add(1, SeqCst);
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
