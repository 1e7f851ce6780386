//! Says what it was told, and ends.
#![no_std]
#![no_main]

use guests::bare::Guest;
use guests::println;

guests::guest!(main);

fn main(guest: &Guest) -> u8 {
    println!("hello: command line \"{}\"", guest.command_line);
    for range in guest.boot.memory_map().filter(|range| range.is_ram()) {
        println!("hello: memory {:#x} to {:#x}", range.start, range.start + range.size);
    }
    println!("@result memory_kib={} errors=0", guest.boot.memory_size() >> 10);
    0
}
