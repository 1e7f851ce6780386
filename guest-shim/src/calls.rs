//! Typed hypercalls.

use core::marker::PhantomData;
use core::ptr::NonNull;

use hcall_abi::call::{FAULTS_MAX, HANDLES_MAX, PV_EOI_ENABLE};
use hcall_abi::cpuid::Features;
use hcall_abi::{
    Call, DeviceId, DeviceInfo, FaultRecord, ItemLayout, MapReply, MapRequest, Pasid, SlotHandle, SlotInfo, Status,
    StoreId, Target, VERSION_MAJOR, VERSION_MINOR, result_from_rax,
};

use crate::discover::Interface;
use crate::transport::Transport;

/// Makes calls to one interface. What a call takes, returns and fails with stands with it in [`Call`]; one that the interface does not
/// have is [`Status::UnknownCall`].
#[derive(Clone, Copy, Debug)]
pub struct Hypercalls<T> {
    transport: T,
    interface: Interface,
}

impl<T: Transport> Hypercalls<T> {
    /// Calls to `interface` by way of `transport`.
    pub const fn new(transport: T, interface: Interface) -> Self {
        Self { transport, interface }
    }

    /// The interface.
    pub const fn interface(&self) -> &Interface {
        &self.interface
    }

    pub(crate) const fn transport(&self) -> &T {
        &self.transport
    }

    fn call(&self, call: Call, args: [u64; 4]) -> Result<u64, Status> {
        result_from_rax(self.transport.call(self.interface.number(call), args))
    }

    fn on_slot(&self, call: Call, store: impl Into<StoreId>, handle: SlotHandle) -> Result<(), Status> {
        self.call(call, [store.into().to_register(), handle.bits().into(), 0, 0]).map(drop)
    }

    /// [`Call::Nop`].
    pub fn nop(&self) -> Result<(), Status> {
        self.call(Call::Nop, [0; 4]).map(drop)
    }

    /// [`Call::Enable`]: the guest's devices show their stores. An interface without that call shows them by itself. Returns the
    /// minor version that both speak.
    pub fn enable(&self) -> Result<u16, Status> {
        if !self.interface.features.contains(Features::ENABLE) {
            return Ok(self.interface.minor);
        }
        let version = u64::from(VERSION_MAJOR) << 16 | u64::from(VERSION_MINOR);
        self.call(Call::Enable, [version, 0, 0, 0]).map(|minor| minor as u16)
    }

    /// [`Call::Discover`]: this guest's `n`-th device with a store.
    pub fn device(&self, n: u32) -> Result<DeviceId, Status> {
        self.call(Call::Discover, [n.into(), 0, 0, 0]).and_then(DeviceId::from_register)
    }

    /// [`Call::QueryDevice`].
    pub fn query(&self, store: impl Into<StoreId>, page: &mut BatchPage) -> Result<DeviceInfo, Status> {
        page.put_bytes(&DeviceInfo::request());
        self.call(Call::QueryDevice, [store.into().to_register(), page.physical(), 0, 0])?;
        DeviceInfo::from_bytes(&page.get_bytes())
    }

    /// [`Call::Alloc`].
    pub fn alloc(&self, store: impl Into<StoreId>, group: u32) -> Result<SlotHandle, Status> {
        self.call(Call::Alloc, [store.into().to_register(), group.into(), 0, 0]).and_then(SlotHandle::from_register)
    }

    /// [`Call::AllocMany`]: from `min` to `max` slots, whose handles `take` gets. How many.
    pub fn alloc_many(
        &self,
        store: impl Into<StoreId>,
        [min, max]: [u32; 2],
        group: u32,
        page: &mut BatchPage,
        take: &mut dyn FnMut(SlotHandle),
    ) -> Result<usize, Status> {
        let range = u64::from(max) << 32 | u64::from(min);
        let count =
            self.call(Call::AllocMany, [store.into().to_register(), page.physical(), range, group.into()])? as usize;
        for n in 0..count.min(HANDLES_MAX as usize) {
            take(SlotHandle::from_bits(page.word(n))?);
        }
        Ok(count)
    }

    /// [`Call::FreeMany`], for as many of the handles as one call takes. Returns how many were tried, and how many of them freed.
    pub fn free_many(
        &self,
        store: impl Into<StoreId>,
        handles: &mut dyn Iterator<Item = SlotHandle>,
        page: &mut BatchPage,
    ) -> Result<(usize, usize), Status> {
        let mut count = 0;
        for handle in handles.take(HANDLES_MAX as usize) {
            page.put_word(count, handle.bits());
            count += 1;
        }
        if count == 0 {
            return Ok((0, 0));
        }
        let freed = self.call(Call::FreeMany, [store.into().to_register(), page.physical(), count as u64, 0])?;
        Ok((count, freed as usize))
    }

