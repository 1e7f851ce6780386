use proptest::prelude::*;

use super::{spec::error, *};

/// The parent's queue: what it was told, and the error that comes next.
#[derive(Default)]
struct Queue {
    told: Vec<&'static str>,
    error: Option<u8>,
    /// It answers nothing any more.
    is_stuck: bool,
}

impl Queue {
    fn carry_out(&mut self, step: Step) -> CommandResult {
        self.told.push(match step {
            Step::Enable => "enable",
            Step::Drain => "drain",
            Step::Abort => "abort",
            Step::Disable => "disable",
            Step::RequestHandle(_) => "request",
            Step::ReleaseHandle(handle) => {
                assert!((2049..2178).contains(&handle), "a handle that was not asked for");
                "release"
            }
        });
        if self.is_stuck {
            return Err(0xff);
        }
        let result = if let Step::RequestHandle(vector) = step { 2048 + vector } else { 0 };
        self.error.take().map_or(Ok(result), Err)
    }

    /// Carries out everything that there is to do.
    fn settle(&mut self, dsa: &mut VirtualDsa) -> Effect {
        let mut effect = Effect::default();
        while let Some(step) = dsa.next_step() {
            effect = effect.and(dsa.step_done(self.carry_out(step)));
        }
        assert!(!dsa.is_busy());
        effect
    }
}

/// As the model of the parent has it.
const PARENT_GENCAP: u64 = 0b1_1110 | 21 << 16 | 5 << 21 | 16 << 25 | 1 << 31;
const SHAPE: Shape = Shape { gencap: PARENT_GENCAP, opcap: [0x1003f, 0, 0, 0], queue_size: 16, vectors: 130 };

struct Guest {
    dsa: VirtualDsa,
    queue: Queue,
}

impl Guest {
    fn new() -> Self {
        let mut guest = Self { dsa: VirtualDsa::new(SHAPE), queue: Queue::default() };
        guest.dsa.set_bus_master(true);
        guest
    }

    /// Device and queue enabled.
    fn working() -> Self {
        let mut guest = Self::new();
        assert_eq!((guest.command(1, 0), guest.command(6, 0)), (0, 0));
        guest.queue.told.clear();
        guest
    }

    fn read(&self, offset: usize) -> u32 {
        self.dsa.page()[offset / 4]
    }

    fn read64(&self, offset: usize) -> u64 {
        u64::from(self.read(offset + 4)) << 32 | u64::from(self.read(offset))
    }

    /// A write, and everything that comes of it.
    fn write(&mut self, offset: usize, bytes: u8, value: u64) -> Effect {
        let effect = self.dsa.write(offset as u64, bytes, value);
        effect.and(self.queue.settle(&mut self.dsa))
    }

    fn set_bus_master(&mut self, on: bool) -> Effect {
        let effect = self.dsa.set_bus_master(on);
        effect.and(self.queue.settle(&mut self.dsa))
    }

    fn reset_function(&mut self) -> Effect {
        let effect = self.dsa.reset_function();
        effect.and(self.queue.settle(&mut self.dsa))
    }

    /// Gives a command; what CMDSTS says then.
    fn command(&mut self, number: u32, operand: u32) -> u32 {
        self.write(CMD, 4, u64::from(number << 20 | operand));
        self.read(CMDSTS)
    }

    fn state(&self) -> (u32, u32) {
        (self.read(GENSTS), self.read(0x518) >> 30)
    }
}

#[test]
fn feature_msix_backed_it_is_a_dsa_with_one_dedicated_queue_and_no_message_store() {
    let guest = Guest::new();
    assert_eq!(guest.read(VERSION), 0x100);
    let gencap = guest.read64(GENCAP);
    assert_eq!((gencap >> 25 & 0x3f, gencap >> 31), (0, 0), "no store, not configurable");
    assert_eq!((gencap >> 16 & 0x1f, gencap >> 21 & 0xf, gencap & 0x1f), (21, 5, 0x1e));
    assert_eq!(guest.read64(WQCAP), 16 | 1 << 16 | 1 << 24 | 1 << 49);
    assert_eq!((guest.read64(GRPCAP), guest.read64(ENGCAP), guest.read64(OPCAP)), (1, 1, 0x1003f));
    assert_eq!(guest.read64(TABLE_OFFSETS), 4 | 5 << 16 | 0x40 << 32);
    assert_eq!((guest.read64(0x400), guest.read64(0x420)), (1, 1), "its group");
    assert_eq!([0x500, 0x504, 0x508, 0x50c].map(|at| guest.read(at)), [16, 0, 0x81, 5 << 5 | 21]);
    assert_eq!(guest.read(CMDCAP), 0x67fe);
}

