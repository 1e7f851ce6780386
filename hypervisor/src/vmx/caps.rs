//! The processor's VMX capabilities, and an error for each required feature that is missing.

use core::fmt;

use x86::msr::{self, rdmsr};

use super::controls::{
    Controls, DEBUG_CONTROLS, ENTRY_IA32E, ENTRY_PAT_EFER, EXIT_ACK_INTERRUPT, EXIT_HOST_64, EXIT_PAT_EFER,
    EXIT_SAVE_TIMER, PIN_EXTERNAL_INTERRUPT, PIN_NMI, PIN_POSTED, PIN_PREEMPTION_TIMER, PIN_VIRTUAL_NMIS, PRIMARY_CR3,
    PRIMARY_CR8, PRIMARY_HLT, PRIMARY_INTERRUPT_WINDOW, PRIMARY_IO, PRIMARY_MONITOR, PRIMARY_MSR_BITMAPS,
    PRIMARY_MWAIT, PRIMARY_NMI_WINDOW, PRIMARY_RDPMC, PRIMARY_SECONDARY, PRIMARY_TPR_SHADOW, PRIMARY_TSC_OFFSETTING,
    SECONDARY_APICV, SECONDARY_BUS_LOCK, SECONDARY_ENCLS, SECONDARY_EPT, SECONDARY_INVPCID, SECONDARY_RDTSCP,
    SECONDARY_UNRESTRICTED, SECONDARY_VPID, SECONDARY_WBINVD,
};
use crate::cpu::bits::{cr0, cr4};

/// IA32_FEATURE_CONTROL: lock, VMX outside SMX.
const FEATURE_LOCK: u64 = 1 << 0;
const FEATURE_VMX: u64 = 1 << 2;

/// IA32_VMX_BASIC: bit 31 is always 0; the memory type of VMX structures; the TRUE control MSRs exist.
const BASIC_ZERO: u64 = 1 << 31;
const BASIC_MEMORY_TYPE: u64 = 0xf << 50;
const BASIC_WRITE_BACK: u64 = 6 << 50;
const BASIC_TRUE_CONTROLS: u64 = 1 << 55;

/// The control MSRs, in the order of [`Raw::controls`].
const CONTROLS: [u32; 4] =
    [msr::IA32_VMX_PINBASED_CTLS, msr::IA32_VMX_PROCBASED_CTLS, msr::IA32_VMX_EXIT_CTLS, msr::IA32_VMX_ENTRY_CTLS];
const TRUE_CONTROLS: [u32; 4] = [
    msr::IA32_VMX_TRUE_PINBASED_CTLS,
    msr::IA32_VMX_TRUE_PROCBASED_CTLS,
    msr::IA32_VMX_TRUE_EXIT_CTLS,
    msr::IA32_VMX_TRUE_ENTRY_CTLS,
];

/// IA32_VMX_EPT_VPID_CAP: 4-level walk, write-back tables, 2 MiB pages, INVEPT of a single context.
const EPT_WALK_4: u64 = 1 << 6;
const EPT_WRITE_BACK: u64 = 1 << 14;
const EPT_2M: u64 = 1 << 16;
const EPT_1G: u64 = 1 << 17;
const EPT_INVEPT_SINGLE: u64 = 1 << 20 | 1 << 25;
const VPID_SINGLE: u64 = 1 << 32 | 1 << 41;

