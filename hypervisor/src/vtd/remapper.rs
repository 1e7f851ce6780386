//! A remapping unit in use: registers, queue, interrupt table and context tables, each behind its lock.
//!
//! Locks are taken in the order interrupts or contexts, then queue, and held for bounded time. Interrupts are off in the hypervisor, so an
//! interrupt cannot make the holder take a lock again.

use core::sync::atomic::{AtomicU64, Ordering};

use super::{
    dma::ContextTables,
    domain::{Domain, Shape},
    error::{Error, QueueError, UnitError},
    fault::Fault,
    irt::{Format, InterruptTable, Route, RouteFields},
    queue::Queue,
    spec::{
        descriptor::{self, ContextCache, InterruptEntryCache, Iotlb, PasidCache},
        irte::Irte,
        tables::RID_PASID,
    },
    unit::Unit,
};
use crate::{
    addr::{Bdf, Gpa, Hpa, PAGE_SIZE},
    clock::Clock,
    memory::{FrameSource, PhysRange, Registers},
    sync::{Mutex, MutexGuard},
};

/// What a unit is brought up for.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Interrupt remapping entries wanted; 256 to 65,536 are had.
    pub entries: u32,
    /// APIC IDs above 254 (x2APIC) are to be reached.
    pub wide_destinations: bool,
    /// Bytes of the unit's registers.
    pub register_bytes: u64,
    /// What waits for the unit go by.
    pub clock: &'static dyn Clock,
}

/// What a unit has done and holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Interrupt entries reserved.
    pub live: u32,
    /// The most that were.
    pub high_water: u32,
    /// Entries written present.
    pub programmed: u64,
    /// Invalidation descriptors submitted.
    pub flushes: u64,
    /// Waits for them.
    pub waits: u64,
    /// Faults taken from the records.
    pub faults: u64,
}

#[derive(Default)]
struct Counters {
    programmed: AtomicU64,
    flushes: AtomicU64,
    waits: AtomicU64,
    faults: AtomicU64,
}

fn count(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

/// A unit that remaps interrupts, and DMA once that is switched on. All methods can be called by several processors at once.
pub struct Remapper<'f, R: Registers, F: FrameSource> {
    unit: Unit<R>,
    wide: bool,
    frames: &'f F,
    queue: Mutex<Queue>,
    interrupts: Mutex<InterruptTable>,
    contexts: Mutex<ContextTables>,
    counters: Counters,
}

impl<'f, R: Registers, F: FrameSource> Remapper<'f, R, F> {
    /// Brings the unit up: queue, interrupt table, flush, remapping on, compatibility format off. DMA is not remapped yet.
    pub fn new(registers: R, frames: &'f F, config: Config) -> Result<Self, UnitError> {
        let unit = Unit::new(registers, config.register_bytes, config.wide_destinations, config.clock)?;
        let can = *unit.capabilities();
        let format = Format { wide: config.wide_destinations, posts: can.posts() };
        let interrupts = InterruptTable::new(frames, config.entries, format, can.coherence())?;
        let contexts = ContextTables::new(frames, &can)?;
        let queue = Queue::new(frames, can.coherence(), can.scalable().is_some())?;
        unit.quiesce()?;
        queue.enable(&unit)?;
        let (queue, contexts) = (Mutex::new(queue), Mutex::new(contexts));
        unit.set_interrupt_table(interrupts.base(), interrupts.order(), config.wide_destinations)?;
        let interrupts = Mutex::new(interrupts);
        let wide = config.wide_destinations;
        let this = Self { unit, wide, frames, queue, interrupts, contexts, counters: Counters::default() };
        if !can.flushes_on_sirtp() {
            this.submit([InterruptEntryCache::NEW.0])?;
        }
        this.unit.enable_interrupt_remapping()?;
        Ok(this)
    }

    /// Switches DMA remapping on: from then on every function that is attached to no domain is blocked.
    pub fn enable_dma_remapping(&self) -> Result<(), UnitError> {
        let root = self.contexts.lock().root();
        self.unit.set_root_table(root)?;
        self.submit([ContextCache::NEW.with_g(descriptor::GLOBAL).0])?;
        if self.is_scalable() {
            self.submit([PasidCache::NEW.with_g(descriptor::ALL_PASIDS).0])?;
        }
        self.submit([self.iotlb(descriptor::GLOBAL, 0)])?;
        self.unit.enable_dma_remapping()
    }

