//! Scheduling: the processors, the scheduler and the loop of VM exits.

pub mod exit_loop;
pub mod policy;
pub mod processors;
pub mod scheduler;
