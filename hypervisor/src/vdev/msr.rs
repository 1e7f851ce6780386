//! A guest's model-specific registers (SDM vol. 4).
//!
//! There are three kinds: the MSR bitmap passes those of [`Optional::passthrough`] and [`Optional::commands`] to the processor; others are
//! emulated here; all others do not exist for the guest (#GP).

use super::{
    Gp,
    mtrr::Mtrrs,
    x2apic::{self, X2Apic},
};
use crate::addr::Gpa;

/// IA32_EFER.
const EFER: u32 = 0xc000_0080;
/// IA32_PAT.
const PAT: u32 = 0x277;
/// IA32_TIME_STAMP_COUNTER.
const TSC: u32 = 0x10;
/// IA32_TSC_ADJUST.
const TSC_ADJUST: u32 = 0x3b;

/// IA32_MCG_CAP and IA32_MCG_STATUS.
const MCG_CAP: u32 = 0x179;
const MCG_STATUS: u32 = 0x17a;
/// IA32_SPEC_CTRL, IA32_PRED_CMD, IA32_FLUSH_CMD and IA32_ARCH_CAPABILITIES.
const SPEC_CTRL: u32 = 0x48;
const PRED_CMD: u32 = 0x49;
const FLUSH_CMD: u32 = 0x10b;
const ARCH_CAPABILITIES: u32 = 0x10a;
/// MSR_KVM_PV_EOI_EN: bit 0 enables, the rest is an address (Linux, Documentation/virt/kvm/x86/msr.rst).
const KVM_PV_EOI: u32 = 0x4b56_4d04;
const KVM_PV_EOI_ENABLED: u64 = 1;
/// The address is that of 4 bytes that are aligned.
const KVM_PV_EOI_RESERVED: u64 = 2;

const PLATFORM_ID: u32 = 0x17;
const FEATURE_CONTROL: u32 = 0x3a;
const BIOS_SIGN_ID: u32 = 0x8b;
const PLATFORM_INFO: u32 = 0xce;
const MISC_ENABLE: u32 = 0x1a0;
const DEBUGCTL: u32 = 0x1d9;
const TSC_AUX: u32 = 0xc000_0103;

/// SYSCALL enable.
const EFER_SCE: u64 = 1 << 0;
/// Long mode enable.
const EFER_LME: u64 = 1 << 8;
/// Long mode active: read-only for software.
const EFER_LMA: u64 = 1 << 10;
/// No-execute enable.
const EFER_NXE: u64 = 1 << 11;

/// Value of IA32_PAT after reset.
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
/// Locked, VMX and SMX off.
const FEATURE_CONTROL_LOCKED: u64 = 1;
/// A revision other than 0, in the upper half.
const MICROCODE_REVISION: u64 = 1 << 32;
const MISC_ENABLE_FAST_STRINGS: u64 = 1 << 0;
/// No branch trace store, no precise event sampling.
const MISC_ENABLE_UNAVAILABLE: u64 = 1 << 11 | 1 << 12;
const MISC_ENABLE_MONITOR: u64 = 1 << 18;

/// Registers the guest reads and writes without an exit on every processor. The processor checks their values itself, canonical addresses
/// included. Those not held in the VMCS (STAR to FMASK, KERNEL_GS_BASE) belong to the vCPU: they are switched with it.
const PASSTHROUGH: [u32; 10] = [
    0x174,       // IA32_SYSENTER_CS
    0x175,       // IA32_SYSENTER_ESP
    0x176,       // IA32_SYSENTER_EIP
    0xc000_0081, // IA32_STAR
    0xc000_0082, // IA32_LSTAR
    0xc000_0083, // IA32_CSTAR
    0xc000_0084, // IA32_FMASK
    0xc000_0100, // IA32_FS_BASE
    0xc000_0101, // IA32_GS_BASE
    0xc000_0102, // IA32_KERNEL_GS_BASE
];

/// Registers that not every processor has. A guest has them if its processor does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Optional {
    /// IA32_TSC_AUX, with RDTSCP or RDPID.
    pub tsc_aux: bool,
    /// IA32_SPEC_CTRL.
    pub spec_ctrl: bool,
    /// IA32_PRED_CMD.
    pub pred_cmd: bool,
    /// IA32_FLUSH_CMD.
    pub flush_cmd: bool,
}

