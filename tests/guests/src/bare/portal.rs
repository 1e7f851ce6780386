//! A DSA's portals, mapped, with the way that descriptors take to them.

use core::sync::atomic::{AtomicBool, Ordering};

use super::{config, physical};
use crate::dsa::{Portal, SubmitMethod, has_enqcmds, spec};
use crate::pci::Function;

/// The portal page at a physical address, of a function. `None` where it is not mapped.
///
/// # Safety
/// As for [`Portal::new`].
pub unsafe fn at(function: Function, address: u64) -> Option<Portal> {
    static TOLD: AtomicBool = AtomicBool::new(false);
    let method = SubmitMethod::of(&config::Ports, function);
    if method == SubmitMethod::PiecesForLack && !TOLD.swap(true, Ordering::Relaxed) {
        crate::println!("no MOVDIR64B: descriptors are written by stores of 8 bytes, which a real DSA does not take");
    }
    let page = physical::mapped(address, spec::PORTAL_SIZE)?;
    // SAFETY: the caller's promise; MOVDIR64B is used only where CPUID has it.
    Some(unsafe { Portal::new(page.cast(), method) })
}

/// Says once what a shared work queue of a real device would not take.
pub fn tell_of_shared() {
    static TOLD: AtomicBool = AtomicBool::new(false);
    if !has_enqcmds() && !TOLD.swap(true, Ordering::Relaxed) {
        crate::println!(
            "no ENQCMDS: a shared work queue is written to as a dedicated one, which a real DSA does not take"
        );
    }
}
