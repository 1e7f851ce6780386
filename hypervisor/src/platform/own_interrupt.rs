//! The interrupt of a function that the hypervisor keeps for itself: entry 0 of the function's MSI-X table, by an entry of the remapping
//! table as guests' interrupts go.

use core::iter::once;

use super::{
    assign::{memory_bar, set_msix},
    machine::Machine,
    ports::MachinePorts,
};
use crate::{
    apic, cpu,
    ims::{EntryIndex, Field, HostRoute, Remap},
    memory::{Mmio, Registers},
    pci::Function,
};

/// Bytes of a table entry.
const ENTRY_BYTES: usize = 16;

/// An interrupt that comes to the hypervisor, as [`apic::DEVICE_VECTOR`].
pub struct OwnInterrupt {
    entry: EntryIndex,
}

impl OwnInterrupt {
    /// Has it come to this processor. `None` when the function has no MSI-X table, or no entry is to be had. The function's BARs are
    /// mapped.
    pub fn new(machine: &Machine, ports: &MachinePorts, function: &Function) -> Option<Self> {
        let msix = function.msix?;
        let (base, size) = memory_bar(function, msix.table.bar.into()).ok()?;
        let inside = u64::from(msix.table.offset) + ENTRY_BYTES as u64 <= size;
        let table = base.checked_add(msix.table.offset.into()).filter(|_| inside)?;
        // SAFETY: the BAR is mapped, uncached, and the entry lies in it; what the function sends is the remapping unit's to judge.
        let table = unsafe { Mmio::new(table, ENTRY_BYTES) }?;
        let destination = cpu::this::this().apic_id;
        let route = HostRoute::Remapped { vector: apic::DEVICE_VECTOR, destination };
        let entry = ports.bind(ports.unit_of(function.bdf).ok()?, function.bdf, route).ok()?;
        let own = Self { entry };
        if ports.flush(once(entry)).is_err() {
            own.give_back(ports);
            return None;
        }
        let message = ports.message(entry);
        let dwords = [message.address as u32, (message.address >> 32) as u32, message.data, 0];
        for (field, dword) in Field::ALL.into_iter().zip(dwords) {
            table.write32(field.offset(0) as usize, dword);
        }
        set_msix(machine.config(), function, true, false);
        Some(own)
    }

    /// Gives its entry back. The function sends nothing any more.
    pub fn give_back(self, ports: &MachinePorts) {
        ports.clear(self.entry);
        // An entry that the cache may still hold is not used for anything else.
        if ports.flush(once(self.entry)).is_ok() {
            ports.release(self.entry);
        }
    }
}
