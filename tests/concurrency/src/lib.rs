//! The hypervisor's protocols between processors, compiled against a model checker.
//!
//! The files of `hypervisor` and `hypervisor/sync` that hold a protocol take their atomics from `sync::atomic`. This crate compiles the same
//! files with the atomics of `loom` ([`atomic`]) and with a machine that sends interrupts between loom's threads ([`machine`]). The tests run
//! a few threads in all orders that the memory model allows, up to a number of preemptions.
//!
//! | file | tests |
//! |---|---|
//! | `hypervisor/sync/src/{tickets,shared}.rs` | `tests/locks.rs` |
//! | `hypervisor/src/irq/mailbox.rs` | `tests/mailbox.rs` |
//! | `hypervisor/src/vmx/posted.rs` | `tests/posted.rs` |
//! | `hypervisor/src/irq/host_vectors.rs` | `tests/vectors.rs` |
//! | `hypervisor/src/vtd/entry_words.rs` | `tests/entries.rs` |
//!
//! The models write down what is around these files: the scheduler's loop, the remapping unit, the processor. Each model has a test of a wrong
//! order that the checker must find.
#![allow(dead_code, reason = "the models use a part of each file")]
#![allow(missing_docs, clippy::new_without_default, reason = "the files are documented where they are at home")]

extern crate alloc;

pub mod atomic;
pub mod check;
pub mod lock;
pub mod machine;
pub mod memory;

pub use ims::{self, addr};
pub use lock::{Mutex, MutexGuard, ReadGuard, RwLock, WriteGuard, wait};
pub use machine::{apic, cpu};

#[path = "../../../hypervisor/src/vtd/entry_words.rs"]
pub mod entry_words;
#[path = "../../../hypervisor/src/irq/host_vectors.rs"]
pub mod host_vectors;
#[path = "../../../hypervisor/src/irq/mailbox.rs"]
pub mod mailbox;
#[path = "../../../hypervisor/src/vmx/posted.rs"]
pub mod posted;
#[path = "../../../hypervisor/sync/src/shared.rs"]
pub mod shared;
#[path = "../../../hypervisor/sync/src/tickets.rs"]
pub mod tickets;

/// The hypervisor's room `sync`.
pub mod sync {
    pub use crate::{Mutex, MutexGuard, atomic, shared::Shared, tickets::Tickets};
}

/// The hypervisor's room `irq`.
pub mod irq {
    pub use crate::{host_vectors, mailbox};
}

/// The hypervisor's room `vmx`.
pub mod vmx {
    pub use crate::posted;
}

/// The hypervisor's room `vtd`.
pub mod vtd {
    pub use crate::entry_words;
}
