//! The same image without the hypervisor: GRUB loads it by multiboot2, and what imsvisor would have done is done here, before the guest's
//! own first instruction.

use core::cell::UnsafeCell;

use multiboot2::{BootInformation, BootInformationHeader, MemoryAreaType};

use super::{
    console,
    msr::{rdmsr, wrmsr},
    physical, port,
};
use crate::boot_params::{
    ACPI_RSDP_ADDR, CMD_LINE_PTR, E820_ENTRIES, E820_ENTRY_SIZE, E820_RAM, E820_TABLE, EXT_CMD_LINE_PTR,
};
use crate::println;

core::arch::global_asm!(include_str!("../../../../boot/entry/multiboot2.S"), entry = sym entry);

const MAGIC: u32 = 0x36d7_6289;
/// IA32_APIC_BASE: enabled, in x2APIC mode.
const APIC_BASE: u32 = 0x1b;
const APIC_BASE_X2APIC: u64 = 3 << 10;
/// Interrupt masks of the two 8259s.
const PIC_MASKS: [u16; 2] = [0x21, 0xa1];
/// Entries of the memory map that are handed on.
const RANGES: usize = 32;
/// Bochs ends when `Shutdown` is written here.
const BOCHS_SHUTDOWN: u16 = 0x8900;

#[repr(C, align(4096))]
struct Page(UnsafeCell<[u8; 4096]>);

// SAFETY: written once, by the only processor that runs; read after that.
unsafe impl Sync for Page {}

/// Linux's `boot_params`.
static BOOT_PARAMS: Page = Page(UnsafeCell::new([0; 4096]));

/// The table of the addresses from 512 GiB on.
static UPPER: Page = Page(UnsafeCell::new([0; 4096]));

/// From the entry code: EAX and EBX as GRUB left them.
extern "C" fn entry(magic: u32, information: u64, _tsc: u64) -> ! {
    assert!(magic == MAGIC, "not loaded by multiboot2");
    // SAFETY: GRUB has put the structure there, and the entry code has mapped it.
    let loaded = unsafe { BootInformation::load(information as *const BootInformationHeader) };
    let loaded = loaded.expect("GRUB's information is sound");
    // SAFETY: nobody else looks at the page yet.
    let boot_params = unsafe { &mut *BOOT_PARAMS.0.get() };
    describe(&loaded, boot_params);
    // SAFETY: this is the only processor that runs, on the entry code's page tables.
    unsafe { map_devices() };
    // SAFETY: the guests take interrupts from the local APIC alone, in x2APIC mode.
    unsafe {
        PIC_MASKS.iter().for_each(|&mask| port::write_u8(mask, 0xff));
        wrmsr(APIC_BASE, rdmsr(APIC_BASE) | APIC_BASE_X2APIC);
    }
    // SAFETY: the guest's first instruction, which takes a stack and a descriptor table of its own; RSI is the structure.
    unsafe { core::arch::asm!("jmp _start", in("rsi") boot_params.as_ptr(), options(noreturn)) }
}

/// Maps addresses from 4 GiB to 1 TiB at themselves, uncached, by pages of 1 GiB: BARs of 64 bits lie there. A processor without such pages
/// has the low 4 GiB only.
///
/// # Safety
/// The page tables are those of the entry code, and nobody else looks at them.
unsafe fn map_devices() {
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    const PRESENT_WRITABLE: u64 = 0b11;
    /// Large, cache disabled, write-through.
    const DEVICE: u64 = 1 << 7 | 0b11 << 3 | PRESENT_WRITABLE;
    const GIB: u64 = 1 << 30;
    if !has_pages_of_1_gib() {
        return;
    }
    let root: u64;
    // SAFETY: reading CR3 changes nothing.
    unsafe { core::arch::asm!("mov {}, cr3", out(reg) root, options(nomem, nostack, preserves_flags)) };
    let table = |entry: u64| core::ptr::with_exposed_provenance_mut::<u64>((entry & ADDRESS) as usize);
    let (root, above) = (table(root), UPPER.0.get().cast::<u64>());
    // SAFETY: the caller's promise: the root's first entry leads to a table whose first four entries are in use. Entries that become
    // present need no flush. The second half of the addresses has a table of its own.
    unsafe {
        let first = table(root.read_volatile());
        (4..512).for_each(|n| first.add(n).write_volatile((n as u64 * GIB) | DEVICE));
        (0..512).for_each(|n| above.add(n).write_volatile(((512 + n as u64) * GIB) | DEVICE));
        root.add(1).write_volatile(above.expose_provenance() as u64 | PRESENT_WRITABLE);
        physical::extend(1024 * GIB);
    }
}

fn has_pages_of_1_gib() -> bool {
    const EXTENDED: u32 = 0x8000_0001;
    let leaf = core::arch::x86_64::__cpuid(EXTENDED);
    leaf.edx >> 26 & 1 != 0
}

/// Writes down what the guests look for: the command line, the memory, and where ACPI's tables begin.
fn describe(loaded: &BootInformation, boot_params: &mut [u8; 4096]) {
    let mut put = |at: u64, bytes: &[u8]| {
        if let Some(place) = boot_params.get_mut(at as usize..at as usize + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    let line = loaded.command_line_tag().and_then(|tag| tag.cmdline().ok()).map_or(0, |line| line.as_ptr() as u64);
    put(CMD_LINE_PTR, &(line as u32).to_le_bytes());
    put(EXT_CMD_LINE_PTR, &((line >> 32) as u32).to_le_bytes());
    // The tag is a header of eight bytes and a copy of the RSDP.
    let first = loaded.rsdp_v1_tag().map(|tag| &raw const *tag as u64);
    let rsdp = loaded.rsdp_v2_tag().map(|tag| &raw const *tag as u64).or(first);
    put(ACPI_RSDP_ADDR, &rsdp.map_or(0, |tag| tag + 8).to_le_bytes());
    let Some(map) = loaded.memory_map_tag() else { return };
    let ram = map.memory_areas().iter().filter(|area| area.typ() == MemoryAreaType::Available);
    for (n, area) in (0..).zip(ram.take(RANGES)) {
        let at = E820_TABLE + n * E820_ENTRY_SIZE;
        put(at, &area.start_address().to_le_bytes());
        put(at + 8, &area.size().to_le_bytes());
        put(at + 16, &E820_RAM.to_le_bytes());
        put(E820_ENTRIES, &[n as u8 + 1]);
    }
}

/// Says how it ended, and switches the emulator off.
pub(super) fn end(code: u8) {
    println!("@native exit={code}");
    console::drain();
    for byte in *b"Shutdown" {
        // SAFETY: nothing runs after this.
        unsafe { port::write_u8(BOCHS_SHUTDOWN, byte) }
    }
}
