//! Which way a driver's interrupts go: the interface that was found, the bare-metal test, the platform's word, and the decision.

use core::ptr::NonNull;

use guest_shim::detect::{self, Facts, ViommuHints};
use guest_shim::discover::{self, Interface, NativeCpuid};
use guest_shim::hcall_abi::cpuid::{Features, Limits};
use guest_shim::hcall_abi::{Status, acpi};
use guest_shim::policy::{self, Decision, Refusal};

use crate::status::code;

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

/// The facts about the machine for the bare-metal test. An unknown fact is zero.
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
