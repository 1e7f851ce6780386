//! The other processors.

use alloc::vec::Vec;
use core::{
    ptr::copy_nonoverlapping,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use super::memory::{FRAMES, map_trampoline, unmap_guard};
use crate::{
    addr::{Hpa, PAGE_SIZE},
    apic,
    clock::{self, poll},
    cpu,
    memory::FrameSource,
};

/// The page below 1 MiB where processors start. Nothing else is there once the firmware is done.
const PAGE: u64 = 0x8000;

core::arch::global_asm!(include_str!("../../../boot/entry/ap.S"), page = const PAGE, options(att_syntax));

unsafe extern "C" {
    static ap_start: u8;
    static ap_words: u8;
    static ap_end: u8;
}

/// Frames of a processor's stack, and of the guard below it.
const STACK_FRAMES: u64 = 64;
const GUARD_FRAMES: u64 = 1;

/// More processors than these stay asleep: 64 have a stack of 256 KiB each, so whatever the MADT says, that is 16 MiB.
const MOST_OTHERS: usize = 63;

/// What a processor gets to show up. The manual's own example counts those that have in 100 ms (SDM vol. 3, 10.4.4.1).
const SHOW_UP: Duration = Duration::from_millis(500);

/// Processors that have reached Rust.
static ARRIVED: AtomicUsize = AtomicUsize::new(0);

/// A processor's first function: it gets its number, and never returns.
pub type Entry = extern "C" fn(usize) -> !;

/// Starts the processors with these APIC IDs, one after the other; they are numbered from 1. Each of them begins at `entry`, with the
/// final page tables and a stack of its own, and calls [`arrived`] there. Returns how many have; the others are told of in the log.
///
/// One that does not show up ends the attempt: it might still come, and find the next one's words.
pub fn start(apic_ids: &[u32], entry: Entry) -> usize {
    if apic_ids.is_empty() || map_trampoline(Hpa::new(PAGE)).is_err() {
        return 0;
    }
    let clock = clock::current();
    for (number, &apic_id) in (1..).zip(apic_ids) {
        let Some(stack) = stack() else {
            log::warn!("no memory for the stack of processor {apic_id}");
            return number - 1;
        };
        // SAFETY: the page was mapped for this just now, and no processor is under way: all that were started have arrived. What starts
        // there has a stack of its own.
        let sent = unsafe {
            write_trampoline([cpu::cr3(), stack, number as u64, entry as usize as u64]);
            apic::start(apic_id, (PAGE / PAGE_SIZE) as u8, clock)
        };
        if !poll(clock, SHOW_UP, || ARRIVED.load(Ordering::Acquire) >= number) {
            let why = if sent { "" } else { ": the local APIC has not sent all that it was told" };
            log::warn!("processor {apic_id} does not start{why}");
            return number - 1;
        }
    }
    apic_ids.len()
}

/// A processor has reached its first function: the next one can start.
pub fn arrived() {
    ARRIVED.fetch_add(1, Ordering::Release);
}

/// The top of a new stack, with a page below it that faults.
fn stack() -> Option<u64> {
    let base = FRAMES.alloc(GUARD_FRAMES + STACK_FRAMES, PAGE_SIZE)?;
    unmap_guard(base).ok()?;
    Some(base.as_u64() + (GUARD_FRAMES + STACK_FRAMES) * PAGE_SIZE)
}

/// Puts the code and its words where the processor starts.
///
/// # Safety
/// The page is mapped and no processor runs there.
unsafe fn write_trampoline(words: [u64; 4]) {
    let start = &raw const ap_start;
    let len = (&raw const ap_end) as usize - start as usize;
    let at = (&raw const ap_words) as usize - start as usize;
    // SAFETY: the code is shorter than a page, the words lie in it, and the caller vouches for the page.
    unsafe {
        copy_nonoverlapping(start, PAGE as *mut u8, len);
        copy_nonoverlapping(words.as_ptr().cast::<u8>(), (PAGE as usize + at) as *mut u8, size_of_val(&words));
    }
}

/// The APIC IDs of the other processors: those of `all` but `own`, as many as can be started. Without x2APIC mode an ID beyond 254
/// cannot be named.
pub fn others(all: impl Iterator<Item = u32>, own: u32) -> Vec<u32> {
    let reachable = |id: u32| id < 255 || apic::is_x2apic();
    all.filter(|&id| id != own && reachable(id)).take(MOST_OTHERS).collect()
}
