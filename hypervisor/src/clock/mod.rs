//! The time that waits on hardware go by.
//!
//! A wait has a limit in time, from the manual that describes what is waited for, and goes by a [`Clock`]: [`poll`], [`poll_every`],
//! [`pause`], or a [`Timeout`] of its own. `platform::clock` finds out what the machine's clock is: the TSC at a frequency that was
//! measured ([`measure()`]), or the ACPI PM timer. Until then, and where there is neither, it is [`PostPort`].

pub mod choice;
pub mod measure;
mod post_port;
#[cfg(test)]
pub mod testing;
mod timeout;

use core::fmt::Debug;

use spin::Once;

pub use choice::{By, Choice};
pub use measure::{Rate, Unusable, measure};
pub use post_port::PostPort;
pub use timeout::{Timeout, pause, poll, poll_every};

/// A counter that runs at a constant rate.
pub trait Clock: Debug + Sync {
    /// The ticks since the last call with the same `last`, which is for the clock alone to interpret. What the first call returns means
    /// nothing. A clock that went backwards, or stands still, returns 0.
    fn advance(&self, last: &mut u64) -> u64;

    /// Ticks in a second. Rather too many than too few: a wait must not be too short.
    fn hertz(&self) -> u64;
}

/// The machine's clock, once it has been chosen.
static CURRENT: Once<&'static dyn Clock> = Once::new();

/// The clock of this machine.
pub fn current() -> &'static dyn Clock {
    CURRENT.get().copied().unwrap_or(&PostPort)
}

/// Has [`current`] return this clock. Only the first call has an effect.
pub fn set(clock: &'static dyn Clock) {
    CURRENT.call_once(|| clock);
}
