use hcall_abi::Call;

use super::*;
use crate::fake::{Access, FakeHypervisor, FakeStore, Page, interface};
use crate::store::Field;

type Native<'a, 'b> = Domain<'a, &'b FakeHypervisor, &'b FakeStore>;

fn request(vector: u8) -> Request {
    Request { target: Target { apic_id: 0, vector }, unmask: true, cookie: vector.into() }
}

/// Runs `test` on a domain of either way, each with `slots` slots.
fn on_both_ways(slots: usize, test: impl Fn(&mut Native)) {
    let (hypervisor, store) = (FakeHypervisor::new(slots), FakeStore::new(slots));
    let mut page = Page::new();
    let calls = Hypercalls::new(&hypervisor, interface());
    test(&mut Domain::hypercall(calls, DeviceId(0x10), page.batch_page()));
    test(&mut Domain::native(&store, &mut vec![SlotState::default(); slots]));
}

fn on_native(store: &FakeStore, test: impl FnOnce(&mut Native)) {
    let mut states = vec![SlotState::default(); store.memory.borrow().len()];
    test(&mut Domain::native(store, &mut states));
}

fn on_hypervisor(hypervisor: &FakeHypervisor, test: impl FnOnce(&mut Native)) {
    let mut page = Page::new();
    test(&mut Domain::hypercall(Hypercalls::new(hypervisor, interface()), DeviceId(0x10), page.batch_page()));
}

#[test]
fn both_ways_give_each_slot_once_and_again_after_free() {
    on_both_ways(3, |domain| {
        let [a, b, c] = [(); 3].map(|()| domain.alloc(0).unwrap());
        assert_eq!([a.index(), b.index(), c.index()], [0, 1, 2]);
        assert_eq!(domain.alloc(0), Err(Status::NoFreeSlot));
        let old = b.handle();
        domain.free(b).unwrap();
        let again = domain.alloc(0).unwrap();
        assert_eq!(again.index(), 1);
        assert_ne!(again.handle(), old, "the generation has changed");
        assert_eq!(domain.free(Interrupt(old)), Err(Status::StaleHandle));
    });
}

#[test]
fn both_ways_map_the_same_again_and_refuse_another() {
    on_both_ways(1, |domain| {
        let interrupt = domain.alloc(0).unwrap();
        assert_eq!(domain.map(&interrupt, &request(0x30)), Ok(()));
        assert_eq!(domain.map(&interrupt, &request(0x30)), Ok(()));
        assert_eq!(domain.map(&interrupt, &request(0x31)), Err(Status::Exists));
        domain.unmap(&interrupt).unwrap();
        domain.unmap(&interrupt).unwrap();
        assert_eq!(domain.map(&interrupt, &request(0x31)), Ok(()));
    });
}

#[test]
fn both_ways_refuse_exception_vectors_and_what_is_not_mapped() {
    on_both_ways(1, |domain| {
        let interrupt = domain.alloc(0).unwrap();
        assert_eq!(domain.map(&interrupt, &request(15)), Err(Status::BadVector));
        assert_eq!(domain.mask(&interrupt), Err(Status::NotMapped));
        assert_eq!(domain.unmask(&interrupt), Err(Status::NotMapped));
        assert_eq!(domain.set_affinity(&interrupt, request(0x40).target), Err(Status::NotMapped));
    });
}

#[test]
fn both_ways_request_all_or_none() {
    on_both_ways(4, |domain| {
        let mut out = [const { None }; 5];
        assert_eq!(domain.request(0, &[request(0x30); 5], &mut out), Err(Status::NoFreeSlot));
        assert_eq!(out, [const { None }; 5]);
        assert_eq!(domain.request(0, &[request(0x30), request(7)], &mut out), Err(Status::BadVector));
        assert_eq!(domain.request(0, &[request(0x30); 6], &mut out), Err(Status::InvalidArgument));
        assert_eq!(domain.request(0, &[request(0x30); 4], &mut out), Ok(()), "all was given back");
        assert!(out[..4].iter().all(Option::is_some));
    });
}