/// Drivers look at GENCAP before they ask for a handle, and take the vector's number for it if they need not ask.
#[test]
fn handles_have_to_be_asked_for_whatever_the_parent_has() {
    for gencap in [0x40_915f_0107, 0x40_915f_010f, PARENT_GENCAP, 0] {
        let mut dsa = VirtualDsa::new(Shape { gencap, ..SHAPE });
        let read = |at: usize| u64::from(dsa.page()[at / 4 + 1]) << 32 | u64::from(dsa.page()[at / 4]);
        assert_eq!((read(GENCAP) >> 4 & 1, read(CMDCAP)), (1, 0x67fe), "{gencap:#x}");
        assert_eq!(read(GENCAP) & 0xffff & !(1 << 4), gencap & 0xe, "{gencap:#x}");
        dsa.write(CMD as u64, 4, 13 << 20 | 5);
        Queue::default().settle(&mut dsa);
        assert_eq!(dsa.page()[CMDSTS / 4], 2053 << 8);
    }
}

#[test]
fn capabilities_and_configuration_stay_whatever_is_written() {
    let mut guest = Guest::working();
    let before = *guest.dsa.page();
    let own = [GENCTRL, INTCAUSE, CMD, SWERR, SWERR + 8, SWERR + 16, SWERR + 24];
    for offset in (0..4096).step_by(8).filter(|offset| !own.contains(offset)) {
        assert_eq!(guest.write(offset, 8, u64::MAX), Effect::default(), "{offset:#x}");
    }
    for (offset, bytes) in [(CMD, 1), (CMD, 2), (CMD + 1, 4), (CMD - 4, 16), (CMD, 0), (0xffc, 8), (1 << 40, 4)] {
        assert_eq!(guest.write(offset, bytes, u64::MAX), Effect::default(), "{offset:#x} {bytes}");
    }
    assert_eq!(*guest.dsa.page(), before);
    assert_eq!(guest.queue.told, [""; 0]);
}

#[test]
fn device_and_queue_are_enabled_in_their_order_and_once() {
    let mut guest = Guest::new();
    assert_eq!(guest.command(6, 0), 0x20);
    assert_eq!((guest.command(2, 0), guest.command(3, 0), guest.command(4, 0)), (0x31, 0x31, 0x31));
    assert_eq!((guest.command(1, 0), guest.command(1, 0)), (0, 0x10));
    assert_eq!(guest.state(), (1, 0));
    assert_eq!((guest.command(3, 0), guest.command(4, 0)), (0, 0));
    assert_eq!(guest.queue.told, [""; 0], "nothing is in a queue that is disabled");
    assert_eq!((guest.command(6, 1), guest.command(7, 1), guest.command(8, 1)), (0x02, 0x32, 0x32));
    assert_eq!((guest.command(6, 0), guest.command(6, 0)), (0, 0x21));
    assert_eq!(guest.state(), (1, 1));
    assert_eq!(guest.queue.told, ["enable"]);
}

#[test]
fn each_command_reaches_the_functions_queue_and_no_other() {
    for (number, operand, told, state) in [
        (2, 0, &["disable"][..], (0, 0)),
        (3, 0, &["drain"], (1, 1)),
        (4, 0, &["abort"], (1, 1)),
        (5, 0, &["abort", "disable"], (0, 0)),
        (7, 1, &["disable"], (1, 0)),
        (8, 1, &["drain"], (1, 1)),
        (9, 1, &["abort"], (1, 1)),
        (10, 1, &["abort", "disable"], (1, 0)),
    ] {
        let mut guest = Guest::working();
        assert_eq!(guest.command(number, operand), 0, "command {number}");
        assert_eq!((&guest.queue.told[..], guest.state()), (told, state), "command {number}");
    }
    let mut guest = Guest::working();
    for operand in [0, 2, 3, 0x1_0001, 0xf_ffff] {
        for number in 7..=10 {
            assert_eq!(guest.command(number, operand), 0x02, "command {number} {operand:#x}");
        }
    }
    assert_eq!(guest.queue.told, [""; 0]);
}

