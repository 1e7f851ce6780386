//! The console: lines for people through `log`, and lines for programs through [`event`]. The terminal of one guest is on another port.
//!
//! Lines go to a serial port ([`open`]: COM1, or the port that command line or firmware name), and to the screen if there is one
//! ([`screen`]). They wait until the port is known.

mod ring;
pub mod screen;
mod serial;
pub mod terminal;

use core::{
    fmt::{self, Write},
    sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering},
    time::Duration,
};

use log::{Level, LevelFilter, Log, Metadata, Record};

pub use self::serial::Speed;
use self::{
    screen::{Framebuffer, Screen},
    serial::Serial,
};
use crate::{
    clock::{self, Clock, poll},
    options::{BAUD, SerialPort},
    sync::Mutex,
};

/// Bytes that wait for the line.
const RING: usize = 32 * 1024;

/// Bytes that guests leave free, for a line of theirs on each of a few processors, and for the hypervisor's own.
const RESERVE: usize = 4 * 1024;

/// How long a processor may hold the console before a panic of another one breaks it open. Emptying the ring takes longest: 32 KiB at 87 µs
/// a byte are 2.9 s, and once the line may take no byte for 100 ms.
const BREAK: Duration = Duration::from_secs(5);

/// First come, first served: a processor that has nothing else to do asks for it without end, and must not keep the others out.
static CONSOLE: Mutex<Option<Console>> = Mutex::new(None);
/// The ring, under the console's lock.
static BYTES: [AtomicU8; RING] = [const { AtomicU8::new(0) }; RING];

/// The console's port; COM1 until another one is chosen.
static PORT: AtomicU16 = AtomicU16::new(SerialPort::COM[0].base());

/// Whether bytes may wait for the line, so that a look needs no lock where none do.
static MAY_WAIT: AtomicBool = AtomicBool::new(false);

struct Console {
    serial: Serial,
    screen: Option<Screen>,
    /// TSC at the hypervisor's entry: times are counted from here.
    epoch: u64,
}

impl Write for Serial {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for byte in s.bytes() {
            if byte == b'\n' {
                self.send(b'\r');
            }
            self.send(byte);
        }
        if self.pump() || !self.is_open() {
            MAY_WAIT.store(true, Ordering::Release);
        }
        Ok(())
    }
}

impl Console {
    /// Writes a line on the screen, if there is one.
    fn show(&mut self, line: fmt::Arguments<'_>, bright: bool) {
        if let Some(screen) = &mut self.screen {
            screen.bright = bright;
            let _ = writeln!(screen, "{line}");
        }
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
            Level::Error => "error: ",
            Level::Warn => "warning: ",
            _ => "",
        };
        if let Some(console) = CONSOLE.lock().as_mut() {
            let ticks = crate::cpu::tsc().wrapping_sub(console.epoch);
            let _ = writeln!(console.serial, "[{ticks:>12}] {room}: {level}{}", record.args());
            console.show(format_args!("{room}: {level}{}", record.args()), record.level() <= Level::Warn);
        }
    }

    fn flush(&self) {}
}

