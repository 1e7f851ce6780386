//! Lets a guest find out that it is not on bare metal, and use interrupt message stores all the same.
//!
//! A driver asks once which way is open to it, builds a [`Domain`] for that way, and from then on allocates, maps, masks and
//! frees interrupts without knowing which way it goes:
//!
//! ```text
//! discover::discover(&NativeCpuid)      -> the hypercall domain, if a hypervisor offers one
//! detect::on_bare_metal(&facts)         -> the bare-metal test
//! policy::decide(bare_metal, forbidden, interface)
//!     Decision::Native                  -> Domain::native(store, states)
//!     Decision::Hypercall(interface)    -> calls = Hypercalls::new(Vmcall, interface); calls.enable(); calls.device(0),
//!                                          then Domain::hypercall(calls, device, page)
//!     Decision::Refuse(why)             -> use MSI-X
//! ```
//!
//! `facts` are what the driver knows of CPUID, SMBIOS and the IOMMUs; `forbidden` is what the platform's ACPI table says
//! ([`hcall_abi::acpi`]); `page` is a page of memory for batches ([`BatchPage`]).
//!
//! [`domain::QueueDomain`] is for a store in the guest's own memory. [`PvEoi`] saves the VM exit at an interrupt's end.
//!
//! What needs the machine stands behind two traits, [`Transport`] (the call) and [`Store`] (the slots), so that all the rest
//! runs on any host.
#![cfg_attr(not(test), no_std)]

pub mod calls;
pub mod detect;
pub mod discover;
pub mod domain;
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
