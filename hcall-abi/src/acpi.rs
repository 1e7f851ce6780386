//! The platform's word on interrupt message stores, as an ACPI table: for operating systems that look there before they know of
//! any hypervisor.
//!
//! | bytes | field |
//! |---|---|
//! | 0..36 | ACPI table header (ACPI 5.2.6) with signature [`SIGNATURE`], revision 1 |
//! | 36..40 | flags: bit 0 = interrupt message stores must not be used but through a hypercall domain; the others 0 |
//!
//! Without the table nothing is forbidden.

/// The table's signature.
pub const SIGNATURE: [u8; 4] = *b"IMSP";
/// Its revision.
pub const REVISION: u8 = 1;
/// Its length in bytes.
pub const LENGTH: usize = 40;
/// Offset of the flags.
pub const FLAGS: usize = 36;
/// Flag: stores must not be used natively.
pub const FLAG_IMS_FORBIDDEN: u32 = 1 << 0;

/// What a table's body says: the flags. `None` for one that is too short, or not this table.
pub fn flags(table: &[u8]) -> Option<u32> {
    let flags = table.get(FLAGS..FLAGS + 4)?;
    table.starts_with(&SIGNATURE).then(|| u32::from_le_bytes([flags[0], flags[1], flags[2], flags[3]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_table_of_this_name_has_flags() {
        let mut table = [0; LENGTH];
        table[..4].copy_from_slice(&SIGNATURE);
        table[FLAGS] = 1;
        assert_eq!(flags(&table), Some(FLAG_IMS_FORBIDDEN));
        assert_eq!(flags(&table[..LENGTH - 1]), None);
        table[0] = b'X';
        assert_eq!(flags(&table), None);
    }
}
