//! The allocator of page frames.
//!
//! Free memory is a short sorted list of ranges in the allocator itself. The allocator needs no heap, and never accesses the memory that it
//! hands out, so it works before the page tables map all of it. Allocation is first-fit from the lowest address, so early allocations have
//! low addresses.

use core::ptr::NonNull;

use super::{PhysRange, zero::zero};
use crate::addr::{Hpa, PAGE_SIZE};
use crate::sync::Mutex;

/// Free ranges that can be told apart. When fragmentation exceeds it, the smallest range is given up (`lost`).
const RANGES: usize = 1024;

/// Memory below this belongs to firmware, real-mode start-up code and legacy devices.
const LOW_MEMORY: PhysRange = PhysRange::new(Hpa::new(0), 1 << 20);

/// Where code that builds tables gets its page frames.
///
/// # Safety
/// What `alloc` returns is memory that nobody else uses until `free`, and `pointer` gives a pointer that is valid for reads and
/// writes for all of it.
pub unsafe trait FrameSource {
    /// `count` contiguous frames that start at a multiple of `alignment` bytes (a power of two; less than a page means a page).
    /// Their content is arbitrary.
    fn alloc(&self, count: u64, alignment: u64) -> Option<Hpa>;

    /// Gives back `count` frames from `base`. Each frame of an allocation may be given back by itself. What was not
    /// allocated is refused without effect.
    ///
    /// # Safety
    /// Neither software nor a device uses the frames any more.
    unsafe fn free(&self, base: Hpa, count: u64);

    /// Where the byte at `address` of an allocated frame is seen.
    fn pointer(&self, address: Hpa) -> NonNull<u8>;

    /// Fills `count` frames from `base` with zeros.
    ///
    /// # Safety
    /// The frames were allocated here, and are the caller's alone.
    unsafe fn zero(&self, base: Hpa, count: u64) {
        // SAFETY: the caller vouches for the frames.
        unsafe { self.pointer(base).as_ptr().write_bytes(0, (count * PAGE_SIZE) as usize) };
    }

    /// As `alloc`, filled with zeros.
    fn alloc_zeroed(&self, count: u64, alignment: u64) -> Option<Hpa> {
        let base = self.alloc(count, alignment)?;
        // SAFETY: `alloc` gave these frames to us alone.
        unsafe { self.zero(base, count) };
        Some(base)
    }
}

/// Free page frames as a sorted list of ranges.
pub struct FrameAllocator {
    /// Page numbers (first, behind the last): sorted, disjoint, not adjacent; valid up to `used`.
    free: [(u64, u64); RANGES],
    used: usize,
    total: u64,
    lost: u64,
}

impl Default for FrameAllocator {
    fn default() -> Self {
        Self::new()
    }
}

impl FrameAllocator {
    /// Owns nothing yet.
    pub const fn new() -> Self {
        Self { free: [(0, 0); RANGES], used: 0, total: 0, lost: 0 }
    }

    /// Takes the usable ranges of a memory map, minus `reserved`, minus the first MiB. Order, overlaps, ends that wrap and
    /// ranges that are not page-aligned are all accepted; what anything reserved touches is not handed out.
    pub fn add_map(&mut self, usable: impl Iterator<Item = PhysRange>, reserved: impl Iterator<Item = PhysRange>) {
        for range in usable {
            let (first, end) = range.inner_pages();
            self.insert(first, end);
        }
        for range in reserved.chain([LOW_MEMORY]) {
            let (first, end) = range.outer_pages();
            self.remove(first, end);
        }
        self.total = self.free_frames();
    }

    /// Bytes that are free.
    pub fn free_bytes(&self) -> u64 {
        self.free_frames() * PAGE_SIZE
    }

    /// Bytes that were free at the start.
    pub fn total_bytes(&self) -> u64 {
        self.total * PAGE_SIZE
    }

    /// Bytes given up because memory was too fragmented to keep account of them.
    pub fn lost_bytes(&self) -> u64 {
        self.lost * PAGE_SIZE
    }

    /// See [`FrameSource::alloc`].
    pub fn alloc(&mut self, count: u64, alignment: u64) -> Option<Hpa> {
        self.alloc_within(count, alignment, PhysRange::new(Hpa::new(0), u64::MAX))
    }

