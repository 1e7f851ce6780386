//! Memory that runs out: each allocation fails once.

use super::*;
use crate::{
    addr::{Gpa, Hpa},
    vtd::{Domain, Error, UnitError},
};

const GUEST: u64 = 0x10_0000;
const PASID: u32 = 0x1fff;

type Remap<'b> = Remapper<'b, &'b Bench, TestFrames>;

fn units() -> Vec<vtd_model::Config> {
    all().into_iter().chain([vtd_model::Config { scalable_mode: true, ..capable() }]).collect()
}

/// Its tables stay allocated: the machine ends soon.
#[test]
fn a_unit_that_lacks_memory_is_refused_and_can_be_brought_up_later() {
    for config in units() {
        for count in 0.. {
            let bench = Bench::new(config.clone());
            bench.frames.fail_after(count);
            let remapper = Remapper::new(&bench, &bench.frames, CONFIG);
            if !bench.frames.has_failed() {
                assert!(count > 2 && remapper.is_ok(), "{count} allocations");
                break;
            }
            assert!(matches!(remapper.map(|_| ()), Err(UnitError::NoMemory)), "allocation {count}");
            bench.start().enable_dma_remapping().unwrap();
            bench.assert_clean();
        }
    }
}

/// Maps pages of two sizes, attaches a function, and one of its PASIDs where the unit has them.
fn build(remapper: &Remap<'_>, domain: &mut Domain) -> Result<(), Error> {
    for (gpa, len) in [(GUEST, 0x3000), (4 << 20, 2 << 20), (1 << 40, 0x1000)] {
        // SAFETY: the model touches frames of the test only.
        unsafe { remapper.map(domain, Gpa::new(gpa), Hpa::new(gpa), len, true) }?;
    }
    remapper.attach(DSA, domain)?;
    if remapper.has_pasids() { remapper.attach_pasid(DSA, PASID, domain) } else { Ok(()) }
}

fn tear_down(remapper: &Remap<'_>, mut domain: Domain) {
    // What is not attached is not detached.
    let _ = remapper.detach_pasid(DSA, PASID, &mut domain);
    let _ = remapper.detach(DSA, &mut domain);
    remapper.destroy_domain(domain).unwrap();
}

#[test]
fn a_function_that_lacks_memory_for_its_tables_reaches_nothing_and_can_be_attached_later() {
    for config in units() {
        for count in 0.. {
            let bench = Bench::new(config.clone());
            let remapper = bench.start();
            remapper.enable_dma_remapping().unwrap();
            // The tables of buses and functions stay.
            let kept = {
                let mut domain = remapper.create_domain().unwrap();
                build(&remapper, &mut domain).unwrap();
                tear_down(&remapper, domain);
                bench.frames.in_use()
            };
            let bench = Bench::new(config.clone());
            let remapper = bench.start();
            remapper.enable_dma_remapping().unwrap();
            bench.frames.fail_after(count);
            let built = remapper.create_domain().and_then(|mut domain| {
                let built = build(&remapper, &mut domain);
                if built.is_err() {
                    assert_eq!(
                        bench.reaches(DSA, GUEST).filter(|_| !remapper.has_pasids()),
                        None,
                        "allocation {count}"
                    );
                }
                tear_down(&remapper, domain);
                built
            });
            if !bench.frames.has_failed() {
                assert!(count > 4 && built.is_ok(), "{count} allocations: {built:?}");
                break;
            }
            assert_eq!(built, Err(Error::NoMemory), "allocation {count}");
            assert_eq!(bench.reaches(DSA, GUEST), None, "allocation {count}");
            assert!(bench.frames.in_use() <= kept, "{} of {kept} after allocation {count}", bench.frames.in_use());
            let mut domain = remapper.create_domain().unwrap();
            build(&remapper, &mut domain).unwrap();
            assert_eq!(bench.reaches(DSA, GUEST), Some(GUEST));
            tear_down(&remapper, domain);
            assert_eq!(bench.frames.in_use(), kept, "allocation {count}");
            bench.assert_clean();
        }
    }
}
