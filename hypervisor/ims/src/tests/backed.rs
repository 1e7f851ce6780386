//! Virtual functions: MSI-X tables that lie in an interrupt message store.

use super::{
    machine::{NOWHERE, Op},
    *,
};
use crate::Backing;

/// Vectors of the first function.
const VECTORS: u32 = 130;
const FIRST: DeviceId = DeviceId(0x08);
const SECOND: DeviceId = DeviceId(0x10);
const PARENT: Bdf = Bdf(0xf8);

fn virtual_function(id: DeviceId, base: u64, slots: u32, pasid: u32) -> DeviceSpec {
    let backing = Some(Backing { pasid: Pasid::new(pasid).unwrap(), emulated: 1 });
    DeviceSpec {
        id,
        requester: PARENT,
        msix: Some(StoreSpec { backing, ..store(base, slots) }),
        ims: None,
        pasids: None,
        shares_requester: true,
    }
}

fn first() -> DeviceSpec {
    virtual_function(FIRST, 0x0100_0000, VECTORS, 0x101)
}

fn second() -> DeviceSpec {
    virtual_function(SECOND, 0x0200_0000, 16, 0x102)
}

/// A guest with two virtual functions of one parent, MSI-X enabled, through the eyes of the first.
struct Two(Bench);

impl std::ops::Deref for Two {
    type Target = Bench;

    fn deref(&self) -> &Bench {
        &self.0
    }
}

impl Two {
    fn new() -> Self {
        let two = Self::disabled();
        two.hold(false);
        two
    }

    /// As after reset.
    fn disabled() -> Self {
        let service = Service::new(Machine::new(512, 512));
        let devices = vec![first(), second()];
        for device in &devices {
            service.ports().plug(device.msix.unwrap(), PARENT, GuestId(1), &PROCESSORS);
        }
        let spec = GuestSpec { guest: GuestId(1), apic_ids: PROCESSORS.to_vec(), hypercalls: true, devices };
        let domain = service.attach(spec).unwrap();
        service.ports().log();
        Self(Bench { service, domain })
    }

    fn hold(&self, held: bool) {
        self.service.mask_table(&self.domain, FIRST, held).unwrap();
    }

    fn poke(&self, slot: u16, field: Field, value: u32) {
        self.service
            .store_write(&self.domain, FIRST, StoreName::Msix, field.offset(slot), 4, value.into())
            .unwrap_or_default();
    }

    /// As Linux does: message, then unmask.
    fn program(&self, slot: u16, target: Target) {
        self.poke(slot, Field::AddressLo, ADDRESS | target.apic_id << 12);
        self.poke(slot, Field::AddressHi, 0);
        self.poke(slot, Field::Data, target.vector.into());
        self.poke(slot, Field::Control, 0);
    }

    fn signal(&self) -> Result<(), Status> {
        self.service.signal(&self.domain, FIRST, 0)
    }

    /// What the hypervisor delivered since this was last asked.
    fn delivered(&self) -> Vec<Target> {
        let delivered = |op| match op {
            Op::Deliver(guest, target) => {
                assert_eq!(guest, GuestId(1));
                Some(target)
            }
            _ => None,
        };
        self.machine().log().into_iter().filter_map(delivered).collect()
    }

    fn table(&self) -> StoreSpec {
        first().msix.unwrap()
    }

    fn comes_out(&self, slot: u16) -> Option<Target> {
        self.machine().fire(&self.table(), slot)
    }

    fn pending(&self, word: u32) -> u64 {
        self.service.pending(&self.domain, FIRST, word).unwrap()
    }
}

#[test]
fn feature_emulated_a_signal_of_an_unmasked_slot_is_delivered_at_once() {
    let two = Two::new();
    two.program(0, target(5, 0x41));
    assert_eq!(two.signal(), Ok(()));
    assert_eq!(two.delivered(), [target(5, 0x41)]);
    assert_eq!(two.machine().used(), (0, 0), "it takes no entry and no vector");
}

