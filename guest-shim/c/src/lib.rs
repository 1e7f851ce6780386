//! The guest shim for C.
//!
//! Functions return 0 or more when they succeed, and minus a status code (`IMS_…`, [`Status`]) when they fail. A driver
//! finds the interface, decides, opens a domain in memory of its own, and from then on does not know which way its interrupts go:
//! see `guest-shim`'s documentation. The header, `include/imsvisor.h`, is written by cbindgen; a test says when it is out of date
//! and how to write it anew.
//!
//! Build it for a freestanding guest with `cargo build -p guest-shim-c --target x86_64-unknown-none --profile bare`.
#![cfg_attr(target_os = "none", no_std)]

mod decide;
mod device;
mod domain;
mod manage;
mod many;
mod pv_eoi;
mod query;
mod queue;
mod status;
#[cfg(test)]
mod tests;

/// The library has nobody to tell. It has no panic that a caller could bring about.
#[cfg(target_os = "none")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        core::hint::spin_loop();
    }
}
