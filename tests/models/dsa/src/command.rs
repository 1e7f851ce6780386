//! The command register: enabling, draining, resetting, interrupt handles.

use crate::portal::Portals;
use crate::spec::{WQS, command, command_error, intcause};
use crate::{Dsa, Table, Upstream, groups};

/// CMDCAP: all commands of `enum idxd_cmd`.
pub(crate) const CAPABILITIES: u64 = 0x7ffe;

/// A command that is under way.
pub(crate) struct UnderWay {
    /// What was written to CMD.
    value: u32,
    /// Rounds that it takes at least.
    rounds: u32,
    /// Of each work queue that it drains, how many descriptors have to have left.
    drains: Vec<(usize, u64)>,
}

/// What a command gives back: the result field, or the error.
type CommandResult = Result<u16, u8>;

/// The command in a value of CMD, and its operand.
fn parts(value: u32) -> (u32, u32) {
    (value >> command::SHIFT & 0x1f, value & ((1 << command::SHIFT) - 1))
}

impl Dsa {
    /// A write to CMD. The command is under way for some rounds, and CMDSTS says so. One that comes meanwhile is lost.
    pub(crate) fn command(&mut self, value: u32) {
        if self.registers.under_way.is_some() {
            self.stats.commands_lost += 1;
            return;
        }
        self.registers.command = value;
        self.registers.command_status = command::ACTIVE;
        let drains = self.drained_by(value);
        if matches!(parts(value).0, command::DISABLE_DEVICE | command::DISABLE_WQ) {
            for (queue, _) in &drains {
                self.queues.get_mut(*queue).into_iter().for_each(|queue| queue.set_closing(true));
            }
        }
        let is_reset = parts(value).0 == command::RESET_DEVICE;
        let least = if is_reset { self.setup.reset_rounds } else { 0 };
        let rounds = self.setup.command_rounds.max(least).max(1);
        self.registers.under_way = Some(UnderWay { value, rounds, drains });
    }

    /// The queues whose descriptors a command waits for, as they are now, with how many these are. What comes later is not waited for.
    fn drained_by(&self, value: u32) -> Vec<(usize, u64)> {
        let (number, operand) = parts(value);
        let mask = match number {
            command::DISABLE_DEVICE | command::DRAIN_ALL | command::DRAIN_PASID => u32::MAX,
            command::DISABLE_WQ | command::DRAIN_WQ if self.selects_enabled(operand) => operand & 0xffff,
            _ => 0,
        };
        let queues = self.queues.iter().enumerate().filter(|(n, queue)| mask >> n & 1 != 0 && queue.enabled());
        queues.map(|(n, queue)| (n, queue.accepted())).collect()
    }

    /// Whether a command that drains waits for a descriptor that waits for a page.
    pub(crate) fn waits_for_pages(&self) -> bool {
        let drains = self.registers.under_way.as_ref().map_or(&[][..], |command| &command.drains);
        drains.iter().any(|(queue, _)| self.blocked.iter().any(|one| one.queue() == *queue))
    }

    fn waits_for_descriptors(&self) -> bool {
        let drains = self.registers.under_way.as_ref().map_or(&[][..], |command| &command.drains);
        drains.iter().any(|(n, all)| self.queues.get(*n).is_some_and(|queue| queue.left() < *all))
    }

    /// Goes on with the command that is under way.
    pub(crate) fn advance_command(&mut self, up: &mut dyn Upstream) {
        let Some(command) = &mut self.registers.under_way else { return };
        command.rounds = command.rounds.saturating_sub(1);
        if command.rounds != 0 || self.waits_for_descriptors() || self.waits_for_pages() {
            return;
        }
        if let Some(UnderWay { value, .. }) = self.registers.under_way.take() {
            self.finish_command(value, up);
        }
    }

    fn finish_command(&mut self, value: u32, up: &mut dyn Upstream) {
        let (number, operand) = parts(value);
        let outcome = self.dispatch(number, operand, up);
        self.queues.iter_mut().for_each(|queue| queue.set_closing(false));
        self.registers.command = value;
        self.registers.command_status = match outcome {
            Ok(result) => u32::from(result) << 8,
            Err(error) => u32::from(error),
        };
        if value & command::REQUEST_INTERRUPT != 0 {
            self.registers.intcause |= intcause::COMMAND;
            self.raise(Table::Msix, 0, up);
        }
    }

