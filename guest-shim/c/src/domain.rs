//! A device's interrupts: opening a domain, in either way, and the life of its slots.

use core::ffi::c_void;
use core::mem::MaybeUninit;
use core::ptr::NonNull;

use guest_shim::domain::SlotState;
use guest_shim::hcall_abi::{DeviceId, Pasid, SlotHandle, Status, Target};
use guest_shim::vmcall::Vmcall;
use guest_shim::{Domain, Interrupt, MmioStore, Request};

use crate::decide::ImsInterface;
use crate::device::{calls, page};
use crate::status::{code, result};

/// Where an interrupt shall go.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ImsRequest {
    /// x2APIC ID of the processor.
    pub apic_id: u32,
    /// Vector, 16 to 255.
    pub vector: u8,
    /// Whether the slot is unmasked at the end.
    pub unmask: bool,
    /// The driver's own name for it: comes back in queries and fault records.
    pub cookie: u64,
}

/// Room for a device's interrupts. Its content is the library's own; it must not be moved while it is open.
#[repr(C, align(16))]
#[derive(Debug)]
pub struct ImsDomain {
    pub(crate) opaque: [u64; 16],
}

/// Room for what a driver knows of a slot that it programs itself. Zeros to begin with.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug)]
pub struct ImsSlotState {
    pub(crate) opaque: [u64; 6],
}

/// What lies in an [`ImsDomain`].
pub(crate) type Open = Domain<'static, Vmcall, MmioStore>;

const _: () = assert!(size_of::<Open>() <= size_of::<ImsDomain>() && align_of::<Open>() <= align_of::<ImsDomain>());
const _: () = assert!(size_of::<SlotState>() <= size_of::<ImsSlotState>());
const _: () = assert!(align_of::<SlotState>() <= align_of::<ImsSlotState>());

/// Opens a domain that goes by hypercall, for the device with this ID. `page` is a page of ordinary memory at the physical address
/// `page_physical`, which the library keeps for itself.
///
/// # Safety
/// As for [`ims_enable`]; `domain` points to room for one, and the page stays the library's as long as the domain is used.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ims_open_hypercall(
    domain: *mut ImsDomain,
    interface: *const ImsInterface,
    device: u16,
    page: *mut c_void,
    page_physical: u64,
) -> i32 {
    // SAFETY: the caller's promise.
    let page = unsafe { self::page(page, page_physical) };
    // SAFETY: the caller's promise.
    let calls = unsafe { calls(interface) };
    // SAFETY: the caller's promise.
    result(page.map(|page| unsafe { open(domain, Domain::hypercall(calls, DeviceId(device), page)) }))
}

/// Opens a domain that programs the store itself: `slots` slots of 16 bytes at `store`, mapped uncached. `states` has an element for
/// each slot that may be used, from slot 0.
///
/// # Safety
/// `domain` points to room for one; store and states stay the library's as long as the domain is used.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ims_open_native(
    domain: *mut ImsDomain,
    store: *mut c_void,
    slots: u32,
    states: *mut ImsSlotState,
    count: usize,
) -> i32 {
    let (Some(store), Some(states)) = (NonNull::new(store), NonNull::new(states)) else {
        return code(Status::BadAddress);
    };
    // Elements of ours are smaller than the room that there is for them, so all of them fit.
    let states = states.cast::<MaybeUninit<SlotState>>();
    // SAFETY: the caller's promise; every element is written before it is read.
    let states = unsafe {
        let states = core::slice::from_raw_parts_mut(states.as_ptr(), count);
        states.fill(MaybeUninit::new(SlotState::FREE));
        core::slice::from_raw_parts_mut(states.as_mut_ptr().cast::<SlotState>(), count)
    };
    // SAFETY: the caller's promise.
    unsafe { open(domain, Domain::native(MmioStore::new(store.cast(), slots), states)) };
    0
}

/// # Safety
/// `domain` points to room for one.
pub(crate) unsafe fn open(domain: *mut ImsDomain, opened: Open) {
    // SAFETY: the caller's promise; it fits, as was checked when this was compiled.
    unsafe { domain.cast::<Open>().write(opened) }
}

/// # Safety
/// `domain` was opened, and nobody else uses it meanwhile.
pub(crate) unsafe fn opened<'a>(domain: *mut ImsDomain) -> &'a mut Open {
    // SAFETY: the caller's promise: `open` has written it.
    unsafe { &mut *domain.cast::<Open>() }
}