#[test]
fn feature_emulated_a_signal_of_a_masked_slot_waits_and_comes_once() {
    let two = Two::new();
    two.program(0, target(0, 0x41));
    two.poke(0, Field::Control, 1);
    for _ in 0..3 {
        assert_eq!(two.signal(), Ok(()));
    }
    assert_eq!((two.delivered(), two.pending(0)), (vec![], 1));
    two.poke(0, Field::Control, 0);
    assert_eq!((two.delivered(), two.pending(0)), (vec![target(0, 0x41)], 0));
    two.poke(0, Field::Control, 1);
    two.poke(0, Field::Control, 0);
    assert_eq!(two.delivered(), [], "a second time");
}

#[test]
fn feature_emulated_a_signal_that_waits_goes_where_the_slot_leads_when_it_is_unmasked() {
    let two = Two::new();
    two.program(0, target(0, 0x41));
    two.poke(0, Field::Control, 1);
    two.signal().unwrap();
    two.poke(0, Field::AddressLo, ADDRESS | 1 << 12);
    two.poke(0, Field::Data, 0x52);
    two.poke(0, Field::Control, 0);
    assert_eq!(two.delivered(), [target(1, 0x52)]);
    two.poke(0, Field::Data, 0x53);
    two.signal().unwrap();
    assert_eq!(two.delivered(), [target(1, 0x53)], "unmasked and changed");
}

#[test]
fn feature_emulated_a_slot_as_after_reset_keeps_its_signal_until_it_has_a_message() {
    let two = Two::new();
    two.signal().unwrap();
    assert_eq!((two.delivered(), two.pending(0)), (vec![], 1));
    two.program(0, target(0, 0x41));
    assert_eq!((two.delivered(), two.pending(0)), (vec![target(0, 0x41)], 0));
}

#[test]
fn feature_emulated_a_message_that_the_guest_may_not_send_is_not_sent() {
    let two = Two::new();
    two.program(0, target(2, 0x41));
    assert_eq!(two.signal(), Err(Status::BadTarget), "no processor of the guest");
    two.poke(0, Field::Data, 0x0f);
    assert_eq!((two.delivered(), two.pending(0)), (vec![], 1));
    two.program(0, target(1, 0x42));
    assert_eq!(two.delivered(), [target(1, 0x42)]);
}

#[test]
fn feature_emulated_each_of_several_slots_has_its_own_signal() {
    let backing = Some(Backing { pasid: Pasid::new(0x101).unwrap(), emulated: 3 });
    let table = StoreSpec { backing, ..store(0x0100_0000, 8) };
    let device = DeviceSpec { msix: Some(table), ..first() };
    let service = Service::new(Machine::new(512, 512));
    service.ports().plug(table, PARENT, GuestId(1), &PROCESSORS);
    let spec = GuestSpec { guest: GuestId(1), apic_ids: PROCESSORS.to_vec(), hypercalls: true, devices: vec![device] };
    let domain = service.attach(spec).unwrap();
    let one = Two(Bench { service, domain });
    one.hold(false);
    for slot in 0..3 {
        one.program(slot, target(0, 0x41 + slot as u8));
        one.poke(slot, Field::Control, 1);
    }
    for slot in [2, 1] {
        assert_eq!(one.service.signal(&one.domain, FIRST, slot), Ok(()));
    }
    assert_eq!((one.delivered(), one.pending(0)), (vec![], 0b110));
    one.poke(2, Field::Control, 0);
    assert_eq!((one.delivered(), one.pending(0)), (vec![target(0, 0x43)], 0b010));
    one.poke(0, Field::Control, 0);
    one.poke(1, Field::Control, 0);
    assert_eq!((one.delivered(), one.pending(0)), (vec![target(0, 0x42)], 0));
}

#[test]
fn feature_emulated_function_mask_and_disabling_hold_a_signal_back() {
    let two = Two::disabled();
    two.program(0, target(0, 0x41));
    two.signal().unwrap();
    assert_eq!((two.delivered(), two.pending(0)), (vec![], 1));
    two.hold(false);
    assert_eq!(two.delivered(), [target(0, 0x41)]);
    two.hold(true);
    two.signal().unwrap();
    two.poke(0, Field::Control, 1);
    two.hold(false);
    assert_eq!(two.delivered(), [], "its own mask holds it");
    two.poke(0, Field::Control, 0);
    assert_eq!(two.delivered(), [target(0, 0x41)]);
}

