//! The guest shim for C.
//!
//! Functions return 0 or more when they succeed, and minus a status code (`IMS_…`, [`Status`]) when they fail. A driver
//! finds the interface, decides, opens a domain in memory of its own, and from then on does not know which way its interrupts go:
//! see `guest-shim`'s documentation. The header, `include/imsvisor.h`, is written by cbindgen; a test says when it is out of date
//! and how to write it anew.
//!
//! Build it for a freestanding guest with `cargo build -p guest-shim-c --target x86_64-unknown-none --profile bare`.
#![cfg_attr(target_os = "none", no_std)]

mod many;
mod pv_eoi;
mod query;
mod queue;
#[cfg(test)]
mod tests;

use core::ffi::c_void;
use core::mem::MaybeUninit;
use core::ptr::NonNull;

use guest_shim::detect::{self, Facts, ViommuHints};
use guest_shim::discover::{self, Interface, NativeCpuid};
use guest_shim::domain::SlotState;
use guest_shim::hcall_abi::cpuid::{Features, Limits};
use guest_shim::hcall_abi::{DeviceId, Pasid, SlotHandle, Status, Target, acpi};
use guest_shim::policy::{self, Decision, Refusal};
use guest_shim::vmcall::Vmcall;
use guest_shim::{BatchPage, Domain, Hypercalls, Interrupt, MmioStore, Request};

/// Decision: program the store yourself.
pub const IMS_NATIVE: i32 = 0;
/// Decision: go through the hypercall domain.
pub const IMS_HYPERCALL: i32 = 1;
/// Decision: leave the store alone, because the platform forbids it. Use MSI-X.
pub const IMS_REFUSED_FORBIDDEN: i32 = 2;
/// Decision: leave the store alone, because nobody would watch what is written there. Use MSI-X.
pub const IMS_REFUSED_VIRTUALISED: i32 = 3;

/// A hypercall domain that was found.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImsInterface {
    /// The CPUID leaf at which it was found.
    pub base: u32,
    /// The number of call 0.
    pub call_base: u32,
    /// What it offers: bits of `hcall_abi::cpuid::Features`.
    pub features: u32,
    /// Most slots that a device can have.
    pub slots_per_device: u32,
    /// Most items in one batch.
    pub batch: u32,
    /// Number of groups.
    pub groups: u32,
    /// Its minor version.
    pub minor: u16,
}

/// What is known of the machine for the bare-metal test. What is not known is zero.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ImsFacts {
    /// The SMBIOS structure of type 0, or null.
    pub smbios_bios: *const u8,
    /// Its bytes.
    pub smbios_bios_length: usize,
    /// The manufacturer of SMBIOS type 1: text in UTF-8, or null.
    pub system_vendor: *const u8,
    /// Its bytes, without a zero at its end.
    pub system_vendor_length: usize,
    /// The product name of SMBIOS type 1: text in UTF-8, or null.
    pub system_product: *const u8,
    /// Its bytes, without a zero at its end.
    pub system_product_length: usize,
    /// CPUID leaf 1, ECX bit 31.
    pub cpuid_hypervisor: bool,
    /// VT-d CAP.CM of any unit.
    pub caching_mode: bool,
    /// AMD's NpCache of any unit.
    pub np_cache: bool,
    /// There is a virtio-iommu.
    pub virtio_iommu: bool,
}

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
    opaque: [u64; 16],
}

/// Room for what a driver knows of a slot that it programs itself. Zeros to begin with.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug)]
pub struct ImsSlotState {
    opaque: [u64; 6],
}

/// What lies in an [`ImsDomain`].
type Open = Domain<'static, Vmcall, MmioStore>;

const _: () = assert!(size_of::<Open>() <= size_of::<ImsDomain>() && align_of::<Open>() <= align_of::<ImsDomain>());
const _: () = assert!(size_of::<SlotState>() <= size_of::<ImsSlotState>());
const _: () = assert!(align_of::<SlotState>() <= align_of::<ImsSlotState>());

impl From<Interface> for ImsInterface {
    fn from(Interface { base, minor, call_base, features, limits }: Interface) -> Self {
        let Limits { slots_per_device, batch, groups } = limits;
        Self { base, call_base, features: features.0, slots_per_device, batch, groups, minor }
    }
}

impl From<ImsInterface> for Interface {
    fn from(interface: ImsInterface) -> Self {
        let ImsInterface { base, call_base, features, slots_per_device, batch, groups, minor } = interface;
        let limits = Limits { slots_per_device, batch, groups };
        Self { base, minor, call_base, features: Features(features), limits }
    }
}

fn code(status: Status) -> i32 {
    -(status.code() as i32)
}

fn result(result: Result<(), Status>) -> i32 {
    result.map_or_else(code, |()| 0)
}

