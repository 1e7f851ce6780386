//! The client's memory: which of the device's addresses lead where.
//!
//! Memory is reached by reads and writes of the file that the client sent, never by mapping it: so there is no memory that
//! another process changes under a reference of ours, and a file that was cut short is an error instead of a signal.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use crate::wire::{Errno, Map, Range};

/// The most mappings at one time: what QEMU asks for by itself (Linux' `dma_entry_limit`).
pub const MAX_MAPPINGS: usize = 65_535;

/// No memory there, or none with this right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotMapped;

/// One range of addresses that lead into a file.
#[derive(Clone, Debug)]
struct Mapping {
    last: u64,
    /// Where in the file the first address leads.
    offset: u64,
    /// None: the client keeps it to itself, as it does with what is no RAM.
    file: Option<Rc<File>>,
    read: bool,
    write: bool,
}

/// All mappings, by their first address. They do not overlap.
#[derive(Debug, Default)]
pub struct DmaMap(BTreeMap<u64, Mapping>);

impl DmaMap {
    /// Adds a mapping. One that overlaps another is refused.
    pub fn map(&mut self, map: Map, file: Option<File>) -> Result<(), Errno> {
        if self.overlapping(map.range).next().is_some() {
            return Err(Errno::Exists);
        }
        if self.0.len() >= MAX_MAPPINGS {
            return Err(Errno::NoSpace);
        }
        let Map { range, offset, read, write } = map;
        self.0.insert(range.first, Mapping { last: range.last, offset, file: file.map(Rc::new), read, write });
        Ok(())
    }

    /// Takes everything in a range away; of mappings that are partly in it, what is outside stays.
    pub fn unmap(&mut self, range: Range) {
        let first: Vec<u64> = self.overlapping(range).map(|(first, _)| first).collect();
        for first in first {
            let Some(mapping) = self.0.remove(&first) else { continue };
            if mapping.last > range.last {
                let skipped = range.last - first + 1;
                self.0.insert(range.last + 1, Mapping { offset: mapping.offset + skipped, ..mapping.clone() });
            }
            if first < range.first {
                self.0.insert(first, Mapping { last: range.first - 1, ..mapping });
            }
        }
    }

    /// Takes everything away.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Fills `buf` from `address`.
    pub fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), NotMapped> {
        let (file, offset) = self.find(address, buf.len(), |mapping| mapping.read)?;
        file.read_exact_at(buf, offset).map_err(gone)
    }

    /// Writes `data` to `address`. Who sees the first bytes of it sees all: they are written last, because a completion record
    /// begins with its status, for which software may look without waiting for an interrupt.
    pub fn write(&self, address: u64, data: &[u8]) -> Result<(), NotMapped> {
        let (file, offset) = self.find(address, data.len(), |mapping| mapping.write)?;
        let (head, tail) = data.split_at(data.len().min(FIRST));
        file.write_all_at(tail, offset + head.len() as u64).map_err(gone)?;
        file.write_all_at(head, offset).map_err(gone)
    }

    /// The file behind a piece of memory that lies in one mapping, and where in it.
    fn find(&self, address: u64, len: usize, may: fn(&Mapping) -> bool) -> Result<(&File, u64), NotMapped> {
        let range = Range::new(address, len as u64).ok_or(NotMapped)?;
        let (first, mapping) = self.0.range(..=address).next_back().ok_or(NotMapped)?;
        let file = mapping.file.as_deref().filter(|_| mapping.last >= range.last && may(mapping)).ok_or(NotMapped)?;
        Ok((file, mapping.offset + (address - first)))
    }

    fn overlapping(&self, range: Range) -> impl Iterator<Item = (u64, &Mapping)> {
        // The one that begins at or before the range, and those that begin in it.
        let before = self.0.range(..=range.first).next_back().filter(|(_, mapping)| mapping.last >= range.first);
        let within = range.first.checked_add(1).filter(|from| *from <= range.last);
        let within = within.map(|from| self.0.range(from..=range.last));
        before.into_iter().chain(within.into_iter().flatten()).map(|(first, mapping)| (*first, mapping))
    }
}

/// What is written last of a piece: a quadword.
const FIRST: usize = 8;

