//! What the bare-metal test wants to know, from the machine itself: CPUID, SMBIOS, and signs of an emulated IOMMU.

use guest_shim::detect::{Facts, ViommuHints, cpuid_hypervisor_bit, smbios};
use guest_shim::discover::NativeCpuid;

use super::device::DeviceMemory;
use super::physical::PhysicalMemory;
use super::take_once::TakeOnce;
use super::{Guest, config};
use crate::acpi;
use crate::dsa::Registers;
use crate::memory::Memory;
use crate::pci::{self, ConfigSpace};

/// Bytes of SMBIOS structures that are looked at.
const SMBIOS_SIZE: usize = 4096;
/// DMAR: where remapping structures begin; type 0 is a unit, with its registers' address at 8 (VT-d 8.1, 8.3).
const DMAR_STRUCTURES: u64 = 48;
const DMAR_UNIT: u16 = 0;
const DMAR_UNIT_BASE: u64 = 8;
/// The capability register of a unit (VT-d 11.4.2).
const VTD_CAP: u64 = 8;

static AREA: TakeOnce<[u8; smbios::AREA_SIZE]> = TakeOnce::new([0; smbios::AREA_SIZE]);
static TABLE: TakeOnce<[u8; SMBIOS_SIZE]> = TakeOnce::new([0; SMBIOS_SIZE]);

/// All there is to know. To be called once.
pub fn gather(guest: &Guest) -> Facts<'static> {
    let table = smbios_table().unwrap_or_default();
    Facts {
        cpuid_hypervisor: cpuid_hypervisor_bit(&NativeCpuid),
        smbios_bios: smbios::bios(table),
        system_vendor: smbios::system_vendor(table),
        system_product: smbios::system_product(table),
        viommu: viommu(guest),
    }
}

fn smbios_table() -> Option<&'static [u8]> {
    let area = AREA.take();
    PhysicalMemory.read(smbios::AREA, area)?;
    let found = smbios::entry_point(area)?;
    let table = TABLE.take().get_mut(..SMBIOS_SIZE.min(found.length as usize))?;
    PhysicalMemory.read(found.address, table)?;
    Some(table)
}

fn viommu(guest: &Guest) -> ViommuHints {
    let mut hints = ViommuHints::default();
    for function in pci::on_bus_0() {
        let id = config::Ports.read(function, 0);
        hints.see_pci(id as u16, (id >> 16) as u16);
    }
    let _ = vtd(guest, &mut hints);
    hints
}

/// Looks at every VT-d unit that DMAR names.
fn vtd(guest: &Guest, hints: &mut ViommuHints) -> Option<()> {
    let memory = PhysicalMemory;
    let dmar = acpi::table(&memory, guest.boot.rsdp()?, *b"DMAR")?;
    let end = dmar + u64::from(memory.u32(dmar + 4)?);
    let mut at = dmar + DMAR_STRUCTURES;
    while at < end {
        let [kind, length] = [0, 2].map(|offset| memory.bytes(at + offset).map(u16::from_le_bytes));
        if kind? == DMAR_UNIT {
            // SAFETY: DMAR says that the unit's registers are there, and nothing is written.
            let unit = unsafe { DeviceMemory::new(memory.u64(at + DMAR_UNIT_BASE)?, 4096) }?;
            hints.see_vtd(unit.read_u64(VTD_CAP));
        }
        // A structure without a length would be looked at for ever.
        at += u64::from(length?).max(4);
    }
    Some(())
}
