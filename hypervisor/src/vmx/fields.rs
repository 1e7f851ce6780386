//! VMCS fields: SDM vol. 3, appendix B. A field's type holds its width, and whether safe code may write it.

use core::marker::PhantomData;

/// A field of the VMCS; `W` is the type of its value, `S` is [`Guarded`], [`Guests`] or [`Cached`].
#[derive(Debug)]
pub struct Field<W, S = Guarded>(u32, PhantomData<(W, S)>);

/// Host state, controls and exit information. A wrong value could give the guest access to the hypervisor, or the field cannot be written
/// at all.
#[derive(Clone, Copy, Debug)]
pub struct Guarded;

/// The guest's state and the values that it reads. Any value is safe for all but the guest, because [`Guarded`] fields limit the guest's
/// access.
#[derive(Clone, Copy, Debug)]
pub struct Guests;

/// As [`Guests`], but only the hypervisor changes it, and [`Vcpu`](super::Vcpu) keeps a copy, with a method for each field.
#[derive(Clone, Copy, Debug)]
pub struct Cached;

impl<W, S> Clone for Field<W, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<W, S> Copy for Field<W, S> {}

impl<W, S> Field<W, S> {
    const fn new(encoding: u32) -> Self {
        Self(encoding, PhantomData)
    }

    /// Its encoding.
    pub const fn encoding(self) -> u32 {
        self.0
    }
}

/// A field that follows the processor's natural width: 64 bits.
#[derive(Clone, Copy, Debug)]
pub struct Natural;

/// The types that a field can hold.
pub trait Width {
    /// The Rust type of the value.
    type Value: Copy;
    /// The value in a register.
    fn widen(value: Self::Value) -> u64;
    /// The value that a register holds; bits beyond its width are zero there.
    fn narrow(register: u64) -> Self::Value;
}

macro_rules! width {
    ($kind:ty, $value:ty) => {
        impl Width for $kind {
            type Value = $value;
            fn widen(value: $value) -> u64 {
                value.into()
            }
            fn narrow(register: u64) -> $value {
                register as $value
            }
        }
    };
}
width!(u16, u16);
width!(u32, u32);
width!(u64, u64);
width!(Natural, u64);