    fn dispatch(&mut self, number: u32, operand: u32, up: &mut dyn Upstream) -> CommandResult {
        match number {
            _ if self.registers.halted() && number != command::RESET_DEVICE => Err(command_error::HW_ERR),
            command::ENABLE_DEVICE => self.enable_device(),
            command::RESET_DEVICE => self.reset_device(),
            command::ENABLE_WQ => self.enable_wq(operand),
            command::DISABLE_DEVICE | command::DRAIN_ALL | command::ABORT_ALL => self.whole_device(number),
            command::DISABLE_WQ | command::DRAIN_WQ | command::ABORT_WQ | command::RESET_WQ => {
                self.selected_queues(number, operand)
            }
            command::DRAIN_PASID => Ok(0),
            command::ABORT_PASID => {
                self.queues.iter_mut().for_each(|queue| queue.abort_pasid(operand));
                self.blocked.retain(|one| one.pasid() != operand);
                Ok(0)
            }
            command::REQUEST_INT_HANDLE if self.has_handles() => self.request_handle(operand),
            command::RELEASE_INT_HANDLE if self.has_handles() => self.release_handle(operand),
            command::REVOKE_INT_HANDLE if self.has_handles() => self.revoke_handle(operand, up),
            _ => Err(command_error::INVAL_CMD),
        }
    }

    fn enable_device(&mut self) -> CommandResult {
        if self.registers.enabled() {
            return Err(command_error::DEV_ENABLED);
        }
        if !self.space.bus_master() {
            return Err(command_error::BUSMASTER_EN);
        }
        groups::check(&self.groups, &self.queues)?;
        self.registers.set_enabled(true);
        Ok(0)
    }

    /// Disable, drain or abort everything.
    fn whole_device(&mut self, number: u32) -> CommandResult {
        if !self.registers.enabled() {
            return Err(command_error::DIS_DEV_EN);
        }
        if number == command::ABORT_ALL {
            self.queues.iter_mut().for_each(|queue| queue.abort());
            self.blocked.clear();
            return Ok(0);
        }
        if number == command::DISABLE_DEVICE {
            self.queues.iter_mut().for_each(|queue| queue.disable());
            self.registers.set_enabled(false);
        }
        Ok(0)
    }

    /// All back to reset values but configuration space: tables, configurations, handles; every interrupt masked.
    fn reset_device(&mut self) -> CommandResult {
        self.registers = Default::default();
        self.blocked.clear();
        self.groups = Default::default();
        self.queues.iter_mut().for_each(|queue| queue.reset());
        self.msix_permissions.fill(0);
        self.ims.reset();
        self.slow = self.setup.slow_store.then(Default::default);
        self.queue_stores = Default::default();
        self.handles.fill(false);
        self.revoked.clear();
        self.portals = Portals::new(self.setup.takes_pieces());
        self.swerr = Default::default();
        Ok(0)
    }

    fn enable_wq(&mut self, operand: u32) -> CommandResult {
        if !self.registers.enabled() {
            return Err(command_error::DEV_NOTEN);
        }
        let pasids = self.space.pasid_enabled();
        let queue = self.queues.get_mut(operand as usize).ok_or(command_error::INVAL_WQIDX)?;
        queue.enable(pasids, &self.setup)?;
        Ok(0)
    }

    /// Whether the operand names queues, all of which are enabled.
    fn selects_enabled(&self, operand: u32) -> bool {
        let disabled = self.queues.iter().enumerate().any(|(n, queue)| operand >> n & 1 != 0 && !queue.enabled());
        selects_queues(operand) && !disabled
    }

    /// Disable, drain, abort or reset the queues of the operand: a mask in 15:0 of the sixteen that 19:16 selects.
    fn selected_queues(&mut self, number: u32, operand: u32) -> CommandResult {
        let mask = operand & 0xffff;
        if !selects_queues(operand) {
            return Err(command_error::INVAL_WQIDX);
        }
        let selected = |n: usize| mask >> n & 1 != 0;
        if !self.selects_enabled(operand) {
            return Err(command_error::DEV_NOT_EN);
        }
        // What is drained has nothing that waits.
        self.blocked.retain(|one| !selected(one.queue()));
        for (_, queue) in self.queues.iter_mut().enumerate().filter(|(n, _)| selected(*n)) {
            match number {
                command::DISABLE_WQ => queue.disable(),
                command::ABORT_WQ => queue.abort(),
                command::RESET_WQ => queue.reset_but_size(),
                _ => {}
            }
        }
        Ok(0)
    }