/// The file is shorter than the client said, or no file of memory.
fn gone(_: io::Error) -> NotMapped {
    NotMapped
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(size: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        file
    }

    fn map(first: u64, size: u64, offset: u64) -> Map {
        Map { range: Range::new(first, size).unwrap(), offset, read: true, write: true }
    }

    fn read(memory: &DmaMap, address: u64) -> Option<u8> {
        let mut byte = [0];
        memory.read(address, &mut byte).ok().map(|()| byte[0])
    }

    #[test]
    fn what_is_written_is_at_the_files_offset() {
        let (file, mut memory) = (file(0x3000), DmaMap::default());
        let copy = file.try_clone().unwrap();
        memory.map(map(0x10_0000, 0x1000, 0x2000), Some(file)).unwrap();
        let data: Vec<u8> = (1..=32).collect();
        memory.write(0x10_0010, &data).unwrap();
        let mut seen = [0; 32];
        copy.read_exact_at(&mut seen, 0x2010).unwrap();
        assert_eq!(seen[..], data);
        memory.read(0x10_0010, &mut seen).unwrap();
        assert_eq!(seen[..], data);
    }

    #[test]
    fn pieces_lie_in_one_mapping_that_has_the_right() {
        let mut memory = DmaMap::default();
        memory.map(Map { write: false, ..map(0x1000, 0x1000, 0) }, Some(file(0x1000))).unwrap();
        memory.map(Map { read: false, ..map(0x2000, 0x1000, 0) }, Some(file(0x1000))).unwrap();
        memory.map(map(0x3000, 0x1000, 0), None).unwrap();
        let mut two = [0; 2];
        assert_eq!(memory.read(0x1ffe, &mut two), Ok(()));
        assert_eq!(memory.read(0x1fff, &mut two), Err(NotMapped), "in two mappings");
        assert_eq!(memory.write(0x1000, &two), Err(NotMapped), "read-only");
        assert_eq!(memory.write(0x2000, &two), Ok(()));
        assert_eq!(memory.read(0x2000, &mut two), Err(NotMapped), "write-only");
        assert_eq!(memory.read(0x3000, &mut two), Err(NotMapped), "without a file");
        for address in [0, 0xfff, 0x4000, u64::MAX] {
            assert_eq!(memory.read(address, &mut two), Err(NotMapped));
        }
        assert_eq!(memory.read(0x1000, &mut []), Err(NotMapped), "nothing at all");
    }

    #[test]
    fn a_file_that_is_shorter_than_its_mapping_is_an_error() {
        let mut memory = DmaMap::default();
        memory.map(map(0, 0x2000, 0), Some(file(0x1000))).unwrap();
        assert_eq!((read(&memory, 0xfff), read(&memory, 0x1000)), (Some(0), None));
    }

    #[test]
    fn mappings_do_not_overlap_and_are_bounded() {
        let mut memory = DmaMap::default();
        memory.map(map(0x1000, 0x1000, 0), None).unwrap();
        for (first, size) in [(0x1000, 0x1000), (0, 0x1001), (0x1fff, 1), (0, u64::MAX)] {
            assert_eq!(memory.map(map(first, size, 0), None), Err(Errno::Exists), "{first:#x}");
        }
        for n in 1..MAX_MAPPINGS as u64 {
            memory.map(map(0x10_0000 + n, 1, 0), None).unwrap();
        }
        assert_eq!(memory.map(map(0, 1, 0), None), Err(Errno::NoSpace));
    }

    #[test]
    fn a_part_that_is_taken_away_leaves_the_rest_where_it_was() {
        let file = file(0x4000);
        (0..4).for_each(|page: u8| file.write_all_at(&[page], u64::from(page) * 0x1000).unwrap());
        let mut memory = DmaMap::default();
        memory.map(map(0x8000, 0x4000, 0), Some(file)).unwrap();
        memory.unmap(Range::new(0x9000, 0x1000).unwrap());
        let pages = [0x8000, 0x9000, 0xa000, 0xb000].map(|address| read(&memory, address));
        assert_eq!(pages, [Some(0), None, Some(2), Some(3)]);
        memory.unmap(Range::new(0, u64::MAX).unwrap());
        assert_eq!(read(&memory, 0x8000), None);
    }

    proptest! {
        /// Against a model: for each of 64 addresses, which byte of the file it leads to.
        #[test]
        fn any_order_of_maps_and_unmaps_leads_where_a_table_says(steps in prop::collection::vec((any::<bool>(), 0u64..64, 1u64..16), 1..40)) {
            let source = file(256);
            (0..=255u8).for_each(|byte| source.write_all_at(&[byte], byte.into()).unwrap());
            let (mut memory, mut table) = (DmaMap::default(), [None; 80]);
            for (n, (add, first, size)) in steps.into_iter().enumerate() {
                let span = first as usize..(first + size) as usize;
                if add {
                    let offset = n as u64 * 5;
                    let free = table[span.clone()].iter().all(Option::is_none);
                    let added = memory.map(map(first, size, offset), Some(source.try_clone().unwrap()));
                    prop_assert_eq!(added.is_ok(), free);
                    if free {
                        span.for_each(|at| table[at] = Some((offset + at as u64 - first) as u8));
                    }
                } else {
                    memory.unmap(Range::new(first, size).unwrap());
                    table[span].fill(None);
                }
            }
            for (at, expected) in table.iter().enumerate() {
                prop_assert_eq!(read(&memory, at as u64), *expected);
            }
        }
    }
}
