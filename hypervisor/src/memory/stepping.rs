//! Test support: records every state that a 16-byte entry has while code runs, because a device may read it at any moment.

use std::{
    arch::asm,
    ptr::NonNull,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

type Entry = [AtomicU64; 2];

const SIGTRAP: i32 = 5;
/// States that are kept.
const MOST: usize = 64;

unsafe extern "C" {
    fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
}

/// One at a time: the handler is the process's.
static ONE: Mutex<()> = Mutex::new(());
static WATCHED: AtomicPtr<Entry> = AtomicPtr::new(std::ptr::null_mut());
static STATES: [Entry; MOST] = [const { [AtomicU64::new(0), AtomicU64::new(0)] }; MOST];
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// The states that `entry` goes through while `code` runs, from the one before to the one after. The processor stops behind each
/// instruction (RFLAGS.TF), so what one instruction writes is one step, and what two write are two.
///
/// # Safety
/// `entry` is valid, and only `code` writes to it.
pub unsafe fn states(entry: NonNull<Entry>, code: impl FnOnce()) -> Vec<u128> {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    WATCHED.store(entry.as_ptr(), Relaxed);
    COUNT.store(0, Relaxed);
    // SAFETY: the handler only reads and writes atomics. Nothing else in the tests asks for this signal.
    unsafe { signal(SIGTRAP, trapped) };
    trapped(SIGTRAP);
    {
        let _steps = Steps::begin();
        code();
    }
    let states = STATES.iter().take(COUNT.load(Relaxed)).map(value).collect::<Vec<_>>();
    assert!(states.len() < MOST, "the entry was written too often");
    states
}

/// The processor stops behind each instruction of this thread until this is dropped.
struct Steps;

impl Steps {
    fn begin() -> Self {
        // SAFETY: the handler of what this raises is there.
        unsafe { asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq") };
        Self
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        // SAFETY: TF is off outside of a `Steps`.
        unsafe { asm!("pushfq", "and qword ptr [rsp], ~0x100", "popfq") };
    }
}

/// Behind an instruction. The kernel has cleared TF here.
extern "C" fn trapped(_: i32) {
    // SAFETY: `states` was told that the entry is valid; the thread that writes to it is this one.
    let Some(entry) = (unsafe { WATCHED.load(Relaxed).as_ref() }) else { return };
    let count = COUNT.load(Relaxed);
    let last = count.checked_sub(1).and_then(|last| STATES.get(last)).map(value);
    if last != Some(value(entry))
        && let Some(state) = STATES.get(count)
    {
        state.iter().zip(entry).for_each(|(state, word)| state.store(word.load(Relaxed), Relaxed));
        COUNT.store(count + 1, Relaxed);
    }
}

fn value([low, high]: &Entry) -> u128 {
    u128::from(high.load(Relaxed)) << 64 | u128::from(low.load(Relaxed))
}

#[test]
fn each_store_is_a_step() {
    let entry = [const { AtomicU64::new(0) }; 2];
    // SAFETY: the entry is this test's.
    let states = unsafe {
        states(NonNull::from(&entry), || {
            entry[1].store(1, Relaxed);
            entry[0].store(2, Relaxed);
            entry[0].store(3, Relaxed);
        })
    };
    assert_eq!(states, [0, 1 << 64, 1 << 64 | 2, 1 << 64 | 3]);
}
