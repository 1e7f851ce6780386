//! Posted-interrupt descriptors: a remapping unit that posts against the scheduler that owns the descriptor.
//!
//! [`Unit`] and [`Owner::in_guest`] are the hardware, from the manuals; [`Owner`] is the scheduler as far as it touches the descriptor. No timer
//! helps: an interrupt without a notification leaves the owner waiting for good, which loom reports.

use std::sync::Arc;

use concurrency::{
    atomic::Ordering,
    check::{check, must_fail},
    cpu::interrupts,
    irq::mailbox::Mailbox,
    machine::{apic, become_processor},
    memory::{FrameSource, Frames, Table},
    vmx::posted::{Descriptor, RunState},
};
use loom::thread;

const VECTORS: [u8; 2] = [0x05, 0x41];

/// The control quadword and its bits (VT-d specification, 9.11).
const CONTROL: u64 = 4;
const ON: u64 = 1 << 0;
const SN: u64 = 1 << 1;

/// What a remapping unit does for a non-urgent request (VT-d specification, 5.2.3): it sets the bit of the vector, and notifies unless a
/// notification is outstanding or suppressed. The specification has one atomic access of all 64 bytes; here others see the bit before ON.
struct Unit(Table);

impl Unit {
    fn request(&self, vector: u8) {
        self.0.entry(u64::from(vector / 64)).fetch_or(1 << (vector % 64), Ordering::SeqCst);
        self.notify();
    }

    /// A unit that has the order wrong.
    fn request_with_on_first(&self, vector: u8) {
        self.notify();
        self.0.entry(u64::from(vector / 64)).fetch_or(1 << (vector % 64), Ordering::SeqCst);
    }

    fn notify(&self) {
        let notify = |old: u64| (old & (ON | SN) == 0).then_some(old | ON);
        if let Ok(old) = self.0.entry(CONTROL).fetch_update(Ordering::SeqCst, Ordering::SeqCst, notify) {
            apic::notify((old >> 32) as u32, (old >> 16) as u8);
        }
    }
}

/// How the owner or the unit departs from its part, to have the checker find it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Fault {
    #[default]
    None,
    /// The owner takes requests before it sets the run state.
    TakesBeforeRun,
    /// The owner does not look after it has said that it halts.
    NoLookAtHalt,
    /// The unit sets ON before the bit.
    OnFirst,
    /// The scheduler takes the hypervisor's own requests only when it is notified.
    NoLookAtUnmute,
}

/// A processor with one virtual processor, whose local APIC it virtualises.
struct Owner {
    descriptor: Arc<Descriptor>,
    words: Table,
    got: [u64; 4],
    fault: Fault,
}

impl Owner {
    fn new(machine: &Machine, fault: Fault) -> Self {
        become_processor(0);
        let (descriptor, words) = (Arc::clone(&machine.descriptor), machine.words.clone());
        Self { descriptor, words, got: [0; 4], fault }
    }

    fn has_all(&self) -> bool {
        VECTORS.iter().all(|vector| self.got[usize::from(vector / 64)] & 1 << (vector % 64) != 0)
    }

    /// `VirtualApic::take_posted`. Returns whether there were requests.
    fn take_posted(&mut self) -> bool {
        if !self.descriptor.has_requests() {
            return false;
        }
        let before = self.got;
        self.got.iter_mut().zip(self.descriptor.take()).for_each(|(got, new)| *got |= new);
        self.got != before
    }

    /// What the processor does with a notification while the guest runs (SDM vol. 3, 31.6): it clears ON, then moves the requests.
    fn process_notification(&mut self) {
        self.words.entry(CONTROL).fetch_and(!ON, Ordering::SeqCst);
        for (word, got) in (0..).zip(&mut self.got) {
            *got |= self.words.entry(word).swap(0, Ordering::SeqCst);
        }
    }

