//! ELF images: how much memory one loads, and invalid images for tests.

use anyhow::{Result, ensure};
use object::elf::{self, FileClass, FileHeader64, Machine};
use object::endian::{LittleEndian, U16, U32, U64};
use object::pod::bytes_of;
use object::read::elf::{FileHeader as _, ProgramHeader as _};

type Header = FileHeader64<LittleEndian>;
type ProgramHeader = elf::ProgramHeader64<LittleEndian>;

/// Bytes that a loader takes from the file into memory: the sizes in the file of all loadable segments. Symbols, debugging
/// information and zeroed memory do not count.
pub fn loaded_bytes(image: &[u8]) -> Result<u64> {
    let header = Header::parse(image)?;
    let endian = header.endian()?;
    let segments = header.program_headers(endian, image)?;
    let loadable = segments.iter().filter(|segment| segment.p_type(endian) == elf::PT_LOAD);
    let bytes = loadable.map(|segment| segment.p_filesz(endian)).sum();
    ensure!(bytes > 0, "nothing of the image is loaded");
    Ok(bytes)
}

/// A small executable with one segment, which ends its guest. Each field can be made wrong.
#[derive(Debug, Clone, Copy)]
pub struct Executable {
    /// 32 or 64 bits.
    pub class: FileClass,
    /// For which processor.
    pub machine: Machine,
    /// Where it is entered.
    pub entry: u64,
    /// Where its segment goes.
    pub address: u64,
    /// The segment's place in the file.
    pub offset: u64,
    /// The segment's size in the file.
    pub file_size: u64,
    /// The segment's size in memory.
    pub memory_size: u64,
    /// How many program headers there are said to be; there is one.
    pub segments: u16,
}

/// `xor eax, eax; out 0xf4, al`, and `hlt` for ever: a guest's end, with code 0.
const CODE: [u8; 7] = [0x31, 0xc0, 0xe6, 0xf4, 0xf4, 0xeb, 0xfd];

const HEADERS: u64 = (size_of::<Header>() + size_of::<ProgramHeader>()) as u64;

impl Executable {
    /// One with nothing wrong.
    pub const RIGHT: Self = Self {
        class: elf::ELFCLASS64,
        machine: elf::EM_X86_64,
        entry: 0x20_0000,
        address: 0x20_0000,
        offset: HEADERS,
        file_size: CODE.len() as u64,
        memory_size: 0x1000,
        segments: 1,
    };

    /// The file.
    pub fn bytes(&self) -> Vec<u8> {
        [bytes_of(&self.header()), bytes_of(&self.program_header()), &CODE].concat()
    }

    fn header(&self) -> Header {
        Header {
            e_ident: elf::Ident {
                magic: elf::ELFMAG,
                class: self.class,
                data: elf::ELFDATA2LSB,
                version: elf::EV_CURRENT,
                os_abi: elf::ELFOSABI_NONE,
                abi_version: 0,
                padding: [0; 7],
            },
            e_type: U16::new(LittleEndian, elf::ET_EXEC),
            e_machine: U16::new(LittleEndian, self.machine),
            e_version: U32::new(LittleEndian, elf::EV_CURRENT.0.into()),
            e_entry: U64::new(LittleEndian, self.entry),
            e_phoff: U64::new(LittleEndian, size_of::<Header>() as u64),
            e_shoff: U64::default(),
            e_flags: U32::default(),
            e_ehsize: U16::new(LittleEndian, size_of::<Header>() as u16),
            e_phentsize: U16::new(LittleEndian, size_of::<ProgramHeader>() as u16),
            e_phnum: U16::new(LittleEndian, self.segments),
            e_shentsize: U16::default(),
            e_shnum: U16::default(),
            e_shstrndx: U16::default(),
        }
    }

    fn program_header(&self) -> ProgramHeader {
        let u64 = |value| U64::new(LittleEndian, value);
        ProgramHeader {
            p_type: U32::new(LittleEndian, elf::PT_LOAD),
            p_flags: U32::new(LittleEndian, elf::PF_R | elf::PF_W | elf::PF_X),
            p_offset: u64(self.offset),
            p_vaddr: u64(self.address),
            p_paddr: u64(self.address),
            p_filesz: u64(self.file_size),
            p_memsz: u64(self.memory_size),
            p_align: u64(0x1000),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_in_the_file_counts_as_loaded() {
        let image = Executable { memory_size: 1 << 40, ..Executable::RIGHT }.bytes();
        assert_eq!(loaded_bytes(&image).unwrap(), CODE.len() as u64);
        assert_eq!(image.len() as u64, HEADERS + CODE.len() as u64);
    }

    #[test]
    fn an_image_of_which_nothing_is_loaded_weighs_nothing_and_is_refused() {
        assert!(loaded_bytes(&Executable { segments: 0, ..Executable::RIGHT }.bytes()).is_err());
        assert!(loaded_bytes(b"garbage").is_err());
    }
}
