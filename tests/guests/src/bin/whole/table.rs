//! MSI-X by PCI's rules (PCIe 7.7.2).

use guests::bare::device::DeviceMemory;
use guests::bare::{apic, config};
use guests::dsa::Registers;
use guests::pci::{self, ConfigSpace, Function};

const MASKED: u32 = 1;

/// A table and its pending bits.
pub struct Table {
    table: DeviceMemory,
    pending: DeviceMemory,
    entries: u16,
}

impl Table {
    /// Switches MSI-X on, with all entries masked.
    pub fn enable(function: Function) -> Result<Self, &'static str> {
        let config = config::Ports;
        pci::enable(&config, function);
        let capability = pci::capability(&config, function, pci::CAPABILITY_MSIX).ok_or("no MSI-X")?;
        let header = config.read(function, capability) & !pci::MSIX_FUNCTION_MASK;
        let entries = pci::msix_entries(header);
        let part = |at, bytes| {
            let place = config.read(function, capability + at);
            let bar = pci::bar(&config, function, (place & 7) as u16).ok_or("its BAR has no place")?;
            // SAFETY: what a BAR names is the function's, and the capability says that this is in it.
            unsafe { DeviceMemory::new(bar + u64::from(place & !7), bytes) }.ok_or("its table is not mapped")
        };
        let mut table = part(pci::MSIX_TABLE, u64::from(entries) * 16)?;
        let pending = part(pci::MSIX_PENDING_BITS, u64::from(entries).div_ceil(64) * 8)?;
        config.write(function, capability, header | pci::MSIX_ENABLE);
        (0..entries).for_each(|entry| table.write(u64::from(entry) * 16 + 12, MASKED));
        Ok(Self { table, pending, entries })
    }

    /// How many entries there are.
    pub const fn len(&self) -> u16 {
        self.entries
    }

    /// Sends an entry to a vector of this processor. It is masked meanwhile, as PCI asks for.
    pub fn program(&mut self, entry: u16, vector: u8) {
        self.mask(entry, true);
        let at = u64::from(entry) * 16;
        for (offset, dword) in [(0, apic::message_address(apic::id())), (4, 0), (8, vector.into())] {
            self.table.write(at + offset, dword);
        }
        self.mask(entry, false);
    }

    /// Masks an entry or lets it send.
    pub fn mask(&mut self, entry: u16, masked: bool) {
        let at = u64::from(entry) * 16 + 12;
        self.table.write(at, if masked { MASKED } else { 0 });
        // What was written has arrived when it can be read.
        self.table.read(at);
    }

    /// Whether an entry waits to send.
    pub fn is_pending(&self, entry: u16) -> bool {
        self.pending.read(u64::from(entry / 32) * 4) >> (entry % 32) & 1 != 0
    }
}
