//! demo
#![no_std]
#![no_main]
guests::guest!(main);
fn main(_: &guests::bare::Guest) -> u8 {
    0
}
