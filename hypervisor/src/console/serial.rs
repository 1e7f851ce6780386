//! A serial port of the machine, with the bytes that wait to be sent.

use core::{sync::atomic::AtomicU8, time::Duration};

use uart_16550::{
    BaudRate, Config, Uart16550,
    backend::PioBackend,
    spec::registers::{FifoTriggerLevel, LSR},
};

use super::ring::Ring;
use crate::{
    clock::{self, Timeout, poll},
    options::{BAUD, SerialPort},
};

/// The line takes a byte in this time, or none any more: a port that nobody answers must not stop the machine. The chip's queue of 16
/// bytes empties in 1.4 ms, and what is behind it (a service processor) may be slower.
const SEND: Duration = Duration::from_millis(100);

/// How fast a port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speed {
    /// So many bits per second.
    Baud(u32),
    /// As the firmware has set the port.
    Kept,
}

/// A serial port. A byte takes it 87 µs at 115,200 baud, and nobody waits that long for a log line.
pub struct Serial {
    /// None before the port is open.
    uart: Option<Uart16550<PioBackend>>,
    ring: Ring,
    /// Bytes of the ring that guests leave free.
    reserve: usize,
    /// Since a guest found no room: how many bytes had been taken then, and until when the line has to take another one.
    turned_away: Option<(usize, Timeout<'static>)>,
}

impl Serial {
    /// No port yet: bytes wait in the ring, and when that is full the oldest ones are lost. Nobody waits for room there.
    pub const fn new(bytes: &'static [AtomicU8], reserve: usize) -> Self {
        Self { uart: None, ring: Ring::new(bytes), reserve, turned_away: None }
    }

    /// Takes the port, if one answers there. Returns its rate, which is 115,200 baud where the other one cannot be had.
    ///
    /// # Safety
    /// The port's eight I/O ports are the caller's for good.
    pub unsafe fn open(&mut self, port: SerialPort, speed: Speed) -> Option<u32> {
        // SAFETY: the caller vouches for the ports.
        let mut uart = unsafe { Uart16550::new_port(port.base()) }.ok()?;
        let asked = match speed {
            Speed::Baud(baud) => baud,
            Speed::Kept => kept(&mut uart),
        };
        let mut try_with = |baud| uart.init(config(baud)).ok().map(|()| baud);
        let baud = try_with(asked).or_else(|| try_with(BAUD))?;
        self.uart = Some(uart);
        Some(baud)
    }

    /// Whether there is a port.
    pub fn is_open(&self) -> bool {
        self.uart.is_some()
    }

    /// Puts a byte into the ring; while that is full, waits until the line has taken a byte.
    pub fn send(&mut self, byte: u8) {
        if self.ring.room() == 0 {
            if self.is_open() {
                self.wait();
            } else {
                self.ring.pop();
            }
        }
        self.ring.push(byte);
    }

    /// Puts a byte into the ring; without room the byte is lost.
    pub fn try_send(&mut self, byte: u8) {
        self.ring.push(byte);
    }

    /// A byte that has come in.
    pub fn receive(&mut self) -> Option<u8> {
        self.uart.as_mut()?.try_receive_byte().ok()
    }

    /// Sends the bytes that the chip takes now. Returns whether bytes still wait for it.
    pub fn pump(&mut self) -> bool {
        let Some(uart) = &mut self.uart else { return false };
        while self.ring.peek().is_some_and(|byte| uart.try_send_byte(byte).is_ok()) {
            self.ring.pop();
        }
        self.ring.len() != 0
    }

    /// Whether a guest may write. If the line takes no byte for `SEND`, the bytes that wait for it are lost.
    pub fn has_room(&mut self) -> bool {
        if self.ring.room() >= self.reserve || !self.is_open() {
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
        while self.is_open() && self.ring.len() != 0 {
            self.wait();
        }
        if let Some(uart) = &mut self.uart {
            // Bytes that the chip still holds after that time are lost.
            let _ = poll(clock::current(), SEND, || uart.lsr().contains(LSR::TRANSMITTER_EMPTY));
        }
    }
}

/// How a port is set. Its FIFO asks for service at each byte. Nobody takes the interrupts, but Bochs shows a byte below the trigger to a reader
/// only 16 characters later, and then shows one even where a reader has taken it meanwhile: bytes are lost and doubled (Bochs' serial.cc,
/// `rx_fifo_enq` and `fifo_timer`).
fn config(baud: u32) -> Config {
    Config {
        baud_rate: BaudRate::from_integer(baud),
        fifo_trigger_level: Some(FifoTriggerLevel::One),
        ..Config::default()
    }
}

/// The rate that a port has now; 115,200 baud where it has none.
fn kept(uart: &mut Uart16550<PioBackend>) -> u32 {
    let (low, high) = uart.dll_dlm();
    rate(u16::from_le_bytes([low, high]))
}

/// The rate of a divisor: the chip's clock of 1.8432 MHz gives 115,200 baud with 1.
fn rate(divisor: u16) -> u32 {
    BAUD.checked_div(divisor.into()).unwrap_or(BAUD)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU8;

    use super::*;

    #[test]
    fn a_port_that_is_not_open_keeps_the_last_bytes_and_nobody_waits() {
        static BYTES: [AtomicU8; 8] = [const { AtomicU8::new(0) }; 8];
        let mut serial = Serial::new(&BYTES, 4);
        b"0123456789".iter().for_each(|&byte| serial.send(byte));
        assert!(!serial.pump() && serial.has_room() && serial.receive().is_none());
        serial.drain();
        let kept: Vec<u8> = std::iter::from_fn(|| serial.ring.pop()).collect();
        assert_eq!(kept, b"23456789");
    }

    #[test]
    fn each_byte_that_comes_in_shows_at_once() {
        assert_eq!(config(BAUD).fifo_trigger_level, Some(FifoTriggerLevel::One));
    }

    #[test]
    fn a_divisor_gives_its_rate() {
        assert_eq!([1, 2, 6, 12, 0].map(rate), [115_200, 57_600, 19_200, 9_600, 115_200]);
    }
}