    /// The place of an operand's interrupt in the list of handles: its index, beyond the MSI-X entries for IMS.
    fn handle_place(&self, operand: u32) -> Result<usize, u8> {
        let index = (operand & 0xffff) as usize;
        let ims = operand & command::HANDLE_IMS != 0;
        let (first, len) = if ims { (self.msix.len(), self.ims.len()) } else { (0, self.msix.len()) };
        if operand >> 17 != 0 || index >= len {
            return Err(command_error::INVAL_INT_IDX);
        }
        Ok(first + index)
    }

    /// The handle is the index itself; asking again gives the same one.
    fn request_handle(&mut self, operand: u32) -> CommandResult {
        let place = self.handle_place(operand)?;
        let out = self.handles.iter().filter(|out| **out).count();
        match self.handles.get_mut(place) {
            Some(handle) if *handle || out < usize::from(self.setup.interrupt_handles.unwrap_or(0)) => *handle = true,
            _ => return Err(command_error::NO_HANDLE),
        }
        self.revoked.remove(&place);
        Ok(operand as u16)
    }

    fn release_handle(&mut self, operand: u32) -> CommandResult {
        let place = self.handle_place(operand)?;
        match self.handles.get_mut(place) {
            Some(handle) if *handle => *handle = false,
            _ => return Err(command_error::INVAL_INT_IDX),
        }
        Ok(0)
    }
}

/// Whether an operand names queues that there are, and at least one.
fn selects_queues(operand: u32) -> bool {
    operand >> 16 == 0 && operand != 0 && operand >> WQS == 0
}

impl Dsa {
    /// Descriptors that name the handle fail from now on, until it is asked for again; software is told.
    fn revoke_handle(&mut self, operand: u32, up: &mut dyn Upstream) -> CommandResult {
        let place = self.handle_place(operand)?;
        if let Some(handle) = self.handles.get_mut(place) {
            *handle = false;
        }
        self.revoked.insert(place);
        self.registers.intcause |= intcause::HANDLE_REVOKED;
        self.raise(Table::Msix, 0, up);
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Build, Machine, device, made, nop};
    use crate::{Config, Dsa, PortalWrite};

    #[test]
    fn a_command_is_active_until_the_device_works_and_another_one_is_lost_meanwhile() {
        let (mut dsa, mut machine) = device();
        machine.configure(&mut dsa);
        machine.msix(&mut dsa, 0, 0xfee0_0000, 0x31);
        dsa.bar0_write(0xa0, 4, 1 << 31 | 1 << 20, &mut machine);
        assert_eq!((dsa.bar0_read(0xa8, 4), dsa.bar0_read(0x90, 4)), (1 << 31, 0));
        assert!(dsa.waiting());
        dsa.bar0_write(0xa0, 4, 2 << 20, &mut machine);
        assert_eq!((dsa.stats().commands_lost, machine.messages()), (1, vec![]));
        assert!(!dsa.work(&mut machine));
        assert_eq!((dsa.bar0_read(0xa8, 4), dsa.bar0_read(0x90, 4)), (0, 1));
        assert_eq!(machine.messages(), [(0xfee0_0000, 0x31)], "when it has ended, not before");
        assert!(!dsa.waiting());
    }

    #[test]
    fn a_command_takes_as_many_rounds_as_the_device_was_made_with() {
        let (mut dsa, mut machine) = made(Config { command_rounds: 5, ..Config::default() });
        machine.configure(&mut dsa);
        dsa.bar0_write(0xa0, 4, 1 << 20, &mut machine);
        assert_eq!((0..4).filter(|_| dsa.work(&mut machine)).count(), 4);
        assert_eq!((dsa.bar0_read(0xa8, 4), dsa.bar0_read(0x90, 4)), (1 << 31, 0));
        assert!(!dsa.work(&mut machine));
        assert_eq!((dsa.bar0_read(0xa8, 4), dsa.bar0_read(0x90, 4)), (0, 1));
    }

