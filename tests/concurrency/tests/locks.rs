//! The ticket lock and the reader-writer lock. Loom lets two threads that wait for a third one take turns without end, so no more than two wait
//! at a time here.

use concurrency::{
    Mutex,
    check::{check, must_fail},
    sync::{Shared, Tickets},
};
use loom::{sync::Arc, thread};

fn add(lock: &Mutex<u32>) {
    *lock.lock() += 1;
}

#[test]
fn one_processor_at_a_time_has_the_lock() {
    check(3, || {
        // The tickets wrap meanwhile.
        let lock = Arc::new(Mutex::with(Tickets::with(u16::MAX, u16::MAX), 0));
        let other = {
            let lock = Arc::clone(&lock);
            thread::spawn(move || [0, 1].map(|_| add(&lock)))
        };
        add(&lock);
        add(&lock);
        other.join().unwrap();
        assert_eq!(*lock.lock(), 4);
    });
}

#[test]
fn a_try_gets_the_lock_or_leaves_it() {
    check(3, || {
        let lock = Arc::new(Mutex::new(0));
        let tries = [0, 1].map(|_| {
            let lock = Arc::clone(&lock);
            thread::spawn(move || lock.try_lock().map(|mut value| *value += 1).is_some())
        });
        add(&lock);
        let got = tries.map(|other| u32::from(other.join().unwrap())).iter().sum::<u32>();
        assert_eq!(*lock.try_lock().expect("all have done"), 1 + got);
    });
}

#[test]
fn a_try_that_slept_for_65536_tickets_waits_for_its_turn() {
    check(3, || {
        // Ticket 65,535 has the lock, and the next one is 0, which the try saw served a long time ago.
        let lock = Arc::new(Mutex::with(Tickets::with(0, u16::MAX), 0));
        let mut held = lock.taken();
        let late = {
            let lock = Arc::clone(&lock);
            thread::spawn(move || lock.try_with(0).map(|mut value| *value += 1).is_some())
        };
        let third = {
            let lock = Arc::clone(&lock);
            thread::spawn(move || lock.try_lock().map(|mut value| *value += 1).is_some())
        };
        *held += 1;
        drop(held);
        let got = [late, third].map(|other| u32::from(other.join().unwrap()));
        assert_eq!(*lock.lock(), 1 + got[0] + got[1]);
    });
}

fn write(shared: &Shared<(u32, u32)>) {
    let mut value = shared.write();
    value.0 += 1;
    value.1 += 1;
}

#[test]
fn readers_see_whole_writes_and_a_writer_gets_in() {
    check(3, || {
        let shared = Arc::new(Shared::of((0, 0)));
        let reader = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                for _ in 0..2 {
                    let value = shared.read();
                    assert_eq!(value.0, value.1, "half of a write");
                }
            })
        };
        write(&shared);
        reader.join().unwrap();
        assert_eq!(*shared.read(), (1, 1));
    });
}

#[test]
fn one_writer_at_a_time_has_the_value() {
    check(3, || {
        let shared = Arc::new(Shared::of((0, 0)));
        let other = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || write(&shared))
        };
        write(&shared);
        other.join().unwrap();
        assert_eq!(*shared.read(), (2, 2));
    });
}

#[test]
fn the_checker_finds_a_lock_that_two_have() {
    must_fail(2, || {
        // Two tickets are served at once: one more was served than its owner gave back.
        let lock = Arc::new(Mutex::with(Tickets::with(0, 0), 0));
        let other = {
            let lock = Arc::clone(&lock);
            thread::spawn(move || *lock.taken() += 1)
        };
        add(&lock);
        other.join().unwrap();
    });
}
