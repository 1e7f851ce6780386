//! The domain by hypercalls.

use hcall_abi::call::HANDLES_MAX;
use hcall_abi::cpuid::Features;
use hcall_abi::{DeviceId, MapRequest, Pasid, SlotHandle, SlotInfo, Status, Target};

use super::{Interrupt, Report};
use crate::calls::{BatchPage, Hypercalls};
use crate::transport::Transport;

/// A device's interrupts, by hypercall. The hypervisor keeps all of the state.
#[derive(Debug)]
pub struct HypercallDomain<'a, T> {
    calls: Hypercalls<T>,
    device: DeviceId,
    page: BatchPage<'a>,
}

impl<'a, T: Transport> HypercallDomain<'a, T> {
    pub(super) const fn new(calls: Hypercalls<T>, device: DeviceId, page: BatchPage<'a>) -> Self {
        Self { calls, device, page }
    }

    pub(super) fn alloc(&mut self, group: u32) -> Result<SlotHandle, Status> {
        self.calls.alloc(self.device, group)
    }

    /// Takes from `min` slots to as many as `out` has places; without that call, one by one.
    pub(super) fn alloc_many(
        &mut self,
        group: u32,
        min: usize,
        out: &mut dyn ExactSizeIterator<Item = &mut Option<Interrupt>>,
    ) -> Result<(), Status> {
        let Self { calls, device, page } = self;
        if !calls.interface().features.contains(Features::FEWER_GRANT) {
            return super::alloc_each(min, out, &mut || calls.alloc(*device, group));
        }
        let mut missing = min;
        while out.len() > 0 {
            let max = out.len().min(HANDLES_MAX as usize) as u32;
            let least = (missing as u32).clamp(1, max);
            let count = calls.alloc_many(*device, [least, max], group, page, &mut |handle| {
                if let Some(place) = out.next() {
                    *place = Some(Interrupt(handle));
                }
            });
            match count {
                Ok(count) if count < max as usize => break,
                Ok(count) => missing = missing.saturating_sub(count),
                // All that had to be are there.
                Err(Status::NoFreeSlot) if missing == 0 => break,
                Err(status) => return Err(status),
            }
        }
        Ok(())
    }

    pub(super) fn free_all(&mut self, handles: &mut dyn Iterator<Item = SlotHandle>) -> usize {
        let Self { calls, device, page } = self;
        if !calls.interface().features.contains(Features::FEWER_GRANT) {
            return handles.filter(|handle| calls.free(*device, *handle).is_ok()).count();
        }
        let mut all = 0;
        while let Ok((tried, freed)) = calls.free_many(*device, handles, page)
            && tried > 0
        {
            all += freed;
        }
        all
    }

    pub(super) fn free_group(&mut self, group: u32) -> Result<usize, Status> {
        let mut all = 0;
        loop {
            let freed = self.calls.free_group(self.device, group)?;
            all += freed;
            if freed < HANDLES_MAX as usize {
                return Ok(all);
            }
        }
    }

    pub(super) fn set_pasid(&mut self, handle: SlotHandle, pasid: Option<Pasid>) -> Result<(), Status> {
        self.calls.set_pasid(self.device, handle, pasid)
    }

    pub(super) fn query(&mut self, handle: SlotHandle) -> Result<SlotInfo, Status> {
        self.calls.query_slot(self.device, handle, &mut self.page)
    }

    pub(super) fn free(&mut self, handle: SlotHandle) -> Result<(), Status> {
        self.calls.free(self.device, handle)
    }

    pub(super) fn map_each(
        &mut self,
        items: &mut dyn Iterator<Item = MapRequest>,
        report: Report,
    ) -> Result<(), Status> {
        let mut done = 0;
        loop {
            let count = self.calls.map(self.device, items, &mut self.page)?;
            if count == 0 {
                return Ok(());
            }
            for n in 0..count {
                report(done + n, self.page.reply(n).0.map(drop));
            }
            done += count;
        }
    }

    pub(super) fn unmap(&mut self, handle: SlotHandle) -> Result<(), Status> {
        self.calls.unmap(self.device, handle)
    }

    pub(super) fn mask(&mut self, handle: SlotHandle) -> Result<(), Status> {
        self.calls.mask(self.device, handle)
    }

    pub(super) fn unmask(&mut self, handle: SlotHandle) -> Result<(), Status> {
        self.calls.unmask(self.device, handle)
    }

    pub(super) fn set_affinity(&mut self, handle: SlotHandle, target: Target) -> Result<(), Status> {
        self.calls.set_affinity(self.device, handle, target)
    }
}