#[test]
fn feature_grant_fewer_both_ways_give_what_there_is_or_refuse_with_nothing_changed() {
    on_both_ways(5, |domain| {
        let requests = [0x30, 0x31, 0x32, 0x33].map(request);
        let mut first = [const { None }; 4];
        assert_eq!(domain.request_some(0, 2, &requests, &mut first), Ok(4));
        let mut rest = [const { None }; 4];
        assert_eq!(domain.request_some(0, 2, &requests, &mut rest), Err(Status::NoFreeSlot), "one is left");
        assert!(rest.iter().all(Option::is_none));
        assert_eq!(domain.request_some(0, 1, &requests, &mut rest), Ok(1));
        assert!(rest[0].is_some() && rest[1..].iter().all(Option::is_none));
        assert_eq!(domain.free_all(&mut first), 4);
        assert_eq!(domain.alloc_many(0, 1, &mut first), Ok(4), "they came back");
    });
}

#[test]
fn a_grant_takes_as_few_calls_as_can_be() {
    let hypervisor = FakeHypervisor::new(3000);
    on_hypervisor(&hypervisor, |domain| {
        let mut out = [const { None }; 2500];
        assert_eq!(domain.alloc_many(1, 2049, &mut out), Ok(2500));
        assert!(out.iter().all(Option::is_some));
        assert_eq!(hypervisor.count(Call::AllocMany), 3);
        let mut rest = [const { None }; 1024];
        assert_eq!(domain.alloc_many(1, 501, &mut rest), Err(Status::NoFreeSlot));
        assert_eq!(domain.alloc_many(1, 500, &mut rest), Ok(500));
        assert_eq!(domain.free_all(&mut out), 2500);
        assert_eq!((hypervisor.count(Call::FreeMany), hypervisor.taken()), (3, 500));
        assert_eq!(domain.alloc_many(1, 1, &mut out), Ok(2500));
        assert_eq!((domain.free_group(1), hypervisor.count(Call::FreeGroup)), (Ok(3000), 3));
    });
}

#[test]
fn feature_alloc_group_both_ways_free_a_group_and_leave_the_others() {
    on_both_ways(6, |domain| {
        let mut groups = [1, 2].map(|group| {
            let mut slots = [const { None }; 2];
            assert_eq!(domain.alloc_many(group, 2, &mut slots), Ok(2));
            slots
        });
        assert_eq!(domain.free_group(1), Ok(2));
        assert_eq!(domain.free_group(1), Ok(0));
        assert_eq!(domain.free_all(&mut groups[0]), 0, "they are stale");
        assert_eq!(domain.free_all(&mut groups[1]), 2);
    });
}

#[test]
fn feature_cookie_both_ways_give_it_back_in_queries() {
    on_both_ways(2, |domain| {
        let interrupt = domain.alloc(1).unwrap();
        let info = domain.query(&interrupt).unwrap();
        assert_eq!((info.mapping, info.masked, info.group, info.pasid), (None, true, 1, None));
        domain.map(&interrupt, &request(0x44)).unwrap();
        domain.set_pasid(&interrupt, Pasid::new(0x55)).unwrap();
        let info = domain.query(&interrupt).unwrap();
        let mapping = info.mapping.unwrap();
        assert_eq!((mapping.target, mapping.cookie), (Target { apic_id: 0, vector: 0x44 }, 0x44));
        assert_eq!((info.masked, info.pasid), (false, Pasid::new(0x55)));
    });
}

