//! Making a guest's function.

use alloc::vec::Vec;

use hcall_abi::{DeviceId, Pasid};

use crate::{
    addr::Hpa,
    devices::{
        allocation::{QueueAllocation, VirtualAllocation},
        assign_error::AssignError,
        bars, dsa,
        guest_bars::GuestSpace,
        virtual_bars,
    },
    guest::memory_map::BarAllocator,
    ims::{Backing, DeviceSpec, GuestId, StoreLocation, StoreSpec},
    memory::FrameSource,
    pci::{Function, TableLocation},
    vdev::{
        pci::{BarDescr, FunctionDescr, MsixDescr, VirtualFunction},
        vdsa::{self, Shape, VirtualDsa},
    },
};

use super::{
    Parent,
    function::{SIGNALLED, Virtual},
};

impl Parent {
    /// Makes a function and puts it into the guest. What the service is to be told.
    pub fn add(
        &self,
        guest: GuestId,
        allocation: &VirtualAllocation,
        space: &mut GuestSpace<'_, impl FrameSource>,
    ) -> Result<DeviceSpec, AssignError> {
        let queues = dsa::queues(&self.registers).ok_or(AssignError::NoRoom)?;
        let store = dsa::message_store(&self.registers).ok_or(AssignError::NoStore)?;
        let (gencap, opcap) = dsa::capabilities(&self.registers);
        let VirtualAllocation { part: QueueAllocation { queue, first_slot }, vectors, .. } = *allocation;
        let registers = VirtualDsa::new(Shape { gencap, opcap, queue_size: queues.size, vectors });
        let pasid = pasid_of(queue).ok_or(AssignError::NoRoom)?;
        let descr = self.describe(vectors, space.bars)?;
        let place = VirtualFunction::new(&descr).map_err(|_| AssignError::Table)?;
        let id = DeviceId(space.bus.add(place).map_err(|_| AssignError::OutOfMemory)?.requester_id());
        let [Some(bar0), _, Some(bar2), ..] = descr.bars else { return Err(AssignError::Bar(0)) };
        let slots = u64::from(vectors) * 16;
        let offset = store.offset.checked_add(u32::from(first_slot) * 16).ok_or(AssignError::Table)?;
        let base = bars::locate(&self.function, TableLocation { bar: dsa::REGISTERS_BAR, offset }, slots)?;
        let portals = dsa::portals_of_queue(&self.function, queue).ok_or(AssignError::Table)?;
        let page = Hpa::new(registers.page().as_ptr() as u64);
        let shadow = virtual_bars::map(space, id, (bar0.gpa, bar2.gpa), (page, slots, portals))?;
        self.state.lock().functions.push(Virtual {
            name: (guest, id),
            domain: None,
            queue,
            first_slot,
            vectors,
            pasid,
            registers,
            bus_master: false,
            msix_enabled: false,
            function_masked: false,
            told: false,
        });
        let backing = Some(Backing { pasid, emulated: SIGNALLED + 1 });
        let msix = StoreSpec {
            base,
            shadow,
            slots: vectors.into(),
            bar: 0,
            offset: vdsa::TABLE,
            backing,
            location: StoreLocation::DeviceMemory,
        };
        let requester = self.function.bdf;
        Ok(DeviceSpec { id, requester, msix: Some(msix), ims: None, pasids: None, shares_requester: true })
    }

    /// What the guest sees in configuration space.
    fn describe(&self, vectors: u16, bars: &mut BarAllocator) -> Result<FunctionDescr, AssignError> {
        let Function { vendor, device, revision, class, subsystem, .. } = self.function;
        let mut place = |size| {
            let gpa = bars.place(size, false).ok_or(AssignError::OutOfMemory)?;
            Ok::<_, AssignError>(Some(BarDescr { size, gpa, is_64bit: false, prefetchable: false }))
        };
        let bars = [place(vdsa::BAR0_SIZE)?, None, place(vdsa::BAR2_SIZE)?, None, None, None];
        let msix = Some(MsixDescr { size: vectors, table: (0, vdsa::TABLE), pba: (0, vdsa::PENDING_BITS) });
        let (subsystem_vendor, subsystem) = subsystem;
        let dvsec = Vec::new();
        Ok(FunctionDescr { vendor, device, revision, class, subsystem_vendor, subsystem, bars, msix, dvsec })
    }
}

/// The PASID of a work queue's work: 0 is that of work without one.
fn pasid_of(queue: u8) -> Option<Pasid> {
    Pasid::new(u32::from(queue) + 1)
}