    /// As [`Self::alloc`], of the memory in this range alone.
    pub fn alloc_within(&mut self, count: u64, alignment: u64, within: PhysRange) -> Option<Hpa> {
        if count == 0 || !alignment.is_power_of_two() {
            return None;
        }
        let alignment = (alignment / PAGE_SIZE).max(1);
        let (lowest, highest) = within.inner_pages();
        let fit = |&(first, end): &(u64, u64)| {
            let (first, end) = (first.max(lowest), end.min(highest));
            let start = first.checked_next_multiple_of(alignment)?;
            let behind = start.checked_add(count)?;
            (behind <= end).then(|| (end - first, (start, behind)))
        };
        // The smallest range that fits, so that what is given out piece by piece leaves the large ones whole: a guest that is started again needs
        // one.
        let (_, (start, end)) = self.ranges().iter().filter_map(fit).min_by_key(|(size, _)| *size)?;
        self.remove(start, end);
        Some(Hpa::new(start * PAGE_SIZE))
    }

    /// See [`FrameSource::free`].
    pub fn free(&mut self, base: Hpa, count: u64) {
        let (first, end) = PhysRange::new(base, count.saturating_mul(PAGE_SIZE)).inner_pages();
        let is_free = self.ranges().iter().any(|&(f, e)| f < end && first < e);
        if !is_free && first >= LOW_MEMORY.len / PAGE_SIZE {
            self.insert(first, end);
        }
    }

    fn ranges(&self) -> &[(u64, u64)] {
        self.free.get(..self.used).unwrap_or_default()
    }

    fn free_frames(&self) -> u64 {
        self.ranges().iter().map(|(first, end)| end - first).sum()
    }

    /// Adds `first..end`, merged with whatever it overlaps or touches.
    fn insert(&mut self, mut first: u64, mut end: u64) {
        if first >= end {
            return;
        }
        let from = self.ranges().partition_point(|&(_, e)| e < first);
        let to = self.ranges().partition_point(|&(f, _)| f <= end);
        if let Some(merged) = self.free.get(from..to).filter(|merged| !merged.is_empty()) {
            first = merged.iter().fold(first, |first, range| first.min(range.0));
            end = merged.iter().fold(end, |end, range| end.max(range.1));
        }
        self.replace(from, to, &[(first, end)]);
    }

    /// Takes `first..end` away, wherever it overlaps free ranges.
    fn remove(&mut self, first: u64, end: u64) {
        let from = self.ranges().partition_point(|&(_, e)| e <= first);
        let to = self.ranges().partition_point(|&(f, _)| f < end);
        if first >= end || from >= to {
            return;
        }
        let mut rest = [(0, 0); 2];
        let mut count = 0;
        for piece in [(self.free[from].0, first), (end, self.free[to - 1].1)] {
            if piece.0 < piece.1 {
                rest[count] = piece;
                count += 1;
            }
        }
        self.replace(from, to, &rest[..count]);
    }

    /// Puts `with` in the place of the ranges `from..to`; gives up the smallest range when there is no room for one more.
    fn replace(&mut self, mut from: usize, mut to: usize, with: &[(u64, u64)]) {
        if self.used + with.len() - (to - from) > RANGES {
            let smallest =
                (0..self.used).filter(|i| !(from..to).contains(i)).min_by_key(|&i| self.free[i].1 - self.free[i].0);
            let Some(smallest) = smallest else { return };
            self.lost += self.free[smallest].1 - self.free[smallest].0;
            self.free.copy_within(smallest + 1..self.used, smallest);
            self.used -= 1;
            if smallest < from {
                (from, to) = (from - 1, to - 1);
            }
        }
        self.free.copy_within(to..self.used, from + with.len());
        self.free[from..from + with.len()].copy_from_slice(with);
        self.used = self.used + with.len() - (to - from);
    }
}

/// The allocator behind a lock, for the identity-mapped hypervisor.
pub struct Frames(Mutex<FrameAllocator>);

impl Frames {
    /// Owns nothing yet.
    pub const fn new() -> Self {
        Self(Mutex::new(FrameAllocator::new()))
    }

    /// Takes a memory map: [`FrameAllocator::add_map`].
    ///
    /// # Safety
    /// The memory that is usable and not reserved is RAM, nobody uses it, and it is identity-mapped, writable, from the moment
    /// that it is allocated (first-fit: low memory first).
    pub unsafe fn add_map(&self, usable: impl Iterator<Item = PhysRange>, reserved: impl Iterator<Item = PhysRange>) {
        self.0.lock().add_map(usable, reserved);
    }