/// Looks for a hypercall domain. 0 if there is one, which is written to `interface`; `-IMS_UNSUPPORTED` if there is none.
///
/// # Safety
/// `interface` points to room for one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ims_discover(interface: *mut ImsInterface) -> i32 {
    match discover::discover(&NativeCpuid) {
        Ok(found) => {
            // SAFETY: the caller's promise.
            unsafe { interface.write(found.into()) };
            0
        }
        Err(_) => code(Status::Unsupported),
    }
}

/// Whether CPUID says that there is a hypervisor.
#[unsafe(no_mangle)]
pub extern "C" fn ims_cpuid_hypervisor() -> bool {
    detect::cpuid_hypervisor_bit(&NativeCpuid)
}

/// The bare-metal test: whether nothing hints at a virtual machine.
///
/// # Safety
/// `facts` and what it points to can be read.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ims_on_bare_metal(facts: *const ImsFacts) -> bool {
    // SAFETY: the caller's promise.
    let facts = unsafe { &*facts };
    let bytes = |start: *const u8, length| {
        // SAFETY: the caller's promise: so many bytes can be read there, unless it is null.
        NonNull::new(start.cast_mut()).map(|start| unsafe { core::slice::from_raw_parts(start.as_ptr(), length) })
    };
    let text = |start, length| bytes(start, length).and_then(|text| str::from_utf8(text).ok());
    detect::on_bare_metal(&Facts {
        cpuid_hypervisor: facts.cpuid_hypervisor,
        smbios_bios: bytes(facts.smbios_bios, facts.smbios_bios_length),
        system_vendor: text(facts.system_vendor, facts.system_vendor_length),
        system_product: text(facts.system_product, facts.system_product_length),
        viommu: ViommuHints {
            caching_mode: facts.caching_mode,
            np_cache: facts.np_cache,
            virtio_iommu: facts.virtio_iommu,
        },
    })
}

/// Whether an ACPI table of `length` bytes says that stores must not be used natively: what [`ims_decide`] takes as `forbidden`. Only the
/// table with the signature IMSP can say so.
///
/// # Safety
/// `table` is null, or so many bytes can be read there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ims_table_forbids(table: *const u8, length: usize) -> bool {
    let Some(table) = NonNull::new(table.cast_mut()) else { return false };
    // SAFETY: the caller's promise.
    let table = unsafe { core::slice::from_raw_parts(table.as_ptr(), length) };
    acpi::flags(table).is_some_and(|flags| flags & acpi::FLAG_IMS_FORBIDDEN != 0)
}

/// Which way is open: `IMS_NATIVE`, `IMS_HYPERCALL` or `IMS_REFUSED_…`. `forbidden` is what the platform's tables say; `interface` is
/// null if none was found.
///
/// # Safety
/// `interface` is null or can be read.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ims_decide(on_bare_metal: bool, forbidden: bool, interface: *const ImsInterface) -> i32 {
    // SAFETY: the caller's promise.
    let interface = unsafe { interface.as_ref() }.map(|interface| Interface::from(*interface));
    match policy::decide(on_bare_metal, forbidden, interface) {
        Decision::Native => IMS_NATIVE,
        Decision::Hypercall(_) => IMS_HYPERCALL,
        Decision::Refuse(Refusal::Forbidden) => IMS_REFUSED_FORBIDDEN,
        Decision::Refuse(Refusal::Virtualised) => IMS_REFUSED_VIRTUALISED,
    }
}

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
unsafe fn calls(interface: *const ImsInterface) -> Hypercalls<Vmcall> {
    // SAFETY: the caller's promise.
    unsafe { Hypercalls::new(Vmcall::new(), (*interface).into()) }
}

/// The page of a call.
///
/// # Safety
/// `page` is null, or a page of ordinary memory at the physical address `physical` that nobody else uses during the call.
unsafe fn page<'a>(page: *mut c_void, physical: u64) -> Result<BatchPage<'a>, Status> {
    let page = NonNull::new(page).ok_or(Status::BadAddress)?;
    // SAFETY: the caller's promise.
    unsafe { BatchPage::new(page.cast(), physical) }
}

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
unsafe fn open(domain: *mut ImsDomain, opened: Open) {
    // SAFETY: the caller's promise; it fits, as was checked when this was compiled.
    unsafe { domain.cast::<Open>().write(opened) }
}

/// # Safety
/// `domain` was opened, and nobody else uses it meanwhile.
unsafe fn opened<'a>(domain: *mut ImsDomain) -> &'a mut Open {
    // SAFETY: the caller's promise: `open` has written it.
    unsafe { &mut *domain.cast::<Open>() }
}

/// Does something with the slot that a handle names.
///
/// # Safety
/// As for [`opened`].
unsafe fn on_slot(
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

/// The library has nobody to tell. It has no panic that a caller could bring about.
#[cfg(target_os = "none")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        core::hint::spin_loop();
    }
}
