//! The parts of a virtual processor, and its first instruction.

use crate::addr::Hpa;

/// Where and how a guest begins: Linux's 64-bit boot protocol (Documentation/arch/x86/boot.rst).
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// First instruction.
    pub rip: u64,
    /// Stack.
    pub rsp: u64,
    /// `boot_params`.
    pub rsi: u64,
    /// Page tables: at least an identity map of what the guest needs at first.
    pub cr3: u64,
    /// Base and limit of the GDT.
    pub gdt: (u64, u16),
    /// Selectors of the 64-bit code segment, the data segment and the TSS.
    pub selectors: [u16; 3],
    /// Base and limit of the TSS.
    pub tss: (u64, u32),
}

/// Frames that a virtual processor is made of. Whoever made it takes them back when it is gone.
#[derive(Clone, Copy, Debug)]
pub struct Frames {
    /// The VMCS, zeroed.
    pub vmcs: Hpa,
    /// The MSR bitmaps, filled in.
    pub msr_bitmap: Hpa,
}

/// Who keeps a virtual processor's local APIC.
#[derive(Clone, Copy, Debug)]
pub enum LocalApic {
    /// The hypervisor alone: it injects interrupts.
    Emulated,
    /// The processor, in this page, which posted interrupts of this descriptor reach while the guest runs.
    Virtualised {
        /// The virtual-APIC page.
        page: Hpa,
        /// The posted-interrupt descriptor.
        descriptor: Hpa,
    },
}
