//! Instructions that may fault: an exception is returned as a result.

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// Where to go on after an exception, or 0.
pub static RESUME: AtomicU64 = AtomicU64::new(0);
/// 1 + the vector of the exception that came, or 0.
static CAUGHT: AtomicU64 = AtomicU64::new(0);

/// RFLAGS as the exception pushed them.
static RFLAGS: AtomicU64 = AtomicU64::new(0);

/// Called for an exception: where to go on, if it was expected.
pub(super) fn catch(vector: u8, rflags: u64) -> Option<u64> {
    let resume = RESUME.swap(0, SeqCst);
    if resume == 0 {
        return None;
    }
    RFLAGS.store(rflags, SeqCst);
    CAUGHT.store(u64::from(vector) + 1, SeqCst);
    Some(resume)
}

/// The exception that came in the block of [`may_fault!`](crate::may_fault) that just ended.
pub fn take() -> Option<u8> {
    RESUME.store(0, SeqCst);
    CAUGHT.swap(0, SeqCst).checked_sub(1).map(|vector| vector as u8)
}

/// RFLAGS as the last exception that came pushed them.
pub fn rflags() -> u64 {
    RFLAGS.load(SeqCst)
}

/// Executes instructions that may fault, with operands as in `asm!`. Gives the exception's vector, or `None` if all went well.
///
/// It must stand in an `unsafe` block; what the instructions do is the caller's to answer for. Registers that they change must
/// be named as operands, except for the direction flag.
#[macro_export]
macro_rules! may_fault {
    ([$($instruction:literal),+ $(,)?] $(, $($operands:tt)*)?) => {{
        core::arch::asm!(
            "lea {resume_address}, [rip + 9f]",
            "mov [rip + {resume_at}], {resume_address}",
            $($instruction,)+
            "9:",
            "cld",
            resume_address = out(reg) _,
            resume_at = sym $crate::bare::faults::RESUME,
            $($($operands)*)?
        );
        $crate::bare::faults::take()
    }};
}
