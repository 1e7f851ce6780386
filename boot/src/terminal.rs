//! The terminal of a run: it connects the serial port of one guest with the terminal where the run was started, byte for byte.
//!
//! The machine's second serial line ends in a pseudo-terminal of ours ([`Pty`]). While the guest runs, a [`Terminal`] carries bytes between
//! the pseudo-terminal and the person's own terminal, which is in raw mode. Each key goes to the guest, Ctrl-C too, except the one that
//! ends the run.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, OptionalActions, OutputModes, Termios, isatty, tcgetattr, tcsetattr};

use crate::event::Line;

/// Ctrl-], which ends the run.
pub const ESCAPE: u8 = 0x1d;

/// Bytes that are handed to the machine at a time, and how long it is given for them. Its serial port keeps 16 and drops what comes then,
/// and the emulator has no flow control.
const CHUNK: usize = 8;
const PACE: Duration = Duration::from_millis(30);
/// How often the threads look whether they are still wanted.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
/// When nothing has come from the guest for so long after its end, or its end is so long ago, nothing more will.
const QUIET: Duration = Duration::from_millis(150);
const LAST_BYTES: Duration = Duration::from_secs(2);

/// Bytes of a guest that are kept for the time when it has the terminal.
const HELD: usize = 64 << 10;

/// A pseudo-terminal for the machine to open.
#[derive(Debug)]
pub struct Pty {
    /// Our side of it.
    pub ours: OwnedFd,
    /// The path of the machine's.
    pub name: String,
}

impl Pty {
    /// Makes one that changes no byte and echoes none.
    pub fn open() -> Result<Self> {
        let make = || -> rustix::io::Result<_> {
            let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
            grantpt(&ours)?;
            unlockpt(&ours)?;
            let mut modes = tcgetattr(&ours)?;
            modes.make_raw();
            tcsetattr(&ours, OptionalActions::Now, &modes)?;
            let name = ptsname(&ours, Vec::new())?;
            Ok((ours, name))
        };
        let (ours, name) = make().context("cannot make a pseudo-terminal for the guest's console")?;
        Ok(Self { ours, name: name.into_string().context("a pseudo-terminal's name")? })
    }
}

/// What the threads share.
#[derive(Debug)]
struct Shared {
    /// Keys are the guest's.
    on: AtomicBool,
    /// Nobody looks any more.
    over: AtomicBool,
    screen: Mutex<Screen>,
}

/// What the guest writes. Its first bytes come before the line that says that it starts, because the other serial line has more to carry.
#[derive(Debug)]
struct Screen {
    output: File,
    /// Bytes that came before the terminal was the guest's; none once it is.
    held: Option<Vec<u8>>,
    /// When the last byte came.
    last: Instant,
}

impl Screen {
    // What cannot be shown is lost: the guest does not wait for it.
    fn show(&mut self, bytes: &[u8]) {
        self.last = Instant::now();
        match &mut self.held {
            Some(held) if held.len() < HELD => held.extend(bytes),
            Some(_) => {}
            None => drop(self.output.write_all(bytes)),
        }
    }

    fn open(&mut self) {
        let _ = self.output.write_all(&self.held.take().unwrap_or_default());
    }
}

impl Shared {
    fn screen(&self) -> MutexGuard<'_, Screen> {
        self.screen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a line means for a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Its guest starts.
    Begins,
    /// Its guest has ended.
    Ends,
}

/// A guest's console on a terminal. Dropping it gives the terminal back as it was.
#[derive(Debug)]
pub struct Terminal {
    /// The name of the guest.
    guest: String,
    input: OwnedFd,
    /// The terminal's modes from before.
    modes: Option<Termios>,
    shared: Arc<Shared>,
}

