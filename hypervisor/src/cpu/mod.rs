//! The processor the hypervisor runs on: tables, exceptions, interrupts, registers that guests share with it.

pub mod bits;
pub mod exception;
pub mod fpu;
pub mod interrupts;
pub mod tables;
pub mod this;

/// The time-stamp counter.
pub fn tsc() -> u64 {
    // SAFETY: RDTSC reads a counter and nothing else.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// The processor's signature: family, model, stepping, as CPUID tells them.
pub fn signature() -> u32 {
    core::arch::x86_64::__cpuid(1).eax
}

/// Whether pages can be made not executable, and EFER has NXE. The entry code has undone what firmware can do to hide this.
pub fn has_no_execute() -> bool {
    raw_cpuid::CpuId::new().get_extended_processor_and_feature_identifiers().is_some_and(|f| f.has_execute_disable())
}

/// EDX of CPUID leaf 7: features among which are those for the control of speculation.
pub fn leaf7_edx() -> u32 {
    use core::arch::x86_64::__cpuid_count;
    const LEAF: u32 = 7;
    if __cpuid_count(0, 0).eax < LEAF { 0 } else { __cpuid_count(LEAF, 0).edx }
}

/// IA32_ARCH_CAPABILITIES: from which attacks the processor is free. `None` where it has no such register.
pub fn arch_capabilities() -> Option<u64> {
    const IA32_ARCH_CAPABILITIES: u32 = 0x10a;
    const HAS_ARCH_CAPABILITIES: u32 = 1 << 29;
    // SAFETY: CPUID says that the register is there; reading it has no side effect.
    (leaf7_edx() & HAS_ARCH_CAPABILITIES != 0).then(|| unsafe { x86::msr::rdmsr(IA32_ARCH_CAPABILITIES) })
}

/// Stops this processor for good.
pub fn stop() -> ! {
    loop {
        // SAFETY: interrupts are off, so nothing runs after the HLT but this loop.
        unsafe { core::arch::asm!("cli", "hlt", options(nomem, nostack)) }
    }
}

/// Reads a control register, all bits of it.
macro_rules! read_control {
    ($(#[$doc:meta])+ $name:ident, $register:literal) => {
        $(#[$doc])+
        pub fn $name() -> u64 {
            let value: u64;
            // SAFETY: reading a control register at CPL 0 has no side effect.
            unsafe { core::arch::asm!(concat!("mov {}, ", $register), out(reg) value, options(nomem, nostack, preserves_flags)) };
            value
        }
    };
}

read_control! {
    /// CR0.
    cr0, "cr0"
}
read_control! {
    /// CR2: the linear address of the last page fault.
    cr2, "cr2"
}
read_control! {
    /// CR3.
    cr3, "cr3"
}
read_control! {
    /// CR4.
    cr4, "cr4"
}

/// Writes CR4.
///
/// # Safety
/// The value must keep what the hypervisor's own code needs (PAE).
pub unsafe fn write_cr4(value: u64) {
    // SAFETY: the caller vouches for the value.
    unsafe { core::arch::asm!("mov cr4, {}", in(reg) value, options(nostack, preserves_flags)) }
}

/// Writes CR0.
///
/// # Safety
/// The value must keep what the hypervisor's own code needs (PE, PG).
pub unsafe fn write_cr0(value: u64) {
    // SAFETY: the caller vouches for the value.
    unsafe { core::arch::asm!("mov cr0, {}", in(reg) value, options(nostack, preserves_flags)) }
}

/// Writes CR2.
pub fn write_cr2(value: u64) {
    // SAFETY: the hypervisor never takes page faults, so CR2 has no meaning to it.
    unsafe { core::arch::asm!("mov cr2, {}", in(reg) value, options(nomem, nostack, preserves_flags)) }
}

/// Makes DR6 say what a debug exception of the guest was for: bits 3:0, 13 and 14 of `cause`.
pub fn add_dr6(cause: u64) {
    /// Bits that read as 1; bits 3:0, BD and BS are set by causes.
    const FIXED: u64 = 0xffff_0ff0;
    const CAUSES: u64 = 0x600f;
    let value = FIXED | cause & CAUSES;
    // SAFETY: DR6 only reports; the hypervisor arms no breakpoint.
    unsafe { core::arch::asm!("mov dr6, {}", in(reg) value, options(nomem, nostack, preserves_flags)) }
}
