//! The DSDT: the guest's devices that cannot be discovered, in AML.
//!
//! | object | what |
//! |---|---|
//! | `\_S5` | the only sleep: off |
//! | `\_SB.PCI0` | the host bridge, its windows, and `_OSC` |
//! | `\_SB.MBRD` | reserves the ECAM window and the ports that no driver claims |
//! | `\_SB.COM1` | the serial port, without an interrupt: its driver polls |
//! | `\_SB.RTC0` | the CMOS clock, without an interrupt |

use alloc::{vec, vec::Vec};

use acpi_tables::{
    Aml, AmlSink,
    aml::{
        AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, IO, If, LessThan, Local,
        Memory32Fixed, Method, Name, NotEqual, ONE, Or, Package, Path, ResourceTemplate, Return, Scope, SizeOf, Store,
        Uuid, ZERO,
    },
    sdt::Sdt,
};

use super::{HEADER, OEM, OEM_REVISION, OEM_TABLE, bytes, map};
use crate::vdev::{ports, rtc, uart};

/// The table.
pub fn dsdt() -> Vec<u8> {
    let mut dsdt = Sdt::new(*b"DSDT", HEADER, 2, OEM, OEM_TABLE, OEM_REVISION);
    // SLP_TYP of both halves of a PM1 register, of which the sleep control register takes the first (ACPI 6.5, 7.4.2).
    let off: [&dyn Aml; 4] = [&ports::SLEEP_TYPE_S5, &ports::SLEEP_TYPE_S5, &ZERO, &ZERO];
    dsdt.append_slice(&bytes(&name("_S5_", &Package::new(off.into()))));
    let devices: [&dyn Aml; 4] = [&HostBridge, &Motherboard, &SerialPort, &Clock];
    dsdt.append_slice(&bytes(&Scope::new("_SB_".into(), devices.into())));
    dsdt.as_slice().to_vec()
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
        let resources = ResourceTemplate::new(vec![&buses, &ports, &low, &high]);
        Device::new(
            "PCI0".into(),
            vec![
                &name("_HID", &EISAName::new("PNP0A08")),
                &name("_CID", &EISAName::new("PNP0A03")),
                &name("_SEG", &ZERO),
                &name("_BBN", &ZERO),
                &name("_UID", &ZERO),
                &name("_CRS", &resources),
                &OperatingSystemCapabilities,
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// `_OSC` of a host bridge (ACPI 6.5, 6.2.11; PCI Firmware Specification 3.3, 4.5.1).
struct OperatingSystemCapabilities;

mod osc {
    /// Of capabilities for a PCI host bridge.
    pub const UUID: &str = "33DB4D5B-1FF7-401C-9657-7441C03DD766";
    /// Bytes of them: status, support, control.
    pub const BYTES: u8 = 12;
    /// Offset of control.
    pub const CONTROL: u8 = 8;
    /// Status: the call failed.
    pub const FAILURE: u8 = 1 << 1;
    /// Status: the UUID is not known.
    pub const UNKNOWN_UUID: u8 = 1 << 2;
    /// Status: the revision is not known.
    pub const UNKNOWN_REVISION: u8 = 1 << 3;
    /// Status: some bits were cleared.
    pub const MASKED: u8 = 1 << 4;
    /// Control: what can be granted. The guest has the functions' PCI Express capability for itself; hot plug, PME, AER, LTR and DPC are
    /// not there to be controlled.
    pub const GRANTED: u8 = 1 << 4;
}

impl Aml for OperatingSystemCapabilities {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let (uuid, revision, buffer) = (Arg(0), Arg(1), Arg(3));
        let (status, control, granted) = (Path::new("CDW1"), Path::new("CDW3"), Local(0));
        let known = Uuid::new(osc::UUID);
        let (other_uuid, other_revision) = (NotEqual::new(&uuid, &known), NotEqual::new(&revision, &ONE));
        let size = SizeOf::new(&buffer);
        let (too_short, differs) = (LessThan::new(&size, &osc::BYTES), NotEqual::new(&granted, &control));
        let say = |bit| Or::new(&status, &status, bit);
        let done = Return::new(&buffer);
        let refuse = |bit| (say(bit), Return::new(&buffer));
        let [failed, no_uuid, no_revision] =
            [&osc::FAILURE, &osc::UNKNOWN_UUID, &osc::UNKNOWN_REVISION].map(|bit| refuse(bit));
        Method::new(
            "_OSC".into(),
            4,
            // It makes names.
            true,
            vec![
                &CreateDWordField::new(&status, &buffer, &ZERO),
                &If::new(&other_uuid, vec![&no_uuid.0, &no_uuid.1]),
                &If::new(&other_revision, vec![&no_revision.0, &no_revision.1]),
                &If::new(&too_short, vec![&failed.0, &failed.1]),
                &CreateDWordField::new(&control, &buffer, &osc::CONTROL),
                &And::new(&granted, &control, &osc::GRANTED),
                &If::new(&differs, vec![&say(&osc::MASKED), &Store::new(&control, &granted)]),
                &done,
            ],
        )
        .to_aml_bytes(sink);
    }
}

struct Motherboard;

impl Aml for Motherboard {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let ecam = Memory32Fixed::new(true, map::ECAM.as_u64() as u32, map::ECAM_SIZE as u32);
        let (exit, sleep) = (ports(ports::EXIT, 1), ports(ports::SLEEP_CONTROL, 2));
        let resources = ResourceTemplate::new(vec![&ecam, &exit, &sleep]);
        let id = EISAName::new("PNP0C02");
        Device::new("MBRD".into(), vec![&name("_HID", &id), &name("_CRS", &resources)]).to_aml_bytes(sink);
    }
}

struct SerialPort;

impl Aml for SerialPort {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let range = ports(uart::BASE, (uart::LAST - uart::BASE + 1) as u8);
        let resources = ResourceTemplate::new(vec![&range]);
        let id = EISAName::new("PNP0501");
        Device::new("COM1".into(), vec![&name("_HID", &id), &name("_UID", &ONE), &name("_CRS", &resources)])
            .to_aml_bytes(sink);
    }
}

struct Clock;

impl Aml for Clock {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let range = ports(rtc::INDEX, 2);
        let resources = ResourceTemplate::new(vec![&range]);
        let id = EISAName::new("PNP0B00");
        Device::new("RTC0".into(), vec![&name("_HID", &id), &name("_CRS", &resources)]).to_aml_bytes(sink);
    }
}

/// `length` ports from `first` on.
fn ports(first: u16, length: u8) -> IO {
    IO::new(first, first, 1, length)
}

fn name(name: &str, value: &dyn Aml) -> Name {
    Name::new(Path::new(name), value)
}
