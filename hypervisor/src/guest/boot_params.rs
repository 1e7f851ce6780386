//! Linux's `boot_params` (Documentation/arch/x86/boot.rst and zero-page.rst), for its 64-bit entry.

use super::{
    bzimage::SETUP_HEADER,
    image::{Image, Layout},
    memory_map as map,
};
use crate::addr::{Gpa, PAGE_SIZE};

/// Bytes of `struct boot_params`.
pub const SIZE: usize = PAGE_SIZE as usize;

const ACPI_RSDP_ADDR: usize = 0x070;
const E820_ENTRIES: usize = 0x1e8;
const VID_MODE: usize = 0x1fa;
const BOOT_FLAG: usize = 0x1fe;
const HEADER: usize = 0x202;
const VERSION: usize = 0x206;
const TYPE_OF_LOADER: usize = 0x210;
const LOADFLAGS: usize = 0x211;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
/// With the loader's extended version and number behind it.
const HEAP_END_PTR: usize = 0x224;
const CMD_LINE_PTR: usize = 0x228;
const KERNEL_ALIGNMENT: usize = 0x230;
const XLOADFLAGS: usize = 0x236;
const CMDLINE_SIZE: usize = 0x238;
/// With its data behind it.
const HARDWARE_SUBARCH: usize = 0x23c;
const SETUP_DATA: usize = 0x250;
const E820_TABLE: usize = 0x2d0;
const E820_ENTRY_SIZE: usize = 20;

/// Bit of `loadflags`: `heap_end_ptr` is valid.
const CAN_USE_HEAP: u8 = 1 << 7;

/// Usable memory.
pub const E820_RAM: u32 = 1;
/// Not to be used.
pub const E820_RESERVED: u32 = 2;

/// The guest's address space in the E820 map: (start, length, type).
pub const fn e820(ram: u64) -> [(u64, u64, u32); 4] {
    let (low, high) = (map::LOW_END.as_u64(), map::IMAGE.as_u64());
    [
        (0, low, E820_RAM),
        // The tables for ACPI lie there.
        (low, high - low, E820_RESERVED),
        (high, ram.saturating_sub(high), E820_RAM),
        // Linux uses an ECAM window only where the map reserves it (`pci_mmcfg_reject_broken`).
        (map::ECAM.as_u64(), map::ECAM_SIZE, E820_RESERVED),
    ]
}

/// The page for a guest with `ram` bytes of memory, these files, and its RSDP at `rsdp`. The command line is at [`map::CMDLINE`].
pub fn boot_params(ram: u64, layout: &Layout<'_>, rsdp: Gpa) -> [u8; SIZE] {
    let mut page = Page([0; SIZE]);
    match &layout.image {
        // What the kernel says of itself stays; the loader's fields follow.
        Image::Linux(kernel) => page.describe_kernel(kernel.setup_header),
        Image::Elf(_) => page.describe_executable(),
    }
    page.set(ACPI_RSDP_ADDR, &rsdp.as_u64().to_le_bytes());
    // "Normal" video mode; no loader number assigned.
    page.set(VID_MODE, &0xffff_u16.to_le_bytes());
    page.set(TYPE_OF_LOADER, &[0xff]);
    page.set(CMD_LINE_PTR, &(map::CMDLINE.as_u64() as u32).to_le_bytes());
    if let Some(initrd) = &layout.initrd {
        // It lies below 4 GiB.
        page.set(RAMDISK_IMAGE, &(initrd.gpa.as_u64() as u32).to_le_bytes());
        page.set(RAMDISK_SIZE, &(initrd.bytes.len() as u32).to_le_bytes());
    }
    page.set_e820(ram);
    page.0
}

struct Page([u8; SIZE]);

impl Page {
    /// Copies the setup header of a kernel's file, and overwrites the fields that the loader has to fill: no initrd, no heap for real-mode
    /// code, no other platform than a PC, no list of setup data.
    fn describe_kernel(&mut self, setup_header: &[u8]) {
        self.set(SETUP_HEADER, setup_header);
        self.0[LOADFLAGS] &= !CAN_USE_HEAP;
        for (at, bytes) in [(RAMDISK_IMAGE, 8), (HEAP_END_PTR, 4), (HARDWARE_SUBARCH, 12), (SETUP_DATA, 8)] {
            self.set(at, &[0; 12][..bytes]);
        }
    }

