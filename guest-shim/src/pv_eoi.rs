//! Paravirtual EOI: interrupts that end without a VM exit.

use core::sync::atomic::{AtomicU32, Ordering};

use hcall_abi::call::PV_EOI_PENDING;

/// The 4 bytes by which one processor ends interrupts. They are named by [`Hypercalls::set_pv_eoi`](crate::Hypercalls::set_pv_eoi),
/// on that processor, and used by it alone; until then nothing comes of them, and EOI is written as ever.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct PvEoi(AtomicU32);

impl PvEoi {
    /// No interrupt is in service.
    pub const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Ends the interrupt in service: by these bytes if the hypervisor has said that this is enough, else by `write_eoi`.
    #[inline]
    pub fn end(&self, write_eoi: impl FnOnce()) {
        // One instruction: an exit in between, at which the hypervisor takes its offer back, must not be overlooked.
        if self.0.swap(0, Ordering::SeqCst) & PV_EOI_PENDING == 0 {
            write_eoi();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eoi_is_written_unless_the_bit_is_set_and_each_bit_counts_once() {
        let word = PvEoi::new();
        let mut written = 0;
        word.end(|| written += 1);
        word.0.store(PV_EOI_PENDING, Ordering::SeqCst);
        word.end(|| written += 10);
        word.end(|| written += 100);
        assert_eq!(written, 101);
    }
}