#[test]
fn feature_emulated_a_reset_drops_the_signal_that_waits() {
    let two = Two::new();
    two.program(0, target(0, 0x41));
    two.poke(0, Field::Control, 1);
    two.signal().unwrap();
    let before = two.machine().shadow(&two.table(), 0);
    two.service.drop_pending(&two.domain, FIRST).unwrap();
    assert_eq!((two.pending(0), two.machine().shadow(&two.table(), 0)), (0, before));
    two.poke(0, Field::Control, 0);
    assert_eq!(two.delivered(), []);
    two.signal().unwrap();
    assert_eq!(two.delivered(), [target(0, 0x41)]);
}

#[test]
fn feature_emulated_only_the_slots_that_are_the_hypervisors_can_be_signalled() {
    let two = Two::new();
    two.program(1, target(0, 0x41));
    assert_eq!(two.service.signal(&two.domain, FIRST, 1), Err(Status::NoSuchSlot));
    assert_eq!(two.service.signal(&two.domain, DeviceId(0x18), 0), Err(Status::NoSuchDevice));
    let whole = Bench::new();
    assert_eq!(whole.service.signal(&whole.domain, DEVICE, 0), Err(Status::Unsupported));
    assert_eq!(whole.service.mask_table(&whole.domain, DEVICE, true), Err(Status::Unsupported));
    two.service.detach(&two.domain);
    assert_eq!(two.signal(), Err(Status::NoSuchDevice));
    assert_eq!(two.delivered(), []);
}

#[test]
fn feature_msix_backed_a_slot_is_for_the_functions_pasid_and_the_guest_does_not_see_that() {
    let two = Two::new();
    two.program(3, target(1, 0x61));
    assert_eq!(two.comes_out(3), Some(target(1, 0x61)));
    assert_eq!(two.machine().slot(&two.table(), 3)[3], 0x101 << 12 | 1 << 3);
    assert_eq!(two.machine().shadow(&two.table(), 3), [ADDRESS | 1 << 12, 0, 0x61, 0]);
    two.poke(3, Field::Control, !0);
    assert_eq!(two.machine().slot(&two.table(), 3)[3], 0x101 << 12 | 1 << 3 | 1);
    assert_eq!(two.machine().shadow(&two.table(), 3)[3], 1, "of vector control the mask bit alone is there");
    let other = two.machine().slot(&second().msix.unwrap(), 0);
    assert_eq!(other[3], 0x102 << 12 | 1 << 3 | 1);
    two.poke(3, Field::Control, 0);
    two.service.detach(&two.domain);
    for slot in 0..VECTORS as u16 {
        assert_eq!(two.machine().slot(&two.table(), slot)[3], 0x101 << 12 | 1 << 3 | 1, "at the end, slot {slot}");
    }
}

#[test]
fn feature_msix_backed_a_slot_that_never_was_unmasked_takes_no_entry_while_the_table_is_held() {
    let two = Two::disabled();
    two.program(3, target(1, 0x61));
    assert_eq!((two.comes_out(3), two.machine().used()), (None, (0, 0)));
    two.hold(false);
    assert_eq!((two.comes_out(3), two.machine().used()), (Some(target(1, 0x61)), (1, 1)));
}

#[test]
fn feature_msix_backed_holding_masks_all_in_the_device_and_keeps_the_table_and_its_mask_bits() {
    let two = Two::new();
    for slot in 1..VECTORS as u16 {
        two.program(slot, target(0, 0x20 + slot as u8));
    }
    two.poke(7, Field::Control, 1);
    let shown: Vec<_> = (0..VECTORS as u16).map(|slot| two.machine().shadow(&two.table(), slot)).collect();
    two.hold(true);
    assert!((0..VECTORS as u16).all(|slot| two.comes_out(slot).is_none()));
    two.poke(7, Field::Control, 0);
    two.poke(8, Field::Control, 1);
    assert!(
        (0..VECTORS as u16).all(|slot| two.comes_out(slot).is_none()),
        "a slot is unmasked while the table is held"
    );
    two.poke(7, Field::Control, 1);
    two.poke(8, Field::Control, 0);
    two.hold(false);
    let again: Vec<_> = (0..VECTORS as u16).map(|slot| two.machine().shadow(&two.table(), slot)).collect();
    assert_eq!(shown, again);
    for slot in 1..VECTORS as u16 {
        let expected = (slot != 7).then_some(target(0, 0x20 + slot as u8));
        assert_eq!(two.comes_out(slot), expected, "slot {slot}");
    }
}

