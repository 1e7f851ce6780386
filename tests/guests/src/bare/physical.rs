//! Physical memory at its own addresses: the low 4 GiB, where the boot protocol's page tables map them, and more without the hypervisor
//! (`native`).

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::memory::Memory;

/// First address that need not be mapped.
static MAPPED_END: AtomicU64 = AtomicU64::new(1 << 32);

/// From now on everything below `end` counts as mapped.
///
/// # Safety
/// It is mapped to itself.
pub(super) unsafe fn extend(end: u64) {
    MAPPED_END.store(end, Ordering::Relaxed);
}

/// Physical memory.
#[derive(Clone, Copy, Debug)]
pub struct PhysicalMemory;

impl Memory for PhysicalMemory {
    fn read(&self, address: u64, into: &mut [u8]) -> Option<()> {
        let from = mapped(address, into.len() as u64)?.as_ptr();
        for (n, byte) in into.iter_mut().enumerate() {
            // SAFETY: the range is mapped (`mapped`). Volatile, since devices and the hypervisor write memory, too.
            *byte = unsafe { from.add(n).read_volatile() };
        }
        Some(())
    }
}

/// A pointer to `size` bytes at `address`, if all of them are mapped.
pub fn mapped(address: u64, size: u64) -> Option<NonNull<u8>> {
    let end = address.checked_add(size)?;
    if end > MAPPED_END.load(Ordering::Relaxed) {
        None
    } else {
        NonNull::new(core::ptr::with_exposed_provenance_mut(address as usize))
    }
}
