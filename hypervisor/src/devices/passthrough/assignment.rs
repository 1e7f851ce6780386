//! Giving a function away: which functions a guest can get, and how one gets into the guest.

use alloc::vec::Vec;

use hcall_abi::{DeviceId, Pasid};

use crate::{
    devices::{
        assign_error::AssignError,
        bars::{look, map_bars},
        dsa,
        guest_bars::{BarLayout, GuestSpace, Stores, describe},
        reset::ResetMethod,
    },
    ims::{DeviceSpec, GuestId},
    irq::{dma::Requests, ports::MachinePorts},
    machine::discovery::Machine,
    memory::{FrameSource, Ram},
    pci::{self, Function},
    vdev::pci::VirtualFunction,
};

use super::{Assigned, GuestSettings, State};

/// A function that is ready to be given away, with all that the guest will see of it.
pub struct Prepared {
    /// What the service is told.
    pub spec: DeviceSpec,
    /// The function.
    pub assigned: Assigned,
}

/// Takes the memory that assigning functions needs for good: tables that map their registers, and the unit's tables for their buses. What
/// guests take after that comes back from each of them.
pub fn make_room(machine: &Machine, ports: &MachinePorts) {
    for function in machine.functions().iter().filter(|function| can_be_given(function)) {
        let mapped = map_bars(function);
        let room = mapped.and_then(|()| ports.prepare(function.bdf).map_err(|_| AssignError::OutOfMemory));
        // The guest that asks for it hears of it again.
        room.unwrap_or_else(|why| log::warn!("{}: {why}", function.bdf));
    }
}

/// Whether a guest could get the function, by what the function has.
fn can_be_given(function: &Function) -> bool {
    dsa::is_one(function) || function.msix.is_some() && function.resets()
}

/// How many slots a function has in its stores, if a guest can get it; those of a store that the hypervisor does not know do not count.
pub fn slots(machine: &Machine, function: &Function) -> u32 {
    if !can_be_given(function) {
        return 0;
    }
    let store = dsa::is_one(function).then(|| look(machine, function, dsa::message_store).flatten()).flatten();
    store.map_or(0, |store| store.slots) + function.msix.map_or(0, |msix| msix.entries.into())
}

/// Gets a function ready: resets it, puts it on the guest's bus, and maps it into the guest. If the guest owns `pasids`, the function may
/// work with PASIDs.
pub fn prepare(
    machine: &'static Machine,
    ports: &MachinePorts,
    function: &Function,
    pasids: Option<(Pasid, Pasid)>,
    space: &mut GuestSpace<'_, impl FrameSource>,
) -> Result<Prepared, AssignError> {
    map_bars(function)?;
    let reset_method = ResetMethod::of(function)?;
    if !reset_method.prepare(machine, function) {
        return Err(AssignError::Hardware);
    }
    let store = reset_method.registers().and_then(dsa::message_store);
    if store.is_none() && function.msix.is_none() {
        return Err(AssignError::NoMessages);
    }
    if pasids.is_some() {
        let capability = function.pasid.ok_or(AssignError::NoPasid)?;
        pci::function::set_pasid_enable(machine.config(), function.bdf, capability, true);
    }
    let descr = describe(machine.config(), function, space.bars)?;
    let place = VirtualFunction::new(&descr).map_err(|_| AssignError::Table)?;
    let id = DeviceId(space.bus.add(place).map_err(|_| AssignError::OutOfMemory)?.requester_id());
    let mut layout = BarLayout { function, descr: &descr, id, space, shared: Vec::new() };
    let slow_store = |registers| ports.slow_store(function.bdf, registers);
    let Stores { ims, msix } = layout.show_all(reset_method.registers(), slow_store)?;
    let spec = DeviceSpec { id, requester: function.bdf, msix, ims, pasids, shares_requester: false };
    Ok(Prepared {
        spec,
        assigned: Assigned {
            id,
            machine,
            function: function.clone(),
            reset_method,
            pasids: pasids.is_some(),
            state: State::Ready,
            settings: GuestSettings::default(),
            moves_told: false,
            reset_told: false,
        },
    })
}

/// Has requests of a function lead to a guest's memory, at the guest's own addresses.
pub fn attach(ports: &MachinePorts, guest: GuestId, requests: Requests, ram: &Ram) -> Result<(), AssignError> {
    ports.attach(guest, requests, ram).ok_or(AssignError::NoRemapping)?.map_err(AssignError::from)
}
