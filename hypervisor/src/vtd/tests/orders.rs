//! The order of things: which store of an entry comes first, and which invalidation. A model that looks only when it is asked sees none
//! of that.

use std::{cell::RefCell, ptr::NonNull, sync::atomic::AtomicU64};

use super::*;
use crate::{
    addr::{Gpa, Hpa},
    memory::stepping::states,
    vtd::{
        Domain, Route, UnitError,
        coherence::Coherence,
        dma::ContextTables,
        irt::{Format, InterruptTable},
        spec::{
            descriptor::{self, ContextCache, Iotlb, PasidCache, Wait},
            registers::{GCMD, GSTS, IQA, IQT, Iqa, global},
            tables::{ContextEntry, PasidEntry},
        },
    },
};

const PASID: u32 = 5;

/// A unit, and the descriptors that it is given: a list for each time that it is told of some.
struct Recorder<'a> {
    bench: &'a Bench,
    submissions: RefCell<Vec<Vec<u128>>>,
}

impl<'a> Recorder<'a> {
    fn new(bench: &'a Bench) -> Self {
        Self { bench, submissions: RefCell::default() }
    }

    /// What was submitted since the last time, without the waits that end each list.
    fn take(&self) -> Vec<Vec<u128>> {
        let mut lists = self.submissions.take();
        for list in &mut lists {
            let wait = list.pop().map(Wait);
            assert_eq!(
                wait.map(|wait| (wait.kind(), wait.sw())),
                Some((5, 1)),
                "it ends with a wait whose status is looked at"
            );
        }
        lists
    }
}

impl Registers for Recorder<'_> {
    fn read32(&self, offset: usize) -> u32 {
        self.bench.read32(offset)
    }

    fn read64(&self, offset: usize) -> u64 {
        self.bench.read64(offset)
    }

    fn write32(&self, offset: usize, value: u32) {
        self.bench.write32(offset, value);
    }

    fn write64(&self, offset: usize, value: u64) {
        let queue = Iqa(self.bench.read64(IQA));
        if offset == IQT && queue.page() != 0 {
            let (bytes, size) = (4096 << queue.qs(), 16 << queue.dw());
            let (mut at, mut list) = (self.bench.read64(IQT), Vec::new());
            while at != value {
                let descriptor = (queue.page() * 4096 + at) as *const u128;
                // SAFETY: the queue lies in frames of the test, and nobody writes to it now.
                list.push(unsafe { descriptor.read() });
                at = (at + size) % bytes;
            }
            self.submissions.borrow_mut().push(list);
        }
        self.bench.write64(offset, value);
    }
}

/// A domain in which one page can be reached.
fn domain<R: Registers>(remapper: &Remapper<'_, R, TestFrames>) -> Domain {
    let mut domain = remapper.create_domain().unwrap();
    // SAFETY: the model touches frames of the test only.
    unsafe { remapper.map(&mut domain, Gpa::new(0x10_0000), Hpa::new(0x20_0000), 4096, true) }.unwrap();
    domain
}

/// The descriptor that lets nothing of a domain be in flight behind it.
fn drained(domain: &Domain) -> u128 {
    Iotlb::NEW.with_g(descriptor::DOMAIN).with_did(domain.id().into()).with_dw(1).with_dr(1).0
}

/// 6.5.3.3.
#[test]
fn a_function_that_leaves_is_flushed_from_the_context_cache_and_only_then_drained() {
    let bench = Bench::new(capable());
    let recorder = Recorder::new(&bench);
    let remapper = Remapper::new(&recorder, &bench.frames, CONFIG).unwrap();
    remapper.enable_dma_remapping().unwrap();
    let mut domain = domain(&remapper);
    remapper.attach(DSA, &mut domain).unwrap();
    recorder.take();
    remapper.detach(DSA, &mut domain).unwrap();
    let context = ContextCache::NEW.with_g(descriptor::DEVICE).with_did(domain.id().into());
    let context = context.with_sid(DSA.requester_id().into()).0;
    assert_eq!(recorder.take(), [[context], [drained(&domain)]]);
}

