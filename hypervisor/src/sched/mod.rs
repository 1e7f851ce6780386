//! Scheduling: the processors, the scheduler, the loop of VM exits, and the lives of guests.

pub mod exit_loop;
pub mod guest_change;
pub mod guests;
pub mod jobs;
pub mod life_cycle;
pub mod maker;
pub mod processors;
pub mod run_queue;
pub mod scheduler;
