//! The terminal: one guest's serial port on COM2, or on COM1 if the console is on COM2. It passes bytes unchanged in both directions.
//!
//! The console carries lines of the hypervisor and of all guests, and the hypervisor begins each line, so that no guest can forge one. A
//! shell needs unchanged bytes, so the terminal has a port of its own, without lines of the hypervisor.

use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use super::{
    ring::Ring,
    serial::{Serial, Speed},
};
use crate::{
    options::{BAUD, SerialPort},
    sync::Mutex,
};

/// Bytes that wait for the line.
const OUT: usize = 4 * 1024;
/// Bytes that are left free when a guest is told that there is room: one for each of its processors, which may all ask before one writes.
const RESERVE: usize = 256;
/// Bytes that have come in and that the guest has not read: what is typed ahead, or pasted.
const IN: usize = 4 * 1024;

static OUT_BYTES: [AtomicU8; OUT] = [const { AtomicU8::new(0) }; OUT];
static IN_BYTES: [AtomicU8; IN] = [const { AtomicU8::new(0) }; IN];

struct Terminal {
    serial: Serial,
    input: Ring,
}

/// Below it no other lock is taken.
static TERMINAL: Mutex<Option<Terminal>> = Mutex::new(None);
/// Whether there is one: runs without a terminal take no lock for it.
static OPEN: AtomicBool = AtomicBool::new(false);

impl Terminal {
    /// Takes what has come in, as far as there is room. The chip keeps up to 16 more bytes, and loses the rest.
    fn look(&mut self) {
        while self.input.room() != 0
            && let Some(byte) = self.serial.receive()
        {
            self.input.push(byte);
        }
    }
}

/// The terminal's port.
pub fn port() -> SerialPort {
    super::port().terminal_beside()
}

/// Takes the terminal's port. Returns whether there is such a port.
pub fn open() -> bool {
    let mut terminal = TERMINAL.lock();
    if terminal.is_none() {
        let mut serial = Serial::new(&OUT_BYTES, RESERVE);
        // SAFETY: the eight ports of COM1 and COM2 belong to the hypervisor for good. The console has the other one, and this is the only
        // place that makes a driver for this one.
        let answers = unsafe { serial.open(port(), Speed::Baud(BAUD)) }.is_some();
        *terminal = answers.then(|| Terminal { serial, input: Ring::new(&IN_BYTES) });
        OPEN.store(terminal.is_some(), Ordering::Release);
    }
    terminal.is_some()
}

fn with<T>(act: impl FnOnce(&mut Terminal) -> T) -> Option<T> {
    if !OPEN.load(Ordering::Acquire) {
        return None;
    }
    TERMINAL.lock().as_mut().map(act)
}

/// Sends a byte. A guest asks [`has_room`] first; without room the byte is lost.
pub fn send(byte: u8) {
    with(|terminal| {
        terminal.serial.try_send(byte);
        terminal.serial.pump();
    });
}

/// The next byte that has come in.
pub fn receive() -> Option<u8> {
    with(|terminal| {
        terminal.look();
        terminal.input.pop()
    })
    .flatten()
}

/// Whether a guest may write a byte now. Without a terminal it may.
pub fn has_room() -> bool {
    with(|terminal| terminal.serial.has_room()).unwrap_or(true)
}

/// Moves what can be moved now, both ways. Returns whether something waits for the line.
pub(super) fn pump() -> bool {
    with(|terminal| {
        terminal.look();
        terminal.serial.pump()
    })
    .unwrap_or(false)
}

/// Waits until everything has left the machine. In a panic the terminal may be in use for good, and is left alone.
pub(super) fn drain() {
    if let Some(mut terminal) = TERMINAL.try_lock()
        && let Some(terminal) = terminal.as_mut()
    {
        terminal.serial.drain();
    }
}
