//! Linux's compressed kernel image, a bzImage, for its 64-bit entry (Documentation/arch/x86/boot.rst).
//!
//! The file begins with the real-mode code. Its setup header describes the rest: the protected-mode kernel, which a loader puts at the
//! header's preferred address. Nothing in the file is trusted. The kernel that [`parse`] returns lies in the file. The memory that the
//! kernel needs until it has a memory map of its own lies in the guest's memory.

use core::{fmt, ops::Range};

use super::memory_map::{CMDLINE_SIZE, IMAGE};
use crate::addr::Gpa;

/// The sectors that the setup header counts in.
const SECTOR: usize = 512;
/// Where the setup header begins, in the file and in `boot_params`.
pub const SETUP_HEADER: usize = 0x1f1;
/// Where the setup header must have ended: `boot_params` has other fields from there on.
const SETUP_HEADER_LIMIT: usize = 0x290;
/// How far behind the protected-mode kernel's beginning its 64-bit entry lies.
const ENTRY_64: u64 = 0x200;

// Fields of the setup header, by their offsets in the file.
const SETUP_SECTS: usize = 0x1f1;
const SYSSIZE: usize = 0x1f4;
const BOOT_FLAG: usize = 0x1fe;
/// A short jump over the header. Its second byte gives the header's end.
const JUMP: usize = 0x200;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const LOADFLAGS: usize = 0x211;
const INITRD_ADDR_MAX: usize = 0x22c;
const KERNEL_ALIGNMENT: usize = 0x230;
const RELOCATABLE_KERNEL: usize = 0x234;
const XLOADFLAGS: usize = 0x236;
const KERNEL_CMDLINE_SIZE: usize = 0x238;
const PREF_ADDRESS: usize = 0x258;
const INIT_SIZE: usize = 0x260;
/// The header of protocol 2.12 has all fields up to here.
const KNOWN_END: usize = 0x264;

const BOOT_FLAG_VALUE: u16 = 0xaa55;
const SHORT_JUMP: u8 = 0xeb;
/// `setup_sects` of very old kernels.
const SETUP_SECTS_OF_ZERO: u8 = 4;
/// The first protocol that has `xloadflags`, and with them the 64-bit entry.
const OLDEST: u16 = 0x20c;
const LOADED_HIGH: u8 = 1 << 0;
const XLF_KERNEL_64: u16 = 1 << 0;
/// Unit of `syssize`.
const PARAGRAPH: u64 = 16;
/// The kernel maps itself by pages of this size.
const LEAST_ALIGNMENT: u64 = 0x20_0000;

/// A kernel that can be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel<'a> {
    /// Where the protected-mode kernel is to lie.
    pub gpa: Gpa,
    /// The protected-mode kernel.
    pub bytes: &'a [u8],
    /// Bytes from `gpa` on that the kernel uses before it reads the memory map.
    pub init_size: u64,
    /// The setup header, for `boot_params` at [`SETUP_HEADER`].
    pub setup_header: &'a [u8],
    /// The highest address that the initrd may have a byte at.
    pub initrd_max: u64,
}

impl Kernel<'_> {
    /// Its 64-bit entry.
    pub fn entry(&self) -> Gpa {
        // `parse` has checked that the kernel's bytes contain the entry.
        Gpa::new(self.gpa.as_u64() + ENTRY_64)
    }

    /// The memory that it uses at first.
    pub fn range(&self) -> Range<u64> {
        self.gpa.as_u64()..self.gpa.as_u64() + self.init_size
    }
}

/// Why a file is no kernel that can be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Its setup header lacks the magic number `HdrS`, or its boot sector the flag.
    Magic,
    /// The setup header ends too early or too late.
    Header,
    /// Its boot protocol is older than 2.12.
    Protocol(u16),
    /// It is no bzImage, but a zImage that is loaded low.
    LoadedLow,
    /// It has no 64-bit entry.
    No64BitEntry,
    /// Its alignment is no power of two, or too small for the kernel's pages.
    Alignment(u32),
    /// Its preferred address is not aligned, or lies below the first address at which an image may lie.
    PreferredAddress(u64),
    /// The file has fewer bytes than its header says.
    Truncated {
        /// The bytes that there should be.
        needs: u64,
        /// Those that there are.
        has: u64,
    },
    /// The memory that it says it needs is less than its own bytes, or it has no room for its entry.
    InitSize(u32),
    /// It needs more memory than the guest has.
    Memory {
        /// Bytes of memory that the guest would have to have.
        needs: u64,
    },
    /// The command line is longer than this kernel takes.
    Cmdline {
        /// Bytes that it has.
        len: usize,
        /// Bytes that the kernel takes.
        most: usize,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic => write!(f, "not a Linux kernel: no setup header"),
            Self::Header => write!(f, "the kernel's setup header has an impossible length"),
            Self::Protocol(version) => {
                let (major, minor) = (version >> 8, version & 0xff);
                write!(f, "the kernel speaks boot protocol {major}.{minor:02}, but 2.12 or later is needed")
            }
            Self::LoadedLow => write!(f, "the kernel is a zImage, but a bzImage is needed"),
            Self::No64BitEntry => write!(f, "the kernel has no 64-bit entry: it is a 32-bit one"),
            Self::Alignment(alignment) => write!(f, "the kernel's alignment {alignment:#x} is impossible"),
            Self::PreferredAddress(address) => write!(f, "the kernel cannot lie at its preferred address {address:#x}"),
            Self::Truncated { needs, has } => write!(f, "the kernel is cut short: {has} of {needs} bytes are there"),
            Self::InitSize(size) => write!(f, "the kernel cannot do with the {size:#x} bytes that it says it needs"),
            Self::Memory { needs } => {
                write!(f, "the kernel needs {} MiB of memory to start", needs.div_ceil(1 << 20))
            }
            Self::Cmdline { len, most } => write!(f, "the command line has {len} bytes, but the kernel takes {most}"),
        }
    }
}

