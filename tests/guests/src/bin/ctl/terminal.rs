//! Lines from the serial port, which has no interrupt.

use guests::bare::{console, idle};
use guests::print;

/// Bytes of a line that are looked at.
const LINE: usize = 64;
/// TSC ticks between two looks at the serial port.
const LOOK: u64 = 100_000;

/// Calls `is_last` with each line, until it returns true.
pub fn each_line(mut is_last: impl FnMut(&str) -> bool) {
    console::listen();
    loop {
        print!("imsvisor> ");
        let (mut line, mut length) = ([0; LINE], 0);
        loop {
            match next() {
                b'\r' => break print!("\r\n"),
                0x7f if length != 0 => {
                    length -= 1;
                    print!("\x08 \x08");
                }
                byte @ b' '..=b'~' if length < LINE => {
                    console::send(byte);
                    line[length] = byte;
                    length += 1;
                }
                _ => {}
            }
        }
        if core::str::from_utf8(&line[..length]).is_ok_and(&mut is_last) {
            return;
        }
    }
}

/// The next byte; until it comes the processor halts.
fn next() -> u8 {
    loop {
        if let Some(byte) = console::receive() {
            return byte;
        }
        idle::wait_until(LOOK, || false);
    }
}
