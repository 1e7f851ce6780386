//! Little-endian fields of a table.

/// The `N` bytes at `at`.
fn array<const N: usize>(table: &[u8], at: usize) -> Option<[u8; N]> {
    table.get(at..)?.first_chunk().copied()
}

/// The byte at `at`.
pub(super) fn u8_at(table: &[u8], at: usize) -> Option<u8> {
    table.get(at).copied()
}

/// The 16-bit field at `at`.
pub(super) fn u16_at(table: &[u8], at: usize) -> Option<u16> {
    array(table, at).map(u16::from_le_bytes)
}

/// The 32-bit field at `at`.
pub(super) fn u32_at(table: &[u8], at: usize) -> Option<u32> {
    array(table, at).map(u32::from_le_bytes)
}

/// The 64-bit field at `at`.
pub(super) fn u64_at(table: &[u8], at: usize) -> Option<u64> {
    array(table, at).map(u64::from_le_bytes)
}

/// Whether the bytes add up to zero (ACPI 6.5, section 5.2.3.2).
pub(super) fn sums_to_zero(table: &[u8]) -> bool {
    table.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte)) == 0
}
