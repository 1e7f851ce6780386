//! The way through the hypervisor.

use hcall_abi::{DeviceId, MapRequest, SlotHandle, Status, Target};

use super::Report;
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
