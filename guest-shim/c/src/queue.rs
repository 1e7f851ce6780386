//! A store in the guest's own memory, which the device reads: the queue store.

use core::ffi::c_void;
use core::ptr::NonNull;

use guest_shim::domain::QueueDomain;
use guest_shim::hcall_abi::{DeviceId, SlotHandle, Status, Target};
use guest_shim::vmcall::Vmcall;
use guest_shim::{Interrupt, MmioStore, Request};

use crate::decide::ImsInterface;
use crate::device::{calls, page};
use crate::domain::ImsRequest;
use crate::status::{code, result};

/// Room for the interrupts of a queue store. Its content is the library's own; it must not be moved while it is open.
#[repr(C, align(16))]
#[derive(Debug)]
pub struct ImsQueue {
    opaque: [u64; 16],
}

/// What lies in an [`ImsQueue`].
type Open = QueueDomain<'static, Vmcall, MmioStore>;

const _: () = assert!(size_of::<Open>() <= size_of::<ImsQueue>() && align_of::<Open>() <= align_of::<ImsQueue>());

/// Opens the store in the guest's own memory that belongs to a device: `slots` slots of 16 bytes at `memory`, all of which are masked
/// then. Nobody watches what is written there, so only a guest that has the whole function can have one: `-IMS_NOT_ISOLATED`. `page` is a
/// page of ordinary memory at the physical address `page_physical`, which the library keeps for itself. How the device is told where the
/// memory is, and that it is to look at a slot again, is the driver's business.
///
/// # Safety
/// As for [`ims_enable`](crate::ims_enable); `queue` points to room for one; memory and page stay the library's as long as it is used.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ims_open_queue(
    queue: *mut ImsQueue,
    interface: *const ImsInterface,
    device: u16,
    page: *mut c_void,
    page_physical: u64,
    memory: *mut c_void,
    slots: u32,
) -> i32 {
    let Some(memory) = NonNull::new(memory) else { return code(Status::BadAddress) };
    // SAFETY: the caller's promise.
    let (calls, page) = unsafe { (calls(interface), self::page(page, page_physical)) };
    // SAFETY: the caller's promise: so many slots lie there.
    let memory = unsafe { MmioStore::new(memory.cast(), slots) };
    let opened = page.and_then(|page| QueueDomain::open(calls, DeviceId(device), page, memory));
    // SAFETY: the caller's promise; it fits, as was checked when this was compiled.
    result(opened.map(|opened| unsafe { queue.cast::<Open>().write(opened) }))
}

/// Does something with the slot that a handle names.
///
/// # Safety
/// `queue` was opened, and nobody else uses it meanwhile.
unsafe fn on_slot(
    queue: *mut ImsQueue,
    handle: u32,
    what: impl FnOnce(&mut Open, Interrupt) -> Result<i32, Status>,
) -> i32 {
    // SAFETY: the caller's promise: `ims_open_queue` has written it.
    let queue = unsafe { &mut *queue.cast::<Open>() };
    let interrupt = SlotHandle::from_bits(handle).map(Interrupt::from_handle);
    interrupt.and_then(|interrupt| what(queue, interrupt)).unwrap_or_else(code)
}

/// Takes a free slot of a queue store, in a group; it stays masked. Its handle is written to `handle`.
///
/// # Safety
/// `queue` is open and used by one processor at a time; `handle` points to room for one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ims_queue_alloc(queue: *mut ImsQueue, group: u32, handle: *mut u32) -> i32 {
    // SAFETY: the caller's promise: `ims_open_queue` has written it.
    let taken = unsafe { &mut *queue.cast::<Open>() }.alloc(group);
    // SAFETY: the caller's promise.
    result(taken.map(|interrupt| unsafe { handle.write(interrupt.handle().bits()) }))
}

/// Sends a slot's interrupts to a processor, and writes its message to the memory.
///
/// # Safety
/// `queue` is open and used by one processor at a time; `request` can be read.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ims_queue_map(queue: *mut ImsQueue, handle: u32, request: *const ImsRequest) -> i32 {
    // SAFETY: the caller's promise.
    let ImsRequest { apic_id, vector, unmask, cookie } = unsafe { *request };
    let request = Request { target: Target { apic_id, vector }, unmask, cookie };
    // SAFETY: the caller's promise.
    unsafe { on_slot(queue, handle, |queue, slot| queue.map(&slot, &request).map(|()| 0)) }
}

/// Masks a slot. A message that the device is sending already may still come.
///
/// # Safety
/// `queue` is open and used by one processor at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ims_queue_mask(queue: *mut ImsQueue, handle: u32) -> i32 {
    let mask = |queue: &mut Open, slot| {
        queue.mask(&slot);
        Ok(0)
    };
    // SAFETY: the caller's promise.
    unsafe { on_slot(queue, handle, mask) }
}

/// Unmasks a slot. Returns 1 if an interrupt came meanwhile: then the driver tells the device to look at the slot again.
///
/// # Safety
/// `queue` is open and used by one processor at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ims_queue_unmask(queue: *mut ImsQueue, handle: u32) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { on_slot(queue, handle, |queue, slot| Ok(queue.unmask(&slot).into())) }
}

/// Sends a slot's interrupts elsewhere, losing none. The memory stays as it is.
///
/// # Safety
/// `queue` is open and used by one processor at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ims_queue_set_affinity(queue: *mut ImsQueue, handle: u32, apic_id: u32, vector: u8) -> i32 {
    let move_it = |queue: &mut Open, slot| queue.set_affinity(&slot, Target { apic_id, vector }).map(|()| 0);
    // SAFETY: the caller's promise.
    unsafe { on_slot(queue, handle, move_it) }
}

/// Gives a slot back. Its message leads nowhere from then on.
///
/// # Safety
/// `queue` is open and used by one processor at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ims_queue_free(queue: *mut ImsQueue, handle: u32) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { on_slot(queue, handle, |queue, slot| queue.free(slot).map(|()| 0)) }
}
