//! What the vectors are for.

/// First vector for devices.
pub const FIRST: u8 = 0x30;
/// Last vector for devices. A guest with a device that shares its processor with another one gets so many (`irq/host_vectors.rs`).
pub const LAST: u8 = 0xdf;
/// How many there are.
pub const COUNT: u16 = LAST as u16 - FIRST as u16 + 1;

/// The vector of the `n`-th slot: slots share them.
pub const fn of_slot(n: u16) -> u8 {
    FIRST + (n % COUNT) as u8
}
