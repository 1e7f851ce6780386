//! A guest's memory, and the hypervisor's access to it.
//!
//! The guest can change its memory at any time, so no Rust reference ever points there. Bytes are copied in and out, each once, by volatile
//! accesses.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::FrameSource;
use crate::{
    addr::{Gpa, Hpa, PAGE_SIZE},
    cpu::fiber,
};

/// Guest-physical memory from 0, contiguous on the host.
#[derive(Debug)]
pub struct Ram {
    base: Hpa,
    len: u64,
}

/// An access outside of the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outside;

/// Guest memory comes in pages as large as the EPT's and the second-level tables' large pages.
pub const GRANULE: u64 = 2 << 20;

impl Ram {
    /// `len` bytes, zeroed; a multiple of [`GRANULE`]. `None` when the machine does not have that much left. A fiber may stop meanwhile.
    pub fn alloc(frames: &impl FrameSource, len: u64) -> Option<Self> {
        if len == 0 || !len.is_multiple_of(GRANULE) {
            return None;
        }
        let base = frames.alloc(len / PAGE_SIZE, GRANULE)?;
        for at in (0..len).step_by(GRANULE as usize) {
            // SAFETY: the granule is a part of what was allocated just now.
            unsafe { frames.zero(Hpa::new(base.as_u64() + at), GRANULE / PAGE_SIZE) };
            fiber::cond_resched();
        }
        Some(Self { base, len })
    }

    /// Gives the memory back.
    ///
    /// # Safety
    /// No EPT, no second-level table and no cache of either leads there any more.
    pub unsafe fn free(self, frames: &impl FrameSource) {
        // SAFETY: the caller vouches that neither the guest nor its devices reach it.
        unsafe { frames.free(self.base, self.len / PAGE_SIZE) }
    }

    /// Where it begins on the host.
    pub fn base(&self) -> Hpa {
        self.base
    }

    /// Its bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no bytes. It always has.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies out of the guest.
    pub fn read(&self, from: Gpa, into: &mut [u8]) -> Result<(), Outside> {
        let source = self.pointer(from, into.len())?.cast_const();
        if is_long(into.len()) {
            // SAFETY: `pointer` has checked the range.
            unsafe { copy_words(source, into.as_mut_ptr(), into.len() / 8) };
            return Ok(());
        }
        let (words, rest) = into.as_chunks_mut::<8>();
        for (n, word) in words.iter_mut().enumerate() {
            // SAFETY: `pointer` has checked the range.
            *word = unsafe { load(source.add(8 * n)) }.to_le_bytes();
        }
        let copied = 8 * words.len();
        for (n, byte) in rest.iter_mut().enumerate() {
            // SAFETY: `pointer` has checked the range.
            *byte = unsafe { source.add(copied + n).read_volatile() };
        }
        Ok(())
    }

    /// The 8 bytes at `gpa`.
    pub fn read_u64(&self, gpa: Gpa) -> Result<u64, Outside> {
        // SAFETY: `pointer` has checked the range.
        Ok(unsafe { load(self.pointer(gpa, 8)?) })
    }

    /// Copies into the guest.
    pub fn write(&self, to: Gpa, bytes: &[u8]) -> Result<(), Outside> {
        let target = self.pointer(to, bytes.len())?;
        if is_long(bytes.len()) {
            // SAFETY: `pointer` has checked the range; nothing of ours lies there.
            unsafe { copy_words(bytes.as_ptr(), target, bytes.len() / 8) };
            return Ok(());
        }
        let words = if target.cast::<u64>().is_aligned() { bytes.as_chunks::<8>().0 } else { &[] };
        for (n, word) in words.iter().enumerate() {
            // SAFETY: `pointer` has checked the range, nothing of ours lies there, and the pointer is aligned.
            unsafe { target.cast::<u64>().add(n).write_volatile(u64::from_le_bytes(*word)) };
        }
        for (n, byte) in bytes.iter().enumerate().skip(8 * words.len()) {
            // SAFETY: `pointer` has checked the range; nothing of ours lies there.
            unsafe { target.add(n).write_volatile(*byte) };
        }
        Ok(())
    }

    /// Writes `new` to the 4 bytes at `gpa`, atomically against the guest's processors. Returns the old value. An address that is not a
    /// multiple of 4 counts as outside.
    pub fn swap_u32(&self, gpa: Gpa, new: u32) -> Result<u32, Outside> {
        let target = self.pointer(gpa, 4)?;
        if !gpa.is_aligned(4) {
            return Err(Outside);
        }
        // SAFETY: `pointer` has checked the range, and the pointer is aligned; all other access of ours is volatile.
        Ok(unsafe { AtomicU32::from_ptr(target.cast()) }.swap(new, Ordering::SeqCst))
    }