#[test]
fn what_the_parent_refuses_fails_and_changes_nothing() {
    for (number, operand) in [(2_u32, 0), (3, 0), (5, 0), (7, 1), (10, 1)] {
        let mut guest = Guest::working();
        guest.queue.error = Some(0x55);
        let effect = guest.write(CMD, 4, u64::from(number << 20 | operand));
        assert_eq!((guest.read(CMDSTS), guest.state(), effect.reset), (0x55, (1, 1), false), "command {number}");
    }
    let mut guest = Guest::new();
    guest.command(1, 0);
    guest.queue.error = Some(0x26);
    assert_eq!((guest.command(6, 0), guest.state()), (0x26, (1, 0)));
}

#[test]
fn unknown_commands_and_those_with_pasids_are_refused() {
    let mut guest = Guest::working();
    for number in [0, 11, 12, 15, 16, 31] {
        assert_eq!(guest.command(number, 1), 1, "command {number}");
    }
    assert_eq!(guest.command(8 | 1 << 5, 1), 1, "a reserved bit");
    assert_eq!(guest.queue.told, [""; 0]);
}

#[test]
fn feature_msix_backed_a_handle_is_the_parents_slot_and_vector_0_has_none() {
    let mut guest = Guest::new();
    assert_eq!(guest.command(13, 1), 2049 << 8);
    assert_eq!(guest.command(13, 129), 2177 << 8);
    for operand in [0, 130, 0xffff, 0x1_0001, 0x8_0001] {
        assert_eq!(guest.command(13, operand), 0x41, "{operand:#x}");
    }
    for operand in [1, 2048, 2050, 2178, 4095, 0xffff, 0x1_0801] {
        assert_eq!(guest.command(14, operand), 0x41, "{operand:#x} was not given out");
    }
    assert_eq!((guest.command(14, 2177), guest.command(14, 2177)), (0, 0x41));
    assert_eq!(guest.queue.told, ["request", "request", "release"]);
    guest.queue.error = Some(0x42);
    assert_eq!(guest.command(13, 2), 0x42, "the parent has none left");
    assert_eq!(guest.command(14, 2050), 0x41);
    guest.command(5, 0);
    assert_eq!(guest.queue.told[3..], ["request"], "a reset gives none back to the parent");
    assert_eq!((guest.command(14, 2049), guest.dsa.known_handle(1)), (0x41, Some(2049)), "but the guest has none");
    assert_eq!((guest.command(13, 1), guest.command(14, 2049)), (2049 << 8, 0));
    assert_eq!(guest.dsa.known_handle(1), None);
}

#[test]
fn feature_msix_backed_handles_that_the_parent_revokes_have_to_be_asked_for_again() {
    let mut guest = Guest::new();
    guest.command(13, 1);
    guest.dsa.revoke_handles();
    assert_eq!(guest.read(INTCAUSE), 1 << 31);
    assert_eq!((guest.command(14, 2049), guest.command(13, 1), guest.command(14, 2049)), (0x41, 2049 << 8, 0));
    guest.write(INTCAUSE, 4, 1 << 31);
    assert_eq!(guest.read(INTCAUSE), 0);
}

/// INTCAUSE of a halt, and of revoked handles.
const HALTED_CAUSES: u32 = 1 << 4 | 1 << 31;

#[test]
fn a_parent_that_halts_takes_the_queue_and_the_handles_until_the_function_is_reset() {
    let mut guest = Guest::working();
    guest.command(13, 1);
    guest.write(GENCTRL, 4, 2);
    assert_eq!(guest.dsa.halt(), Effect { signal: true, ..Effect::default() });
    assert_eq!((guest.state(), guest.read(INTCAUSE)), ((3, 0), HALTED_CAUSES));
    assert_eq!(guest.dsa.known_handle(1), None);
    for number in [1, 2, 3, 6, 13] {
        assert_eq!(guest.command(number, 1), 3, "command {number}");
    }
    assert_eq!(guest.command(5, 0), 0);
    assert_eq!((guest.state(), guest.read(INTCAUSE)), ((0, 0), 0));
    assert_eq!((guest.command(1, 0), guest.command(6, 0), guest.state()), (0, 0, (1, 1)));
}

