//! Keeps values in every register that VM entry and exit do not switch, sleeps again and again, and looks whether they are still its
//! own; and whether an interrupt that it held back comes as soon as it may. Two of these with different seeds (`seed=1`, `seed=2`) on
//! one processor see each other's, where a switch forgets one.
#![no_std]
#![no_main]

use core::arch::asm;

use guests::bare::{Guest, apic, idle, interrupts, poke};
use guests::{command_line, println};

guests::guest!(main);

/// Sleeps, and the ticks of each: long enough for the other guest's turn.
const ROUNDS: u32 = 40;
const TICKS: u64 = 20_000;

/// The other guest may have its turn in one of the tries.
const TRIES: u32 = 4;
/// Ticks until the timer fires while interrupts are off; within which it has to be handled then; after which nobody waits any more.
const HELD_BACK: u64 = 3_000;
const PROMPT: u64 = 20_000;
const GIVE_UP: u64 = 10_000_000;

/// IA32_STAR, IA32_LSTAR, IA32_CSTAR, IA32_FMASK, IA32_KERNEL_GS_BASE, IA32_TSC_AUX.
const MSRS: [u32; 6] = [0xc000_0081, 0xc000_0082, 0xc000_0083, 0xc000_0084, 0xc000_0102, 0xc000_0103];

/// A register, by what is done with it.
struct Register {
    name: &'static str,
    write: fn(u64),
    read: fn() -> u64,
    /// Bits that hold what is written.
    mask: u64,
}

macro_rules! moved {
    ($name:literal, $mask:expr) => {
        Register {
            name: $name,
            // SAFETY: the program uses none of these registers: no breakpoint is armed (DR7), no page fault taken, no SSE code run.
            write: |value| unsafe { asm!(concat!("mov ", $name, ", {}"), in(reg) value, options(nomem, nostack)) },
            read: || {
                let value: u64;
                // SAFETY: as above; reading changes nothing.
                unsafe { asm!(concat!("mov {}, ", $name), out(reg) value, options(nomem, nostack)) };
                value
            },
            mask: $mask,
        }
    };
}

/// Addresses stay canonical below this.
const LOW: u64 = 0x7fff_ffff_f000;

const REGISTERS: [Register; 7] = [
    moved!("dr0", LOW),
    moved!("dr1", LOW),
    moved!("dr2", LOW),
    moved!("dr3", LOW),
    moved!("cr2", LOW),
    Register {
        name: "xmm5",
        // SAFETY: `enable_sse` was called, and the program has no SSE code but this.
        write: |value| unsafe { asm!("movq xmm5, {}", in(reg) value, options(nomem, nostack)) },
        read: || {
            let value: u64;
            // SAFETY: `enable_sse` was called; reading changes nothing.
            unsafe { asm!("movq {}, xmm5", out(reg) value, options(nomem, nostack)) };
            value
        },
        mask: u64::MAX,
    },
    Register {
        name: "xcr0",
        // SAFETY: `enable_xsave` was called. SSE state on or off: nobody saves it by XSAVE here.
        write: |value| unsafe {
            asm!("xsetbv", in("ecx") 0, in("eax") value as u32 | 1, in("edx") 0, options(nomem, nostack));
        },
        read: || {
            let value: u32;
            // SAFETY: `enable_xsave` was called; reading changes nothing.
            unsafe { asm!("xgetbv", in("ecx") 0, out("eax") value, out("edx") _, options(nomem, nostack)) };
            value.into()
        },
        mask: 1 << 1,
    },
];

/// Lets XCR0 be read and written: CR4.OSXSAVE.
fn enable_xsave() {
    // SAFETY: nobody looks at CPUID for it here.
    unsafe { asm!("mov {r}, cr4", "or {r}, 0x40000", "mov cr4, {r}", r = out(reg) _, options(nomem, nostack)) };
}

fn main(guest: &Guest) -> u8 {
    let seed = command_line::option(guest.command_line, "seed").and_then(|seed| seed.parse().ok()).unwrap_or(0u64);
    poke::enable_sse();
    enable_xsave();
    let value = |n: u64| (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(7 * n as u32 + 1);
    for (n, register) in (0..).zip(&REGISTERS) {
        (register.write)(value(n) & register.mask);
    }
    for (n, msr) in (10..).zip(MSRS) {
        write_msr(msr, value(n) & msr_mask(msr));
    }
    let mut errors = 0;
    for _ in 0..ROUNDS {
        idle::wait_until(TICKS, || false);
        for (n, register) in (0..).zip(&REGISTERS) {
            errors += differs(register.name, (register.read)() & register.mask, value(n) & register.mask);
        }
        for (n, msr) in (10..).zip(MSRS) {
            errors += differs("an MSR", read_msr(msr), value(n) & msr_mask(msr));
        }
    }
    let prompt = (0..TRIES).map(|_| ticks_to_held_back_interrupt()).min().unwrap_or(u64::MAX);
    if prompt > PROMPT {
        println!("neighbour: an interrupt that was held back came {prompt} ticks after STI");
        errors += 1;
    }
    println!("@result rounds={ROUNDS} prompt={prompt} errors={errors}");
    u8::from(errors != 0)
}

/// The timer fires while interrupts are off; how long after they are on again it is handled. Nothing here exits meanwhile, so that only
/// the hypervisor's own care for the window brings it.
fn ticks_to_held_back_interrupt() -> u64 {
    idle::disable_interrupts();
    let before = interrupts::count(apic::TIMER_VECTOR);
    apic::set_deadline(apic::tsc() + HELD_BACK);
    let end = apic::tsc() + 2 * HELD_BACK;
    while apic::tsc() < end {
        core::hint::spin_loop();
    }
    idle::enable_interrupts();
    let on = apic::tsc();
    idle::poll_until(GIVE_UP, || interrupts::count(apic::TIMER_VECTOR) != before);
    apic::tsc() - on
}

fn differs(name: &str, found: u64, expected: u64) -> u32 {
    if found == expected {
        return 0;
    }
    println!("neighbour: {name} is {found:#x}, not {expected:#x}");
    1
}

/// IA32_FMASK and IA32_TSC_AUX have 32 bits; the others hold addresses, IA32_STAR selectors.
fn msr_mask(msr: u32) -> u64 {
    if matches!(msr, 0xc000_0084 | 0xc000_0103) { 0xffff_ffff } else { LOW }
}

fn write_msr(msr: u32, value: u64) {
    // SAFETY: the program makes no system call and never swaps GS, so it does not notice.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nomem, nostack));
    }
}

fn read_msr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: every processor in 64-bit mode has these.
    unsafe { asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nomem, nostack)) };
    u64::from(high) << 32 | u64::from(low)
}