    /// The guest runs until it has its interrupts, and does not halt. Another vector than the notification's ends the run for a while.
    fn in_guest(&mut self) {
        if self.fault != Fault::TakesBeforeRun {
            self.take_posted();
        }
        while !self.has_all() {
            interrupts::idle();
            if interrupts::take(apic::NOTIFICATION_VECTOR) {
                self.process_notification();
            }
            if interrupts::take(apic::WAKE_UP_VECTOR) {
                self.take_posted();
            }
        }
    }

    /// `Scheduler::switch_to`.
    fn turn(&mut self) {
        if self.fault == Fault::TakesBeforeRun {
            self.take_posted();
        }
        self.descriptor.set_run_state(RunState::Running);
        // What arrived before the entry was acknowledged by the hypervisor, which then looks.
        interrupts::poll();
        interrupts::take(apic::NOTIFICATION_VECTOR);
    }

    /// `Scheduler::halt` and `Scheduler::idle`: returns when there are requests.
    fn halt(&mut self) {
        self.descriptor.set_run_state(RunState::Halted);
        if self.fault != Fault::NoLookAtHalt && self.take_posted() {
            return;
        }
        loop {
            interrupts::idle();
            let [_, _] = [apic::NOTIFICATION_VECTOR, apic::WAKE_UP_VECTOR].map(interrupts::take);
            if self.take_posted() {
                return;
            }
        }
    }
}

/// A descriptor, and its words as hardware sees them.
struct Machine {
    descriptor: Arc<Descriptor>,
    words: Table,
}

impl Machine {
    fn new(descriptor: impl FnOnce(&Frames, u32) -> Option<Descriptor>) -> Self {
        let frames = Frames::default();
        Self { descriptor: Arc::new(descriptor(&frames, 0).expect("a table")), words: frames.table() }
    }
}

fn machine() -> Machine {
    Machine::new(Descriptor::new)
}

/// A unit that posts both vectors, or one unit and another processor that post one each.
fn senders(machine: &Machine, fault: Fault, both: bool) -> Vec<thread::JoinHandle<()>> {
    let unit = {
        let unit = Unit(machine.words.clone());
        thread::spawn(move || {
            become_processor(1);
            let count = if both { 2 } else { 1 };
            for &vector in &VECTORS[..count] {
                match fault {
                    Fault::OnFirst => unit.request_with_on_first(vector),
                    _ => unit.request(vector),
                }
            }
        })
    };
    let mut all = vec![unit];
    if !both {
        let descriptor = Arc::clone(&machine.descriptor);
        all.push(thread::spawn(move || {
            become_processor(2);
            if let Some(vector) = descriptor.post(VECTORS[1]) {
                apic::notify(0, vector);
            }
        }));
    }
    all
}

fn finish(owner: &mut Owner, senders: Vec<thread::JoinHandle<()>>) {
    senders.into_iter().for_each(|sender| sender.join().unwrap());
    assert!(owner.has_all());
    assert!(!owner.take_posted(), "one interrupt twice");
}

/// It was preempted, and has its turn.
fn preempted_then_runs(fault: Fault, both: bool) {
    let machine = machine();
    let senders = senders(&machine, fault, both);
    let mut owner = Owner::new(&machine, fault);
    owner.turn();
    owner.in_guest();
    finish(&mut owner, senders);
}

/// It runs, is preempted, and has a turn again.
fn runs_twice(fault: Fault) {
    let machine = machine();
    let mut owner = Owner::new(&machine, fault);
    owner.turn();
    let senders = senders(&machine, fault, true);
    owner.take_posted();
    machine.descriptor.set_run_state(RunState::Preempted);
    owner.turn();
    owner.in_guest();
    finish(&mut owner, senders);
}

/// It runs, and halts until it has its interrupts.
fn runs_then_halts(fault: Fault, both: bool) {
    let machine = machine();
    let mut owner = Owner::new(&machine, fault);
    owner.turn();
    let senders = senders(&machine, fault, both);
    while !owner.has_all() {
        owner.halt();
    }
    finish(&mut owner, senders);
}

