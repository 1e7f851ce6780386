//! A processor, a hypervisor and a store for tests.

use core::cell::RefCell;
use core::num::NonZeroU16;
use core::ptr::NonNull;
use std::collections::HashMap;

use hcall_abi::call::HANDLES_MAX;
use hcall_abi::cpuid::{CALL_BASE, Features, IMSVISOR_BASE, LEAF_MAX, Limits, signature_registers};
use hcall_abi::info::Mapping;
use hcall_abi::{
    Call, DeviceId, DeviceInfo, FaultKind, FaultRecord, FaultStore, ItemLayout, MapReply, MapRequest, MessagePair,
    Pasid, SlotHandle, SlotInfo, Status, StoreKind, Target, VERSION_MAJOR, VERSION_MINOR, rax_from_result,
};

use crate::calls::BatchPage;
use crate::discover::{Cpuid, CpuidResult, Interface};
use crate::store::{Field, Store};
use crate::transport::Transport;

/// CPUID leaves by number; the others are zeros.
pub(crate) struct FakeCpuid(HashMap<u32, [u32; 4]>);

impl FakeCpuid {
    pub(crate) fn new() -> Self {
        Self(HashMap::new())
    }

    pub(crate) fn with(mut self, leaf: u32, registers: [u32; 4]) -> Self {
        self.0.insert(leaf, registers);
        self
    }

    /// The leaves of [`interface`] at `base`.
    pub(crate) fn with_interface(self, base: u32, major: u16) -> Self {
        let [ebx, ecx, edx] = signature_registers();
        let Interface { features, limits, .. } = interface();
        self.with(base, [base + LEAF_MAX, ebx, ecx, edx])
            .with(base + 1, [u32::from(major) << 16 | u32::from(VERSION_MINOR), CALL_BASE, 0, 0])
            .with(base + 2, [features.0, 0, 0, 0])
            .with(base + 3, [limits.slots_per_device, limits.batch, limits.groups, 0])
    }
}

impl Cpuid for FakeCpuid {
    fn cpuid(&self, leaf: u32) -> CpuidResult {
        let [eax, ebx, ecx, edx] = self.0.get(&leaf).copied().unwrap_or_default();
        CpuidResult { eax, ebx, ecx, edx }
    }
}

const FEATURES: Features = Features::ARRAY_STORE
    .union(Features::BATCH)
    .union(Features::RETARGET)
    .union(Features::ENABLE)
    .union(Features::FEWER_GRANT)
    .union(Features::GROUP);

/// An interface with batches of 256.
pub(crate) fn interface() -> Interface {
    assert_eq!(VERSION_MAJOR, 1);
    Interface {
        base: IMSVISOR_BASE,
        minor: VERSION_MINOR,
        call_base: CALL_BASE,
        features: FEATURES,
        limits: Limits { slots_per_device: 4096, batch: 256, groups: 4 },
    }
}

/// A page whose physical address is its virtual one.
pub(crate) struct Page(Box<Aligned>);

#[repr(align(4096))]
struct Aligned([u8; 4096]);

impl Page {
    pub(crate) fn new() -> Self {
        Self(Box::new(Aligned([0; 4096])))
    }

    pub(crate) fn pointer(&mut self) -> NonNull<[u8; 4096]> {
        NonNull::from(&mut self.0.0)
    }

    pub(crate) fn batch_page(&mut self) -> BatchPage<'_> {
        let pointer = self.pointer();
        // SAFETY: the page is borrowed as long as the batch page lives.
        unsafe { BatchPage::new(pointer, pointer.as_ptr() as u64) }.unwrap()
    }
}

#[derive(Clone, Copy, Default)]
pub(crate) struct FakeSlot {
    pub(crate) generation: u16,
    pub(crate) taken: bool,
    pub(crate) masked: bool,
    pub(crate) target: Option<Target>,
    pub(crate) cookie: u64,
    pub(crate) group: u64,
    pub(crate) pasid: Option<Pasid>,
}

/// A hypervisor with one device, that records its calls.
pub(crate) struct FakeHypervisor {
    pub(crate) slots: RefCell<Vec<FakeSlot>>,
    pub(crate) calls: RefCell<Vec<(Call, [u64; 4])>>,
    /// Entries that the remapping table has left.
    pub(crate) entries: RefCell<usize>,
    /// This vector finds no place.
    pub(crate) refused_vector: Option<u8>,
}

impl FakeHypervisor {
    pub(crate) fn new(slots: usize) -> Self {
        Self {
            slots: RefCell::new(vec![FakeSlot { masked: true, ..FakeSlot::default() }; slots]),
            calls: RefCell::default(),
            entries: RefCell::new(usize::MAX),
            refused_vector: None,
        }
    }

    /// How often `call` was made.
    pub(crate) fn count(&self, call: Call) -> usize {
        self.calls.borrow().iter().filter(|(made, _)| *made == call).count()
    }