#[test]
fn a_command_that_is_under_way_when_the_parent_halts_fails_and_nobody_is_told_who_did_not_ask() {
    let mut guest = Guest::working();
    // Drain, which the parent has and does not carry out any more.
    assert_eq!(guest.dsa.write(CMD as u64, 4, 8 << 20 | 1), Effect::default());
    assert_eq!(guest.dsa.next_step(), Some(Step::Drain));
    assert_eq!(guest.dsa.halt(), Effect::default());
    assert_eq!((guest.read(CMDSTS), guest.dsa.is_busy()), (3, false));
    assert_eq!(guest.dsa.step_done(Ok(0)), Effect::default(), "an answer that comes late is nobody's");
    assert_eq!(guest.state(), (3, 0));
    guest.reset_function();
    assert_eq!(guest.state(), (0, 0));
}

#[test]
fn feature_emulated_a_command_that_asks_for_it_signals_vector_0_and_says_so_in_intcause() {
    let mut guest = Guest::new();
    assert_eq!(guest.write(CMD, 4, 1 << 20), Effect::default());
    assert_eq!(guest.read(INTCAUSE), 0);
    let signal = Effect { signal: true, ..Effect::default() };
    assert_eq!(guest.write(CMD, 4, 1 << 31 | 6 << 20), signal);
    assert_eq!(guest.read(INTCAUSE), 2);
    guest.write(INTCAUSE, 4, 2);
    assert_eq!(guest.read(INTCAUSE), 0);
    assert_eq!(guest.write(CMD, 8, 1 << 31 | 31 << 20), signal, "one that fails as well");
    assert_eq!(guest.write(CMD, 4, 1 << 31 | 5 << 20), Effect { signal: true, reset: true, is_stuck: false });
    assert_eq!(guest.state(), (0, 0));
}

#[test]
fn without_bus_mastering_the_function_stops() {
    let mut guest = Guest::working();
    assert_eq!(guest.set_bus_master(false), Effect::default());
    assert_eq!((guest.state(), &guest.queue.told[..]), ((0, 0), &["abort", "disable"][..]));
    assert_eq!(guest.command(1, 0), 0x12);
    guest.queue.told.clear();
    assert_eq!(guest.set_bus_master(true), Effect::default());
    assert_eq!((guest.command(1, 0), guest.queue.told.len()), (0, 0));
}

#[test]
fn a_function_level_reset_leaves_nothing_of_what_the_guest_did() {
    let fresh = *VirtualDsa::new(SHAPE).page();
    for parent_fails in [false, true] {
        let mut guest = Guest::working();
        guest.command(13, 1);
        guest.write(GENCTRL, 4, 1);
        guest.dsa.record_error([1, 2, 3, 4]);
        guest.write(CMD, 4, 1 << 31 | 3 << 20);
        guest.queue.told.clear();
        guest.queue.error = parent_fails.then_some(0xff);
        let effect = guest.reset_function();
        assert_eq!((effect.is_stuck, effect.reset), (parent_fails, true));
        if parent_fails {
            // What goes on in the queue is still to be seen, and the guest can try again.
            assert_eq!((guest.state(), &guest.queue.told[..]), ((0, 1), &["abort"][..]));
            assert!(!guest.reset_function().is_stuck);
        } else {
            assert_eq!(guest.queue.told, ["abort", "disable"]);
        }
        assert_eq!(*guest.dsa.page(), fresh);
        assert_eq!(guest.command(14, 2049), 0x41, "handles are given back");
        assert_eq!(guest.command(1, 0), 0x12, "bus mastering is off");
    }
}

#[test]
fn a_reset_takes_two_steps_whatever_handles_there_are() {
    let mut guest = Guest::working();
    for vector in 1..130 {
        guest.command(13, vector);
    }
    guest.queue.told.clear();
    guest.queue.is_stuck = true;
    assert!(guest.reset_function().is_stuck);
    assert_eq!(guest.queue.told, ["abort"]);
    guest.queue.is_stuck = false;
    assert!(!guest.reset_function().is_stuck);
    assert_eq!(guest.command(14, 2049), 0x41, "all of them are forgotten");
}