    #[test]
    fn a_reset_takes_longer_than_other_commands_where_the_device_was_made_so() {
        let (mut dsa, mut machine) = made(Config { command_rounds: 2, reset_rounds: 7, ..Config::default() });
        machine.configure(&mut dsa);
        for (command, rounds) in [(1 << 20, 2), (5 << 20, 7)] {
            dsa.bar0_write(0xa0, 4, command, &mut machine);
            let under_way = |dsa: &mut Dsa| dsa.bar0_read(0xa8, 4) == 1 << 31;
            let taken = (1..20).find(|_| !(dsa.work(&mut machine) && under_way(&mut dsa)));
            assert_eq!(taken, Some(rounds), "{command:#x}");
        }
    }

    /// One engine takes a descriptor a round.
    #[test]
    fn a_drain_takes_as_long_as_the_descriptors_before_it_and_not_those_behind_it() {
        let (mut dsa, mut machine) = device();
        machine.ready(&mut dsa);
        let submit = |dsa: &mut Dsa| dsa.portal_write(0x2000, &nop().bytes());
        (0..10).for_each(|_| assert_eq!(submit(&mut dsa), PortalWrite::Queued));
        dsa.bar0_write(0xa0, 4, 8 << 20 | 1, &mut machine);
        for _ in 0..10 {
            assert_eq!(submit(&mut dsa), PortalWrite::Queued);
            assert!(dsa.work(&mut machine));
            assert_eq!(dsa.bar0_read(0xa8, 4), 1 << 31);
        }
        dsa.work(&mut machine);
        assert_eq!((dsa.bar0_read(0xa8, 4), dsa.stats().descriptors), (0, 11));
    }

    #[test]
    fn a_queue_that_is_being_disabled_takes_nothing_more() {
        let (mut dsa, mut machine) = device();
        machine.ready(&mut dsa);
        let submit = |dsa: &mut Dsa| dsa.portal_write(0x2000, &nop().bytes());
        assert_eq!(submit(&mut dsa), PortalWrite::Queued);
        dsa.bar0_write(0xa0, 4, 7 << 20 | 1, &mut machine);
        assert_eq!(submit(&mut dsa), PortalWrite::Dropped);
        while dsa.work(&mut machine) {}
        assert_eq!((dsa.bar0_read(0xa8, 4), dsa.bar0_read(0x2018, 4), dsa.stats().descriptors), (0, 0, 1));
        assert_eq!(machine.command(&mut dsa, 6, 0), 0);
        assert_eq!(submit(&mut dsa), PortalWrite::Queued, "it is open again");
    }

    #[test]
    fn a_device_without_handles_knows_none_of_their_commands_and_takes_slots_for_them() {
        let (mut dsa, mut machine) = made(Config { interrupt_handles: None, ..Config::default() });
        machine.ready(&mut dsa);
        for number in [13, 14, 31] {
            assert_eq!(machine.command(&mut dsa, number, 1 << 16 | 7), 1);
        }
        assert_eq!((dsa.bar0_read(0x10, 4) >> 4 & 1, dsa.bar0_read(0xb0, 8)), (0, 0));
        machine.ims(&mut dsa, 7, 0xfee0_0000, 0x40);
        let descriptor = Build { flags: 0x1c, completion: 0x8000, handle: 7, ..nop() };
        dsa.portal_write(0x2000, &descriptor.bytes());
        while dsa.work(&mut machine) {}
        assert_eq!((machine.get(0x8000, 1), machine.messages()), (vec![1], vec![(0xfee0_0000, 0x40)]));
    }

    #[test]
    fn a_queue_that_was_reset_keeps_its_size_alone() {
        let (mut dsa, mut machine) = device();
        machine.ready(&mut dsa);
        assert_eq!(machine.command(&mut dsa, 10, 1), 0);
        assert_eq!([0x2000, 0x2008, 0x200c].map(|at| dsa.bar0_read(at, 4)), [16, 0, 0]);
        dsa.bar0_write(0x2008, 4, 0x11, &mut machine);
        assert_eq!(machine.command(&mut dsa, 6, 0), 0, "it can be enabled again with the device enabled");
    }

