//! The local APIC in x2APIC mode (SDM 3, 11.12), which the guest finds enabled.

use core::arch::asm;

const ID: u32 = 0x802;
const TPR: u32 = 0x808;
const EOI: u32 = 0x80b;
const SVR: u32 = 0x80f;
const LVT_TIMER: u32 = 0x832;
const TSC_DEADLINE: u32 = 0x6e0;

const SVR_ENABLED: u64 = 1 << 8;
const LVT_TSC_DEADLINE: u64 = 2 << 17;

/// The vector of spurious interrupts, which get no EOI.
pub const SPURIOUS_VECTOR: u8 = 0xff;
/// The timer's vector.
pub const TIMER_VECTOR: u8 = 0xf0;

/// # Safety
/// The register exists, and the value does not break the program's memory.
unsafe fn wrmsr(register: u32, value: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("wrmsr", in("ecx") register, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack));
    }
}

/// # Safety
/// The register exists.
unsafe fn rdmsr(register: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the caller's promise.
    unsafe { asm!("rdmsr", in("ecx") register, out("eax") low, out("edx") high, options(nostack)) }
    u64::from(high) << 32 | u64::from(low)
}

/// Lets the APIC take interrupts of every priority, and sets the timer up.
pub fn enable() {
    // SAFETY: the x2APIC is enabled; the vectors have handlers.
    unsafe {
        wrmsr(SVR, SVR_ENABLED | u64::from(SPURIOUS_VECTOR));
        wrmsr(TPR, 0);
        wrmsr(LVT_TIMER, LVT_TSC_DEADLINE | u64::from(TIMER_VECTOR));
    }
}

/// This processor's x2APIC ID.
pub fn id() -> u32 {
    // SAFETY: the x2APIC is enabled.
    unsafe { rdmsr(ID) as u32 }
}

/// Ends the interrupt in service.
pub fn end_of_interrupt() {
    // SAFETY: the x2APIC is enabled.
    unsafe { wrmsr(EOI, 0) }
}

/// Lets the timer fire when the TSC reaches `deadline`; 0 stops it.
pub fn set_deadline(deadline: u64) {
    // SAFETY: the timer's vector has a handler.
    unsafe { wrmsr(TSC_DEADLINE, deadline) }
}

/// The time-stamp counter.
pub fn tsc() -> u64 {
    // SAFETY: reading it changes nothing.
    unsafe { core::arch::x86_64::_rdtsc() }
}
