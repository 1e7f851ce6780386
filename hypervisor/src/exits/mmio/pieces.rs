//! How an access to trapped memory is divided into bus accesses.
#![forbid(unsafe_code)]

use crate::{addr::Gpa, exits::width::Width};

/// Divides `bytes` bytes at an address into bus accesses. An access as wide as a general register is one piece, at any alignment; others
/// are divided into naturally aligned pieces. Each piece has its address, its width, and its place in the access. No address wraps around.
pub fn pieces(from: Gpa, bytes: usize) -> impl Iterator<Item = (Gpa, Width, usize)> {
    let whole = bytes.is_power_of_two() && bytes <= 8;
    let mut done = 0;
    core::iter::from_fn(move || {
        let left = bytes.checked_sub(done).filter(|&left| left > 0)? as u64;
        let gpa = from.checked_add(done as u64)?;
        let most = if whole { 8 } else { 1 << gpa.as_u64().trailing_zeros().min(3) };
        let width = Width::at_most(left.min(most));
        let at = done;
        done += width.bytes();
        Some((gpa, width, at))
    })
}

/// The piece at `at` of the bytes of an access; bytes behind the end count as zeros.
pub fn piece_of(bytes: &[u8], width: Width, at: usize) -> u64 {
    let mut value = [0; 8];
    value.iter_mut().zip(bytes.iter().skip(at).take(width.bytes())).for_each(|(byte, new)| *byte = *new);
    u64::from_le_bytes(value)
}

/// Puts a piece that was read into the bytes of an access.
pub fn put_piece(bytes: &mut [u8], width: Width, at: usize, value: u64) {
    let value = value.to_le_bytes();
    bytes.iter_mut().skip(at).zip(&value[..width.bytes()]).for_each(|(byte, read)| *byte = *read);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn widths(from: u64, bytes: usize) -> Vec<(u64, usize)> {
        pieces(Gpa::new(from), bytes).map(|(gpa, width, _)| (gpa.as_u64(), width.bytes())).collect()
    }

    #[test]
    fn registers_go_whole_and_other_accesses_in_aligned_pieces() {
        assert_eq!(widths(0x1003, 4), [(0x1003, 4)]);
        assert_eq!(widths(0x1001, 8), [(0x1001, 8)]);
        assert_eq!(widths(0x1001, 7), [(0x1001, 1), (0x1002, 2), (0x1004, 4)]);
        assert_eq!(widths(0x1004, 16), [(0x1004, 4), (0x1008, 8), (0x1010, 4)]);
        assert_eq!(widths(0x1000, 0), []);
        assert_eq!(widths(u64::MAX, 3), [(u64::MAX, 1)], "it does not wrap around");
    }

    proptest! {
        #[test]
        fn every_byte_is_in_one_piece_and_keeps_its_place(from in 0u64..64, bytes in 0usize..65) {
            let all: Vec<u8> = (1..=bytes as u8).collect();
            let (mut copy, mut next) = (vec![0; bytes], 0);
            for (gpa, width, at) in pieces(Gpa::new(from), bytes) {
                prop_assert_eq!((gpa.as_u64(), at), (from + next as u64, next));
                prop_assert!(width.bytes() == bytes || gpa.as_u64().is_multiple_of(width.bytes() as u64));
                put_piece(&mut copy, width, at, piece_of(&all, width, at));
                next += width.bytes();
            }
            prop_assert_eq!(copy, all);
        }
    }
}
