//! Waits for devices while a guest is made or released, in which the processor's other guests run.

use core::hint::spin_loop;

use crate::{
    clock::{self, Clock},
    cpu::fiber,
};

/// Ticks of the TSC for which others run between two looks.
const PAUSE: u64 = 50_000;

/// The machine's clock, for waits of a fiber: each look at it lets others run for a while. The caller must not hold a lock.
pub const PATIENT: &Patient = &Patient;

/// See [`PATIENT`].
#[derive(Debug)]
pub struct Patient;

impl Clock for Patient {
    fn advance(&self, last: &mut u64) -> u64 {
        others();
        clock::current().advance(last)
    }

    fn hertz(&self) -> u64 {
        clock::current().hertz()
    }
}

/// Lets others run for a while, if this is a fiber's work. The caller must not hold a lock.
pub fn others() {
    fiber::pause(PAUSE);
    spin_loop();
}