/// Starts the console, whose lines wait until it has a port. `epoch` is the TSC at the hypervisor's entry.
pub fn init(epoch: u64) {
    *CONSOLE.lock() = Some(Console { serial: Serial::new(&BYTES, RESERVE), screen: None, epoch });
    if log::set_logger(&Logger).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// Gives the console its port, if one answers there. Returns its rate; none where nothing answers, or where the console has a port
/// already. Without a UART the hypervisor runs silently.
///
/// # Safety
/// The port's eight I/O ports are nobody else's, and are no device's that does something else.
pub unsafe fn open(port: SerialPort, speed: Speed) -> Option<u32> {
    let mut console = CONSOLE.lock();
    let serial = console.as_mut().map(|console| &mut console.serial).filter(|serial| !serial.is_open())?;
    // SAFETY: the caller vouches for the ports; they belong to the hypervisor from now on, and the terminal takes another one.
    let baud = unsafe { serial.open(port, speed) }?;
    PORT.store(port.base(), Ordering::Release);
    Some(baud)
}

/// The console's port.
pub fn port() -> SerialPort {
    SerialPort::new(PORT.load(Ordering::Acquire).into()).unwrap_or(SerialPort::COM[0])
}

/// Whether the console has its port.
pub fn is_open() -> bool {
    CONSOLE.lock().as_ref().is_some_and(|console| console.serial.is_open())
}

/// Shows what follows on a screen as well, from [`screen_is_mapped`] on. Returns whether the screen holds a character.
///
/// # Safety
/// The framebuffer's memory is a screen's, and stays mapped once it is.
pub unsafe fn open_screen(framebuffer: Framebuffer) -> bool {
    let Some(console) = &mut *CONSOLE.lock() else { return false };
    // SAFETY: the caller vouches for the memory.
    console.screen = unsafe { Screen::open(framebuffer) };
    console.screen.is_some()
}

/// The screen can be painted from now on.
///
/// # Safety
/// The framebuffer's memory is mapped for good.
pub unsafe fn screen_is_mapped() {
    screen::resume();
}

/// Writes one line as it is.
pub fn line(line: fmt::Arguments<'_>) {
    if let Some(console) = CONSOLE.lock().as_mut() {
        let _ = writeln!(console.serial, "{line}");
        console.show(line, false);
    }
}

/// Writes one line for the launcher: an event's name and `key=value` pairs. `boot/EVENTS.md` lists them. The screen shows it for people.
pub fn event(text: fmt::Arguments<'_>) {
    if let Some(console) = CONSOLE.lock().as_mut() {
        let _ = writeln!(console.serial, "@ims {text}");
        console.show(text, true);
    }
}

/// Writes one line on the screen alone.
pub fn note(line: fmt::Arguments<'_>) {
    if let Some(console) = CONSOLE.lock().as_mut() {
        console.show(line, true);
    }
}

/// Hands both lines the bytes that they can take now, fetches input from the terminal's line, and paints a little. To be called often,
/// and when nothing else is to do. Returns whether bytes still wait to be sent, or text to be painted.
pub fn pump() -> bool {
    let (terminal, screen) = (terminal::pump(), screen::pump());
    MAY_WAIT.load(Ordering::Acquire) && pump_console() || terminal || screen
}

/// The console's part of [`pump`].
#[inline(never)]
fn pump_console() -> bool {
    let mut console = CONSOLE.lock();
    let Some(serial) = console.as_mut().map(|console| &mut console.serial) else { return false };
    let waits = serial.pump();
    // Without a port they wait for that.
    MAY_WAIT.store(waits || !serial.is_open(), Ordering::Release);
    waits
}

/// Whether a guest may write a line now without waiting for the console's line.
pub fn has_room() -> bool {
    CONSOLE.lock().as_mut().is_none_or(|console| console.serial.has_room())
}

/// Waits until everything has left the machine and is on the screen. A console without a port takes COM1 for that: the run ends before the
/// choice was made, and says why.
pub fn drain() {
    terminal::drain();
    // SAFETY: COM1's eight ports belong to the hypervisor for good, and no terminal is open before the console.
    let _ = unsafe { open(port(), Speed::Baud(BAUD)) };
    if let Some(console) = CONSOLE.lock().as_mut() {
        console.serial.drain();
    }
    // Last: a serial line needs no screen.
    screen::drain();
}

/// Takes the console away from a processor that holds it and does not let it go.
///
/// # Safety
/// Only the panic path may call it: if the holder is this very processor, it never runs again.
pub unsafe fn break_lock() {
    // SAFETY: another processor lets it go in that time.
    unsafe {
        break_open(&CONSOLE, clock::current());
        screen::break_lock();
    }
}

/// Takes the console for this processor, also from processors that hold it or wait for it.
///
/// # Safety
/// No other processor runs any more.
pub unsafe fn take_over() {
    // SAFETY: the caller vouches for it.
    unsafe {
        release_all(&CONSOLE);
        screen::take_over();
    }
}

/// More processors than can hold or wait for a lock.
const MOST_WAIT: u32 = 4096;

/// Lets everybody go who holds a ticket.
///
/// # Safety
/// None of them runs any more.
unsafe fn release_all<T>(lock: &Mutex<T>) {
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
/// The ticket after that of a processor that has stopped may be of one that has stopped as well, while it waited: so each ticket gets
/// [`BREAK`], until a processor that runs could have the lock at once.
///
/// # Safety
/// Who gets the lock lets it go in [`BREAK`], or never runs again.
unsafe fn break_open<T>(lock: &Mutex<T>, clock: &dyn Clock) {
    for _ in 0..MOST_WAIT {
        if poll(clock, BREAK, || lock.try_lock().is_some()) {
            return;
        }
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
    use crate::{clock::testing::MILLISECONDS, sync::testing::ask_and_be_gone};

    #[test]
    fn a_lock_whose_holder_and_waiters_are_gone_can_be_taken() {
        let lock = Mutex::new(());
        (0..4).for_each(|_| ask_and_be_gone(&lock));
        // SAFETY: nobody has a guard of the lock.
        unsafe { release_all(&lock) };
        assert!(lock.try_lock().is_some());
    }

    #[test]
    fn a_lock_whose_holder_and_waiters_are_gone_can_be_broken_open() {
        let lock = Mutex::new(());
        (0..3).for_each(|_| ask_and_be_gone(&lock));
        // SAFETY: nobody has a guard of the lock.
        unsafe { break_open(&lock, &MILLISECONDS) };
        assert!(lock.try_lock().is_some());
    }

    #[test]
    fn a_lock_that_is_broken_open_works_whether_it_was_held_or_not() {
        let lock = Mutex::new(());
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
