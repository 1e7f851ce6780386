//! Clocks, by which waits on hardware are limited.
//!
//! Each wait has a time limit, from the manual that describes the hardware. A wait uses a [`Clock`]: [`poll`], [`poll_every`], [`pause`],
//! or a [`Timeout`] of its own. `machine::clock` selects the machine's clock: the TSC at a measured frequency ([`measure()`]), or the ACPI
//! PM timer. Before that, and on a machine with neither, the clock is [`PostPort`].

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

/// How far a counter of `bits` bits (1 to 64) that counts up has come since it showed `last`, which becomes `now`. It may have wrapped
/// around once; what it shows beyond its bits does not count.
pub const fn elapsed(last: &mut u64, now: u64, bits: u32) -> u64 {
    now.wrapping_sub(core::mem::replace(last, now)) & u64::MAX >> (64 - bits)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_that_wraps_around_has_come_as_far_as_it_has() {
        let mut last = 0x00ff_fff0;
        assert_eq!((elapsed(&mut last, 0x10, 24), last), (0x20, 0x10));
        assert_eq!(elapsed(&mut last, 0x10, 24), 0);
        // Bits that are reserved may show anything (ACPI 6.5, 4.8.3.3).
        assert_eq!(elapsed(&mut last, 0xab00_0011, 24), 1);
        assert_eq!(elapsed(&mut last, 0x12, 24), 1);
        assert_eq!(elapsed(&mut 0xffff_ffff, 1, 32), 2);
        assert_eq!(elapsed(&mut u64::MAX.clone(), 1, 64), 2);
        // One that counts down, the 8254: 5, then 65,533.
        assert_eq!(elapsed(&mut 5u16.wrapping_neg().into(), 0xfffd_u16.wrapping_neg().into(), 16), 8);
    }
}