#[test]
fn feature_msix_backed_pending_bits_are_the_devices_and_the_hypervisors() {
    let two = Two::new();
    two.program(0, target(0, 0x41));
    two.poke(0, Field::Control, 1);
    two.signal().unwrap();
    for slot in [1, 63, 64, 129] {
        two.machine().set_pending(&two.table(), slot, true);
    }
    // The device has it for a slot that is not this table's, since the range begins where it begins.
    assert_eq!([0, 1, 2, 3].map(|word| two.pending(word)), [1 << 63 | 0b11, 1, 0b10, 0]);
    assert_eq!(two.service.pending(&two.domain, FIRST, u32::MAX), Err(Status::NoSuchSlot));
    assert_eq!(two.machine().shadow(&two.table(), 1)[3], 1, "they are no part of the table");
}

#[test]
fn feature_msix_backed_a_reset_drops_what_is_pending_in_the_device_and_leaves_the_table() {
    let two = Two::new();
    for slot in [1, 2, 70] {
        two.program(slot, target(0, 0x41));
    }
    two.poke(1, Field::Control, 1);
    let entries = two.machine().used();
    // One that is bound, one that never was, and one that is unmasked: that one cannot be pending.
    for slot in [1, 5] {
        two.machine().set_pending(&two.table(), slot, true);
    }
    let [before, shown] = [two.machine().slot(&two.table(), 1), two.machine().shadow(&two.table(), 1)];
    two.service.drop_pending(&two.domain, FIRST).unwrap();
    assert_eq!([0, 1, 2].map(|word| two.pending(word)), [0; 3]);
    assert_eq!(two.service.counters().discarded, 2);
    assert_eq!((two.machine().slot(&two.table(), 1), two.machine().shadow(&two.table(), 1)), (before, shown));
    assert_eq!((two.comes_out(1), two.comes_out(5), two.comes_out(70)), (None, None, Some(target(0, 0x41))));
    assert_eq!((two.machine().used(), two.service.counters().live), (entries, 3), "all that was taken came back");
    two.poke(1, Field::Control, 0);
    assert_eq!(two.comes_out(1), Some(target(0, 0x41)));
    two.service.drop_pending(&two.domain, FIRST).unwrap();
    assert_eq!(two.service.drop_pending(&two.domain, DEVICE), Ok(()), "the second function, with nothing pending");
    assert_eq!(two.service.counters().discarded, 2);
}

#[test]
fn feature_msix_backed_a_function_level_reset_leaves_nothing_of_the_table() {
    let two = Two::new();
    for slot in [0, 1, 2, 70] {
        two.program(slot, target(0, 0x41));
    }
    for slot in [0, 1] {
        two.poke(slot, Field::Control, 1);
    }
    two.signal().unwrap();
    for slot in [1, 5] {
        two.machine().set_pending(&two.table(), slot, true);
    }
    two.service.function_reset(&two.domain, FIRST).unwrap();
    assert_eq!([0, 1, 2].map(|word| two.pending(word)), [0; 3]);
    assert_eq!(two.service.counters().discarded, 2);
    assert_eq!((two.machine().used(), two.service.counters().live), ((0, 0), 0));
    for slot in [0, 1, 2, 5, 70] {
        assert_eq!(two.machine().shadow(&two.table(), slot), [0, 0, 0, 1]);
        assert_eq!((two.comes_out(slot), two.machine().slot(&two.table(), slot)[3] & 1), (None, 1));
    }
    // MSI-X is disabled until the guest enables it, and the slots are for the function's PASID still.
    two.program(2, target(0, 0x42));
    assert_eq!(two.comes_out(2), None);
    two.hold(false);
    assert_eq!((two.comes_out(2), two.comes_out(70)), (Some(target(0, 0x42)), None));
    assert_eq!(two.machine().slot(&two.table(), 2)[3], 0x101 << 12 | 1 << 3);
    two.program(0, target(0, 0x43));
    assert_eq!(two.delivered(), [], "the signal was dropped");
    two.service.detach(&two.domain);
    assert_eq!(two.service.function_reset(&two.domain, FIRST), Err(Status::NoSuchDevice));
}

