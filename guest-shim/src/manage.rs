//! The calls of guests' lives, typed: being asked to stop, and managing all guests.

use hcall_abi::cpuid::Features;
use hcall_abi::{GuestCounters, GuestInfo, GuestNumber, LifeCall, Status, Target, result_from_rax};

use crate::calls::{BatchPage, Hypercalls};
use crate::transport::Transport;

impl<T: Transport> Hypercalls<T> {
    fn life_call(&self, call: LifeCall, args: [u64; 4]) -> Result<u64, Status> {
        result_from_rax(self.transport().call(call.number(self.interface().call_base), args))
    }

    /// Whether the guest manages all guests.
    pub fn can_manage(&self) -> bool {
        self.interface().features.contains(Features::MANAGE)
    }

    /// [`LifeCall::SetStopRequest`]: this interrupt asks the guest to stop; `None` for none.
    pub fn set_stop_request(&self, target: Option<Target>) -> Result<(), Status> {
        self.life_call(LifeCall::SetStopRequest, [target.map_or(0, Target::to_register), 0, 0, 0]).map(drop)
    }

    /// [`LifeCall::QueryGuest`]. Guests count from 0; [`Status::InvalidArgument`] beyond the last one.
    pub fn query_guest(&self, guest: GuestNumber, page: &mut BatchPage) -> Result<GuestInfo, Status> {
        page.put_bytes(&GuestInfo::request());
        self.life_call(LifeCall::QueryGuest, [guest.0.into(), page.physical(), 0, 0])?;
        GuestInfo::from_bytes(&page.get_bytes())
    }

    /// The guest of this name, by asking one after the other. `None` if there is none.
    pub fn find_guest(&self, name: &str, page: &mut BatchPage) -> Result<Option<GuestNumber>, Status> {
        let mut guests = 1;
        let mut number = 0;
        while number < guests {
            let info = self.query_guest(GuestNumber(number), page)?;
            if info.name() == name {
                return Ok(Some(GuestNumber(number)));
            }
            guests = info.guests;
            number += 1;
        }
        Ok(None)
    }

    /// [`LifeCall::StartGuest`].
    pub fn start_guest(&self, guest: GuestNumber) -> Result<(), Status> {
        self.life_call(LifeCall::StartGuest, [guest.0.into(), 0, 0, 0]).map(drop)
    }

    /// [`LifeCall::StopGuest`], with the milliseconds that the guest gets; 0 ends it at once.
    pub fn stop_guest(&self, guest: GuestNumber, milliseconds: u64) -> Result<(), Status> {
        self.life_call(LifeCall::StopGuest, [guest.0.into(), milliseconds, 0, 0]).map(drop)
    }

    /// [`LifeCall::RestartGuest`], with the milliseconds that the guest gets to stop.
    pub fn restart_guest(&self, guest: GuestNumber, milliseconds: u64) -> Result<(), Status> {
        self.life_call(LifeCall::RestartGuest, [guest.0.into(), milliseconds, 0, 0]).map(drop)
    }

    /// [`LifeCall::ReadCounters`].
    pub fn guest_counters(&self, guest: GuestNumber, page: &mut BatchPage) -> Result<GuestCounters, Status> {
        page.put_bytes(&GuestCounters::request());
        self.life_call(LifeCall::ReadCounters, [guest.0.into(), page.physical(), 0, 0])?;
        GuestCounters::from_bytes(&page.get_bytes())
    }
}
