//! What a guest that manages reaches of all guests (`hcall_abi::manage`).

use hcall_abi::{GuestCounters, GuestInfo, GuestNumber, Status};

/// What a guest with `manage=on` reaches: all guests' lives.
pub trait Management: Sync {
    /// What [`hcall_abi::LifeCall::QueryGuest`] tells, but for who asks.
    fn query(&self, guest: GuestNumber) -> Result<GuestInfo, Status>;
    /// [`hcall_abi::LifeCall::StartGuest`].
    fn start(&self, guest: GuestNumber) -> Result<(), Status>;
    /// [`hcall_abi::LifeCall::StopGuest`], with the milliseconds that the guest gets.
    fn stop(&self, guest: GuestNumber, grace: u64) -> Result<(), Status>;
    /// [`hcall_abi::LifeCall::RestartGuest`], with the milliseconds that the guest gets.
    fn restart(&self, guest: GuestNumber, grace: u64) -> Result<(), Status>;
    /// What [`hcall_abi::LifeCall::ReadCounters`] tells.
    fn counters(&self, guest: GuestNumber) -> Result<GuestCounters, Status>;
}
