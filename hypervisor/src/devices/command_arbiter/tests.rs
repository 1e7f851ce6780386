use super::{
    super::dsa::tests::{CLOCK, Model},
    *,
};
use crate::{
    clock::testing::{MILLISECONDS, TickingClock},
    vdev::vdsa::{
        Shape,
        spec::{CMD, CMDSTS, CMDSTS_ACTIVE, command},
    },
};

/// A guest's function.
struct Function {
    queue: u8,
    registers: VirtualDsa,
    /// Steps of its that have ended with an effect.
    signals: u32,
}

impl CommandClient for Function {
    fn queue(&self) -> u8 {
        self.queue
    }

    fn registers(&mut self) -> &mut VirtualDsa {
        &mut self.registers
    }

    fn work_queue<'a, R: Registers>(&self, registers: &'a R) -> Queue<'a, R> {
        Queue { registers, number: self.queue, pasid: u32::from(self.queue) + 1, first_slot: 100 }
    }
}

impl Function {
    fn command(&mut self, number: u32, operand: u32) {
        self.registers.write(CMD as u64, 4, u64::from(1 << 31 | number << 20 | operand));
    }

    /// CMDSTS, once the command is over.
    fn status(&self) -> Option<u32> {
        let status = self.registers.page()[CMDSTS / 4];
        (status & CMDSTS_ACTIVE == 0).then_some(status)
    }
}

/// A device, and a function for each of its queues.
struct Bench {
    model: Model,
    functions: Vec<Function>,
    arbiter: CommandArbiter,
    clock: &'static TickingClock,
}

impl Bench {
    /// All functions enabled, their queues as well.
    fn new() -> Self {
        let model = Model::shared_out();
        let (gencap, opcap) = dsa::capabilities(&model);
        let function = |queue| {
            let mut registers = VirtualDsa::new(Shape { gencap, opcap, queue_size: 16, vectors: 8 });
            registers.set_bus_master(true);
            Function { queue, registers, signals: 0 }
        };
        let mut bench = Self {
            model,
            functions: (0..8).map(function).collect(),
            arbiter: CommandArbiter::default(),
            clock: &CLOCK,
        };
        for number in [command::ENABLE_DEVICE, command::ENABLE_WQ] {
            bench.functions.iter_mut().for_each(|function| function.command(number, 0));
            while bench.look() {}
            assert!(bench.functions.iter().all(|function| function.status() == Some(0)));
        }
        bench.functions.iter_mut().for_each(|function| function.signals = 0);
        bench
    }

    fn look(&mut self) -> bool {
        let done = |function: &mut Function, effect: Effect| function.signals += u32::from(effect.signal);
        self.arbiter.advance(&self.model, (self.clock, QUICK), &mut self.functions, done)
    }
}

/// Fills a queue: what has no room is dropped.
fn fill(model: &Model, queue: u8) {
    for _ in 0..16 {
        let _ = model.put(queue.into(), 0);
    }
}

/// Each of seven guests fills its queue again and again, and has it drained without end.
#[test]
fn a_guests_drains_delay_anothers_command_by_one_of_each_at_most() {
    let mut bench = Bench::new();
    let mut longest = 0;
    for round in 0..200 {
        let before: u32 = bench.functions[1..].iter().map(|hostile| hostile.signals).sum();
        let (number, operand) = if round % 2 == 0 { (command::DISABLE_WQ, 1) } else { (command::ENABLE_WQ, 0) };
        bench.functions[0].command(number, operand);
        let mut looks = 0;
        while bench.functions[0].status().is_none() {
            for hostile in &mut bench.functions[1..] {
                fill(&bench.model, hostile.queue);
                if hostile.status().is_some() {
                    hostile.command(command::DRAIN_WQ, 1);
                }
            }
            bench.look();
            looks += 1;
            assert!(looks < 100, "the command is not carried out");
        }
        assert_eq!(bench.functions[0].status(), Some(0), "it is not taken for stuck");
        let after: u32 = bench.functions[1..].iter().map(|hostile| hostile.signals).sum();
        longest = longest.max(after - before);
    }
    assert!((1..=7).contains(&longest), "{longest} drains came before a command");
    assert!(bench.functions.iter().all(|function| function.status().is_none_or(|status| status == 0)));
}

#[test]
fn nobody_waits_for_a_command_that_takes_long() {
    let mut bench = Bench::new();
    bench.model.rest(true);
    fill(&bench.model, 1);
    bench.functions[1].command(command::DRAIN_WQ, 1);
    bench.functions[2].command(command::DRAIN_WQ, 1);
    let reads = bench.model.reads();
    assert!(bench.look());
    assert!(bench.model.reads() - reads < 100, "fifty looks at a microsecond each");
    for _ in 0..10 {
        let reads = bench.model.reads();
        assert!(bench.look());
        assert!(bench.model.reads() - reads < 5, "once is enough");
    }
    assert_eq!((bench.functions[1].status(), bench.functions[2].status()), (None, None));
    bench.model.rest(false);
    while bench.look() {}
    assert_eq!((bench.functions[1].status(), bench.functions[2].status()), (Some(0), Some(0)));
    assert_eq!(bench.functions.iter().map(|function| function.signals).sum::<u32>(), 2);
}

