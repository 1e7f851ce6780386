//! The interrupt remapping table: VT-d specification, 9.10 and 9.11 for the entries, 5.1.4 and 6.2.2 for their use.
//!
//! An entry's states are *free*, *reserved* (SID and SVT set, not present), *programmed* (present), *cleared* (not present, but perhaps
//! still cached), *reserved* again after the flush, and *free* again after the release. [`InterruptTable::bind`] goes from *free* to *programmed*
//! in one step. An index becomes free in no other way, so no interrupt can come through an entry that the cache remembers. The entry itself holds the state (AVAIL, which is software's) and the list of free
//! entries, so the table needs no other memory.

use core::{
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use super::{
    coherence::Coherence,
    entry_words::write_absent,
    error::{Error, UnitError},
    spec::irte::{Irte, MESSAGE_ADDRESS, SVT_SID},
};
use crate::{
    addr::{Bdf, Hpa, PAGE_SIZE},
    memory::FrameSource,
};

/// Entries of the smallest table, as a power of two: a page.
const MIN_ORDER: u32 = 8;
/// Entries of the largest table, as a power of two: 65,536.
const MAX_ORDER: u32 = 16;
const ENTRY: usize = 16;

/// AVAIL of a free entry. DST is the distance to the next free entry, less one, so zeros link each entry to the following one.
const FREE: u128 = 0;
/// AVAIL of a reserved entry that no cache holds.
const RESERVED: u128 = 1;
/// AVAIL of an entry that has been present since its last flush.
const USED: u128 = 2;

/// Where an entry sends its interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// To a vector of a processor: fixed, edge, physical.
    Remapped {
        /// The vector, 16 to 255.
        vector: u8,
        /// The processor's APIC ID.
        destination: u32,
    },
    /// Into a posted-interrupt descriptor.
    Posted {
        /// The descriptor, 64-byte aligned.
        descriptor: Hpa,
        /// The guest's vector, 16 to 255.
        vector: u8,
    },
}

impl Route {
    /// The vector, the processor's or the guest's.
    pub fn vector(self) -> u8 {
        match self {
            Self::Remapped { vector, .. } | Self::Posted { vector, .. } => vector,
        }
    }
}

/// The fields of an entry to be written: present, with source, route and vector.
#[derive(Clone, Copy, Debug)]
pub struct RouteFields(Irte);

/// The entry format that the unit's mode supports.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    /// 32-bit destinations (EIME).
    pub wide: bool,
    /// CAP.PI.
    pub posts: bool,
}

/// The table of a unit.
pub struct InterruptTable {
    base: Hpa,
    first: NonNull<[AtomicU64; 2]>,
    /// A power of two.
    capacity: u32,
    format: Format,
    coherence: Coherence,
    /// The list of free entries, which ends behind the last one of the table.
    free: u32,
    reserved: u32,
    /// The most entries that were reserved, as of the last release.
    high_water: u32,
    /// The number of *cleared* entries.
    cleared: u32,
    /// Counts calls of [`InterruptTable::clear`]; DST of a cleared entry holds the count at that time.
    clears: u32,
}

// SAFETY: the frames are the table's own, and are accessed atomically.
unsafe impl Send for InterruptTable {}

impl InterruptTable {
    /// A table for at least `entries` (256 to 65,536), no entry of which is present.
    pub fn new(
        frames: &impl FrameSource,
        entries: u32,
        format: Format,
        coherence: Coherence,
    ) -> Result<Self, UnitError> {
        if !raw_cpuid::CpuId::new().get_feature_info().is_some_and(|features| features.has_cmpxchg16b()) {
            return Err(UnitError::NoCompareExchange);
        }
        let order = entries.clamp(1 << MIN_ORDER, 1 << MAX_ORDER).next_power_of_two().ilog2();
        let bytes = ENTRY << order;
        let base = frames.alloc_zeroed(bytes as u64 / PAGE_SIZE, bytes as u64).ok_or(UnitError::NoMemory)?;
        let first = frames.pointer(base);
        // SAFETY: the frames were allocated just now, `bytes` of them.
        unsafe { coherence.publish(first, bytes) };
        let first = first.cast();
        let (free, reserved, high_water, cleared, clears) = (0, 0, 0, 0, 0);
        let capacity = 1 << order;
        Ok(Self { base, first, capacity, format, coherence, free, reserved, high_water, cleared, clears })
    }

