//! The client's memory: the map from the device's addresses to files.
//!
//! Memory is read and written through the file that the client sent, and never mapped. So no other process changes memory under a
//! reference of ours, and a file that its owner cuts short is a failed read instead of a signal. (A write behind the new end makes it
//! longer again.)

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::{Arc, Weak};

use rustix::fs::{OFlags, fcntl_getfl};

use crate::wire::{Errno, MAX_MAPPINGS, Map, Range};

/// Why an access of the device's does not reach memory here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// No mapping, or none with this right.
    NotMapped,
    /// A mapping without a file: what is there is the client's alone, as memory that is no RAM.
    Elsewhere,
}

/// One range of addresses that lead into a file.
#[derive(Clone, Debug)]
struct Mapping {
    last: u64,
    /// Where in the file the first address leads.
    offset: u64,
    file: Option<Arc<File>>,
    read: bool,
    write: bool,
}

/// A file, and what may be done with it: a client sends the same file with many mappings, which share one descriptor.
type Identity = (u64, u64, OFlags);

/// All mappings, by their first address. They do not overlap.
#[derive(Debug, Default)]
pub struct DmaMap {
    mappings: BTreeMap<u64, Mapping>,
    files: HashMap<Identity, Weak<File>>,
}

impl DmaMap {
    /// Adds a mapping, which leads into `file` if there is one. [`Errno::Exists`] if it overlaps another one, [`Errno::NoSpace`] if there are
    /// too many, [`Errno::Invalid`] if the file is no regular one, appends, or does not hold all of it.
    pub fn map(&mut self, map: Map, file: Option<File>) -> Result<(), Errno> {
        if self.overlapping(map.range).next().is_some() {
            return Err(Errno::Exists);
        }
        if self.mappings.len() >= MAX_MAPPINGS {
            return Err(Errno::NoSpace);
        }
        let file = file.map(|file| self.share(file, &map)).transpose()?;
        let Map { range, offset, read, write } = map;
        self.mappings.insert(range.first, Mapping { last: range.last, offset, file, read, write });
        Ok(())
    }

    /// The descriptor that is open already for this file, or this one.
    fn share(&mut self, file: File, map: &Map) -> Result<Arc<File>, Errno> {
        let about = file.metadata().map_err(|_| Errno::Invalid)?;
        let flags = fcntl_getfl(&file).map_err(|_| Errno::Invalid)?;
        let holds = map.offset + (map.range.last - map.range.first) < about.len();
        // Linux appends whatever the offset says to a file that is open for that.
        if !about.is_file() || !holds || flags.contains(OFlags::APPEND) {
            return Err(Errno::Invalid);
        }
        let place = self.files.entry((about.dev(), about.ino(), flags & OFlags::ACCMODE)).or_default();
        let shared = place.upgrade().unwrap_or_else(|| Arc::new(file));
        *place = Arc::downgrade(&shared);
        Ok(shared)
    }

    /// Takes all mappings in a range away. [`Errno::Invalid`], and nothing is taken away, if one is partly in it: Linux' type 1 IOMMU does the
    /// same (`vfio_dma_do_unmap`).
    pub fn unmap(&mut self, range: Range) -> Result<(), Errno> {
        if self.overlapping(range).any(|(first, mapping)| first < range.first || mapping.last > range.last) {
            return Err(Errno::Invalid);
        }
        let first: Vec<u64> = self.overlapping(range).map(|(first, _)| first).collect();
        first.iter().for_each(|first| drop(self.mappings.remove(first)));
        self.files.retain(|_, file| file.strong_count() > 0);
        Ok(())
    }

    /// Takes everything away.
    pub fn clear(&mut self) {
        (self.mappings, self.files) = Default::default();
    }

    /// Fills `buf` from `address`.
    pub fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), Missing> {
        let (file, offset) = self.find(address, buf.len(), |mapping| mapping.read)?;
        file.read_exact_at(buf, offset).map_err(not_mapped)
    }

    /// Writes `data` to `address`. The first byte is written last: a completion record begins with its status, and software may look
    /// for that without waiting for an interrupt.
    pub fn write(&self, address: u64, data: &[u8]) -> Result<(), Missing> {
        let (file, offset) = self.find(address, data.len(), |mapping| mapping.write)?;
        let (first, rest) = data.split_at(data.len().min(1));
        if !rest.is_empty() {
            file.write_all_at(rest, offset + 1).map_err(not_mapped)?;
        }
        file.write_all_at(first, offset).map_err(not_mapped)
    }

    /// The file behind a piece of memory that lies in one mapping, and where in it.
    fn find(&self, address: u64, len: usize, may: fn(&Mapping) -> bool) -> Result<(&File, u64), Missing> {
        let range = Range::new(address, len as u64).ok_or(Missing::NotMapped)?;
        let (first, mapping) = self.mappings.range(..=address).next_back().ok_or(Missing::NotMapped)?;
        if mapping.last < range.last || !may(mapping) {
            return Err(Missing::NotMapped);
        }
        let file = mapping.file.as_deref().ok_or(Missing::Elsewhere)?;
        Ok((file, mapping.offset + (address - first)))
    }

    fn overlapping(&self, range: Range) -> impl Iterator<Item = (u64, &Mapping)> {
        // The one that begins at or before the range, and those that begin in it.
        let before = self.mappings.range(..=range.first).next_back().filter(|(_, mapping)| mapping.last >= range.first);
        let within = range.first.checked_add(1).filter(|from| *from <= range.last);
        let within = within.map(|from| self.mappings.range(from..=range.last));
        before.into_iter().chain(within.into_iter().flatten()).map(|(first, mapping)| (*first, mapping))
    }
}

