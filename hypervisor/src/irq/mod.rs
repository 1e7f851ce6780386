//! The service on the machine's hardware: remapping units, stores, host vectors, faults and floods, and whose DMA goes where.

pub mod dma;
pub mod host_vectors;
pub mod mailbox;
pub mod ports;
pub mod rate_limit;
pub mod slow_store;
pub mod storm;
