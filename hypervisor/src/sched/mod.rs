//! Who runs: the processors, the scheduler and the loop of VM exits.

#[cfg(feature = "bare")]
pub mod exit_loop;
#[cfg(feature = "bare")]
pub mod processors;
#[cfg(feature = "bare")]
pub mod scheduler;