    #[test]
    fn the_device_enables_once_and_only_as_bus_master() {
        let (mut dsa, mut machine) = device();
        dsa.config_write(4, 2, 2, &mut machine);
        assert_eq!(machine.command(&mut dsa, 1, 0), 0x12);
        dsa.config_write(4, 2, 6, &mut machine);
        assert_eq!(machine.command(&mut dsa, 2, 0), 0x31);
        machine.configure(&mut dsa);
        assert_eq!(machine.command(&mut dsa, 1, 0), 0);
        assert_eq!(dsa.bar0_read(0x90, 4), 1);
        assert_eq!(machine.command(&mut dsa, 1, 0), 0x10);
        assert_eq!(machine.command(&mut dsa, 2, 0), 0);
        assert_eq!(dsa.bar0_read(0x90, 4), 0);
    }

    #[test]
    fn work_queues_follow_the_device() {
        let (mut dsa, mut machine) = device();
        machine.configure(&mut dsa);
        assert_eq!(machine.command(&mut dsa, 6, 0), 0x20);
        machine.command(&mut dsa, 1, 0);
        assert_eq!(machine.command(&mut dsa, 6, 8), 0x02);
        assert_eq!(machine.command(&mut dsa, 6, 5), 0x22);
        assert_eq!(machine.command(&mut dsa, 6, 0), 0);
        assert_eq!(machine.command(&mut dsa, 6, 0), 0x21);
        assert_eq!(dsa.bar0_read(0x2018, 4) >> 30, 1);
        assert_eq!(machine.command(&mut dsa, 7, 0b10), 0x32);
        assert_eq!(machine.command(&mut dsa, 7, 0x1_0001), 0x02);
        assert_eq!(machine.command(&mut dsa, 7, 0), 0x02);
        assert_eq!(machine.command(&mut dsa, 7, 1), 0);
        assert_eq!(dsa.bar0_read(0x2018, 4) >> 30, 0);
    }

    #[test]
    fn unknown_commands_are_refused() {
        let (mut dsa, mut machine) = device();
        for number in [0, 15, 30] {
            assert_eq!(machine.command(&mut dsa, number, 0), 1);
        }
    }

    #[test]
    fn a_handle_is_its_index_within_the_table() {
        let (mut dsa, mut machine) = device();
        assert_eq!(machine.command(&mut dsa, 13, 63), 63 << 8);
        assert_eq!(machine.command(&mut dsa, 13, 64), 0x41);
        assert_eq!(machine.command(&mut dsa, 13, 0x1_0fff), 0xfff << 8);
        assert_eq!(machine.command(&mut dsa, 13, 0x1_1000), 0x41);
        assert_eq!(machine.command(&mut dsa, 13, 0x2_0000), 0x41);
        assert_eq!(machine.command(&mut dsa, 14, 63), 0);
        assert_eq!(machine.command(&mut dsa, 14, 63), 0x41);
        assert_eq!(machine.command(&mut dsa, 14, 0x1_0001), 0x41);
    }

    #[test]
    fn handles_run_out_and_come_back() {
        let mut machine = Machine::default();
        let mut dsa = Dsa::new(Config { interrupt_handles: Some(2), ..Config::default() });
        dsa.config_write(4, 2, 6, &mut machine);
        assert_eq!(machine.command(&mut dsa, 13, 5), 5 << 8);
        assert_eq!(machine.command(&mut dsa, 13, 0x1_0005), 5 << 8);
        assert_eq!(machine.command(&mut dsa, 13, 6), 0x42);
        assert_eq!(machine.command(&mut dsa, 13, 5), 5 << 8, "one that is out is given again");
        machine.command(&mut dsa, 14, 5);
        assert_eq!(machine.command(&mut dsa, 13, 6), 6 << 8);
    }

