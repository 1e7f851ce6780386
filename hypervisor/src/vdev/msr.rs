//! Which model-specific registers a guest has (SDM vol. 4), and what they do.
//!
//! Three kinds: those of [`PASSTHROUGH`], which the MSR bitmap leaves to the processor; those emulated here; and all others, which
//! do not exist for the guest: #GP.

use super::{
    Gp,
    mtrr::Mtrrs,
    x2apic::{self, X2Apic},
};

/// IA32_EFER.
const EFER: u32 = 0xc000_0080;
/// IA32_PAT.
const PAT: u32 = 0x277;
/// IA32_TIME_STAMP_COUNTER.
const TSC: u32 = 0x10;

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

/// Registers the guest reads and writes without an exit. The processor checks their values itself, canonical addresses included.
/// Those not held in the VMCS (STAR to FMASK, KERNEL_GS_BASE, TSC_AUX) belong to the vCPU: whoever runs several vCPUs on one
/// processor must switch them. TSC_AUX only where RDTSCP is offered.
pub const PASSTHROUGH: [u32; 11] = [
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
    TSC_AUX,
];

/// The registers to leave to the processor.
pub fn passthrough(rdtscp: bool) -> impl Iterator<Item = u32> {
    PASSTHROUGH.into_iter().filter(move |msr| rdtscp || *msr != TSC_AUX)
}

/// Whether `address` is canonical with 48-bit linear addresses.
pub const fn is_canonical(address: u64) -> bool {
    (address as i64) << 16 >> 16 == address as i64
}

/// What the vCPU's state is at a RDMSR or WRMSR.
#[derive(Clone, Copy, Debug)]
pub struct VcpuState {
    /// The guest's TSC now.
    pub tsc: u64,
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
    /// Change the TSC offset so that the guest's TSC is this now.
    Tsc(u64),
    /// See the APIC's effect.
    Apic(x2apic::Effect),
}

/// The emulated registers of one vCPU.
#[derive(Clone, Debug)]
pub struct Msrs {
    pat: u64,
    misc_enable: u64,
    mtrrs: Mtrrs,
}

impl Msrs {
    /// As a firmware leaves them. `address_width` is that of CPUID leaf 0x8000_0008; `monitor` as in the CPUID policy.
    pub fn new(address_width: u8, monitor: bool) -> Self {
        let monitor = if monitor { MISC_ENABLE_MONITOR } else { 0 };
        Self {
            pat: PAT_RESET,
            misc_enable: MISC_ENABLE_FAST_STRINGS | MISC_ENABLE_UNAVAILABLE | monitor,
            mtrrs: Mtrrs::new(address_width),
        }
    }

    /// RDMSR.
    pub fn read(&self, msr: u32, vcpu: VcpuState, apic: &mut X2Apic) -> Result<u64, Gp> {
        match msr {
            TSC => Ok(vcpu.tsc),
            EFER => Ok(vcpu.efer),
            PAT => Ok(self.pat),
            MISC_ENABLE => Ok(self.misc_enable),
            FEATURE_CONTROL => Ok(FEATURE_CONTROL_LOCKED),
            BIOS_SIGN_ID => Ok(MICROCODE_REVISION),
            PLATFORM_ID | PLATFORM_INFO | DEBUGCTL => Ok(0),
            _ if X2Apic::owns(msr) => apic.read(msr, vcpu.tsc),
            _ => self.mtrrs.read(msr),
        }
    }

    /// WRMSR.
    pub fn write(&mut self, msr: u32, value: u64, vcpu: VcpuState, apic: &mut X2Apic) -> Result<Effect, Gp> {
        match msr {
            TSC => Ok(Effect::Tsc(value)),
            EFER => write_efer(value, vcpu).map(Effect::Efer),
            PAT => self.write_pat(value),
            MISC_ENABLE => self.write_misc_enable(value),
            // Linux clears it before it reads the revision (`intel_get_microcode_revision`).
            BIOS_SIGN_ID => Ok(Effect::None),
            // No branch records and no single-stepping on branches.
            DEBUGCTL if value == 0 => Ok(Effect::None),
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
    const VCPU: VcpuState = VcpuState { tsc: 77, efer: LONG, paging: true };

    fn machine() -> (Msrs, X2Apic) {
        (Msrs::new(39, false), X2Apic::new(0, true))
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
        // Speculation, microcode load, TSC adjust, VMX, PMU, XSS, arch capabilities, PASID, thermal, RAPL, user-mode wait.
        for msr in [
            0x48,
            0x49,
            0x79,
            0x3b,
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
        ] {
            assert_eq!(msrs.read(msr, VCPU, &mut apic), Err(Gp), "{msr:#x}");
            assert_eq!(msrs.write(msr, 0, VCPU, &mut apic), Err(Gp), "{msr:#x}");
        }
        assert_eq!(msrs.write(FEATURE_CONTROL, 5, VCPU, &mut apic), Err(Gp), "locked");
    }

    #[test]
    fn the_apic_and_the_mtrrs_answer_for_their_own() {
        let (mut msrs, mut apic) = machine();
        assert_eq!(msrs.read(0x802, VCPU, &mut apic), Ok(0));
        assert_eq!(msrs.write(0x80f, 0x1ff, VCPU, &mut apic), Ok(Effect::Apic(x2apic::Effect::Recheck)));
        assert_eq!(msrs.read(0x2ff, VCPU, &mut apic), Ok(0xc06));
        assert_eq!(msrs.read(TSC, VCPU, &mut apic), Ok(77));
        assert_eq!(msrs.write(TSC, 5, VCPU, &mut apic), Ok(Effect::Tsc(5)));
    }

    #[test]
    fn misc_enable_keeps_what_it_tells() {
        let (mut msrs, mut apic) = machine();
        let value = msrs.read(MISC_ENABLE, VCPU, &mut apic).unwrap();
        assert_eq!(value, 0x1801);
        assert_eq!(msrs.write(MISC_ENABLE, value & !1, VCPU, &mut apic), Ok(Effect::None));
        assert_eq!(msrs.write(MISC_ENABLE, value | 1 << 18, VCPU, &mut apic), Err(Gp));
        assert_eq!(Msrs::new(39, true).read(MISC_ENABLE, VCPU, &mut apic), Ok(0x4_1801));
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
        for msr in passthrough(true) {
            assert_eq!(msrs.read(msr, VCPU, &mut apic), Err(Gp), "{msr:#x}");
        }
        assert!(!passthrough(false).any(|msr| msr == TSC_AUX));
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