impl Optional {
    /// Those that CPUID names: by EDX of leaf 7, and, of a processor that has RDTSCP, by EDX of leaf 0x8000_0001
    /// (SDM vol. 4, table 2-2).
    pub fn of_cpuid(leaf7_edx: u32, extended1_edx: u32) -> Self {
        let has = |bit: u32| leaf7_edx & bit != 0;
        Self {
            tsc_aux: extended1_edx & EXTENDED1_EDX_RDTSCP != 0,
            spec_ctrl: has(LEAF7_EDX_IBRS_IBPB) || has(LEAF7_EDX_STIBP) || has(LEAF7_EDX_SSBD),
            pred_cmd: has(LEAF7_EDX_IBRS_IBPB),
            flush_cmd: has(LEAF7_EDX_L1D_FLUSH),
        }
    }

    /// Those that the guest reads and writes without an exit.
    pub fn passthrough(self) -> impl Iterator<Item = u32> {
        let both = [(self.tsc_aux, TSC_AUX), (self.spec_ctrl, SPEC_CTRL)];
        PASSTHROUGH.into_iter().chain(both.into_iter().filter(|(has, _)| *has).map(|(_, msr)| msr))
    }

    /// Commands: the guest writes them without an exit, and they cannot be read.
    pub fn commands(self) -> impl Iterator<Item = u32> {
        let all = [(self.pred_cmd, PRED_CMD), (self.flush_cmd, FLUSH_CMD)];
        all.into_iter().filter(|(has, _)| *has).map(|(_, msr)| msr)
    }
}

const EXTENDED1_EDX_RDTSCP: u32 = 1 << 27;
/// IBRS and IBPB.
pub const LEAF7_EDX_IBRS_IBPB: u32 = 1 << 26;
/// Single thread indirect branch predictors.
pub const LEAF7_EDX_STIBP: u32 = 1 << 27;
/// The command that flushes the first-level data cache.
pub const LEAF7_EDX_L1D_FLUSH: u32 = 1 << 28;
/// IA32_ARCH_CAPABILITIES.
pub const LEAF7_EDX_ARCH_CAPABILITIES: u32 = 1 << 29;
/// Speculative store bypass disable.
pub const LEAF7_EDX_SSBD: u32 = 1 << 31;

/// Bits of IA32_ARCH_CAPABILITIES that say from which attacks the processor is free, and need nothing else of the hypervisor: RDCL_NO to
/// MDS_NO, IF_PSCHANGE_MC_NO, TAA_NO, SBDR_SSDP_NO, FBSDP_NO, PSDP_NO, FB_CLEAR, RRSBA, BHI_NO, PBRSB_NO, GDS_NO, RFDS_NO, RFDS_CLEAR,
/// ITS_NO (SDM vol. 4, table 2-2; Intel's guidance on each).
const ARCH_CAPABILITIES_SHOWN: u64 =
    0x7f | 1 << 8 | 7 << 13 | 1 << 17 | 1 << 19 | 1 << 20 | 1 << 24 | 7 << 26 | 1 << 62;

/// Whether `address` is canonical with 48-bit linear addresses.
pub const fn is_canonical(address: u64) -> bool {
    (address as i64) << 16 >> 16 == address as i64
}

/// What the vCPU's state is at a RDMSR or WRMSR.
#[derive(Clone, Copy, Debug)]
pub struct VcpuState {
    /// The guest's TSC now.
    pub tsc: u64,
    /// The offset of the guest's TSC from the machine's. It begins at 0 and a write to either register adds the same to both, so it is
    /// IA32_TSC_ADJUST (SDM vol. 3, 18.17.3).
    pub tsc_offset: u64,
    /// The guest's IA32_EFER.
    pub efer: u64,
    /// CR0.PG.
    pub paging: bool,
}

/// What a write makes necessary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// Put this into the VMCS as the guest's IA32_EFER.
    Efer(u64),
    /// Put this into the VMCS as the guest's IA32_PAT.
    Pat(u64),
    /// Put this into the VMCS as the TSC offset.
    TscOffset(u64),
    /// Interrupts can end by the 4 bytes at this guest-physical address from now on, or by none.
    PvEoi(Option<Gpa>),
    /// The guest's IA32_SPEC_CTRL is this now.
    SpecCtrl(u64),
    /// See the APIC's effect.
    Apic(x2apic::Effect),
}

