//! How a run ended.

use std::fmt;
use std::time::Duration;

/// More on the serial console than this is a flood.
pub(super) const FLOOD: u64 = 64 << 20;

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The hypervisor switched the machine off.
    Off,
    /// The machine was still on after `done`, and was ended.
    LeftOn,
    /// The machine ended by itself; its own last words.
    Died(String),
    /// The machine wrote no line for so long, and had time enough for one.
    Silent(Silence),
    /// It took longer than it may.
    TooLong(Duration),
    /// The console was flooded.
    Flooded,
    /// The person at the terminal or at the debugger ended it.
    Asked,
    /// It was not run, because the machine that it should run on lacks something.
    Refused(String),
}

/// A silence that is too long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Silence {
    /// On the host's clock.
    pub wall: Duration,
    /// In the machine's own time, where it tells or the host counts it: how far the emulator came, or its processor time.
    pub own: Option<Duration>,
    /// The RIP of each processor at its end, where the emulator tells.
    pub rips: Vec<u64>,
}

impl End {
    /// Whether the run came to its own end.
    pub fn is_right(&self) -> bool {
        matches!(self, Self::Off | Self::LeftOn)
    }

    /// What else it may have been, and what helps.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Silent(_) => Some(
                "a guest that computes for long without a line is ended as well: --silence SECONDS gives it more time; \
                 --debug holds the machine in a debugger, which tells what is at an address (u), and where each processor is (r)",
            ),
            Self::TooLong(_) => Some("--timeout SECONDS gives it more time"),
            Self::Off | Self::LeftOn | Self::Died(_) | Self::Flooded | Self::Asked | Self::Refused(_) => None,
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => write!(f, "the machine was switched off"),
            Self::LeftOn => write!(f, "the machine was still on after the run was done"),
            Self::Died(words) => write!(f, "the machine ended by itself: {words}"),
            Self::Silent(silence) => write!(f, "the machine hung: {silence}"),
            Self::TooLong(time) => write!(f, "the run took longer than {} seconds", time.as_secs()),
            Self::Flooded => write!(f, "more than {} MiB on the serial console", FLOOD >> 20),
            Self::Asked => write!(f, "the run was ended by hand"),
            Self::Refused(why) => write!(f, "it could not be run: {why}"),
        }
    }
}

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no line for {} seconds", self.wall.as_secs())?;
        if let Some(own) = self.own {
            write!(f, ", of which the machine itself had {}", own.as_secs())?;
        }
        for (processor, rip) in self.rips.iter().enumerate() {
            write!(f, "{} processor {processor} was at RIP {rip:#x}", if processor == 0 { ";" } else { "," })?;
        }
        Ok(())
    }
}
