//! The contract between imsvisor and its guests: all that is needed to write a guest's side of it.
//!
//! # Finding it
//! A guest scans CPUID from [`cpuid::FIRST_BASE`] to [`cpuid::LAST_BASE`] in steps of [`cpuid::BASE_STEP`] for
//! [`cpuid::SIGNATURE`] in EBX, ECX, EDX (EAX holds the highest leaf). Relative to where it stands:
//!
//! | leaf | EAX | EBX | ECX |
//! |---|---|---|---|
//! | +1 | version: major 31:16, minor 15:0 | number of call 0 (the *call base*) | |
//! | +2 | [`cpuid::Features`] | | |
//! | +3 | most slots of a device | most items in a batch | number of groups |
//!
//! Bit 31 of the features, and the ACPI table of [`acpi`], say that interrupt message stores must not be used without this interface.
//!
//! # Calling
//! VMCALL, from 64-bit code at CPL 0:
//!
//! | register | going in | coming out |
//! |---|---|---|
//! | RAX | call base + [`Call`] | result: 0 or more is the call's value, less than 0 is minus a [`Status`] |
//! | RBX, RCX, RDX, RSI | arguments; an argument a call does not use must be 0 | unchanged |
//!
//! Nothing else changes. A call that fails changes nothing. The registers are those of KVM's hypercalls, so that one line of
//! assembler serves both; and the status of a call that nobody knows is KVM's, so that a call that reaches another hypervisor looks
//! the same.
//!
//! # In order
//! 1. [`Call::Enable`], with the version that the guest speaks. Before it, devices show no message stores, and every call but `Nop`
//!    and `Enable` is [`Status::NotEnabled`]. A guest that never makes it works as on a machine without stores.
//! 2. [`Call::Discover`] names the guest's devices with stores, one after another; [`Call::QueryDevice`] tells where each store is.
//! 3. [`Call::Alloc`] or [`Call::AllocMany`] gives [slots](SlotHandle), one by one or as many as there are, each in a *group* of the
//!    guest's choice; [`Call::Free`], [`Call::FreeMany`] and [`Call::FreeGroup`] take them back. At any time, by any processor.
//! 4. [`Call::Map`] sends slots' interrupts to [targets](Target): a page of [`MapRequest`]s, each answered by a [`MapReply`] in its place.
//!    When it returns, the entries are in the remapping table and the messages in the device's store.
//! 5. [`Call::Mask`], [`Call::Unmask`], [`Call::SetAffinity`], [`Call::SetAux`], [`Call::QuerySlot`] while they live, and
//!    [`Call::ReadFaults`] when something is amiss.
//! 6. [`Call::SetPvEoi`], on each processor, saves the exit of EOI where the processor does not keep the local APIC.
//!
//! The calls of guests' lives ([`LifeCall`]) have nothing to do with stores and need no [`Call::Enable`].
//!
//! A store can be written instead, as on bare metal: writes to slots that were not allocated are trapped, checked and translated. A
//! message must be in compatibility format, fixed or lowest priority, edge, to one of the guest's own processors; a slot with another
//! one stays masked. Reading a slot costs nothing, so reading back to flush writes costs nothing.
//!
//! The same thing asked for twice is the same: mapping a slot again to the same target with the same cookie gives the same pair; another
//! one is [`Status::Exists`]. Unmapping what is not mapped succeeds. A handle is stale once its slot was freed ([`Status::StaleHandle`]):
//! slots count how often they were allocated.
//!
//! # Example
//! A slot for vector 0x41 of the processor with x2APIC ID 2, by hand. `page` is a page of memory whose physical address is `at`:
//!
//! ```
//! use hcall_abi::{Call, DeviceId, ItemLayout, MapReply, MapRequest, SlotHandle, Status, Target, result_from_rax};
//!
//! fn one_interrupt(
//!     vmcall: impl Fn(u64, [u64; 4]) -> u64, base: u32, device: DeviceId, page: &mut [u8; 4096], at: u64,
//! ) -> Result<SlotHandle, Status> {
//!     let call = |call: Call, args| result_from_rax(vmcall(call.number(base), args));
//!     let handle = SlotHandle::from_register(call(Call::Alloc, [device.0.into(), 0, 0, 0])?)?;
//!     let target = Target { apic_id: 2, vector: 0x41 };
//!     let request = MapRequest { handle, target, unmask: true, cookie: 7 };
//!     page[..16].copy_from_slice(&request.to_bytes());
//!     call(Call::Map, [device.0.into(), at, 1, ItemLayout::V1.0])?;
//!     MapReply::from_bytes(page[..16].try_into().unwrap()).0?;
//!     Ok(handle)
//! }
//! ```
//!
//! In C, `guest-shim/c` has the same behind functions, and `include/imsvisor_abi.h` all numbers and layouts of this crate. In assembler a
//! call is:
//!
//! ```text
//! mov  eax, [call_base]        ; CPUID base + 1, EBX
//! add  eax, 4                  ; Free
//! mov  ebx, 0x08               ; device 00:01.0
//! mov  ecx, [handle]
//! xor  edx, edx
//! xor  esi, esi
//! vmcall
//! test rax, rax
//! js   failed                  ; minus a status
//! ```
//!
//! # What a guest never sees
//! Pairs are opaque: the address is the same for all slots, and the data is the slot's handle. No host address, data, index or vector is
//! in anything that a guest can read. The one exception is a store in the guest's own memory ([`Call::OpenQueue`]), where messages have to
//! be the real ones; it is given only to a guest that has the requester ID for itself, whose entries no one else can use.
//!
//! A guest that has a whole function can find the indexes of its own entries all the same: it has the function write messages to the
//! interrupt addresses by DMA, and looks which of them arrive. Such messages reach its own processors only, because the unit checks
//! their source; neither a slot's mask nor its PASID holds for them, and the storm limit does.
//!
//! # Compatibility
//! A change that an older guest could notice raises the major version. A new call, feature bit or field in reserved room
//! raises the minor version; a guest that wants it checks the feature bit, not the version. Structures in memory carry their
//! size and version; reserved fields must be zero and reserved bits are refused, so that they can get a meaning later. The numbers of
//! calls, statuses and feature bits are never used again for something else.
//!
//! | version | what it added |
//! |---|---|
//! | 1.0 | discovery, slots, batches, masks, affinity |
//! | 1.1 | enabling; many slots at a time and groups; PASIDs; queries of slots; fault records; storms; queue stores; the ACPI table |
//! | 1.2 | interrupts that end without an exit; [`Call::FreeGroup`] frees so many slots at most |
//! | 1.3 | [`FaultKind::Refused`], for guests that enabled this version |
//! | 1.4 | requests to stop, and the management of guests ([`manage`]) |
//!
//! The change of [`Call::FreeGroup`] is one that guests can notice. Nothing had been released yet, so the major version stayed.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod acpi;
pub mod args;
pub mod call;
pub mod cpuid;
pub mod info;
pub mod manage;
pub mod slot;
pub mod status;

