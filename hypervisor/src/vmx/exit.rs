//! VM exits as typed values: SDM vol. 3, 29.2 and appendix C.

use super::{fields, instr::vmread};
use crate::addr::{Gpa, Gva};

/// An event as VM exits and entries write it: SDM vol. 3, table 26-16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event(u32);

/// Kind of an event: bits 10:8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs, reason = "the names are the manual's")]
pub enum EventKind {
    ExternalInterrupt = 0,
    Nmi = 2,
    HardwareException = 3,
    SoftwareInterrupt = 4,
    PrivilegedSoftwareException = 5,
    SoftwareException = 6,
}

impl Event {
    const VALID: u32 = 1 << 31;
    const ERROR_CODE: u32 = 1 << 11;

    /// An event to inject.
    pub const fn new(kind: EventKind, vector: u8, error_code: bool) -> Self {
        Self(Self::VALID | (kind as u32) << 8 | vector as u32 | if error_code { Self::ERROR_CODE } else { 0 })
    }

    /// From a field; `None` when it is not valid.
    pub const fn from_field(value: u32) -> Option<Self> {
        if value & Self::VALID == 0 { None } else { Some(Self(value)) }
    }

    /// The event as VM entry requires it: bit 12 and the reserved bits cleared.
    pub const fn entry_field(self) -> u32 {
        self.0 & (Self::VALID | 0xfff)
    }

    /// Its vector.
    pub const fn vector(self) -> u8 {
        self.0 as u8
    }

    /// Its kind's number.
    pub const fn kind(self) -> u32 {
        self.0 >> 8 & 7
    }

    /// Whether it is an NMI.
    pub const fn is_nmi(self) -> bool {
        self.kind() == EventKind::Nmi as u32
    }

    /// Whether an instruction of the guest caused it. Then VM entry needs that instruction's length.
    pub const fn is_software(self) -> bool {
        self.kind() >= EventKind::SoftwareInterrupt as u32
    }

    /// Whether it is a fault, so that the instruction is executed again. #DB can be a fault, for which the processor has set RFLAGS before
    /// the exit; #DF and #MC are aborts (SDM vol. 3, table 7-1).
    pub const fn is_fault(self) -> bool {
        const DB: u8 = 1;
        const DF: u8 = 8;
        const MC: u8 = 18;
        self.kind() == EventKind::HardwareException as u32 && !matches!(self.vector(), DB | DF | MC)
    }

    /// The same event without an error code.
    pub const fn without_error_code(self) -> Self {
        Self(self.0 & !Self::ERROR_CODE)
    }

    /// Whether it has an error code.
    pub const fn has_error_code(self) -> bool {
        self.0 & Self::ERROR_CODE != 0
    }
}

/// An access to a control register: SDM vol. 3, table 29-3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrAccess {
    /// MOV to CRn from a general register.
    Write {
        /// Number of the control register.
        register: u8,
        /// Number of the general register.
        source: u8,
    },
    /// MOV from CRn. Only MOV from CR8 exits.
    Read {
        /// Number of the control register.
        register: u8,
        /// Number of the general register.
        target: u8,
    },
    /// CLTS.
    Clts,
    /// LMSW with this operand.
    Lmsw(u16),
}

impl CrAccess {
    /// The access that caused the last exit. Reads the current VMCS.
    pub fn read() -> Self {
        Self::from_qualification(qualification())
    }

    const fn from_qualification(qualification: u64) -> Self {
        let register = (qualification & 0xf) as u8;
        let general = (qualification >> 8 & 0xf) as u8;
        match qualification >> 4 & 3 {
            0 => Self::Write { register, source: general },
            1 => Self::Read { register, target: general },
            2 => Self::Clts,
            _ => Self::Lmsw((qualification >> 16) as u16),
        }
    }
}

/// An access to an I/O port: SDM vol. 3, table 29-5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoAccess {
    /// The port.
    pub port: u16,
    /// 1, 2 or 4 bytes.
    pub width: u8,
    /// IN rather than OUT.
    pub input: bool,
    /// INS or OUTS.
    pub string: bool,
}

impl IoAccess {
    /// The access that caused the last exit. Reads the current VMCS.
    pub fn read() -> Self {
        Self::from_qualification(qualification())
    }