/// What a vCPU's registers depend on.
#[derive(Clone, Copy, Debug)]
pub struct Traits {
    /// Bits of a physical address, as in CPUID leaf 0x8000_0008.
    pub address_width: u8,
    /// MONITOR is there, as in the CPUID policy.
    pub monitor: bool,
    /// KVM's interface for interrupts that end without an exit is there, as in the CPUID policy.
    pub pv_eoi: bool,
    /// The machine's IA32_ARCH_CAPABILITIES, if it has that.
    pub arch_capabilities: Option<u64>,
    /// Bits that IA32_SPEC_CTRL has, where the register is not left to the guest from the beginning ([`Optional::spec_ctrl`]).
    pub spec_ctrl: Option<u64>,
}

/// IA32_SPEC_CTRL while its writes exit.
#[derive(Clone, Copy, Debug)]
struct SpecCtrl {
    /// Those that there are.
    bits: u64,
    value: u64,
}

/// The emulated registers of one vCPU.
#[derive(Clone, Debug)]
pub struct Msrs {
    pat: u64,
    misc_enable: u64,
    mtrrs: Mtrrs,
    arch_capabilities: Option<u64>,
    spec_ctrl: Option<SpecCtrl>,
    /// The value, or `None` for a register that does not exist.
    pv_eoi: Option<u64>,
}

impl Msrs {
    /// As a firmware leaves them.
    pub fn new(traits: Traits) -> Self {
        let monitor = if traits.monitor { MISC_ENABLE_MONITOR } else { 0 };
        Self {
            pat: PAT_RESET,
            misc_enable: MISC_ENABLE_FAST_STRINGS | MISC_ENABLE_UNAVAILABLE | monitor,
            mtrrs: Mtrrs::new(traits.address_width),
            arch_capabilities: traits.arch_capabilities.map(|value| value & ARCH_CAPABILITIES_SHOWN),
            spec_ctrl: traits.spec_ctrl.map(|bits| SpecCtrl { bits, value: 0 }),
            pv_eoi: traits.pv_eoi.then_some(0),
        }
    }

    /// What INIT changes (SDM vol. 3, table 11-1: of the processor's own registers, none of these).
    pub fn init(&mut self) {
        self.pv_eoi = self.pv_eoi.map(|_| 0);
    }

    /// RDMSR.
    pub fn read(&self, msr: u32, vcpu: VcpuState, apic: &mut X2Apic) -> Result<u64, Gp> {
        match msr {
            TSC => Ok(vcpu.tsc),
            TSC_ADJUST => Ok(vcpu.tsc_offset),
            EFER => Ok(vcpu.efer),
            PAT => Ok(self.pat),
            MISC_ENABLE => Ok(self.misc_enable),
            FEATURE_CONTROL => Ok(FEATURE_CONTROL_LOCKED),
            BIOS_SIGN_ID => Ok(MICROCODE_REVISION),
            // No bank reports machine checks, so none has happened.
            PLATFORM_ID | PLATFORM_INFO | DEBUGCTL | MCG_CAP | MCG_STATUS => Ok(0),
            ARCH_CAPABILITIES => self.arch_capabilities.ok_or(Gp),
            SPEC_CTRL => self.spec_ctrl.map(|own| own.value).ok_or(Gp),
            KVM_PV_EOI => self.pv_eoi.ok_or(Gp),
            _ if X2Apic::owns(msr) => apic.read(msr, vcpu.tsc),
            _ => self.mtrrs.read(msr),
        }
    }

