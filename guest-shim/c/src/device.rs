//! The guest's devices with a store: showing them, and finding them.

use core::ffi::c_void;
use core::ptr::NonNull;

use guest_shim::hcall_abi::Status;
use guest_shim::vmcall::Vmcall;
use guest_shim::{BatchPage, Hypercalls};

use crate::decide::ImsInterface;
use crate::status::{code, result};

/// Tells the hypervisor that the guest knows the interface: its devices show their stores from then on. To be called before
/// devices are looked at.
///
/// # Safety
/// The guest runs at CPL 0 in 64-bit mode, and `interface` was found by [`ims_discover`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ims_enable(interface: *const ImsInterface) -> i32 {
    // SAFETY: the caller's promise.
    result(unsafe { calls(interface) }.enable().map(drop))
}

/// Does nothing: the floor of every measurement.
///
/// # Safety
/// As for [`ims_enable`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ims_nop(interface: *const ImsInterface) -> i32 {
    // SAFETY: the caller's promise.
    result(unsafe { calls(interface) }.nop())
}

/// The guest's `n`-th device with a store: its requester ID on the guest's own bus.
///
/// # Safety
/// As for [`ims_enable`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ims_device(interface: *const ImsInterface, n: u32) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { calls(interface) }.device(n).map_or_else(code, |device| device.0.into())
}

/// # Safety
/// As for [`ims_enable`].
pub(crate) unsafe fn calls(interface: *const ImsInterface) -> Hypercalls<Vmcall> {
    // SAFETY: the caller's promise.
    unsafe { Hypercalls::new(Vmcall::new(), (*interface).into()) }
}

/// The page of a call.
///
/// # Safety
/// `page` is null, or a page of ordinary memory at the physical address `physical` that nobody else uses during the call.
pub(crate) unsafe fn page<'a>(page: *mut c_void, physical: u64) -> Result<BatchPage<'a>, Status> {
    let page = NonNull::new(page).ok_or(Status::BadAddress)?;
    // SAFETY: the caller's promise.
    unsafe { BatchPage::new(page.cast(), physical) }
}