/// Does something with the slot that a handle names.
///
/// # Safety
/// As for [`opened`].
pub(crate) unsafe fn on_slot(
    domain: *mut ImsDomain,
    handle: u32,
    what: impl FnOnce(&mut Open, Interrupt) -> Result<(), Status>,
) -> i32 {
    // SAFETY: the caller's promise.
    let domain = unsafe { opened(domain) };
    result(SlotHandle::from_bits(handle).and_then(|handle| what(domain, Interrupt::from_handle(handle))))
}

/// Takes a free slot, in a group; it stays masked. Its handle is written to `handle`.
///
/// # Safety
/// `domain` is open and used by one processor at a time; `handle` points to room for one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ims_alloc(domain: *mut ImsDomain, group: u32, handle: *mut u32) -> i32 {
    // SAFETY: the caller's promise.
    let taken = unsafe { opened(domain) }.alloc(group);
    // SAFETY: the caller's promise.
    result(taken.map(|interrupt| unsafe { handle.write(interrupt.handle().bits()) }))
}

/// The slot's index in the store: what a device is told to raise this interrupt.
#[unsafe(no_mangle)]
pub extern "C" fn ims_index(handle: u32) -> u16 {
    handle as u16
}

/// Sends a slot's interrupts to a processor.
///
/// # Safety
/// `domain` is open and used by one processor at a time; `request` can be read.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ims_map(domain: *mut ImsDomain, handle: u32, request: *const ImsRequest) -> i32 {
    // SAFETY: the caller's promise.
    let ImsRequest { apic_id, vector, unmask, cookie } = unsafe { *request };
    let request = Request { target: Target { apic_id, vector }, unmask, cookie };
    // SAFETY: the caller's promise.
    unsafe { on_slot(domain, handle, |domain, slot| domain.map(&slot, &request)) }
}

/// Masks a slot and takes its mapping away; the slot stays taken.
///
/// # Safety
/// `domain` is open and used by one processor at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ims_unmap(domain: *mut ImsDomain, handle: u32) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { on_slot(domain, handle, |domain, slot| domain.unmap(&slot)) }
}

/// Masks a slot: after this no message of it is sent. One that comes meanwhile waits.
///
/// # Safety
/// `domain` is open and used by one processor at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ims_mask(domain: *mut ImsDomain, handle: u32) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { on_slot(domain, handle, |domain, slot| domain.mask(&slot)) }
}

/// Unmasks a slot. A message that came meanwhile is sent.
///
/// # Safety
/// `domain` is open and used by one processor at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ims_unmask(domain: *mut ImsDomain, handle: u32) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { on_slot(domain, handle, |domain, slot| domain.unmask(&slot)) }
}

/// Sends a slot's interrupts elsewhere, losing none.
///
/// # Safety
/// `domain` is open and used by one processor at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ims_set_affinity(domain: *mut ImsDomain, handle: u32, apic_id: u32, vector: u8) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { on_slot(domain, handle, |domain, slot| domain.set_affinity(&slot, Target { apic_id, vector })) }
}

/// From now on the device takes the slot only for work that is submitted with this PASID; a negative one stands for any.
///
/// # Safety
/// `domain` is open and used by one processor at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ims_set_pasid(domain: *mut ImsDomain, handle: u32, pasid: i32) -> i32 {
    let pasid = match u32::try_from(pasid).map(Pasid::new) {
        Ok(None) => return code(Status::InvalidArgument),
        Ok(pasid) => pasid,
        Err(_) => None,
    };
    // SAFETY: the caller's promise.
    unsafe { on_slot(domain, handle, |domain, slot| domain.set_pasid(&slot, pasid)) }
}

/// Gives a slot back: masked and unmapped.
///
/// # Safety
/// `domain` is open and used by one processor at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ims_free(domain: *mut ImsDomain, handle: u32) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { on_slot(domain, handle, |domain, slot| domain.free(slot)) }
}

/// Gives all slots of a group back. Returns their number.
///
/// # Safety
/// `domain` is open and used by one processor at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ims_free_group(domain: *mut ImsDomain, group: u32) -> i32 {
    // SAFETY: the caller's promise.
    let freed = unsafe { opened(domain) }.free_group(group);
    freed.map_or_else(code, |freed| i32::try_from(freed).unwrap_or(i32::MAX))
}