    /// WRMSR.
    pub fn write(&mut self, msr: u32, value: u64, vcpu: VcpuState, apic: &mut X2Apic) -> Result<Effect, Gp> {
        match msr {
            TSC => Ok(Effect::TscOffset(vcpu.tsc_offset.wrapping_add(value.wrapping_sub(vcpu.tsc)))),
            TSC_ADJUST => Ok(Effect::TscOffset(value)),
            EFER => write_efer(value, vcpu).map(Effect::Efer),
            PAT => self.write_pat(value),
            MISC_ENABLE => self.write_misc_enable(value),
            // Linux clears it before it reads the revision (`intel_get_microcode_revision`).
            BIOS_SIGN_ID => Ok(Effect::None),
            // No branch records and no single-stepping on branches.
            DEBUGCTL | MCG_STATUS if value == 0 => Ok(Effect::None),
            SPEC_CTRL => self.write_spec_ctrl(value),
            KVM_PV_EOI => self.write_pv_eoi(value),
            _ if X2Apic::owns(msr) => apic.write(msr, value, vcpu.tsc).map(Effect::Apic),
            _ => self.mtrrs.write(msr, value).map(|()| Effect::None),
        }
    }

    fn write_pat(&mut self, value: u64) -> Result<Effect, Gp> {
        if !value.to_le_bytes().into_iter().all(|entry| matches!(entry, 0 | 1 | 4..=7)) {
            return Err(Gp);
        }
        self.pat = value;
        Ok(Effect::Pat(value))
    }

    fn write_spec_ctrl(&mut self, value: u64) -> Result<Effect, Gp> {
        let own = self.spec_ctrl.as_mut().filter(|own| value & !own.bits == 0).ok_or(Gp)?;
        own.value = value;
        Ok(Effect::SpecCtrl(value))
    }

    fn write_pv_eoi(&mut self, value: u64) -> Result<Effect, Gp> {
        let register = self.pv_eoi.as_mut().ok_or(Gp)?;
        if value & KVM_PV_EOI_RESERVED != 0 {
            return Err(Gp);
        }
        *register = value;
        let enabled = value & KVM_PV_EOI_ENABLED != 0;
        Ok(Effect::PvEoi(enabled.then(|| Gpa::new(value & !KVM_PV_EOI_ENABLED))))
    }

    /// Only fast strings can be switched; all else tells what there is.
    fn write_misc_enable(&mut self, value: u64) -> Result<Effect, Gp> {
        if (value ^ self.misc_enable) & !MISC_ENABLE_FAST_STRINGS != 0 {
            return Err(Gp);
        }
        self.misc_enable = value;
        Ok(Effect::None)
    }
}