    const fn from_qualification(qualification: u64) -> Self {
        Self {
            port: (qualification >> 16) as u16,
            width: (qualification & 7) as u8 + 1,
            input: qualification & 1 << 3 != 0,
            string: qualification & 1 << 4 != 0,
        }
    }
}

/// An EPT violation: SDM vol. 3, table 29-7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EptViolation {
    /// The guest-physical address.
    pub gpa: Gpa,
    /// The linear address, if there is one and the access was to its translation (and not to a paging structure).
    pub gva: Option<Gva>,
    /// A write (or a read-modify-write).
    pub write: bool,
    /// An instruction fetch.
    pub fetch: bool,
}

impl EptViolation {
    /// The violation that caused the last exit. Reads the current VMCS.
    #[inline]
    pub fn read() -> Self {
        Self::new(qualification(), vmread(fields::GUEST_PHYSICAL_ADDRESS), vmread(fields::GUEST_LINEAR_ADDRESS))
    }

    const fn new(qualification: u64, gpa: u64, linear: u64) -> Self {
        const LINEAR_VALID_AND_FINAL: u64 = 1 << 7 | 1 << 8;
        let linear_is_final = qualification & LINEAR_VALID_AND_FINAL == LINEAR_VALID_AND_FINAL;
        Self {
            gpa: Gpa::new(gpa),
            gva: if linear_is_final { Some(Gva::new(linear)) } else { None },
            write: qualification & 1 << 1 != 0,
            fetch: qualification & 1 << 2 != 0,
        }
    }
}

/// An exception that the exception bitmap intercepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// The exception.
    pub event: Event,
    /// Its error code, where the event has one.
    pub error_code: u32,
    /// For #DB: the bits for DR6.
    pub qualification: u64,
}

impl Exception {
    /// The exception that caused the last exit; `None` if it was an NMI of the machine. Reads the current VMCS.
    pub fn read() -> Option<Self> {
        let event = Event::from_field(vmread(fields::EXIT_INTERRUPTION)).filter(|event| !event.is_nmi())?;
        Some(Self { event, error_code: vmread(fields::EXIT_ERROR_CODE), qualification: qualification() })
    }
}

/// Whether the exception came from an IRET that has unblocked NMIs: bit 12 of its information, which is valid for all but #DF if no event
/// was being delivered (SDM vol. 3, 29.2.2). Reads the current VMCS.
pub fn exception_unblocked_nmis() -> bool {
    const UNBLOCKING: u32 = 1 << 12;
    vmread(fields::EXIT_INTERRUPTION) & UNBLOCKING != 0 && Event::from_field(vmread(fields::IDT_VECTORING)).is_none()
}

/// The same for an EPT violation: bit 12 of the exit qualification. Reads the current VMCS.
pub fn violation_unblocked_nmis() -> bool {
    const UNBLOCKING: u64 = 1 << 12;
    qualification() & UNBLOCKING != 0 && Event::from_field(vmread(fields::IDT_VECTORING)).is_none()
}

/// The vector of the machine's interrupt that the last exit has acknowledged. Reads the current VMCS.
pub fn interrupt_vector() -> u8 {
    vmread(fields::EXIT_INTERRUPTION) as u8
}

