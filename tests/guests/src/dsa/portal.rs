//! Where descriptors are handed to the device.

use core::arch::asm;
use core::arch::x86_64::__cpuid_count;
use core::ptr::NonNull;
use core::sync::atomic::{Ordering, fence};

use super::{Descriptor, spec};
use crate::pci::{self, ConfigSpace, Function};

/// CPUID leaf 7, ECX.
const MOVDIR64B: u32 = 1 << 28;
const ENQCMD: u32 = 1 << 29;
/// How often a descriptor is handed to a shared work queue that has no room.
const TRIES: u32 = 1_000_000;

/// How a descriptor gets to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubmitMethod {
    /// One store of 64 bytes (MOVDIR64B).
    Whole,
    /// Eight stores of 8 bytes, because the device says that it takes them.
    Pieces,
    /// Eight stores of 8 bytes, because the processor has no larger ones. A real device would not take them.
    PiecesForLack,
}

impl SubmitMethod {
    /// That to a device with this subsystem, on a processor with this ECX of CPUID leaf 7.
    const fn to(subsystem: u16, features: u32) -> Self {
        match (subsystem, features & MOVDIR64B != 0) {
            (spec::SUBSYSTEM_PIECES | spec::SUBSYSTEM_SLOW_STORE, _) => Self::Pieces,
            (_, true) => Self::Whole,
            (_, false) => Self::PiecesForLack,
        }
    }

    /// The way to a device, from the processor that this runs on.
    pub fn of(config: &impl ConfigSpace, function: Function) -> Self {
        Self::to(pci::subsystem(config, function), features())
    }
}

/// CPUID leaf 7, ECX.
fn features() -> u32 {
    if __cpuid_count(0, 0).eax >= 7 { __cpuid_count(7, 0).ecx } else { 0 }
}

/// Whether the processor has ENQCMDS, which is all that a real device's shared work queue takes.
pub fn has_enqcmds() -> bool {
    features() & ENQCMD != 0
}

/// A descriptor as it lies in memory.
#[repr(C, align(64))]
struct Words([u64; 8]);

/// A work queue's portal page.
#[derive(Clone, Copy, Debug)]
pub struct Portal {
    page: NonNull<u64>,
    method: SubmitMethod,
}

// SAFETY: a portal belongs to no processor more than to another; `submit` wants one at a time, which a lock must see to.
unsafe impl Send for Portal {}

impl Portal {
    /// The page at `page`.
    ///
    /// # Safety
    /// `page` is a portal of a DSA, mapped uncached, and the caller answers for the addresses in the descriptors it submits. The
    /// processor can do what `way` says.
    pub const unsafe fn new(page: NonNull<u64>, method: SubmitMethod) -> Self {
        Self { page, method }
    }

    /// Hands a descriptor over.
    pub fn submit(&self, descriptor: &Descriptor) {
        self.submit_noting(descriptor, || ());
    }

    /// The same; `note` is asked right before the store by which the device has the descriptor. Returns what it says.
    pub fn submit_noting<T>(&self, descriptor: &Descriptor, note: impl FnOnce() -> T) -> T {
        let words = Words(descriptor.words());
        // What the descriptor refers to is in memory before it is.
        fence(Ordering::SeqCst);
        let noted;
        if self.method == SubmitMethod::Whole {
            noted = note();
            self.store_whole(&words);
        } else {
            let [others @ .., last] = words.0;
            self.store(&others, 0);
            noted = note();
            self.store(&[last], others.len());
        }
        noted
    }

    /// Hands a descriptor to a shared work queue, with the PASID that is in it: by ENQCMDS where the processor has that, else as to a
    /// dedicated one. Returns whether it was taken, as far as that can be known.
    pub fn submit_shared(&self, descriptor: &Descriptor) -> bool {
        if self.method != SubmitMethod::Whole || !has_enqcmds() {
            self.submit(descriptor);
            return true;
        }
        let words = Words(descriptor.words());
        fence(Ordering::SeqCst);
        (0..TRIES).any(|_| self.enqueue(&words))
    }

    fn store_whole(&self, words: &Words) {
        // SAFETY: 64 bytes at the portal page's begin, from 64 bytes of our own, on a processor that has the instruction (`new`).
        unsafe {
            asm!("movdir64b {to}, [{from}]", to = in(reg) self.page.as_ptr(), from = in(reg) words, options(nostack));
        }
    }

    fn enqueue(&self, words: &Words) -> bool {
        let retry: u8;
        // SAFETY: as above.
        unsafe {
            asm!(
                "enqcmds {to}, [{from}]",
                "setz {retry}",
                to = in(reg) self.page.as_ptr(),
                from = in(reg) words,
                retry = out(reg_byte) retry,
                options(nostack)
            );
        }
        retry == 0
    }

    /// Stores words from the page's word `first` on.
    fn store(&self, words: &[u64], first: usize) {
        for (n, word) in words.iter().enumerate() {
            // SAFETY: the first 64 bytes of the portal page (`new`).
            unsafe { self.page.add(first + n).write_volatile(*word) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page of our own memory.
    #[repr(C, align(64))]
    struct Page([u64; 16]);

    #[test]
    fn stores_of_64_bytes_are_used_unless_the_device_says_or_the_processor_lacks() {
        assert_eq!(
            (SubmitMethod::to(0, MOVDIR64B), SubmitMethod::to(0x1234, !0)),
            (SubmitMethod::Whole, SubmitMethod::Whole)
        );
        assert_eq!(
            (SubmitMethod::to(0, 0), SubmitMethod::to(0, !MOVDIR64B)),
            (SubmitMethod::PiecesForLack, SubmitMethod::PiecesForLack)
        );
        for subsystem in [0x9108, 0x510e] {
            assert_eq!(
                (SubmitMethod::to(subsystem, !0), SubmitMethod::to(subsystem, 0)),
                (SubmitMethod::Pieces, SubmitMethod::Pieces)
            );
        }
    }

    #[test]
    fn a_descriptor_is_written_whole_to_the_page_s_begin() {
        let descriptor = Descriptor::crc(0x7000, 4096, 0x8000, 9);
        let here = if features() & MOVDIR64B != 0 { SubmitMethod::Whole } else { SubmitMethod::Pieces };
        for method in [SubmitMethod::Pieces, SubmitMethod::PiecesForLack, here] {
            let mut page = Page([0; 16]);
            // SAFETY: memory of our own stands for the portal.
            let portal = unsafe { Portal::new(NonNull::from(&mut page).cast(), method) };
            portal.submit(&descriptor);
            assert_eq!((&page.0[..8], &page.0[8..]), (&descriptor.words()[..], &[0; 8][..]));
        }
    }

    #[test]
    fn what_is_noted_is_from_before_the_last_word() {
        let mut page = [0u64; 8];
        let pointer = &raw mut page;
        let descriptor = Descriptor::crc(0x7000, 4096, 0x8000, 9);
        let words = descriptor.words();
        // SAFETY: memory of our own stands for the portal.
        let portal = unsafe { Portal::new(NonNull::new(pointer.cast()).unwrap(), SubmitMethod::Pieces) };
        // SAFETY: nobody writes while this looks.
        let noted = portal.submit_noting(&Descriptor { ..descriptor }, || unsafe { pointer.read_volatile() });
        assert_eq!((noted[..7].to_vec(), noted[7]), (words[..7].to_vec(), 0));
        // SAFETY: as above.
        assert_eq!(unsafe { pointer.read_volatile() }, words);
    }
}