/// LMA keeps its value; LME cannot change while paging is on (SDM vol. 3, 2.2.1 and 11.8.5).
fn write_efer(value: u64, vcpu: VcpuState) -> Result<u64, Gp> {
    if value & !(EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE) != 0 {
        return Err(Gp);
    }
    if vcpu.paging && (value ^ vcpu.efer) & EFER_LME != 0 {
        return Err(Gp);
    }
    Ok(value & !EFER_LMA | vcpu.efer & EFER_LMA)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LONG: u64 = EFER_LME | EFER_LMA;
    const VCPU: VcpuState = VcpuState { tsc: 77, tsc_offset: 7, efer: LONG, paging: true };

    const TRAITS: Traits =
        Traits { address_width: 39, monitor: false, pv_eoi: false, arch_capabilities: None, spec_ctrl: None };
    const EVERYTHING: Optional = Optional { tsc_aux: true, spec_ctrl: true, pred_cmd: true, flush_cmd: true };

    fn machine() -> (Msrs, X2Apic) {
        (Msrs::new(TRAITS), X2Apic::new(0, true))
    }

    #[test]
    fn efer_switches_nx_and_syscall_and_nothing_that_would_leave_long_mode() {
        let (mut msrs, mut apic) = machine();
        let mut write = |value, vcpu| msrs.write(EFER, value, vcpu, &mut apic);
        assert_eq!(write(LONG | EFER_NXE | EFER_SCE, VCPU), Ok(Effect::Efer(LONG | EFER_NXE | EFER_SCE)));
        assert_eq!(write(EFER_LME | EFER_SCE, VCPU), Ok(Effect::Efer(LONG | EFER_SCE)), "LMA is kept");
        assert_eq!(write(EFER_SCE, VCPU), Err(Gp), "LME under paging");
        assert_eq!(write(LONG | 1 << 12, VCPU), Err(Gp), "SVME");
        let off = VcpuState { efer: 0, paging: false, ..VCPU };
        assert_eq!(write(EFER_LME | EFER_LMA, off), Ok(Effect::Efer(EFER_LME)));
    }

    #[test]
    fn spec_ctrl_takes_the_bits_that_the_processor_has_and_reads_as_it_was_written() {
        let (_, mut apic) = machine();
        let mut msrs = Msrs::new(Traits { spec_ctrl: Some(0x405), ..TRAITS });
        assert_eq!(msrs.read(0x48, VCPU, &mut apic), Ok(0), "whatever the hypervisor's own value is");
        assert_eq!(msrs.write(0x48, 0x401, VCPU, &mut apic), Ok(Effect::SpecCtrl(0x401)));
        for bad in [2, 0x403, 1 << 63] {
            assert_eq!(msrs.write(0x48, bad, VCPU, &mut apic), Err(Gp), "{bad:#x}");
        }
        msrs.init();
        assert_eq!(msrs.read(0x48, VCPU, &mut apic), Ok(0x401), "INIT leaves it");
        assert_eq!(msrs.write(0x48, 0, VCPU, &mut apic), Ok(Effect::SpecCtrl(0)));
    }

    #[test]
    fn pat_takes_memory_types_only() {
        let (mut msrs, mut apic) = machine();
        let linux = 0x0407_0506_0007_0106;
        assert_eq!(msrs.write(PAT, linux, VCPU, &mut apic), Ok(Effect::Pat(linux)));
        assert_eq!(msrs.write(PAT, 2, VCPU, &mut apic), Err(Gp));
        assert_eq!(msrs.write(PAT, 8 << 56, VCPU, &mut apic), Err(Gp));
        assert_eq!(msrs.read(PAT, VCPU, &mut apic), Ok(linux));
    }

    #[test]
    fn what_cpuid_does_not_offer_does_not_exist() {
        let (mut msrs, mut apic) = machine();
        // Speculation, microcode load, VMX, PMU, XSS, arch capabilities, PASID, thermal, RAPL, user-mode wait, KVM's clock.
        for msr in [
            0x48,
            0x49,
            0x79,
            0x480,
            0x48b,
            0x186,
            0xc1,
            0x38f,
            0xda0,
            0x10a,
            0xd93,
            0x19c,
            0x606,
            0xe1,
            0x4000_0000,
            0x4b56_4d01,
        ] {
            assert_eq!(msrs.read(msr, VCPU, &mut apic), Err(Gp), "{msr:#x}");
            assert_eq!(msrs.write(msr, 0, VCPU, &mut apic), Err(Gp), "{msr:#x}");
        }
        assert_eq!(msrs.write(FEATURE_CONTROL, 5, VCPU, &mut apic), Err(Gp), "locked");
    }

    #[test]
    fn a_write_to_the_tsc_or_to_its_adjustment_adds_the_same_to_both() {
        let (mut msrs, mut apic) = machine();
        assert_eq!(msrs.read(0x3b, VCPU, &mut apic), Ok(7));
        assert_eq!(msrs.write(0x10, 80, VCPU, &mut apic), Ok(Effect::TscOffset(10)));
        assert_eq!(msrs.write(0x10, 0, VCPU, &mut apic), Ok(Effect::TscOffset(7_u64.wrapping_sub(77))));
        assert_eq!(msrs.write(0x3b, 12, VCPU, &mut apic), Ok(Effect::TscOffset(12)));
    }

    #[test]
    fn the_apic_and_the_mtrrs_answer_for_their_own() {
        let (mut msrs, mut apic) = machine();
        assert_eq!(msrs.read(0x802, VCPU, &mut apic), Ok(0));
        assert_eq!(msrs.write(0x80f, 0x1ff, VCPU, &mut apic), Ok(Effect::Apic(x2apic::Effect::Recheck)));
        assert_eq!(msrs.read(0x2ff, VCPU, &mut apic), Ok(0xc06));
        assert_eq!(msrs.read(TSC, VCPU, &mut apic), Ok(77));
    }

    #[test]
    fn misc_enable_keeps_what_it_tells() {
        let (mut msrs, mut apic) = machine();
        let value = msrs.read(MISC_ENABLE, VCPU, &mut apic).unwrap();
        assert_eq!(value, 0x1801);
        assert_eq!(msrs.write(MISC_ENABLE, value & !1, VCPU, &mut apic), Ok(Effect::None));
        assert_eq!(msrs.write(MISC_ENABLE, value | 1 << 18, VCPU, &mut apic), Err(Gp));
        let monitor = Msrs::new(Traits { monitor: true, ..TRAITS });
        assert_eq!(monitor.read(MISC_ENABLE, VCPU, &mut apic), Ok(0x4_1801));
    }

    #[test]
    fn canonical_addresses_repeat_bit_47() {
        for good in [0, 0x7fff_ffff_ffff, 0xffff_8000_0000_0000, u64::MAX] {
            assert!(is_canonical(good));
        }
        assert!(!is_canonical(0x8000_0000_0000) && !is_canonical(0xffff_7fff_ffff_ffff));
    }

    #[test]
    fn nothing_that_is_passed_through_is_also_emulated() {
        let (msrs, mut apic) = machine();
        for msr in EVERYTHING.passthrough().chain(EVERYTHING.commands()) {
            assert_eq!(msrs.read(msr, VCPU, &mut apic), Err(Gp), "{msr:#x}");
        }
    }

    /// Which ones those are the test of the MSR bitmap says (`vm::switched_state`), by a table from the manual.
    #[test]
    fn each_optional_register_comes_and_goes_by_itself() {
        let none = Optional::default();
        let all = |optional: Optional| optional.passthrough().chain(optional.commands()).collect::<Vec<_>>();
        for (optional, register) in [
            (Optional { tsc_aux: true, ..none }, 0xc000_0103),
            (Optional { spec_ctrl: true, ..none }, 0x48),
            (Optional { pred_cmd: true, ..none }, 0x49),
            (Optional { flush_cmd: true, ..none }, 0x10b),
        ] {
            assert_eq!(all(optional), [all(none), vec![register]].concat());
        }
    }

    #[test]
    fn a_register_is_given_only_where_cpuid_names_it() {
        assert_eq!(Optional::of_cpuid(0, 0), Optional::default());
        assert_eq!(Optional::of_cpuid(u32::MAX, u32::MAX), EVERYTHING);
        let only = Optional::default();
        assert_eq!(Optional::of_cpuid(1 << 26, 0), Optional { spec_ctrl: true, pred_cmd: true, ..only });
        assert_eq!(Optional::of_cpuid(1 << 28, 0), Optional { flush_cmd: true, ..only });
        for bit in [27, 31] {
            assert_eq!(Optional::of_cpuid(1 << bit, 0), Optional { spec_ctrl: true, ..only });
        }
        assert_eq!(Optional::of_cpuid(1 << 29, 1 << 27), Optional { tsc_aux: true, ..only });
    }

    /// By the manual: what a guest can read, and what it can write 0 or its own value to, of all MSRs that are emulated. The x2APIC's are
    /// at 0x800 to 0x8ff.
    #[test]
    fn these_msrs_of_all_are_emulated_and_no_others() {
        let read: Vec<u32> = [0x10, 0x17, 0x1b, 0x3a, 0x3b, 0x48, 0x8b, 0xce, 0xfe, 0x10a, 0x179, 0x17a, 0x1a0, 0x1d9]
            .into_iter()
            .chain(0x200..=0x20f)
            .chain([0x250, 0x258, 0x259])
            .chain(0x268..=0x26f)
            .chain([0x277, 0x2ff, 0x6e0])
            // ID, version, TPR, PPR, LDR, SVR, ISR, TMR, IRR, ESR, ICR, LVT, initial and current count, divide.
            .chain([0x802, 0x803, 0x808, 0x80a, 0x80d, 0x80f])
            .chain(0x810..=0x828)
            .chain([0x830])
            .chain(0x832..=0x839)
            .chain([0x83e, 0xc000_0080, 0x4b56_4d04])
            .collect();
        let not_written = [0x17, 0x3a, 0xce, 0xfe, 0x10a, 0x179, 0x802, 0x803, 0x80a, 0x80d, 0x839];
        let mut written: Vec<u32> = read.iter().copied().filter(|msr| !not_written.contains(msr)).collect();
        written.retain(|msr| !(0x810..=0x827).contains(msr));
        written.extend([0x80b, 0x83f]);
        let all =
            (0..0x2000).chain(0xc000_0000..0xc000_2000).chain(0x4000_0000..0x4000_0200).chain(0x4b56_4d00..0x4b56_4e00);
        for msr in all {
            let mut apic = X2Apic::new(0, true);
            let traits = Traits { pv_eoi: true, arch_capabilities: Some(0), spec_ctrl: Some(7), ..TRAITS };
            let mut msrs = Msrs::new(traits);
            let old = msrs.read(msr, VCPU, &mut apic);
            assert_eq!(old.is_ok(), read.contains(&msr), "read {msr:#x}");
            let takes = [0, old.unwrap_or(0)].into_iter().any(|value| msrs.write(msr, value, VCPU, &mut apic).is_ok());
            assert_eq!(takes, written.contains(&msr), "write {msr:#x}");
        }
    }

    #[test]
    fn capabilities_show_what_is_known_to_be_harmless() {
        let (_, mut apic) = machine();
        let msrs = Msrs::new(Traits { arch_capabilities: Some(u64::MAX), ..TRAITS });
        let shown = msrs.read(ARCH_CAPABILITIES, VCPU, &mut apic).unwrap();
        assert_eq!(shown, ARCH_CAPABILITIES_SHOWN);
        for (name, bit) in [("TSX_CTRL", 7), ("MISC_PACKAGE_CTLS", 10), ("FB_CLEAR_CTRL", 18), ("XAPIC_DISABLE", 21)] {
            assert_eq!(shown >> bit & 1, 0, "{name}: its register is not there");
        }
        assert_eq!(msrs.clone().write(ARCH_CAPABILITIES, shown, VCPU, &mut apic), Err(Gp));
    }

    #[test]
    fn no_machine_check_has_happened_and_no_bank_reports_any() {
        let (mut msrs, mut apic) = machine();
        assert_eq!((msrs.read(0x179, VCPU, &mut apic), msrs.read(0x17a, VCPU, &mut apic)), (Ok(0), Ok(0)));
        assert_eq!(msrs.write(0x17a, 0, VCPU, &mut apic), Ok(Effect::None));
        assert_eq!(msrs.write(0x17a, 1, VCPU, &mut apic), Err(Gp));
        for msr in [0x179, 0x17b, 0x400, 0x280] {
            assert_eq!(msrs.write(msr, 0, VCPU, &mut apic), Err(Gp), "{msr:#x}");
        }
    }

    #[test]
    fn kvms_memory_for_the_end_of_interrupts_is_named_and_taken_away() {
        let (mut without, mut apic) = machine();
        assert_eq!(without.write(KVM_PV_EOI, 0x1001, VCPU, &mut apic), Err(Gp));
        assert_eq!(without.read(KVM_PV_EOI, VCPU, &mut apic), Err(Gp));
        let mut msrs = Msrs::new(Traits { pv_eoi: true, ..TRAITS });
        let mut write = |value| msrs.write(KVM_PV_EOI, value, VCPU, &mut apic);
        assert_eq!(write(0x1002), Err(Gp));
        assert_eq!(write(0x1003), Err(Gp));
        assert_eq!(write(0x1004), Ok(Effect::PvEoi(None)), "not enabled");
        assert_eq!(write(0x1005), Ok(Effect::PvEoi(Some(Gpa::new(0x1004)))));
        assert_eq!(msrs.read(KVM_PV_EOI, VCPU, &mut apic), Ok(0x1005));
        msrs.init();
        assert_eq!(msrs.read(KVM_PV_EOI, VCPU, &mut apic), Ok(0));
    }

    proptest! {
        #[test]
        fn no_register_and_no_value_panics(msr in prop_oneof![0_u32..0x1000, 0xc000_0000_u32..0xc000_0200, any::<u32>()], value: u64, tsc: u64) {
            let (mut msrs, mut apic) = machine();
            let vcpu = VcpuState { tsc, ..VCPU };
            let _ = msrs.write(msr, value, vcpu, &mut apic);
            let _ = msrs.read(msr, vcpu, &mut apic);
        }
    }
}
