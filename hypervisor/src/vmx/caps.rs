//! What the processor's VMX can do, and a refusal for each thing that is missing.

use core::fmt;

use x86::msr::{self, rdmsr};

/// Pin-based: external-interrupt exiting.
pub const PIN_EXTERNAL_INTERRUPT: u32 = 1 << 0;
/// Pin-based: NMI exiting.
pub const PIN_NMI: u32 = 1 << 3;
/// Pin-based: virtual NMIs.
pub const PIN_VIRTUAL_NMIS: u32 = 1 << 5;
/// Pin-based: VMX-preemption timer.
pub const PIN_PREEMPTION_TIMER: u32 = 1 << 6;
/// Pin-based: process posted interrupts.
pub const PIN_POSTED: u32 = 1 << 7;
/// Primary: interrupt-window exiting.
pub const PRIMARY_INTERRUPT_WINDOW: u32 = 1 << 2;
/// Primary: use TSC offsetting.
pub const PRIMARY_TSC_OFFSETTING: u32 = 1 << 3;
/// Primary: HLT exiting.
pub const PRIMARY_HLT: u32 = 1 << 7;
/// Primary: MWAIT exiting.
pub const PRIMARY_MWAIT: u32 = 1 << 10;
/// Primary: RDPMC exiting.
pub const PRIMARY_RDPMC: u32 = 1 << 11;
/// Primary: CR3-load and CR3-store exiting; on by default, wanted off.
pub const PRIMARY_CR3: u32 = 1 << 15 | 1 << 16;
/// Primary: CR8-load and CR8-store exiting: without a TPR shadow CR8 would be the machine's own.
pub const PRIMARY_CR8: u32 = 1 << 19 | 1 << 20;
/// Primary: use TPR shadow.
pub const PRIMARY_TPR_SHADOW: u32 = 1 << 21;
/// Primary: unconditional I/O exiting.
pub const PRIMARY_IO: u32 = 1 << 24;
/// Primary: NMI-window exiting.
pub const PRIMARY_NMI_WINDOW: u32 = 1 << 22;
/// Primary: use MSR bitmaps.
pub const PRIMARY_MSR_BITMAPS: u32 = 1 << 28;
/// Primary: MONITOR exiting.
pub const PRIMARY_MONITOR: u32 = 1 << 29;
/// Primary: activate secondary controls.
pub const PRIMARY_SECONDARY: u32 = 1 << 31;
/// Secondary: enable EPT.
pub const SECONDARY_EPT: u32 = 1 << 1;
/// Secondary: enable RDTSCP.
pub const SECONDARY_RDTSCP: u32 = 1 << 3;
/// Secondary: virtualize x2APIC mode, APIC-register virtualization, virtual-interrupt delivery.
pub const SECONDARY_APICV: u32 = 1 << 4 | 1 << 8 | 1 << 9;
/// Secondary: enable VPID.
pub const SECONDARY_VPID: u32 = 1 << 5;
/// Secondary: WBINVD exiting.
pub const SECONDARY_WBINVD: u32 = 1 << 6;
/// Secondary: unrestricted guest.
pub const SECONDARY_UNRESTRICTED: u32 = 1 << 7;
/// Secondary: enable INVPCID.
pub const SECONDARY_INVPCID: u32 = 1 << 12;
/// VM exit: save debug controls (DR7, IA32_DEBUGCTL). VM entry: load them.
pub const DEBUG_CONTROLS: u32 = 1 << 2;
/// VM exit: host address-space size, that is, 64-bit.
pub const EXIT_HOST_64: u32 = 1 << 9;
/// VM exit: acknowledge interrupt on exit.
pub const EXIT_ACK_INTERRUPT: u32 = 1 << 15;
/// VM exit: save and load IA32_PAT, save and load IA32_EFER.
pub const EXIT_PAT_EFER: u32 = 1 << 18 | 1 << 19 | 1 << 20 | 1 << 21;
/// VM exit: save VMX-preemption timer value.
pub const EXIT_SAVE_TIMER: u32 = 1 << 22;
/// VM entry: IA-32e mode guest.
pub const ENTRY_IA32E: u32 = 1 << 9;
/// VM entry: load IA32_PAT and IA32_EFER.
pub const ENTRY_PAT_EFER: u32 = 1 << 14 | 1 << 15;

