//! The contract between imsvisor and its guests.
//!
//! A guest finds the interface by scanning CPUID for [`cpuid::SIGNATURE`], reads its version, features and limits there, and
//! then makes calls with VMCALL:
//!
//! | register | going in | coming out |
//! |---|---|---|
//! | RAX | call base (CPUID) + [`Call`] | result: 0 or more is the call's value, less than 0 is minus a [`Status`] |
//! | RBX, RCX, RDX, RSI | arguments; an argument a call does not use must be 0 | unchanged |
//!
//! Nothing else changes. Calls are taken from 64-bit code at CPL 0 only. A call that fails changes nothing. The registers are
//! those of KVM's hypercalls, so that one line of assembler serves both.
//!
//! # Compatibility
//! A change that an older guest could notice raises the major version. A new call, feature bit or field in reserved room
//! raises the minor version; a guest that wants it checks the feature bit, not the version. Structures in memory carry their
//! size and version; reserved fields must be zero and reserved bits are refused, so that they can get a meaning later.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod acpi;
pub mod args;
pub mod call;
pub mod cpuid;
pub mod info;
pub mod status;

pub use args::{
    DeviceId, DeviceInfo, ItemLayout, MapReply, MapRequest, MessagePair, SlotHandle, StoreId, StoreKind, Target,
};
pub use call::Call;
pub use info::{FaultKind, FaultRecord, FaultStore, Pasid, SlotInfo, SlotState};
pub use status::Status;

/// Major version: guests and hypervisor must agree on it.
pub const VERSION_MAJOR: u16 = 1;
/// Minor version: counts additions.
pub const VERSION_MINOR: u16 = 1;

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
