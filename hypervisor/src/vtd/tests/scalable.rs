//! Scalable mode: requests with and without PASIDs go through their domains, and nowhere else.

use vtd_model::{Access, DmaFault, Requester};

use super::*;
use crate::{
    addr::{Gpa, Hpa},
    vtd::{Domain, Error, QueueError, Reason, Request, Route},
};

const GUEST: u64 = 0x10_0000;
const PAGE: u64 = 4096;
/// PASIDs in the first PASID table, and in the last.
const LOW: u32 = 5;
const HIGH: u32 = 0x1fff;
const ABSENT: DmaFault = DmaFault::Blocked(0x59);

type Remap<'b> = Remapper<'b, &'b Bench, TestFrames>;

fn scalable() -> vtd_model::Config {
    vtd_model::Config { scalable_mode: true, ..capable() }
}

fn start(bench: &Bench) -> Remap<'_> {
    let remapper = bench.start();
    remapper.enable_dma_remapping().unwrap();
    remapper
}

/// A domain in which one page leads to `hpa`.
fn domain(remapper: &Remap<'_>, hpa: u64) -> Domain {
    let mut domain = remapper.create_domain().unwrap();
    // SAFETY: the model touches frames of the test only.
    unsafe { remapper.map(&mut domain, Gpa::new(GUEST), Hpa::new(hpa), PAGE, true) }.unwrap();
    domain
}

impl Bench {
    fn ask(&self, source: Bdf, pasid: Option<u32>) -> Result<u64, DmaFault> {
        let requester = Requester { source_id: source.requester_id(), pasid };
        self.model.lock().unwrap().dma(requester, GUEST, 4, Access::Write, &mut HostMemory(&self.frames))
    }
}

#[test]
fn bring_up_in_scalable_mode_keeps_to_the_manual() {
    let variants = [
        scalable(),
        vtd_model::Config { coherent: false, scalable_walk_snoop: false, ..scalable() },
        vtd_model::Config { flush_on_srtp: true, flush_on_sirtp: true, ..scalable() },
        vtd_model::Config { four_level: false, pages_1g: false, ..scalable() },
        presets()[1].clone(),
    ];
    for config in variants {
        let bench = Bench::new(config);
        let remapper = start(&bench);
        assert!(remapper.has_pasids());
        let mut domain = domain(&remapper, 0x20_0000);
        remapper.attach(DSA, &mut domain).unwrap();
        remapper.attach_pasid(DSA, HIGH, &mut domain).unwrap();
        assert_eq!((bench.ask(DSA, None), bench.ask(DSA, Some(HIGH))), (Ok(0x20_0000), Ok(0x20_0000)));
        bench.assert_clean();
    }
}

/// PASIDE is reserved there: a function whose context entry had it could do no DMA at all.
#[test]
fn a_unit_without_pasids_translates_requests_without_and_refuses_those_with_pasids() {
    for config in presets().into_iter().filter(|config| !config.pasids) {
        let bench = Bench::new(config);
        let remapper = start(&bench);
        let mut domain = domain(&remapper, 0x20_0000);
        remapper.attach(DSA, &mut domain).unwrap();
        assert_eq!(bench.ask(DSA, None), Ok(0x20_0000));
        assert!(!remapper.has_pasids());
        assert_eq!(remapper.attach_pasid(DSA, LOW, &mut domain), Err(Error::NoPasid));
        assert_eq!(bench.ask(DSA, Some(LOW)), Err(DmaFault::Blocked(0x45)));
        remapper.detach(DSA, &mut domain).unwrap();
        assert_eq!(bench.ask(DSA, None), Err(ABSENT));
        bench.assert_clean();
    }
}

/// Firmware, or a loader, may have used either mode.
#[test]
fn a_unit_is_taken_over_from_legacy_mode() {
    let bench = Bench::new(scalable());
    drop(start(&bench));
    let remapper = start(&bench);
    let mut domain = domain(&remapper, 0x20_0000);
    remapper.attach(DSA, &mut domain).unwrap();
    assert_eq!(bench.ask(DSA, None), Ok(0x20_0000));
    bench.assert_clean();
}

#[test]
fn each_pasid_reaches_the_memory_of_its_domain_and_no_other_does() {
    let bench = Bench::new(scalable());
    let remapper = start(&bench);
    let (mut one, mut two) = (domain(&remapper, 0x20_0000), domain(&remapper, 0x30_0000));
    remapper.attach(DSA, &mut one).unwrap();
    remapper.attach_pasid(DSA, LOW, &mut two).unwrap();
    remapper.attach_pasid(DSA, HIGH, &mut one).unwrap();
    assert_eq!(bench.ask(DSA, None), Ok(0x20_0000));
    assert_eq!(bench.ask(DSA, Some(LOW)), Ok(0x30_0000));
    assert_eq!(bench.ask(DSA, Some(HIGH)), Ok(0x20_0000));
    assert_eq!(bench.ask(DSA, Some(LOW + 1)), Err(ABSENT));
    assert_eq!(bench.ask(DSA, Some(0x100)), Err(DmaFault::Blocked(0x51)));
    assert_eq!(bench.ask(DSA, Some(0x2000)), Err(DmaFault::Blocked(0x46)));
    assert_eq!(bench.ask(OTHER, Some(LOW)), Err(DmaFault::Blocked(0x41)));
    let fault = |pasid, reason| Fault {
        source: DSA,
        pasid: Some(pasid),
        reason: Reason(reason),
        request: Request::Write(GUEST),
    };
    assert_eq!(faults(&remapper)[..2], [fault(LOW + 1, 0x59), fault(0x100, 0x51)]);
    bench.assert_clean();
}

