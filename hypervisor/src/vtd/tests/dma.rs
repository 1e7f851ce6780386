//! DMA remapping: a device reaches its domain's memory, and nothing else.

use proptest::prelude::*;
use vtd_model::{Access, DmaFault};

use super::*;
use crate::{
    addr::{Gpa, Hpa},
    vtd::{Domain, Error, QueueError, Reason, Request},
};

const GUEST: u64 = 0x10_0000;
const PAGE: u64 = 4096;

type Remap<'b> = Remapper<'b, &'b Bench, TestFrames>;

fn start(bench: &Bench) -> Remap<'_> {
    let remapper = bench.start();
    remapper.enable_dma_remapping().unwrap();
    remapper
}

fn map(remapper: &Remap<'_>, domain: &mut Domain, gpa: u64, hpa: u64, len: u64, writable: bool) -> Result<(), Error> {
    // SAFETY: the model touches frames of the test only.
    unsafe { remapper.map(domain, Gpa::new(gpa), Hpa::new(hpa), len, writable) }
}

impl Bench {
    fn translate(&self, source: Bdf, address: u64, access: Access) -> Result<u64, DmaFault> {
        self.model.lock().unwrap().dma(source.requester_id(), address, 4, access, &mut HostMemory(&self.frames))
    }

    pub(crate) fn reaches(&self, source: Bdf, address: u64) -> Option<u64> {
        self.translate(source, address, Access::Write).ok()
    }
}

/// What must always be true, 8.
#[test]
fn a_device_writes_to_its_guests_memory_and_is_blocked_elsewhere() {
    let bench = Bench::new(capable());
    let remapper = start(&bench);
    let mut domain = remapper.create_domain().unwrap();
    let page = bench.page();
    map(&remapper, &mut domain, GUEST, page.as_u64(), PAGE, true).unwrap();
    assert_eq!(bench.translate(DSA, GUEST, Access::Write), Err(DmaFault::Blocked(1)));
    remapper.attach(DSA, &mut domain).unwrap();
    let mut memory = HostMemory(&bench.frames);
    let wrote = bench.model.lock().unwrap().dma_write(DSA.requester_id(), GUEST + 8, &7u64.to_le_bytes(), &mut memory);
    assert_eq!((wrote, bench.quadword(page.as_u64() + 8)), (Ok(()), 7));
    assert_eq!(bench.translate(DSA, GUEST + PAGE, Access::Write), Err(DmaFault::Blocked(5)));
    assert_eq!(bench.translate(OTHER, GUEST, Access::Read), Err(DmaFault::Blocked(2)));
    bench.assert_clean();
}

#[test]
fn dma_faults_are_decoded() {
    let bench = Bench::new(capable());
    let remapper = start(&bench);
    let mut domain = remapper.create_domain().unwrap();
    remapper.attach(DSA, &mut domain).unwrap();
    bench.reaches(DSA, 0x1234_5678);
    let _ = bench.translate(DSA, 0x2000, Access::Read);
    let fault = |reason, request| Fault { source: DSA, pasid: None, reason: Reason(reason), request };
    assert_eq!(faults(&remapper), [fault(5, Request::Write(0x1234_5000)), fault(6, Request::Read(0x2000))]);
}

#[test]
fn read_only_memory_is_not_written() {
    let bench = Bench::new(capable());
    let remapper = start(&bench);
    let mut domain = remapper.create_domain().unwrap();
    map(&remapper, &mut domain, GUEST, 0x20_0000, PAGE, false).unwrap();
    remapper.attach(DSA, &mut domain).unwrap();
    assert_eq!(bench.translate(DSA, GUEST, Access::Read), Ok(0x20_0000));
    assert_eq!(bench.translate(DSA, GUEST, Access::Write), Err(DmaFault::Blocked(5)));
}

#[test]
fn a_detached_device_is_blocked_although_everything_was_cached() {
    for coherent in [true, false] {
        let bench = Bench::new(vtd_model::Config { coherent, ..capable() });
        let remapper = start(&bench);
        let mut domain = remapper.create_domain().unwrap();
        map(&remapper, &mut domain, GUEST, 0x20_0000, PAGE, true).unwrap();
        remapper.attach(DSA, &mut domain).unwrap();
        remapper.attach(OTHER, &mut domain).unwrap();
        assert_eq!((bench.reaches(DSA, GUEST), bench.reaches(OTHER, GUEST)), (Some(0x20_0000), Some(0x20_0000)));
        remapper.detach(DSA, &mut domain).unwrap();
        assert_eq!(bench.translate(DSA, GUEST, Access::Read), Err(DmaFault::Blocked(2)));
        assert_eq!(bench.reaches(OTHER, GUEST), Some(0x20_0000));
        bench.assert_clean();
    }
}

