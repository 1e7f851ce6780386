//! Bits of the VM-execution, VM-exit and VM-entry controls: SDM vol. 3, 26.6 to 26.8.

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
/// Secondary: ENCLS exiting.
pub const SECONDARY_ENCLS: u32 = 1 << 15;
/// Secondary: VMM bus-lock detection.
pub const SECONDARY_BUS_LOCK: u32 = 1 << 30;
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

/// The words of controls that select which events exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Controls {
    /// Pin-based.
    pub pin: u32,
    /// Primary processor-based.
    pub primary: u32,
    /// Secondary processor-based.
    pub secondary: u32,
}
