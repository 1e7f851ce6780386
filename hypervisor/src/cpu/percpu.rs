//! Per-processor data. The GS base points to it while the hypervisor runs; each VM exit loads the GS base from the VMCS.

use core::{
    ptr::null_mut,
    sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering},
};

/// A processor's own.
#[repr(C)]
#[derive(Debug, Default)]
pub struct PerCpu {
    /// Its own address: what GS:0 holds.
    address: u64,
    /// Its number, from 0.
    pub number: usize,
    /// Its APIC ID.
    pub apic_id: u32,
    /// Vectors that have arrived and were not taken yet.
    pub(super) arrived: [AtomicU64; 4],
    /// Whether there may be some: asked at each exit.
    pub(super) any_arrived: AtomicBool,
    /// NMIs so far.
    pub(super) nmis: AtomicU64,
    /// The one that was installed before it.
    before: AtomicPtr<PerCpu>,
}

/// The one that was installed last. Nothing that was installed ever goes.
static LAST: AtomicPtr<PerCpu> = AtomicPtr::new(null_mut());

/// Those of all processors that have installed theirs, but for that of the processor whose own is at `except`.
pub fn others(except: u64) -> impl Iterator<Item = &'static PerCpu> {
    let next = |at: &AtomicPtr<PerCpu>| {
        // SAFETY: null, or what `install` has leaked and made whole before it was linked.
        unsafe { at.load(Ordering::Acquire).as_ref() }
    };
    core::iter::successors(next(&LAST), move |cpu| next(&cpu.before)).filter(move |cpu| cpu.address != except)
}

impl PerCpu {
    /// Makes this processor number `number`. After that [`this`] works on it; the value lives as long as the processor.
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

/// The GS base that leads to this processor's own: for the VMCS's host state.
pub fn base() -> u64 {
    // SAFETY: every processor with long mode has this MSR.
    unsafe { x86::msr::rdmsr(x86::msr::IA32_GS_BASE) }
}

/// This processor's own.
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