#[test]
fn the_next_domain_does_not_see_the_last_ones_pages() {
    let bench = Bench::new(vtd_model::Config { domain_id_bits: 4, ..capable() });
    let remapper = start(&bench);
    let before = bench.frames.in_use();
    for round in 1..40u64 {
        let mut domain = remapper.create_domain().unwrap();
        map(&remapper, &mut domain, GUEST + round * PAGE, round << 30, PAGE, true).unwrap();
        remapper.attach(DSA, &mut domain).unwrap();
        assert_eq!(bench.reaches(DSA, GUEST + (round - 1) * PAGE), None);
        assert_eq!(bench.reaches(DSA, GUEST + round * PAGE), Some(round << 30));
        remapper.detach(DSA, &mut domain).unwrap();
        remapper.destroy_domain(domain).unwrap();
    }
    // The context table stays.
    assert_eq!(bench.frames.in_use(), before + 1);
    bench.assert_clean();
}

#[test]
fn a_domain_in_use_is_kept() {
    let bench = Bench::new(capable());
    let remapper = bench.start();
    remapper.enable_dma_remapping().unwrap();
    let mut domain = remapper.create_domain().unwrap();
    map(&remapper, &mut domain, GUEST, 0x20_0000, PAGE, true).unwrap();
    remapper.attach(DSA, &mut domain).unwrap();
    bench.reaches(DSA, GUEST);
    bench.model.lock().unwrap().hang(true);
    let in_use = bench.frames.in_use();
    assert_eq!(remapper.detach(DSA, &mut domain), Err(Error::Queue(QueueError::TimedOut)));
    assert_eq!(remapper.detach(DSA, &mut domain), Err(Error::NotAttached));
    assert_eq!(remapper.destroy_domain(domain), Err(Error::Domain));
    assert_eq!(bench.frames.in_use(), in_use);
}

#[test]
fn a_function_is_in_one_domain_at_a_time() {
    let bench = Bench::new(capable());
    let remapper = start(&bench);
    let (mut one, mut two) = (remapper.create_domain().unwrap(), remapper.create_domain().unwrap());
    remapper.attach(DSA, &mut one).unwrap();
    assert_eq!(remapper.attach(DSA, &mut one), Err(Error::Attached));
    assert_eq!(remapper.attach(DSA, &mut two), Err(Error::Attached));
    assert_eq!(remapper.detach(DSA, &mut two), Err(Error::NotAttached));
    assert_eq!(remapper.detach(Bdf::new(9, 0, 0), &mut one), Err(Error::NotAttached));
    remapper.detach(DSA, &mut one).unwrap();
    remapper.attach(DSA, &mut two).unwrap();
}

#[test]
fn another_units_domain_is_refused() {
    let (bench, elsewhere) = (Bench::new(capable()), Bench::new(capable()));
    let (remapper, other) = (start(&bench), start(&elsewhere));
    let mut foreign = other.create_domain().unwrap();
    assert_eq!(remapper.attach(DSA, &mut foreign), Err(Error::Domain));
    assert_eq!(map(&remapper, &mut foreign, 0, 0, PAGE, true), Err(Error::Domain));
    assert_eq!(remapper.destroy_domain(foreign), Err(Error::Domain));
}

/// An RMRR's device, a display or a board management controller, behind any unit.
#[test]
fn firmwares_device_reaches_its_reserved_memory_only() {
    for config in all() {
        let bench = Bench::new(config);
        let remapper = start(&bench);
        let range = |start, len| crate::memory::PhysRange::new(Hpa::new(start), len);
        let ranges = [range(0x7000_0000, 4 * PAGE), range(0x7000_2000, 4 * PAGE)];
        // SAFETY: the model touches frames of the test only.
        let domain = unsafe { remapper.attach_identity(DSA, ranges.into_iter()) }.unwrap();
        let reached = (0x6fff_f000..0x7000_8000).step_by(4096).filter_map(|at| bench.reaches(DSA, at));
        assert_eq!(reached.collect::<Vec<_>>(), (0x7000_0000..0x7000_6000).step_by(4096).collect::<Vec<_>>());
        // SAFETY: as above.
        let again = unsafe { remapper.attach_identity(DSA, ranges.into_iter()) };
        assert!(matches!(again, Err(Error::Attached)));
        assert_eq!(remapper.destroy_domain(domain), Err(Error::Domain));
        bench.assert_clean();
    }
}

