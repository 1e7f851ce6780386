//! The orders in which remapping entries are written, against a unit that reads them at any time.

use concurrency::{
    atomic::{AtomicU64, Ordering},
    check::{check, must_fail},
    vtd::entry_words::write_absent,
};
use loom::{sync::Arc, thread};

/// P, in the low half.
const P: u64 = 1;

/// An entry's halves, each with the number of the write that they are of.
fn entry(number: u64) -> u128 {
    u128::from(number) << 64 | u128::from(number << 8 | P)
}

/// A unit reads an entry in two parts, P first: VT-d has it read an entry as one, or parts of it if P was set (VT-d specification, 6.2).
fn unit_reads([low, high]: &[AtomicU64; 2]) -> Option<u64> {
    let low = low.load(Ordering::Acquire);
    if low & P == 0 {
        return None;
    }
    let high = high.load(Ordering::Acquire);
    assert_eq!(low >> 8, high, "the halves of two entries");
    Some(high)
}

fn absent() -> Arc<[AtomicU64; 2]> {
    Arc::new([AtomicU64::new(0), AtomicU64::new(0)])
}

/// A unit reads an absent entry twice while `write` fills it.
fn fill_with(write: fn(&[AtomicU64; 2], u128)) {
    let entry_words = absent();
    let unit = {
        let entry_words = Arc::clone(&entry_words);
        thread::spawn(move || [0, 1].map(|_| unit_reads(&entry_words)))
    };
    write(&entry_words, entry(7));
    let [first, second] = unit.join().unwrap();
    assert!(first.is_none() || second == Some(7));
    assert_eq!(unit_reads(&entry_words), Some(7));
}

#[test]
fn an_absent_entry_becomes_present_as_a_whole() {
    check(3, || fill_with(write_absent));
}

#[test]
fn the_checker_finds_an_entry_whose_p_is_written_first() {
    must_fail(3, || {
        fill_with(|[low, high], new| {
            low.store(new as u64, Ordering::Release);
            high.store((new >> 64) as u64, Ordering::Release);
        });
    });
}

#[test]
fn the_checker_finds_an_entry_whose_p_is_not_ordered_behind_the_rest() {
    must_fail(3, || {
        fill_with(|[low, high], new| {
            high.store((new >> 64) as u64, Ordering::Relaxed);
            low.store(new as u64, Ordering::Relaxed);
        });
    });
}

/// An entry that is changed while it is present. One word stands for its 128 bits, which CMPXCHG16B changes and the unit reads as one.
struct Live(AtomicU64);

impl Live {
    const HALF: u32 = 32;

    fn of(number: u64) -> u64 {
        number << Self::HALF | number << 8 | P
    }

    /// What an interrupt finds: it must find one, whole.
    fn raise(&self) -> u64 {
        let all = self.0.load(Ordering::Acquire);
        assert_ne!(all & P, 0, "an interrupt is lost");
        let (low, high) = (all as u32 as u64, all >> Self::HALF);
        assert_eq!(low >> 8, high, "the halves of two entries");
        high
    }
}

/// An interrupt comes at any time while `change` replaces entry 1 by entry 2.
fn change_with(change: fn(&AtomicU64, u64, u64)) {
    let live = Arc::new(Live(AtomicU64::new(Live::of(1))));
    let unit = {
        let live = Arc::clone(&live);
        thread::spawn(move || [live.raise(), live.raise()])
    };
    change(&live.0, Live::of(1), Live::of(2));
    let seen = unit.join().unwrap();
    assert!(seen.is_sorted());
    assert_eq!(live.raise(), 2);
}

#[test]
fn a_live_entry_changes_by_one_exchange() {
    check(3, || {
        change_with(|word, old, new| {
            word.compare_exchange(old, new, Ordering::SeqCst, Ordering::Relaxed).expect("one writer");
        });
    });
}

#[test]
fn the_checker_finds_a_live_entry_that_changes_by_two_stores() {
    must_fail(3, || {
        change_with(|word, old, new| {
            let low = u64::from(u32::MAX);
            word.store(old & low | new & !low, Ordering::SeqCst);
            word.store(new, Ordering::SeqCst);
        });
    });
}

#[test]
fn the_checker_finds_a_live_entry_whose_p_is_cleared_first() {
    must_fail(3, || {
        change_with(|word, old, new| {
            word.store(old & !P, Ordering::SeqCst);
            word.store(new, Ordering::SeqCst);
        });
    });
}
