//! The second processor: it only notes what arrives there.

use alloc::{boxed::Box, vec::Vec};
use core::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use imsvisor::{
    apic, clock,
    cpu::{interrupts, percpu::PerCpu, tables::Tables},
    machine::{boot_info::BootInfo, discovery::Machine, memory, smp},
};

/// Vectors that have arrived, one bit each.
static ARRIVED: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

/// After this time an interrupt counts as lost. It comes at once where it comes; but the host may have other things to do.
const LIMIT: Duration = Duration::from_secs(5);

/// Starts it; returns its APIC ID.
pub fn start(machine: &Machine, loader: &BootInfo, own: u32) -> Result<u32, &'static str> {
    let others = smp::others(machine.apic_ids(), own);
    let [other, ..] = others[..] else { return Err("the machine has one processor only") };
    let page = memory::start_page(loader);
    if smp::start(&[other], page, entry) == 1 { Ok(other) } else { Err("the second processor does not start") }
}

extern "C" fn entry(number: usize) -> ! {
    Box::leak(Box::new(Tables::new())).load();
    PerCpu::install(number, apic::init_other());
    smp::arrived();
    loop {
        interrupts::idle();
        for vector in interrupts::take() {
            ARRIVED[usize::from(vector / 64)].fetch_or(1 << (vector % 64), Ordering::Release);
        }
    }
}

/// Waits until something has arrived there, and takes it.
pub fn seen() -> Vec<u8> {
    let any = || ARRIVED.iter().any(|word| word.load(Ordering::Acquire) != 0);
    let _ = clock::poll(clock::current(), LIMIT, any);
    let words: Vec<u64> = ARRIVED.iter().map(|word| word.swap(0, Ordering::AcqRel)).collect();
    (0..=u8::MAX).filter(|vector| words[usize::from(vector / 64)] >> (vector % 64) & 1 != 0).collect()
}