impl Terminal {
    /// Connects the machine's side to the two sides of a terminal, or to files in its place. The keys belong to the guest of this name from
    /// its start to its end; [`ESCAPE`] sets `stop`.
    pub fn new(guest: &str, machine: OwnedFd, [input, output]: [OwnedFd; 2], stop: Arc<AtomicBool>) -> Result<Self> {
        let screen = Screen { output: output.into(), held: Some(Vec::new()), last: Instant::now() };
        let shared = Arc::new(Shared { on: false.into(), over: false.into(), screen: screen.into() });
        let copy = |file: &OwnedFd| file.try_clone().context("cannot share the terminal");
        let keys = Keys { input: copy(&input)?, machine: copy(&machine)?.into(), stop, shared: Arc::clone(&shared) };
        thread::spawn(move || keys.carry());
        let seen = Arc::clone(&shared);
        thread::spawn(move || show(machine.into(), &seen));
        Ok(Self { guest: guest.to_owned(), input, modes: None, shared })
    }

    /// Whether the guest has the terminal, so that nobody else may write there.
    pub fn is_on(&self) -> bool {
        self.shared.on.load(Ordering::Relaxed)
    }

    /// What a line means for the terminal.
    pub fn turn(&self, line: &Line) -> Option<Turn> {
        let tells = |event| line.event(event).is_some_and(|pairs| pairs.get("name") == Some(self.guest.as_str()));
        if tells("guest-start") {
            return Some(Turn::Begins);
        }
        tells("guest-end").then_some(Turn::Ends)
    }