    /// [`Call::FreeGroup`]. How many slots were freed: with [`HANDLES_MAX`] there may be more.
    pub fn free_group(&self, store: impl Into<StoreId>, group: u32) -> Result<usize, Status> {
        self.call(Call::FreeGroup, [store.into().to_register(), group.into(), 0, 0]).map(|freed| freed as usize)
    }

    /// [`Call::OpenQueue`]: a store of `slots` slots in the guest's own memory.
    pub fn open_queue(&self, device: DeviceId, slots: u32) -> Result<(), Status> {
        self.call(Call::OpenQueue, [device.0.into(), slots.into(), 0, 0]).map(drop)
    }

    /// [`Call::SetPvEoi`]: this processor ends interrupts by a [`PvEoi`](crate::PvEoi) from now on, whose physical address this is. It
    /// stays there.
    pub fn set_pv_eoi(&self, physical: u64) -> Result<(), Status> {
        self.call(Call::SetPvEoi, [physical | PV_EOI_ENABLE, 0, 0, 0]).map(drop)
    }

    /// [`Call::SetPvEoi`]: this processor ends its interrupts by EOI again, and the [`PvEoi`](crate::PvEoi) that it had named is free.
    pub fn clear_pv_eoi(&self) -> Result<(), Status> {
        self.call(Call::SetPvEoi, [0; 4]).map(drop)
    }

    /// [`Call::SetAux`].
    pub fn set_pasid(&self, store: impl Into<StoreId>, handle: SlotHandle, pasid: Option<Pasid>) -> Result<(), Status> {
        let pasid = Pasid::to_register(pasid);
        self.call(Call::SetAux, [store.into().to_register(), handle.bits().into(), pasid.into(), 0]).map(drop)
    }

    /// [`Call::QuerySlot`].
    pub fn query_slot(
        &self,
        store: impl Into<StoreId>,
        handle: SlotHandle,
        page: &mut BatchPage,
    ) -> Result<SlotInfo, Status> {
        page.put_bytes(&SlotInfo::request());
        self.call(Call::QuerySlot, [store.into().to_register(), handle.bits().into(), page.physical(), 0])?;
        SlotInfo::from_bytes(&page.get_bytes())
    }

    /// [`Call::ReadFaults`]: the oldest faults of the guest's slots go into `records`, and are gone. How many there were.
    pub fn read_faults(&self, records: &mut [Option<FaultRecord>], page: &mut BatchPage) -> Result<usize, Status> {
        let most = records.len().min(FAULTS_MAX as usize);
        let count = self.call(Call::ReadFaults, [page.physical(), most as u64, 0, 0])? as usize;
        records.fill(None);
        for (n, place) in records.iter_mut().take(count).enumerate() {
            let mut bytes = [0; FaultRecord::SIZE];
            bytes[..16].copy_from_slice(&page.get(2 * n));
            bytes[16..].copy_from_slice(&page.get(2 * n + 1));
            *place = FaultRecord::from_bytes(&bytes).ok();
        }
        Ok(count)
    }

    /// [`Call::Free`].
    pub fn free(&self, store: impl Into<StoreId>, handle: SlotHandle) -> Result<(), Status> {
        self.on_slot(Call::Free, store, handle)
    }

    /// [`Call::Map`], for as many of the items as one batch takes. Returns how many were tried; their replies are in `page`.
    pub fn map(
        &self,
        store: impl Into<StoreId>,
        items: &mut dyn Iterator<Item = MapRequest>,
        page: &mut BatchPage,
    ) -> Result<usize, Status> {
        let room = self.interface.batch().min(BatchPage::ITEMS);
        let mut count = 0;
        for item in items.take(room) {
            page.put(count, &item.to_bytes());
            count += 1;
        }
        if count > 0 {
            self.call(Call::Map, [store.into().to_register(), page.physical(), count as u64, ItemLayout::V1.0])?;
        }
        Ok(count)
    }

    /// [`Call::Unmap`].
    pub fn unmap(&self, store: impl Into<StoreId>, handle: SlotHandle) -> Result<(), Status> {
        self.on_slot(Call::Unmap, store, handle)
    }

    /// [`Call::Mask`].
    pub fn mask(&self, store: impl Into<StoreId>, handle: SlotHandle) -> Result<(), Status> {
        self.on_slot(Call::Mask, store, handle)
    }

    /// [`Call::Unmask`].
    pub fn unmask(&self, store: impl Into<StoreId>, handle: SlotHandle) -> Result<(), Status> {
        self.on_slot(Call::Unmask, store, handle)
    }

    /// [`Call::SetAffinity`].
    pub fn set_affinity(&self, store: impl Into<StoreId>, handle: SlotHandle, target: Target) -> Result<(), Status> {
        self.call(Call::SetAffinity, [store.into().to_register(), handle.bits().into(), target.to_register(), 0])
            .map(drop)
    }
}