    /// Where it is.
    pub fn base(&self) -> Hpa {
        self.base
    }

    /// How many entries it has, as a power of two.
    pub fn order(&self) -> u32 {
        self.capacity.ilog2()
    }

    /// How many entries it has.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// The number of reserved entries, and the most so far.
    pub fn usage(&self) -> (u32, u32) {
        (self.reserved, self.high_water.max(self.reserved))
    }

    /// Takes a free entry for messages of `source`. It is not present.
    pub fn reserve(&mut self, source: Bdf) -> Result<u16, Error> {
        self.take(Irte(0).with_avail(RESERVED).with_sid(source.requester_id().into()).with_svt(SVT_SID))
    }

    /// The fields of an entry for messages of `source` with `route`.
    pub fn route_fields(&self, source: Bdf, route: Route) -> Result<RouteFields, Error> {
        self.present(source.requester_id().into(), route).map(RouteFields)
    }

    /// Takes a free entry and makes it present with these fields and `vector`. Returns [`Error::BadVector`] or [`Error::NoFreeEntry`] on
    /// failure.
    #[inline]
    pub fn bind(&mut self, fields: RouteFields, vector: u8) -> Result<u16, Error> {
        self.take(fields.0.with_v(legal(vector)?))
    }

    #[inline]
    fn take(&mut self, new: Irte) -> Result<u16, Error> {
        let index = self.free;
        let slot = self.slot(index).ok_or(Error::NoFreeEntry)?;
        // SAFETY: `slot` gave the entry, and the frames are the table's own.
        let [low, _] = unsafe { slot.as_ref() };
        let further = Irte(low.load(Ordering::Relaxed).into()).dst() as u32;
        self.free = behind(index).wrapping_add(further);
        self.fill(slot, new);
        self.reserved += 1;
        Ok(index as u16)
    }

    /// Writes an entry that is not present and in no cache.
    #[inline]
    fn fill(&self, slot: NonNull<[AtomicU64; 2]>, new: Irte) {
        // SAFETY: `slot` gave the entry, and the frames are the table's own.
        write_absent(unsafe { slot.as_ref() }, new.0);
        // SAFETY: as above.
        unsafe { self.coherence.publish(slot.cast(), ENTRY) };
    }

    /// Makes a reserved entry present with `route` in one step: an interrupt finds the old entry or the new one, never none. SVT and SID
    /// keep their values.
    pub fn program(&mut self, index: u16, route: Route) -> Result<(), Error> {
        let old = self.held(index)?;
        let new = self.present(old.sid(), route)?;
        self.exchange(index.into(), old, new)?;
        self.cleared -= u32::from(is_cleared(old));
        Ok(())
    }

    /// Makes a reserved entry not present. The cache may still hold it until it is flushed.
    pub fn clear(&mut self, index: u16) -> Result<(), Error> {
        self.clear_with(index, 0)
    }

    /// The same, and has requests that name the entry dropped without a fault record (FPD), because its source floods it.
    pub fn block(&mut self, index: u16) -> Result<(), Error> {
        self.clear_with(index, 1)
    }

    fn clear_with(&mut self, index: u16, fpd: u128) -> Result<(), Error> {
        let old = self.held(index)?;
        self.clears = self.clears.wrapping_add(1);
        let new = Irte(0).with_avail(old.avail()).with_sid(old.sid()).with_svt(SVT_SID);
        let new = new.with_fpd(fpd).with_dst(self.clears.into());
        self.exchange(index.into(), old, new)?;
        self.cleared += u32::from(is_cleared(new) && !is_cleared(old));
        Ok(())
    }

    /// Whether any entry waits to be marked as flushed.
    pub fn has_cleared(&self) -> bool {
        self.cleared != 0
    }

    /// The number of calls that cleared entries.
    pub fn clears(&self) -> u32 {
        self.clears
    }

