//! A guest's image: ELF64, x86-64, executable, loaded at its physical addresses.
//!
//! Nothing in the file is trusted. The segments that this returns lie in the guest's memory and do not overlap, and the entry point is in
//! one of them.

use alloc::vec::Vec;
use core::fmt;

use elf::{
    ElfBytes,
    abi::{EM_X86_64, ET_EXEC, PT_LOAD},
    endian::LittleEndian,
    file::Class,
    segment::ProgramHeader,
};

use super::memory_map::IMAGE;
use crate::addr::Gpa;

/// Most segments to load.
pub const SEGMENTS_MAX: usize = 64;

/// What to put where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Where it begins.
    pub gpa: Gpa,
    /// What the file has of it.
    pub bytes: &'a [u8],
    /// The segment's length in memory. Bytes beyond the file's are zero.
    pub len: u64,
}

impl Segment<'_> {
    /// Cannot overflow: an image's segments lie in the guest's memory.
    fn end(&self) -> u64 {
        self.gpa.as_u64().saturating_add(self.len)
    }
}

/// An image that can be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image<'a> {
    /// Where the guest begins.
    pub entry: Gpa,
    /// By address, apart from each other.
    pub segments: Vec<Segment<'a>>,
}

/// Why a file is no image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// No ELF file, or its headers do not lie in it.
    NotElf,
    /// Not 64-bit, x86-64 and `ET_EXEC`.
    Kind,
    /// Nothing to load.
    NoSegments,
    /// More segments than the loader takes.
    TooManySegments,
    /// This segment's bytes do not lie in the file, or are more than its length.
    Truncated(usize),
    /// This segment does not lie in the guest's memory from 1 MiB on.
    Outside(Gpa),
    /// Two segments overlap here.
    Overlap(Gpa),
    /// The entry lies in no segment.
    Entry(Gpa),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotElf => write!(f, "not an ELF file"),
            Self::Kind => write!(f, "not a 64-bit x86-64 executable at fixed addresses"),
            Self::NoSegments => write!(f, "nothing to load"),
            Self::TooManySegments => write!(f, "more than {SEGMENTS_MAX} segments"),
            Self::Truncated(index) => write!(f, "segment {index} is longer than the file"),
            Self::Outside(gpa) => write!(f, "the segment at {gpa} does not lie in memory from {IMAGE} on"),
            Self::Overlap(gpa) => write!(f, "segments overlap at {gpa}"),
            Self::Entry(gpa) => write!(f, "the entry {gpa} lies in no segment"),
        }
    }
}

/// Reads an image for a guest with `ram` bytes of memory.
pub fn parse(file: &[u8], ram: u64) -> Result<Image<'_>, Error> {
    let image = ElfBytes::<LittleEndian>::minimal_parse(file).map_err(|_| Error::NotElf)?;
    let header = &image.ehdr;
    if header.class != Class::ELF64 || header.e_machine != EM_X86_64 || header.e_type != ET_EXEC {
        return Err(Error::Kind);
    }
    // By their addresses, the lowest one first.
    let mut segments: Vec<Segment<'_>> = Vec::new();
    let loadable = |header: &ProgramHeader| header.p_type == PT_LOAD && header.p_memsz != 0;
    for (index, header) in image.segments().ok_or(Error::NoSegments)?.iter().enumerate().filter(|(_, h)| loadable(h)) {
        if segments.len() == SEGMENTS_MAX {
            return Err(Error::TooManySegments);
        }
        let segment = segment(file, index, &header, ram)?;
        let at = segments.partition_point(|other| other.gpa <= segment.gpa);
        segments.insert(at, segment);
    }
    let pairs = segments.iter().zip(segments.iter().skip(1));
    if let Some((_, second)) = pairs.into_iter().find(|(first, second)| first.end() > second.gpa.as_u64()) {
        return Err(Error::Overlap(second.gpa));
    }
    let entry = Gpa::new(header.e_entry);
    if segments.is_empty() {
        return Err(Error::NoSegments);
    }
    if !segments.iter().any(|segment| entry >= segment.gpa && entry.as_u64() < segment.end()) {
        return Err(Error::Entry(entry));
    }
    Ok(Image { entry, segments })
}