#[test]
fn faults_come_out_of_the_page() {
    let hypervisor = FakeHypervisor::new(1);
    let mut page = Page::new();
    let calls = Hypercalls::new(&hypervisor, interface());
    assert_eq!(calls.enable(), Ok(hcall_abi::VERSION_MINOR));
    let mut records = [None; 3];
    assert_eq!(calls.read_faults(&mut records, &mut page.batch_page()), Ok(2));
    assert_eq!(records.map(|record| record.map(|record| record.slot)), [Some(0), Some(1), None]);
}

#[test]
fn a_native_pasid_stays_in_the_slot_while_it_is_masked_and_unmasked() {
    let store = FakeStore::new(1);
    on_native(&store, |domain| {
        let interrupt = domain.alloc(0).unwrap();
        domain.map(&interrupt, &request(0x30)).unwrap();
        domain.set_pasid(&interrupt, Pasid::new(0xabcde)).unwrap();
        assert_eq!(store.memory.borrow()[0][3], 0xabcd_e008);
        domain.mask(&interrupt).unwrap();
        assert_eq!(store.memory.borrow()[0][3], 0xabcd_e009);
        domain.free(interrupt).unwrap();
        assert_eq!(store.memory.borrow()[0][3], 1);
    });
}

#[test]
fn both_ways_report_each_item_of_a_batch() {
    on_both_ways(3, |domain| {
        let taken = [(); 3].map(|()| domain.alloc(0).unwrap());
        let items = [(&taken[0], request(0x30)), (&taken[1], request(3)), (&taken[2], request(0x32))];
        let mut results = [Err(Status::HardwareError); 3];
        assert_eq!(domain.map_batch(&items, &mut results), Ok(2));
        assert_eq!(results, [Ok(()), Err(Status::BadVector), Ok(())]);
        assert_eq!(domain.map_batch(&items, &mut results[..2]), Err(Status::InvalidArgument));
    });
}

#[test]
fn a_batch_of_hypercalls_is_as_few_calls_as_can_be() {
    let hypervisor = FakeHypervisor::new(600);
    on_hypervisor(&hypervisor, |domain| {
        let mut out = [const { None }; 600];
        domain.request(2, &[request(0x30); 600], &mut out).unwrap();
        assert_eq!((hypervisor.count(Call::Map), hypervisor.count(Call::AllocMany)), (3, 1));
        let calls = hypervisor.calls.borrow();
        assert_eq!(calls[0].1[3], 2, "the group");
        let counts: Vec<u64> = calls.iter().filter(|(call, _)| *call == Call::Map).map(|(_, args)| args[2]).collect();
        assert_eq!(counts, [256, 256, 88]);
        assert!(hypervisor.slots.borrow().iter().all(|slot| slot.target == Some(request(0x30).target) && !slot.masked));
        assert_eq!(hypervisor.slots.borrow()[599].cookie, 0x30);
    });
}

#[test]
fn slots_are_given_back_when_a_later_batch_fails() {
    let hypervisor = FakeHypervisor::new(600);
    *hypervisor.entries.borrow_mut() = 300;
    on_hypervisor(&hypervisor, |domain| {
        let mut out = [const { None }; 600];
        assert_eq!(domain.request(0, &[request(0x30); 600], &mut out), Err(Status::NoFreeEntry));
        assert_eq!((hypervisor.taken(), hypervisor.count(Call::FreeMany)), (0, 1));
    });
}

#[test]
fn one_refused_item_does_not_keep_the_others_from_being_mapped() {
    let hypervisor = FakeHypervisor { refused_vector: Some(0x31), ..FakeHypervisor::new(4) };
    on_hypervisor(&hypervisor, |domain| {
        let taken = [(); 3].map(|()| domain.alloc(0).unwrap());
        let items = [(&taken[0], request(0x30)), (&taken[1], request(0x31)), (&taken[2], request(0x32))];
        let mut results = [Ok(()); 3];
        assert_eq!(domain.map_batch(&items, &mut results), Ok(2));
        assert_eq!(results, [Ok(()), Err(Status::NoFreeVector), Ok(())]);
    });
}

