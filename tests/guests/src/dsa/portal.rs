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
        self.store(&descriptor.words(), 0);
    }

    /// The same; `note` is asked right before the last store, by which the device has the descriptor. Returns what it says.
    pub fn submit_noting<T>(&self, descriptor: &Descriptor, note: impl FnOnce() -> T) -> T {
        let words = descriptor.words();
        let (last, others) = words.split_last().expect("a descriptor has eight words");
        self.store(others, 0);
        let noted = note();
        self.store(&[*last], others.len());
        noted
    }

    /// Stores words from the page's word `first` on.
    fn store(&self, words: &[u64], first: usize) {
        // What the descriptor refers to is in memory before it is.
        fence(Ordering::SeqCst);
        for (n, word) in words.iter().enumerate() {
            // SAFETY: the first 64 bytes of the portal page (`new`).
            unsafe { self.0.add(first + n).write_volatile(*word) }
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

    #[test]
    fn what_is_noted_is_from_before_the_last_word() {
        let mut page = [0u64; 8];
        let pointer = &raw mut page;
        let descriptor = Descriptor::crc(0x7000, 4096, 0x8000, 9);
        let words = descriptor.words();
        // SAFETY: memory of our own stands for the portal.
        let portal = unsafe { Portal::new(NonNull::new(pointer.cast()).unwrap()) };
        // SAFETY: nobody writes while this looks.
        let noted = portal.submit_noting(&Descriptor { ..descriptor }, || unsafe { pointer.read_volatile() });
        assert_eq!((noted[..7].to_vec(), noted[7]), (words[..7].to_vec(), 0));
        // SAFETY: as above.
        assert_eq!(unsafe { pointer.read_volatile() }, words);
    }
}
