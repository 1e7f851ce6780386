//! Echoes the lines typed at its serial port, until a line says `exit`.
//!
//! It writes a prompt without a line end and each byte as it comes, as a shell does; `tick` has it wait for a while first, with the
//! processor halted.
#![no_std]
#![no_main]

use guests::bare::{Guest, console, idle};
use guests::{print, println};

guests::guest!(main);

/// Bytes of a line that are looked at; the rest of a longer one is only echoed.
const LINE: usize = 64;
/// TSC ticks between two looks at the serial port, which has no interrupt.
const LOOK: u64 = 100_000;
/// TSC ticks that `tick` waits.
const TICK: u64 = 20_000_000;

fn main(_: &Guest) -> u8 {
    console::listen();
    let mut received = 0;
    loop {
        print!("> ");
        let (mut line, mut length) = ([0; LINE], 0);
        loop {
            let byte = read();
            received += 1;
            match byte {
                b'\r' => break print!("\r\n"),
                0x7f if length != 0 => {
                    length -= 1;
                    print!("\x08 \x08");
                }
                0x7f => {}
                _ => {
                    console::send(byte);
                    if let Some(place) = line.get_mut(length) {
                        (*place, length) = (byte, length + 1);
                    }
                }
            }
        }
        match &line[..length] {
            b"exit" => break,
            b"tick" => wait(TICK),
            line => println!("{} bytes", line.len()),
        }
    }
    println!("@result received={received} errors=0");
    0
}

/// The next byte; until it comes the processor halts.
fn read() -> u8 {
    loop {
        if let Some(byte) = console::receive() {
            return byte;
        }
        wait(LOOK);
    }
}

/// Halts for so many TSC ticks.
fn wait(ticks: u64) {
    idle::wait_until(ticks, || false);
}