    #[test]
    fn feature_ims_index_a_revoked_handle_is_invalid_until_it_is_asked_for_again() {
        let (mut dsa, mut machine) = device();
        machine.ready(&mut dsa);
        machine.msix(&mut dsa, 0, 0xfee0_0000, 0x31);
        machine.ims(&mut dsa, 7, 0xfee0_0000, 0x40);
        assert_eq!(machine.command(&mut dsa, 13, 1 << 16 | 7), 7 << 8);
        let run = |dsa: &mut Dsa, machine: &mut Machine| {
            let descriptor = Build { flags: 0x1c, completion: 0x8000, handle: 7, ..nop() };
            assert_eq!(dsa.portal_write(0x2000, &descriptor.bytes()), PortalWrite::Queued);
            while dsa.work(machine) {}
            machine.get(0x8000, 1)[0]
        };
        assert_eq!(run(&mut dsa, &mut machine), 1);
        assert_eq!(machine.messages(), [(0xfee0_0000, 0x40)]);
        assert_eq!(machine.command(&mut dsa, 31, 1 << 16 | 7), 0);
        assert_eq!(dsa.bar0_read(0x98, 4) >> 31, 1);
        assert_eq!(run(&mut dsa, &mut machine), 0x19);
        assert_eq!(machine.messages()[1..], [(0xfee0_0000, 0x31)], "the cause comes, the slot's interrupt does not");
        assert_eq!(machine.command(&mut dsa, 13, 1 << 16 | 7), 7 << 8);
        assert_eq!(run(&mut dsa, &mut machine), 1);
        assert_eq!(machine.messages()[2..], [(0xfee0_0000, 0x40)]);
        assert_eq!(machine.command(&mut dsa, 31, 1 << 16 | 0x1000), 0x41);
    }

    #[test]
    fn completion_interrupts_go_through_msix_entry_0() {
        let (mut dsa, mut machine) = device();
        machine.msix(&mut dsa, 0, 0xfee0_0000, 0x31);
        machine.command(&mut dsa, 13 | 1 << 11, 1);
        assert_eq!(machine.messages(), [(0xfee0_0000, 0x31)]);
        assert_eq!(dsa.bar0_read(0x98, 4), 2);
        dsa.bar0_write(0x98, 4, 2, &mut machine);
        assert_eq!(dsa.bar0_read(0x98, 4), 0);
    }

    #[test]
    fn reset_masks_every_slot_and_forgets_all_but_configuration_space() {
        let (mut dsa, mut machine) = device();
        machine.ready(&mut dsa);
        machine.ims(&mut dsa, 7, 0xfee0_0000, 0x40);
        machine.command(&mut dsa, 13, 1);
        assert_eq!(dsa.portal_write(0x2000, &nop().bytes()), PortalWrite::Queued);
        assert_eq!(machine.command(&mut dsa, 5, 0), 0);
        assert_eq!((dsa.bar0_read(0x4_0070, 8), dsa.bar0_read(0x4_0078, 8)), (0, 1 << 32));
        assert_eq!((dsa.bar0_read(0x90, 4), dsa.bar0_read(0x1000, 8), dsa.bar0_read(0x2000, 8)), (0, 0, 0));
        assert_eq!(machine.command(&mut dsa, 14, 1), 0x41);
        assert!(!dsa.work(&mut machine));
        assert_eq!(dsa.stats().descriptors, 0);
        assert_eq!(dsa.config_read(4, 2), 6);
    }

    #[test]
    fn drain_completes_and_abort_gives_up() {
        let (mut dsa, mut machine) = device();
        machine.ready(&mut dsa);
        dsa.portal_write(0x2000, &nop().bytes());
        dsa.portal_write(0x2000, &nop().bytes());
        assert_eq!(machine.command(&mut dsa, 8, 1), 0);
        assert_eq!(dsa.stats().descriptors, 2);
        for (number, operand) in [(4, 0), (9, 1), (10, 1)] {
            dsa.portal_write(0x2000, &nop().bytes());
            assert_eq!(machine.command(&mut dsa, number, operand), 0);
            assert!(!dsa.work(&mut machine));
        }
        assert_eq!(dsa.stats().descriptors, 2);
    }

    #[test]
    fn abort_pasid_takes_only_that_pasid() {
        let (mut dsa, mut machine) = device();
        dsa.config_write(0x126, 2, 1, &mut machine);
        machine.configure(&mut dsa);
        dsa.bar0_write(0x2008, 4, 1 | 1 << 4 | 9 << 8 | 1 << 28, &mut machine);
        machine.command(&mut dsa, 1, 0);
        machine.command(&mut dsa, 6, 0);
        dsa.portal_write(0x2000, &nop().bytes());
        machine.command(&mut dsa, 12, 8);
        machine.command(&mut dsa, 11, 9);
        assert_eq!(dsa.stats().descriptors, 1);
        dsa.portal_write(0x2000, &nop().bytes());
        machine.command(&mut dsa, 12, 9);
        assert!(!dsa.work(&mut machine));
        assert_eq!(dsa.stats().descriptors, 1);
    }
}