    /// The unit itself: its capabilities, its fault events.
    pub fn unit(&self) -> &Unit<R> {
        &self.unit
    }

    /// Whether destinations are x2APIC IDs (EIME).
    pub fn has_wide_destinations(&self) -> bool {
        self.wide
    }

    /// How many interrupt entries there are.
    pub fn capacity(&self) -> u32 {
        self.interrupts.lock().capacity()
    }

    /// Takes a free interrupt entry for messages of `source`: [`InterruptTable::reserve`].
    pub fn reserve(&self, source: Bdf) -> Result<u16, Error> {
        self.interrupts.lock().reserve(source)
    }

    /// Takes a free interrupt entry for messages of `source` and makes it present at once: [`InterruptTable::bind`].
    pub fn bind(&self, source: Bdf, route: Route) -> Result<u16, Error> {
        let mut binder = self.binder(source);
        let fields = binder.route_fields(route)?;
        binder.bind(fields, route.vector())
    }

    /// The same for several entries, with the table locked meanwhile.
    pub fn binder(&self, source: Bdf) -> Binder<'_> {
        let table = self.interrupts.lock();
        let (before, _) = table.usage();
        Binder { table, source, before, programmed: &self.counters.programmed }
    }

    /// Makes a reserved entry present with `route`: [`InterruptTable::program`]. Flush it if it was present or used before.
    pub fn program(&self, index: u16, route: Route) -> Result<(), Error> {
        self.interrupts.lock().program(index, route)?;
        count(&self.counters.programmed, 1);
        Ok(())
    }

    /// Makes a reserved entry not present: [`InterruptTable::clear`]. Flush it before its release.
    pub fn clear(&self, index: u16) -> Result<(), Error> {
        self.interrupts.lock().clear(index)
    }

    /// Makes an entry not present, and has faults with it not recorded: [`InterruptTable::block`]. Does not flush.
    pub fn block(&self, index: u16) -> Result<(), Error> {
        self.interrupts.lock().block(index)
    }

    /// Gives back a cleared and flushed entry: [`InterruptTable::release`].
    pub fn release(&self, index: u16) -> Result<(), Error> {
        self.interrupts.lock().release(index)
    }

    /// What an entry holds.
    pub fn entry(&self, index: u16) -> Option<Irte> {
        self.interrupts.lock().get(index)
    }

    /// Flushes entries from the interrupt entry cache: index-selective invalidations for each run of consecutive indexes, up or down, and
    /// one wait (one more for every [`super::queue::CAPACITY`] invalidations).
    pub fn flush_entries(&self, entries: impl Iterator<Item = u16> + Clone) -> Result<(), Error> {
        self.flush_runs(Runs::new(entries.clone().map(u32::from)), entries)
    }

    /// The same for entries whose runs are known.
    pub fn flush_runs(
        &self,
        runs: impl Iterator<Item = (u32, u32)>,
        entries: impl Iterator<Item = u16>,
    ) -> Result<(), Error> {
        self.flush_blocks(Blocks::new(runs, self.unit.capabilities().max_handle_mask()), entries)
    }

    /// The same for one run of entries: `first` and those up to `last`.
    pub fn flush_run(&self, first: u16, last: u16) -> Result<(), Error> {
        self.flush_runs(core::iter::once((first.into(), u32::from(last) + 1)), first..=last)
    }

    /// The same for one entry.
    pub fn flush_entry(&self, index: u16) -> Result<(), Error> {
        self.flush_blocks([block(index.into(), 0)], core::iter::once(index))
    }

    #[inline]
    fn flush_blocks(
        &self,
        blocks: impl IntoIterator<Item = u128>,
        entries: impl Iterator<Item = u16>,
    ) -> Result<(), Error> {
        let clears = self.interrupts.lock().clears();
        // Meanwhile others may change the table.
        self.submit(blocks)?;
        let mut interrupts = self.interrupts.lock();
        if interrupts.has_cleared() {
            // A result is of no use here: an index that is not reserved has nothing to be marked.
            entries.for_each(|index| _ = interrupts.mark_flushed(index, clears));
        }
        Ok(())
    }

    /// A new domain, to which nobody is attached and in which nothing is mapped.
    pub fn create_domain(&self) -> Result<Domain, Error> {
        let can = self.unit.capabilities();
        let shape = Shape {
            levels: can.levels(),
            page_level: can.page_level(),
            address_bits: can.address_bits(),
            coherence: can.walk_coherence(),
        };
        let mut contexts = self.contexts.lock();
        let id = contexts.take_id()?;
        Domain::new(self.frames, id, contexts.root(), shape).inspect_err(|_| contexts.give_id(id))
    }

    /// Lets the functions of a domain reach memory. Everything is page-aligned; what is mapped already is refused. After an
    /// error a part may be mapped.
    ///
    /// # Safety
    /// The memory is the guest's own: a device can do what it likes with it until the domain is destroyed.
    pub unsafe fn map(&self, domain: &mut Domain, gpa: Gpa, hpa: Hpa, len: u64, writable: bool) -> Result<(), Error> {
        self.check(domain)?;
        // SAFETY: the caller vouches for the memory.
        unsafe { domain.map(self.frames, gpa, hpa, len, writable) }?;
        if self.unit.capabilities().caches_absent_entries() {
            self.submit([self.iotlb(descriptor::DOMAIN, domain.id())])?;
        }
        Ok(())
    }

    /// Makes sure that attaching the function needs no memory: its bus has a context table, which is kept.
    pub fn prepare(&self, bdf: Bdf) -> Result<(), Error> {
        self.contexts.lock().prepare(self.frames, bdf)
    }

    /// Has the function's DMA go through the domain. [`Error::Attached`] if it goes through any already, [`Error::Domain`] for another
    /// unit's; [`Error::NoMemory`] only without [`prepare`](Self::prepare).
    pub fn attach(&self, bdf: Bdf, domain: &mut Domain) -> Result<(), Error> {
        self.check(domain)?;
        self.contexts.lock().attach(self.frames, bdf, domain)?;
        self.attached(domain)
    }

    /// Whether requests with PASIDs can be attached: in scalable mode, and only where the unit supports them (ECAP.PASID). Else they are
    /// blocked.
    pub fn has_pasids(&self) -> bool {
        self.unit.capabilities().scalable().is_some_and(|scalable| scalable.has_pasids())
    }

    /// Whether the unit is in scalable mode, where there is a PASID cache even if only requests without a PASID are supported.
    pub fn is_scalable(&self) -> bool {
        self.unit.capabilities().scalable().is_some()
    }

    /// Has the function's DMA with a PASID, which is not 0, go through the domain; [`attach`](Self::attach) is for that without one.
    /// [`Error::NoPasid`] if the unit has no such PASID, [`Error::NoMemory`] if there is none for its table; else as `attach`.
    pub fn attach_pasid(&self, bdf: Bdf, pasid: u32, domain: &mut Domain) -> Result<(), Error> {
        self.check(domain)?;
        if pasid == RID_PASID {
            return Err(Error::NoPasid);
        }
        self.contexts.lock().attach_pasid(self.frames, bdf, pasid, domain)?;
        self.attached(domain)
    }

    /// An entry that was not present leads to the domain now.
    fn attached(&self, domain: &mut Domain) -> Result<(), Error> {
        domain.attached += 1;
        if self.unit.capabilities().caches_absent_entries() {
            self.submit([ContextCache::NEW.with_g(descriptor::GLOBAL).0])?;
            if self.is_scalable() {
                self.submit([PasidCache::NEW.with_did(domain.id().into()).0])?;
            }
            self.submit([self.iotlb(descriptor::DOMAIN, domain.id())])?;
        }
        Ok(())
    }

    /// Puts the function into a domain of its own, in which it reaches `ranges` at their own addresses, and nothing else: for
    /// what firmware has set to work and no guest gets (RMRR, 8.4). What overlaps is mapped once. The domain is kept as long as
    /// the function is to work. After an error the function is blocked.
    ///
    /// # Safety
    /// The ranges are the firmware's own: the device can do what it likes with them.
    pub unsafe fn attach_identity(&self, bdf: Bdf, ranges: impl Iterator<Item = PhysRange>) -> Result<Domain, Error> {
        let mut domain = self.create_domain()?;
        let mapped = ranges.into_iter().try_for_each(|range| {
            let pages = range.len.div_ceil(PAGE_SIZE);
            (0..pages).try_for_each(|page| {
                let at = range.start.checked_add(page * PAGE_SIZE).ok_or(Error::BadAddress)?;
                // SAFETY: the caller vouches for the memory.
                match unsafe { self.map(&mut domain, Gpa::new(at.as_u64()), at, PAGE_SIZE, true) } {
                    Err(Error::Mapped) => Ok(()),
                    result => result,
                }
            })
        });
        match mapped.and_then(|()| self.attach(bdf, &mut domain)) {
            Ok(()) => Ok(domain),
            // Nobody was attached, or the domain is kept.
            Err(error) => self.destroy_domain(domain).and(Err(error)),
        }
    }

    /// Blocks the function's DMA: context entry, then context cache, then IOTLB with draining (6.5.3.3), each complete before the
    /// next, or old entries could come back. When this has succeeded no DMA of the function is under way.
    /// After [`Error::Queue`] the context entry is gone, but the domain counts the function still and cannot be destroyed.
    pub fn detach(&self, bdf: Bdf, domain: &mut Domain) -> Result<(), Error> {
        self.check(domain)?;
        self.contexts.lock().detach(self.frames, bdf, domain)?;
        if self.is_scalable() {
            return self.detached(RID_PASID, domain);
        }
        let context = ContextCache::NEW.with_g(descriptor::DEVICE);
        self.submit([context.with_did(domain.id().into()).with_sid(bdf.requester_id().into()).0])?;
        self.submit([self.iotlb(descriptor::DOMAIN, domain.id())])?;
        domain.attached = domain.attached.saturating_sub(1);
        Ok(())
    }

    /// The same for DMA with a PASID.
    pub fn detach_pasid(&self, bdf: Bdf, pasid: u32, domain: &mut Domain) -> Result<(), Error> {
        self.check(domain)?;
        if pasid == RID_PASID {
            return Err(Error::NoPasid);
        }
        self.contexts.lock().detach_pasid(self.frames, bdf, pasid, domain)?;
        self.detached(pasid, domain)
    }

    /// A PASID entry leads to the domain no more: PASID cache, then IOTLB with draining (6.5.3.3). Translations by second-stage tables are
    /// the domain's, not the PASID's, so the PASID-based invalidation of the IOTLB is not for them.
    fn detached(&self, pasid: u32, domain: &mut Domain) -> Result<(), Error> {
        let cache = PasidCache::NEW.with_g(descriptor::PASID).with_pasid(pasid.into());
        self.submit([cache.with_did(domain.id().into()).0])?;
        self.submit([self.iotlb(descriptor::DOMAIN, domain.id())])?;
        domain.attached = domain.attached.saturating_sub(1);
        Ok(())
    }

    /// Gives back a domain's tables and its id. With [`Error::Domain`] it is kept for ever: functions are attached to it, or
    /// their detaching failed, or it is another unit's.
    pub fn destroy_domain(&self, domain: Domain) -> Result<(), Error> {
        self.check(&domain)?;
        if domain.attached != 0 {
            return Err(Error::Domain);
        }
        let id = domain.id();
        // SAFETY: nobody is attached, and the last `detach` flushed the domain.
        unsafe { domain.free(self.frames) };
        self.contexts.lock().give_id(id);
        Ok(())
    }

    /// Gives each recorded fault to `report`; bounded by the number of records. Returns whether faults were lost besides.
    pub fn take_faults(&self, report: impl FnMut(Fault)) -> bool {
        let (taken, lost) = self.unit.take_faults(report);
        count(&self.counters.faults, taken as u64);
        lost
    }

    /// What happened so far.
    pub fn statistics(&self) -> Statistics {
        let (live, high_water) = self.interrupts.lock().usage();
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Statistics {
            live,
            high_water,
            programmed: get(&self.counters.programmed),
            flushes: get(&self.counters.flushes),
            waits: get(&self.counters.waits),
            faults: get(&self.counters.faults),
        }
    }

    fn check(&self, domain: &Domain) -> Result<(), Error> {
        if domain.unit == self.contexts.lock().root() { Ok(()) } else { Err(Error::Domain) }
    }

    fn iotlb(&self, granularity: u128, domain: u16) -> u128 {
        let (writes, reads) = self.unit.capabilities().drains();
        Iotlb::NEW.with_g(granularity).with_did(domain.into()).with_dw(writes.into()).with_dr(reads.into()).0
    }

    /// Has the unit carry out `descriptors`, and waits.
    fn submit(&self, descriptors: impl IntoIterator<Item = u128>) -> Result<(), QueueError> {
        let mut queue = self.queue.lock();
        for descriptor in descriptors {
            if queue.is_full() {
                self.submit_pending(&mut queue)?;
            }
            queue.push(descriptor);
            count(&self.counters.flushes, 1);
        }
        if queue.is_empty() { Ok(()) } else { self.submit_pending(&mut queue) }
    }

    fn submit_pending(&self, queue: &mut Queue) -> Result<(), QueueError> {
        count(&self.counters.waits, 1);
        queue.submit(&self.unit)
    }
}

