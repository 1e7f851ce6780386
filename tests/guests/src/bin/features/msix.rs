//! The device's MSI-X table, as a driver programs it that has nothing else.

use guests::bare::assigned::{AssignedDsa, Records};
use guests::bare::{apic, config, idle};
use guests::dsa::{Descriptor, Registers};
use guests::guest_shim::hcall_abi::Target;
use guests::pci::{self, ConfigSpace};

use crate::rig::{LIMIT, came};

static RECORDS: [Records<4096>; 2] = [const { Records::new() }; 2];

/// The table.
pub struct Msix {
    device: AssignedDsa,
    table: u64,
}

impl Msix {
    /// Switches MSI-X on.
    pub fn enable(device: AssignedDsa) -> Result<Self, &'static str> {
        let capability = pci::capability(&config::Ports, device.function, pci::CAPABILITY_MSIX).ok_or("no MSI-X")?;
        let header = config::Ports.read(device.function, capability);
        config::Ports.write(device.function, capability, header | pci::MSIX_ENABLE);
        let table = config::Ports.read(device.function, capability + pci::MSIX_TABLE);
        if table & 7 == 0 { Ok(Self { device, table: table.into() }) } else { Err("its table is in another BAR") }
    }

    /// Sends entry `n` to a target, and unmasks it.
    pub fn program(&mut self, n: u16, target: Target) {
        let at = self.table + u64::from(n) * 16;
        let dwords = [apic::message_address(target.apic_id), 0, target.vector.into(), 0];
        for (offset, dword) in (0..).step_by(4).zip(dwords) {
            self.device.bar0.write(at + offset, dword);
        }
    }

    /// Masks entry `n` and takes its message away.
    pub fn clear(&mut self, n: u16) {
        let at = self.table + u64::from(n) * 16;
        for (offset, dword) in [(12, 1), (0, 0), (8, 0)] {
            self.device.bar0.write(at + offset, dword);
        }
    }

    /// Has the device raise entry `n` by way of a work queue, which is the caller's alone. Whether one interrupt came to the target.
    pub fn fires(&mut self, n: u16, queue: usize, target: Target) -> bool {
        let (before, records) = (came(target), &RECORDS[queue]);
        records.clear(0);
        self.device.msix_portals[queue].submit(&Descriptor::noop(records.address(0), n));
        let done = idle::poll_until(LIMIT, || records.complete(0) && came(target) != before);
        done && records.get(0).succeeded() && came(target) == before + 1
    }
}
