//! The console on COM1: lines for people through `log`, lines for the launcher through [`event`].

use core::fmt::{self, Write};

use log::{LevelFilter, Log, Metadata, Record};
use spin::Mutex;
use uart_16550::{Config, Uart16550, backend::PioBackend};

/// I/O port of COM1.
const COM1: u16 = 0x3f8;

/// Reads of the status register before a byte is given up: a port that nobody answers must not stop the machine.
const SEND_ATTEMPTS: u32 = 100_000;

static CONSOLE: Mutex<Option<Console>> = Mutex::new(None);

struct Console {
    uart: Uart16550<PioBackend>,
    /// TSC at the hypervisor's entry: times are counted from here.
    epoch: u64,
}

impl Console {
    fn send(&mut self, byte: u8) {
        for _ in 0..SEND_ATTEMPTS {
            if self.uart.try_send_byte(byte).is_ok() {
                return;
            }
        }
    }
}

impl Write for Console {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for byte in s.bytes() {
            if byte == b'\n' {
                self.send(b'\r');
            }
            self.send(byte);
        }
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
        *CONSOLE.lock() = Some(Console { uart, epoch });
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

/// Takes the console away from whoever holds it.
///
/// # Safety
/// Only the panic path may call it: the holder never runs again.
pub unsafe fn break_lock() {
    // SAFETY: the holder of the lock is this very processor, which is going to end in the panic handler.
    unsafe { CONSOLE.force_unlock() }
}

/// Writes a line for the launcher: `event!("guest-start guest={} name={}", id, name)`.
#[macro_export]
macro_rules! event {
    ($($text:tt)*) => {
        $crate::console::event(format_args!($($text)*))
    };
}
