//! The processor the hypervisor runs on: tables, exceptions, interrupts, registers that guests share with it.

pub mod bits;
pub mod exception;
pub mod fiber;
pub mod fpu;
pub mod interrupts;
pub mod machine_check;
pub mod percpu;
pub mod speculation;
pub mod stop;
pub mod tables;

/// The time-stamp counter.
pub fn tsc() -> u64 {
    // SAFETY: RDTSC reads a counter and nothing else.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// The processor's signature from CPUID: family, model, stepping.
pub fn signature() -> u32 {
    core::arch::x86_64::__cpuid(1).eax
}

/// Whether pages can be made not executable, and EFER has NXE. The entry code has undone the firmware's means to hide this.
pub fn has_no_execute() -> bool {
    raw_cpuid::CpuId::new().get_extended_processor_and_feature_identifiers().is_some_and(|f| f.has_execute_disable())
}

/// EDX of CPUID leaf 7, which has the features for the control of speculation.
pub fn leaf7_edx() -> u32 {
    use core::arch::x86_64::__cpuid_count;
    const LEAF: u32 = 7;
    if __cpuid_count(0, 0).eax < LEAF { 0 } else { __cpuid_count(LEAF, 0).edx }
}

/// IA32_ARCH_CAPABILITIES: the attacks that the processor is immune to. `None` if it has no such register.
pub fn arch_capabilities() -> Option<u64> {
    const IA32_ARCH_CAPABILITIES: u32 = 0x10a;
    const HAS_ARCH_CAPABILITIES: u32 = 1 << 29;
    // SAFETY: CPUID says that the register is there; reading it has no side effect.
    (leaf7_edx() & HAS_ARCH_CAPABILITIES != 0).then(|| unsafe { x86::msr::rdmsr(IA32_ARCH_CAPABILITIES) })
}

/// Stops this processor for good. It handles an NMI, and stays stopped.
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

/// DR0 to DR3, which are the running guest's.
pub fn breakpoint_addresses() -> [u64; 4] {
    let mut values = [0u64; 4];
    // SAFETY: reading debug registers has no side effect, since DR7.GD is clear in the hypervisor.
    unsafe {
        core::arch::asm!(
            "mov {0}, dr0", "mov {1}, dr1", "mov {2}, dr2", "mov {3}, dr3",
            out(reg) values[0], out(reg) values[1], out(reg) values[2], out(reg) values[3],
            options(nomem, nostack, preserves_flags)
        );
    }
    values
}

/// Sets the bits in DR6 that report a debug exception of the guest: bits 3:0, 13 and 14 of `cause`.
pub fn add_dr6(cause: u64) {
    let old: u64;
    // SAFETY: reading DR6 has no side effect, since DR7.GD is clear in the hypervisor.
    unsafe { core::arch::asm!("mov {}, dr6", out(reg) old, options(nomem, nostack, preserves_flags)) };
    let value = dr6_after(old, cause);
    // SAFETY: DR6 only reports; the hypervisor arms no breakpoint.
    unsafe { core::arch::asm!("mov dr6, {}", in(reg) value, options(nomem, nostack, preserves_flags)) }
}

/// DR6 after a debug exception for `cause`, if it was `old` before. The breakpoints' bits are this exception's; BD, BS and the others stay
/// until software clears them (SDM vol. 3, 18.2.3).
const fn dr6_after(old: u64, cause: u64) -> u64 {
    /// Bits that read as 1.
    const FIXED: u64 = 0xffff_0ff0;
    const BREAKPOINTS: u64 = 0xf;
    const BD_BS: u64 = 0x6000;
    const WRITABLE: u64 = 0xffff_ffff;
    (old & !BREAKPOINTS | cause & (BREAKPOINTS | BD_BS) | FIXED) & WRITABLE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_debug_exception_replaces_the_breakpoints_bits_of_dr6_and_no_others() {
        assert_eq!(dr6_after(0, 0x4000), 0xffff_4ff0);
        assert_eq!(dr6_after(0xffff_4ff3, 0x4), 0xffff_4ff4, "BS is sticky");
        assert_eq!(dr6_after(0xffff_2ff0, 0x4000), 0xffff_6ff0, "BD is sticky");
        assert_eq!(dr6_after(0xffff_eff0, 0x1), 0xffff_eff1, "BT is sticky");
        assert_eq!(dr6_after(0xffff_0ff0, 0x1001), 0xffff_0ff1, "bit 12 is the VMCS's alone");
    }
}