pub use args::{
    DeviceId, DeviceInfo, ItemLayout, MapReply, MapRequest, MessagePair, Pasid, SlotHandle, StoreId, StoreKind, Target,
};
pub use call::Call;
pub use info::{FaultKind, FaultRecord, FaultStore, SlotInfo, SlotState};
pub use manage::{GuestCounters, GuestInfo, GuestNumber, GuestState, LifeCall};
pub use status::Status;

/// Major version: guests and hypervisor must agree on it.
pub const VERSION_MAJOR: u16 = 1;
/// Minor version: counts additions.
pub const VERSION_MINOR: u16 = 4;

/// Splits what RAX holds after a call into the call's value or its [`Status`].
///
/// A negative value that is no status of this version is [`Status::UnknownCall`]: nothing on the other side spoke our language.
pub const fn result_from_rax(rax: u64) -> Result<u64, Status> {
    if (rax as i64) >= 0 { Ok(rax) } else { Err(Status::from_code((rax as i64).unsigned_abs())) }
}

/// What RAX holds for a result: the value, or minus the status. A value is at most `i64::MAX`.
pub const fn rax_from_result(result: Result<u64, Status>) -> u64 {
    match result {
        Ok(value) => value & i64::MAX as u64,
        Err(status) => (status.code() as i64).wrapping_neg() as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_result_survives_the_register() {
        assert_eq!(result_from_rax(rax_from_result(Ok(0))), Ok(0));
        assert_eq!(result_from_rax(rax_from_result(Ok(0x7000_0000_0000_0000))), Ok(0x7000_0000_0000_0000));
        for &status in Status::ALL {
            assert_eq!(result_from_rax(rax_from_result(Err(status))), Err(status));
        }
    }

    #[test]
    fn an_answer_from_another_hypervisor_is_an_unknown_call() {
        assert_eq!(result_from_rax(-1000i64 as u64), Err(Status::UnknownCall), "KVM");
        assert_eq!(result_from_rax(u64::MAX - 0x1234_5678), Err(Status::UnknownCall));
        assert_eq!(result_from_rax(i64::MIN as u64), Err(Status::UnknownCall));
    }
}
