//! Units that can be used, and units that are refused.

use super::*;
use crate::vtd::{
    Route, Unit, UnitError,
    spec::registers::{CAP, Cap, ECAP, Ecap, FSTS, GSTS, IQH, IQT, VER, global},
};

/// FSTS: an error has halted the queue.
const IQE: u32 = 1 << 4;

#[test]
fn bring_up_keeps_to_the_manual_whatever_the_unit_can_do() {
    let variants = [
        capable(),
        vtd_model::Config { flush_on_sirtp: true, flush_on_srtp: true, ..capable() },
        vtd_model::Config { coherent: false, ..capable() },
        vtd_model::Config { four_level: false, pages_1g: false, ..capable() },
        vtd_model::Config { domain_id_bits: 4, fault_records: 1, posted_interrupts: false, ..capable() },
    ];
    for config in variants.into_iter().chain(presets()) {
        let bench = Bench::new(config);
        let remapper = bench.start();
        remapper.enable_dma_remapping().unwrap();
        let on = global::TE | global::IRE | global::QIE;
        assert_eq!(remapper.unit().status() & (on | global::CFI), on);
        bench.assert_clean();
    }
}

#[test]
fn a_unit_that_firmware_left_on_is_taken_over() {
    for config in all() {
        let bench = Bench::new(config);
        let first = bench.start();
        first.enable_dma_remapping().unwrap();
        let index = first.reserve(DSA).unwrap();
        bench.fire(DSA, index);
        let second = bench.start();
        second.enable_dma_remapping().unwrap();
        assert_eq!(faults(&second), []);
        let index = second.reserve(DSA).unwrap();
        second.program(index, Route::Remapped { vector: 40, destination: 1 }).unwrap();
        assert_eq!(remapped(bench.fire(DSA, index)), Some((40, 1)));
        bench.assert_clean();
    }
}

/// The queue's memory may be another's by now, so what halted it is not mended there.
#[test]
fn a_unit_whose_queue_an_error_has_halted_is_taken_over() {
    for config in all() {
        let bench = Bench::new(config);
        let first = bench.start();
        first.enable_dma_remapping().unwrap();
        // Zeros are no descriptor.
        bench.write64(IQT, bench.read64(IQH) + 64);
        assert_ne!(bench.read32(FSTS) & IQE, 0);
        let second = bench.start();
        assert_eq!(bench.read32(FSTS) & IQE, 0);
        second.enable_dma_remapping().unwrap();
        let index = second.reserve(DSA).unwrap();
        second.program(index, Route::Remapped { vector: 40, destination: 1 }).unwrap();
        assert_eq!(remapped(bench.fire(DSA, index)), Some((40, 1)));
        bench.assert_clean();
    }
}

/// No unit, and each other thing that can be missing.
#[test]
fn attack_02_what_is_missing_is_named() {
    let refusal = |config, wanted| Remapper::new(&Bench::new(config), &TestFrames::default(), wanted).err();
    let cases = [
        (vtd_model::Config { queued_invalidation: false, ..capable() }, UnitError::NoQueuedInvalidation),
        (vtd_model::Config { interrupt_remapping: false, ..capable() }, UnitError::NoInterruptRemapping),
        (vtd_model::Config { extended_interrupt_mode: false, ..capable() }, UnitError::NoExtendedInterruptMode),
        (vtd_model::Config { three_level: false, four_level: false, ..capable() }, UnitError::NoSecondStage),
    ];
    for (config, missing) in cases {
        assert_eq!(refusal(config, CONFIG), Some(missing));
    }
    assert_eq!(refusal(capable(), Config { register_bytes: 0x600, ..CONFIG }), Some(UnitError::FaultRecords));
}

/// Registers of which each has a constant value, whatever is written.
struct Dead(fn(usize) -> u64);

impl Registers for Dead {
    fn read32(&self, offset: usize) -> u32 {
        self.0(offset) as u32
    }
    fn read64(&self, offset: usize) -> u64 {
        self.0(offset)
    }
    fn write32(&self, _: usize, _: u32) {}
    fn write64(&self, _: usize, _: u64) {}
}

fn capabilities(offset: usize) -> u64 {
    match offset {
        VER => 0x10,
        CAP => Cap(0).with_sagaw(4).0,
        ECAP => Ecap(0).with_qi(1).with_ir(1).with_eim(1).0,
        _ => 0,
    }
}

#[test]
fn where_nobody_answers_there_is_no_unit() {
    for registers in [Dead(|_| 0), Dead(|_| u64::MAX)] {
        assert_eq!(Unit::new(registers, 4096, false, &MILLISECONDS).err(), Some(UnitError::Absent));
    }
}

#[test]
fn attack_28_a_unit_that_does_not_do_what_it_is_told_is_given_up() {
    let stuck = |registers| Remapper::new(Dead(registers), &TestFrames::default(), CONFIG).err();
    assert_eq!(stuck(capabilities), Some(UnitError::Timeout("switch the invalidation queue on")));
    let still_on = |offset| if offset == GSTS { global::TE.into() } else { capabilities(offset) };
    assert_eq!(stuck(still_on), Some(UnitError::Timeout("switch DMA remapping off")));
    let no_flush = |offset| if offset == GSTS { (global::QIE | global::SIRTP).into() } else { capabilities(offset) };
    assert!(matches!(stuck(no_flush), Some(UnitError::Timeout("switch the old invalidation queue off"))));
}

#[test]
fn memory_that_runs_out_is_an_error_at_each_step() {
    struct Few(TestFrames, std::cell::Cell<u32>);
    // SAFETY: the frames are those of TestFrames.
    unsafe impl FrameSource for Few {
        fn alloc(&self, count: u64, alignment: u64) -> Option<crate::addr::Hpa> {
            self.1.set(self.1.get().checked_sub(1)?);
            self.0.alloc(count, alignment)
        }
        unsafe fn free(&self, base: crate::addr::Hpa, count: u64) {
            // SAFETY: passed on.
            unsafe { self.0.free(base, count) }
        }
        fn pointer(&self, address: crate::addr::Hpa) -> std::ptr::NonNull<u8> {
            self.0.pointer(address)
        }
    }
    for allowed in 0..4 {
        let bench = Bench::new(capable());
        let few = Few(TestFrames::default(), allowed.into());
        assert_eq!(Remapper::new(&bench, &few, CONFIG).err(), Some(UnitError::NoMemory));
        assert_eq!(bench.read32(GSTS), 0);
    }
}
