//! Starts the other processors.

use alloc::vec::Vec;
use core::{
    mem::offset_of,
    ptr::copy_nonoverlapping,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};

use crate::{
    addr::{Hpa, PAGE_SIZE},
    apic,
    clock::{self, poll},
    cpu,
    machine::{
        log_limit::LogLimit,
        memory::{FRAMES, map_trampoline, unmap_guard},
    },
    memory::FrameSource,
};

core::arch::global_asm!(include_str!("../../../boot/entry/ap.S"), options(att_syntax));

unsafe extern "C" {
    static ap_start: u8;
    static ap_words: u8;
    static ap_end: u8;
}

/// Frames of a processor's stack, and of the guard below it.
const STACK_FRAMES: u64 = 64;
const GUARD_FRAMES: u64 = 1;

/// The time limit for a processor to take its start-up words. The manual's own example waits for 100 ms (SDM vol. 3, 10.4.4.1).
const SHOW_UP: Duration = Duration::from_millis(500);
/// The time limit for a processor that has taken its start-up words to call [`arrived`].
const LATE: Duration = Duration::from_secs(5);

/// Processors that have reached Rust.
static ARRIVED: AtomicUsize = AtomicUsize::new(0);

/// A processor's first function: it gets its number, and never returns.
pub type Entry = extern "C" fn(usize) -> !;

/// The words at the end of the start-up page, in the order in which its code has them.
#[repr(C)]
struct Words {
    /// The APIC ID of the processor that is being started, with the bit [`OFFERED`]; 0 if none is. That processor sets the word to 0 when it
    /// takes the other words. The first processor sets the word to 0 when the time limit is over.
    turn: AtomicU64,
    cr3: u64,
    stack: u64,
    number: u64,
    entry: u64,
}

const OFFERED: u64 = 1 << 32;

/// Starts the processors with these APIC IDs, one after the other, at the page `page` below 1 MiB. They are numbered from 1 in this order.
/// Each begins at `entry`, with the final page tables and a stack of its own, and calls [`arrived`] there. Returns how many have. A
/// processor that does not start is logged and skipped: if it starts later, it stops.
pub fn start(apic_ids: &[u32], page: Option<Hpa>, entry: Entry) -> usize {
    if apic_ids.is_empty() {
        return 0;
    }
    let Some(page) = page.filter(|&page| map_trampoline(page).is_ok()) else {
        log::warn!("{} processors stay asleep: no page below 1 MiB is free to start them at", apic_ids.len());
        return 0;
    };
    // SAFETY: the page was mapped for this just now, and no processor is under way.
    let trampoline = unsafe { Trampoline::install(page) };
    let (mut started, mut absent) = (0, LogLimit::default());
    let mut spare = None;
    for (number, &apic_id) in (1..).zip(apic_ids) {
        let Some(stack) = spare.take().or_else(stack) else {
            log::warn!("no memory for the stack of processor {apic_id}, nor for those behind it");
            break;
        };
        match trampoline.start(apic_id, [cpu::cr3(), stack, number, entry as usize as u64], started) {
            StartUp::Arrived => started += 1,
            StartUp::Absent { sent } => {
                spare = Some(stack);
                absent.log(|| tell(apic_id, sent));
            }
            StartUp::Lost => {
                log::error!("processor {apic_id} has begun, and does not come: those behind it stay asleep");
                break;
            }
        }
    }
    absent.finish("processors that do not start");
    started
}

fn tell(apic_id: u32, sent: bool) {
    let why = if sent { "" } else { ": the local APIC has not sent all that it was told" };
    log::warn!("processor {apic_id} does not start{why}; it is passed over");
}

/// Notes that a processor has reached its first function, so the next one can start.
pub fn arrived() {
    ARRIVED.fetch_add(1, Ordering::Release);
}

/// How the start-up of a processor has ended.
enum StartUp {
    /// The processor has called [`arrived`].
    Arrived,
    /// The processor has not taken its words in time, and the words were withdrawn.
    Absent {
        /// The local APIC has sent the INIT and start-up commands.
        sent: bool,
    },
    /// The processor has taken its words and has not called [`arrived`] in time.
    Lost,
}

/// The page where processors start.
struct Trampoline {
    page: Hpa,
    words: *mut Words,
}

impl Trampoline {
    /// Copies the start-up code to the page.
    ///
    /// # Safety
    /// The page is mapped, below 1 MiB, and nobody else's for good.
    unsafe fn install(page: Hpa) -> Self {
        let start = &raw const ap_start;
        let len = (&raw const ap_end) as usize - start as usize;
        let at = (&raw const ap_words) as u64 - start as u64;
        // SAFETY: the code is shorter than a page, and the caller vouches for the page.
        unsafe { copy_nonoverlapping(start, page.as_u64() as *mut u8, len) };
        Self { page, words: (page.as_u64() + at) as *mut Words }
    }

    /// Starts a processor with these words. `before` processors have arrived before it.
    fn start(&self, apic_id: u32, words: [u64; 4], before: usize) -> StartUp {
        let clock = clock::current();
        let arrived = || ARRIVED.load(Ordering::Acquire) > before;
        let at = |offset| (self.words as usize + offset) as *mut u64;
        // SAFETY: the words are in the page that is ours, and aligned; no processor reads them before its turn has come.
        let turn = unsafe {
            at(offset_of!(Words, cr3)).cast::<[u64; 4]>().write_volatile(words);
            AtomicU64::from_ptr(at(offset_of!(Words, turn)))
        };
        turn.store(OFFERED | u64::from(apic_id), Ordering::Release);
        // SAFETY: the code there keeps to its page until it has taken the words, whose stack is this processor's alone.
        let sent = unsafe { apic::start(apic_id, (self.page.as_u64() / PAGE_SIZE) as u8, clock) };
        if poll(clock, SHOW_UP, arrived) {
            return StartUp::Arrived;
        }
        if turn.swap(0, Ordering::AcqRel) != 0 {
            return StartUp::Absent { sent };
        }
        if poll(clock, LATE, arrived) { StartUp::Arrived } else { StartUp::Lost }
    }
}

/// The top of a new stack, with a page below it that faults. It is never freed. `None` if there is no memory.
pub fn stack() -> Option<u64> {
    let base = FRAMES.alloc(GUARD_FRAMES + STACK_FRAMES, PAGE_SIZE)?;
    unmap_guard(base).ok()?;
    Some(base.as_u64() + (GUARD_FRAMES + STACK_FRAMES) * PAGE_SIZE)
}

/// The APIC IDs of the other processors: those of `all` except `own` that can be addressed. Without x2APIC mode, IDs beyond 254 cannot.
pub fn others(all: impl Iterator<Item = u32>, own: u32) -> Vec<u32> {
    let can_be_named = |id: &u32| *id < 255 || apic::is_x2apic();
    let (named, unnamed): (Vec<u32>, Vec<u32>) = all.filter(|&id| id != own).partition(can_be_named);
    if !unnamed.is_empty() {
        log::warn!(
            "{} processors stay asleep: without x2APIC mode none with an ID above 254 can be started",
            unnamed.len()
        );
    }
    named
}