#[test]
fn while_no_flush_comes_to_an_end_resets_take_no_more_than_one_entry() {
    let two = Two::new();
    two.machine().set_pending(&two.table(), 5, true);
    two.machine().silence();
    for _ in 0..3 {
        assert_eq!(two.service.drop_pending(&two.domain, FIRST), Err(Status::HardwareError));
    }
    assert_eq!((two.service.counters().quarantined, two.machine().used().0), (1, 1));
    two.machine().mend();
    two.service.drop_pending(&two.domain, FIRST).unwrap();
    assert_eq!((two.pending(0), two.machine().used().0), (0, 0));
}

#[test]
fn feature_msix_backed_writes_of_eight_bytes_reach_two_dwords() {
    let two = Two::new();
    let write = |offset, value| two.service.store_write(&two.domain, FIRST, StoreName::Msix, offset, 8, value);
    assert_eq!(write(2 * 16, u64::from(ADDRESS)), Ok(()));
    assert_eq!(write(2 * 16 + 8, 0x71), Ok(()));
    assert_eq!(two.comes_out(2), Some(target(0, 0x71)));
    assert_eq!(write(2 * 16 + 8, 1 << 32 | 0x72), Ok(()));
    assert_eq!(two.comes_out(2), None);
}

#[test]
fn feature_msix_backed_a_reset_of_one_function_leaves_the_other_as_it_is() {
    let two = Two::new();
    let other = |offset, value| two.service.store_write(&two.domain, SECOND, StoreName::Msix, offset, 8, value);
    two.service.mask_table(&two.domain, SECOND, false).unwrap();
    two.program(2, target(0, 0x71));
    other(2 * 16, ADDRESS.into()).unwrap();
    other(2 * 16 + 8, 0x81).unwrap();
    two.service.drop_pending(&two.domain, FIRST).unwrap();
    two.hold(true);
    assert_eq!(two.comes_out(2), None);
    assert_eq!(two.machine().fire(&second().msix.unwrap(), 2), Some(target(0, 0x81)));
    two.service.detach(&two.domain);
    assert_eq!(two.machine().used(), (0, 0));
}

#[test]
fn feature_msix_backed_no_call_reaches_a_virtual_function() {
    let two = Two::new();
    two.domain.enable(hcall_abi::VERSION_MINOR);
    let device = u64::from(FIRST.0);
    assert_eq!(two.call(Call::Discover, [0; 4]), Err(Status::NoSuchDevice), "it has no store");
    for call in [Call::Alloc, Call::Free, Call::Map, Call::Mask, Call::SetAffinity, Call::AllocMany, Call::FreeMany] {
        for args in [[device, 0, 0, 0], [device, 0x1_0001, 0, 0], [device, PAGE.as_u64(), 1, ItemLayout::V1.0]] {
            assert!(two.call(call, args).is_err(), "{call:?} {args:x?}");
        }
    }
    assert_eq!(two.machine().used(), (0, 0));
}

#[test]
fn a_requester_id_is_shared_only_by_those_who_all_say_so() {
    let service = Service::new(Machine::new(16, 16));
    let alone = DeviceSpec { shares_requester: false, ..second() };
    for device in [first(), second()] {
        service.ports().plug(device.msix.unwrap(), PARENT, GuestId(1), &PROCESSORS);
    }
    let guest = |devices| GuestSpec { guest: GuestId(1), apic_ids: PROCESSORS.to_vec(), hypercalls: true, devices };
    assert_eq!(service.attach(guest(vec![first(), alone])).err(), Some(Status::InvalidArgument));
    let domain = service.attach(guest(vec![first()])).unwrap();
    assert_eq!(service.attach(guest(vec![alone])).err(), Some(Status::Exists));
    assert!(service.attach(guest(vec![second()])).is_ok());
    service.detach(&domain);
    let backing = Some(Backing { pasid: Pasid::new(1).unwrap(), emulated: 65 });
    let many = DeviceSpec { msix: Some(StoreSpec { backing, ..store(0x0300_0000, 99) }), ..first() };
    assert_eq!(service.attach(guest(vec![many])).err(), Some(Status::InvalidArgument));
    // What calls reach is no MSI-X table.
    let called = DeviceSpec { msix: None, ims: first().msix, ..first() };
    assert_eq!(service.attach(guest(vec![called])).err(), Some(Status::InvalidArgument));
}

