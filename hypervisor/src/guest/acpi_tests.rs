use super::*;
use ::acpi::madt::{Madt, MadtEntry};
use ::acpi::{AcpiHandler, AcpiTables, PhysicalMapping, fadt::Fadt, mcfg::Mcfg};
use core::ptr::NonNull;
use std::sync::Arc;

/// Guest memory from [`map::ACPI`] on.
#[derive(Clone)]
struct Memory(Arc<Vec<u8>>);

impl Memory {
    fn new(vcpus: u32) -> Self {
        Self::of(Platform { vcpus, ims_forbidden: false })
    }

    fn of(platform: Platform) -> Self {
        let mut bytes = tables(platform);
        bytes.resize((map::ACPI_END.as_u64() - map::ACPI.as_u64()) as usize, 0);
        Self(Arc::new(bytes))
    }

    fn tables(&self) -> AcpiTables<Self> {
        // SAFETY: every mapping is checked against the memory, which lives as long as the handler.
        unsafe { AcpiTables::from_rsdp(self.clone(), map::ACPI.as_u64() as usize) }.unwrap()
    }

    fn bytes(&self, address: usize, len: usize) -> &[u8] {
        let start = address.checked_sub(map::ACPI.as_u64() as usize).expect("below the tables");
        &self.0[start..start + len]
    }
}

impl AcpiHandler for Memory {
    unsafe fn map_physical_region<T>(&self, address: usize, size: usize) -> PhysicalMapping<Self, T> {
        let start = NonNull::from(self.bytes(address, size)).cast();
        // SAFETY: `size` bytes are there, and the memory lives as long as this handler, which the mapping holds.
        unsafe { PhysicalMapping::new(address, start, size, size, self.clone()) }
    }

    fn unmap_physical_region<T>(_: &PhysicalMapping<Self, T>) {}
}

#[test]
fn an_independent_reader_finds_every_table_with_a_right_checksum() {
    let tables = Memory::new(3).tables();
    let found: Vec<_> = tables.headers().map(|header| header.signature.as_str().to_owned()).collect();
    assert_eq!(found, ["FACP", "APIC", "MCFG"]);
    let fadt = tables.find_table::<Fadt>().unwrap();
    fadt.validate().unwrap();
    let flags = fadt.flags;
    assert!(flags.system_is_hw_reduced_acpi() && flags.supports_system_reset_via_fadt());
    assert_eq!(fadt.reset_register().unwrap().address, 0xcf9);
    let boot_flags = fadt.iapc_boot_arch;
    assert!(!boot_flags.use_time_and_alarm_namespace_for_rtc(), "there is a CMOS clock");
    let sleep = [fadt.sleep_control_register(), fadt.sleep_status_register()];
    assert_eq!(sleep.map(|register| register.unwrap().unwrap().address), [0x600, 0x601]);
    assert_eq!(fadt.century, 0x32);
}

#[test]
fn feature_platform_disable_a_table_says_so_and_only_then_it_is_there() {
    for ims_forbidden in [false, true] {
        let memory = Memory::of(Platform { vcpus: 1, ims_forbidden });
        let found = memory.tables().headers().any(|header| header.signature.as_str() == "IMSP");
        assert_eq!(found, ims_forbidden);
        let at = memory.0.windows(4).position(|bytes| bytes == abi::SIGNATURE);
        assert_eq!(at.and_then(|at| abi::flags(&memory.0[at..])), ims_forbidden.then_some(abi::FLAG_IMS_FORBIDDEN));
    }
}

