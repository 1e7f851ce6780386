//! Boot information: memory and modules, as the boot loader passes them. Multiboot2 specification, 3.6.

use alloc::{string::String, vec::Vec};
use core::fmt;

use multiboot2::{BootInformation, BootInformationHeader, MAGIC, TagType};

use crate::{
    addr::Hpa,
    guest::image::{INITRD, with_initrds},
    memory::PhysRange,
};

/// Most modules that are looked at: 64 guests, each with an initrd.
const MODULES: usize = 128;

/// Types of memory (multiboot2, 3.6.8).
const USABLE: u32 = 1;
const BAD: u32 = 5;

/// Why the boot information cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootInfoError {
    /// EAX did not hold the magic number.
    Magic(u32),
    /// The structure is malformed.
    Malformed,
    /// There is no memory map.
    NoMemoryMap,
}

impl fmt::Display for BootInfoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic(magic) => write!(f, "not loaded by a multiboot2 loader (magic {magic:#x})"),
            Self::Malformed => f.write_str("the boot loader's information is malformed"),
            Self::NoMemoryMap => f.write_str("the boot loader gives no memory map"),
        }
    }
}

/// The boot information structure.
pub struct BootInfo {
    information: BootInformation<'static>,
}

/// A guest's image, its module command line, and its initrd.
#[derive(Clone, Debug)]
pub struct Module {
    /// Where the image is.
    pub range: PhysRange,
    /// The module command line, if it is UTF-8.
    pub command_line: Option<String>,
    /// Where the initrd is, if the guest has one.
    pub initrd: Option<PhysRange>,
}

impl BootInfo {
    /// Takes the values that the entry code found in EAX and EBX.
    ///
    /// # Safety
    /// `address` is what a multiboot2 loader put into EBX, if `magic` is what it put into EAX; the memory there is mapped and stays
    /// as it is.
    pub unsafe fn new(magic: u32, address: Hpa) -> Result<Self, BootInfoError> {
        if magic != MAGIC {
            return Err(BootInfoError::Magic(magic));
        }
        // SAFETY: the caller vouches for the address.
        let information = unsafe { BootInformation::load(address.as_u64() as *const BootInformationHeader) }
            .map_err(|_| BootInfoError::Malformed)?;
        if information.memory_map_tag().is_none() {
            return Err(BootInfoError::NoMemoryMap);
        }
        Ok(Self { information })
    }