#[test]
fn feature_emulated_an_error_is_shown_without_the_parents_numbers() {
    let mut guest = Guest::working();
    let record = [0x12 << 8 | 5 << 16 | 0b1101 | 3 << 32 | 0x77 << 40, 1, 2, 3];
    assert!(!guest.dsa.record_error(record));
    assert_eq!(guest.read64(SWERR), 0x12 << 8 | 0b1101 | 3 << 32);
    assert_eq!([0xc8, 0xd0, 0xd8].map(|at| guest.read64(at)), [1, 2, 3]);
    assert_eq!(guest.read(INTCAUSE), 1);
    guest.write(GENCTRL, 4, u64::MAX);
    assert_eq!(guest.read(GENCTRL), 3);
    assert!(guest.dsa.record_error([0; 4]));
    assert_eq!(guest.read64(SWERR) & 0b11, 0b11, "an overflow");
    guest.write(SWERR, 8, u64::MAX);
    assert_eq!(guest.read64(SWERR) & 0b11, 0);
    assert!(guest.dsa.record_error([0x13 << 8, 0, 0, 0]));
    assert_eq!(guest.read64(SWERR), 0x13 << 8 | 1);
}

/// A parent's queue that is told only what makes sense there. Sometimes it refuses, and sometimes it answers too late, and carries out then
/// what it was told. While it is late its state is not known, and everything makes sense.
#[derive(Default)]
struct Strict {
    enabled: bool,
    asked: u32,
    /// What it has not answered in time.
    late: Option<Step>,
    is_unknown: bool,
}

impl Strict {
    fn carry_out(&mut self, step: Step) -> CommandResult {
        self.finish();
        self.asked += 1;
        if let Step::RequestHandle(handle) | Step::ReleaseHandle(handle) = step {
            assert!((1..130).contains(&handle), "no vector or handle of the function's");
            return Ok(handle);
        }
        if self.enabled == (step == Step::Enable) {
            assert!(self.is_unknown, "{step:?} is nothing for the parent's queue now");
            self.is_unknown = false;
            return Err(if self.enabled { error::WQ_ENABLED } else { error::DEV_NOT_EN });
        }
        match self.asked % 11 {
            3 | 7 => Err(0x77),
            5 => {
                (self.late, self.is_unknown) = (Some(step), true);
                Err(error::NO_ANSWER)
            }
            _ => {
                self.is_unknown = false;
                self.change(step);
                Ok(0)
            }
        }
    }

    /// Carries out what it was told before, too late.
    fn finish(&mut self) {
        if let Some(step) = self.late.take() {
            self.change(step);
        }
    }

