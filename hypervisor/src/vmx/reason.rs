//! Basic exit reasons, each with its handler or the reason why none is needed: SDM vol. 3, appendix C.
//!
//! The table below names every reason of the manual, including those that none of our controls enables, because a reason that a later
//! control enables must not be missed. `tests::reasons_and_controls_agree` checks the table against the controls.

use super::{exit::Exit, fields, instr::vmread};

macro_rules! reasons {
    ($($number:literal $name:ident $text:literal => $exit:ident, $why:literal;)+) => {
        /// A basic exit reason.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u16)]
        pub enum Reason { $(#[doc = $why] $name = $number,)+ }

        impl Reason {
            /// The reason with this number.
            pub const fn from_number(number: u16) -> Option<Self> {
                match number { $($number => Some(Self::$name),)+ _ => None }
            }

            /// Its name, as a report writes it.
            pub const fn name(number: u16) -> &'static str {
                match number { $($number => $text,)+ _ => "other" }
            }

            /// The exit for this reason.
            pub const fn exit(self) -> Exit {
                Self::exit_of(self as u16)
            }

            /// The exit for a reason's number, in one step, because each exit needs it.
            #[inline]
            pub const fn exit_of(number: u16) -> Exit {
                match number { $($number => Exit::$exit,)+ _ => Exit::NotAskedFor }
            }
        }
    };
}

reasons! {
    0 ExceptionOrNmi "exception" => ExceptionOrNmi, "#DB, #AC and #MC by the exception bitmap; NMIs of the machine.";
    1 ExternalInterrupt "external-interrupt" => ExternalInterrupt, "An interrupt of the machine.";
    2 TripleFault "triple-fault" => TripleFault, "Ends the guest.";
    3 InitSignal "init" => Signal, "INIT of the machine, which nobody sends to a processor that has started: the guest goes on.";
    4 StartUp "start-up" => NotAskedFor, "Only in the activity state wait-for-SIPI, which no guest is entered in.";
    5 IoSmi "smi" => NotAskedFor, "Only with a dual-monitor treatment of SMIs, which is never activated.";
    6 OtherSmi "smi" => NotAskedFor, "As for `IoSmi`.";
    7 InterruptWindow "interrupt-window" => InterruptWindow, "The guest can take an interrupt.";
    8 NmiWindow "nmi-window" => NmiWindow, "The guest can take an NMI.";
    9 TaskSwitch "task-switch" => TaskSwitch, "Unconditional. Ends the guest, with these words.";
    10 Cpuid "cpuid" => Cpuid, "Unconditional.";
    11 Getsec "getsec" => NotOffered, "Unconditional where CR4.SMXE is set, which no guest can do: #UD.";
    12 Hlt "hlt" => Hlt, "HLT exiting.";
    13 Invd "invd" => CacheFlush, "Unconditional.";
    14 Invlpg "invlpg" => NotAskedFor, "INVLPG exiting is off: the guest's translations are its own.";
    15 Rdpmc "rdpmc" => NotOffered, "RDPMC exiting.";
    16 Rdtsc "rdtsc" => NotAskedFor, "RDTSC exiting is off.";
    17 Rsm "rsm" => NotAskedFor, "Only in SMM with a dual-monitor treatment; elsewhere RSM is #UD.";
    18 Vmcall "vmcall" => Vmcall, "Unconditional.";
    19 Vmclear "vmx-instruction" => NotOffered, "Unconditional; #UD, as all of VMX's.";
    20 Vmlaunch "vmx-instruction" => NotOffered, "As `Vmclear`.";
    21 Vmptrld "vmx-instruction" => NotOffered, "As `Vmclear`.";
    22 Vmptrst "vmx-instruction" => NotOffered, "As `Vmclear`.";
    23 Vmread "vmx-instruction" => NotOffered, "As `Vmclear`.";
    24 Vmresume "vmx-instruction" => NotOffered, "As `Vmclear`.";
    25 Vmwrite "vmx-instruction" => NotOffered, "As `Vmclear`.";
    26 Vmxoff "vmx-instruction" => NotOffered, "As `Vmclear`.";
    27 Vmxon "vmx-instruction" => NotOffered, "As `Vmclear`.";
    28 ControlRegister "control-register" => ControlRegister, "CR0 and CR4 by their masks, CR8 by its controls.";
    29 DebugRegister "debug-register" => NotAskedFor, "MOV-DR exiting is off: debug registers are switched with the virtual processor.";
    30 Io "io" => Io, "Unconditional I/O exiting.";
    31 Rdmsr "rdmsr" => Rdmsr, "By the MSR bitmap.";
    32 Wrmsr "wrmsr" => Wrmsr, "By the MSR bitmap.";
    33 EntryGuestState "entry-failure" => EntryFailure, "VM entry found the guest's state wrong.";
    34 EntryMsrLoading "entry-failure" => EntryFailure, "No MSRs are loaded by entry; an entry failure all the same.";
    36 Mwait "mwait" => NotOffered, "MWAIT exiting, where the guest's CPUID has no MONITOR.";
    37 MonitorTrapFlag "monitor-trap-flag" => NotAskedFor, "The monitor trap flag is off, and no MTF event is injected.";
    39 Monitor "monitor" => NotOffered, "MONITOR exiting, as for `Mwait`.";
    40 Pause "pause" => NotAskedFor, "PAUSE exiting and PAUSE-loop exiting are off.";
    41 EntryMachineCheck "entry-machine-check" => EntryMachineCheck, "A machine check during VM entry.";
    43 TprBelowThreshold "tpr" => NotAskedFor, "Not with virtual-interrupt delivery, and no TPR shadow is used without.";
    44 ApicAccess "apic-access" => NotAskedFor, "Virtualize APIC accesses is off: guests have an x2APIC.";
    45 VirtualizedEoi "virtualized-eoi" => NotAskedFor, "The EOI-exit bitmaps are zero.";
    46 DescriptorTable "descriptor-table" => NotAskedFor, "Descriptor-table exiting is off.";
    47 TaskRegister "task-register" => NotAskedFor, "Descriptor-table exiting is off.";
    48 EptViolation "ept-violation" => EptViolation, "An access outside of the guest's memory.";
    49 EptMisconfiguration "ept-misconfiguration" => EptMisconfiguration, "A defect of the hypervisor's tables: ends the guest.";
    50 Invept "vmx-instruction" => NotOffered, "As `Vmclear`.";
    51 Rdtscp "rdtscp" => NotAskedFor, "RDTSC exiting is off.";
    52 PreemptionTimer "preemption-timer" => PreemptionTimer, "The VMX-preemption timer has run down.";
    53 Invvpid "vmx-instruction" => NotOffered, "As `Vmclear`.";
    54 Wbinvd "wbinvd" => CacheFlush, "WBINVD exiting; WBNOINVD as well.";
    55 Xsetbv "xsetbv" => Xsetbv, "Unconditional.";
    56 ApicWrite "apic-write" => ApicWrite, "A self-IPI of the x2APIC whose vector is below 16, behind the write.";
    57 Rdrand "rdrand" => NotAskedFor, "RDRAND exiting is off.";
    58 Invpcid "invpcid" => NotAskedFor, "INVLPG exiting is off.";
    59 Vmfunc "vmfunc" => NotAskedFor, "VM functions are off: VMFUNC is #UD.";
    60 Encls "encls" => NotOffered, "ENCLS exiting, where the processor has it, for all leaves: #UD.";
    61 Rdseed "rdseed" => NotAskedFor, "RDSEED exiting is off.";
    62 PageModificationLog "page-modification-log" => NotAskedFor, "Page-modification logging is off.";
    63 Xsaves "xsaves" => NotAskedFor, "XSAVES is off: #UD.";
    64 Xrstors "xrstors" => NotAskedFor, "XRSTORS is off: #UD.";
    65 Pconfig "pconfig" => NotAskedFor, "PCONFIG is off: #UD.";
    66 SubPage "sub-page" => NotAskedFor, "Sub-page write permissions are off.";
    67 Umwait "umwait" => NotAskedFor, "User wait and pause are off: #UD.";
    68 Tpause "tpause" => NotAskedFor, "User wait and pause are off: #UD.";
    69 Loadiwkey "loadiwkey" => NotAskedFor, "LOADIWKEY exiting is off; without CR4.KL, which no guest can set, #UD.";
    70 Enclv "enclv" => NotAskedFor, "ENCLV exiting is off: #UD in VMX non-root operation.";
    72 Enqcmd "enqcmd" => NotAskedFor, "PASID translation is off.";
    73 Enqcmds "enqcmds" => NotAskedFor, "PASID translation is off.";
    74 BusLock "bus-lock" => BusLock, "Bus-lock detection, where the processor has it: behind the access. Bit 26 of another exit's reason is not looked at: that one ends the access as well.";
    75 InstructionTimeout "instruction-timeout" => NotAskedFor, "The instruction time-out is off.";
    76 Seamcall "seamcall" => NotOffered, "Unconditional where the processor has SEAM: #UD.";
    77 Tdcall "tdcall" => NotOffered, "Unconditional where the processor has SEAM: #UD.";
    78 Rdmsrlist "rdmsrlist" => NotAskedFor, "MSR-list instructions are off: #UD.";
    79 Wrmsrlist "wrmsrlist" => NotAskedFor, "MSR-list instructions are off: #UD.";
}

/// The last exit's basic reason, and the exit as a value. Reads the current VMCS.
#[inline]
pub fn read() -> (u16, Exit) {
    let reason = vmread(fields::EXIT_REASON);
    let number = reason as u16;
    (number, Reason::exit_of(number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmx::{
        caps::{Capabilities, tests::good},
        controls::*,
    };

    /// What makes an exit happen (SDM vol. 3, 27.1).
    #[derive(Clone, Copy)]
    enum Cause {
        /// No control has a say.
        Always,
        /// One of these primary controls is on.
        Primary(u32),
        /// One of these secondary controls is on.
        Secondary(u32),
        /// One of these pin-based controls is on.
        Pin(u32),
        /// The same secondary controls, where the processor keeps the local APIC.
        Virtualised(u32),
        /// Something that the hypervisor never does: the table says what.
        Never,
    }
    use Cause::*;

    /// By the manual, not by the code: 0 to 79.
    const CAUSES: [Option<Cause>; 80] = {
        let mut causes = [None; 80];
        let always = [0, 1, 2, 3, 9, 10, 11, 13, 28, 33, 34, 41, 48, 49, 50, 53, 55, 76, 77];
        let mut n = 0;
        while n < always.len() {
            causes[always[n]] = Some(Always);
            n += 1;
        }
        n = 18;
        while n <= 27 {
            causes[n] = Some(Always);
            n += 1;
        }
        let never = [4, 5, 6, 17, 43, 45, 59, 69, 70, 72, 73, 75, 78, 79];
        n = 0;
        while n < never.len() {
            causes[never[n]] = Some(Never);
            n += 1;
        }
        causes[7] = Some(Primary(1 << 2));
        causes[8] = Some(Primary(1 << 22));
        causes[12] = Some(Primary(1 << 7));
        causes[14] = Some(Primary(1 << 9));
        causes[15] = Some(Primary(1 << 11));
        causes[16] = Some(Primary(1 << 12));
        causes[29] = Some(Primary(1 << 23));
        causes[30] = Some(Primary(1 << 24 | 1 << 25));
        causes[31] = Some(Primary(1 << 28));
        causes[32] = Some(Primary(1 << 28));
        causes[36] = Some(Primary(1 << 10));
        causes[37] = Some(Primary(1 << 27));
        causes[39] = Some(Primary(1 << 29));
        causes[40] = Some(Primary(1 << 30));
        causes[44] = Some(Secondary(1 << 0));
        causes[46] = Some(Secondary(1 << 2));
        causes[47] = Some(Secondary(1 << 2));
        causes[51] = Some(Primary(1 << 12));
        causes[52] = Some(Pin(1 << 6));
        causes[54] = Some(Secondary(1 << 6));
        causes[56] = Some(Virtualised(1 << 9));
        causes[57] = Some(Secondary(1 << 11));
        causes[58] = Some(Primary(1 << 9));
        causes[60] = Some(Secondary(1 << 15));
        causes[61] = Some(Secondary(1 << 16));
        causes[62] = Some(Secondary(1 << 17));
        causes[63] = Some(Secondary(1 << 20));
        causes[64] = Some(Secondary(1 << 20));
        causes[65] = Some(Secondary(1 << 27));
        causes[66] = Some(Secondary(1 << 23));
        causes[67] = Some(Secondary(1 << 26));
        causes[68] = Some(Secondary(1 << 26));
        causes[74] = Some(Secondary(1 << 30));
        causes
    };

    /// On a processor that has every control, so that one that is chosen by mistake shows.
    #[test]
    fn reasons_and_controls_agree() {
        let capabilities = Capabilities::check(&good()).unwrap();
        let windows = PRIMARY_INTERRUPT_WINDOW | PRIMARY_NMI_WINDOW;
        let [emulated, virtualised] = [false, true].map(|apicv| capabilities.controls(apicv));
        let either = |word: fn(&Controls) -> u32| word(&emulated) | word(&virtualised);
        for (number, cause) in (0..).zip(CAUSES) {
            let reason = Reason::from_number(number);
            let Some(cause) = cause else {
                assert_eq!(reason, None, "{number} is reserved");
                continue;
            };
            let happens = match cause {
                Always => true,
                Never => false,
                Pin(bits) => either(|c| c.pin) & bits != 0,
                Primary(bits) => (either(|c| c.primary) | windows) & bits != 0,
                Secondary(bits) => either(|c| c.secondary) & bits != 0,
                Virtualised(bits) => virtualised.secondary & bits != 0,
            };
            let exit = reason.unwrap_or_else(|| panic!("reason {number} is missing")).exit();
            assert_eq!(exit != Exit::NotAskedFor, happens, "reason {number}: {exit:?}");
        }
        assert!((80..=u16::MAX).all(|number| Reason::from_number(number).is_none()));
    }

    #[test]
    fn every_reason_has_a_name_of_its_own_or_shares_it_for_a_reason() {
        let shared = ["vmx-instruction", "entry-failure", "smi"];
        let mut seen = std::collections::BTreeSet::new();
        for number in 0..128 {
            let name = Reason::name(number);
            assert_eq!(name == "other", Reason::from_number(number).is_none());
            assert!(name == "other" || shared.contains(&name) || seen.insert(name), "{name}");
        }
    }
}