    /// The ranges of the memory map: usable ones, or the others but for bad memory.
    pub fn memory(&self, usable: bool) -> impl Iterator<Item = PhysRange> + Clone + '_ {
        self.ranges(move |kind| kind != BAD && (kind == USABLE) == usable)
    }

    /// The ranges that the memory map calls bad memory.
    pub fn bad_memory(&self) -> impl Iterator<Item = PhysRange> + Clone + '_ {
        self.ranges(|kind| kind == BAD)
    }

    /// The ranges of these types. Empty ones, which firmware lists now and then, are skipped.
    fn ranges(&self, is_it: impl Fn(u32) -> bool + Clone) -> impl Iterator<Item = PhysRange> + Clone {
        self.information
            .memory_map_tag()
            .into_iter()
            .flat_map(|map| map.memory_areas())
            .filter(move |area| is_it(area.typ().into()))
            .map(|area| PhysRange::new(Hpa::new(area.start_address()), area.size()))
            .filter(|range| range.len != 0)
    }

    /// The ranges of usable memory that the loader has used: the structure itself, and the modules that are not empty.
    pub fn occupied(&self) -> impl Iterator<Item = PhysRange> + Clone + '_ {
        let own =
            PhysRange::new(Hpa::new(self.information.start_address() as u64), self.information.total_size() as u64);
        let modules = self.information.module_tags().take(MODULES).map(module_range);
        [own].into_iter().chain(modules).filter(|range| range.len > 0)
    }

    /// The guests' modules, in the loader's order.
    pub fn modules(&self) -> Vec<Module> {
        let tags = self.information.module_tags().take(MODULES);
        let grouped = with_initrds(tags, |tag| tag.cmdline().is_ok_and(|line| line == INITRD));
        let module = |(image, initrd): (&multiboot2::ModuleTag, Option<_>)| Module {
            range: module_range(image),
            command_line: image.cmdline().ok().map(String::from),
            initrd: initrd.map(module_range),
        };
        grouped.into_iter().map(module).collect()
    }

    /// The hypervisor's own command line; empty where there is none, or where it is not UTF-8.
    pub fn command_line(&self) -> &str {
        self.information.command_line_tag().and_then(|tag| tag.cmdline().ok()).unwrap_or("")
    }

    /// The bytes after the header of the framebuffer tag. The crate's own reader panics on a tag that is too short.
    pub fn framebuffer(&self) -> Option<&[u8]> {
        let tag = self.information.tags().find(|tag| TagType::from(tag.header().typ) == TagType::Framebuffer)?;
        Some(tag.payload())
    }

    /// The address of the loader's copy of the ACPI root pointer, of the newer one if there are two.
    pub fn rsdp(&self) -> Option<Hpa> {
        /// Bytes of a tag before its payload.
        const TAG_HEADER: u64 = 8;
        let new = self.information.rsdp_v2_tag().map(|tag| &raw const *tag as u64);
        let old = self.information.rsdp_v1_tag().map(|tag| &raw const *tag as u64);
        new.or(old).map(|tag| Hpa::new(tag + TAG_HEADER))
    }
}

fn module_range(module: &multiboot2::ModuleTag) -> PhysRange {
    let start = u64::from(module.start_address());
    PhysRange::new(Hpa::new(start), u64::from(module.end_address()).saturating_sub(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A memory map as a loader hands it over: base, length and type of each entry. It lives for ever.
    fn loaded(areas: &[(u64, u64, u32)]) -> BootInfo {
        let entries = areas.iter().flat_map(|&(base, len, kind)| [base, len, kind.into()]);
        let size = 16 + 24 * areas.len() as u64;
        // Tag 6: type and size, size and version of an entry; then the tag that ends the structure.
        let tags: Vec<u64> = [6 | size << 32, 24].into_iter().chain(entries).chain([8 << 32]).collect();
        let words: Vec<u64> = [8 + 8 * tags.len() as u64].into_iter().chain(tags).collect();
        // SAFETY: the structure was built by the specification's layout, is aligned to 8 bytes, and lives for ever.
        unsafe { BootInfo::new(MAGIC, Hpa::new(words.leak().as_ptr() as u64)) }.unwrap()
    }

    #[test]
    fn empty_ranges_of_the_memory_map_are_skipped_and_bad_memory_is_apart() {
        let info = loaded(&[
            (0, 0x9_fc00, 1),
            (0x9_fc00, 0x400, 2),
            (0x10_0000, 0, 1),
            (0x10_0000, 0x7f0_0000, 1),
            (0x800_0000, 0x1000, 5),
            (0xfec0_0000, 0, 2),
        ]);
        let seen = |ranges: Vec<PhysRange>| -> Vec<_> {
            ranges.into_iter().map(|range| (range.start.as_u64(), range.len)).collect()
        };
        assert_eq!(seen(info.memory(true).collect()), [(0, 0x9_fc00), (0x10_0000, 0x7f0_0000)]);
        assert_eq!(seen(info.memory(false).collect()), [(0x9_fc00, 0x400)]);
        assert_eq!(seen(info.bad_memory().collect()), [(0x800_0000, 0x1000)]);
    }

    #[test]
    fn another_loader_is_refused_by_its_magic_number() {
        // SAFETY: nothing is read with another magic number.
        let refused = unsafe { BootInfo::new(0x2bad_b002, Hpa::new(0)) };
        assert_eq!(refused.err(), Some(BootInfoError::Magic(0x2bad_b002)));
    }
}
