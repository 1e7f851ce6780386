//! Fills memory with zeros, as fast as the processor can.
//!
//! A guest's memory is hundreds of megabytes. 32 bytes a store take a quarter of the instructions of 8 bytes a step, and stores that pass
//! the caches by leave them to the guests that run.

use crate::cpu::fpu::{self, Ymm};

/// Less than this is not worth the preparation.
const LARGE: usize = 1 << 20;
/// Bytes of a round of stores.
const ROUND: usize = 512;

/// Fills `bytes` bytes at `start` with zeros.
///
/// # Safety
/// The bytes are mapped, and nobody else uses them.
pub(super) unsafe fn zero(start: *mut u8, bytes: usize) {
    let is_large = bytes >= LARGE && bytes.is_multiple_of(ROUND) && (start as usize).is_multiple_of(size_of::<Ymm>());
    // SAFETY: the caller vouches for the bytes; they are a multiple of a round, and aligned.
    if is_large && fpu::with_avx(|| unsafe { store_rounds(start, bytes / ROUND) }) {
        return;
    }
    // SAFETY: the caller vouches for the bytes.
    unsafe { start.write_bytes(0, bytes) }
}

/// Stores `rounds` times [`ROUND`] zeros from `start` on. All registers keep their values: a guest's may be among them.
///
/// # Safety
/// The bytes are mapped, nobody else uses them, `start` is aligned to 32 bytes, and AVX is enabled.
unsafe fn store_rounds(start: *mut u8, rounds: usize) {
    let mut kept = Ymm::default();
    // SAFETY: the caller vouches for the bytes, their alignment, and AVX. The register is put back, and `vpxor` of a register with itself
    // and the moves change no flags.
    unsafe {
        core::arch::asm!(
            "vmovdqu [{kept}], ymm0",
            "vpxor xmm0, xmm0, xmm0",
            "2:",
            ".irp distance, 0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448, 480",
            "vmovntdq [{at} + \\distance], ymm0",
            ".endr",
            "add {at}, 512",
            "dec {rounds}",
            "jnz 2b",
            "sfence",
            "vmovdqu ymm0, [{kept}]",
            kept = in(reg) &raw mut kept,
            at = inout(reg) start => _,
            rounds = inout(reg) rounds => _,
            options(nostack),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_it_becomes_zero_and_nothing_beside_it() {
        // A privileged instruction enables AVX in the hypervisor; here the operating system has.
        if !std::arch::is_x86_feature_detected!("avx") {
            return;
        }
        let mut bed = vec![0xa5_u8; LARGE + 128];
        let first = 32 + bed.as_ptr().align_offset(32);
        // SAFETY: the bytes lie in the bed, behind at least 32 others, and are aligned.
        unsafe { store_rounds(bed.as_mut_ptr().add(first), LARGE / ROUND) };
        let (before, rest) = bed.split_at(first);
        let (zeros, behind) = rest.split_at(LARGE);
        assert!(zeros.iter().all(|byte| *byte == 0));
        assert!(before.len() >= 32 && behind.len() >= 32);
        assert!(before.iter().chain(behind).all(|byte| *byte == 0xa5));
    }

    #[test]
    fn a_little_memory_becomes_zero_too() {
        let mut bytes = [0xa5; 100];
        // SAFETY: the bytes are those of the array.
        unsafe { zero(bytes.as_mut_ptr().add(1), 98) };
        assert!(bytes[1..99].iter().all(|byte| *byte == 0) && (bytes[0], bytes[99]) == (0xa5, 0xa5));
    }
}
