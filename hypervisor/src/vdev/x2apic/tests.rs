use super::*;
use proptest::prelude::*;

fn enabled(id: u32) -> X2Apic {
    let mut apic = X2Apic::new(id, id == 0);
    apic.write(0x80f, 0x1ff, 0).unwrap();
    apic
}

#[test]
fn interrupts_are_delivered_by_priority_and_end_in_that_order() {
    let mut apic = enabled(0);
    for vector in [0x31, 0x80, 0x35] {
        assert_eq!(apic.accept(vector), Accepted::New);
    }
    assert_eq!(apic.accept(0x80), Accepted::Merged);
    assert_eq!(apic.pending(), Some(0x80));
    assert!(apic.begin(0x80));
    assert_eq!(apic.pending(), None, "lower classes wait");
    assert_eq!(apic.ppr(), 0x80);
    apic.accept(0x91);
    assert_eq!(apic.pending(), Some(0x91), "a higher class interrupts");
    apic.begin(0x91);
    assert_eq!(apic.write(0x80b, 0, 0), Ok(Effect::Eoi(0x91)));
    assert_eq!(apic.write(0x80b, 0, 0), Ok(Effect::Eoi(0x80)));
    assert_eq!(apic.pending(), Some(0x35));
    apic.begin(0x35);
    assert_eq!(apic.pending(), None, "same class waits");
    apic.write(0x80b, 0, 0).unwrap();
    assert_eq!(apic.pending(), Some(0x31));
    apic.begin(0x31);
    apic.write(0x80b, 0, 0).unwrap();
    assert_eq!(apic.write(0x80b, 0, 0), Ok(Effect::None), "an EOI without an interrupt");
}

#[test]
fn the_task_priority_holds_back_its_class_and_those_below() {
    let mut apic = enabled(0);
    apic.accept(0x45);
    apic.write(0x808, 0x40, 0).unwrap();
    assert_eq!((apic.pending(), apic.cr8(), apic.read(0x80a, 0)), (None, 4, Ok(0x40)));
    apic.set_cr8(3).unwrap();
    assert_eq!(apic.pending(), Some(0x45));
    assert_eq!(apic.set_cr8(16), Err(Gp));
    assert_eq!(apic.write(0x808, 0x100, 0), Err(Gp));
}

#[test]
fn a_vector_that_is_not_pending_is_not_begun() {
    let mut apic = enabled(0);
    assert!(!apic.begin(0x40));
    assert_eq!(apic.ppr(), 0);
}

#[test]
fn illegal_vectors_end_in_the_error_status() {
    let mut apic = enabled(0);
    apic.write(0x837, 0xfe, 0).unwrap();
    assert_eq!(apic.accept(15), Accepted::Illegal);
    assert_eq!(apic.pending(), Some(0xfe), "the error interrupt");
    apic.write(0x83f, 3, 0).unwrap();
    assert_eq!(apic.read(0x828, 0), Ok(0), "shown by a write only");
    apic.write(0x828, 0, 0).unwrap();
    assert_eq!(apic.read(0x828, 0), Ok(0x60));
    apic.write(0x828, 0, 0).unwrap();
    assert_eq!(apic.read(0x828, 0), Ok(0));
    assert_eq!(apic.write(0x828, 1, 0), Err(Gp));
}

#[test]
fn an_illegal_error_vector_does_not_recurse() {
    let mut apic = enabled(0);
    apic.write(0x837, 5, 0).unwrap();
    assert_eq!(apic.accept(4), Accepted::Illegal);
    assert_eq!(apic.pending(), None);
}

#[test]
fn disabled_by_software_it_masks_the_lvt_and_takes_nothing_but_keeps_what_is_pending() {
    let mut apic = enabled(0);
    apic.write(0x832, 0x40, 0).unwrap();
    apic.accept(0x50);
    apic.write(0x80f, 0xff, 0).unwrap();
    assert_eq!(apic.read(0x832, 0), Ok(0x1_0040));
    apic.write(0x832, 0x41, 0).unwrap();
    assert_eq!(apic.read(0x832, 0), Ok(0x1_0041), "the mask cannot be cleared");
    assert_eq!(apic.accept(0x60), Accepted::Disabled);
    assert_eq!(apic.pending(), Some(0x50));
}

#[test]
fn apic_base_can_be_written_with_its_own_value_only() {
    let mut apic = X2Apic::new(0, true);
    let base = apic.read(MSR_APIC_BASE, 0).unwrap();
    assert_eq!(base, 0xfee0_0d00);
    assert_eq!(apic.write(MSR_APIC_BASE, base, 0), Ok(Effect::None));
    for wrong in [base & !(1 << 10), base & !(3 << 10), base ^ 0x1000, base | 1 << 52, base & !(1 << 8)] {
        assert_eq!(apic.write(MSR_APIC_BASE, wrong, 0), Err(Gp));
    }
    assert_eq!(X2Apic::new(1, false).read(MSR_APIC_BASE, 0), Ok(0xfee0_0c00));
}

#[test]
fn identity_follows_from_the_id() {
    let mut apic = X2Apic::new(0x23, false);
    assert_eq!(apic.read(0x802, 0), Ok(0x23));
    assert_eq!(apic.read(0x80d, 0), Ok(0x2_0008));
}

