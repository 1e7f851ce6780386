//! The interrupt of a parent function: entry 0 of the function's MSI-X table, which goes through a remapping entry as guests' interrupts
//! do.

use crate::{
    apic,
    devices::bars::locate,
    ims::{Field, HostRoute, OwnEntry, Remap},
    irq::{host_vectors::Vectors, ports::MachineService},
    machine::discovery::Machine,
    memory::{Mmio, Registers},
    pci::{Function, function},
};

/// Bytes of a table entry.
const ENTRY_BYTES: usize = 16;

/// Sends the parent's interrupt to the first processor, as [`apic::DEVICE_VECTOR`], by the returned entry. Returns `None` if the function
/// has no MSI-X table, or no entry is free. The function's BARs are mapped.
pub fn listen(machine: &Machine, service: &MachineService, function: &Function) -> Option<OwnEntry> {
    let msix = function.msix?;
    let table = locate(function, msix.table, ENTRY_BYTES as u64).ok()?;
    // SAFETY: the BAR is mapped, uncached, and the entry lies in it; what the function sends is the remapping unit's to judge.
    let table = unsafe { Mmio::new(table, ENTRY_BYTES) }?;
    let destination = service.ports().vectors().first().map(Vectors::destination)?;
    let route = HostRoute::Remapped { vector: apic::DEVICE_VECTOR, destination };
    let own = service.bind_own(function.bdf, route).ok()?;
    let message = service.ports().message(own.index());
    let dwords = [message.address as u32, (message.address >> 32) as u32, message.data, 0];
    for (field, dword) in Field::ALL.into_iter().zip(dwords) {
        table.write32(field.offset(0) as usize, dword);
    }
    function::set_msix(machine.config(), function, true, false);
    Some(own)
}