    fn change(&mut self, step: Step) {
        match step {
            Step::Enable => self.enabled = true,
            Step::Disable => self.enabled = false,
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_is_written_and_however_late_the_parent_is_its_queue_is_as_the_guest_sees_it_or_counts_as_enabled(
        writes in prop::collection::vec((0u64..0x1008, 0u8..18, any::<u64>(), 0u32..32, 0u32..4), 0..200)
    ) {
        let (mut dsa, mut queue) = (VirtualDsa::new(SHAPE), Strict::default());
        let before = *dsa.page();
        let mut under_way = None;
        for (offset, bytes, value, number, operand) in writes {
            // Commands more often than chance would have them, bus mastering, resets, and the parent's turn.
            let _ = match value % 8 {
                0 => dsa.write(offset, bytes, value),
                1 => dsa.set_bus_master(value & 0x30 != 0),
                2 if value & 0x70 == 0 => dsa.reset_function(),
                2..=4 => match under_way.take() {
                    None => {
                        under_way = dsa.next_step();
                        Effect::default()
                    }
                    Some(step) => dsa.step_done(queue.carry_out(step)),
                },
                _ => dsa.write(CMD as u64, 4, u64::from(number << 20 | operand)),
            };
            if value & 0x100 != 0 {
                queue.finish();
            }
            let seen = dsa.page()[(QUEUES + QUEUE_STATE) / 4] == QUEUE_ENABLED;
            prop_assert_eq!(seen, dsa.may_take_work());
            prop_assert!(seen || !queue.enabled, "the queue takes work and counts as disabled");
            prop_assert!(seen == queue.enabled || queue.is_unknown);
        }
        let fixed = |at: &usize| !(0x80 / 4..0xe0 / 4).contains(at) && *at != (QUEUES + QUEUE_STATE) / 4;
        for at in (0..1024).filter(fixed) {
            prop_assert_eq!(dsa.page()[at], before[at], "{:#x}", 4 * at);
        }
    }
}

#[test]
fn a_command_is_active_until_the_parent_has_done_it_and_others_are_lost_meanwhile() {
    let mut guest = Guest::working();
    assert_eq!(guest.dsa.write(CMD as u64, 4, 1 << 31 | 8 << 20 | 1), Effect::default());
    assert_eq!((guest.read(CMDSTS), guest.dsa.next_step()), (1 << 31, Some(Step::Drain)));
    guest.dsa.write(CMD as u64, 4, 4 << 20);
    assert_eq!((guest.read(CMD), guest.dsa.next_step()), (1 << 31 | 8 << 20 | 1, None));
    assert_eq!(guest.dsa.step_done(Ok(0)), Effect { signal: true, ..Effect::default() });
    assert_eq!((guest.read(CMDSTS), guest.read(INTCAUSE), guest.dsa.is_busy()), (0, 2, false));
}

/// The parent cannot be called back from a step, so what it comes to still counts.
#[test]
fn what_is_under_way_when_the_function_is_reset_is_undone_behind_it() {
    let mut guest = Guest::new();
    guest.command(1, 0);
    guest.dsa.write(CMD as u64, 4, 6 << 20);
    assert_eq!(guest.dsa.next_step(), Some(Step::Enable));
    guest.dsa.reset_function();
    assert_eq!((guest.read(CMD), guest.read(CMDSTS), guest.dsa.next_step()), (0, 0, None));
    guest.dsa.set_bus_master(true);
    guest.dsa.write(CMD as u64, 4, 1 << 20);
    assert_eq!((guest.read(CMDSTS), guest.state()), (1 << 31, (0, 0)), "it waits for the queue");
    guest.dsa.step_done(Ok(0));
    assert_eq!(guest.state(), (0, 1));
    guest.queue.told.clear();
    assert!(guest.queue.settle(&mut guest.dsa).reset);
    assert_eq!((&guest.queue.told[..], guest.read(CMDSTS), guest.state()), (&["abort", "disable"][..], 0, (1, 0)));
}

/// Linux's driver takes as much by default.
#[test]
fn a_function_offers_no_larger_work_than_others_can_wait_for() {
    for (gencap, largest) in [(0x40_915f_010f, (21, 5)), (PARENT_GENCAP, (21, 5)), (12 << 16 | 2 << 21, (12, 2))] {
        let dsa = VirtualDsa::new(Shape { gencap, ..SHAPE });
        let own = dsa.page()[GENCAP / 4];
        assert_eq!((own >> 16 & 0x1f, own >> 21 & 0xf), largest);
        assert_eq!(dsa.page()[(QUEUES + QUEUE_LIMITS) / 4], largest.0 | largest.1 << 5);
        assert_eq!(queue_limits(gencap), largest.0 | largest.1 << 5);
    }
}

#[test]
fn a_queue_that_is_off_already_is_no_obstacle_to_a_reset() {
    let mut guest = Guest::working();
    guest.queue.error = Some(0xff);
    assert_eq!(guest.command(7, 1), 0xff, "the parent did not answer in time");
    assert_eq!(guest.state(), (1, 1));
    guest.queue.error = Some(error::DEV_NOT_EN);
    assert_eq!((guest.command(5, 0), guest.state()), (0, (0, 0)), "but was done since");
    assert_eq!((guest.command(1, 0), guest.command(6, 0), guest.state()), (0, 0, (1, 1)));
    guest.queue.error = Some(error::DEV_NOT_EN);
    assert!(!guest.set_bus_master(false).is_stuck);
    assert_eq!(guest.state(), (0, 0));
}
