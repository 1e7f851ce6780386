//! Builds a guest in its memory: image, page tables, descriptors, `boot_params`, command line, ACPI tables.

use core::fmt;

use super::{
    acpi::{self, Platform},
    boot_params, entry,
    image::{self, Files, Image, lay_out},
    memory_map as map,
};
use crate::addr::Gpa;

/// The bytes do not lie in the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outside;

/// A guest's memory while it is built. It begins at 0 and is zeroed.
pub trait GuestRam {
    /// Its bytes.
    fn len(&self) -> u64;

    /// Puts `bytes` at `gpa`.
    fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), Outside>;

    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// How the guest's first vCPU begins: long mode, paging on, flat segments, interrupts off (boot.rst, "64-bit boot protocol").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// First instruction.
    pub rip: u64,
    /// The address of `boot_params`.
    pub rsi: u64,
    /// Top of a small stack.
    pub rsp: u64,
    /// Page tables: the first 4 GiB map to themselves.
    pub cr3: u64,
    /// Descriptor table.
    pub gdt: Gpa,
    /// Its limit.
    pub gdt_limit: u16,
    /// Selector for CS: 64-bit code.
    pub code_selector: u16,
    /// Selector for SS, DS and ES: flat data.
    pub data_selector: u16,
}

/// Why a guest cannot be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BuildError {
    /// Its image or its initrd.
    Image(image::Error),
    /// A size of memory that a guest cannot have.
    Memory(u64),
    /// The command line does not fit or has a zero in it.
    Cmdline,
    /// No vCPU, or more than [`acpi::VCPUS_MAX`].
    Vcpus(u32),
    /// Something does not lie in the guest's memory.
    Outside,
}

impl From<image::Error> for BuildError {
    fn from(error: image::Error) -> Self {
        Self::Image(error)
    }
}

impl From<Outside> for BuildError {
    fn from(_: Outside) -> Self {
        Self::Outside
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(error) => write!(f, "image: {error}"),
            Self::Memory(bytes) => write!(f, "{bytes} bytes are no size for a guest's memory"),
            Self::Cmdline => write!(f, "the command line does not fit"),
            Self::Vcpus(count) => write!(f, "{count} vCPUs: 1 to {} are possible", acpi::VCPUS_MAX),
            Self::Outside => write!(f, "does not fit into the guest's memory"),
        }
    }
}

/// Builds a guest in `ram`, which is all zeros, and says how to enter it. The files are checked before anything is written.
pub fn build(ram: &mut dyn GuestRam, files: Files<'_>, platform: Platform) -> Result<Entry, BuildError> {
    let (vcpus, cmdline) = (platform.vcpus, files.cmdline);
    let size = ram.len();
    if !map::is_ram_size(size) {
        return Err(BuildError::Memory(size));
    }
    if cmdline.len() >= map::CMDLINE_SIZE || cmdline.contains('\0') {
        return Err(BuildError::Cmdline);
    }
    if vcpus == 0 || vcpus > acpi::VCPUS_MAX {
        return Err(BuildError::Vcpus(vcpus));
    }
    let layout = lay_out(files, size)?;
    match &layout.image {
        Image::Elf(image) => image.segments.iter().try_for_each(|segment| ram.write(segment.gpa, segment.bytes))?,
        Image::Linux(kernel) => ram.write(kernel.gpa, kernel.bytes)?,
    }
    if let Some(initrd) = &layout.initrd {
        ram.write(initrd.gpa, initrd.bytes)?;
    }
    write_entry_tables(ram)?;
    ram.write(map::ACPI, &acpi::tables(platform))?;
    ram.write(map::RESET_VECTOR, &entry::RESET_CODE)?;
    // The zero at its end is there already.
    ram.write(map::CMDLINE, cmdline.as_bytes())?;
    ram.write(map::BOOT_PARAMS, &boot_params::boot_params(size, &layout, map::ACPI))?;
    Ok(Entry {
        rip: layout.image.entry().as_u64(),
        rsi: map::BOOT_PARAMS.as_u64(),
        rsp: map::STACK_TOP.as_u64(),
        cr3: map::PAGE_TABLES.as_u64(),
        gdt: map::GDT,
        gdt_limit: entry::GDT_LIMIT,
        code_selector: entry::CODE_SELECTOR,
        data_selector: entry::DATA_SELECTOR,
    })
}

