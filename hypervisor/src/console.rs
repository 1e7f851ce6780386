//! The console on COM1: lines for people through `log`, lines for the launcher through [`event`].

use core::{
    fmt::{self, Write},
    sync::atomic::{AtomicU8, Ordering},
    time::Duration,
};

use log::{LevelFilter, Log, Metadata, Record};
use spin::mutex::TicketMutex;
use uart_16550::{Config, Uart16550, backend::PioBackend, spec::registers::LSR};

use crate::clock::{self, Clock, Timeout, poll};

/// I/O port of COM1.
const COM1: u16 = 0x3f8;

/// Bytes that wait for the line. A byte takes 87 µs at 115,200 baud; nobody waits that long for a log line.
const RING: usize = 32 * 1024;

/// Bytes that guests leave free, for a line of theirs on each of a few processors, and for the hypervisor's own.
const RESERVE: usize = 4 * 1024;

/// The line takes a byte in this time, or none any more: a port that nobody answers must not stop the machine. The chip's queue of 16
/// bytes empties in 1.4 ms, and what is behind it (a service processor) may be slower.
const SEND: Duration = Duration::from_millis(100);

/// How long a processor may hold the console before a panic of another one breaks it open. Emptying the ring takes longest: 32 KiB at 87 µs
/// a byte are 2.9 s, and once the line may take no byte for [`SEND`].
const BREAK: Duration = Duration::from_secs(5);

/// First come, first served: a processor that has nothing else to do asks for it without end, and must not keep the others out.
static CONSOLE: TicketMutex<Option<Console>> = TicketMutex::new(None);
/// The ring, under the console's lock. By itself it is all zeros, which the image need not hold.
static BYTES: [AtomicU8; RING] = [const { AtomicU8::new(0) }; RING];

struct Console {
    uart: Uart16550<PioBackend>,
    /// TSC at the hypervisor's entry: times are counted from here.
    epoch: u64,
    /// Bytes put into the ring and taken out of it, ever.
    put: usize,
    taken: usize,
    /// Since a guest found no room: how many bytes had been taken then, and until when the line has to take another one.
    turned_away: Option<(usize, Timeout<'static>)>,
}

impl Console {
    /// Puts a byte into the ring; when that is full, waits until the line has taken one.
    fn push(&mut self, byte: u8) {
        if self.put - self.taken == RING {
            self.wait();
        }
        BYTES[self.put % RING].store(byte, Ordering::Relaxed);
        self.put += 1;
    }

    /// Gives the line what it can take now.
    fn pump(&mut self) {
        while self.taken < self.put && self.uart.try_send_byte(BYTES[self.taken % RING].load(Ordering::Relaxed)).is_ok()
        {
            self.taken += 1;
        }
    }

    /// Whether a guest may write a line. When the line never takes a byte, what waits for it is lost.
    fn has_room(&mut self) -> bool {
        if self.put - self.taken <= RING - RESERVE {
            return true;
        }
        self.pump();
        match &mut self.turned_away {
            Some((taken, timeout)) if *taken == self.taken => {
                if timeout.is_over() {
                    (self.taken, self.turned_away) = (self.put, None);
                }
            }
            _ => self.turned_away = Some((self.taken, Timeout::new(clock::current(), SEND))),
        }
        self.put - self.taken <= RING - RESERVE
    }

    /// Waits until the line has taken a byte; when it does not, what waits for it is lost.
    fn wait(&mut self) {
        let before = self.taken;
        let sent = poll(clock::current(), SEND, || {
            self.pump();
            self.taken != before
        });
        if !sent {
            self.taken = self.put;
        }
    }
}

impl Write for Console {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for byte in s.bytes() {
            if byte == b'\n' {
                self.push(b'\r');
            }
            self.push(byte);
        }
        self.pump();
        Ok(())
    }
}

struct Logger;

impl Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let room = record.target().rsplit("::").next().unwrap_or("");
        let level = match record.level() {
            log::Level::Error => "error: ",
            log::Level::Warn => "warning: ",
            _ => "",
        };
        if let Some(console) = CONSOLE.lock().as_mut() {
            let ticks = crate::cpu::tsc().wrapping_sub(console.epoch);
            let _ = writeln!(console, "[{ticks:>12}] {room}: {level}{}", record.args());
        }
    }

    fn flush(&self) {}
}

/// Starts the console. `epoch` is the TSC at the hypervisor's entry. Without a UART the hypervisor runs silently.
pub fn init(epoch: u64) {
    // SAFETY: COM1's eight ports belong to the hypervisor for good; this is the only place that makes a driver for them.
    if let Ok(mut uart) = unsafe { Uart16550::new_port(COM1) }
        && uart.init(Config::default()).is_ok()
    {
        *CONSOLE.lock() = Some(Console { uart, epoch, put: 0, taken: 0, turned_away: None });
    }
    if log::set_logger(&Logger).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// Writes one line as it is.
pub fn line(line: fmt::Arguments<'_>) {
    if let Some(console) = CONSOLE.lock().as_mut() {
        let _ = writeln!(console, "{line}");
    }
}

/// Writes one line for the launcher: an event's name and `key=value` pairs. ARCHITECTURE.md lists them.
pub fn event(text: fmt::Arguments<'_>) {
    line(format_args!("@ims {text}"));
}

/// Gives the line what it can take now. Called often, and when nothing else is to do. Returns whether something is left.
pub fn pump() -> bool {
    CONSOLE.lock().as_mut().is_some_and(|console| {
        console.pump();
        console.taken < console.put
    })
}

/// Whether a guest may write a line now without waiting for the console's line.
pub fn has_room() -> bool {
    CONSOLE.lock().as_mut().is_none_or(Console::has_room)
}

/// Waits until everything has left the machine.
pub fn drain() {
    let mut console = CONSOLE.lock();
    let Some(console) = console.as_mut() else { return };
    while console.taken < console.put {
        console.wait();
    }
    // What is left then in the chip's queue is lost.
    let _ = poll(clock::current(), SEND, || console.uart.lsr().contains(LSR::TRANSMITTER_EMPTY));
}

/// Takes the console away from whoever holds it and does not let it go.
///
/// # Safety
/// Only the panic path may call it: if the holder is this very processor, it never runs again.
pub unsafe fn break_lock() {
    // SAFETY: another processor lets it go in that time.
    unsafe { break_open(&CONSOLE, clock::current()) }
}

/// Unlocks what nobody unlocks. A ticket lock that is free must be left alone: it would skip a ticket, and wait for that for ever.
///
/// # Safety
/// Who holds the lock lets it go in [`BREAK`], or never runs again.
unsafe fn break_open<T>(lock: &TicketMutex<T>, clock: &dyn Clock) {
    if !poll(clock, BREAK, || lock.try_lock().is_some()) {
        // SAFETY: the caller vouches for it.
        unsafe { lock.force_unlock() }
    }
}

/// Writes a line for the launcher: `event!("guest-start guest={} name={}", id, name)`.
#[macro_export]
macro_rules! event {
    ($($text:tt)*) => {
        $crate::console::event(format_args!($($text)*))
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::testing::MILLISECONDS;

    #[test]
    fn a_lock_that_is_broken_open_works_whether_it_was_held_or_not() {
        let lock = TicketMutex::new(());
        for held in [false, true, false] {
            if held {
                core::mem::forget(lock.lock());
            }
            // SAFETY: nobody else has the lock, and its guard is forgotten.
            unsafe { break_open(&lock, &MILLISECONDS) };
            assert!(lock.try_lock().is_some(), "held: {held}");
        }
    }
}