/// Whether a file claims to be a Linux kernel: it has a setup header's magic number where that should be.
pub fn is_bzimage(file: &[u8]) -> bool {
    field(file, MAGIC) == Some(*b"HdrS")
}

/// Reads a kernel for a guest with `ram` bytes of memory and a command line of `cmdline_len` bytes.
pub fn parse(file: &[u8], ram: u64, cmdline_len: usize) -> Result<Kernel<'_>, Error> {
    let setup_header = setup_header(file)?;
    let setup = Setup(file);
    let version = u16::from_le_bytes(setup.get(VERSION)?);
    if version < OLDEST {
        return Err(Error::Protocol(version));
    }
    // Checked after the version, because an older header may be shorter.
    if SETUP_HEADER + setup_header.len() < KNOWN_END {
        return Err(Error::Header);
    }
    let [loadflags] = setup.get(LOADFLAGS)?;
    if loadflags & LOADED_HIGH == 0 {
        return Err(Error::LoadedLow);
    }
    if u16::from_le_bytes(setup.get(XLOADFLAGS)?) & XLF_KERNEL_64 == 0 {
        return Err(Error::No64BitEntry);
    }
    let gpa = place(&setup)?;
    let bytes = protected_mode(file, &setup)?;
    let init_size = u32::from_le_bytes(setup.get(INIT_SIZE)?);
    if u64::from(init_size) < bytes.len() as u64 || bytes.len() as u64 <= ENTRY_64 {
        return Err(Error::InitSize(init_size));
    }
    let init_size = u64::from(init_size);
    let needs = gpa.as_u64().saturating_add(init_size);
    if needs > ram {
        return Err(Error::Memory { needs });
    }
    // Some kernels say 0 and take what boot.rst gives the oldest ones, 255 bytes.
    let most = match u32::from_le_bytes(setup.get(KERNEL_CMDLINE_SIZE)?) {
        0 => 255,
        most => most as usize,
    };
    let cmdline_max = most.min(CMDLINE_SIZE - 1);
    if cmdline_len > cmdline_max {
        return Err(Error::Cmdline { len: cmdline_len, most: cmdline_max });
    }
    let initrd_max = u32::from_le_bytes(setup.get(INITRD_ADDR_MAX)?).into();
    Ok(Kernel { gpa, bytes, init_size, setup_header, initrd_max })
}

/// A file as far as its setup header.
struct Setup<'a>(&'a [u8]);

impl Setup<'_> {
    fn get<const N: usize>(&self, at: usize) -> Result<[u8; N], Error> {
        field(self.0, at).ok_or(Error::Header)
    }
}

fn field<const N: usize>(file: &[u8], at: usize) -> Option<[u8; N]> {
    file.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// The setup header's bytes.
fn setup_header(file: &[u8]) -> Result<&[u8], Error> {
    let flag = field(file, BOOT_FLAG).map(u16::from_le_bytes);
    if !is_bzimage(file) || flag != Some(BOOT_FLAG_VALUE) {
        return Err(Error::Magic);
    }
    let Some([SHORT_JUMP, distance]) = field(file, JUMP) else { return Err(Error::Header) };
    // The distance counts from behind the jump.
    let end = MAGIC + usize::from(distance);
    file.get(SETUP_HEADER..end).filter(|_| end <= SETUP_HEADER_LIMIT).ok_or(Error::Header)
}

/// Where the kernel is to lie: the preferred address. A relocatable kernel runs at no lower one, and moves itself where it likes.
fn place(setup: &Setup<'_>) -> Result<Gpa, Error> {
    let alignment = u32::from_le_bytes(setup.get(KERNEL_ALIGNMENT)?);
    let [relocatable] = setup.get(RELOCATABLE_KERNEL)?;
    // Only a relocatable kernel says what it has to be aligned to.
    let needed = if relocatable != 0 { u64::from(alignment) } else { LEAST_ALIGNMENT };
    if !needed.is_power_of_two() || needed < LEAST_ALIGNMENT {
        return Err(Error::Alignment(alignment));
    }
    let address = u64::from_le_bytes(setup.get(PREF_ADDRESS)?);
    if address < IMAGE.as_u64() || !address.is_multiple_of(needed) {
        return Err(Error::PreferredAddress(address));
    }
    Ok(Gpa::new(address))
}

/// The protected-mode kernel's bytes. Later bytes of the file, such as a signature for UEFI, are not loaded.
fn protected_mode<'a>(file: &'a [u8], setup: &Setup<'_>) -> Result<&'a [u8], Error> {
    let [sectors] = setup.get(SETUP_SECTS)?;
    let sectors = if sectors == 0 { SETUP_SECTS_OF_ZERO } else { sectors };
    // The boot sector is not among the setup sectors.
    let start = (usize::from(sectors) + 1) * SECTOR;
    let len = u64::from(u32::from_le_bytes(setup.get(SYSSIZE)?)) * PARAGRAPH;
    let end = usize::try_from(len).ok().and_then(|len| start.checked_add(len));
    let bytes = end.and_then(|end| file.get(start..end));
    bytes.ok_or(Error::Truncated { needs: start as u64 + len, has: file.len() as u64 })
}

#[cfg(test)]
#[path = "bzimage_tests.rs"]
pub(super) mod tests;
