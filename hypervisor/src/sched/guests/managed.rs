//! What a guest that manages does to all guests.

use core::sync::atomic::Ordering;

use hcall_abi::{GuestCounters, GuestInfo, GuestNumber, Status, manage::NAME_MAX};

use super::{Guest, Guests};
use crate::{
    cpu,
    sched::life_cycle::{Action, LifeCycle},
    vm::management::Management,
};

impl Guests {
    /// The guest with this number, for a manager.
    fn named(&self, number: GuestNumber) -> Result<Option<&Guest>, Status> {
        self.all.get(usize::from(number.0)).map(Option::as_ref).ok_or(Status::InvalidArgument)
    }

    /// Changes a guest's life for a manager.
    fn change(&self, number: GuestNumber, change: impl FnOnce(&mut LifeCycle, u64) -> Action) -> Result<(), Status> {
        let guest = self.named(number)?.ok_or(Status::Unsupported)?;
        let mut state = guest.state.lock();
        match change(&mut state.life, cpu::tsc()) {
            Action::None | Action::Make => {}
            Action::Ask => {
                if let Some(vm) = &state.vm {
                    vm.ask_to_stop();
                }
            }
            Action::Force => state.force(),
        }
        drop(state);
        self.notify(guest.home());
        Ok(())
    }

    /// Milliseconds as ticks of the TSC.
    fn ticks(&self, milliseconds: u64) -> u64 {
        milliseconds.saturating_mul(self.machine.clock().tsc_mhz().max(1)).saturating_mul(1_000)
    }
}

impl Management for Guests {
    fn query(&self, number: GuestNumber) -> Result<GuestInfo, Status> {
        let guests = u16::try_from(self.all.len()).unwrap_or(u16::MAX);
        let mut info = GuestInfo {
            guests,
            state: hcall_abi::GuestState::Failed,
            is_own: false,
            name: [0; NAME_MAX],
            vcpus: 0,
            memory_mib: 0,
            weight: 0,
            starts: 0,
        };
        let Some(guest) = self.named(number)? else { return Ok(info) };
        let options = &guest.plan.options;
        info.name.iter_mut().zip(options.name.bytes()).for_each(|(place, byte)| *place = byte);
        (info.vcpus, info.memory_mib) = (options.cpus, (options.memory >> 20) as u32);
        info.weight = options.shares.weight().into();
        let state = guest.state.lock();
        (info.state, info.starts) = (state.life.state(), state.life.starts());
        Ok(info)
    }

    fn start(&self, guest: GuestNumber) -> Result<(), Status> {
        self.change(guest, |life, _| life.start())
    }

    fn stop(&self, guest: GuestNumber, grace: u64) -> Result<(), Status> {
        let grace = self.ticks(grace);
        self.change(guest, |life, now| life.stop(now, grace))
    }

    fn restart(&self, guest: GuestNumber, grace: u64) -> Result<(), Status> {
        let grace = self.ticks(grace);
        self.change(guest, |life, now| life.restart(now, grace))
    }

    fn counters(&self, number: GuestNumber) -> Result<GuestCounters, Status> {
        let Some(guest) = self.named(number)? else { return Ok(GuestCounters::default()) };
        let state = guest.state.lock();
        let counters = state.vm.as_ref().map_or(state.last, |vm| vm.counters());
        Ok(GuestCounters { building: guest.building.load(Ordering::Relaxed), ..counters })
    }
}