/// IA32_FEATURE_CONTROL: lock, VMX outside SMX.
const FEATURE_LOCK: u64 = 1 << 0;
const FEATURE_VMX: u64 = 1 << 2;

/// IA32_VMX_EPT_VPID_CAP: 4-level walk, write-back tables, 2 MiB pages, INVEPT of a single context.
const EPT_WALK_4: u64 = 1 << 6;
const EPT_WRITE_BACK: u64 = 1 << 14;
const EPT_2M: u64 = 1 << 16;
const EPT_1G: u64 = 1 << 17;
const EPT_INVEPT_SINGLE: u64 = 1 << 20 | 1 << 25;
const VPID_SINGLE: u64 = 1 << 32 | 1 << 41;

/// What is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// CPUID does not report VMX.
    NoVmx,
    /// The firmware has locked VMX off.
    Firmware,
    /// The revision or the memory type of VMX structures is not what every known processor has.
    Basic,
    /// A control cannot be what it must be: which one.
    Control(&'static str),
    /// EPT lacks something: what.
    Ept(&'static str),
    /// CR0 or CR4 demands bits that the hypervisor does not know.
    FixedBits,
    /// The processor lacks XSAVE, or its state is larger than there is room for.
    Xsave,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoVmx => f.write_str("the processor has no VMX (CPUID.1:ECX.5 is 0)"),
            Self::Firmware => {
                f.write_str("the firmware has locked VMX off: enable virtualization (VT-x) in the firmware setup")
            }
            Self::Basic => f.write_str("IA32_VMX_BASIC reports VMX structures of an unknown kind"),
            Self::Control(name) => write!(f, "the processor's VMX lacks '{name}'"),
            Self::Ept(what) => write!(f, "the processor's EPT lacks {what}"),
            Self::FixedBits => f.write_str("the processor demands CR0 or CR4 bits in VMX operation that are unknown"),
            Self::Xsave => f.write_str("the processor lacks XSAVE, or its AVX state is larger than expected"),
        }
    }
}

/// A word of controls: which bits must be 1 and which may be.
#[derive(Clone, Copy, Debug)]
pub struct Allowed {
    /// Bits that must be 1.
    pub must: u32,
    /// Bits that may be 1.
    pub may: u32,
}

impl Allowed {
    /// From a capability MSR: SDM vol. 3, A.3.1.
    pub const fn from_msr(value: u64) -> Self {
        Self { must: value as u32, may: (value >> 32) as u32 }
    }

