//! The commands.

use core::fmt;

use guest_shim::hcall_abi::{GuestInfo, GuestNumber, GuestState, Status};
use guest_shim::vmcall::Vmcall;
use guest_shim::{BatchPage, Hypercalls};
use guests::bare::{apic, idle};
use guests::println;

/// Milliseconds that a guest gets to stop.
const GRACE: u64 = 10_000;
/// TSC ticks between two looks at a guest, and those after which it is given up.
const LOOK: u64 = 50_000;
const LIMIT: u64 = 20_000_000_000;
/// VM exits by which a guest shows that it has begun to work.
const EXITS: u64 = 300;
/// Ticks between two restarts: as long as the console takes for what is told of a life, which a restart would wait for.
const PACE: u64 = 13_000_000;

/// Why a command has failed.
pub enum Failure {
    /// It is none.
    Usage,
    /// There is no guest of this name.
    NoSuchGuest,
    /// The hypervisor has refused it.
    Refused(Status),
    /// The guest has not come there in time.
    TimeOut,
    /// The guest has failed.
    Failed,
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Refused(status)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage => {
                f.write_str("list | start NAME | stop NAME [--force | --grace=MS] | restart NAME [--force | --grace=MS] | counters NAME | exit")
            }
            Self::NoSuchGuest => f.write_str("there is no guest of this name"),
            Self::Refused(status) => write!(f, "{status}"),
            Self::TimeOut => f.write_str("it takes too long"),
            Self::Failed => f.write_str("the guest has failed"),
        }
    }
}

/// Who gives the commands.
pub struct Client {
    calls: Hypercalls<Vmcall>,
    page: BatchPage<'static>,
    figures: Figures,
}

/// Ticks from the call that restarts a guest until it runs again.
#[derive(Clone, Copy, Default)]
pub struct Figures {
    restarts: u64,
    /// The most of the first and of the last sixteenth of the restarts, and of all.
    first: u64,
    last: u64,
    most: u64,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { restarts, first, last, most } = self;
        write!(f, "restarts={restarts} first={first} last={last} most={most}")
    }
}

impl Client {
    /// A client that makes these calls, with a page for their answers.
    pub fn new(calls: Hypercalls<Vmcall>, page: BatchPage<'static>) -> Self {
        Self { calls, page, figures: Figures::default() }
    }

    /// What was measured.
    pub const fn figures(&self) -> Figures {
        self.figures
    }

    /// Carries out a command. Returns whether more are to come.
    pub fn run(&mut self, command: &str) -> Result<bool, Failure> {
        let mut words = command.split_ascii_whitespace();
        let mut all = [""; 5];
        for (place, word) in all.iter_mut().zip(&mut words) {
            *place = word;
        }
        if words.next().is_some() {
            return Err(Failure::Usage);
        }
        match all {
            ["", ..] => {}
            ["exit", "", ..] => return Ok(false),
            ["list", "", ..] => self.list()?,
            ["start", name, "", ..] => {
                let guest = self.guest(name)?;
                self.calls.start_guest(guest)?;
            }
            ["stop", name, how, "", ..] => {
                let (guest, grace) = (self.guest(name)?, grace(how)?);
                self.calls.stop_guest(guest, grace)?;
            }
            ["restart", name, how, "", ..] => {
                let (guest, grace) = (self.guest(name)?, grace(how)?);
                self.calls.restart_guest(guest, grace)?;
            }
            ["counters", name, "", ..] => self.counters(name)?,
            ["wait", name, state, "", ..] => {
                let guest = self.guest(name)?;
                let state = GuestState::ALL.into_iter().find(|known| known.name() == state).ok_or(Failure::Usage)?;
                self.wait(guest, |info| info.state == state || info.state == GuestState::Failed)?;
                if self.calls.query_guest(guest, &mut self.page)?.state != state {
                    return Err(Failure::Failed);
                }
            }
            ["cycle", number, name, "", ..] => {
                let number = number.parse().map_err(|_| Failure::Usage)?;
                self.cycle(number, name)?;
            }
            ["repeat", number, "restart", name, how] => {
                let number = number.parse().map_err(|_| Failure::Usage)?;
                self.repeat(number, name, grace(how)?)?;
            }
            _ => return Err(Failure::Usage),
        }
        Ok(true)
    }