/// 6.5.3.3.
#[test]
fn a_pasid_that_leaves_is_flushed_from_the_pasid_cache_and_only_then_drained() {
    let bench = Bench::new(vtd_model::Config { scalable_mode: true, ..capable() });
    let recorder = Recorder::new(&bench);
    let remapper = Remapper::new(&recorder, &bench.frames, CONFIG).unwrap();
    remapper.enable_dma_remapping().unwrap();
    let mut domain = domain(&remapper);
    remapper.attach(DSA, &mut domain).unwrap();
    remapper.attach_pasid(DSA, PASID, &mut domain).unwrap();
    recorder.take();
    remapper.detach_pasid(DSA, PASID, &mut domain).unwrap();
    let cache = PasidCache::NEW.with_g(descriptor::PASID).with_did(domain.id().into());
    assert_eq!(recorder.take(), [[cache.with_pasid(PASID.into()).0], [drained(&domain)]]);
    remapper.detach(DSA, &mut domain).unwrap();
    assert_eq!(recorder.take(), [[cache.0], [drained(&domain)]], "that of requests without one is 0");
}

/// 6.5.3.3: each is complete before the next begins, and all of them before translation is on.
#[test]
fn before_translation_is_on_everything_is_flushed_from_the_outermost_cache_inwards() {
    let everything = |scalable_mode| {
        let bench = Bench::new(vtd_model::Config { scalable_mode, ..capable() });
        let recorder = Recorder::new(&bench);
        let remapper = Remapper::new(&recorder, &bench.frames, CONFIG).unwrap();
        recorder.take();
        remapper.enable_dma_remapping().unwrap();
        recorder.take()
    };
    let context = ContextCache::NEW.with_g(descriptor::GLOBAL).0;
    let pasids = PasidCache::NEW.with_g(descriptor::ALL_PASIDS).0;
    let iotlb = Iotlb::NEW.with_g(descriptor::GLOBAL).with_dw(1).with_dr(1).0;
    assert_eq!(everything(false), [[context], [iotlb]]);
    assert_eq!(everything(true), [[context], [pasids], [iotlb]]);
}

/// The 16 bytes of a table in which an entry lies.
fn entry(address: u64) -> NonNull<[AtomicU64; 2]> {
    NonNull::new(address as *mut _).unwrap()
}

/// An entry that is present is whole: what was and what is to be are the only present states in between.
fn assert_whole(states: &[u128]) {
    let ends = [states.first(), states.last()];
    assert!(states.len() > 1, "nothing was written");
    assert!(states.iter().all(|state| state & 1 == 0 || ends.contains(&Some(state))), "{states:x?}");
}

#[test]
fn a_context_entry_is_never_present_and_half_written() {
    let bench = Bench::new(capable());
    let remapper = bench.start();
    let domain = remapper.create_domain().unwrap();
    let mut tables = ContextTables::new(&bench.frames, remapper.unit().capabilities()).unwrap();
    tables.prepare(&bench.frames, DSA).unwrap();
    let context = ContextEntry(bench.quadword(tables.root().as_u64() + 16 * u64::from(DSA.bus())).into()).ssptptr();
    let entry = entry(context as u64 * 4096 + 16 * u64::from(DSA.devfn()));
    // SAFETY: the entry lies in a frame of the tables, which nobody else uses.
    let (attached, detached) = unsafe {
        let attached = states(entry, || tables.attach(&bench.frames, DSA, &domain).unwrap());
        (attached, states(entry, || tables.detach(&bench.frames, DSA, &domain).unwrap()))
    };
    assert_whole(&attached);
    assert_whole(&detached);
    assert_eq!((attached[0], attached.last().map(|entry| entry & 1), detached.last()), (0, Some(1), Some(&0)));
}

