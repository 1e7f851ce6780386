//! A serial port of the machine, and the bytes that wait to be sent there.

use core::{sync::atomic::AtomicU8, time::Duration};

use uart_16550::{Config, Uart16550, backend::PioBackend, spec::registers::LSR};

use super::ring::Ring;
use crate::clock::{self, Timeout, poll};

/// The line takes a byte in this time, or none any more: a port that nobody answers must not stop the machine. The chip's queue of 16
/// bytes empties in 1.4 ms, and what is behind it (a service processor) may be slower.
const SEND: Duration = Duration::from_millis(100);

/// A serial port. A byte takes it 87 µs at 115,200 baud, and nobody waits that long for a log line.
pub struct Serial {
    uart: Uart16550<PioBackend>,
    ring: Ring,
    /// Bytes of the ring that guests leave free.
    reserve: usize,
    /// Since a guest found no room: how many bytes had been taken then, and until when the line has to take another one.
    turned_away: Option<(usize, Timeout<'static>)>,
}

impl Serial {
    /// The port at `base`, if one answers there, at 115,200 baud.
    ///
    /// # Safety
    /// The eight I/O ports from `base` on are the caller's for good.
    pub unsafe fn open(base: u16, bytes: &'static [AtomicU8], reserve: usize) -> Option<Self> {
        // SAFETY: the caller vouches for the ports.
        let mut uart = unsafe { Uart16550::new_port(base) }.ok()?;
        uart.init(Config::default()).ok()?;
        Some(Self { uart, ring: Ring::new(bytes), reserve, turned_away: None })
    }

    /// Puts a byte into the ring; while that is full, waits until the line has taken a byte.
    pub fn send(&mut self, byte: u8) {
        if self.ring.room() == 0 {
            self.wait();
        }
        self.ring.push(byte);
    }

    /// Puts a byte into the ring; without room the byte is lost.
    pub fn try_send(&mut self, byte: u8) {
        self.ring.push(byte);
    }

    /// A byte that has come in.
    pub fn receive(&mut self) -> Option<u8> {
        self.uart.try_receive_byte().ok()
    }

    /// Sends the bytes that the chip takes now. Returns whether bytes still wait.
    pub fn pump(&mut self) -> bool {
        while self.ring.peek().is_some_and(|byte| self.uart.try_send_byte(byte).is_ok()) {
            self.ring.pop();
        }
        self.ring.len() != 0
    }

    /// Whether a guest may write. If the line takes no byte for `SEND`, the bytes that wait for it are lost.
    pub fn has_room(&mut self) -> bool {
        if self.ring.room() >= self.reserve {
            return true;
        }
        self.pump();
        match &mut self.turned_away {
            Some((taken, timeout)) if *taken == self.ring.taken() => {
                if timeout.is_over() {
                    self.ring.clear();
                    self.turned_away = None;
                }
            }
            _ => self.turned_away = Some((self.ring.taken(), Timeout::new(clock::current(), SEND))),
        }
        self.ring.room() >= self.reserve
    }

    /// Waits until the line has taken a byte. If it takes none for `SEND`, the bytes that wait for it are lost.
    fn wait(&mut self) {
        let before = self.ring.taken();
        let sent = poll(clock::current(), SEND, || {
            self.pump();
            self.ring.taken() != before
        });
        if !sent {
            self.ring.clear();
        }
    }

    /// Waits until everything has left the machine.
    pub fn drain(&mut self) {
        while self.ring.len() != 0 {
            self.wait();
        }
        // What is left then in the chip's queue is lost.
        let _ = poll(clock::current(), SEND, || self.uart.lsr().contains(LSR::TRANSMITTER_EMPTY));
    }
}
