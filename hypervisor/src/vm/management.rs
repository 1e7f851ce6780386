//! What a guest that manages reaches of all guests (`hcall_abi::manage`).

use hcall_abi::{GuestCounters, GuestInfo, GuestNumber, Status};

/// What a guest with `manage=on` reaches: all guests' lives. Every method returns [`Status::InvalidArgument`] for a number beyond the last guest,
/// and none waits.
pub trait Management: Sync {
    /// What [`hcall_abi::LifeCall::QueryGuest`] tells, but for who asks. A guest that was refused has failed.
    fn query(&self, guest: GuestNumber) -> Result<GuestInfo, Status>;
    /// [`hcall_abi::LifeCall::StartGuest`]. [`Status::Unsupported`] for a guest that was refused.
    fn start(&self, guest: GuestNumber) -> Result<(), Status>;
    /// [`hcall_abi::LifeCall::StopGuest`], with the milliseconds that the guest gets. [`Status::Unsupported`] for a guest that was refused.
    fn stop(&self, guest: GuestNumber, grace: u64) -> Result<(), Status>;
    /// [`hcall_abi::LifeCall::RestartGuest`], with the milliseconds that the guest gets. [`Status::Unsupported`] for a guest that was refused.
    fn restart(&self, guest: GuestNumber, grace: u64) -> Result<(), Status>;
    /// What [`hcall_abi::LifeCall::ReadCounters`] tells; zeros for a guest that was refused.
    fn counters(&self, guest: GuestNumber) -> Result<GuestCounters, Status>;
}