    /// Marks an entry that is not present as flushed. `clears` is [`InterruptTable::clears`] at the flush's beginning; an entry that was
    /// cleared later keeps its state.
    pub fn mark_flushed(&mut self, index: u16, clears: u32) -> Result<(), Error> {
        let old = self.held(index)?;
        let later = clears.wrapping_sub(old.dst() as u32) as i32;
        if !is_cleared(old) || later < 0 {
            return Ok(());
        }
        self.exchange(index.into(), old, old.with_avail(RESERVED))?;
        self.cleared -= 1;
        Ok(())
    }

    /// Gives back an entry that has been cleared and flushed.
    pub fn release(&mut self, index: u16) -> Result<(), Error> {
        let old = self.held(index)?;
        if old.avail() != RESERVED {
            return Err(Error::NotFlushed);
        }
        let further = self.free.wrapping_sub(behind(index.into()));
        self.exchange(index.into(), old, Irte(0).with_avail(FREE).with_dst(further.into()))?;
        self.free = index.into();
        self.high_water = self.high_water.max(self.reserved);
        self.reserved -= 1;
        Ok(())
    }

    /// What an entry holds; for dumps and tests.
    pub fn get(&self, index: u16) -> Option<Irte> {
        self.read(index.into())
    }

    /// A present entry for messages of `sid`.
    fn present(&self, sid: u128, route: Route) -> Result<Irte, Error> {
        let base = Irte(0).with_p(1).with_avail(USED).with_sid(sid).with_svt(SVT_SID);
        match route {
            Route::Remapped { vector, destination } => self.remapped(base, vector, destination),
            Route::Posted { descriptor, vector } => self.posted(base, vector, descriptor),
        }
    }

    fn remapped(&self, base: Irte, vector: u8, destination: u32) -> Result<Irte, Error> {
        let entry = base.with_v(legal(vector)?);
        // FFH (FFFF_FFFFH) is everyone.
        match self.format.wide {
            true if destination != u32::MAX => Ok(entry.with_dst(destination.into())),
            false if destination < 0xff => Ok(entry.with_dst_xapic(destination.into())),
            _ => Err(Error::BadDestination),
        }
    }

    fn posted(&self, base: Irte, vector: u8, descriptor: Hpa) -> Result<Irte, Error> {
        if !self.format.posts {
            return Err(Error::NoPosting);
        }
        if !descriptor.is_aligned(64) || descriptor.as_u64() >= 1 << 52 {
            return Err(Error::BadAddress);
        }
        let address = u128::from(descriptor.as_u64());
        let entry = base.with_im(1).with_v(legal(vector)?);
        Ok(entry.with_pda_low(address >> 6).with_pda_high(address >> 32))
    }

    /// A reserved entry.
    fn held(&self, index: u16) -> Result<Irte, Error> {
        self.read(index.into()).filter(|entry| entry.avail() != FREE).ok_or(Error::NotReserved)
    }

    fn slot(&self, index: u32) -> Option<NonNull<[AtomicU64; 2]>> {
        // SAFETY: the entry lies in the table.
        (index < self.capacity).then(|| unsafe { self.first.add(index as usize) })
    }

    fn read(&self, index: u32) -> Option<Irte> {
        // SAFETY: the frames are the table's own.
        let slot = unsafe { self.slot(index)?.as_ref() };
        let (low, high) = (slot[0].load(Ordering::Relaxed), slot[1].load(Ordering::Relaxed));
        Some(Irte(u128::from(high) << 64 | u128::from(low)))
    }

    /// Changes an entry with one 128-bit write.
    fn exchange(&self, index: u32, old: Irte, new: Irte) -> Result<(), Error> {
        let slot = self.slot(index).ok_or(Error::NotReserved)?;
        // SAFETY: an aligned entry of the table, which is accessed atomically only; `new` checked CPUID.
        let found = unsafe { compare_exchange(slot.cast().as_ptr(), old.0, new.0) };
        // SAFETY: the entry lies in the table's own frames.
        unsafe { self.coherence.publish(slot.cast(), ENTRY) };
        if found == old.0 { Ok(()) } else { Err(Error::Torn) }
    }
}

/// The index behind this one.
fn behind(index: u32) -> u32 {
    index.wrapping_add(1)
}