    pub(crate) fn taken(&self) -> usize {
        self.slots.borrow().iter().filter(|slot| slot.taken).count()
    }

    fn with_slot<R>(&self, bits: u64, f: impl FnOnce(&mut FakeSlot) -> Result<R, Status>) -> Result<R, Status> {
        let handle = SlotHandle::from_register(bits)?;
        let mut slots = self.slots.borrow_mut();
        let slot = slots.get_mut(usize::from(handle.index())).ok_or(Status::NoSuchSlot)?;
        if slot.taken && slot.generation == handle.generation() { f(slot) } else { Err(Status::StaleHandle) }
    }

    fn alloc_many(&self, physical: u64, range: u64, group: u64) -> Result<u64, Status> {
        let (min, max) = (range & 0xffff_ffff, range >> 32);
        let free = (self.slots.borrow().len() - self.taken()) as u64;
        if !(1..=max).contains(&min) || max > 1024 {
            return Err(Status::InvalidArgument);
        }
        if free < min {
            return Err(Status::NoFreeSlot);
        }
        for n in 0..free.min(max) {
            let handle = self.alloc(group)? as u32;
            // SAFETY: tests pass the address of a `Page` of their own.
            unsafe { *((physical + 4 * n) as *mut u32) = handle };
        }
        Ok(free.min(max))
    }

    fn free(&self, handle: u64) -> Result<u64, Status> {
        self.with_slot(handle, |slot| {
            *slot = FakeSlot { generation: slot.generation, masked: true, ..FakeSlot::default() };
            Ok(0)
        })
    }

    fn free_many(&self, physical: u64, count: u64) -> u64 {
        // SAFETY: tests pass the address of a `Page` of their own.
        let handles = (0..count).map(|n| unsafe { *((physical + 4 * n) as *const u32) });
        handles.filter(|handle| self.free(u64::from(*handle)).is_ok()).count() as u64
    }

    fn free_group(&self, group: u64) -> u64 {
        let mut slots = self.slots.borrow_mut();
        let of_group = slots.iter_mut().filter(|slot| slot.taken && slot.group == group);
        of_group.take(HANDLES_MAX as usize).map(|slot| slot.taken = false).count() as u64
    }

    fn query_slot(&self, handle: u64, physical: u64) -> Result<u64, Status> {
        self.with_slot(handle, |slot| {
            let pair = MessagePair::default();
            let info = SlotInfo {
                mapping: slot.target.map(|target| Mapping { target, cookie: slot.cookie, pair }),
                masked: slot.masked,
                pending: false,
                limited: false,
                group: slot.group as u16,
                pasid: slot.pasid,
            };
            // SAFETY: tests pass the address of a `Page` of their own.
            unsafe { *(physical as *mut [u8; 64]) = info.to_bytes() };
            Ok(0)
        })
    }

    /// Two faults, as many as are asked for.
    fn read_faults(&self, physical: u64, most: u64) -> u64 {
        for n in 0..most.min(2) {
            let device = DeviceId(0x10);
            let kind = FaultKind::Remapping(0x26);
            let record = FaultRecord {
                cookie: 7,
                device,
                slot: n as u16,
                store: FaultStore::Array,
                kind,
                foreign: true,
                lost: 0,
            };
            // SAFETY: tests pass the address of a `Page` of their own.
            unsafe { *((physical + 32 * n) as *mut [u8; 32]) = record.to_bytes() };
        }
        most.min(2)
    }

    fn alloc(&self, group: u64) -> Result<u64, Status> {
        let mut slots = self.slots.borrow_mut();
        let (index, slot) = slots.iter_mut().enumerate().find(|(_, slot)| !slot.taken).ok_or(Status::NoFreeSlot)?;
        *slot = FakeSlot { generation: slot.generation + 1, taken: true, masked: true, group, ..FakeSlot::default() };
        Ok(SlotHandle::new(index as u16, NonZeroU16::new(slot.generation).unwrap()).bits().into())
    }

    fn map_item(&self, item: MapRequest) -> Result<MessagePair, Status> {
        let mut entries = self.entries.borrow_mut();
        if self.refused_vector == Some(item.target.vector) {
            return Err(Status::NoFreeVector);
        }
        self.with_slot(item.handle.bits().into(), |slot| {
            if slot.target.is_none() {
                *entries = entries.checked_sub(1).ok_or(Status::NoFreeEntry)?;
            } else if slot.target != Some(item.target) {
                return Err(Status::Exists);
            }
            slot.target = Some(item.target);
            slot.cookie = item.cookie;
            slot.masked &= !item.unmask;
            Ok(MessagePair { address: 0xfee0_0010, data: item.handle.index().into() })
        })
    }

