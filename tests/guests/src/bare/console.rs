//! The console: a 16550 at port 0x3F8.

use core::fmt::{self, Write};

use super::port;

const DATA: u16 = 0x3f8;
const LINE_CONTROL: u16 = DATA + 3;
const LINE_STATUS: u16 = DATA + 5;
const EIGHT_BITS: u8 = 0b11;
const FIFO_CONTROL: u16 = DATA + 2;
/// The FIFOs are on.
const FIFO_ENABLE: u8 = 1 << 0;
const DATA_READY: u8 = 1 << 0;
const TRANSMITTER_EMPTY: u8 = 1 << 5;
/// Nothing is on its way either.
const TRANSMITTER_IDLE: u8 = 1 << 6;
/// Reads of the line status before a byte is sent anyway.
const POLLS: usize = 10_000;

struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(send);
        Ok(())
    }
}

/// Eight bits, no parity, one stop bit; the speed stays as it is.
pub(super) fn load() {
    // SAFETY: the serial port has no effect on memory.
    unsafe { port::write_u8(LINE_CONTROL, EIGHT_BITS) }
}

/// Lets 16 bytes come in before one has to be read; without this it is one.
pub fn listen() {
    // SAFETY: the serial port has no effect on memory.
    unsafe { port::write_u8(FIFO_CONTROL, FIFO_ENABLE) }
}

/// A byte that has come in.
pub fn receive() -> Option<u8> {
    // SAFETY: the serial port has no effect on memory.
    unsafe { (port::read_u8(LINE_STATUS) & DATA_READY != 0).then(|| port::read_u8(DATA)) }
}

/// Sends a byte.
pub fn send(byte: u8) {
    // SAFETY: the serial port has no effect on memory.
    unsafe {
        let _ = (0..POLLS).find(|_| port::read_u8(LINE_STATUS) & TRANSMITTER_EMPTY != 0);
        port::write_u8(DATA, byte);
    }
}

/// Waits until the line has taken everything.
pub(super) fn drain() {
    // SAFETY: the serial port has no effect on memory.
    let _ = (0..POLLS).find(|_| unsafe { port::read_u8(LINE_STATUS) } & TRANSMITTER_IDLE != 0);
}

/// Writes formatted text. [`println!`](crate::println) is the usual way.
pub fn print(arguments: fmt::Arguments) {
    // `send` cannot fail.
    let _ = Console.write_fmt(arguments);
}

/// Writes to the console, without a line end.
#[macro_export]
macro_rules! print {
    ($($arguments:tt)*) => { $crate::bare::console::print(format_args!($($arguments)*)) };
}

/// Writes a line to the console.
#[macro_export]
macro_rules! println {
    () => { $crate::bare::console::print(format_args!("\n")) };
    ($($arguments:tt)*) => { $crate::bare::console::print(format_args!("{}\n", format_args!($($arguments)*))) };
}