/// Whether an entry is *cleared*.
fn is_cleared(entry: Irte) -> bool {
    entry.p() == 0 && entry.avail() == USED
}

/// The address and data of a message that selects entry `index`. The address is the same for all.
pub fn message(index: u16) -> (u64, u32) {
    (MESSAGE_ADDRESS, index.into())
}

/// The vector for an entry. A local APIC accepts none below 16 (SDM vol. 3, 12.5.2).
fn legal(vector: u8) -> Result<u128, Error> {
    if vector < 16 { Err(Error::BadVector) } else { Ok(vector.into()) }
}

/// CMPXCHG16B: returns what was found. Written out, because `core::arch`'s becomes a library call where it is
/// not optimized, or inlined into code for processors without it. No operand may be in RBX, so all registers are named.
///
/// # Safety
/// The processor has it, and `at` is valid, 16-byte aligned and accessed atomically.
unsafe fn compare_exchange(at: *mut u128, old: u128, new: u128) -> u128 {
    let (mut low, mut high) = (old as u64, (old >> 64) as u64);
    // SAFETY: the caller vouches for `at`. RBX, which the compiler keeps for itself, is put back.
    unsafe {
        core::arch::asm!(
            "xchg rbx, rsi",
            "lock cmpxchg16b xmmword ptr [rdi]",
            "mov rbx, rsi",
            in("rdi") at,
            inout("rsi") new as u64 => _,
            in("rcx") (new >> 64) as u64,
            inout("rax") low,
            inout("rdx") high,
            options(nostack),
        );
    }
    u128::from(high) << 64 | u128::from(low)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::testing::TestFrames;

    #[test]
    fn an_entry_that_was_cleared_when_a_flush_had_begun_is_not_taken_for_flushed() {
        let frames = TestFrames::default();
        let format = Format { wide: false, posts: false };
        let mut table = InterruptTable::new(&frames, 256, format, Coherence(true)).unwrap();
        let route = Route::Remapped { vector: 0x41, destination: 0 };
        let fields = table.route_fields(Bdf(0xf0), route).unwrap();
        let index = table.bind(fields, 0x41).unwrap();
        table.clear(index).unwrap();
        let begun = table.clears();
        table.program(index, route).unwrap();
        table.clear(index).unwrap();
        table.mark_flushed(index, begun).unwrap();
        assert_eq!(table.release(index), Err(Error::NotFlushed));
        table.mark_flushed(index, table.clears()).unwrap();
        assert_eq!(table.release(index), Ok(()));
    }

    #[test]
    fn an_entry_has_the_requester_id_of_a_function_of_any_segment() {
        let frames = TestFrames::default();
        let format = Format { wide: false, posts: false };
        let mut table = InterruptTable::new(&frames, 256, format, Coherence(true)).unwrap();
        let route = Route::Remapped { vector: 0x41, destination: 0 };
        let source = Bdf::new(0x6a, 1, 0).in_segment(0xffff);
        let fields = table.route_fields(source, route).unwrap();
        for index in [table.bind(fields, 0x41).unwrap(), table.reserve(source).unwrap()] {
            // SAFETY: the entry is in the table's frames, which live.
            let [low, high] = unsafe { table.slot(index.into()).unwrap().as_ref() };
            let entry = Irte(u128::from(high.load(Ordering::Relaxed)) << 64 | u128::from(low.load(Ordering::Relaxed)));
            assert_eq!((entry.sid() as u16, entry.svt()), (source.requester_id(), SVT_SID));
        }
    }

    #[test]
    fn the_most_entries_in_use_are_known_after_some_were_given_back() {
        let frames = TestFrames::default();
        let format = Format { wide: false, posts: false };
        let mut table = InterruptTable::new(&frames, 256, format, Coherence(true)).unwrap();
        let [first, second, third] = [0; 3].map(|_| table.reserve(Bdf(0xf0)).unwrap());
        table.release(second).unwrap();
        table.release(third).unwrap();
        assert_eq!(table.usage(), (1, 3));
        assert_eq!(table.reserve(Bdf(0xf0)), Ok(third), "the one that was given back last");
        assert_eq!(table.usage(), (2, 3));
        assert_eq!(table.release(first), Ok(()));
    }
}
