//! A guest's files and their places in memory: its image, which is an ELF executable or a Linux kernel, and its initrd if it has one.
//!
//! The launcher reads files with this code before it builds anything, so it refuses the same files with the same messages as the
//! hypervisor.

use alloc::vec::Vec;
use core::fmt;

use super::{
    bzimage::{self, Kernel},
    elf, memory_map as map,
};
use crate::addr::{Gpa, PAGE_SIZE};

/// The command line of a module that is not a guest, but the initrd of the guest before it. No guest can have this name.
pub const INITRD: &str = "initrd";

/// The highest address of an initrd's last byte, for a kernel whose file gives none (boot.rst, `initrd_addr_max`).
const INITRD_MAX: u64 = 0x7fff_ffff;

/// What a guest is made of, as the boot loader loaded it.
#[derive(Clone, Copy, Debug)]
pub struct Files<'a> {
    /// The image.
    pub image: &'a [u8],
    /// The initrd, if there is one.
    pub initrd: Option<&'a [u8]>,
    /// The command line.
    pub cmdline: &'a str,
}

/// An image that can be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Image<'a> {
    /// An executable.
    Elf(elf::Image<'a>),
    /// A Linux kernel as distributions package it.
    Linux(Kernel<'a>),
}

impl Image<'_> {
    /// The guest's first instruction.
    pub fn entry(&self) -> Gpa {
        match self {
            Self::Elf(image) => image.entry,
            Self::Linux(kernel) => kernel.entry(),
        }
    }

    /// Where the memory that the image takes at first ends.
    fn end(&self) -> u64 {
        match self {
            Self::Elf(image) => image.segments.last().map_or(0, |last| last.gpa.as_u64().saturating_add(last.len)),
            Self::Linux(kernel) => kernel.range().end,
        }
    }

    fn initrd_max(&self) -> u64 {
        match self {
            Self::Elf(_) => INITRD_MAX,
            Self::Linux(kernel) => kernel.initrd_max,
        }
    }
}

/// An initrd and its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Initrd<'a> {
    /// Where it begins: at a page.
    pub gpa: Gpa,
    /// Its bytes: at least one, and all of them below 4 GiB.
    pub bytes: &'a [u8],
}

/// What goes where in a guest's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout<'a> {
    /// The image.
    pub image: Image<'a>,
    /// The initrd.
    pub initrd: Option<Initrd<'a>>,
}

/// Why a guest's files cannot be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The executable.
    Elf(elf::Error),
    /// The kernel.
    Linux(bzimage::Error),
    /// The initrd has no bytes.
    EmptyInitrd,
    /// The initrd has more bytes than there are between the image's end and the end of the memory in which it may lie.
    InitrdTooLarge {
        /// Bytes of the initrd.
        len: u64,
        /// Bytes that there are for it.
        room: u64,
    },
}

impl From<elf::Error> for Error {
    fn from(error: elf::Error) -> Self {
        Self::Elf(error)
    }
}

impl From<bzimage::Error> for Error {
    fn from(error: bzimage::Error) -> Self {
        Self::Linux(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Elf(error) => error.fmt(f),
            Self::Linux(error) => error.fmt(f),
            Self::EmptyInitrd => write!(f, "the initrd is empty"),
            Self::InitrdTooLarge { len, room } => {
                write!(f, "the initrd has {len} bytes, but beside the image there is room for {room}")
            }
        }
    }
}

/// Joins each initrd among these modules with its guest, the module before it. `is_initrd` returns whether a module is an initrd. An initrd
/// that follows no guest, or a guest with an initrd, stays in the list as a guest; [`super::options::Options::parse`] refuses its command
/// line.
pub fn with_initrds<T>(modules: impl IntoIterator<Item = T>, is_initrd: impl Fn(&T) -> bool) -> Vec<(T, Option<T>)> {
    let mut guests: Vec<(T, Option<T>)> = Vec::new();
    for module in modules {
        match guests.last_mut() {
            Some((guest, initrd @ None)) if is_initrd(&module) && !is_initrd(guest) => *initrd = Some(module),
            _ => guests.push((module, None)),
        }
    }
    guests
}

/// Finds the places of a guest's files in `ram` bytes of memory: the image's is its own choice, and the initrd lies as high as it may.
pub fn lay_out<'a>(files: Files<'a>, ram: u64) -> Result<Layout<'a>, Error> {
    let image = if bzimage::is_bzimage(files.image) {
        Image::Linux(bzimage::parse(files.image, ram, files.cmdline.len())?)
    } else {
        Image::Elf(elf::parse(files.image, ram)?)
    };
    let initrd = files.initrd.map(|bytes| place(bytes, &image, ram)).transpose()?;
    Ok(Layout { image, initrd })
}