#[test]
fn commands_to_oneself_stay_here_and_others_go_to_the_platform() {
    let mut apic = enabled(2);
    for (icr, vector) in [(1 << 18 | 0x50, 0x50), (2 << 32 | 0x51, 0x51), (4 << 32 | 1 << 11 | 0x52, 0x52)] {
        assert_eq!(apic.write(0x830, icr, 0), Ok(Effect::Recheck));
        assert_eq!(apic.pending(), Some(vector));
        assert_eq!(apic.read(0x830, 0), Ok(icr));
    }
    let ipi = |vector, delivery, destination| Ok(Effect::Ipi(Ipi { vector, delivery, destination }));
    assert_eq!(apic.write(0x830, 0x40, 0), ipi(0x40, Delivery::Fixed, Destination::Physical(0)));
    assert_eq!(apic.write(0x830, 3 << 18 | 0x4500, 0), ipi(0, Delivery::Init, Destination::AllButSelf));
    assert_eq!(apic.write(0x830, 3 << 18 | 0x4608, 0), ipi(8, Delivery::StartUp, Destination::AllButSelf));
    assert_eq!(apic.write(0x830, 1 << 18 | 0x4400, 0), ipi(0, Delivery::Nmi, Destination::Physical(2)));
    assert_eq!(apic.write(0x830, 2 << 18 | 0xfe, 0), ipi(0xfe, Delivery::Fixed, Destination::All));
    assert_eq!(apic.write(0x830, 3 << 18 | 0x8500, 0), Ok(Effect::None), "INIT de-assert");
}

#[test]
fn reserved_bits_and_modes_of_a_command_are_refused() {
    let mut apic = enabled(0);
    for bit in [12, 13, 16, 17].into_iter().chain(20..32) {
        assert_eq!(apic.write(0x830, 1 << bit | 0x40, 0), Err(Gp), "bit {bit}");
    }
    assert_eq!(apic.write(0x830, 0x340, 0), Err(Gp));
    assert_eq!(apic.write(0x830, 0x740, 0), Err(Gp));
    assert_eq!(apic.read(0x830, 0), Ok(0), "a refused command leaves nothing behind");
}

#[test]
fn registers_that_do_not_exist_are_refused() {
    let mut apic = enabled(0);
    let no_read =
        [0x800, 0x801, 0x804, 0x807, 0x809, 0x80b, 0x80c, 0x80e, 0x829, 0x82f, 0x831, 0x83a, 0x83d, 0x83f, 0x840];
    for msr in no_read {
        assert_eq!(apic.read(msr, 0), Err(Gp), "{msr:#x}");
    }
    let no_write = [0x802, 0x803, 0x80a, 0x80d, 0x80e, 0x810, 0x818, 0x820, 0x82f, 0x831, 0x839, 0x8ff];
    for msr in no_write {
        assert_eq!(apic.write(msr, 0, 0), Err(Gp), "{msr:#x}");
    }
    assert_eq!(apic.write(0x808, 1 << 32, 0), Err(Gp), "upper half");
    assert_eq!(apic.write(0x83e, 4, 0), Err(Gp));
    assert_eq!(apic.write(0x80f, 1 << 12, 0), Err(Gp), "EOI suppression is not offered");
}

#[test]
fn lvt_entries_keep_their_own_bits() {
    let mut apic = enabled(0);
    apic.write(0x835, 0x1_f7ff, 0).unwrap();
    assert_eq!(apic.read(0x835, 0), Ok(0x1_a7ff), "status bits are not written");
    assert_eq!(apic.write(0x837, 0x400, 0), Err(Gp));
    assert_eq!(apic.write(0x832, 3 << 17, 0), Err(Gp), "reserved timer mode");
    assert_eq!(apic.write(0x832, 1 << 15, 0), Err(Gp));
}

#[test]
fn the_timer_fires_through_its_entry() {
    let mut apic = enabled(0);
    apic.write(0x832, 2 << 17 | 0xec, 0).unwrap();
    assert_eq!(apic.write(MSR_TSC_DEADLINE, 500, 100), Ok(Effect::Timer));
    assert_eq!(apic.next_deadline(), Some(500));
    assert_eq!(apic.read(MSR_TSC_DEADLINE, 100), Ok(500));
    assert!(!apic.expire(499));
    assert!(apic.expire(500));
    assert_eq!((apic.pending(), apic.next_deadline()), (Some(0xec), None));
    apic.begin(0xec);
    apic.write(MSR_TSC_DEADLINE, 400, 600).unwrap();
    assert_eq!(apic.read(0x827, 600), Ok(1 << (0xec - 0xe0)), "a deadline in the past fires at once");
}

#[test]
fn a_masked_timer_runs_out_silently() {
    let mut apic = enabled(0);
    apic.write(0x832, 0x1_00ec, 0).unwrap();
    apic.write(0x838, 100, 0).unwrap();
    assert_eq!(apic.next_deadline(), None);
    assert_eq!(apic.read(0x839, 50), Ok(75));
    apic.write(0x832, 0xec, 300).unwrap();
    assert_eq!((apic.pending(), apic.next_deadline()), (None, None), "it was masked when it ran out");
}

proptest! {
    #[test]
    fn whatever_a_guest_writes_only_its_own_legal_vectors_become_pending(
        accesses in proptest::collection::vec((0x7fe_u32..0x842, any::<u64>(), any::<bool>(), any::<u64>()), 0..60)
    ) {
        let mut apic = enabled(1);
        for (msr, value, small, now) in accesses {
            let value = if small { value & 0xc_07ff } else { value };
            let before = apic.clone();
            if apic.write(msr, value, now).is_err() {
                prop_assert_eq!(before.icr, apic.icr);
                prop_assert_eq!(before.tpr, apic.tpr);
            }
            let _ = apic.read(msr, now);
            apic.expire(now);
            if let Some(vector) = apic.pending() {
                prop_assert!(vector >= 16);
                prop_assert!(apic.begin(vector));
                prop_assert!(apic.ppr() >> 4 >= vector >> 4);
            }
        }
    }
}
