//! Bring-up.
fn main() {}