#[test]
fn a_device_that_does_not_finish_fails_everybodys_commands_until_it_does() {
    let mut bench = Bench::new();
    bench.model.rest(true);
    fill(&bench.model, 1);
    bench.functions[1].command(command::DRAIN_WQ, 1);
    bench.clock = &MILLISECONDS;
    let looks = (0..20_000).take_while(|_| bench.look()).count();
    assert!((9_000..=10_100).contains(&looks), "{looks}");
    assert_eq!(bench.functions[1].status(), Some(NO_ANSWER.into()));
    bench.functions[2].command(command::DRAIN_WQ, 1);
    assert!(!bench.look());
    assert_eq!(bench.functions[2].status(), Some(NO_ANSWER.into()), "it does not wait as long again");
    bench.model.rest(false);
    while dsa::command_result(&bench.model).is_none() {}
    bench.functions[2].command(command::DRAIN_WQ, 1);
    while bench.look() {}
    assert_eq!(bench.functions[2].status(), Some(0));
}

#[test]
fn the_step_of_a_function_that_has_gone_is_waited_for_and_forgotten() {
    let mut bench = Bench::new();
    bench.model.rest(true);
    fill(&bench.model, 1);
    bench.functions[1].command(command::DRAIN_WQ, 1);
    bench.look();
    bench.functions.remove(1);
    bench.functions[1].command(command::DRAIN_WQ, 1);
    assert!(bench.look());
    bench.model.rest(false);
    while bench.look() {}
    assert_eq!((bench.functions[1].status(), bench.functions[1].signals), (Some(0), 1));
}

/// Has function 1 of `bench` give a command that the device carries out only after the time-out.
fn late(bench: &mut Bench, number: u32, operand: u32) {
    let clock = core::mem::replace(&mut bench.clock, &MILLISECONDS);
    bench.model.rest(true);
    bench.functions[1].command(number, operand);
    while bench.look() {}
    assert_eq!(bench.functions[1].status(), Some(NO_ANSWER.into()));
    bench.clock = clock;
    bench.model.rest(false);
    while dsa::command_result(&bench.model).is_none() {}
}

impl Bench {
    /// All functions enabled, queue 1 disabled.
    fn without_queue_1() -> Self {
        let mut bench = Self::new();
        bench.functions[1].command(command::DISABLE_WQ, 1);
        while bench.look() {}
        assert!(!bench.model.takes_work(1));
        bench
    }

    /// Gives a command, and CMDSTS after it.
    fn carry_out(&mut self, number: u32, operand: u32) -> u32 {
        self.functions[1].command(number, operand);
        while self.look() {}
        self.functions[1].status().unwrap()
    }
}

#[test]
fn a_queue_that_was_enabled_after_the_time_out_is_stopped_by_everything_that_stops_one() {
    type Stop = fn(&mut VirtualDsa) -> Effect;
    let stops: [(&str, Stop); 4] = [
        ("a function level reset", |function| function.reset_function()),
        ("no bus mastering, as before a guest leaves", |function| function.set_bus_master(false)),
        ("a reset of the device", |function| function.write(CMD as u64, 4, 5 << 20)),
        ("disabling the queue", |function| function.write(CMD as u64, 4, 7 << 20 | 1)),
    ];
    for (what, stop) in stops {
        let mut bench = Bench::without_queue_1();
        late(&mut bench, command::ENABLE_WQ, 0);
        assert!(bench.model.takes_work(1) && bench.functions[1].registers.may_take_work(), "{what}");
        stop(&mut bench.functions[1].registers);
        while bench.look() {}
        assert!(!bench.model.takes_work(1) && !bench.functions[1].registers.may_take_work(), "{what}");
    }
}

#[test]
fn a_queue_whose_command_was_late_is_empty_when_it_is_enabled_again() {
    let mut bench = Bench::without_queue_1();
    late(&mut bench, command::ENABLE_WQ, 0);
    bench.model.rest(true);
    fill(&bench.model, 1);
    bench.functions[1].command(command::ENABLE_WQ, 0);
    bench.look();
    bench.model.rest(false);
    let before = bench.model.commands();
    while bench.look() {}
    assert_eq!((bench.functions[1].status(), bench.model.takes_work(1)), (Some(0), true));
    assert!(bench.model.commands() - before >= 2, "it was not disabled in between");
    let mut bench = Bench::new();
    late(&mut bench, command::DISABLE_WQ, 1);
    assert!(!bench.model.takes_work(1), "the device has disabled it late");
    assert_eq!(bench.carry_out(command::ENABLE_WQ, 0), 0);
    assert!(bench.model.takes_work(1));
}

/// The parent is asked again for a handle that it may have taken back.
#[test]
fn a_handle_that_was_taken_back_late_is_not_given_to_the_guest_unasked() {
    let mut bench = Bench::new();
    let handle = bench.carry_out(command::REQUEST_INT_HANDLE, 3) >> 8;
    late(&mut bench, command::RELEASE_INT_HANDLE, handle);
    assert_eq!(bench.functions[1].registers.known_handle(3), None);
    assert_eq!(bench.carry_out(command::REQUEST_INT_HANDLE, 3), handle << 8);
    assert_eq!(bench.carry_out(command::RELEASE_INT_HANDLE, handle), 0, "the parent gave it again");
}