    fn guest(&mut self, name: &str) -> Result<GuestNumber, Failure> {
        if name.is_empty() {
            return Err(Failure::Usage);
        }
        self.calls.find_guest(name, &mut self.page)?.ok_or(Failure::NoSuchGuest)
    }

    fn list(&mut self) -> Result<(), Failure> {
        let mut number = 0;
        loop {
            let info = self.calls.query_guest(GuestNumber(number), &mut self.page)?;
            let GuestInfo { state, is_own, vcpus, memory_mib, weight, starts, guests, .. } = info;
            let (name, mark) = (info.name(), if is_own { " *" } else { "" });
            println!(
                "{number} {name} {} vcpus={vcpus} memory={memory_mib}M weight={weight} starts={starts}{mark}",
                state.name()
            );
            number += 1;
            if number >= guests {
                return Ok(());
            }
        }
    }

    fn counters(&mut self, name: &str) -> Result<(), Failure> {
        let guest = self.guest(name)?;
        let counters = self.calls.guest_counters(guest, &mut self.page)?;
        println!(
            "{name} at={} charged={} interrupting={} building={} exits={} interrupts={}",
            apic::tsc(),
            counters.charged,
            counters.interrupting,
            counters.building,
            counters.exits,
            counters.interrupts
        );
        Ok(())
    }

    /// Waits until a guest is as it should be. Returns the ticks that took.
    fn wait(&mut self, guest: GuestNumber, is_so: impl Fn(&GuestInfo) -> bool) -> Result<u64, Failure> {
        let began = apic::tsc();
        loop {
            if is_so(&self.calls.query_guest(guest, &mut self.page)?) {
                return Ok(apic::tsc() - began);
            }
            if apic::tsc() - began > LIMIT {
                return Err(Failure::TimeOut);
            }
            idle::wait_until(LOOK, || false);
        }
    }

    /// Starts a guest that ends by itself again and again.
    fn cycle(&mut self, number: u64, name: &str) -> Result<(), Failure> {
        let guest = self.guest(name)?;
        let has_ended = |info: &GuestInfo| matches!(info.state, GuestState::Stopped | GuestState::Failed);
        for _ in 0..number {
            self.wait(guest, has_ended)?;
            self.calls.start_guest(guest)?;
        }
        self.wait(guest, has_ended).map(drop)
    }

    fn repeat(&mut self, number: u64, name: &str, grace: u64) -> Result<(), Failure> {
        let guest = self.guest(name)?;
        let few = (number / 16).max(1);
        for n in 0..number {
            let began = apic::tsc();
            // It has begun to work, and the console has room.
            self.wait(guest, |info| info.state == GuestState::Running)?;
            let before = self.calls.query_guest(guest, &mut self.page)?.starts;
            let mut exits = 0;
            while exits < EXITS || apic::tsc() - began < PACE {
                idle::wait_until(LOOK, || false);
                exits = self.calls.guest_counters(guest, &mut self.page)?.exits;
            }
            self.calls.restart_guest(guest, grace)?;
            let ticks = self.wait(guest, |info| info.state == GuestState::Running && info.starts > before)?;
            let figures = &mut self.figures;
            figures.restarts += 1;
            figures.most = figures.most.max(ticks);
            if n < few {
                figures.first = figures.first.max(ticks);
            }
            if n >= number - few {
                figures.last = figures.last.max(ticks);
            }
        }
        Ok(())
    }
}

fn grace(how: &str) -> Result<u64, Failure> {
    match how {
        "" => Ok(GRACE),
        "--force" => Ok(0),
        how => how.strip_prefix("--grace=").and_then(|grace| grace.parse().ok()).ok_or(Failure::Usage),
    }
}