    /// Gives the terminal to the guest.
    pub fn begin(&mut self) -> Result<()> {
        if isatty(&self.input) {
            let modes = tcgetattr(&self.input).context("cannot read the terminal's modes")?;
            tcsetattr(&self.input, OptionalActions::Now, &raw(&modes)).context("cannot set the terminal's modes")?;
            self.modes = Some(modes);
        }
        self.shared.screen().open();
        self.shared.on.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Takes it back when the guest's last bytes have come.
    pub fn end(&mut self) {
        let end = Instant::now();
        while self.is_on() && self.shared.screen().last.elapsed() < QUIET && end.elapsed() < LAST_BYTES {
            thread::sleep(QUIET);
        }
        self.give_back();
    }

    fn give_back(&mut self) {
        self.shared.on.store(false, Ordering::Relaxed);
        if let Some(modes) = self.modes.take() {
            // A terminal that is gone needs no modes.
            let _ = tcsetattr(&self.input, OptionalActions::Now, &modes);
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.give_back();
        self.shared.over.store(true, Ordering::Relaxed);
    }
}

/// Modes in which each key comes at once and as it is. Lines are still ended as before, for what we say ourselves.
fn raw(modes: &Termios) -> Termios {
    let mut raw = modes.clone();
    raw.make_raw();
    raw.output_modes |= modes.output_modes & (OutputModes::OPOST | OutputModes::ONLCR);
    debug_assert!(!raw.local_modes.contains(LocalModes::ISIG));
    raw
}

/// Shows what the guest writes, until the machine's side is gone.
fn show(mut machine: File, shared: &Shared) {
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = machine.read(&mut bytes) {
        shared.screen().show(&bytes[..count]);
    }
}

/// The way of the keys.
struct Keys {
    input: OwnedFd,
    machine: File,
    stop: Arc<AtomicBool>,
    shared: Arc<Shared>,
}

impl Keys {
    /// Carries keys to the machine until the run is over, the terminal is gone, or the person wants no more.
    fn carry(mut self) {
        while !self.shared.over.load(Ordering::Relaxed) {
            let mut ready = [PollFd::new(&self.input, PollFlags::IN)];
            let waits = poll(&mut ready, Some(&LOOK)).is_ok_and(|count| count != 0);
            if !self.shared.on.load(Ordering::Relaxed) || !waits {
                // While keys are not the guest's they stay where they are.
                thread::sleep(Duration::from_millis(5));
                continue;
            }
            let mut bytes = [0; CHUNK];
            let Ok(count @ 1..) = rustix::io::read(&self.input, &mut bytes) else { return };
            let keys = bytes[..count].split(|byte| *byte == ESCAPE).next().unwrap_or_default();
            let sent = self.machine.write_all(keys);
            if keys.len() != count {
                self.stop.store(true, Ordering::Relaxed);
            }
            if keys.len() != count || sent.is_err() {
                return;
            }
            thread::sleep(if count == CHUNK { PACE } else { Duration::ZERO });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A terminal with nothing behind it but a machine that is a pseudo-terminal's other side.
    struct Bed {
        person: File,
        screen: OwnedFd,
        machine: File,
        terminal: Terminal,
        stop: Arc<AtomicBool>,
    }

    fn open(pty: &Pty) -> OwnedFd {
        File::options().read(true).write(true).open(&pty.name).unwrap().into()
    }

    fn bed() -> Bed {
        let (line, person) = (Pty::open().unwrap(), Pty::open().unwrap());
        let (machine, screen) = (open(&line), open(&person));
        // As a shell leaves it.
        let mut modes = tcgetattr(&screen).unwrap();
        modes.local_modes |= LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
        tcsetattr(&screen, OptionalActions::Now, &modes).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let sides = [screen.try_clone().unwrap(), screen.try_clone().unwrap()];
        let terminal = Terminal::new("g", line.ours, sides, Arc::clone(&stop)).unwrap();
        Bed { person: person.ours.into(), screen, machine: machine.into(), terminal, stop }
    }

    impl Bed {
        fn heed(&mut self, line: &str) {
            match self.terminal.turn(&Line::parse(line)) {
                Some(Turn::Begins) => self.terminal.begin().unwrap(),
                Some(Turn::Ends) => self.terminal.end(),
                None => {}
            }
        }

        fn is_raw(&self) -> bool {
            !tcgetattr(&self.screen)
                .unwrap()
                .local_modes
                .intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
        }
    }

    fn next(file: &mut File, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        for byte in bytes.chunks_mut(1) {
            let mut ready = [PollFd::new(file, PollFlags::IN)];
            let limit = Timespec { tv_sec: 20, tv_nsec: 0 };
            assert_ne!(poll(&mut ready, Some(&limit)).unwrap(), 0, "no byte comes");
            file.read_exact(byte).unwrap();
        }
        bytes
    }

    #[test]
    fn while_the_guest_runs_keys_are_its_own_and_what_it_writes_is_shown() {
        let mut bed = bed();
        bed.heed("@ims guest-start guest=0 name=other");
        assert!(!bed.is_raw() && !bed.terminal.is_on());
        // The guest is faster than the line that tells of it.
        bed.machine.write_all(b"> ").unwrap();
        thread::sleep(QUIET);
        bed.person.write_all(b"x").unwrap();
        assert_eq!(next(&mut bed.person, 1), b"x", "the echo comes first");
        bed.heed("@ims guest-start guest=1 name=g");
        assert!(bed.is_raw() && bed.terminal.is_on());
        bed.machine.write_all(b"\x1b[1m").unwrap();
        assert_eq!(next(&mut bed.person, 6), b"> \x1b[1m");
        // Ctrl-C, Ctrl-D, enter, and a cursor key.
        bed.person.write_all(b"\x03\x04\r\x1b[A").unwrap();
        assert_eq!(next(&mut bed.machine, 7), b"x\x03\x04\r\x1b[A");
        bed.heed("@ims guest-end guest=1 name=g reason=exit code=0");
        assert!(!bed.is_raw() && !bed.terminal.is_on());
        assert!(!bed.stop.load(Ordering::Relaxed));
    }

    #[test]
    fn long_input_arrives_whole_and_the_escape_key_ends_the_run() {
        let mut bed = bed();
        bed.heed("@ims guest-start guest=0 name=g");
        let text: Vec<u8> = (b'a'..=b'z').cycle().take(100).collect();
        bed.person.write_all(&text).unwrap();
        assert_eq!(next(&mut bed.machine, 100), text);
        bed.person.write_all(&[b'x', ESCAPE, b'y']).unwrap();
        assert_eq!(next(&mut bed.machine, 1), b"x");
        let began = Instant::now();
        while !bed.stop.load(Ordering::Relaxed) {
            assert!(began.elapsed() < Duration::from_secs(10), "the key does nothing");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn the_terminal_is_given_back_when_a_panic_unwinds() {
        let mut bed = bed();
        bed.heed("@ims guest-start guest=0 name=g");
        let Bed { terminal, screen, .. } = bed;
        let panics = move || {
            let _terminal = terminal;
            panic!("on purpose");
        };
        assert!(thread::spawn(panics).join().is_err());
        assert!(tcgetattr(&screen).unwrap().local_modes.contains(LocalModes::ICANON | LocalModes::ECHO));
    }
}
