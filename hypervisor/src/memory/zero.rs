//! Fills memory with zeros, as fast as the processor can.
//!
//! A guest's memory is hundreds of megabytes. Stores of 32 bytes take a quarter of the instructions that stores of 8 bytes take, and stores
//! that bypass the caches leave them to the running guests.

use core::mem::MaybeUninit;

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
    // Not zeroed: that might take a register of the vector units before it is kept.
    let mut kept = MaybeUninit::<Ymm>::uninit();
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
            kept = in(reg) kept.as_mut_ptr(),
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

    /// For a call from assembler.
    extern "C" fn store_one_round(start: *mut u8) {
        // SAFETY: the test hands over a round of its own, aligned, where AVX is enabled.
        unsafe { store_rounds(start, 1) }
    }

    #[test]
    fn the_register_that_is_used_keeps_its_value() {
        #[repr(align(32))]
        struct Round([u8; ROUND]);
        if !std::arch::is_x86_feature_detected!("avx") {
            return;
        }
        let (before, mut after, mut round) = ([0x1234_5678_9abc_def0_u64; 4], [0_u64; 4], Round([0xa5; ROUND]));
        // SAFETY: the function has the C calling convention, and its round is aligned.
        unsafe {
            core::arch::asm!(
                "vmovdqu ymm0, [{before}]",
                "call {store}",
                "vmovdqu [{after}], ymm0",
                before = in(reg) before.as_ptr(),
                after = in(reg) after.as_mut_ptr(),
                store = sym store_one_round,
                inout("rdi") round.0.as_mut_ptr() => _,
                // Those that a call need not keep.
                out("rax") _, out("rcx") _, out("rdx") _, out("rsi") _, out("r8") _, out("r9") _, out("r10") _, out("r11") _,
                out("xmm0") _,
            );
        }
        assert_eq!((after, round.0), (before, [0; ROUND]));
    }

    #[test]
    fn a_little_memory_becomes_zero_too() {
        let mut bytes = [0xa5; 100];
        // SAFETY: the bytes are those of the array.
        unsafe { zero(bytes.as_mut_ptr().add(1), 98) };
        assert!(bytes[1..99].iter().all(|byte| *byte == 0) && (bytes[0], bytes[99]) == (0xa5, 0xa5));
    }
}
