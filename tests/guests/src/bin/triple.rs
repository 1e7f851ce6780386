//! Says a line and shuts down by a triple fault: the hypervisor and its other guests must go on.
#![no_std]
#![no_main]

use guests::bare::{Guest, interrupts};
use guests::println;

guests::guest!(main);

fn main(_: &Guest) -> u8 {
    println!("triple: loading an empty interrupt table");
    println!("@result errors=0");
    interrupts::triple_fault()
}
