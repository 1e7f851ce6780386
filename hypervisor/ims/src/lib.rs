//! The service turns a guest's interrupt messages into remapped ones. The guest uses trapped writes or hypercalls.
//!
//! The service is plain Rust. It reaches the machine by five [`ports`]: the remapping unit, the devices' stores, their shadows, delivery, and
//! delivery and unit together for many slots at a time. Nothing here touches hardware. No input of a guest can cause a panic or an endless
//! loop here.
//!
//! # Order
//! A binding is made in this order: route, take an entry and program it, flush the interrupt-entry cache, store the message in the device,
//! unmask last. It is removed in reverse: mask in the device and read back, clear the entry, flush, and only then release the index and the
//! route. To change a binding, the service acquires the new route first, changes the entry by one write, and releases the old route when
//! the flush has completed.
//!
//! # When the remapping unit does not answer
//! The service tries a failed flush once more. The entries and routes that were to be released stay reserved, in quarantine, until a flush
//! succeeds ([`Service::reclaim`]), and their guest gets no more entries before that. If the quarantine is full, they stay reserved for
//! good. A slot whose entry may not be flushed stays masked in the device.
//!
//! # Locks, in order
//! 1. [`Service`]'s list of devices (attach, detach, lookup; never on the path of a trap or a call, which get their [`Domain`]),
//! 2. a device's slots as a whole: writes and calls share it, so they do not wait for each other there; a reset and detaching have it
//!    for themselves,
//! 3. one slot: held while it is changed, its flush included. Nobody holds two: a batch locks its slots one after another, and marks
//!    those that it has begun (`State::Mapping`): it takes their entries from the ports, all at once, while no slot is locked. So here
//!    writes and calls wait for each other only where they mean the same slot (the ports may have locks that more slots share),
//! 4. which slots are free, and batch buffers: held for some instructions at a time, and nothing is locked meanwhile,
//! 5. the quarantine (only after a failure), and a guest's faults,
//! 6. whatever the ports lock inside.
//!
//! The holder of a lock never takes a lock with a lower number. Counters and the owners of entries are atomic words.
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