/// Why a guest exited: the exit reason alone, which stays in a register. Handlers read other fields on demand.
/// [`Reason`](super::reason::Reason) maps each reason to its exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// An exception that the exception bitmap intercepts, or an NMI of the machine: [`Exception::read`].
    ExceptionOrNmi,
    /// An interrupt of the machine, acknowledged: [`interrupt_vector`].
    ExternalInterrupt,
    /// A triple fault: a fault while a double fault was delivered.
    TripleFault,
    /// INIT of the machine.
    Signal,
    /// The guest can take an interrupt.
    InterruptWindow,
    /// The guest can take an NMI.
    NmiWindow,
    /// An access that has locked the bus. RIP is behind the instruction.
    BusLock,
    /// A task switch by JMP, CALL, IRET or a task gate.
    TaskSwitch,
    /// CPUID.
    Cpuid,
    /// HLT.
    Hlt,
    /// INVD or WBINVD.
    CacheFlush,
    /// VMCALL: a hypercall.
    Vmcall,
    /// MOV to or from a control register, CLTS, LMSW: [`CrAccess::read`].
    ControlRegister,
    /// IN, OUT, INS, OUTS: [`IoAccess::read`].
    Io,
    /// RDMSR of a register that is not passed through.
    Rdmsr,
    /// WRMSR of a register that is not passed through.
    Wrmsr,
    /// XSETBV.
    Xsetbv,
    /// An instruction that the guest's CPUID does not offer: MONITOR, MWAIT, RDPMC, ENCLS, any of VMX's.
    NotOffered,
    /// An access that the EPT does not allow: [`EptViolation::read`].
    EptViolation,
    /// An entry of the EPT that the processor refuses.
    EptMisconfiguration,
    /// A write to the virtual-APIC page that the processor has not carried out: [`apic_write_offset`]. RIP points behind the instruction.
    ApicWrite,
    /// The VMX-preemption timer has expired.
    PreemptionTimer,
    /// VM entry refused the guest's state: a defect of ours, or one that the guest used.
    EntryFailure,
    /// A machine check during VM entry.
    EntryMachineCheck,
    /// An exit that none of our controls enables.
    NotAskedFor,
}

impl Exit {
    /// Whether an instruction of the guest caused the exit, and nothing else.
    pub const fn is_instruction(self) -> bool {
        matches!(
            self,
            Self::Cpuid
                | Self::Hlt
                | Self::CacheFlush
                | Self::Vmcall
                | Self::ControlRegister
                | Self::Io
                | Self::Rdmsr
                | Self::Wrmsr
                | Self::Xsetbv
                | Self::NotOffered
        )
    }
}

/// The offset in the virtual-APIC page of the register whose write exited. Reads the current VMCS.
pub fn apic_write_offset() -> u16 {
    qualification() as u16 & 0xfff
}

fn qualification() -> u64 {
    vmread(fields::EXIT_QUALIFICATION)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qualifications_decode_as_the_manual_says() {
        assert_eq!(CrAccess::from_qualification(0x304), CrAccess::Write { register: 4, source: 3 });
        assert_eq!(CrAccess::from_qualification(0x718), CrAccess::Read { register: 8, target: 7 });
        assert_eq!(CrAccess::from_qualification(0x20), CrAccess::Clts);
        assert_eq!(CrAccess::from_qualification(0x0001_0030), CrAccess::Lmsw(1));
        assert_eq!(
            IoAccess::from_qualification(0x03f8_0008),
            IoAccess { port: 0x3f8, width: 1, input: true, string: false }
        );
        assert_eq!(
            IoAccess::from_qualification(0x0cfc_0013),
            IoAccess { port: 0xcfc, width: 4, input: false, string: true }
        );
    }

    #[test]
    fn a_linear_address_counts_only_when_it_is_valid_and_final() {
        assert_eq!(EptViolation::new(0x182, 0x1000, 0x2000).gva, Some(Gva::new(0x2000)));
        assert_eq!(EptViolation::new(0x082, 0x1000, 0x2000).gva, None);
        assert_eq!(EptViolation::new(0x002, 0x1000, 0x2000).gva, None);
        assert!(EptViolation::new(0x182, 0, 0).write);
    }

    #[test]
    fn an_event_keeps_its_parts() {
        let event = Event::new(EventKind::HardwareException, 14, true);
        assert_eq!(Event::from_field(event.entry_field()), Some(event));
        assert!(event.has_error_code() && !event.is_software());
        let fault = |kind, vector| Event::new(kind, vector, false).is_fault();
        let faults: Vec<u8> = (0..32).filter(|&vector| fault(EventKind::HardwareException, vector)).collect();
        assert!(faults.contains(&6) && faults.contains(&13) && faults.contains(&17));
        assert!(![1, 8, 18].iter().any(|vector| faults.contains(vector)));
        for kind in
            [EventKind::ExternalInterrupt, EventKind::Nmi, EventKind::SoftwareException, EventKind::SoftwareInterrupt]
        {
            assert!(!fault(kind, 14));
        }
        assert_eq!(event.without_error_code(), Event::new(EventKind::HardwareException, 14, false));
        assert_eq!(Event::from_field(0x0000_0b0e), None);
    }
}
