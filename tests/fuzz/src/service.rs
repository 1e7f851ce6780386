//! The message store service: two guests that call and write as they like.

use hcall_abi::{Call, DeviceId, Status, cpuid::CALL_BASE};
use ims::{
    CallingGuest, DeviceSpec, Domain, GuestId, GuestSpec, Service, StoreLocation, StoreName, StoreSpec,
    addr::{Bdf, Gpa, Hpa},
    fake::Fake,
};
use std::{cell::RefCell, sync::Arc};

use crate::bytes::Bytes;

/// Slots of each guest's store.
const SLOTS: u32 = 16;
/// Vectors of each guest's MSI-X table.
const VECTORS: u32 = 4;
const DEVICE: DeviceId = DeviceId(8);
/// Steps of one run at most.
const STEPS: usize = 256;
/// Steps between two checks.
const CHECK: usize = 8;

/// A guest's memory: one page at 0x1000.
struct Page(RefCell<[u8; 4096]>);

impl Page {
    fn at(address: Gpa, len: usize) -> Result<core::ops::Range<usize>, Status> {
        let start = usize::try_from(address.as_u64()).ok().and_then(|at| at.checked_sub(0x1000));
        let end = start.and_then(|start| start.checked_add(len)).filter(|end| *end <= 4096);
        Ok(start.ok_or(Status::BadAddress)?..end.ok_or(Status::BadAddress)?)
    }
}

impl CallingGuest for Page {
    fn read(&self, from: Gpa, into: &mut [u8]) -> Result<(), Status> {
        into.copy_from_slice(&self.0.borrow()[Self::at(from, into.len())?]);
        Ok(())
    }

    fn write(&self, to: Gpa, bytes: &[u8]) -> Result<(), Status> {
        self.0.borrow_mut()[Self::at(to, bytes.len())?].copy_from_slice(bytes);
        Ok(())
    }
}

/// Two guests, each with a device.
struct Guests {
    service: Service<Fake>,
    domains: [Arc<Domain>; 2],
    stores: [[StoreSpec; 2]; 2],
    pages: [Page; 2],
}

fn requester(guest: usize) -> Bdf {
    Bdf::new(0x6a, 1 + guest as u8, 0)
}

impl Guests {
    fn new() -> Self {
        let service = Service::new(Fake::default());
        let stores = [0, 1].map(|guest: usize| {
            let store = |base: u64, slots, bar| StoreSpec {
                base: Hpa::new(base + 0x10_0000 * guest as u64),
                shadow: Hpa::new(base + 0x10_0000 * guest as u64 + 0x100_0000),
                slots,
                bar,
                offset: 0x4000,
                backing: None,
                location: StoreLocation::DeviceMemory,
            };
            [store(0x4000, SLOTS, 0), store(0x8000, VECTORS, 2)]
        });
        let domains = [0, 1].map(|guest: usize| {
            let [ims, msix] = stores[guest];
            let device = DeviceSpec {
                id: DEVICE,
                requester: requester(guest),
                msix: Some(msix),
                ims: Some(ims),
                pasids: None,
                shares_requester: false,
            };
            let guest = GuestSpec {
                guest: GuestId(guest as u16),
                apic_ids: vec![0, 1],
                hypercalls: true,
                devices: vec![device],
            };
            service.attach(guest).expect("a guest that can be")
        });
        Self { service, domains, stores, pages: [0, 1].map(|_| Page(RefCell::new([0; 4096]))) }
    }

    fn call(&self, guest: usize, number: u64, args: [u64; 4]) -> u64 {
        self.service.hypercall(&self.domains[guest], number, args, &self.pages[guest])
    }