fn segment<'a>(file: &'a [u8], index: usize, header: &ProgramHeader, ram: u64) -> Result<Segment<'a>, Error> {
    let bytes = || {
        let start = usize::try_from(header.p_offset).ok()?;
        let len = usize::try_from(header.p_filesz).ok()?;
        file.get(start..start.checked_add(len)?).filter(|_| header.p_filesz <= header.p_memsz)
    };
    let bytes = bytes().ok_or(Error::Truncated(index))?;
    let gpa = Gpa::new(header.p_paddr);
    let end = gpa.checked_add(header.p_memsz).map(Gpa::as_u64);
    if gpa < IMAGE || end.is_none_or(|end| end > ram) {
        return Err(Error::Outside(gpa));
    }
    Ok(Segment { gpa, bytes, len: header.p_memsz })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    const RAM: u64 = 16 << 20;
    const HEADERS: usize = 64 + 2 * 56;

    /// A file with one segment for each (address, bytes, length).
    pub(in crate::guest) fn file(entry: u64, segments: &[(u64, &[u8], u64)]) -> Vec<u8> {
        let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 62, 0, 1, 0, 0, 0];
        [entry, 64, 0].iter().for_each(|field| file.extend_from_slice(&field.to_le_bytes()));
        file.extend_from_slice(&[0, 0, 0, 0, 64, 0, 56, 0, segments.len() as u8, 0, 64, 0, 0, 0, 0, 0]);
        let mut at = 64 + 56 * segments.len() as u64;
        for (gpa, bytes, len) in segments {
            file.extend_from_slice(&[1, 0, 0, 0, 7, 0, 0, 0]);
            [at, 0xffff_ffff_8000_0000 | *gpa, *gpa, bytes.len() as u64, *len, 0x1000]
                .iter()
                .for_each(|field| file.extend_from_slice(&field.to_le_bytes()));
            at += bytes.len() as u64;
        }
        segments.iter().for_each(|(_, bytes, _)| file.extend_from_slice(bytes));
        file
    }

    fn good() -> Vec<u8> {
        file(0x20_0004, &[(0x30_0000, b"data", 0x2000), (0x20_0000, b"text here", 9)])
    }

    #[test]
    fn segments_come_by_physical_address_with_their_bytes() {
        let file = good();
        let image = parse(&file, RAM).unwrap();
        assert_eq!(image.entry, Gpa::new(0x20_0004));
        let text = Segment { gpa: Gpa::new(0x20_0000), bytes: b"text here", len: 9 };
        let data = Segment { gpa: Gpa::new(0x30_0000), bytes: b"data", len: 0x2000 };
        assert_eq!(image.segments, [text, data]);
    }

    #[test]
    fn other_kinds_of_files_are_refused() {
        assert_eq!(parse(b"", RAM), Err(Error::NotElf));
        assert_eq!(parse(b"MZ not an image", RAM), Err(Error::NotElf));
        for (at, value) in [(16, 3), (16, 1), (18, 3)] {
            let mut file = good();
            file[at] = value;
            assert_eq!(parse(&file, RAM), Err(Error::Kind), "byte {at}");
        }
        assert_eq!(parse(&file(0, &[]), RAM), Err(Error::NoSegments));
        let many = vec![(0x20_0000, &b""[..], 0); 65];
        assert_eq!(parse(&file(0x20_0000, &many), RAM), Err(Error::NoSegments), "empty segments do not count");
        let many: Vec<_> = (0..65).map(|n| (0x20_0000 + n * 16, &b""[..], 16)).collect();
        assert_eq!(parse(&file(0x20_0000, &many), RAM), Err(Error::TooManySegments));
    }

    #[test]
    fn segments_stay_in_the_guests_memory_and_apart() {
        let error = |entry, segments: &[(u64, &[u8], u64)]| parse(&file(entry, segments), RAM).unwrap_err();
        assert_eq!(error(0x8000, &[(0x8000, b"x", 1)]), Error::Outside(Gpa::new(0x8000)), "the loader's own");
        assert_eq!(error(RAM - 1, &[(RAM - 1, b"x", 2)]), Error::Outside(Gpa::new(RAM - 1)));
        assert_eq!(error(0x20_0000, &[(0x20_0000, b"", u64::MAX)]), Error::Outside(Gpa::new(0x20_0000)));
        assert_eq!(error(0x20_0000, &[(0x20_0000, b"xyz", 2)]), Error::Truncated(0));
        let overlapping = [(0x20_0000, &b"x"[..], 0x1001), (0x20_1000, &b"y"[..], 1)];
        assert_eq!(error(0x20_0000, &overlapping), Error::Overlap(Gpa::new(0x20_1000)));
        assert_eq!(error(0x20_0001, &[(0x20_0000, b"x", 1)]), Error::Entry(Gpa::new(0x20_0001)));
        let mut cut = good();
        cut.pop();
        assert_eq!(parse(&cut, RAM), Err(Error::Truncated(1)));
    }

    fn check(file: &[u8]) -> Result<(), TestCaseError> {
        let Ok(image) = parse(file, RAM) else { return Ok(()) };
        let mut last = IMAGE.as_u64();
        for segment in &image.segments {
            prop_assert!(segment.gpa.as_u64() >= last && segment.bytes.len() as u64 <= segment.len);
            last = segment.end();
        }
        prop_assert!(last <= RAM);
        Ok(())
    }

    proptest! {
        #[test]
        fn random_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            check(&bytes)?;
        }

        #[test]
        fn a_damaged_file_is_refused_or_still_safe(
            changes in proptest::collection::vec((0..HEADERS, prop_oneof![any::<u8>(), Just(0), Just(0xff)]), 1..12),
            len in 0..HEADERS + 20
        ) {
            let mut file = good();
            changes.iter().for_each(|(at, value)| file[*at] = *value);
            check(&file)?;
            file.truncate(len);
            check(&file)?;
        }
    }
}