/// It halts while it is muted (`Preempted`), then is muted no longer.
fn muted_then_halts(fault: Fault) {
    let machine = machine();
    let senders = senders(&machine, fault, true);
    let mut owner = Owner::new(&machine, fault);
    machine.descriptor.set_run_state(RunState::Preempted);
    owner.take_posted();
    while !owner.has_all() {
        owner.halt();
    }
    finish(&mut owner, senders);
}

/// The hypervisor's own descriptor: `VirtualCpu::set_run_state` and `VirtualCpu::take_posted`.
fn injected(fault: Fault) {
    become_processor(0);
    let machine = Machine::new(Descriptor::for_hypervisor);
    let mailbox = Mailbox::new(0, 0, None, Some(Arc::clone(&machine.descriptor)));
    mailbox.set_run_state(RunState::Preempted);
    let senders = senders(&machine, fault, true);
    let mut got: Vec<u8> = Vec::new();
    mailbox.set_run_state(RunState::Running);
    if fault != Fault::NoLookAtUnmute {
        got.extend(mailbox.take_suppressed().into_iter().flatten());
    }
    while got.len() < VECTORS.len() {
        interrupts::idle();
        if interrupts::take(apic::INJECT_VECTOR) {
            got.extend(mailbox.take_posted().into_iter().flatten());
        }
    }
    senders.into_iter().for_each(|sender| sender.join().unwrap());
    got.sort_unstable();
    assert_eq!(got, VECTORS);
    assert_eq!(mailbox.take_suppressed().into_iter().flatten().next(), None, "one interrupt twice");
}

/// Each notification of the hypervisor's own descriptor finds requests, also while another virtual processor gets the turn.
fn injected_at_the_end_of_a_turn() {
    become_processor(0);
    let machine = Machine::new(Descriptor::for_hypervisor);
    let mailbox = Mailbox::new(0, 0, None, Some(Arc::clone(&machine.descriptor)));
    mailbox.set_run_state(RunState::Running);
    let senders = senders(&machine, Fault::None, true);
    mailbox.set_run_state(RunState::Preempted);
    let mut got: Vec<u8> = Vec::new();
    let mut look = || {
        interrupts::poll();
        if interrupts::take(apic::INJECT_VECTOR) {
            got.extend(mailbox.take_posted().expect("a notification has requests"));
        }
    };
    look();
    senders.into_iter().for_each(|sender| sender.join().unwrap());
    look();
    got.extend(mailbox.take_suppressed().into_iter().flatten());
    got.sort_unstable();
    assert_eq!(got, VECTORS);
}

#[test]
fn a_notification_finds_requests_when_a_turn_ends() {
    check(3, injected_at_the_end_of_a_turn);
}

#[test]
fn a_turn_finds_what_came_while_it_was_preempted() {
    check(2, || preempted_then_runs(Fault::None, true));
    check(2, || preempted_then_runs(Fault::None, false));
}

#[test]
fn nothing_is_lost_between_two_turns() {
    check(2, || runs_twice(Fault::None));
}

#[test]
fn nothing_is_lost_on_the_way_to_a_halt() {
    check(2, || runs_then_halts(Fault::None, true));
    check(2, || runs_then_halts(Fault::None, false));
}

#[test]
fn nothing_is_lost_when_a_mute_ends() {
    check(2, || muted_then_halts(Fault::None));
    check(2, || injected(Fault::None));
}

#[test]
fn the_checker_finds_requests_that_are_taken_before_the_turn() {
    must_fail(2, || preempted_then_runs(Fault::TakesBeforeRun, true));
}

#[test]
fn the_checker_finds_a_halt_without_a_look() {
    must_fail(2, || muted_then_halts(Fault::NoLookAtHalt));
}

#[test]
fn the_checker_finds_on_before_the_bits() {
    must_fail(2, || runs_then_halts(Fault::OnFirst, true));
}

#[test]
fn the_checker_finds_suppressed_requests_that_nobody_takes() {
    must_fail(2, || injected(Fault::NoLookAtUnmute));
}
