//! Per-processor data. The GS base points to it while the hypervisor runs; each VM exit loads the GS base from the VMCS.

use core::{
    ptr::null_mut,
    sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering},
};

/// A processor's data.
#[repr(C)]
#[derive(Debug, Default)]
pub struct PerCpu {
    /// The address of this structure, which GS:0 holds.
    address: u64,
    /// The processor's number, from 0.
    pub number: usize,
    /// The processor's APIC ID.
    pub apic_id: u32,
    /// Vectors that have arrived and were not taken yet.
    pub(super) arrived: [AtomicU64; 4],
    /// Whether there may be some. Each exit reads it.
    pub(super) any_arrived: AtomicBool,
    /// NMIs so far.
    pub(super) nmis: AtomicU64,
    /// The fiber that runs, or null.
    pub(super) fiber: AtomicPtr<u8>,
    /// The structure that was installed before this one.
    before: AtomicPtr<PerCpu>,
}

/// The structure that was installed last. Installed structures are never removed.
static LAST: AtomicPtr<PerCpu> = AtomicPtr::new(null_mut());

/// The data of all installed processors, except for the one at address `except`.
pub fn others(except: u64) -> impl Iterator<Item = &'static PerCpu> {
    let next = |at: &AtomicPtr<PerCpu>| {
        // SAFETY: null, or what `install` has leaked and made whole before it was linked.
        unsafe { at.load(Ordering::Acquire).as_ref() }
    };
    core::iter::successors(next(&LAST), move |cpu| next(&cpu.before)).filter(move |cpu| cpu.address != except)
}

impl PerCpu {
    /// Installs the data of this processor, with number `number`. After that [`this_cpu`] works on it. The data lives as long as the
    /// processor.
    pub fn install(number: usize, apic_id: u32) {
        let own: &'static mut Self =
            alloc::boxed::Box::leak(alloc::boxed::Box::new(Self { number, apic_id, ..Self::default() }));
        own.address = &raw const *own as u64;
        // SAFETY: the hypervisor uses GS for nothing else, and the value stays where it is.
        unsafe { x86::msr::wrmsr(x86::msr::IA32_GS_BASE, own.address) };
        let own: *mut Self = own;
        let link = |before| {
            // SAFETY: `own` was leaked above, and only its atomic part is written from now on.
            unsafe { (*own).before.store(before, Ordering::Relaxed) };
            Some(own)
        };
        let _ = LAST.fetch_update(Ordering::Release, Ordering::Acquire, link);
    }
}

/// The GS base of this processor's data, for the VMCS's host state.
pub fn base() -> u64 {
    // SAFETY: every processor with long mode has this MSR.
    unsafe { x86::msr::rdmsr(x86::msr::IA32_GS_BASE) }
}

/// This processor's data.
#[cfg(not(test))]
pub fn this_cpu() -> &'static PerCpu {
    let own: *const PerCpu;
    // SAFETY: `install` has run on this processor before anything asks, and what it installed is never freed.
    unsafe {
        core::arch::asm!("mov {}, gs:[0]", out(reg) own, options(nostack, preserves_flags, readonly));
        &*own
    }
}

/// A thread stands for a processor in tests.
#[cfg(test)]
pub fn this_cpu() -> &'static PerCpu {
    std::thread_local!(static OWN: &'static PerCpu = Box::leak(Box::default()));
    OWN.with(|own| *own)
}
