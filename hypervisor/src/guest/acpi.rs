//! The tables of a guest's firmware (ACPI 6.5): hardware-reduced, no interrupt controller but local x2APICs, one PCI segment.

use alloc::vec::Vec;

use acpi_tables::{
    Aml, AmlSink,
    aml::{
        AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Memory32Fixed, Name, Path, ResourceTemplate, Scope,
        ZERO,
    },
    fadt::{FADTBuilder, Flags},
    gas::{AccessSize, AddressSpace as GasSpace, GAS},
    mcfg::MCFG,
    rsdp::Rsdp,
    sdt::Sdt,
    xsdt::XSDT,
};
use hcall_abi::acpi as abi;

use super::memory_map as map;
use crate::addr::Gpa;

const OEM: [u8; 6] = *b"IMSVIS";
const OEM_TABLE: [u8; 8] = *b"IMSVISOR";
const OEM_REVISION: u32 = 1;
const HEADER: u32 = 36;
const RSDP_ROOM: u64 = 64;
const TABLE_ALIGNMENT: usize = 64;

/// Most vCPUs that the room for the tables has entries for.
pub const VCPUS_MAX: u32 = 1024;

/// What the tables tell of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Platform {
    /// vCPUs, with APIC IDs from 0 on.
    pub vcpus: u32,
    /// Interrupt message stores must not be used without the hypercall domain: a table says so.
    pub ims_forbidden: bool,
}

/// MADT local x2APIC entry.
const LOCAL_X2APIC: [u8; 2] = [9, 16];
const ENABLED: u32 = 1;

/// IA-PC boot flags: no VGA, no ASPM control; neither legacy devices nor an 8042. The CMOS clock is there.
const BOOT_ARCH: u16 = 1 << 2 | 1 << 4;
/// The byte of the clock's memory with the year's first two digits.
const CENTURY: u8 = 0x32;
/// The reset register: bits 2 and 1 of port 0xCF9.
const RESET_PORT: u64 = 0xcf9;
const RESET_VALUE: u8 = 6;

/// The tables as one piece to be put at [`map::ACPI`], the RSDP at its start; with no more than [`VCPUS_MAX`] vCPUs it ends
/// before [`map::ACPI_END`].
pub fn tables(platform: Platform) -> Vec<u8> {
    let mut area = Area(Vec::new());
    area.0.resize(RSDP_ROOM as usize, 0);
    let dsdt = area.add(&bytes(&Dsdt));
    let fadt = area.add(&fadt(dsdt));
    let madt = area.add(&madt(platform.vcpus.min(VCPUS_MAX)));
    let mcfg = area.add(&mcfg());
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    let imsp = platform.ims_forbidden.then(|| area.add(&imsp()));
    [fadt, madt, mcfg].into_iter().chain(imsp).for_each(|table| xsdt.add_entry(table.as_u64()));
    let xsdt = area.add(&bytes(&xsdt));
    let rsdp = bytes(&Rsdp::new(OEM, xsdt.as_u64()));
    area.0.iter_mut().zip(rsdp).for_each(|(place, byte)| *place = byte);
    area.0
}

struct Area(Vec<u8>);

impl Area {
    fn add(&mut self, table: &[u8]) -> Gpa {
        let start = self.0.len().next_multiple_of(TABLE_ALIGNMENT);
        self.0.resize(start, 0);
        self.0.extend_from_slice(table);
        Gpa::new(map::ACPI.as_u64() + start as u64)
    }
}

struct Sink(Vec<u8>);

impl AmlSink for Sink {
    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut sink = Sink(Vec::new());
    table.to_aml_bytes(&mut sink);
    sink.0
}

fn fadt(dsdt: Gpa) -> Vec<u8> {
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt.as_u64())
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::Wbinvd)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    fadt.century = CENTURY;
    fadt.reset_reg = GAS::new(GasSpace::SystemIo, 8, 0, AccessSize::ByteAccess, RESET_PORT);
    fadt.reset_value = RESET_VALUE;
    bytes(&fadt.finalize())
}

