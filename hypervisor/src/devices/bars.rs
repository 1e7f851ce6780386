//! A function's memory BARs, mapped in the hypervisor's address space.

use crate::{
    addr::{Hpa, PAGE_SIZE},
    devices::{assign_error::AssignError, dsa},
    machine::{discovery::Machine, memory::map_device},
    memory::Mmio,
    pci::{self, Bar, Function, TableLocation},
};

/// Maps all memory BARs in the hypervisor, because the hypervisor may emulate guests' accesses anywhere in them.
pub fn map_bars(function: &Function) -> Result<(), AssignError> {
    for (index, bar) in function.bars.iter().enumerate() {
        if let Some(Bar::Memory { .. }) = bar {
            let (base, size) = memory_bar(function, index)?;
            map_device(base, size).map_err(|_| AssignError::OutOfMemory)?;
        }
    }
    Ok(())
}

/// A DSA's registers, mapped in the hypervisor with all its memory BARs.
pub fn registers(function: &Function) -> Result<Mmio, AssignError> {
    map_bars(function)?;
    let (base, size) = memory_bar(function, dsa::REGISTERS_BAR.into())?;
    let size = usize::try_from(size).map_err(|_| AssignError::Bar(0))?;
    // SAFETY: the BAR was mapped just now, uncached; the device's registers are no memory, and what its DMA can reach is decided
    // by the remapping unit.
    unsafe { Mmio::new(base, size) }.ok_or(AssignError::Bar(0))
}

/// Calls `look` with a DSA's registers before the function is assigned. The function decodes its memory meanwhile. `None` without
/// registers.
pub fn look<T>(machine: &Machine, function: &Function, look: impl FnOnce(&Mmio) -> T) -> Option<T> {
    let registers = registers(function).ok()?;
    Some(pci::function::while_decoding(machine.config(), function.bdf, || look(&registers)))
}

/// A memory BAR's address and size, if the firmware has placed it and it fills pages.
pub fn memory_bar(function: &Function, index: usize) -> Result<(Hpa, u64), AssignError> {
    let bar = function.bars.get(index).copied().flatten().ok_or(AssignError::Bar(index))?;
    bar.memory().filter(|(base, size)| base.is_aligned(*size) && *size >= PAGE_SIZE).ok_or(AssignError::Bar(index))
}

/// The machine address of `bytes` bytes at an offset in a BAR, if the BAR can be mapped and holds them.
pub fn locate(function: &Function, table: TableLocation, bytes: u64) -> Result<Hpa, AssignError> {
    memory_bar(function, table.bar.into())?;
    function.locate(table, bytes).ok_or(AssignError::Table)
}