#[test]
fn mask_unmask_and_affinity_are_one_call_each_with_the_handle() {
    let hypervisor = FakeHypervisor::new(1);
    on_hypervisor(&hypervisor, |domain| {
        let interrupt = domain.alloc(0).unwrap();
        domain.map(&interrupt, &request(0x30)).unwrap();
        hypervisor.calls.borrow_mut().clear();
        domain.mask(&interrupt).unwrap();
        domain.unmask(&interrupt).unwrap();
        domain.set_affinity(&interrupt, Target { apic_id: 2, vector: 0x77 }).unwrap();
        let handle = u64::from(interrupt.handle().bits());
        let expected = [
            (Call::Mask, [0x10, handle, 0, 0]),
            (Call::Unmask, [0x10, handle, 0, 0]),
            (Call::SetAffinity, [0x10, handle, 2 << 32 | 0x77, 0]),
        ];
        assert_eq!(*hypervisor.calls.borrow(), expected);
    });
}

#[test]
fn a_slot_is_programmed_masked_and_unmasked_last_each_step_flushed() {
    use Access::{Read, Write};
    use Field::{AddressHi, AddressLo, Control, Data};
    let store = FakeStore::new(2);
    on_native(&store, |domain| {
        let interrupt = domain.alloc(0).unwrap();
        domain.map(&interrupt, &Request { target: Target { apic_id: 3, vector: 0x41 }, ..request(0) }).unwrap();
        let expected = [
            Write(0, Control, 1),
            Read(0, Control),
            Write(0, AddressLo, 0xfee0_3000),
            Write(0, AddressHi, 0),
            Write(0, Data, 0x41),
            Read(0, Data),
            Write(0, Control, 0),
            Read(0, Control),
        ];
        assert_eq!(*store.log.borrow(), expected);
    });
}

#[test]
fn a_native_change_of_affinity_masks_first_and_keeps_a_masked_slot_masked() {
    let store = FakeStore::new(1);
    on_native(&store, |domain| {
        let interrupt = domain.alloc(0).unwrap();
        domain.map(&interrupt, &request(0x30)).unwrap();
        store.log.borrow_mut().clear();
        domain.set_affinity(&interrupt, Target { apic_id: 1, vector: 0x50 }).unwrap();
        assert_eq!(store.log.borrow()[0], Access::Write(0, Field::Control, 1));
        assert_eq!(store.memory.borrow()[0], [0xfee0_1000, 0, 0x50, 0]);
        domain.mask(&interrupt).unwrap();
        domain.set_affinity(&interrupt, Target { apic_id: 0, vector: 0x51 }).unwrap();
        assert_eq!(store.memory.borrow()[0], [0xfee0_0000, 0, 0x51, 1]);
    });
}

#[test]
fn a_native_target_that_its_message_cannot_name_is_refused() {
    let store = FakeStore::new(1);
    on_native(&store, |domain| {
        let interrupt = domain.alloc(0).unwrap();
        for apic_id in [0xff, 0x100, u32::MAX] {
            let target = Target { apic_id, vector: 0x30 };
            assert_eq!(domain.map(&interrupt, &Request { target, ..request(0x30) }), Err(Status::BadTarget));
        }
        assert_eq!(store.memory.borrow()[0], [0, 0, 0, 1], "nothing was written but the mask");
    });
}

#[test]
fn a_native_slot_that_is_freed_holds_no_message_and_reserved_ones_are_not_given() {
    let store = FakeStore::new(4);
    on_native(&store, |domain| {
        if let Domain::Native(native) = domain {
            native.reserve(|index| index < 2);
        }
        let interrupt = domain.alloc(0).unwrap();
        assert_eq!(interrupt.index(), 2);
        domain.map(&interrupt, &request(0x30)).unwrap();
        domain.free(interrupt).unwrap();
        assert_eq!(store.memory.borrow()[2], [0, 0, 0, 1]);
    });
}