    /// The fields of a setup header for a kernel that brings none, an executable: `vmlinux`, or a guest that is no Linux.
    fn describe_executable(&mut self) {
        self.set(BOOT_FLAG, &0xaa55_u16.to_le_bytes());
        self.set(HEADER, b"HdrS");
        self.set(VERSION, &0x020f_u16.to_le_bytes());
        // Loaded high.
        self.set(LOADFLAGS, &[1]);
        self.set(KERNEL_ALIGNMENT, &0x20_0000_u32.to_le_bytes());
        // Has a 64-bit entry.
        self.set(XLOADFLAGS, &1_u16.to_le_bytes());
        self.set(CMDLINE_SIZE, &(map::CMDLINE_SIZE as u32 - 1).to_le_bytes());
    }

    fn set_e820(&mut self, ram: u64) {
        let e820 = e820(ram);
        self.set(E820_ENTRIES, &[e820.len() as u8]);
        for (index, (start, len, kind)) in e820.into_iter().enumerate() {
            let at = E820_TABLE + index * E820_ENTRY_SIZE;
            self.set(at, &start.to_le_bytes());
            self.set(at + 8, &len.to_le_bytes());
            self.set(at + 16, &kind.to_le_bytes());
        }
    }

    /// Offsets are the constants above: all lie in the page.
    fn set(&mut self, at: usize, bytes: &[u8]) {
        if let Some(place) = self.0.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            bzimage, elf,
            image::{Files, lay_out},
        },
        *,
    };

    const RAM: u64 = 64 << 20;

    fn of(image: &[u8], initrd: Option<&[u8]>) -> [u8; SIZE] {
        let layout = lay_out(Files { image, initrd, cmdline: "" }, RAM).unwrap();
        boot_params(RAM, &layout, Gpa::new(0xe_0000))
    }

    #[test]
    fn a_kernels_own_header_stays_but_for_what_the_loader_fills_in() {
        let kernel = bzimage::tests::good();
        let page = of(&kernel, Some(&[1; 0x1234]));
        let filled = [0x1fa..0x1fc, 0x210..0x211, 0x218..0x220, 0x228..0x22c];
        for at in (0x1f1..0x26c).filter(|at| !filled.iter().any(|range| range.contains(at))) {
            assert_eq!(page[at], kernel[at], "{at:#x}");
        }
        assert_eq!(page[0x210], 0xff);
        let dword = |at: usize| u64::from(u32::from_le_bytes(page[at..at + 4].try_into().unwrap()));
        assert_eq!((dword(0x218), dword(0x21c), dword(0x228)), (RAM - 0x2000, 0x1234, 0x9000));
        assert_eq!(page[0x1e8], 4);
    }

    #[test]
    fn without_an_initrd_there_is_none() {
        assert_eq!(of(&bzimage::tests::good(), None)[0x218..0x220], [0; 8]);
    }

    #[test]
    fn what_is_the_loaders_to_say_is_not_taken_from_the_kernels_file() {
        let mut kernel = bzimage::tests::good();
        kernel[0x218..0x220].fill(0x55);
        kernel[0x211] |= 0x80;
        kernel[0x224..0x228].fill(0x55);
        kernel[0x23c..0x248].fill(0x55);
        kernel[0x250..0x258].fill(0x55);
        let page = of(&kernel, None);
        assert_eq!((page[0x211] & 0x80, &page[0x218..0x220]), (0, &[0; 8][..]), "no heap and no initrd");
        assert_eq!((&page[0x224..0x228], &page[0x23c..0x248]), (&[0; 4][..], &[0; 12][..]), "a PC");
        assert_eq!(page[0x250..0x258], [0; 8], "no list of setup data");
    }

    #[test]
    fn fields_are_where_linux_looks_for_them() {
        let page = of(&elf::tests::file(0x20_0000, &[(0x20_0000, b"text", 4)]), None);
        assert_eq!(page[0x70..0x78], 0xe_0000_u64.to_le_bytes());
        assert_eq!(&page[0x1fe..0x200], &[0x55, 0xaa]);
        assert_eq!(&page[0x202..0x206], b"HdrS");
        assert_eq!(page[0x228..0x22c], 0x9000_u32.to_le_bytes());
        assert_eq!(page[0x1e8], 4);
        assert_eq!(page[0x2d0 + 40..0x2d0 + 48], 0x10_0000_u64.to_le_bytes());
        assert_eq!(page[0x2d0 + 48..0x2d0 + 56], (63_u64 << 20).to_le_bytes());
    }

    #[test]
    fn the_map_is_ordered_and_its_ram_is_all_there_is() {
        for ram in [map::RAM_MIN, 64 << 20, map::RAM_MAX] {
            let map = e820(ram);
            assert!(map.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
            let usable: u64 = map.iter().filter(|entry| entry.2 == E820_RAM).map(|entry| entry.1).sum();
            assert_eq!(usable, ram - (0x10_0000 - 0xa_0000));
        }
    }
}