#[test]
fn there_is_one_enabled_x2apic_for_each_vcpu() {
    let tables = Memory::new(3).tables();
    let madt = tables.find_table::<Madt>().unwrap();
    assert!(!madt.get().supports_8259());
    let ids: Vec<u32> = madt
        .get()
        .entries()
        .map(|entry| match entry {
            MadtEntry::LocalX2Apic(apic) => {
                let (flags, id, uid) = (apic.flags, apic.x2apic_id, apic.processor_uid);
                assert_eq!((flags, uid), (1, id));
                id
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(ids, [0, 1, 2]);
}

#[test]
fn configuration_space_of_bus_0_is_named() {
    let tables = Memory::new(1).tables();
    let mcfg = tables.find_table::<Mcfg>().unwrap();
    let [entry] = mcfg.entries() else { panic!("one window") };
    let (base, first, last) = (entry.base_address, entry.bus_number_start, entry.bus_number_end);
    assert_eq!((base, first, last), (map::ECAM.as_u64(), 0, 0));
}

/// Its meaning was checked with ACPICA's `iasl` and `acpiexec`: no AML interpreter builds with a stable compiler.
#[test]
fn the_dsdt_names_the_host_bridge_and_its_windows() {
    let memory = Memory::new(1);
    let dsdt = memory.tables().dsdt().unwrap();
    let aml = memory.bytes(dsdt.address, dsdt.length as usize);
    let contains = |part: &[u8]| aml.windows(part.len()).any(|window| window == part);
    for name in [b"_SB_", b"PCI0", b"_HID", b"_CRS", b"MBRD", b"_OSC", b"_S5_", b"COM1", b"RTC0"] {
        assert!(contains(name), "{name:?}");
    }
    let range = |start: u64, size: u64, width: usize| {
        [start.to_le_bytes(), (start + size - 1).to_le_bytes()]
            .iter()
            .flat_map(|end| end[..width].to_vec())
            .collect::<Vec<_>>()
    };
    assert!(contains(&range(map::MMIO32.as_u64(), map::MMIO32_SIZE, 4)));
    assert!(contains(&range(map::MMIO64.as_u64(), map::MMIO64_SIZE, 8)));
    assert!(contains(&(map::ECAM.as_u64() as u32).to_le_bytes()));
    // Ports: 16 bits are decoded; first, last, alignment, length.
    let ports = |first: u16, length: u8| {
        let [low, high] = first.to_le_bytes();
        [0x47, 1, low, high, low, high, 1, length]
    };
    for (first, length) in [(0x70, 2), (0xf4, 1), (0x3f8, 8), (0x600, 2), (0xcf8, 8)] {
        assert!(contains(&ports(first, length)), "{first:#x}");
    }
}

/// `acpiexec` grants 0x10 of control 0xff and says that it masked (0x10), grants 0x10 of 0x10 without a word, and says so of another UUID
/// (4), another revision (8), and a buffer of 8 bytes (2).
#[test]
fn the_host_bridge_grants_what_acpiexec_was_seen_to_grant() {
    let method = [
        0x14, 0x47, 0x08, 0x5f, 0x4f, 0x53, 0x43, 0x0c, 0x8a, 0x6b, 0x00, 0x43, 0x44, 0x57, 0x31, 0xa0, 0x25, 0x92,
        0x93, 0x68, 0x11, 0x13, 0x0a, 0x10, 0x5b, 0x4d, 0xdb, 0x33, 0xf7, 0x1f, 0x1c, 0x40, 0x96, 0x57, 0x74, 0x41,
        0xc0, 0x3d, 0xd7, 0x66, 0x7d, 0x43, 0x44, 0x57, 0x31, 0x0a, 0x04, 0x43, 0x44, 0x57, 0x31, 0xa4, 0x6b, 0xa0,
        0x12, 0x92, 0x93, 0x69, 0x01, 0x7d, 0x43, 0x44, 0x57, 0x31, 0x0a, 0x08, 0x43, 0x44, 0x57, 0x31, 0xa4, 0x6b,
        0xa0, 0x13, 0x95, 0x87, 0x6b, 0x0a, 0x0c, 0x7d, 0x43, 0x44, 0x57, 0x31, 0x0a, 0x02, 0x43, 0x44, 0x57, 0x31,
        0xa4, 0x6b, 0x8a, 0x6b, 0x0a, 0x08, 0x43, 0x44, 0x57, 0x33, 0x7b, 0x43, 0x44, 0x57, 0x33, 0x0a, 0x10, 0x60,
        0xa0, 0x19, 0x92, 0x93, 0x60, 0x43, 0x44, 0x57, 0x33, 0x7d, 0x43, 0x44, 0x57, 0x31, 0x0a, 0x10, 0x43, 0x44,
        0x57, 0x31, 0x70, 0x60, 0x43, 0x44, 0x57, 0x33, 0xa4, 0x6b,
    ];
    let memory = Memory::new(1);
    let dsdt = memory.tables().dsdt().unwrap();
    let aml = memory.bytes(dsdt.address, dsdt.length as usize);
    assert!(aml.windows(method.len()).any(|window| window == method));
    // Name `\\_S5`: a package of four, SLP_TYP 5.
    let off = [0x08, b'_', b'S', b'5', b'_', 0x12, 0x08, 0x04, 0x0a, 0x05, 0x0a, 0x05, 0x00, 0x00];
    assert!(aml.starts_with(&off));
}