fn place<'a>(bytes: &'a [u8], image: &Image<'_>, ram: u64) -> Result<Initrd<'a>, Error> {
    if bytes.is_empty() {
        return Err(Error::EmptyInitrd);
    }
    let len = bytes.len() as u64;
    let top = ram.min(image.initrd_max().saturating_add(1)).min(map::RAM_MAX);
    let first = image.end().max(map::IMAGE.as_u64()).next_multiple_of(PAGE_SIZE);
    let start = top.checked_sub(len).map(|start| start - start % PAGE_SIZE).filter(|start| *start >= first);
    match start {
        Some(start) => Ok(Initrd { gpa: Gpa::new(start), bytes }),
        None => Err(Error::InitrdTooLarge { len, room: top.saturating_sub(first) }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::bzimage::tests::{RAM, good},
        *,
    };

    fn files<'a>(image: &'a [u8], initrd: &'a [u8]) -> Files<'a> {
        Files { image, initrd: Some(initrd), cmdline: "" }
    }

    fn executable() -> Vec<u8> {
        elf::tests::file(0x20_0000, &[(0x20_0000, b"text", 0x1000)])
    }

    #[test]
    fn an_image_is_known_by_its_contents() {
        let (kernel, executable) = (good(), executable());
        let of = |image| lay_out(Files { image, initrd: None, cmdline: "" }, RAM).map(|layout| layout.image);
        assert!(matches!(of(&kernel), Ok(Image::Linux(_))));
        assert_eq!(of(&kernel).unwrap().entry(), Gpa::new((16 << 20) + 0x200));
        assert!(matches!(of(&executable), Ok(Image::Elf(_))));
        assert_eq!(of(b"neither"), Err(Error::Elf(elf::Error::NotElf)));
    }

    #[test]
    fn an_initrd_lies_as_high_as_the_memory_and_the_kernel_allow() {
        let (mut kernel, executable) = (good(), executable());
        let place = |image: &[u8], ram| lay_out(files(image, &[7; 5000]), ram).unwrap().initrd.unwrap().gpa.as_u64();
        assert_eq!(place(&kernel, RAM), RAM - 0x2000);
        assert_eq!(place(&executable, RAM), RAM - 0x2000);
        assert_eq!(place(&kernel, 3 << 30), (2 << 30) - 0x2000, "initrd_addr_max");
        assert_eq!(place(&executable, 3 << 30), (2 << 30) - 0x2000);
        kernel[0x22c..0x230].copy_from_slice(&0x01ff_ffff_u32.to_le_bytes());
        assert_eq!(place(&kernel, RAM), (32 << 20) - 0x2000);
        kernel[0x22c..0x230].fill(0xff);
        assert_eq!(place(&kernel, 3 << 30), (3 << 30) - 0x2000);
    }

    #[test]
    fn an_initrd_that_does_not_fit_is_refused_with_the_room_that_there_is() {
        let kernel = good();
        let end = (16 << 20) + 0x10_0000;
        let ram = end + 0x3000;
        assert!(lay_out(files(&kernel, &[0; 0x3000]), ram).is_ok());
        let error = lay_out(files(&kernel, &[0; 0x3001]), ram).unwrap_err();
        assert_eq!(error, Error::InitrdTooLarge { len: 0x3001, room: 0x3000 });
        assert!(error.to_string().contains("12289 bytes"), "{error}");
        assert_eq!(lay_out(files(&kernel, &[]), ram), Err(Error::EmptyInitrd));
    }

    #[test]
    fn an_initrd_belongs_to_the_guest_before_it() {
        let group = |modules: &[&'static str]| with_initrds(modules.iter().copied(), |module| *module == INITRD);
        assert_eq!(group(&["a", INITRD, "b", "c", INITRD]), [("a", Some(INITRD)), ("b", None), ("c", Some(INITRD))]);
        assert_eq!(group(&[INITRD, "a"]), [(INITRD, None), ("a", None)]);
        assert_eq!(group(&["a", INITRD, INITRD, INITRD]), [("a", Some(INITRD)), (INITRD, None), (INITRD, None)]);
    }

    proptest! {
        #[test]
        fn an_initrd_never_meets_the_image_nor_leaves_the_memory(
            len in 1_usize..0x20_0000,
            ram in (17_u64 << 20..64 << 20),
            max: u32,
        ) {
            let mut kernel = good();
            kernel[0x22c..0x230].copy_from_slice(&max.to_le_bytes());
            let initrd = vec![0; len];
            let Ok(Layout { image, initrd: Some(initrd) }) = lay_out(files(&kernel, &initrd), ram) else {
                return Ok(());
            };
            let start = initrd.gpa.as_u64();
            prop_assert!(start >= image.end() && start + len as u64 <= ram && start + len as u64 - 1 <= u64::from(max));
            prop_assert_eq!(start % PAGE_SIZE, 0);
        }
    }
}
