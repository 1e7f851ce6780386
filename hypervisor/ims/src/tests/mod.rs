//! The service on a machine that is stricter than hardware.

mod backed;
mod batches;
mod calls;
mod calls_model;
mod failures;
mod features;
mod machine;
mod random;
mod stores;
mod threads;

use std::{cell::RefCell, sync::Arc};

use hcall_abi::{
    Call, DeviceId, ItemLayout, MapReply, MapRequest, MessagePair, Pasid, SlotHandle, Status, Target, cpuid::CALL_BASE,
    result_from_rax,
};
use machine::Machine;

use super::*;
use crate::addr::{Bdf, Gpa, Hpa};

/// x2APIC IDs of the first guest's processors.
const PROCESSORS: [u32; 3] = [0, 1, 5];
/// Slots of its IMS store.
const IMS_SLOTS: u32 = 300;
/// Entries of its MSI-X table.
const MSIX_SLOTS: u32 = 8;
const DEVICE: DeviceId = DeviceId(0x10);
/// Where the guest's batches lie.
const PAGE: Gpa = Gpa::new(0x5000);
/// Compatibility-format messages to the first processor.
const ADDRESS: u32 = 0xfee0_0000;

/// One page of the guest's memory, at [`PAGE`].
struct OnePage<'a> {
    bytes: RefCell<[u8; 4096]>,
    machine: &'a Machine,
}

impl OnePage<'_> {
    fn range(&self, at: Gpa, len: usize) -> Result<std::ops::Range<usize>, Status> {
        let start = at.offset_from(PAGE).ok_or(Status::BadAddress)? as usize;
        if self.machine.fails() || start + len > 4096 { Err(Status::BadAddress) } else { Ok(start..start + len) }
    }
}

impl CallingGuest for OnePage<'_> {
    fn read(&self, from: Gpa, into: &mut [u8]) -> Result<(), Status> {
        let mut bytes = self.bytes.borrow_mut();
        let range = self.range(from, into.len())?;
        into.copy_from_slice(&bytes[range]);
        // Another processor writes as soon as it was read (attack 19).
        bytes.fill(0xff);
        Ok(())
    }

    fn write(&self, to: Gpa, from: &[u8]) -> Result<(), Status> {
        let range = self.range(to, from.len())?;
        self.bytes.borrow_mut()[range].copy_from_slice(from);
        Ok(())
    }
}

/// A guest with a device, on the machine.
struct Bench {
    service: Service<Machine>,
    domain: Arc<Domain>,
}

fn store(base: u64, slots: u32) -> StoreSpec {
    StoreSpec {
        base: Hpa::new(base),
        shadow: Hpa::new(base + 0x1_0000_0000),
        slots,
        bar: 0,
        offset: base as u32,
        backing: None,
        location: StoreLocation::DeviceMemory,
    }
}

/// Guest 1's function, or another guest's.
fn function(guest: u16) -> DeviceSpec {
    let base = u64::from(guest) << 24;
    DeviceSpec {
        id: DEVICE,
        requester: Bdf(0xf0 + u32::from(guest)),
        msix: Some(store(base, MSIX_SLOTS)),
        ims: Some(store(base + 0x4_0000, IMS_SLOTS)),
        pasids: Pasid::new(0x100).zip(Pasid::new(0x1ff)),
        shares_requester: false,
    }
}

impl Bench {
    fn new() -> Self {
        Self::with(512, 512)
    }

    /// On a machine with so many entries and vectors.
    fn with(entries: u32, vectors: usize) -> Self {
        let service = Service::new(Machine::new(entries, vectors));
        let domain = Self::join(&service, 1, &PROCESSORS);
        Self { service, domain }
    }

    /// With so many slots in the message store, and entries for all.
    fn with_slots(slots: u32) -> Self {
        let service = Service::new(Machine::new(slots, 512));
        let device = DeviceSpec { ims: Some(store(0x104_0000, slots)), ..function(1) };
        let domain = Self::join_with(&service, 1, &PROCESSORS, device);
        Self { service, domain }
    }

    fn join(service: &Service<Machine>, guest: u16, processors: &[u32]) -> Arc<Domain> {
        Self::join_with(service, guest, processors, function(guest))
    }

