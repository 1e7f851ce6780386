//! The service: a guest's interrupt messages become remapped ones, by trapped writes or by hypercalls.
//!
//! The core is plain Rust. What it needs of the machine it asks of five [`ports`]: the remapping unit, the device's stores,
//! their shadows, delivery, and for many slots at a time delivery and unit together. Nothing here touches hardware, and nothing a
//! guest says can panic or loop here.
//!
//! # Order
//! Making a binding: route, take an entry and program it, flush the interrupt-entry cache, store the message in the device,
//! unmask last. Taking it away is the reverse: mask in the device and read back, clear the entry, flush, and only then release
//! the index and the route. Changing one: the new route is acquired first, the entry changes by one write, and the old route
//! is given back when the flush has completed.
//!
//! # When the remapping unit does not answer
//! A flush that fails is tried once more. What was to be released stays reserved, in quarantine, until a flush succeeds
//! ([`Service::reclaim`]), and its guest gets no more entries before that; what is too much to be remembered stays reserved for good. A
//! slot whose entry is not surely flushed stays masked in the device.
//!
//! # Locks, in order
//! 1. [`Service`]'s list of devices (attach, detach, lookup; never on the path of a trap or a call, which get their [`Domain`]),
//! 2. a device's slots as a whole: writes and calls share it, so they do not wait for each other there; a reset and detaching have it
//!    for themselves,
//! 3. one slot: held while it is changed, its flush included. Nobody holds two: a batch locks its slots one after another, and marks
//!    those that it has begun (`State::Mapping`): their entries are had from the ports, all at once, while none is locked. So writes
//!    and calls wait for each other only where they mean the same slot,
//! 4. which slots are free, and rooms for batches: for some instructions at a time, and nothing is locked meanwhile,
//! 5. the quarantine (only after a failure), and a guest's faults,
//! 6. whatever the ports lock inside.
//!
//! A holder of a lock never takes one of a lower number. What is counted, and whom an entry belongs to, are atomic words.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod addr;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
pub mod ports;

mod backed;
mod batch;
mod batch_buffer;
mod bulk;
mod counters;
mod ctrl;
mod device;
mod domain;
mod faults;
mod hcall;
mod lifecycle;
mod message;
mod service;
mod slot;
mod spec;
mod store;
mod store_access;
mod storm;
#[cfg(test)]
mod tests;

pub use backed::OwnEntry;
pub use counters::{GuestCounters, RemapCounters};
pub use device::{most_bytes, most_entries};
pub use domain::Domain;
pub use faults::Attribution;
pub use hcall::{BATCH_LIMIT, FEATURES, LIMITS};
use imsvisor_sync as sync;
pub use ports::{
    Bind, BindRequest, BoundEntry, CallingGuest, Delivery, EntryIndex, Field, HostRoute, Message, PackedRoute, Ports,
    Remap, Shadow, Span, Store, UnitNumber,
};
pub use service::Service;
pub use spec::{Backing, DeviceSpec, GuestId, GuestSpec, StoreLocation, StoreName, StoreSpec};
