//! The console on COM1: lines for people through `log`, lines for the launcher through [`event`]. One guest's own terminal is on COM2.

mod ring;
mod serial;
pub mod terminal;

use core::{
    fmt::{self, Write},
    sync::atomic::AtomicU8,
    time::Duration,
};

use log::{LevelFilter, Log, Metadata, Record};
use spin::mutex::TicketMutex;

use self::serial::Serial;
use crate::clock::{self, Clock, poll};

/// I/O port of COM1.
const COM1: u16 = 0x3f8;

/// Bytes that wait for the line.
const RING: usize = 32 * 1024;

/// Bytes that guests leave free, for a line of theirs on each of a few processors, and for the hypervisor's own.
const RESERVE: usize = 4 * 1024;

/// How long a processor may hold the console before a panic of another one breaks it open. Emptying the ring takes longest: 32 KiB at 87 µs
/// a byte are 2.9 s, and once the line may take no byte for 100 ms.
const BREAK: Duration = Duration::from_secs(5);

/// First come, first served: a processor that has nothing else to do asks for it without end, and must not keep the others out.
static CONSOLE: TicketMutex<Option<Console>> = TicketMutex::new(None);
/// The ring, under the console's lock.
static BYTES: [AtomicU8; RING] = [const { AtomicU8::new(0) }; RING];

struct Console {
    serial: Serial,
    /// TSC at the hypervisor's entry: times are counted from here.
    epoch: u64,
}

impl Write for Console {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for byte in s.bytes() {
            if byte == b'\n' {
                self.serial.send(b'\r');
            }
            self.serial.send(byte);
        }
        self.serial.pump();
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
    let serial = unsafe { Serial::open(COM1, &BYTES, RESERVE) };
    *CONSOLE.lock() = serial.map(|serial| Console { serial, epoch });
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

/// Hands both lines the bytes that they can take now, and fetches input from the terminal's line. To be called often, and when nothing
/// else is to do. Returns whether bytes still wait to be sent.
pub fn pump() -> bool {
    let terminal = terminal::pump();
    CONSOLE.lock().as_mut().is_some_and(|console| console.serial.pump()) || terminal
}

/// Whether a guest may write a line now without waiting for the console's line.
pub fn has_room() -> bool {
    CONSOLE.lock().as_mut().is_none_or(|console| console.serial.has_room())
}

/// Waits until everything has left the machine.
pub fn drain() {
    terminal::drain();
    if let Some(console) = CONSOLE.lock().as_mut() {
        console.serial.drain();
    }
}

/// Takes the console away from a processor that holds it and does not let it go.
///
/// # Safety
/// Only the panic path may call it: if the holder is this very processor, it never runs again.
pub unsafe fn break_lock() {
    // SAFETY: another processor lets it go in that time.
    unsafe { break_open(&CONSOLE, clock::current()) }
}

/// Makes the console this processor's, whoever holds it or waits for it.
///
/// # Safety
/// No other processor runs any more.
pub unsafe fn take_over() {
    // SAFETY: the caller vouches for it.
    unsafe { release_all(&CONSOLE) }
}

/// Lets everybody go who holds a ticket.
///
/// # Safety
/// None of them runs any more.
unsafe fn release_all<T>(lock: &TicketMutex<T>) {
    /// More than there are processors.
    const MOST_WAIT: u32 = 4096;
    for _ in 0..MOST_WAIT {
        if lock.try_lock().is_some() {
            return;
        }
        // SAFETY: the caller vouches for it.
        unsafe { lock.force_unlock() }
    }
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
    fn a_lock_whose_holder_and_waiters_are_gone_can_be_taken() {
        static LOCK: TicketMutex<()> = TicketMutex::new(());
        core::mem::forget(LOCK.lock());
        for _ in 0..3 {
            // They wait for good.
            std::thread::spawn(|| drop(LOCK.lock()));
        }
        std::thread::sleep(Duration::from_millis(50));
        // SAFETY: whoever gets the lock meanwhile only lets it go.
        unsafe { release_all(&LOCK) };
        assert!(LOCK.try_lock().is_some());
    }

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