/// The file is no longer what it was when it was mapped.
fn not_mapped(_: io::Error) -> Missing {
    Missing::NotMapped
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
        assert_eq!(memory.read(0x1fff, &mut two), Err(Missing::NotMapped), "in two mappings");
        assert_eq!(memory.write(0x1000, &two), Err(Missing::NotMapped), "read-only");
        assert_eq!(memory.write(0x2000, &two), Ok(()));
        assert_eq!(memory.read(0x2000, &mut two), Err(Missing::NotMapped), "write-only");
        assert_eq!(memory.read(0x3000, &mut two), Err(Missing::Elsewhere), "without a file");
        for address in [0, 0xfff, 0x4000, u64::MAX] {
            assert_eq!(memory.read(address, &mut two), Err(Missing::NotMapped));
        }
        assert_eq!(memory.read(0x1000, &mut []), Err(Missing::NotMapped), "nothing at all");
    }

    #[test]
    fn only_a_file_that_holds_it_all_can_be_mapped() {
        let mut memory = DmaMap::default();
        let mut map_file = |file, offset| memory.map(map(0, 0x1000, offset), Some(file));
        assert_eq!(map_file(file(0x1000), 1), Err(Errno::Invalid), "too short");
        assert_eq!(map_file(file(0x1000), i64::MAX as u64 - 0x1000), Err(Errno::Invalid), "far too short");
        assert_eq!(map_file(File::open("/dev/zero").unwrap(), 0), Err(Errno::Invalid), "a device");
        let named = tempfile::NamedTempFile::new().unwrap();
        named.as_file().set_len(0x1000).unwrap();
        let appends = File::options().append(true).open(named.path()).unwrap();
        assert_eq!(map_file(appends, 0), Err(Errno::Invalid), "it appends");
        assert_eq!(map_file(file(0x1000), 0), Ok(()));
    }

    #[test]
    fn a_file_that_was_cut_short_is_an_error() {
        let (file, mut memory) = (file(0x2000), DmaMap::default());
        memory.map(map(0, 0x2000, 0), Some(file.try_clone().unwrap())).unwrap();
        assert_eq!(read(&memory, 0x1000), Some(0));
        file.set_len(0x1000).unwrap();
        assert_eq!((read(&memory, 0xfff), read(&memory, 0x1000)), (Some(0), None));
    }

    #[test]
    fn many_mappings_of_one_file_have_one_descriptor() {
        let (one, mut memory) = (file(0x10_0000), DmaMap::default());
        for n in 0..200 {
            memory.map(map(n * 0x1000, 0x1000, n * 0x1000), Some(one.try_clone().unwrap())).unwrap();
        }
        memory.map(map(0x100_0000, 0x1000, 0), Some(file(0x1000))).unwrap();
        assert_eq!(memory.files.values().map(Weak::strong_count).max(), Some(200));
        memory.unmap(Range::new(0, 200 * 0x1000).unwrap()).unwrap();
        assert_eq!(memory.files.len(), 1, "the file that nobody maps is closed");
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
    fn a_part_of_a_mapping_cannot_be_taken_away() {
        let mut memory = DmaMap::default();
        for first in [0x8000, 0xa000] {
            memory.map(map(first, 0x2000, 0), Some(file(0x2000))).unwrap();
        }
        for (first, size) in [(0x8000, 0x1000), (0x9000, 0x1000), (0x8000, 0x3000), (0, 0x8001), (0xbfff, 1)] {
            assert_eq!(memory.unmap(Range::new(first, size).unwrap()), Err(Errno::Invalid), "{first:#x}");
            assert!([0x8000, 0x9000, 0xa000, 0xb000].iter().all(|at| read(&memory, *at).is_some()), "{first:#x}");
        }
        assert_eq!(memory.unmap(Range::new(0, u64::MAX).unwrap()), Ok(()));
        assert_eq!(read(&memory, 0x8000), None);
    }

    proptest! {
        /// Against a model: for each of 64 addresses, which mapping it belongs to and which byte of the file it leads to.
        #[test]
        fn any_order_of_maps_and_unmaps_leads_where_a_table_says(
            steps in prop::collection::vec((any::<bool>(), 0u64..64, 1u64..16), 1..40),
        ) {
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
                        span.for_each(|at| table[at] = Some((n, (offset + at as u64 - first) as u8)));
                    }
                } else {
                    let touched: Vec<usize> = table[span.clone()].iter().flatten().map(|(n, _)| *n).collect();
                    let outside = table[..span.start].iter().chain(&table[span.end..]);
                    let whole = !outside.flatten().any(|(n, _)| touched.contains(n));
                    prop_assert_eq!(memory.unmap(Range::new(first, size).unwrap()).is_ok(), whole);
                    if whole {
                        table[span].fill(None);
                    }
                }
            }
            for (at, expected) in table.iter().enumerate() {
                prop_assert_eq!(read(&memory, at as u64), expected.map(|(_, byte)| byte));
            }
        }
    }
}