    /// Writes `new` if memory holds `old`, of 4 or 8 `bytes`, atomically against the guest's processors. Returns `false` if memory held
    /// another value. An address that is not a multiple of `bytes` counts as outside.
    pub fn compare_exchange(&self, gpa: Gpa, bytes: usize, old: u64, new: u64) -> Result<bool, Outside> {
        let target = self.pointer(gpa, bytes)?;
        if !gpa.is_aligned(bytes as u64) {
            return Err(Outside);
        }
        match bytes {
            // SAFETY: `pointer` has checked the range, and the pointer is aligned; all other access of ours is volatile.
            4 => Ok(unsafe { AtomicU32::from_ptr(target.cast()) }
                .compare_exchange(old as u32, new as u32, Ordering::SeqCst, Ordering::Relaxed)
                .is_ok()),
            // SAFETY: as for 4 bytes.
            8 => Ok(unsafe { AtomicU64::from_ptr(target.cast()) }
                .compare_exchange(old, new, Ordering::SeqCst, Ordering::Relaxed)
                .is_ok()),
            _ => Err(Outside),
        }
    }

    /// Where `len` bytes at `gpa` are on the host, if all of them are the guest's.
    fn pointer(&self, gpa: Gpa, len: usize) -> Result<*mut u8, Outside> {
        if self.len.checked_sub(len as u64).is_none_or(|last| gpa.as_u64() > last) {
            return Err(Outside);
        }
        Ok((self.base.as_u64() + gpa.as_u64()) as *mut u8)
    }
}

/// Whether REP is worth its start; it copies whole words.
fn is_long(bytes: usize) -> bool {
    bytes >= 256 && bytes.is_multiple_of(8)
}

/// Copies words upwards: each is loaded once and stored once.
///
/// # Safety
/// Both ranges are mapped, and do not overlap.
unsafe fn copy_words(from: *const u8, to: *mut u8, words: usize) {
    // SAFETY: the caller vouches for the bytes, and the direction flag is clear by the ABI. Assembler for the same reason as in `load`.
    unsafe {
        core::arch::asm!(
            "rep movsq",
            inout("rcx") words => _,
            inout("rsi") from => _,
            inout("rdi") to => _,
            options(nostack, preserves_flags),
        );
    }
}

/// Loads 8 bytes, at any alignment, that other code may change meanwhile. Each byte is loaded once.
///
/// # Safety
/// The bytes are mapped.
unsafe fn load(from: *const u8) -> u64 {
    let value: u64;
    // SAFETY: the caller vouches for the bytes. Assembler, because to Rust a volatile load has to be aligned, and memory that a guest
    // writes meanwhile is none that another load may read.
    unsafe {
        core::arch::asm!("mov {}, [{}]", lateout(reg) value, in(reg) from, options(nostack, preserves_flags, readonly));
    }
    value
}

#[cfg(test)]
mod tests {
    use super::super::testing::TestFrames;
    use super::*;

    #[test]
    fn bytes_go_in_and_out_and_never_outside() {
        let frames = TestFrames::default();
        let ram = Ram::alloc(&frames, GRANULE).unwrap();
        ram.write(Gpa::new(0x1003), b"hello, guest").unwrap();
        let mut back = [0; 12];
        ram.read(Gpa::new(0x1003), &mut back).unwrap();
        assert_eq!(&back, b"hello, guest");
        ram.write(Gpa::new(0x2000), &7u64.to_le_bytes()).unwrap();
        let mut word = [0; 8];
        ram.read(Gpa::new(0x2000), &mut word).unwrap();
        assert_eq!(u64::from_le_bytes(word), 7);
        for gpa in [GRANULE, GRANULE - 3, u64::MAX, u64::MAX - 3] {
            assert_eq!(ram.write(Gpa::new(gpa), &[1; 4]), Err(Outside), "{gpa:#x}");
            assert_eq!(ram.read(Gpa::new(gpa), &mut [0; 4]), Err(Outside), "{gpa:#x}");
        }
        assert_eq!(ram.write(Gpa::new(GRANULE - 4), &[1; 4]), Ok(()));
    }

    #[test]
    fn memory_starts_as_zeros_and_goes_back() {
        let frames = TestFrames::default();
        assert!(Ram::alloc(&frames, GRANULE + 1).is_none());
        let ram = Ram::alloc(&frames, GRANULE).unwrap();
        let mut bytes = [1; 64];
        ram.read(Gpa::new(GRANULE - 64), &mut bytes).unwrap();
        assert_eq!(bytes, [0; 64]);
        // SAFETY: nothing refers to it.
        unsafe { ram.free(&frames) };
        assert_eq!(frames.in_use(), 0);
    }
}
