//! The processor's state that VM entry and exit do not switch. It stays in the processor until another virtual processor runs there.

use x86::msr::{self, rdmsr, wrmsr};

use crate::{
    cpu::{
        self,
        fpu::{State, Xsave},
        speculation,
    },
    vdev::msr::Optional,
    vmx::{Capabilities, bitmap::MsrBitmap, controls, virtual_apic},
};

/// IA32_SPEC_CTRL.
const SPEC_CTRL: u32 = 0x48;

/// The registers beside [`SHARED_MSRS`] that this processor has and that guests access without an exit. IA32_TSC_AUX is among them only if
/// the VMCS lets guests use RDTSCP.
pub fn optional_msrs(capabilities: &Capabilities) -> Optional {
    let rdtscp = capabilities.secondary & controls::SECONDARY_RDTSCP != 0;
    let extended1_edx = if rdtscp { core::arch::x86_64::__cpuid(0x8000_0001).edx } else { 0 };
    let all = Optional::of_cpuid(cpu::leaf7_edx(), extended1_edx);
    // Where the hypervisor has its own value there, the guest's is `Vcpu::set_spec_ctrl`'s.
    Optional { spec_ctrl: all.spec_ctrl && speculation::plan().spec_ctrl.is_none(), ..all }
}

/// The MSRs that a guest accesses without an exit: its own ones, and those of the local APIC that the processor serves if it virtualises
/// one (`virtualised`).
pub fn msr_bitmap(optional: Optional, virtualised: bool) -> MsrBitmap {
    let mut bitmap = MsrBitmap::new(optional.passthrough());
    bitmap.allow_writes(optional.commands());
    if virtualised {
        bitmap.allow_reads(virtual_apic::read_from_page());
        bitmap.allow_writes(virtual_apic::written_by_processor());
    }
    bitmap
}

/// MSRs that a guest accesses without an exit, beside those in the VMCS.
pub const SHARED_MSRS: [u32; 5] =
    [msr::IA32_STAR, msr::IA32_LSTAR, msr::IA32_CSTAR, msr::IA32_FMASK, msr::IA32_KERNEL_GSBASE];

/// The switched state of one virtual processor, while it is not in the processor.
#[derive(Default)]
pub struct SwitchedState {
    /// x87, SSE, AVX and XCR0.
    pub fpu: State,
    msrs: [u64; SHARED_MSRS.len()],
    tsc_aux: u64,
    spec_ctrl: u64,
    cr2: u64,
    dr: [u64; 5],
}

impl SwitchedState {
    /// Saves the state from the processor.
    pub fn save(&mut self, xsave: Xsave, optional: Optional) {
        self.fpu.save(xsave);
        for (value, register) in self.msrs.iter_mut().zip(SHARED_MSRS) {
            // SAFETY: every processor with long mode has these.
            *value = unsafe { rdmsr(register) };
        }
        if optional.tsc_aux {
            // SAFETY: CPUID offers RDTSCP, so the MSR exists.
            self.tsc_aux = unsafe { rdmsr(msr::IA32_TSC_AUX) };
        }
        if optional.spec_ctrl {
            // SAFETY: CPUID names the MSR.
            self.spec_ctrl = unsafe { rdmsr(SPEC_CTRL) };
        }
        self.cr2 = cpu::cr2();
        self.dr = read_debug_registers();
    }

    /// Restores the state into the processor.
    pub fn restore(&self, xsave: Xsave, optional: Optional) {
        self.fpu.restore(xsave);
        for (value, register) in self.msrs.iter().zip(SHARED_MSRS) {
            // SAFETY: the value came from the register, or is 0; the hypervisor uses none of them.
            unsafe { wrmsr(register, *value) };
        }
        if optional.tsc_aux {
            // SAFETY: CPUID offers RDTSCP, so the MSR exists; the value came from it, or is 0, and the hypervisor has no RDTSCP.
            unsafe { wrmsr(msr::IA32_TSC_AUX, self.tsc_aux) };
        }
        if optional.spec_ctrl {
            // SAFETY: CPUID names the MSR; the value came from it, or is 0. It makes the processor slower, and changes no result.
            unsafe { wrmsr(SPEC_CTRL, self.spec_ctrl) };
        }
        cpu::write_cr2(self.cr2);
        write_debug_registers(&self.dr);
    }
}

