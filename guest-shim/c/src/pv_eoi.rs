//! Interrupts that end without a VM exit.

use core::sync::atomic::AtomicU32;

use guest_shim::PvEoi;

use crate::decide::ImsInterface;
use crate::device::calls;
use crate::status::result;

/// This processor ends interrupts by 4 bytes at the physical address `word_physical` from now on ([`ims_pv_eoi_end`]): they are 0, lie at
/// a multiple of 4 and are used by this processor alone. `-IMS_UNSUPPORTED` where EOI is no VM exit.
///
/// # Safety
/// As for [`ims_enable`](crate::ims_enable); the bytes stay the hypervisor's until [`ims_clear_pv_eoi`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ims_set_pv_eoi(interface: *const ImsInterface, word_physical: u64) -> i32 {
    // SAFETY: the caller's promise.
    result(unsafe { calls(interface) }.set_pv_eoi(word_physical))
}

/// This processor ends its interrupts by writing EOI again. The bytes that it had named are free, and an interrupt in service ends by EOI.
///
/// # Safety
/// As for [`ims_enable`](crate::ims_enable).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ims_clear_pv_eoi(interface: *const ImsInterface) -> i32 {
    // SAFETY: the caller's promise.
    result(unsafe { calls(interface) }.clear_pv_eoi())
}

/// Ends the interrupt in service by this processor's bytes, if the hypervisor has said that this is enough. Returns whether it has ended;
/// if not, the caller writes EOI.
///
/// # Safety
/// `word` points to the bytes that this processor named by [`ims_set_pv_eoi`], or to 4 bytes that are 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ims_pv_eoi_end(word: *mut u32) -> bool {
    const _: () = assert!(size_of::<PvEoi>() == size_of::<AtomicU32>());
    // SAFETY: the caller's promise: an aligned word, which is accessed by atomic instructions only. `PvEoi` is transparent.
    let word = unsafe { &*word.cast::<PvEoi>() };
    let mut ended = true;
    word.end(|| ended = false);
    ended
}

#[cfg(test)]
mod tests {
    use guest_shim::hcall_abi::call::PV_EOI_PENDING;

    use super::*;

    #[test]
    fn an_interrupt_has_ended_once_for_each_time_the_bit_was_set() {
        let mut word = PV_EOI_PENDING;
        // SAFETY: the word is ours.
        let mut end = || unsafe { ims_pv_eoi_end(&mut word) };
        assert_eq!((end(), end()), (true, false));
        assert_eq!(word, 0);
    }
}
