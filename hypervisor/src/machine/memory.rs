//! The machine's memory: its owners, and its mapping in the hypervisor.

use alloc::vec::Vec;

use crate::{
    acpi::{FirmwareMemory, Rsdp},
    addr::{Hpa, PAGE_SIZE},
    apic,
    machine::boot_info::BootInfo,
    memory::{
        self, Frames, Paging, PhysRange,
        paging::{self, MapError, Protection},
    },
    sync::Mutex,
};

/// All page frames without an owner.
pub static FRAMES: Frames = Frames::new();

/// The hypervisor's own page tables, once they are in force.
static PAGING: Mutex<Option<Paging<'static, Frames>>> = Mutex::new(None);

/// Bytes of the hypervisor's heap at the start. The ACPI and PCI descriptions, the decoder's tables, the guests' slots live there; on a
/// large machine it grows.
const HEAP: u64 = 4 << 20;

/// Bytes of a root pointer, of the newer kind.
const RSDP_BYTES: usize = 36;

/// The lowest megabyte, where the firmware's tables are looked for.
const LOW: PhysRange = PhysRange::new(Hpa::new(0), 1 << 20);

/// The end of ranges that are read for tables: ranges that are not usable and end beyond it hold none.
const READABLE_END: u64 = 1 << 40;

/// Ends of the image's sections, from the linker script.
struct Image {
    text: PhysRange,
    rodata: PhysRange,
    data: PhysRange,
    stack_guard: PhysRange,
}

unsafe extern "C" {
    static __text_start: u8;
    static __text_end: u8;
    static __rodata_start: u8;
    static __rodata_end: u8;
    static __data_start: u8;
    static __image_end: u8;
    static boot_stack_guard: u8;
}

impl Image {
    fn new() -> Self {
        let range =
            |start: *const u8, end: *const u8| PhysRange::new(Hpa::new(start as u64), end as u64 - start as u64);
        let guard = &raw const boot_stack_guard;
        Self {
            text: range(&raw const __text_start, &raw const __text_end),
            rodata: range(&raw const __rodata_start, &raw const __rodata_end),
            data: range(&raw const __data_start, &raw const __image_end),
            stack_guard: PhysRange::new(Hpa::new(guard as u64), PAGE_SIZE),
        }
    }

    fn whole(&self) -> PhysRange {
        PhysRange::new(self.text.start, self.data.end().as_u64() - self.text.start.as_u64())
    }
}

/// Takes the memory that the loader left, and starts the heap.
///
/// Returns whether there was enough for the heap.
///
/// # Safety
/// Called once, while the first 4 GiB are identity-mapped and nothing but the image, the loader's structure and the modules is in use.
#[must_use]
pub unsafe fn take(boot_info: &BootInfo) -> bool {
    let reserved =
        boot_info.memory(false).chain(boot_info.bad_memory()).chain(boot_info.occupied()).chain([Image::new().whole()]);
    // SAFETY: the loader's map says what is RAM; all that is in use is reserved here. First-fit keeps the first allocations, until
    // `map` has run, far below 4 GiB.
    unsafe { FRAMES.add_map(boot_info.memory(true), reserved) };
    crate::memory::heap::extend(&FRAMES, HEAP)
}