    /// Bytes that nobody owns.
    pub fn free_bytes(&self) -> u64 {
        self.0.lock().free_bytes()
    }

    /// Bytes that nobody owned at the start.
    pub fn total_bytes(&self) -> u64 {
        self.0.lock().total_bytes()
    }
}

impl Default for Frames {
    fn default() -> Self {
        Self::new()
    }
}

// SAFETY: each free frame is in exactly one range, and allocation removes it; whoever called `add_map` vouched for the rest.
unsafe impl FrameSource for Frames {
    fn alloc(&self, count: u64, alignment: u64) -> Option<Hpa> {
        self.0.lock().alloc(count, alignment)
    }

    unsafe fn free(&self, base: Hpa, count: u64) {
        self.0.lock().free(base, count);
    }

    fn pointer(&self, address: Hpa) -> NonNull<u8> {
        NonNull::new(address.as_u64() as *mut u8).unwrap_or(NonNull::dangling())
    }

    unsafe fn zero(&self, base: Hpa, count: u64) {
        // SAFETY: the caller vouches for the frames.
        unsafe { zero(self.pointer(base).as_ptr(), (count * PAGE_SIZE) as usize) };
    }
}

/// The frames of a machine, of which those in some ranges are taken first: a node's memory.
pub struct NearFrames<'a> {
    /// All frames.
    pub frames: &'a Frames,
    /// The ranges, the first one first.
    pub near: &'a [PhysRange],
}

