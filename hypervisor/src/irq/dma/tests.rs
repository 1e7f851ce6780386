use super::*;
use crate::{
    memory::testing::TestFrames,
    vtd::tests::{Bench, DSA, capable},
};

const GUEST: GuestId = GuestId(3);

/// A bench, a unit that translates, and a guest's memory.
fn with_memory(test: impl FnOnce(&Bench, &Remapper<'_, &Bench, TestFrames>, &Ram)) {
    let bench = Bench::new(capable());
    let unit = bench.start();
    unit.enable_dma_remapping().unwrap();
    let ram = Ram::alloc(&bench.frames, 1 << 21).unwrap();
    test(&bench, &unit, &ram);
    // SAFETY: the model is not asked for anything any more.
    unsafe { ram.free(&bench.frames) };
}

#[test]
fn requests_lead_to_the_guests_memory_until_the_function_is_detached() {
    with_memory(|bench, unit, ram| {
        let all = Attachments::default();
        all.add(GUEST, (DSA, None), ram, unit).unwrap();
        assert_eq!((bench.reaches(DSA, 0x1000).is_some(), all.guest_of((DSA, None))), (true, Some(GUEST)));
        assert!(all.remove(GUEST, DSA, unit), "it is sure");
        assert_eq!((bench.reaches(DSA, 0x1000).is_some(), all.guest_of((DSA, None))), (false, None));
        assert!(all.remove(GUEST, DSA, unit), "nothing is left to detach");
    });
}

/// The memory of such a guest must not be freed: `vm::release` asks for this answer.
#[test]
fn a_unit_that_does_not_answer_makes_a_detachment_unsure() {
    with_memory(|bench, unit, ram| {
        let all = Attachments::default();
        all.add(GUEST, (DSA, None), ram, unit).unwrap();
        bench.hang(true);
        assert!(!all.remove(GUEST, DSA, unit));
        bench.hang(false);
    });
}
