//! The parts of a virtual processor, and its first instruction.

use crate::addr::Hpa;

/// A guest's first instruction and state: Linux's 64-bit boot protocol (Documentation/arch/x86/boot.rst).
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

/// A virtual processor's frames. The code that made it frees them after its end.
#[derive(Clone, Copy, Debug)]
pub struct Frames {
    /// The VMCS, zeroed.
    pub vmcs: Hpa,
    /// The MSR bitmaps, filled in.
    pub msr_bitmap: Hpa,
}

/// Where a virtual processor's local APIC is.
#[derive(Clone, Copy, Debug)]
pub enum LocalApic {
    /// In the hypervisor, which injects interrupts.
    Emulated,
    /// In the processor, in this page. Interrupts that are posted into this descriptor reach the running guest.
    Virtualised {
        /// The virtual-APIC page.
        page: Hpa,
        /// The posted-interrupt descriptor.
        descriptor: Hpa,
    },
}