/// Takes interrupt entries, one after another.
pub struct Binder<'a> {
    table: MutexGuard<'a, InterruptTable>,
    source: Bdf,
    /// How many entries were in use.
    before: u32,
    programmed: &'a AtomicU64,
}

impl Binder<'_> {
    /// What entries with `route` are like. [`Error::BadVector`], [`Error::BadDestination`], [`Error::BadAddress`] or [`Error::NoPosting`]
    /// for a route that no entry can have.
    pub fn route_fields(&self, route: Route) -> Result<RouteFields, Error> {
        self.table.route_fields(self.source, route)
    }

    /// Takes one and makes it present: [`InterruptTable::bind`].
    #[inline]
    pub fn bind(&mut self, fields: RouteFields, vector: u8) -> Result<u16, Error> {
        self.table.bind(fields, vector)
    }
}

impl Drop for Binder<'_> {
    fn drop(&mut self) {
        count(self.programmed, (self.table.usage().0 - self.before).into());
    }
}

/// The invalidation of 2^`mask` entries from `first`, a multiple of that.
fn block(first: u32, mask: u32) -> u128 {
    InterruptEntryCache::NEW.with_g(1).with_im(mask.into()).with_iidx(first.into()).0
}

/// The runs of consecutive numbers in a list, whichever way they go: the lowest of each, and the one above the highest. Entries that were
/// given back in order are taken in the opposite one.
pub struct Runs<I> {
    numbers: I,
    /// The number that ended the last run.
    next: Option<u32>,
}