fn write_entry_tables(ram: &mut dyn GuestRam) -> Result<(), Outside> {
    let mut at = map::GDT.as_u64();
    for descriptor in entry::GDT {
        ram.write(Gpa::new(at), &descriptor.to_le_bytes())?;
        at += 8;
    }
    for table in 0..entry::TABLES {
        let (gpa, page) = entry::page_table(table);
        ram.write(gpa, &page)?;
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    fn platform(vcpus: u32) -> Platform {
        Platform { vcpus, ims_forbidden: false }
    }

    use super::{
        super::{bzimage, elf},
        *,
    };

    impl GuestRam for Vec<u8> {
        fn len(&self) -> u64 {
            Vec::len(self) as u64
        }

        fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), Outside> {
            let start = usize::try_from(gpa.as_u64()).map_err(|_| Outside)?;
            let end = start.checked_add(bytes.len()).ok_or(Outside)?;
            self.get_mut(start..end).ok_or(Outside)?.copy_from_slice(bytes);
            Ok(())
        }
    }

    const TOP: u64 = map::RAM_MIN;

    fn image() -> Vec<u8> {
        elf::tests::file(0x10_0000, &[(0x10_0000, b"\xf4", 1), (TOP - 0x1000, b"end", 0x1000)])
    }

    fn files<'a>(image: &'a [u8], cmdline: &'a str) -> Files<'a> {
        Files { image, initrd: None, cmdline }
    }

    #[test]
    fn a_linux_guest_has_its_kernel_and_its_initrd() {
        let mut ram = vec![0; bzimage::tests::RAM as usize];
        let (kernel, initrd) = (bzimage::tests::good(), vec![0x5a; 0x1001]);
        let files = Files { image: &kernel, initrd: Some(&initrd), cmdline: "quiet" };
        let entry = build(&mut ram, files, platform(1)).unwrap();
        assert_eq!(entry.rip, (16 << 20) + 0x200);
        assert_eq!(ram[16 << 20..][..0x1000], kernel[0x400..0x1400]);
        let top = ram.len();
        assert_eq!(&ram[top - 0x2000..][..0x1002], [&initrd[..], &[0]].concat());
        assert_eq!(&ram[0x9000..0x9006], b"quiet\0");
    }

    #[test]
    fn a_guest_has_all_that_its_entry_promises() {
        let mut ram = vec![0; TOP as usize];
        let entry = build(&mut ram, files(&image(), "hello"), platform(2)).unwrap();
        assert_eq!((entry.rip, ram[0x10_0000]), (0x10_0000, 0xf4));
        assert_eq!(&ram[TOP as usize - 0x1000..][..4], b"end\0");
        let params = &ram[entry.rsi as usize..][..4096];
        assert_eq!(&params[0x202..0x206], b"HdrS");
        let cmdline = u32::from_le_bytes(params[0x228..0x22c].try_into().unwrap()) as usize;
        assert_eq!(&ram[cmdline..cmdline + 6], b"hello\0");
        let rsdp = u64::from_le_bytes(params[0x70..0x78].try_into().unwrap()) as usize;
        assert_eq!(&ram[rsdp..rsdp + 8], b"RSD PTR ");
        assert_eq!(ram[0xf_fff0..0xf_fff6], [0xba, 0xf9, 0x0c, 0xb0, 0x06, 0xee], "F000:FFF0 resets");
        assert_eq!(ram[entry.cr3 as usize] & 1, 1);
        assert_eq!(ram[entry.gdt.as_u64() as usize + usize::from(entry.code_selector) + 5], 0x9b);
        assert!(ram[0xa000..entry.rsp as usize].iter().all(|byte| *byte == 0), "the stack is free");
    }

    #[test]
    fn what_cannot_be_built_leaves_the_memory_alone() {
        let mut ram = vec![0; TOP as usize];
        let long = "x".repeat(map::CMDLINE_SIZE);
        assert_eq!(build(&mut ram, files(&image(), &long), platform(1)), Err(BuildError::Cmdline));
        assert_eq!(build(&mut ram, files(&image(), "a\0b"), platform(1)), Err(BuildError::Cmdline));
        assert_eq!(build(&mut ram, files(&image(), ""), platform(0)), Err(BuildError::Vcpus(0)));
        assert_eq!(build(&mut ram, files(&image(), ""), platform(1025)), Err(BuildError::Vcpus(1025)));
        assert_eq!(build(&mut ram, files(b"no", ""), platform(1)), Err(BuildError::Image(elf::Error::NotElf.into())));
        let outside = elf::tests::file(TOP, &[(TOP, b"x", 1)]);
        assert_eq!(
            build(&mut ram, files(&outside, ""), platform(1)),
            Err(BuildError::Image(elf::Error::Outside(Gpa::new(TOP)).into()))
        );
        assert!(ram.iter().all(|byte| *byte == 0));
        let mut odd = vec![0; TOP as usize + 1];
        assert_eq!(build(&mut odd, files(&image(), ""), platform(1)), Err(BuildError::Memory(TOP + 1)));
    }

    #[test]
    fn the_longest_command_line_and_the_most_vcpus_fit() {
        let mut ram = vec![0; TOP as usize];
        let long = "x".repeat(map::CMDLINE_SIZE - 1);
        assert!(build(&mut ram, files(&image(), &long), platform(acpi::VCPUS_MAX)).is_ok());
        assert_eq!(
            (ram[0xf_fff0], ram[0x10_0000]),
            (0xba, 0xf4),
            "the tables end before the reset's code and the image"
        );
        let tables = acpi::tables(Platform { vcpus: acpi::VCPUS_MAX, ims_forbidden: true });
        assert!(map::ACPI.as_u64() + tables.len() as u64 <= map::ACPI_END.as_u64());
    }
}