#[test]
fn domain_ids_run_out_with_an_error() {
    let bench = Bench::new(vtd_model::Config { domain_id_bits: 4, ..capable() });
    let remapper = start(&bench);
    let mut domains: Vec<_> = (0..15).map(|_| remapper.create_domain().unwrap()).collect();
    assert!(matches!(remapper.create_domain(), Err(Error::NoFreeDomain)));
    remapper.destroy_domain(domains.pop().unwrap()).unwrap();
    assert!(remapper.create_domain().is_ok());
}

#[test]
fn pages_are_as_large_as_the_unit_permits() {
    let tables = |config| {
        let bench = Bench::new(config);
        let remapper = start(&bench);
        let mut domain = remapper.create_domain().unwrap();
        remapper.attach(DSA, &mut domain).unwrap();
        let before = bench.frames.in_use();
        map(&remapper, &mut domain, 1 << 30, 3 << 30, 1 << 30, true).unwrap();
        assert_eq!(bench.reaches(DSA, (2 << 30) - 4), Some((4 << 30) - 4));
        bench.assert_clean();
        bench.frames.in_use() - before
    };
    assert_eq!(tables(capable()), 1);
    assert_eq!(tables(vtd_model::Config { pages_1g: false, ..capable() }), 2);
    assert_eq!(tables(vtd_model::Config { pages_1g: false, four_level: false, ..capable() }), 1);
    assert_eq!(tables(vtd_model::Config { pages_1g: false, pages_2m: false, ..capable() }), 514);
}

#[test]
fn what_is_mapped_is_not_mapped_again() {
    let bench = Bench::new(capable());
    let remapper = start(&bench);
    let mut domain = remapper.create_domain().unwrap();
    remapper.attach(DSA, &mut domain).unwrap();
    map(&remapper, &mut domain, 2 << 20, 8 << 20, 2 << 20, true).unwrap();
    for (gpa, len) in [(2 << 20, 2 << 20), ((3 << 20), PAGE), (0, 1 << 30)] {
        assert_eq!(map(&remapper, &mut domain, gpa, 64 << 30, len, true), Err(Error::Mapped));
    }
    assert_eq!(bench.reaches(DSA, 3 << 20), Some(9 << 20));
}

#[test]
fn ranges_that_cannot_be_are_refused() {
    let bench = Bench::new(vtd_model::Config { four_level: false, ..capable() });
    let remapper = start(&bench);
    let mut domain = remapper.create_domain().unwrap();
    let bad = [
        (1, 0, PAGE),
        (0, 1, PAGE),
        (0, 0, 5),
        (0, 0, 0),
        (!0xfff, 0, 2 * PAGE),
        ((1 << 39) - PAGE, 0, 2 * PAGE),
        (0, (1 << 52) - PAGE, 2 * PAGE),
    ];
    for (gpa, hpa, len) in bad {
        assert_eq!(map(&remapper, &mut domain, gpa, hpa, len, true), Err(Error::BadAddress));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn the_model_translates_what_was_mapped_and_nothing_else(
        ranges in prop::collection::vec((0u64..2048, 0u64..1 << 20, 1u64..1200), 1..6),
        probes in prop::collection::vec(0u64..4096, 40),
        four_level in any::<bool>(),
        pages_2m in any::<bool>(),
    ) {
        let bench = Bench::new(vtd_model::Config { four_level, pages_2m, pages_1g: false, ..capable() });
        let remapper = start(&bench);
        let mut domain = remapper.create_domain().unwrap();
        remapper.attach(DSA, &mut domain).unwrap();
        let mut mapped = std::collections::BTreeMap::new();
        for (gpa, hpa, count) in ranges {
            // Clear of the interrupt range; sometimes aligned alike, so that large pages come to be.
            let hpa = (1 << 24) + if hpa % 2 == 0 { (hpa & !511) | (gpa & 511) } else { hpa };
            if (gpa..gpa + count).any(|page| mapped.contains_key(&page)) {
                continue;
            }
            map(&remapper, &mut domain, gpa * PAGE, hpa * PAGE, count * PAGE, true).unwrap();
            mapped.extend((0..count).map(|i| (gpa + i, hpa + i)));
        }
        for page in probes {
            let expected = mapped.get(&page).map(|hpa| hpa * PAGE + 16);
            prop_assert_eq!(bench.reaches(DSA, page * PAGE + 16), expected);
        }
        bench.assert_clean();
    }
}