/// A page of memory that guest and hypervisor share for the time of a call.
#[derive(Debug)]
pub struct BatchPage<'a> {
    items: NonNull<[u8; 16]>,
    physical: u64,
    lifetime: PhantomData<&'a mut [u8]>,
}

// SAFETY: the page is owned for its lifetime (`new`).
unsafe impl Send for BatchPage<'_> {}

impl BatchPage<'_> {
    /// Bytes of the page.
    pub const SIZE: usize = 4096;
    /// Items that it holds.
    pub const ITEMS: usize = Self::SIZE / MapRequest::SIZE;

    /// The page at `virtual_address`, which lies at guest-physical address `physical`. [`Status::BadAddress`] when that is
    /// not the start of a page.
    ///
    /// # Safety
    /// The page is ordinary memory, mapped writable at `virtual_address` for the page's lifetime, `physical` is its address,
    /// and nobody else uses it.
    pub unsafe fn new(virtual_address: NonNull<[u8; 4096]>, physical: u64) -> Result<Self, Status> {
        if !physical.is_multiple_of(Self::SIZE as u64) {
            return Err(Status::BadAddress);
        }
        Ok(Self { items: virtual_address.cast(), physical, lifetime: PhantomData })
    }

    /// Its guest-physical address.
    pub const fn physical(&self) -> u64 {
        self.physical
    }

    /// The reply to item `n`.
    pub(crate) fn reply(&self, n: usize) -> MapReply {
        MapReply::from_bytes(&self.get(n))
    }

    fn item(&self, n: usize) -> NonNull<[u8; 16]> {
        assert!(n < Self::ITEMS, "item {n} is beyond the page");
        // SAFETY: the item lies in the page (checked above).
        unsafe { self.items.add(n) }
    }

    fn put(&mut self, n: usize, bytes: &[u8; 16]) {
        // SAFETY: `item` lies in the page, which is ours. Volatile, since the hypervisor reads it behind the compiler's back.
        unsafe { self.item(n).write_volatile(*bytes) }
    }

    fn get(&self, n: usize) -> [u8; 16] {
        // SAFETY: as in `put`.
        unsafe { self.item(n).read_volatile() }
    }

    /// Dword `n`.
    fn word(&self, n: usize) -> u32 {
        let item = self.get(n / 4);
        let at = n % 4 * 4;
        u32::from_le_bytes([item[at], item[at + 1], item[at + 2], item[at + 3]])
    }

    fn put_word(&mut self, n: usize, word: u32) {
        let mut item = self.get(n / 4);
        item[n % 4 * 4..][..4].copy_from_slice(&word.to_le_bytes());
        self.put(n / 4, &item);
    }

    pub(crate) fn put_bytes<const N: usize>(&mut self, bytes: &[u8; N]) {
        let (items, _) = bytes.as_chunks();
        for (n, item) in items.iter().enumerate() {
            self.put(n, item);
        }
    }

    pub(crate) fn get_bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        let (items, _) = bytes.as_chunks_mut();
        for (n, item) in items.iter_mut().enumerate() {
            *item = self.get(n);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{FakeHypervisor, Page, interface};

    #[test]
    fn a_query_goes_through_the_page() {
        let hypervisor = FakeHypervisor::new(16);
        let calls = Hypercalls::new(&hypervisor, interface());
        let mut page = Page::new();
        let info = calls.query(DeviceId(0x10), &mut page.batch_page()).unwrap();
        assert_eq!((info.slots, info.free, info.device), (16, 16, DeviceId(0x10)));
    }

    #[test]
    fn a_foreign_hypervisor_is_an_unknown_call() {
        struct Kvm;
        impl Transport for Kvm {
            fn call(&self, _: u64, _: [u64; 4]) -> u64 {
                -1000i64 as u64
            }
        }
        assert_eq!(Hypercalls::new(Kvm, interface()).nop(), Err(Status::UnknownCall));
    }

    #[test]
    fn devices_are_listed_until_there_are_no_more() {
        let hypervisor = FakeHypervisor::new(16);
        let calls = Hypercalls::new(&hypervisor, interface());
        assert_eq!(calls.nop(), Ok(()));
        assert_eq!(calls.device(0), Ok(DeviceId(0x10)));
        assert_eq!(calls.device(1), Err(Status::NoSuchDevice));
    }

    #[test]
    fn a_page_that_is_not_aligned_is_refused() {
        let mut page = Page::new();
        // SAFETY: the page is ours; its address is wrong on purpose and never used.
        let refused = unsafe { BatchPage::new(page.pointer(), 0x1008) };
        assert_eq!(refused.err(), Some(Status::BadAddress));
    }
}
