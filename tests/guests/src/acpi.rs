//! Finds the MCFG table, and in it where configuration space is in memory (PCI Firmware 3.3, 4.1.2).

use crate::memory::Memory;

const RSDT_ADDRESS: u64 = 16;
const XSDT_ADDRESS: u64 = 24;
const HEADER: u64 = 36;
/// More tables than this, or a longer one, is nonsense.
const MAX_LENGTH: u32 = 64 * 1024;
/// Offsets in MCFG of the first allocation structure's base address and last bus.
const MCFG_BASE: u64 = 44;
const MCFG_LAST_BUS: u64 = 55;

/// Where ECAM is for segment 0, bus 0, and the last bus for which there is some.
pub fn ecam(memory: &impl Memory, rsdp: u64) -> Option<(u64, u8)> {
    let mcfg = table(memory, rsdp, *b"MCFG")?;
    Some((memory.u64(mcfg + MCFG_BASE)?, memory.u8(mcfg + MCFG_LAST_BUS)?))
}

/// The table with this signature, by way of the XSDT or, without one, the RSDT.
pub fn table(memory: &impl Memory, rsdp: u64, signature: [u8; 4]) -> Option<u64> {
    if memory.bytes(rsdp)? != *b"RSD PTR " {
        return None;
    }
    let revision = memory.u8(rsdp + 15)?;
    let xsdt = if revision >= 2 { memory.u64(rsdp + XSDT_ADDRESS)? } else { 0 };
    if xsdt != 0 {
        find(memory, xsdt, 8, signature)
    } else {
        find(memory, memory.u32(rsdp + RSDT_ADDRESS)?.into(), 4, signature)
    }
}

fn find(memory: &impl Memory, root: u64, entry_size: u64, signature: [u8; 4]) -> Option<u64> {
    let length = u64::from(memory.u32(root + 4)?.min(MAX_LENGTH));
    (0..length.saturating_sub(HEADER) / entry_size).find_map(|n| {
        let at = root + HEADER + n * entry_size;
        let table = if entry_size == 8 { memory.u64(at)? } else { memory.u32(at)?.into() };
        (memory.bytes(table)? == signature).then_some(table)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::FakeMemory;

    const RSDP: u64 = 0xe_0000;

    fn tables(revision: u8) -> FakeMemory {
        let mut memory = FakeMemory::new(RSDP, 0x1000);
        memory.put(RSDP, b"RSD PTR ");
        memory.put(RSDP + 15, &[revision]);
        memory.put(RSDP + RSDT_ADDRESS, &(RSDP as u32 + 0x100).to_le_bytes());
        memory.put(RSDP + XSDT_ADDRESS, &(RSDP + 0x200).to_le_bytes());
        for (root, entry_size) in [(RSDP + 0x100, 4), (RSDP + 0x200, 8)] {
            memory.put(root + 4, &(HEADER as u32 + 2 * entry_size).to_le_bytes());
            for (n, table) in [RSDP + 0x300, RSDP + 0x400].into_iter().enumerate() {
                let at = root + HEADER + n as u64 * u64::from(entry_size);
                memory.put(at, &table.to_le_bytes()[..entry_size as usize]);
            }
        }
        memory.put(RSDP + 0x300, b"FACP");
        memory.put(RSDP + 0x400, b"MCFG");
        memory.put(RSDP + 0x400 + MCFG_BASE, &0xe800_0000u64.to_le_bytes());
        memory.put(RSDP + 0x400 + MCFG_LAST_BUS, &[0x7f]);
        memory
    }

    #[test]
    fn mcfg_is_found_through_either_root() {
        assert_eq!(ecam(&tables(0), RSDP), Some((0xe800_0000, 0x7f)));
        assert_eq!(ecam(&tables(2), RSDP), Some((0xe800_0000, 0x7f)));
    }

    #[test]
    fn a_missing_table_or_a_broken_pointer_is_none() {
        assert_eq!(table(&tables(2), RSDP, *b"DMAR"), None);
        assert_eq!(ecam(&tables(2), RSDP + 8), None);
        let mut lost = tables(2);
        lost.put(RSDP + XSDT_ADDRESS, &0xdead_0000u64.to_le_bytes());
        assert_eq!(ecam(&lost, RSDP), None);
    }
}