impl<I: Iterator<Item = u32>> Runs<I> {
    /// Of these numbers.
    pub fn new(mut numbers: I) -> Self {
        Self { next: numbers.next(), numbers }
    }
}

impl<I: Iterator<Item = u32>> Iterator for Runs<I> {
    type Item = (u32, u32);

    fn next(&mut self) -> Option<(u32, u32)> {
        let first = self.next.take()?;
        let mut last = first;
        if let Some(second) = self.numbers.next() {
            let step = if second == first.wrapping_add(1) { 1 } else { u32::MAX };
            let mut next = second;
            while next == last.wrapping_add(step) {
                last = next;
                match self.numbers.next() {
                    Some(number) => next = number,
                    None => return Some((first.min(last), first.max(last) + 1)),
                }
            }
            self.next = Some(next);
        }
        Some((first.min(last), first.max(last) + 1))
    }
}

/// The invalidations that cover runs of indexes, in aligned blocks of a power of two (IM).
struct Blocks<I> {
    runs: I,
    /// What is left of the current run.
    run: (u32, u32),
    max_mask: u32,
}

impl<I: Iterator<Item = (u32, u32)>> Blocks<I> {
    fn new(runs: I, max_mask: u32) -> Self {
        Self { runs, run: (0, 0), max_mask }
    }
}