    fn map(&self, physical: u64, count: u64, layout: u64) -> Result<u64, Status> {
        if ItemLayout(layout) != ItemLayout::V1 || !(1..=256).contains(&count) {
            return Err(Status::BadLayout);
        }
        let mut succeeded = 0;
        for n in 0..count {
            let item = (physical + 16 * n) as *mut [u8; 16];
            // SAFETY: tests pass the address of a `Page` of their own.
            let request = MapRequest::from_bytes(unsafe { &*item });
            let reply = request.and_then(|request| self.map_item(request));
            succeeded += u64::from(reply.is_ok());
            // SAFETY: the same `Page`; the reference to it has ended.
            unsafe { *item = MapReply(reply).to_bytes() };
        }
        Ok(succeeded)
    }

    fn query(&self, physical: u64) -> Result<u64, Status> {
        let bytes = physical as *mut [u8; 64];
        // SAFETY: tests pass the address of a `Page` of their own.
        DeviceInfo::check_request(unsafe { &*bytes })?;
        let slots = self.slots.borrow().len() as u32;
        let free = slots - self.taken() as u32;
        let device = DeviceId(0x10);
        let info = DeviceInfo { kind: StoreKind::Array, slots, free, bar: 0, offset: 0x40000, device, pasids: None };
        // SAFETY: the same `Page`; the reference to it has ended.
        unsafe { *bytes = info.to_bytes() };
        Ok(0)
    }

    fn answer(&self, call: Call, [first, second, third, fourth]: [u64; 4]) -> Result<u64, Status> {
        let on_device = !matches!(call, Call::Nop | Call::Discover | Call::Enable | Call::ReadFaults | Call::SetPvEoi);
        if on_device && first != 0x10 {
            return Err(Status::NoSuchDevice);
        }
        let mapped = |slot: &FakeSlot| slot.target.map(drop).ok_or(Status::NotMapped);
        match call {
            Call::Nop => Ok(0),
            Call::Discover => {
                if first == 0 {
                    Ok(0x10)
                } else {
                    Err(Status::NoSuchDevice)
                }
            }
            Call::QueryDevice => self.query(second),
            Call::OpenQueue | Call::SetPvEoi => Err(Status::Unsupported),
            Call::Enable => Ok(u64::from(VERSION_MINOR)),
            Call::ReadFaults => Ok(self.read_faults(first, second)),
            Call::AllocMany => self.alloc_many(second, third, fourth),
            Call::FreeMany => Ok(self.free_many(second, third)),
            Call::FreeGroup => Ok(self.free_group(second)),
            Call::QuerySlot => self.query_slot(second, third),
            Call::SetAux => {
                let pasid = Pasid::from_register(third)?;
                self.with_slot(second, |slot| {
                    slot.pasid = pasid;
                    Ok(0)
                })
            }
            Call::Alloc => self.alloc(second),
            Call::Map => self.map(second, third, fourth),
            Call::Free => self.free(second),
            Call::Unmap => self.with_slot(second, |slot| {
                (slot.target, slot.masked) = (None, true);
                Ok(0)
            }),
            Call::Mask => self.with_slot(second, |slot| mapped(slot).map(|()| slot.masked = true)).map(|()| 0),
            Call::Unmask => self.with_slot(second, |slot| mapped(slot).map(|()| slot.masked = false)).map(|()| 0),
            Call::SetAffinity => {
                let target = Target::from_register(third)?;
                self.with_slot(second, |slot| mapped(slot).map(|()| slot.target = Some(target))).map(|()| 0)
            }
        }
    }
}

impl Transport for FakeHypervisor {
    fn call(&self, number: u64, args: [u64; 4]) -> u64 {
        let Some(call) = Call::from_number(number, CALL_BASE) else {
            return rax_from_result(Err(Status::UnknownCall));
        };
        self.calls.borrow_mut().push((call, args));
        rax_from_result(self.answer(call, args))
    }
}

/// What happened to a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read(u16, Field),
    Write(u16, Field, u32),
}

/// A store that records what happens to it.
pub(crate) struct FakeStore {
    pub(crate) memory: RefCell<Vec<[u32; 4]>>,
    pub(crate) log: RefCell<Vec<Access>>,
}

impl FakeStore {
    pub(crate) fn new(slots: usize) -> Self {
        Self { memory: RefCell::new(vec![[0, 0, 0, 1]; slots]), log: RefCell::default() }
    }
}

impl Store for &FakeStore {
    fn slots(&self) -> u32 {
        self.memory.borrow().len() as u32
    }

    fn read(&self, slot: u16, field: Field) -> u32 {
        self.log.borrow_mut().push(Access::Read(slot, field));
        self.memory.borrow()[usize::from(slot)][field as usize]
    }

    fn write(&mut self, slot: u16, field: Field, value: u32) {
        self.log.borrow_mut().push(Access::Write(slot, field, value));
        self.memory.borrow_mut()[usize::from(slot)][field as usize] = value;
    }
}
