//! The service on its hardware: remapping units, stores, host vectors, mailboxes, faults and storms, and attachments for DMA.

pub mod dma;
pub mod host_vectors;
pub mod mailbox;
pub mod ports;
pub mod rate_limit;
pub mod slow_store;
pub mod storm;