/// Devices 0 to 15 and 16 to 31 of a bus have context tables of their own.
#[test]
fn functions_of_both_halves_of_a_bus_are_told_apart() {
    let bench = Bench::new(scalable());
    let remapper = start(&bench);
    let low = Bdf::new(0, 0x0e, 0);
    let (mut one, mut two) = (domain(&remapper, 0x20_0000), domain(&remapper, 0x30_0000));
    remapper.attach(low, &mut one).unwrap();
    remapper.attach(DSA, &mut two).unwrap();
    assert_eq!((bench.ask(low, None), bench.ask(DSA, None)), (Ok(0x20_0000), Ok(0x30_0000)));
    bench.assert_clean();
}

#[test]
fn a_detached_pasid_is_blocked_although_everything_was_cached() {
    for (coherent, scalable_walk_snoop) in [(true, true), (false, false), (true, false)] {
        let bench = Bench::new(vtd_model::Config { coherent, scalable_walk_snoop, ..scalable() });
        let remapper = start(&bench);
        let mut domain = domain(&remapper, 0x20_0000);
        remapper.attach(DSA, &mut domain).unwrap();
        remapper.attach_pasid(DSA, LOW, &mut domain).unwrap();
        assert_eq!((bench.ask(DSA, None), bench.ask(DSA, Some(LOW))), (Ok(0x20_0000), Ok(0x20_0000)));
        remapper.detach_pasid(DSA, LOW, &mut domain).unwrap();
        assert_eq!((bench.ask(DSA, None), bench.ask(DSA, Some(LOW))), (Ok(0x20_0000), Err(ABSENT)));
        remapper.detach(DSA, &mut domain).unwrap();
        assert_eq!(bench.ask(DSA, None), Err(ABSENT));
        bench.assert_clean();
    }
}

#[test]
fn the_next_domain_of_a_pasid_does_not_see_the_last_ones_pages() {
    let bench = Bench::new(vtd_model::Config { domain_id_bits: 4, ..scalable() });
    let remapper = start(&bench);
    remapper.prepare(DSA).unwrap();
    let before = bench.frames.in_use();
    for round in 1..40u64 {
        let mut domain = domain(&remapper, round << 30);
        remapper.attach_pasid(DSA, LOW, &mut domain).unwrap();
        remapper.attach(DSA, &mut domain).unwrap();
        assert_eq!((bench.ask(DSA, Some(LOW)), bench.ask(DSA, None)), (Ok(round << 30), Ok(round << 30)));
        remapper.detach(DSA, &mut domain).unwrap();
        remapper.detach_pasid(DSA, LOW, &mut domain).unwrap();
        remapper.destroy_domain(domain).unwrap();
    }
    assert_eq!(bench.frames.in_use(), before);
    bench.assert_clean();
}

#[test]
fn a_domain_is_kept_while_a_pasid_leads_to_it_or_may_still() {
    let bench = Bench::new(scalable());
    let remapper = bench.start();
    remapper.enable_dma_remapping().unwrap();
    let mut kept = remapper.create_domain().unwrap();
    remapper.attach_pasid(DSA, LOW, &mut kept).unwrap();
    assert_eq!(remapper.destroy_domain(kept), Err(Error::Domain));
    let mut domain = remapper.create_domain().unwrap();
    remapper.attach_pasid(DSA, HIGH, &mut domain).unwrap();
    bench.model.lock().unwrap().hang(true);
    assert_eq!(remapper.detach_pasid(DSA, HIGH, &mut domain), Err(Error::Queue(QueueError::TimedOut)));
    assert_eq!(remapper.destroy_domain(domain), Err(Error::Domain));
}

#[test]
fn what_is_no_pasid_or_not_attached_is_refused() {
    let bench = Bench::new(vtd_model::Config { pasid_bits: 8, ..scalable() });
    let remapper = start(&bench);
    let (mut one, mut two) = (remapper.create_domain().unwrap(), remapper.create_domain().unwrap());
    assert_eq!(remapper.attach_pasid(DSA, 0, &mut one), Err(Error::NoPasid));
    assert_eq!(remapper.attach_pasid(DSA, 0x100, &mut one), Err(Error::NoPasid));
    assert_eq!(remapper.detach_pasid(DSA, LOW, &mut one), Err(Error::NotAttached));
    remapper.attach_pasid(DSA, LOW, &mut one).unwrap();
    assert_eq!(remapper.attach_pasid(DSA, LOW, &mut two), Err(Error::Attached));
    assert_eq!(remapper.detach_pasid(DSA, LOW, &mut two), Err(Error::NotAttached));
}

#[test]
fn legacy_mode_has_no_pasids_and_blocks_requests_with_them() {
    let bench = Bench::new(capable());
    let remapper = start(&bench);
    let mut domain = domain(&remapper, 0x20_0000);
    remapper.attach(DSA, &mut domain).unwrap();
    assert!(!remapper.has_pasids());
    assert_eq!(remapper.attach_pasid(DSA, LOW, &mut domain), Err(Error::NoPasid));
    assert_eq!((bench.ask(DSA, None), bench.ask(DSA, Some(LOW))), (Ok(0x20_0000), Err(DmaFault::Blocked(0x31))));
    bench.assert_clean();
}

#[test]
fn interrupt_entries_are_flushed_through_wide_descriptors_too() {
    let bench = Bench::new(scalable());
    let remapper = start(&bench);
    let index = remapper.bind(DSA, Route::Remapped { vector: 40, destination: 1 }).unwrap();
    assert_eq!(remapped(bench.fire(DSA, index)), Some((40, 1)));
    for _ in 0..600 {
        remapper.flush_entry(index).unwrap();
    }
    remapper.clear(index).unwrap();
    remapper.flush_entry(index).unwrap();
    assert_eq!(blocked(bench.fire(DSA, index)), Some(0x22));
    bench.assert_clean();
}
