//! A device's registers in memory.

use core::ptr::NonNull;

use super::physical;
use crate::dsa::Registers;

/// A range of device memory.
#[derive(Clone, Copy, Debug)]
pub struct DeviceMemory {
    base: NonNull<u8>,
    size: u64,
}

// SAFETY: a device's registers belong to no processor more than to another (`new`).
unsafe impl Send for DeviceMemory {}

impl DeviceMemory {
    /// `size` bytes at the physical address `base`; `None` when they are not mapped.
    ///
    /// # Safety
    /// The range is a device's, not the program's memory, and writing to it breaks no memory of the program.
    pub unsafe fn new(base: u64, size: u64) -> Option<Self> {
        physical::mapped(base, size).map(|base| Self { base, size })
    }

    /// A pointer to `size` bytes at `offset`.
    pub fn pointer(&self, offset: u64, size: u64) -> Option<NonNull<u8>> {
        if offset.checked_add(size)? > self.size {
            return None;
        }
        // SAFETY: the bytes lie in the range.
        Some(unsafe { self.base.add(offset as usize) })
    }

    /// Writes a quadword at once.
    pub fn write_u64(&mut self, offset: u64, value: u64) {
        let pointer = self.pointer(offset, 8).filter(|_| offset.is_multiple_of(8));
        // SAFETY: a register of the device; `new` was told that writing is harmless.
        unsafe { pointer.expect("a quadword of the device").cast().write_volatile(value) }
    }

    fn dword(&self, offset: u64) -> NonNull<u32> {
        match self.pointer(offset, 4) {
            Some(pointer) if offset.is_multiple_of(4) => pointer.cast(),
            _ => panic!("no register at {offset:#x}"),
        }
    }
}

impl Registers for DeviceMemory {
    fn read(&self, offset: u64) -> u32 {
        // SAFETY: a register of the device (`dword`).
        unsafe { self.dword(offset).read_volatile() }
    }

    fn write(&mut self, offset: u64, value: u32) {
        // SAFETY: a register of the device (`dword`); `new` was told that writing is harmless.
        unsafe { self.dword(offset).write_volatile(value) }
    }
}