// SAFETY: all of it is what `Frames` does; `alloc_within` takes frames as `alloc` does.
unsafe impl FrameSource for NearFrames<'_> {
    fn alloc(&self, count: u64, alignment: u64) -> Option<Hpa> {
        let mut all = self.frames.0.lock();
        let near = self.near.iter().find_map(|&range| all.alloc_within(count, alignment, range));
        near.or_else(|| all.alloc(count, alignment))
    }

    unsafe fn free(&self, base: Hpa, count: u64) {
        // SAFETY: the caller vouches that nobody uses the frames.
        unsafe { self.frames.free(base, count) };
    }

    fn pointer(&self, address: Hpa) -> NonNull<u8> {
        self.frames.pointer(address)
    }

    unsafe fn zero(&self, base: Hpa, count: u64) {
        // SAFETY: the caller vouches for the frames.
        unsafe { self.frames.zero(base, count) };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn range(start: u64, len: u64) -> PhysRange {
        PhysRange::new(Hpa::new(start), len)
    }

    fn allocator(usable: &[PhysRange], reserved: &[PhysRange]) -> FrameAllocator {
        let mut frames = FrameAllocator::new();
        frames.add_map(usable.iter().copied(), reserved.iter().copied());
        frames
    }

    #[test]
    fn reserved_memory_and_the_first_mib_are_not_handed_out() {
        let mut frames = allocator(&[range(0, 4 * MIB)], &[range(2 * MIB + 1, 1)]);
        assert_eq!(frames.free_bytes(), 3 * MIB - PAGE_SIZE);
        assert_eq!(frames.alloc(1, 1), Some(Hpa::new(MIB)));
        assert_eq!(frames.alloc(256, 1), Some(Hpa::new(2 * MIB + PAGE_SIZE)));
    }

    #[test]
    fn guest_memory_is_contiguous_and_aligned() {
        let mut frames = allocator(&[range(MIB, 1024 * MIB)], &[]);
        assert!(frames.alloc(3, PAGE_SIZE).is_some());
        assert_eq!(frames.alloc(512 * MIB / PAGE_SIZE, 2 * MIB), Some(Hpa::new(2 * MIB)));
        assert_eq!(frames.alloc(1, PAGE_SIZE), Some(Hpa::new(MIB + 3 * PAGE_SIZE)));
    }

    #[test]
    fn all_memory_of_a_machine_of_six_tebibytes_is_taken() {
        for (text, mib) in [
            (include_str!("../acpi/real/e820-six-tebibytes.txt"), 6_157_767),
            (include_str!("../acpi/real/e820-workstation-uefi.txt"), 130_699),
        ] {
            let (usable, reserved) = crate::memory::testing::real_map(text);
            let frames = allocator(&usable, &reserved);
            let above = |range: &PhysRange| range.end().as_u64().saturating_sub(range.start.as_u64().max(MIB));
            assert_eq!(frames.free_bytes(), usable.iter().map(above).sum::<u64>());
            assert_eq!((frames.free_bytes() >> 20, frames.lost_bytes()), (mib, 0));
        }
    }

    #[test]
    fn frames_of_a_node_are_taken_first_and_others_where_it_has_none() {
        let frames = Frames::new();
        // SAFETY: nobody accesses what this allocator hands out.
        unsafe { frames.add_map([range(MIB, 63 * MIB)].into_iter(), [].into_iter()) };
        let near = NearFrames { frames: &frames, near: &[range(16 * MIB, MIB), range(32 * MIB, 4 * MIB)] };
        let pages = |mib| mib * MIB / PAGE_SIZE;
        assert_eq!(near.alloc(pages(2), 2 * MIB), Some(Hpa::new(32 * MIB)), "the first range has no room for it");
        assert_eq!(near.alloc(pages(1), 1), Some(Hpa::new(16 * MIB)));
        assert_eq!(near.alloc(pages(3), 1), Some(Hpa::new(MIB)), "the node has 2 MiB left");
        assert_eq!(near.alloc(pages(2), 1), Some(Hpa::new(34 * MIB)));
        assert_eq!(frames.free_bytes(), 55 * MIB);
    }

    #[test]
    fn freed_frames_merge_again() {
        let mut frames = allocator(&[range(MIB, MIB)], &[]);
        let got: Vec<_> = (0..256).map(|_| frames.alloc(1, 1).unwrap()).collect();
        assert_eq!(frames.alloc(1, 1), None);
        got.iter().step_by(2).chain(got.iter().skip(1).step_by(2)).for_each(|&frame| frames.free(frame, 1));
        assert_eq!(frames.alloc(256, PAGE_SIZE), Some(Hpa::new(MIB)));
    }

    #[test]
    fn a_double_free_changes_nothing() {
        let mut frames = allocator(&[range(MIB, MIB)], &[]);
        let frame = frames.alloc(2, 1).unwrap();
        frames.free(frame, 2);
        frames.free(frame, 1);
        assert_eq!((frames.free_bytes(), frames.used), (MIB, 1));
    }

    #[test]
    fn too_much_fragmentation_loses_the_smallest_range_only() {
        let mut frames = allocator(&[range(MIB, 16 * MIB)], &[]);
        let all: Vec<_> = (0..4096).map(|_| frames.alloc(1, 1).unwrap()).collect();
        all.iter().step_by(2).for_each(|&frame| frames.free(frame, 1));
        assert_eq!(frames.used, RANGES);
        assert_eq!(frames.free_bytes() + frames.lost_bytes(), 8 * MIB);
    }

    proptest! {
        #[test]
        fn no_memory_map_breaks_the_list(
            usable in prop::collection::vec((any::<u64>(), any::<u64>()), 0..20),
            small in prop::collection::vec((0u64..64 * MIB, 0u64..16 * MIB), 0..20),
            reserved in prop::collection::vec((0u64..64 * MIB, 0u64..MIB), 0..20),
            asks in prop::collection::vec((0u64..600, 0u32..22), 0..40),
        ) {
            let to_range = |&(start, len): &(u64, u64)| range(start, len);
            let reserved: Vec<_> = reserved.iter().map(to_range).collect();
            let map: Vec<_> = usable.iter().chain(&small).map(to_range).collect();
            let mut frames = allocator(&map, &reserved);
            let mut held: Vec<(u64, u64)> = Vec::new();
            for (count, order) in asks {
                let Some(base) = frames.alloc(count, 1 << order) else { continue };
                prop_assert!(base.is_aligned(1 << order) && base.as_u64() >= MIB);
                let got = (base.as_u64(), base.as_u64() + count * PAGE_SIZE);
                prop_assert!(held.iter().all(|h| h.1 <= got.0 || got.1 <= h.0));
                prop_assert!(reserved.iter().all(|r| r.len == 0 || r.end().as_u64() <= got.0 || got.1 <= r.start.as_u64()));
                held.push(got);
            }
            prop_assert!(frames.ranges().windows(2).all(|w| w[0].0 < w[0].1 && w[0].1 < w[1].0));
            let before = frames.free_bytes();
            held.iter().for_each(|h| frames.free(Hpa::new(h.0), (h.1 - h.0) / PAGE_SIZE));
            prop_assert_eq!(frames.free_bytes(), before + held.iter().map(|h| h.1 - h.0).sum::<u64>());
        }
    }
}