/// Builds the final page tables, with the memory of a screen in them, and puts them in force.
pub fn map(boot_info: &BootInfo, screen: Option<PhysRange>) -> Result<(), MapError> {
    let gibibyte_pages =
        raw_cpuid::CpuId::new().get_extended_processor_and_feature_identifiers().is_some_and(|f| f.has_1gib_pages());
    let mut paging = Paging::new(&FRAMES, gibibyte_pages)?;
    for range in boot_info.memory(true) {
        paging.map(range, Protection::Ram)?;
    }
    // Firmware tables lie in what is not usable. A range that no processor could have is not mapped.
    for range in boot_info.memory(false).filter(|range| range.end().as_u64() <= READABLE_END) {
        paging.map(range, Protection::ReadOnly)?;
    }
    // What is known to be bad is touched by nobody, not even by speculation.
    for range in boot_info.bad_memory().filter(|range| range.end().as_u64() <= READABLE_END) {
        paging.map(range, Protection::None)?;
    }
    paging.map(LOW, Protection::ReadOnly)?;
    if let Some(screen) = screen {
        paging.map(screen, Protection::Screen)?;
    }
    for occupied in boot_info.occupied() {
        paging.map(occupied, Protection::Ram)?;
    }
    let image = Image::new();
    paging.map(image.data, Protection::Ram)?;
    paging.map(image.rodata, Protection::ReadOnly)?;
    paging.map(image.text, Protection::Text)?;
    paging.map(image.stack_guard, Protection::None)?;
    paging.map_mmio(Hpa::new(apic::xapic_base()), PAGE_SIZE)?;
    paging.unmap_null()?;
    // SAFETY: the image has the rights its sections need, all RAM is mapped writable, and what was in use stays mapped.
    unsafe { paging::activate(paging.cr3()) };
    *PAGING.lock() = Some(paging);
    Ok(())
}

/// The page where processors can start, if the loader's map has one.
pub fn start_page(boot_info: &BootInfo) -> Option<Hpa> {
    let taken = || boot_info.memory(false).chain(boot_info.bad_memory()).chain(boot_info.occupied());
    memory::start_page::start_page(boot_info.memory(true), taken())
}

/// Maps device registers, or more of them.
pub fn map_device(start: Hpa, len: u64) -> Result<(), MapError> {
    PAGING.lock().as_mut().map_or(Ok(()), |paging| paging.map_mmio(start, len))
}

/// Maps the page where processors start: code, data and words in one.
pub fn map_trampoline(page: Hpa) -> Result<(), MapError> {
    remap(page, Protection::Trampoline)
}

/// Unmaps the page below a stack, so that a stack overflow faults.
pub fn unmap_guard(page: Hpa) -> Result<(), MapError> {
    remap(page, Protection::None)
}

fn remap(page: Hpa, protection: Protection) -> Result<(), MapError> {
    let Some(paging) = &mut *PAGING.lock() else { return Err(MapError::BadRange) };
    paging.map(PhysRange::new(page, PAGE_SIZE), protection)?;
    // SAFETY: privilege level 0. The other processors that run by now never touch these pages.
    unsafe { paging::flush() };
    Ok(())
}

/// The firmware's memory by the loader's map. Tables are read nowhere else, so a wrong pointer in one finds nothing instead of a fault.
pub struct Firmware(Vec<PhysRange>);

impl Firmware {
    /// The ranges that [`map`] has mapped.
    pub fn new(boot_info: &BootInfo) -> Self {
        let low = PhysRange::new(Hpa::new(PAGE_SIZE), LOW.len - PAGE_SIZE);
        let reserved = boot_info.memory(false).filter(|range| range.end().as_u64() <= READABLE_END);
        Self(boot_info.memory(true).chain(reserved).chain([low]).collect())
    }
}

/// The root pointer: the boot loader's copy, else the one in the BIOS's area.
pub fn find_rsdp(firmware: &Firmware, boot_info: &BootInfo) -> Option<Rsdp> {
    let copy = boot_info.rsdp().and_then(|at| Rsdp::parse(firmware.bytes(at, RSDP_BYTES)?));
    copy.or_else(|| Rsdp::scan(firmware))
}

impl FirmwareMemory for Firmware {
    fn bytes(&self, address: Hpa, len: usize) -> Option<&[u8]> {
        let last = address.checked_add((len as u64).checked_sub(1)?)?;
        let inside = |range: &&PhysRange| range.contains(address) && range.contains(last);
        let known = self.0.iter().find(inside).is_some() && address.as_u64() >= PAGE_SIZE;
        // SAFETY: the range is mapped (`map`), is not page 0, and nobody writes firmware tables.
        known.then(|| unsafe { core::slice::from_raw_parts(address.as_u64() as *const u8, len) })
    }
}