impl<I: Iterator<Item = (u32, u32)>> Iterator for Blocks<I> {
    type Item = u128;

    fn next(&mut self) -> Option<u128> {
        if self.run.0 == self.run.1 {
            self.run = self.runs.next()?;
        }
        let (first, end) = self.run;
        let mask = first.trailing_zeros().min((end - first).ilog2()).min(self.max_mask);
        self.run.0 += 1 << mask;
        Some(block(first, mask))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_flushed_in_blocks_whichever_way_they_go() {
        let runs = |indexes: &'static [u16]| Runs::new(indexes.iter().copied().map(u32::from));
        let blocks = |indexes| Blocks::new(runs(indexes), 15).collect::<Vec<_>>();
        assert_eq!(blocks(&[]), []);
        assert_eq!(blocks(&[5]), [block(5, 0)]);
        assert_eq!(blocks(&[0, 1, 2, 3]), [block(0, 2)]);
        assert_eq!(blocks(&[3, 2, 1, 0]), [block(0, 2)]);
        assert_eq!(blocks(&[5, 4, 8, 9, 0xffff, 0]), [block(4, 1), block(8, 1), block(0xffff, 0), block(0, 0)]);
        assert_eq!(blocks(&[7, 7, 3]), [block(7, 0), block(7, 0), block(3, 0)]);
        assert_eq!(blocks(&[1, 2, 1]), [block(1, 0), block(2, 0), block(1, 0)]);
    }
}
