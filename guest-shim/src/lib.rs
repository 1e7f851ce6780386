//! Lets a guest find out whether it is on bare metal, and use interrupt message stores in either case.
//!
//! A driver asks once for its access path, builds a [`Domain`] for it, and from then on allocates, maps, masks and frees interrupts without
//! a difference between the paths:
//!
//! ```
//! use guest_shim::hcall_abi::{Status, Target};
//! use guest_shim::{BatchPage, Decision, Domain, Hypercalls, Interrupt, Request, Store, Transport};
//! use guest_shim::{detect, discover, domain::SlotState, policy};
//!
//! # fn example<'a, T: Transport, S: Store>(
//! #     cpuid: &impl discover::Cpuid, facts: &detect::Facts, forbidden: bool,
//! #     transport: T, page: BatchPage<'a>, store: S, states: &'a mut [SlotState],
//! # ) -> Result<Option<Interrupt>, Status> {
//! // `cpuid` is `discover::NativeCpuid`, `transport` is `vmcall::Vmcall`.
//! let way = policy::decide(detect::on_bare_metal(facts), forbidden, discover::discover(cpuid).ok());
//! let mut domain: Domain<'_, T, S> = match way {
//!     Decision::Native => Domain::native(store, states),
//!     Decision::Hypercall(interface) => {
//!         let calls = Hypercalls::new(transport, interface);
//!         calls.enable()?;
//!         let device = calls.device(0)?;
//!         Domain::hypercall(calls, device, page)
//!     }
//!     // The driver uses MSI-X.
//!     Decision::Refuse(_) => return Ok(None),
//! };
//! // From here on both paths are the same: vector 0x41 of the processor with x2APIC ID 2.
//! let interrupt = domain.alloc(0)?;
//! domain.map(&interrupt, &Request { target: Target { apic_id: 2, vector: 0x41 }, unmask: true, cookie: 7 })?;
//! # Ok(Some(interrupt))
//! # }
//! ```
//!
//! `facts` are what the driver knows of CPUID, SMBIOS and the IOMMUs; `forbidden` is what the platform's ACPI table says
//! ([`hcall_abi::acpi`]); `page` is a page of memory for batches ([`BatchPage`]).
//!
//! [`domain::QueueDomain`] is for a store in the guest's own memory. [`PvEoi`] saves the VM exit at an interrupt's end. [`Hypercalls`] has the
//! calls of guests' lives as well: the request to stop, and the management of all guests.
//!
//! Two traits stand for the machine, [`Transport`] (the call) and [`Store`] (the slots), so that all other code runs on any host.
#![cfg_attr(not(test), no_std)]

pub mod calls;
pub mod detect;
pub mod discover;
pub mod domain;
mod manage;
pub mod policy;
pub mod pv_eoi;
pub mod store;
pub mod transport;
#[cfg(target_arch = "x86_64")]
pub mod vmcall;

#[cfg(test)]
mod fake;

pub use calls::{BatchPage, Hypercalls};
pub use discover::Interface;
pub use domain::{Domain, Interrupt, Request};
pub use hcall_abi;
pub use policy::Decision;
pub use pv_eoi::PvEoi;
pub use store::{MmioStore, Store};
pub use transport::Transport;