/// DR0 to DR3 and DR6. The VMCS holds DR7.
fn read_debug_registers() -> [u64; 5] {
    let mut values = [0u64; 5];
    // SAFETY: reading debug registers at CPL 0 has no side effect, since DR7.GD is clear in the hypervisor (VM exit sets DR7 to 400H).
    unsafe {
        core::arch::asm!(
            "mov {0}, dr0", "mov {1}, dr1", "mov {2}, dr2", "mov {3}, dr3", "mov {4}, dr6",
            out(reg) values[0], out(reg) values[1], out(reg) values[2], out(reg) values[3], out(reg) values[4],
            options(nomem, nostack, preserves_flags)
        );
    }
    values
}

fn write_debug_registers(values: &[u64; 5]) {
    // SAFETY: DR7 is 400H in the hypervisor, so no breakpoint is armed; DR6's high half came from the register or is 0.
    unsafe {
        core::arch::asm!(
            "mov dr0, {0}", "mov dr1, {1}", "mov dr2, {2}", "mov dr3, {3}", "mov dr6, {4}",
            in(reg) values[0], in(reg) values[1], in(reg) values[2], in(reg) values[3], in(reg) values[4],
            options(nomem, nostack, preserves_flags)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the manual (SDM vol. 4, table 2-2, and vol. 3, 12.12.1 and 31.5), not by the code. Reads and writes: SYSENTER, STAR, LSTAR,
    /// CSTAR, FMASK, FS, GS and KERNEL_GS bases.
    const BOTH: [u32; 10] = [
        0x174,
        0x175,
        0x176,
        0xc000_0081,
        0xc000_0082,
        0xc000_0083,
        0xc000_0084,
        0xc000_0100,
        0xc000_0101,
        0xc000_0102,
    ];
    /// TSC_AUX, SPEC_CTRL.
    const BOTH_WHERE_THERE: [u32; 2] = [0xc000_0103, 0x48];
    /// PRED_CMD, FLUSH_CMD.
    const WRITTEN_WHERE_THERE: [u32; 2] = [0x49, 0x10b];
    /// Of an x2APIC: TPR, PPR, ISR, TMR and IRR are read from the page; TPR, EOI and self-IPI are written by the processor.
    const APIC_READ: [core::ops::RangeInclusive<u32>; 3] = [0x808..=0x808, 0x80a..=0x80a, 0x810..=0x827];
    const APIC_WRITTEN: [u32; 3] = [0x808, 0x80b, 0x83f];

    #[test]
    fn these_msrs_of_all_do_not_exit_and_no_others() {
        let everything = Optional { tsc_aux: true, spec_ctrl: true, pred_cmd: true, flush_cmd: true };
        for (optional, has) in [(Optional::default(), false), (everything, true)] {
            for virtualised in [false, true] {
                let bitmap = msr_bitmap(optional, virtualised);
                let both = |msr| BOTH.contains(&msr) || has && BOTH_WHERE_THERE.contains(&msr);
                let reads = |msr| both(msr) || virtualised && APIC_READ.iter().any(|range| range.contains(&msr));
                let writes = |msr| {
                    both(msr) || has && WRITTEN_WHERE_THERE.contains(&msr) || virtualised && APIC_WRITTEN.contains(&msr)
                };
                for msr in (0..0x2000).chain(0xc000_0000..0xc000_2000) {
                    // SDM vol. 3, 26.6.9: read low, read high, write low, write high.
                    let half = if msr >= 0xc000_0000 { 1024 } else { 0 };
                    let bit = |way: usize| {
                        let byte = bitmap.bytes()[way + half + (msr & 0x1fff) as usize / 8];
                        byte >> (msr % 8) & 1 == 0
                    };
                    assert_eq!((bit(0), bit(2048)), (reads(msr), writes(msr)), "{msr:#x}, optional ones: {has}");
                }
            }
        }
    }

    #[test]
    fn what_is_passed_through_is_the_vmcss_or_switched_with_the_virtual_processor() {
        // SYSENTER's, FS's and GS's bases are fields of the VMCS.
        const IN_VMCS: [u32; 5] = [0x174, 0x175, 0x176, 0xc000_0100, 0xc000_0101];
        const SWITCHED: [u32; 2] = [msr::IA32_TSC_AUX, SPEC_CTRL];
        let everything = Optional { tsc_aux: true, spec_ctrl: true, pred_cmd: true, flush_cmd: true };
        for register in everything.passthrough() {
            let is_kept = SHARED_MSRS.contains(&register) || SWITCHED.contains(&register);
            assert!(IN_VMCS.contains(&register) != is_kept, "{register:#x}");
        }
    }
}
