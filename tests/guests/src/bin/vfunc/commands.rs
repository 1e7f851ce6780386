//! Commands of guests that share a device: one guest has its queues drained without end, another one's commands are to be carried out all
//! the same. Each tells when its commands began and ended, by the TSC, which is the machine's: so it can be seen which came in between.

use guests::bare::{apic, idle};
use guests::dsa::{Descriptor, Registers, spec};
use guests::println;

use crate::function::{Vf, errors, expect};

/// Ticks for which queues are drained, and for which the other guest waits first.
const DRAINING: u64 = 80_000_000;
const AFTER: u64 = 8_000_000;
/// Commands of the other guest: it enables and disables its queue.
const COMMANDS: usize = 12;
/// Descriptors that are put into a queue before it is drained: as many as it holds.
const QUEUE: usize = 16;
/// Drains of each function at most.
const MOST: usize = 512;

/// A function whose queue is drained.
struct Draining<'v> {
    vf: &'v mut Vf,
    /// When the drain that is under way began.
    began: Option<u64>,
    /// When each drain began and ended. They are told at the end: lines of the console take time.
    times: [(u64, u64); MOST],
    drains: usize,
}

impl Draining<'_> {
    /// Looks whether the drain is done, and begins the next one unless it was the `last`.
    fn go_on(&mut self, last: bool) {
        let status = self.vf.dsa.registers().read(spec::CMDSTS);
        if status & spec::CMDSTS_ACTIVE != 0 {
            return;
        }
        if let Some(began) = self.began.take() {
            expect(status == 0, "a drain failed");
            self.times[self.drains] = (began, apic::tsc());
            self.drains += 1;
        }
        if !last && self.drains < MOST {
            (0..QUEUE).for_each(|_| self.vf.submit_raw(&nothing()));
            self.began = Some(apic::tsc());
            self.vf.dsa.registers().write(spec::CMD, spec::COMMAND_DRAIN_ALL << spec::CMD_SHIFT);
        }
    }
}

/// A descriptor that does nothing and tells nobody.
fn nothing() -> Descriptor {
    Descriptor { flags: 0, ..Descriptor::noop(0, 0) }
}

/// Has two functions drained over and over.
pub fn drain(first: &mut Vf, second: &mut Vf) -> Result<(), &'static str> {
    let mut both = [first, second].map(|vf| Draining { vf, began: None, times: [(0, 0); MOST], drains: 0 });
    let end = apic::tsc() + DRAINING;
    while apic::tsc() < end {
        both.iter_mut().for_each(|one| one.go_on(false));
    }
    while both.iter().any(|one| one.began.is_some()) {
        both.iter_mut().for_each(|one| one.go_on(true));
    }
    for one in &both {
        for (began, ended) in &one.times[..one.drains] {
            println!("drained {} {began} {ended}", one.vf.function);
        }
    }
    result(both.iter().map(|one| one.drains).sum())
}

/// Gives commands, one after another.
pub fn give(vf: &mut Vf) -> Result<(), &'static str> {
    idle::linger(AFTER);
    for number in 0..COMMANDS {
        let (command, operand) =
            if number % 2 == 0 { (spec::COMMAND_DISABLE_WQ, 1) } else { (spec::COMMAND_ENABLE_WQ, 0) };
        let began = apic::tsc();
        expect(vf.dsa.command(command, operand).is_ok(), "a command failed");
        println!("commanded {} {began} {}", vf.function, apic::tsc());
    }
    result(COMMANDS)
}

fn result(commands: usize) -> Result<(), &'static str> {
    let errors = errors();
    println!("@result commands={commands} errors={errors}");
    if errors == 0 { Ok(()) } else { Err("not everything was right") }
}
