//! Layouts only: registers, descriptors, table entries, fault reasons. Each module names the manual's part it follows.

pub(crate) mod descriptor;
pub(crate) mod irte;
pub(crate) mod page_request;
pub(crate) mod pid;
pub mod reason;
pub(crate) mod regs;
pub(crate) mod tables;

/// Bits `high` to `low` of `value`, shifted down.
pub(crate) const fn bits(value: u64, high: u32, low: u32) -> u64 {
    (value >> low) & mask(high - low, 0)
}

/// A mask of the bits `high` to `low`.
pub(crate) const fn mask(high: u32, low: u32) -> u64 {
    (u64::MAX >> (63 - high)) & (u64::MAX << low)
}

/// Bit `index` of `value`.
pub(crate) const fn bit(value: u64, index: u32) -> bool {
    value >> index & 1 != 0
}