#[test]
fn feature_emulated_an_entry_of_the_hypervisors_own_is_flushed_counted_and_comes_back() {
    let two = Two::new();
    let own = two.service.bind_own(PARENT, NOWHERE).unwrap();
    assert_eq!((two.service.counters().live, two.machine().used().0), (1, 1));
    let flushed = two.machine().log().contains(&Op::Flush(vec![own.index().0]));
    assert!(flushed);
    two.service.give_back_own(&own);
    assert_eq!((two.service.counters().live, two.machine().used().0), (0, 0));
    two.machine().fail(1, 1);
    assert!(two.service.bind_own(PARENT, NOWHERE).is_err(), "its flush fails");
    assert_eq!((two.service.counters().live, two.machine().used().0), (0, 0));
}

#[test]
fn feature_storm_a_vector_of_a_virtual_function_that_rages_is_masked_and_its_table_shows_that() {
    let two = Two::new();
    let loud = target(0, 0x41);
    for slot in [3, 4] {
        two.program(slot, loud);
    }
    two.program(5, target(0, 0x42));
    two.service.throttle(&two.domain, loud);
    assert_eq!([3, 4, 5].map(|slot| two.comes_out(slot)), [None, None, Some(target(0, 0x42))]);
    let mut told = Vec::new();
    for last in [false, true] {
        two.machine().set_pending(&two.table(), 3, true);
        let held = two.service.unthrottle(&two.domain, loud, last, |slot| told.push((slot.store, slot.slot)));
        assert_eq!(held, usize::from(!last));
    }
    assert_eq!(told, [(StoreName::Msix, 3)]);
    assert_eq!([3, 4].map(|slot| two.comes_out(slot)), [None, Some(loud)]);
    assert_eq!(
        [3, 4].map(|slot| two.machine().shadow(&two.table(), slot)[3]),
        [1, 0],
        "the mask bit, and no other one"
    );
    assert_eq!(two.pending(0), 1 << 3);
    two.poke(3, Field::Control, 0);
    assert_eq!((two.comes_out(3), two.pending(0)), (Some(loud), 0));
}

#[test]
fn a_slot_that_is_held_when_its_table_is_masked_stays_masked_with_it() {
    for last in [false, true] {
        for pending in [false, true] {
            let two = Two::new();
            let loud = target(0, 0x41);
            two.program(3, loud);
            two.service.throttle(&two.domain, loud);
            two.hold(true);
            two.machine().set_pending(&two.table(), 3, pending);
            assert_eq!(two.service.unthrottle(&two.domain, loud, last, |slot| panic!("{slot:?} sends nothing")), 0);
            assert_eq!(two.comes_out(3), None, "last look {last}, pending {pending}");
            two.hold(false);
            assert_eq!(two.comes_out(3), Some(loud));
        }
    }
}

#[test]
fn feature_emulated_no_signal_is_lost_or_doubled_while_all_masks_are_taken_away() {
    const ROUNDS: usize = 2_000;
    let two = Two::new();
    two.program(0, target(0, 0x41));
    let start = std::sync::Barrier::new(4);
    let end = std::sync::Barrier::new(4);
    let each_round = |what: &dyn Fn()| {
        for _ in 0..ROUNDS {
            start.wait();
            what();
            end.wait();
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| each_round(&|| two.signal().unwrap()));
        scope.spawn(|| each_round(&|| two.poke(0, Field::Control, 0)));
        scope.spawn(|| each_round(&|| two.hold(false)));
        let mut wrong = 0;
        for _ in 0..ROUNDS {
            two.hold(true);
            two.poke(0, Field::Control, 1);
            start.wait();
            end.wait();
            wrong += usize::from(two.delivered().len() != 1);
        }
        assert_eq!(wrong, 0, "rounds in which a signal did not come once");
    });
}