/// A required feature that is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// CPUID does not report VMX.
    NoVmx,
    /// The firmware has locked VMX off.
    Firmware,
    /// The revision or the memory type of VMX structures differs from that of every known processor.
    Basic,
    /// A control does not support the required setting. Holds its name.
    Control(&'static str),
    /// EPT lacks a feature. Holds its name.
    Ept(&'static str),
    /// CR0 or CR4 has fixed bits that the hypervisor does not know.
    FixedBits,
    /// The processor lacks XSAVE, or its state is larger than the area for it.
    Xsave,
}

impl fmt::Display for Unsupported {
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

/// The allowed settings of a word of controls.
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

    /// Chooses a word of controls: all `wanted` (with their names) and all that must be 1; those of `optional` that may be 1; and none of
    /// `off`.
    fn choose(
        self,
        wanted: &[(u32, &'static str)],
        optional: u32,
        off: &[(u32, &'static str)],
    ) -> Result<u32, Unsupported> {
        if let Some((_, name)) = wanted.iter().find(|(bits, _)| self.may & bits != *bits) {
            return Err(Unsupported::Control(name));
        }
        if let Some((_, name)) = off.iter().find(|(bits, _)| self.must & bits != 0) {
            return Err(Unsupported::Control(name));
        }
        let wanted = wanted.iter().fold(0, |all, (bits, _)| all | bits);
        Ok(self.must | wanted | optional & self.may)
    }
}

/// The capability MSRs as values, for [`Capabilities::check`].
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
    /// Reads this processor's MSRs. MSRs that do not exist are not read.
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
        // SAFETY: all of these exist where CPUID reports VMX; reading has no side effect. The TRUE controls exist where
        // IA32_VMX_BASIC says so, the last two where the controls say so (SDM vol. 3, appendix A).
        unsafe {
            raw.feature_control = rdmsr(msr::IA32_FEATURE_CONTROL);
            raw.basic = rdmsr(msr::IA32_VMX_BASIC);
            raw.controls =
                if raw.basic & BASIC_TRUE_CONTROLS != 0 { TRUE_CONTROLS } else { CONTROLS }.map(|msr| rdmsr(msr));
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

/// The features of a suitable processor, and the controls chosen for it.
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
    /// CR0 bits that must be 1 in VMX operation, and bits that may be 1. An unrestricted guest may clear PE and PG (SDM vol. 3, 28.3.1.1).
    pub cr0: [u64; 2],
    /// The same of CR4.
    pub cr4: [u64; 2],
    /// Whether the processor virtualises the local APIC and delivers posted interrupts to a running guest.
    pub apicv: bool,
    /// Whether IA32_FEATURE_CONTROL is not locked yet and has to be written.
    pub unlock: bool,
}

impl Capabilities {
    /// Checks a processor. The error names the missing feature.
    pub fn check(raw: &Raw) -> Result<Self, Unsupported> {
        if !raw.vmx {
            return Err(Unsupported::NoVmx);
        }
        let locked = raw.feature_control & FEATURE_LOCK != 0;
        if locked && raw.feature_control & FEATURE_VMX == 0 {
            return Err(Unsupported::Firmware);
        }
        if raw.basic & (BASIC_MEMORY_TYPE | BASIC_ZERO) != BASIC_WRITE_BACK {
            return Err(Unsupported::Basic);
        }
        let [pin, primary, exit, entry] = raw.controls.map(Allowed::from_msr);
        let secondary = Allowed::from_msr(raw.secondary);
        let capabilities = Self {
            revision: raw.basic as u32,
            pin: choose_pin(pin)?,
            primary: choose_primary(primary)?,
            secondary: choose_secondary(secondary)?,
            exit: choose_exit(exit)?,
            entry: choose_entry(entry)?,
            ept_1g: raw.ept_vpid & EPT_1G != 0,
            preemption_shift: (raw.misc & 0x1f) as u32,
            cr0: [raw.cr0[0] & !(cr0::PE | cr0::PG), raw.cr0[1]],
            cr4: raw.cr4,
            apicv: pin.may & PIN_POSTED != 0
                && primary.may & PRIMARY_TPR_SHADOW != 0
                && secondary.may & SECONDARY_APICV == SECONDARY_APICV,
            unlock: !locked,
        };
        check_ept(raw.ept_vpid)?;
        if capabilities.cr0[0] & !cr0::NE != 0 || capabilities.cr4[0] & !cr4::VMXE != 0 {
            return Err(Unsupported::FixedBits);
        }
        Ok(capabilities)
    }

    /// Whether an access of a guest that locks the bus exits.
    pub const fn traps_bus_locks(&self) -> bool {
        self.secondary & SECONDARY_BUS_LOCK != 0
    }

    /// Lets guests lock the bus without an exit.
    pub fn ignore_bus_locks(&mut self) {
        self.secondary &= !SECONDARY_BUS_LOCK;
    }

    /// The controls of a virtual processor. `virtualised` says that the processor, and not the hypervisor, has its local APIC: SDM vol. 3,
    /// 26.6.8 and 31.1. Then MONITOR and MWAIT do not exit, because a guest whose interrupts come without exits should idle without one.
    pub const fn controls(&self, virtualised: bool) -> Controls {
        let Self { pin, primary, secondary, .. } = *self;
        if !virtualised {
            return Controls { pin, primary, secondary };
        }
        let off = PRIMARY_CR8 | PRIMARY_MONITOR | PRIMARY_MWAIT;
        Controls {
            pin: pin | PIN_POSTED,
            primary: primary & !off | PRIMARY_TPR_SHADOW,
            secondary: secondary | SECONDARY_APICV,
        }
    }
}

fn choose_pin(allowed: Allowed) -> Result<u32, Unsupported> {
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

fn choose_primary(allowed: Allowed) -> Result<u32, Unsupported> {
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

fn choose_secondary(allowed: Allowed) -> Result<u32, Unsupported> {
    allowed.choose(
        &[
            (SECONDARY_EPT, "EPT"),
            (SECONDARY_UNRESTRICTED, "unrestricted guest"),
            (SECONDARY_VPID, "VPID"),
            (SECONDARY_WBINVD, "WBINVD exiting"),
        ],
        SECONDARY_RDTSCP | SECONDARY_INVPCID | SECONDARY_ENCLS | SECONDARY_BUS_LOCK,
        &[],
    )
}

fn choose_exit(allowed: Allowed) -> Result<u32, Unsupported> {
    allowed.choose(
        &[
            (DEBUG_CONTROLS, "save debug controls"),
            (EXIT_HOST_64, "host address-space size"),
            (EXIT_ACK_INTERRUPT, "acknowledge interrupt on exit"),
            (EXIT_PAT_EFER, "save and load IA32_PAT and IA32_EFER on exit"),
            (EXIT_SAVE_TIMER, "save VMX-preemption timer value"),
        ],
        0,
        &[],
    )
}

/// Without [`ENTRY_IA32E`], which follows the guest's mode.
fn choose_entry(allowed: Allowed) -> Result<u32, Unsupported> {
    allowed
        .choose(
            &[
                (DEBUG_CONTROLS, "load debug controls"),
                (ENTRY_IA32E, "IA-32e mode guest"),
                (ENTRY_PAT_EFER, "load IA32_PAT and IA32_EFER on entry"),
            ],
            0,
            &[],
        )
        .map(|controls| controls & !ENTRY_IA32E)
}

fn check_ept(ept_vpid: u64) -> Result<(), Unsupported> {
    let needs = [
        (EPT_WALK_4, "the 4-level walk"),
        (EPT_WRITE_BACK, "write-back tables"),
        (EPT_2M, "2 MiB pages"),
        (EPT_INVEPT_SINGLE, "single-context INVEPT"),
        (VPID_SINGLE, "single-context INVVPID"),
    ];
    match needs.iter().find(|(bits, _)| ept_vpid & bits != *bits) {
        Some((_, what)) => Err(Unsupported::Ept(what)),
        None => Ok(()),
    }
}

/// Allows VMX outside SMX and locks IA32_FEATURE_CONTROL, if the firmware has not locked it.
///
/// # Safety
/// `Capabilities::unlock` is set: the register is not locked.
pub unsafe fn unlock_feature_control() {
    // SAFETY: the caller has seen that the register is not locked, so the write does not fault.
    unsafe { msr::wrmsr(msr::IA32_FEATURE_CONTROL, rdmsr(msr::IA32_FEATURE_CONTROL) | FEATURE_LOCK | FEATURE_VMX) }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const ALL: u64 = 0xffff_ffff_0000_0000;

    /// A processor that has every control.
    pub fn good() -> Raw {
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
        assert_eq!(refuse(|raw| raw.vmx = false), Unsupported::NoVmx);
        assert_eq!(refuse(|raw| raw.feature_control = 1), Unsupported::Firmware);
        assert_eq!(refuse(|raw| raw.basic = 0), Unsupported::Basic);
        assert_eq!(refuse(|raw| raw.ept_vpid &= !EPT_2M), Unsupported::Ept("2 MiB pages"));
        assert_eq!(refuse(|raw| raw.cr4[0] = 0x2001), Unsupported::FixedBits);
        for (word, bit, name) in [
            (0, PIN_PREEMPTION_TIMER, "VMX-preemption timer"),
            (1, PRIMARY_MSR_BITMAPS, "MSR bitmaps"),
            (2, EXIT_ACK_INTERRUPT, "acknowledge interrupt on exit"),
            (3, ENTRY_IA32E, "IA-32e mode guest"),
        ] {
            let mut raw = good();
            raw.controls[word] &= !(u64::from(bit) << 32);
            assert_eq!(Capabilities::check(&raw).unwrap_err(), Unsupported::Control(name));
        }
        for (bit, name) in [(SECONDARY_EPT, "EPT"), (SECONDARY_UNRESTRICTED, "unrestricted guest")] {
            let mut raw = good();
            raw.secondary &= !(u64::from(bit) << 32);
            assert_eq!(Capabilities::check(&raw).unwrap_err(), Unsupported::Control(name));
        }
    }

    #[test]
    fn controls_that_must_be_one_are_one() {
        let mut raw = good();
        raw.controls[0] |= 0x16;
        assert_eq!(Capabilities::check(&raw).unwrap().pin & 0x16, 0x16);
        raw.controls[1] |= u64::from(PRIMARY_CR3);
        assert!(matches!(Capabilities::check(&raw), Err(Unsupported::Control(_))));
    }
}
