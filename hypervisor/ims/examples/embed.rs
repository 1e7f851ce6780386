//! A hypervisor of fifty lines around the service: one guest with one device, whose interrupts it remaps by a trapped write and by hypercalls.
//!
//! `cargo run -p imsvisor-ims --features fake --example embed`

use hcall_abi::cpuid::CALL_BASE;
use hcall_abi::{Call, DeviceId, ItemLayout, MapRequest, SlotHandle, Status, Target};
use ims::addr::{Bdf, Gpa, Hpa};
use ims::fake::Fake;
use ims::{CallingGuest, DeviceSpec, Field, GuestId, GuestSpec, Service, StoreLocation, StoreName, StoreSpec};
use imsvisor_sync::Mutex;

/// The guest's memory: a page at 0x1000.
struct Page(Mutex<[u8; 4096]>);

impl CallingGuest for Page {
    fn read(&self, from: Gpa, into: &mut [u8]) -> Result<(), Status> {
        let at = (from.as_u64() as usize).checked_sub(0x1000).ok_or(Status::BadAddress)?;
        let page = self.0.lock();
        into.copy_from_slice(page.get(at..at + into.len()).ok_or(Status::BadAddress)?);
        Ok(())
    }

    fn write(&self, to: Gpa, bytes: &[u8]) -> Result<(), Status> {
        let at = (to.as_u64() as usize).checked_sub(0x1000).ok_or(Status::BadAddress)?;
        let mut page = self.0.lock();
        page.get_mut(at..at + bytes.len()).ok_or(Status::BadAddress)?.copy_from_slice(bytes);
        Ok(())
    }
}

/// Runs the example; the tests call it, too.
pub fn main() {
    // What a hypervisor knows when it gives a device away.
    let requester = Bdf::new(0x6a, 1, 0);
    let store = StoreSpec {
        base: Hpa::new(0x4000),
        shadow: Hpa::new(0x10_0000),
        slots: 64,
        bar: 0,
        offset: 0x4000,
        backing: None,
        location: StoreLocation::DeviceMemory,
    };
    let id = DeviceId(8);
    let device = DeviceSpec { id, requester, msix: None, ims: Some(store), pasids: None, shares_requester: false };
    let service = Service::new(Fake::default());
    let guest = GuestSpec { guest: GuestId(0), apic_ids: vec![0, 1], hypercalls: true, devices: vec![device] };
    let domain = service.attach(guest).expect("a guest that can be");
    let memory = Page(Mutex::new([0; 4096]));
    let call = |call: Call, args| service.hypercall(&domain, call.number(CALL_BASE), args, &memory);

    // The guest says that it knows the interface: version 1.0.
    call(Call::Enable, [1 << 16, 0, 0, 0]);

    // It writes a message for vector 0x41 of its processor 1 into slot 5, as a driver does; each write is an EPT violation.
    for (field, value) in
        [(Field::AddressLo, 0xfee0_1000), (Field::AddressHi, 0), (Field::Data, 0x41), (Field::Control, 0)]
    {
        let offset = field.offset(5);
        service.store_write(&domain, id, StoreName::Ims, offset, 4, value).expect("a write that is right");
    }
    let route = service.ports().fire(requester, store.base, 5).expect("the interrupt of slot 5");
    println!("slot 5, written by the guest: {route:?}, which is {:?}", service.ports().owner(route));
    assert_eq!(service.ports().fire(Bdf::new(0x6a, 1, 1), store.base, 5), None, "another source's message is refused");

    // It maps a slot by hypercalls, and names the interrupt.
    let handle = SlotHandle::from_register(call(Call::Alloc, [8, 0, 0, 0])).expect("a free slot");
    let target = Target { apic_id: 0, vector: 0x55 };
    let item = MapRequest { handle, target, unmask: true, cookie: 0xc0ffee };
    memory.write(Gpa::new(0x1000), &item.to_bytes()).expect("the guest's own page");
    assert_eq!(call(Call::Map, [8, 0x1000, 1, ItemLayout::V1.0]), 1, "items that succeeded");
    let route = service.ports().fire(requester, store.base, handle.index()).expect("the interrupt of the mapped slot");
    println!("slot {}, mapped by a call: {route:?}, which is {:?}", handle.index(), service.ports().owner(route));
    println!(
        "the guest reads {:#x} there",
        service.ports().guest_reads(store.shadow, handle.index(), Field::AddressLo)
    );

    // The guest ends.
    service.detach(&domain);
    assert_eq!(service.ports().entries_in_use(), 0, "everything has come back");
}