macro_rules! fields {
    ($($width:ty, $side:ty { $($(#[doc = $doc:literal])+ $name:ident = $encoding:literal,)+ })+) => {
        $($($(#[doc = $doc])+ pub const $name: Field<$width, $side> = Field::new($encoding);)+)+

        #[cfg(test)]
        const ENCODINGS: &[(&str, u32, usize)] =
            &[$($((stringify!($name), $encoding, size_of::<<$width as Width>::Value>()),)+)+];
    };
}

fields! {
    u16, Guarded {
        /// Virtual-processor identifier.
        VPID = 0x0000,
        /// Vector at which the processor looks into the posted-interrupt descriptor.
        POSTED_NOTIFICATION_VECTOR = 0x0002,
        /// Host ES selector.
        HOST_ES_SELECTOR = 0x0c00,
        /// Host CS selector.
        HOST_CS_SELECTOR = 0x0c02,
        /// Host SS selector.
        HOST_SS_SELECTOR = 0x0c04,
        /// Host DS selector.
        HOST_DS_SELECTOR = 0x0c06,
        /// Host FS selector.
        HOST_FS_SELECTOR = 0x0c08,
        /// Host GS selector.
        HOST_GS_SELECTOR = 0x0c0a,
        /// Host TR selector.
        HOST_TR_SELECTOR = 0x0c0c,
    }
    u16, Guests {
        /// Guest ES selector; the other segments follow in steps of 2.
        GUEST_ES_SELECTOR = 0x0800,
        /// Guest TR selector.
        GUEST_TR_SELECTOR = 0x080e,
        /// Guest interrupt status: RVI 7:0, SVI 15:8.
        GUEST_INTERRUPT_STATUS = 0x0810,
    }
    u64, Guarded {
        /// Address of the MSR bitmaps.
        MSR_BITMAP = 0x2004,
        /// Address of the area of MSRs stored at VM exit.
        EXIT_MSR_STORE_ADDRESS = 0x2006,
        /// Address of the area of MSRs loaded at VM exit.
        EXIT_MSR_LOAD_ADDRESS = 0x2008,
        /// Address of the area of MSRs loaded at VM entry.
        ENTRY_MSR_LOAD_ADDRESS = 0x200a,
        /// Address of the virtual-APIC page.
        VIRTUAL_APIC_PAGE = 0x2012,
        /// Address of the posted-interrupt descriptor.
        POSTED_DESCRIPTOR = 0x2016,
        /// EPT pointer.
        EPT_POINTER = 0x201a,
        /// ENCLS-exiting bitmap; exists where ENCLS exiting does.
        ENCLS_EXITING_BITMAP = 0x202e,
        /// EOI-exit bitmap 0; the others follow in steps of 2.
        EOI_EXIT_BITMAP0 = 0x201c,
        /// Guest-physical address of an EPT violation.
        GUEST_PHYSICAL_ADDRESS = 0x2400,
        /// VMCS link pointer.
        LINK_POINTER = 0x2800,
        /// Host IA32_PAT.
        HOST_PAT = 0x2c00,
        /// Host IA32_EFER.
        HOST_EFER = 0x2c02,
    }
    u64, Guests {
        /// Added to the TSC that the guest reads.
        TSC_OFFSET = 0x2010,
        /// Guest IA32_DEBUGCTL.
        GUEST_DEBUGCTL = 0x2802,
        /// Guest IA32_PAT.
        GUEST_PAT = 0x2804,
        /// Guest PDPTE 0; the others follow in steps of 2.
        GUEST_PDPTE0 = 0x280a,
    }
    u64, Cached {
        /// Guest IA32_EFER.
        GUEST_EFER = 0x2806,
    }
    u32, Guarded {
        /// Pin-based controls.
        PIN_CONTROLS = 0x4000,
        /// Primary processor-based controls.
        PRIMARY_CONTROLS = 0x4002,
        /// Exception bitmap.
        EXCEPTION_BITMAP = 0x4004,
        /// Page-fault error-code mask.
        PAGE_FAULT_MASK = 0x4006,
        /// Page-fault error-code match.
        PAGE_FAULT_MATCH = 0x4008,
        /// Number of CR3 targets.
        CR3_TARGET_COUNT = 0x400a,
        /// VM-exit controls.
        EXIT_CONTROLS = 0x400c,
        /// Number of MSRs stored at VM exit.
        EXIT_MSR_STORE_COUNT = 0x400e,
        /// Number of MSRs loaded at VM exit.
        EXIT_MSR_LOAD_COUNT = 0x4010,
        /// VM-entry controls.
        ENTRY_CONTROLS = 0x4012,
        /// Number of MSRs loaded at VM entry.
        ENTRY_MSR_LOAD_COUNT = 0x4014,
        /// TPR threshold.
        TPR_THRESHOLD = 0x401c,
        /// Secondary processor-based controls.
        SECONDARY_CONTROLS = 0x401e,
        /// Why a VMX instruction failed.
        INSTRUCTION_ERROR = 0x4400,
        /// Exit reason.
        EXIT_REASON = 0x4402,
        /// Event that caused the exit.
        EXIT_INTERRUPTION = 0x4404,
        /// Its error code.
        EXIT_ERROR_CODE = 0x4406,
        /// Event whose delivery the exit cut short.
        IDT_VECTORING = 0x4408,
        /// Its error code.
        IDT_VECTORING_ERROR_CODE = 0x440a,
        /// Length of the instruction that caused the exit.
        EXIT_INSTRUCTION_LENGTH = 0x440c,
        /// Host IA32_SYSENTER_CS.
        HOST_SYSENTER_CS = 0x4c00,
    }
    u32, Guests {
        /// Event to inject at VM entry.
        ENTRY_INTERRUPTION = 0x4016,
        /// Error code of the event to inject.
        ENTRY_ERROR_CODE = 0x4018,
        /// Length of the instruction that a software interrupt was.
        ENTRY_INSTRUCTION_LENGTH = 0x401a,
        /// Guest ES limit; the other segments follow in steps of 2.
        GUEST_ES_LIMIT = 0x4800,
        /// Guest GDTR limit.
        GUEST_GDTR_LIMIT = 0x4810,
        /// Guest IDTR limit.
        GUEST_IDTR_LIMIT = 0x4812,
        /// Guest ES access rights; the other segments follow in steps of 2.
        GUEST_ES_RIGHTS = 0x4814,
        /// Guest CS access rights.
        GUEST_CS_RIGHTS = 0x4816,
        /// Guest SS access rights.
        GUEST_SS_RIGHTS = 0x4818,
        /// Blocking by STI, MOV SS, SMI, NMI.
        GUEST_INTERRUPTIBILITY = 0x4824,
        /// Active, HLT, shutdown, wait for SIPI.
        GUEST_ACTIVITY = 0x4826,
        /// Guest IA32_SYSENTER_CS.
        GUEST_SYSENTER_CS = 0x482a,
        /// VMX-preemption timer.
        PREEMPTION_TIMER = 0x482e,
    }
    Natural, Guarded {
        /// CR0 bits that the guest does not own.
        CR0_MASK = 0x6000,
        /// CR4 bits that the guest does not own.
        CR4_MASK = 0x6002,
        /// Exit qualification.
        EXIT_QUALIFICATION = 0x6400,
        /// Guest-linear address of an EPT violation.
        GUEST_LINEAR_ADDRESS = 0x640a,
        /// Host CR0.
        HOST_CR0 = 0x6c00,
        /// Host CR3.
        HOST_CR3 = 0x6c02,
        /// Host CR4.
        HOST_CR4 = 0x6c04,
        /// Host FS base.
        HOST_FS_BASE = 0x6c06,
        /// Host GS base.
        HOST_GS_BASE = 0x6c08,
        /// Host TR base.
        HOST_TR_BASE = 0x6c0a,
        /// Host GDTR base.
        HOST_GDTR_BASE = 0x6c0c,
        /// Host IDTR base.
        HOST_IDTR_BASE = 0x6c0e,
        /// Host IA32_SYSENTER_ESP.
        HOST_SYSENTER_ESP = 0x6c10,
        /// Host IA32_SYSENTER_EIP.
        HOST_SYSENTER_EIP = 0x6c12,
        /// Host RIP.
        HOST_RIP = 0x6c16,
    }
    Natural, Cached {
        /// What the guest reads of CR0 bits that it does not own.
        CR0_SHADOW = 0x6004,
        /// What the guest reads of CR4 bits that it does not own.
        CR4_SHADOW = 0x6006,
    }
    Natural, Guests {
        /// Guest CR0.
        GUEST_CR0 = 0x6800,
        /// Guest CR3.
        GUEST_CR3 = 0x6802,
        /// Guest CR4.
        GUEST_CR4 = 0x6804,
        /// Guest ES base; the other segments follow in steps of 2.
        GUEST_ES_BASE = 0x6806,
        /// Guest GDTR base.
        GUEST_GDTR_BASE = 0x6816,
        /// Guest IDTR base.
        GUEST_IDTR_BASE = 0x6818,
        /// Guest DR7.
        GUEST_DR7 = 0x681a,
        /// Guest RSP.
        GUEST_RSP = 0x681c,
        /// Guest RIP.
        GUEST_RIP = 0x681e,
        /// Guest RFLAGS.
        GUEST_RFLAGS = 0x6820,
        /// Debug exceptions that wait for their delivery.
        GUEST_PENDING_DEBUG = 0x6822,
        /// Guest IA32_SYSENTER_ESP.
        GUEST_SYSENTER_ESP = 0x6824,
        /// Guest IA32_SYSENTER_EIP.
        GUEST_SYSENTER_EIP = 0x6826,
    }
}

/// Segment registers in the order of the VMCS's fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs, reason = "the names are the registers'")]
pub enum Segment {
    Es = 0,
    Cs = 1,
    Ss = 2,
    Ds = 3,
    Fs = 4,
    Gs = 5,
    Ldtr = 6,
    Tr = 7,
}

impl Segment {
    /// All of them.
    pub const ALL: [Self; 8] = [Self::Es, Self::Cs, Self::Ss, Self::Ds, Self::Fs, Self::Gs, Self::Ldtr, Self::Tr];

    /// Its selector.
    pub const fn selector(self) -> Field<u16, Guests> {
        Field::new(GUEST_ES_SELECTOR.0 + 2 * self as u32)
    }

    /// Its base.
    pub const fn base(self) -> Field<Natural, Guests> {
        Field::new(GUEST_ES_BASE.0 + 2 * self as u32)
    }

    /// Its limit.
    pub const fn limit(self) -> Field<u32, Guests> {
        Field::new(GUEST_ES_LIMIT.0 + 2 * self as u32)
    }

    /// Its access rights.
    pub const fn rights(self) -> Field<u32, Guests> {
        Field::new(GUEST_ES_RIGHTS.0 + 2 * self as u32)
    }
}

/// EOI-exit bitmap `n`, 0 to 3.
pub const fn eoi_exit_bitmap(n: u32) -> Field<u64> {
    Field::new(EOI_EXIT_BITMAP0.0 + 2 * n)
}

/// Guest PDPTE `n`, 0 to 3.
pub const fn guest_pdpte(n: u32) -> Field<u64, Guests> {
    Field::new(GUEST_PDPTE0.0 + 2 * n)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SDM vol. 3, 26.11.2: bits 14:13 of an encoding are the width, bit 0 the high half of a 64-bit field.
    #[test]
    fn an_encoding_says_the_width_of_its_type() {
        for &(name, encoding, size) in ENCODINGS {
            let width = match encoding >> 13 & 3 {
                0 => 2,
                1 => 8,
                2 => 4,
                _ => 8,
            };
            assert_eq!(width, size, "{name}");
            assert_eq!(encoding & 1, 0, "{name}");
        }
    }

    #[test]
    fn segments_reach_their_last_field() {
        assert_eq!(Segment::Tr.selector().encoding(), GUEST_TR_SELECTOR.encoding());
        assert_eq!(Segment::Tr.rights().encoding(), 0x4822);
        assert_eq!(Segment::Tr.base().encoding(), 0x6814);
        assert_eq!(Segment::Ss.rights().encoding(), GUEST_SS_RIGHTS.encoding());
    }
}
