//! The tables of a guest's firmware (ACPI 6.5): hardware-reduced, no interrupt controller but local x2APICs, one PCI segment.

mod dsdt;

use alloc::vec::Vec;

use acpi_tables::{
    Aml, AmlSink,
    fadt::{FADTBuilder, Flags},
    gas::{AccessSize, AddressSpace as GasSpace, GAS},
    mcfg::MCFG,
    rsdp::Rsdp,
    sdt::Sdt,
    xsdt::XSDT,
};
use hcall_abi::acpi as abi;

use super::memory_map as map;
use crate::{
    addr::Gpa,
    vdev::{ports, rtc},
};

const OEM: [u8; 6] = *b"IMSVIS";
const OEM_TABLE: [u8; 8] = *b"IMSVISOR";
const OEM_REVISION: u32 = 1;
const HEADER: u32 = 36;
const RSDP_ROOM: u64 = 64;
const TABLE_ALIGNMENT: usize = 64;

/// Most vCPUs that the room for the tables has entries for.
pub const VCPUS_MAX: u32 = 1024;

/// The platform that the tables describe.
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
/// What is written to the reset register: a full reset.
const RESET_VALUE: u8 = 6;

/// The tables as one piece to be put at [`map::ACPI`], the RSDP at its start; with no more than [`VCPUS_MAX`] vCPUs it ends
/// before [`map::ACPI_END`].
pub fn tables(platform: Platform) -> Vec<u8> {
    let mut area = Area(Vec::new());
    area.0.resize(RSDP_ROOM as usize, 0);
    let dsdt = area.add(&dsdt::dsdt());
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
    fadt.century = rtc::register::CENTURY;
    fadt.reset_reg = port(ports::RESET_CONTROL);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = port(ports::SLEEP_CONTROL);
    fadt.sleep_status_reg = port(ports::SLEEP_STATUS);
    bytes(&fadt.finalize())
}

/// A register of a byte at a port.
fn port(port: u16) -> GAS {
    GAS::new(GasSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into())
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

#[cfg(test)]
#[path = "acpi_tests.rs"]
mod tests;