    /// `wanted`, each with a name, and what must be 1; those of `optional` that may be 1; and none of `off`.
    fn choose(
        self,
        wanted: &[(u32, &'static str)],
        optional: u32,
        off: &[(u32, &'static str)],
    ) -> Result<u32, Refusal> {
        if let Some((_, name)) = wanted.iter().find(|(bits, _)| self.may & bits != *bits) {
            return Err(Refusal::Control(name));
        }
        if let Some((_, name)) = off.iter().find(|(bits, _)| self.must & bits != 0) {
            return Err(Refusal::Control(name));
        }
        let wanted = wanted.iter().fold(0, |all, (bits, _)| all | bits);
        Ok(self.must | wanted | optional & self.may)
    }
}

/// The capability MSRs, as values: what [`Capabilities::check`] judges.
#[derive(Clone, Copy, Debug)]
pub struct Raw {
    /// CPUID.1:ECX.5.
    pub vmx: bool,
    /// IA32_FEATURE_CONTROL.
    pub feature_control: u64,
    /// IA32_VMX_BASIC.
    pub basic: u64,
    /// The (TRUE) control MSRs: pin-based, primary, exit, entry.
    pub controls: [u64; 4],
    /// IA32_VMX_PROCBASED_CTLS2; 0 where the primary controls do not offer it.
    pub secondary: u64,
    /// IA32_VMX_EPT_VPID_CAP; 0 where there is neither.
    pub ept_vpid: u64,
    /// IA32_VMX_MISC.
    pub misc: u64,
    /// IA32_VMX_CR0_FIXED0 and FIXED1.
    pub cr0: [u64; 2],
    /// IA32_VMX_CR4_FIXED0 and FIXED1.
    pub cr4: [u64; 2],
}

impl Raw {
    /// Reads this processor's. The MSRs that do not exist are left alone.
    pub fn read() -> Self {
        let vmx = raw_cpuid::CpuId::new().get_feature_info().is_some_and(|f| f.has_vmx());
        let mut raw = Self {
            vmx,
            feature_control: 0,
            basic: 0,
            controls: [0; 4],
            secondary: 0,
            ept_vpid: 0,
            misc: 0,
            cr0: [0; 2],
            cr4: [0; 2],
        };
        if !vmx {
            return raw;
        }
        // SAFETY: all of these exist where CPUID reports VMX; reading has no side effect. The TRUE controls exist where bit 55 of
        // IA32_VMX_BASIC says so, the last two where the controls say so (SDM vol. 3, appendix A).
        unsafe {
            raw.feature_control = rdmsr(msr::IA32_FEATURE_CONTROL);
            raw.basic = rdmsr(msr::IA32_VMX_BASIC);
            let plain = [
                msr::IA32_VMX_PINBASED_CTLS,
                msr::IA32_VMX_PROCBASED_CTLS,
                msr::IA32_VMX_EXIT_CTLS,
                msr::IA32_VMX_ENTRY_CTLS,
            ];
            let truly = [
                msr::IA32_VMX_TRUE_PINBASED_CTLS,
                msr::IA32_VMX_TRUE_PROCBASED_CTLS,
                msr::IA32_VMX_TRUE_EXIT_CTLS,
                msr::IA32_VMX_TRUE_ENTRY_CTLS,
            ];
            raw.controls = if raw.basic & 1 << 55 != 0 { truly } else { plain }.map(|register| rdmsr(register));
            raw.misc = rdmsr(msr::IA32_VMX_MISC);
            raw.cr0 = [rdmsr(msr::IA32_VMX_CR0_FIXED0), rdmsr(msr::IA32_VMX_CR0_FIXED1)];
            raw.cr4 = [rdmsr(msr::IA32_VMX_CR4_FIXED0), rdmsr(msr::IA32_VMX_CR4_FIXED1)];
            if Allowed::from_msr(raw.controls[1]).may & PRIMARY_SECONDARY != 0 {
                raw.secondary = rdmsr(msr::IA32_VMX_PROCBASED_CTLS2);
                if Allowed::from_msr(raw.secondary).may & (SECONDARY_EPT | SECONDARY_VPID) != 0 {
                    raw.ept_vpid = rdmsr(msr::IA32_VMX_EPT_VPID_CAP);
                }
            }
        }
        raw
    }
}

/// What a processor that is good enough offers, and the controls chosen for it.
#[derive(Clone, Copy, Debug)]
pub struct Capabilities {
    /// VMCS revision identifier.
    pub revision: u32,
    /// Pin-based controls.
    pub pin: u32,
    /// Primary processor-based controls.
    pub primary: u32,
    /// Secondary processor-based controls.
    pub secondary: u32,
    /// VM-exit controls.
    pub exit: u32,
    /// VM-entry controls, without [`ENTRY_IA32E`].
    pub entry: u32,
    /// Whether EPT maps 1 GiB pages.
    pub ept_1g: bool,
    /// The preemption timer counts down once in 2^this TSC ticks.
    pub preemption_shift: u32,
    /// CR0 bits that must be 1 in VMX operation, and those that may be.
    pub cr0: [u64; 2],
    /// The same of CR4.
    pub cr4: [u64; 2],
    /// The processor virtualises the local APIC and takes posted interrupts into a running guest.
    pub apicv: bool,
    /// IA32_FEATURE_CONTROL is not locked yet and has to be written.
    pub unlock: bool,
}

/// CR0.PE and CR0.PG: an unrestricted guest may clear them (SDM vol. 3, 28.3.1.1).
const CR0_PE_PG: u64 = 1 << 31 | 1;

impl Capabilities {
    /// Judges a processor. The refusal says what is missing.
    pub fn check(raw: &Raw) -> Result<Self, Refusal> {
        if !raw.vmx {
            return Err(Refusal::NoVmx);
        }
        let locked = raw.feature_control & FEATURE_LOCK != 0;
        if locked && raw.feature_control & FEATURE_VMX == 0 {
            return Err(Refusal::Firmware);
        }
        // Memory type of VMX structures (53:50) is write-back (6).
        if raw.basic >> 50 & 0xf != 6 || raw.basic & 1 << 31 != 0 {
            return Err(Refusal::Basic);
        }
        let [pin, primary, exit, entry] = raw.controls.map(Allowed::from_msr);
        let capabilities = Self {
            revision: raw.basic as u32,
            pin: choose_pin(pin)?,
            primary: choose_primary(primary)?,
            secondary: choose_secondary(Allowed::from_msr(raw.secondary))?,
            exit: exit.choose(
                &[
                    (DEBUG_CONTROLS, "save debug controls"),
                    (EXIT_HOST_64, "host address-space size"),
                    (EXIT_ACK_INTERRUPT, "acknowledge interrupt on exit"),
                    (EXIT_PAT_EFER, "save and load IA32_PAT and IA32_EFER on exit"),
                    (EXIT_SAVE_TIMER, "save VMX-preemption timer value"),
                ],
                0,
                &[],
            )?,
            entry: entry.choose(
                &[
                    (DEBUG_CONTROLS, "load debug controls"),
                    (ENTRY_IA32E, "IA-32e mode guest"),
                    (ENTRY_PAT_EFER, "load IA32_PAT and IA32_EFER on entry"),
                ],
                0,
                &[],
            )? & !ENTRY_IA32E,
            ept_1g: raw.ept_vpid & EPT_1G != 0,
            preemption_shift: (raw.misc & 0x1f) as u32,
            cr0: [raw.cr0[0] & !CR0_PE_PG, raw.cr0[1]],
            cr4: raw.cr4,
            apicv: pin.may & PIN_POSTED != 0
                && primary.may & PRIMARY_TPR_SHADOW != 0
                && Allowed::from_msr(raw.secondary).may & SECONDARY_APICV == SECONDARY_APICV,
            unlock: !locked,
        };
        check_ept(raw.ept_vpid)?;
        // CR0: NE beside PE and PG; CR4: VMXE.
        if capabilities.cr0[0] & !(1 << 5) != 0 || capabilities.cr4[0] & !(1 << 13) != 0 {
            return Err(Refusal::FixedBits);
        }
        Ok(capabilities)
    }
}

fn choose_pin(allowed: Allowed) -> Result<u32, Refusal> {
    allowed.choose(
        &[
            (PIN_EXTERNAL_INTERRUPT, "external-interrupt exiting"),
            (PIN_NMI, "NMI exiting"),
            (PIN_VIRTUAL_NMIS, "virtual NMIs"),
            (PIN_PREEMPTION_TIMER, "VMX-preemption timer"),
        ],
        0,
        &[],
    )
}

fn choose_primary(allowed: Allowed) -> Result<u32, Refusal> {
    allowed
        .choose(
            &[
                (PRIMARY_INTERRUPT_WINDOW, "interrupt-window exiting"),
                (PRIMARY_NMI_WINDOW, "NMI-window exiting"),
                (PRIMARY_TSC_OFFSETTING, "TSC offsetting"),
                (PRIMARY_HLT, "HLT exiting"),
                (PRIMARY_MWAIT, "MWAIT exiting"),
                (PRIMARY_RDPMC, "RDPMC exiting"),
                (PRIMARY_CR8, "CR8 exiting"),
                (PRIMARY_IO, "unconditional I/O exiting"),
                (PRIMARY_MSR_BITMAPS, "MSR bitmaps"),
                (PRIMARY_MONITOR, "MONITOR exiting"),
                (PRIMARY_SECONDARY, "secondary controls"),
            ],
            0,
            &[(PRIMARY_CR3, "CR3 accesses without exit")],
        )
        .map(|controls| controls & !(PRIMARY_INTERRUPT_WINDOW | PRIMARY_NMI_WINDOW))
}

fn choose_secondary(allowed: Allowed) -> Result<u32, Refusal> {
    allowed.choose(
        &[
            (SECONDARY_EPT, "EPT"),
            (SECONDARY_UNRESTRICTED, "unrestricted guest"),
            (SECONDARY_VPID, "VPID"),
            (SECONDARY_WBINVD, "WBINVD exiting"),
        ],
        SECONDARY_RDTSCP | SECONDARY_INVPCID,
        &[],
    )
}

fn check_ept(ept_vpid: u64) -> Result<(), Refusal> {
    let needs = [
        (EPT_WALK_4, "the 4-level walk"),
        (EPT_WRITE_BACK, "write-back tables"),
        (EPT_2M, "2 MiB pages"),
        (EPT_INVEPT_SINGLE, "single-context INVEPT"),
        (VPID_SINGLE, "single-context INVVPID"),
    ];
    match needs.iter().find(|(bits, _)| ept_vpid & bits != *bits) {
        Some((_, what)) => Err(Refusal::Ept(what)),
        None => Ok(()),
    }
}

/// Lets VMX run outside SMX and locks IA32_FEATURE_CONTROL, where the firmware has left that to us.
///
/// # Safety
/// `Capabilities::unlock` is set: the register is not locked.
pub unsafe fn unlock_feature_control() {
    // SAFETY: the caller has seen that the register is not locked, so the write does not fault.
    unsafe { msr::wrmsr(msr::IA32_FEATURE_CONTROL, rdmsr(msr::IA32_FEATURE_CONTROL) | FEATURE_LOCK | FEATURE_VMX) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = 0xffff_ffff_0000_0000;

    fn good() -> Raw {
        Raw {
            vmx: true,
            feature_control: 5,
            basic: 6 << 50 | 0x12,
            controls: [ALL; 4],
            secondary: ALL,
            ept_vpid: u64::MAX,
            misc: 5,
            cr0: [0x8000_0021, u64::MAX],
            cr4: [0x2000, u64::MAX],
        }
    }

    #[test]
    fn a_good_processor_is_taken() {
        let capabilities = Capabilities::check(&good()).unwrap();
        assert_eq!(capabilities.revision, 0x12);
        assert_eq!(capabilities.preemption_shift, 5);
        assert_eq!(capabilities.cr0[0], 1 << 5, "an unrestricted guest may clear PE and PG");
        assert_eq!(capabilities.entry & ENTRY_IA32E, 0);
    }

    #[test]
    fn each_missing_thing_has_its_own_refusal() {
        let refuse = |change: fn(&mut Raw)| {
            let mut raw = good();
            change(&mut raw);
            Capabilities::check(&raw).unwrap_err()
        };
        assert_eq!(refuse(|raw| raw.vmx = false), Refusal::NoVmx);
        assert_eq!(refuse(|raw| raw.feature_control = 1), Refusal::Firmware);
        assert_eq!(refuse(|raw| raw.basic = 0), Refusal::Basic);
        assert_eq!(refuse(|raw| raw.ept_vpid &= !EPT_2M), Refusal::Ept("2 MiB pages"));
        assert_eq!(refuse(|raw| raw.cr4[0] = 0x2001), Refusal::FixedBits);
        for (word, bit, name) in [
            (0, PIN_PREEMPTION_TIMER, "VMX-preemption timer"),
            (1, PRIMARY_MSR_BITMAPS, "MSR bitmaps"),
            (2, EXIT_ACK_INTERRUPT, "acknowledge interrupt on exit"),
            (3, ENTRY_IA32E, "IA-32e mode guest"),
        ] {
            let mut raw = good();
            raw.controls[word] &= !(u64::from(bit) << 32);
            assert_eq!(Capabilities::check(&raw).unwrap_err(), Refusal::Control(name));
        }
        for (bit, name) in [(SECONDARY_EPT, "EPT"), (SECONDARY_UNRESTRICTED, "unrestricted guest")] {
            let mut raw = good();
            raw.secondary &= !(u64::from(bit) << 32);
            assert_eq!(Capabilities::check(&raw).unwrap_err(), Refusal::Control(name));
        }
    }

    #[test]
    fn controls_that_must_be_one_are_one() {
        let mut raw = good();
        raw.controls[0] |= 0x16;
        assert_eq!(Capabilities::check(&raw).unwrap().pin & 0x16, 0x16);
        raw.controls[1] |= u64::from(PRIMARY_CR3);
        assert!(matches!(Capabilities::check(&raw), Err(Refusal::Control(_))));
    }
}