fn madt(vcpus: u32) -> Vec<u8> {
    let mut madt = Sdt::new(*b"APIC", HEADER, 5, OEM, OEM_TABLE, OEM_REVISION);
    // Local APIC address; flags: no 8259.
    let mut body: Vec<u8> = [0xfee0_0000_u32, 0].into_iter().flat_map(u32::to_le_bytes).collect();
    for id in 0..vcpus {
        body.extend_from_slice(&LOCAL_X2APIC);
        body.extend_from_slice(&[0, 0]);
        // APIC ID, flags, processor UID.
        body.extend([id, ENABLED, id].into_iter().flat_map(u32::to_le_bytes));
    }
    madt.append_slice(&body);
    madt.as_slice().to_vec()
}

fn mcfg() -> Vec<u8> {
    let mut mcfg = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
    mcfg.add_ecam(map::ECAM.as_u64(), 0, 0, 0);
    bytes(&mcfg)
}

/// The platform's word on interrupt message stores.
fn imsp() -> Vec<u8> {
    let mut imsp = Sdt::new(abi::SIGNATURE, abi::LENGTH as u32, abi::REVISION, OEM, OEM_TABLE, OEM_REVISION);
    imsp.write_u32(abi::FLAGS, abi::FLAG_IMS_FORBIDDEN);
    imsp.as_slice().to_vec()
}

/// `\_SB.PCI0`: the host bridge with its windows; `\_SB.MBRD`: reserves the ECAM window.
struct Dsdt;

impl Aml for Dsdt {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let mut dsdt = Sdt::new(*b"DSDT", HEADER, 2, OEM, OEM_TABLE, OEM_REVISION);
        dsdt.append_slice(&bytes(&Scope::new("_SB_".into(), alloc::vec![&HostBridge, &Motherboard])));
        sink.vec(dsdt.as_slice());
    }
}

struct HostBridge;

impl Aml for HostBridge {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let window = |start: u64, size: u64| (start, start + size - 1);
        let (start32, end32) = window(map::MMIO32.as_u64(), map::MMIO32_SIZE);
        let (start64, end64) = window(map::MMIO64.as_u64(), map::MMIO64_SIZE);
        let no_cache = || AddressSpaceCacheable::NotCacheable;
        let buses = AddressSpace::<u16>::new_bus_number(0, 0);
        let ports = IO::new(0xcf8, 0xcf8, 1, 8);
        let low = AddressSpace::<u32>::new_memory(no_cache(), true, start32 as u32, end32 as u32, None);
        let high = AddressSpace::<u64>::new_memory(no_cache(), true, start64, end64, None);
        let resources = ResourceTemplate::new(alloc::vec![&buses, &ports, &low, &high]);
        Device::new(
            "PCI0".into(),
            alloc::vec![
                &name("_HID", &EISAName::new("PNP0A08")),
                &name("_CID", &EISAName::new("PNP0A03")),
                &name("_SEG", &ZERO),
                &name("_BBN", &ZERO),
                &name("_UID", &ZERO),
                &name("_CRS", &resources),
            ],
        )
        .to_aml_bytes(sink);
    }
}

struct Motherboard;

impl Aml for Motherboard {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let ecam = Memory32Fixed::new(true, map::ECAM.as_u64() as u32, map::ECAM_SIZE as u32);
        let resources = ResourceTemplate::new(alloc::vec![&ecam]);
        let id = EISAName::new("PNP0C02");
        Device::new("MBRD".into(), alloc::vec![&name("_HID", &id), &name("_CRS", &resources)]).to_aml_bytes(sink);
    }
}

fn name(name: &str, value: &dyn Aml) -> Name {
    Name::new(Path::new(name), value)
}

#[cfg(test)]
#[path = "acpi_tests.rs"]
mod tests;
