//! The mailbox of a virtual processor: senders on other processors against the scheduler that owns it.
//!
//! [`Owner`] is the scheduler's loop (`sched/scheduler.rs`, `vm/virtual_cpu.rs`) as far as it touches the mailbox. No timer helps: a signal that
//! the owner misses leaves it waiting for good, which loom reports.

use std::sync::Arc;

use concurrency::{
    check::{check, must_fail},
    cpu::interrupts,
    irq::mailbox::{Mailbox, NotifyMask},
    machine::{apic, become_processor},
};
use loom::thread;

/// The vectors that are sent.
const VECTORS: [u8; 2] = [0x41, 0x82];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    Halted,
}

/// How the owner departs from the scheduler, to have the checker find it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Faults {
    /// It does not look after it has said that it runs.
    no_look_at_turn: bool,
    /// It says nothing when it is muted no longer.
    no_look_at_unmute: bool,
}

/// A processor with one virtual processor.
struct Owner {
    mailbox: Arc<Mailbox>,
    state: State,
    got: Vec<u8>,
    faults: Faults,
}

impl Owner {
    fn new(mailbox: &Arc<Mailbox>, faults: Faults) -> Self {
        become_processor(0);
        Self { mailbox: Arc::clone(mailbox), state: State::Ready, got: Vec::new(), faults }
    }

    fn take_sent(&mut self) {
        if self.mailbox.take_signal().is_some() {
            self.got.extend(self.mailbox.take_requests());
        }
    }

    fn has_all(&self) -> bool {
        VECTORS.iter().all(|vector| self.got.contains(vector))
    }

    /// `Scheduler::deliver`: `true` if the virtual processor has new interrupts.
    fn deliver(&mut self) {
        interrupts::take(apic::WAKE_UP_VECTOR);
        let before = self.got.len();
        self.take_sent();
        if self.got.len() != before {
            self.state = State::Ready;
        }
    }

    /// `Scheduler::publish`.
    fn publish(&self, attention: NotifyMask) {
        self.mailbox.set_notify_mask(attention);
        if !self.faults.no_look_at_unmute {
            interrupts::raise(apic::WAKE_UP_VECTOR);
        }
    }

    /// `Scheduler::run_vcpu`: the guest waits in its turn for its interrupts, without HLT.
    fn run_spinning(&mut self) {
        self.mailbox.set_notify_mask(NotifyMask::ALL);
        if !self.faults.no_look_at_turn && self.mailbox.has_signal() {
            self.deliver();
        }
        while !self.has_all() {
            if !interrupts::any() {
                interrupts::idle();
            }
            self.deliver();
        }
    }

    /// `Scheduler::halt`. Returns whether the virtual processor goes on.
    fn halt(&mut self) -> bool {
        interrupts::poll();
        self.deliver();
        if self.has_all() {
            return true;
        }
        self.state = State::Halted;
        let before = self.got.len();
        self.mailbox.set_notify_mask(NotifyMask::HALTED);
        self.take_sent();
        if self.got.len() != before {
            self.state = State::Ready;
            self.mailbox.set_notify_mask(NotifyMask::ALL);
        }
        self.state == State::Ready
    }

    /// `Scheduler::run`: the guest halts whenever it has no interrupt.
    fn run_halting(&mut self) {
        while !self.has_all() {
            self.deliver();
            match self.state {
                State::Ready => {
                    self.mailbox.set_notify_mask(NotifyMask::ALL);
                    while !self.has_all() && self.halt() {}
                }
                State::Halted if interrupts::any() => {}
                State::Halted => interrupts::idle(),
            }
        }
    }
}

fn mailbox() -> Arc<Mailbox> {
    Arc::new(Mailbox::new(0, 0, None, None))
}

/// A processor for each of the vectors, which sends it.
fn senders(mailbox: &Arc<Mailbox>) -> [thread::JoinHandle<()>; 2] {
    [1, 2].map(|number| {
        let mailbox = Arc::clone(mailbox);
        thread::spawn(move || {
            become_processor(number);
            mailbox.request(VECTORS[number - 1]);
        })
    })
}

/// One processor that sends both vectors.
fn sender(mailbox: &Arc<Mailbox>) -> thread::JoinHandle<()> {
    let mailbox = Arc::clone(mailbox);
    thread::spawn(move || {
        become_processor(1);
        VECTORS.into_iter().for_each(|vector| mailbox.request(vector));
    })
}

fn turns(faults: Faults) {
    let mailbox = mailbox();
    let sender = sender(&mailbox);
    let mut owner = Owner::new(&mailbox, faults);
    owner.deliver();
    owner.run_spinning();
    sender.join().unwrap();
    // A second round: whether the first one has left `notified` set.
    owner.got.clear();
    owner.mailbox.set_notify_mask(NotifyMask::NONE);
    owner.deliver();
    let sender = self::sender(&mailbox);
    owner.run_spinning();
    sender.join().unwrap();
}

fn halts() {
    let mailbox = mailbox();
    let senders = senders(&mailbox);
    Owner::new(&mailbox, Faults::default()).run_halting();
    senders.into_iter().for_each(|sender| sender.join().unwrap());
}

/// A virtual processor has halted and is muted; then it is so no longer, as in `Scheduler::idle`.
fn mutes(faults: Faults) {
    let mailbox = mailbox();
    let senders = senders(&mailbox);
    let mut owner = Owner::new(&mailbox, faults);
    owner.state = State::Halted;
    owner.mailbox.set_notify_mask(NotifyMask::NONE);
    owner.deliver();
    owner.publish(NotifyMask::HALTED);
    while !owner.has_all() {
        match interrupts::any() {
            true => owner.deliver(),
            false => interrupts::idle(),
        }
    }
    senders.into_iter().for_each(|sender| sender.join().unwrap());
}

#[test]
fn what_comes_around_the_beginning_of_a_turn_is_seen_in_it() {
    check(2, || turns(Faults::default()));
}

#[test]
fn no_interrupt_is_missed_by_one_that_halts() {
    check(2, halts);
}

#[test]
fn no_interrupt_is_missed_by_one_that_is_muted_no_longer() {
    check(2, || mutes(Faults::default()));
}

#[test]
fn the_checker_finds_a_turn_that_begins_without_a_look() {
    must_fail(2, || turns(Faults { no_look_at_turn: true, ..Faults::default() }));
}

#[test]
fn the_checker_finds_the_end_of_a_mute_without_a_look() {
    must_fail(2, || mutes(Faults { no_look_at_unmute: true, ..Faults::default() }));
}