    /// Whatever the guests did, an interrupt of a guest's device reaches that guest, and no other device can use its messages.
    fn check(&self) {
        let ports = self.service.ports();
        for guest in 0..2 {
            for store in &self.stores[guest] {
                for slot in 0..store.slots as u16 {
                    if let Some(route) = ports.fire(requester(guest), store.base, slot) {
                        let owner = ports.owner(route).map(|(owner, _)| owner);
                        assert_eq!(owner, Some(GuestId(guest as u16)), "slot {slot} of guest {guest}");
                    }
                    assert_eq!(ports.fire(requester(1 - guest), store.base, slot), None, "another's message");
                }
            }
        }
    }

    /// The guests end, and everything comes back.
    fn end(self) {
        self.domains.iter().for_each(|domain| self.service.detach(domain));
        assert_eq!(self.service.ports().entries_in_use(), 0, "entries that nobody has");
        assert_eq!(self.service.counters().quarantined, 0);
    }
}

/// Calls with any arguments, and memory for them. A step is a byte for the guest and the kind, then its values.
pub fn hypercalls(data: &[u8]) {
    let (guests, mut bytes) = (Guests::new(), Bytes(data));
    let mut handles = [0; 8];
    for step in 0..STEPS {
        if bytes.is_empty() {
            break;
        }
        let kind = bytes.u8();
        let guest = usize::from(kind & 1);
        match kind >> 1 & 3 {
            0 => {
                let at = usize::from(bytes.u16() % 4096);
                let len = usize::from(bytes.u8());
                let new = bytes.take(len.min(4096 - at));
                guests.pages[guest].0.borrow_mut()[at..at + new.len()].copy_from_slice(new);
            }
            1 => {
                let (number, args) = (bytes.u64(), [bytes.u64(), bytes.u64(), bytes.u64(), bytes.u64()]);
                guests.call(guest, number, args);
            }
            2 => {
                // What makes sense: the device, a handle that was given, the page.
                let number = CALL_BASE as u64 + u64::from(bytes.u8() % 32);
                let second = match bytes.u8() % 3 {
                    0 => handles[usize::from(bytes.u8()) % handles.len()],
                    1 => 0x1000 + u64::from(bytes.u8()) * 16,
                    _ => bytes.u16().into(),
                };
                let result =
                    guests.call(guest, number, [DEVICE.0.into(), second, bytes.u8().into(), bytes.u16().into()]);
                if number == Call::Alloc.number(CALL_BASE) {
                    handles.rotate_right(1);
                    handles[0] = result;
                }
            }
            _ => {
                guests.call(guest, Call::Enable.number(CALL_BASE), [1 << 16, 0, 0, 0]);
            }
        }
        if step % CHECK == 0 {
            guests.check();
        }
    }
    guests.check();
    guests.end();
}

/// Writes to both guests' stores, and their reads. A step is a byte for the guest, the store and the width, then offset and value.
pub fn stores(data: &[u8]) {
    let (guests, mut bytes) = (Guests::new(), Bytes(data));
    for step in 0..STEPS {
        if bytes.is_empty() {
            break;
        }
        let kind = bytes.u8();
        let guest = usize::from(kind & 1);
        let name = if kind & 2 != 0 { StoreName::Msix } else { StoreName::Ims };
        let width = [1, 2, 4, 8][usize::from(kind >> 2 & 3)];
        let offset = if kind & 0x80 != 0 { bytes.u64() } else { u64::from(bytes.u16() % (SLOTS as u16 * 16 + 16)) };
        let value = if kind & 0x40 != 0 { bytes.u64() } else { likely(&mut bytes) };
        let _ = guests.service.store_write(&guests.domains[guest], DEVICE, name, offset, width, value);
        if step % CHECK == 0 {
            guests.check();
        }
    }
    guests.check();
    guests.end();
}

/// A value that a driver writes: an address, data, or a control word.
fn likely(bytes: &mut Bytes) -> u64 {
    let (kind, value) = (bytes.u8(), u64::from(bytes.u8()));
    match kind % 4 {
        0 => 0xfee0_0000 | value << 12,
        1 => value,
        2 => value & 1,
        _ => value << 32 | 0x41,
    }
}