    fn join_with(service: &Service<Machine>, guest: u16, processors: &[u32], device: DeviceSpec) -> Arc<Domain> {
        for store in [device.msix, device.ims].into_iter().flatten() {
            service.ports().plug(store, device.requester, GuestId(guest), processors);
        }
        let spec =
            GuestSpec { guest: GuestId(guest), apic_ids: processors.to_vec(), hypercalls: true, devices: vec![device] };
        let domain = service.attach(spec).unwrap();
        domain.enable(hcall_abi::VERSION_MINOR);
        domain
    }

    fn machine(&self) -> &Machine {
        self.service.ports()
    }

    fn spec(&self, name: StoreName) -> StoreSpec {
        *function(1).store(name).unwrap()
    }

    fn write(&self, name: StoreName, offset: u64, width: u8, value: u64) -> Result<(), Status> {
        self.service.store_write(&self.domain, DEVICE, name, offset, width, value)
    }

    /// Writes a dword of an IMS slot.
    fn poke(&self, slot: u16, field: Field, value: u32) -> Result<(), Status> {
        self.write(StoreName::Ims, field.offset(slot), 4, value.into())
    }

    /// As a driver does: message, then unmask.
    fn program(&self, slot: u16, address: u32, data: u32) -> Result<(), Status> {
        self.poke(slot, Field::AddressLo, address)?;
        self.poke(slot, Field::AddressHi, 0)?;
        self.poke(slot, Field::Data, data)?;
        self.poke(slot, Field::Control, 0)
    }

    fn call(&self, call: Call, args: [u64; 4]) -> Result<u64, Status> {
        self.call_with(call, args, &mut [0; 4096])
    }

    fn call_with(&self, call: Call, args: [u64; 4], page: &mut [u8; 4096]) -> Result<u64, Status> {
        let memory = OnePage { bytes: RefCell::new(*page), machine: self.machine() };
        let rax = self.service.hypercall(&self.domain, call.number(CALL_BASE), args, &memory);
        *page = memory.bytes.into_inner();
        result_from_rax(rax)
    }

    fn alloc(&self) -> SlotHandle {
        SlotHandle::from_register(self.call(Call::Alloc, [DEVICE.0.into(), 0, 0, 0]).unwrap()).unwrap()
    }

    fn on(&self, call: Call, handle: SlotHandle) -> Result<u64, Status> {
        self.call(call, [DEVICE.0.into(), handle.bits().into(), 0, 0])
    }

    fn retarget(&self, handle: SlotHandle, target: Target) -> Result<u64, Status> {
        self.call(Call::SetAffinity, [DEVICE.0.into(), handle.bits().into(), target.to_register(), 0])
    }

    /// Maps a batch: the call's value, and each item's.
    fn map(&self, requests: &[MapRequest]) -> (Result<u64, Status>, Vec<Result<MessagePair, Status>>) {
        let items: Vec<_> = requests.iter().map(MapRequest::to_bytes).collect();
        self.map_bytes(&items)
    }

    fn map_bytes(&self, items: &[[u8; 16]]) -> (Result<u64, Status>, Vec<Result<MessagePair, Status>>) {
        let mut page = [0; 4096];
        page[..items.len() * 16].copy_from_slice(items.as_flattened());
        let args = [DEVICE.0.into(), PAGE.as_u64(), items.len() as u64, ItemLayout::V1.0];
        let done = self.call_with(Call::Map, args, &mut page);
        let replies = page.as_chunks::<16>().0.iter().take(items.len());
        (done, replies.map(|reply| MapReply::from_bytes(reply).0).collect())
    }

    /// Maps one slot.
    fn map_one(&self, request: MapRequest) -> Result<MessagePair, Status> {
        let (done, replies) = self.map(&[request]);
        done.and(replies[0])
    }

    /// A slot, mapped and unmasked.
    fn mapped(&self, target: Target) -> SlotHandle {
        let handle = self.alloc();
        self.map_one(MapRequest { handle, target, unmask: true, cookie: 7 }).unwrap();
        handle
    }

    /// Where the slot's interrupt comes out; `None` while it is masked.
    fn fire(&self, slot: u16) -> Option<Target> {
        self.machine().fire(&self.spec(StoreName::Ims), slot)
    }

    /// What the guest reads.
    fn seen(&self, slot: u16) -> [u32; 4] {
        self.machine().shadow(&self.spec(StoreName::Ims), slot)
    }
}

fn target(apic_id: u32, vector: u8) -> Target {
    Target { apic_id, vector }
}