#[test]
fn a_pasid_entry_is_never_present_and_half_written() {
    let bench = Bench::new(vtd_model::Config { scalable_mode: true, ..capable() });
    let remapper = bench.start();
    let domain = remapper.create_domain().unwrap();
    let mut tables = ContextTables::new(&bench.frames, remapper.unit().capabilities()).unwrap();
    let table = tables.pasid_table(&bench.frames, DSA, PASID, true).unwrap().unwrap();
    let entry = entry(table.address().as_u64() + 64 * u64::from(PASID));
    // SAFETY: the entry lies in a frame of the tables, which nobody else uses.
    let (attached, detached) = unsafe {
        let attached = states(entry, || tables.attach_pasid(&bench.frames, DSA, PASID, &domain).unwrap());
        (attached, states(entry, || tables.detach_pasid(&bench.frames, DSA, PASID, &domain).unwrap()))
    };
    assert_whole(&attached);
    assert_whole(&detached);
    assert_eq!(attached.last().map(|entry| PasidEntry(*entry).did()), Some(domain.id().into()));
}

/// Chapter 5: an interrupt finds the old entry or the new one, and none whose halves are of two.
#[test]
fn attack_09_an_interrupt_entry_changes_in_one_step() {
    let frames = TestFrames::default();
    let format = Format { wide: true, posts: true };
    let mut table = InterruptTable::new(&frames, 256, format, Coherence(true)).unwrap();
    let posted = |page: u64| Route::Posted { descriptor: Hpa::new(page << 32 | 0x40), vector: 0x41 };
    let fields = table.route_fields(DSA, posted(1)).unwrap();
    let base = table.base();
    let first = entry(base.as_u64());
    // SAFETY: the entry lies in the table's frames, which nobody else uses.
    unsafe {
        let bound = states(first, || assert_eq!(table.bind(fields, 0x41), Ok(0)));
        assert_whole(&bound);
        for route in [posted(0xf_0000), Route::Remapped { vector: 0x42, destination: 7 }, posted(2)] {
            assert_eq!(states(first, || table.program(0, route).unwrap()).len(), 2);
        }
        assert_eq!(states(first, || table.clear(0).unwrap()).len(), 2);
        assert_eq!(states(first, || table.program(0, posted(3)).unwrap()).len(), 2);
        assert_eq!(states(first, || table.block(0).unwrap()).len(), 2);
    }
}

/// A unit that says that compatibility-format interrupts pass: always, or again behind the first look that it was told.
struct Lenient<'a> {
    bench: &'a Bench,
    /// How many looks at the status, from when interrupts are remapped on, show what was asked for.
    honest: RefCell<usize>,
}

impl Registers for Lenient<'_> {
    fn read32(&self, offset: usize) -> u32 {
        let value = self.bench.read32(offset);
        if offset != GSTS || value & global::IRE == 0 {
            return value;
        }
        let honest = &mut *self.honest.borrow_mut();
        *honest = honest.saturating_sub(1);
        if *honest == 0 { value | global::CFI } else { value }
    }

    fn read64(&self, offset: usize) -> u64 {
        self.bench.read64(offset)
    }

    fn write32(&self, offset: usize, value: u32) {
        self.bench.write32(offset, value);
    }

    fn write64(&self, offset: usize, value: u64) {
        self.bench.write64(offset, value);
    }
}

/// CVE-2011-1898: such an interrupt would go round the table.
#[test]
fn attack_01_a_unit_that_lets_the_compatibility_format_pass_is_refused() {
    let refusal = |honest| {
        let bench = Bench::new(capable());
        Remapper::new(Lenient { bench: &bench, honest: RefCell::new(honest) }, &bench.frames, CONFIG).err()
    };
    assert_eq!(refusal(0), Some(UnitError::Timeout("block compatibility format")));
    // One look ends the wait for IRE, one finds nothing to switch off.
    assert_eq!(refusal(3), Some(UnitError::CompatibilityFormat));
    assert_eq!(refusal(usize::MAX), None);
}

#[test]
fn attack_01_what_a_loader_lets_pass_in_compatibility_format_is_blocked() {
    let bench = Bench::new(capable());
    drop(bench.start());
    let on = global::IRE | global::QIE;
    bench.write32(GCMD, on | global::CFI);
    assert_eq!(bench.read32(GSTS) & (on | global::CFI), on | global::CFI);
    drop(bench.start());
    assert_eq!(bench.read32(GSTS) & (on | global::CFI), on);
}
