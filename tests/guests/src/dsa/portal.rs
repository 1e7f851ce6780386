//! Where descriptors are handed to the device.

use core::ptr::NonNull;
use core::sync::atomic::{Ordering, fence};

use super::Descriptor;

/// A work queue's portal page.
#[derive(Clone, Copy, Debug)]
pub struct Portal(NonNull<u64>);

// SAFETY: a portal belongs to no processor more than to another; `submit` wants one at a time, which a lock must see to.
unsafe impl Send for Portal {}

impl Portal {
    /// The page at `page`.
    ///
    /// # Safety
    /// `page` is a portal of a DSA, mapped uncached, and the caller answers for the addresses in the descriptors it submits.
    pub const unsafe fn new(page: NonNull<u64>) -> Self {
        Self(page)
    }

    /// Hands a descriptor over: eight stores in order, for machines without MOVDIR64B.
    pub fn submit(&self, descriptor: &Descriptor) {
        // What the descriptor refers to is in memory before it is.
        fence(Ordering::SeqCst);
        for (n, word) in descriptor.words().into_iter().enumerate() {
            // SAFETY: the first 64 bytes of the portal page (`new`).
            unsafe { self.0.add(n).write_volatile(word) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_is_written_whole_to_the_page_s_begin() {
        let mut page = [0u64; 16];
        let descriptor = Descriptor::crc(0x7000, 4096, 0x8000, 9);
        // SAFETY: memory of our own stands for the portal.
        let portal = unsafe { Portal::new(NonNull::from(&mut page).cast()) };
        portal.submit(&descriptor);
        assert_eq!(page[..8], descriptor.words());
        assert_eq!(page[8..], [0; 8]);
    }
}
