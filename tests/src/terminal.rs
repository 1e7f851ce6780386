//! A person at the terminal of a guest.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use imsvisor_boot::machine::Outcome;
use imsvisor_boot::terminal::{Pty, Terminal, Turn};

use crate::scenario::{Plan, start};

/// What a person waits for comes in this time, on the busiest host.
const PATIENCE: Duration = Duration::from_secs(120);

/// Types, and reads what the guest writes.
pub struct Person {
    keys: File,
    screen: Receiver<u8>,
}

impl Person {
    fn new(terminal: OwnedFd) -> Result<Self> {
        let mut reads: File = terminal.try_clone().context("a terminal's other side")?.into();
        let (send, screen) = channel();
        thread::spawn(move || {
            let mut byte = [0];
            while let Ok(1) = reads.read(&mut byte)
                && send.send(byte[0]).is_ok()
            {}
        });
        Ok(Self { keys: terminal.into(), screen })
    }

    /// Types these keys.
    pub fn types(&mut self, keys: &[u8]) {
        self.keys.write_all(keys).expect("a terminal takes keys");
    }

    /// Waits until the screen has shown this; gives all that it has shown meanwhile. Panics when it does not come.
    pub fn waits_for(&mut self, text: &str) -> String {
        let mut shown = Vec::new();
        while !shown.ends_with(text.as_bytes()) {
            match self.screen.recv_timeout(PATIENCE) {
                Ok(byte) => shown.push(byte),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!("no {text:?} on the screen: {:?}", String::from_utf8_lossy(&shown))
                }
            }
        }
        String::from_utf8_lossy(&shown).into_owned()
    }
}

/// Boots a plan as `cargo boot -- --console` does, with a person who does this at the terminal of the guest of this name.
pub fn boot(name: &str, plan: &Plan, guest: &str, does: fn(&mut Person)) -> Result<Outcome> {
    start(name, plan, |mut run| {
        let machine = run.take_terminal().context("the machine has no terminal")?;
        let pty = Pty::open()?;
        let screen = || File::options().read(true).write(true).open(&pty.name).context("a terminal").map(OwnedFd::from);
        let mut terminal = Terminal::new(guest, machine, [screen()?, screen()?], run.stop())?;
        let mut person = Person::new(pty.ours)?;
        let person = thread::spawn(move || does(&mut person));
        for seen in &mut run {
            match terminal.turn(&seen.line) {
                Some(Turn::Begins) => terminal.begin()?,
                Some(Turn::Ends) => terminal.end(),
                None => {}
            }
        }
        person.join().map_err(|_| anyhow!("the person found something wrong"))?;
        Ok(run.finish())
    })
}
