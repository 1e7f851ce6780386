//! The calls by which a guest is asked to stop, and by which one guest manages all of them (`hcall_abi::manage`).

use hcall_abi::{
    GuestCounters, GuestInfo, GuestNumber, LifeCall, Status,
    cpuid::CALL_BASE,
    manage::{grace_from_register, stop_target_from_register},
    rax_from_result,
};

use crate::{
    addr::{Gpa, PAGE_SIZE},
    ims::CallingGuest,
    vm::{guest_io::GuestIo, management::Management},
};

/// The number of the first call that is not the service's.
const FIRST: u64 = LifeCall::ALL[0].number(CALL_BASE);

impl GuestIo<'_> {
    /// Answers a call of [`LifeCall`]: the value for RAX. `None` for every other call, and for those that the guest does not have, which are
    /// answered as calls that there are not.
    #[inline(always)]
    pub(super) fn life_call(&self, number: u64, args: [u64; 4]) -> Option<u64> {
        if number < FIRST { None } else { self.answer_life_call(number, args) }
    }

    #[cold]
    #[inline(never)]
    fn answer_life_call(&self, number: u64, args: [u64; 4]) -> Option<u64> {
        let call = LifeCall::from_number(number, CALL_BASE).filter(|_| self.vm.has_calls)?;
        let result = match (call, self.vm.management) {
            (LifeCall::SetStopRequest, _) => self.set_stop_request(args),
            (call, Some(management)) => self.manage(management, call, args),
            (_, None) => return None,
        };
        Some(rax_from_result(result))
    }

    /// [`LifeCall::SetStopRequest`]. [`Status::InvalidArgument`], [`Status::BadVector`] or [`Status::BadTarget`] for what is no target of the guest.
    fn set_stop_request(&self, [target, rest @ ..]: [u64; 4]) -> Result<u64, Status> {
        unused(&rest)?;
        self.vm.set_stop_target(stop_target_from_register(target)?).map(|()| 0)
    }

    /// A call of the guest that manages. [`Status::InvalidArgument`] for a register that the call does not take; else the errors of
    /// [`Management`], and those of [`Self::fill`].
    fn manage(&self, management: &dyn Management, call: LifeCall, args: [u64; 4]) -> Result<u64, Status> {
        let guest = GuestNumber::from_register(args[0])?;
        unused(&args[if call == LifeCall::StartGuest { 1 } else { 2 }..])?;
        match call {
            LifeCall::StartGuest => management.start(guest)?,
            LifeCall::StopGuest => management.stop(guest, grace_from_register(args[1])?)?,
            LifeCall::RestartGuest => management.restart(guest, grace_from_register(args[1])?)?,
            LifeCall::QueryGuest => {
                let is_own = guest.0 == self.vm.id.0;
                let info = || Ok(GuestInfo { is_own, ..management.query(guest)? }.to_bytes());
                self.fill(args[1], GuestInfo::check_request, info)?;
            }
            LifeCall::ReadCounters => {
                let counters = || Ok(management.counters(guest)?.to_bytes());
                self.fill(args[1], GuestCounters::check_request, counters)?;
            }
            LifeCall::SetStopRequest => return Err(Status::UnknownCall),
        }
        Ok(0)
    }

    /// Writes what `answer` gives to `at`, where the guest has put a request. [`Status::CrossesPage`], [`Status::BadAddress`]; the errors of `check`
    /// and of `answer`, which have written nothing.
    fn fill(
        &self,
        at: u64,
        check: fn(&[u8; 64]) -> Result<(), Status>,
        answer: impl FnOnce() -> Result<[u8; 64], Status>,
    ) -> Result<(), Status> {
        let (at, mut bytes) = (Gpa::new(at), [0; 64]);
        if at.page_offset() + bytes.len() as u64 > PAGE_SIZE {
            return Err(Status::CrossesPage);
        }
        self.read(at, &mut bytes)?;
        check(&bytes)?;
        self.write(at, &answer()?)
    }
}

/// [`Status::InvalidArgument`] if one of them is not 0.
fn unused(args: &[u64]) -> Result<(), Status> {
    if args.iter().all(|arg| *arg == 0) { Ok(()) } else { Err(Status::InvalidArgument) }
}
