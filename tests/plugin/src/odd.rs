//! Firmware's mistakes in tables, as real machines have them (option `odd-firmware`): a reader has to use all that is right in them.

use vtd_model::Memory;

use crate::acpi::{read_table, sum};

const HEADER: usize = 36;
/// Where the MADT's entries begin (ACPI 6.5, 5.2.12); type and length of a local APIC's, and where its APIC ID is.
const MADT_ENTRIES: usize = HEADER + 8;
const LOCAL_APIC: [u8; 2] = [0, 8];
const APIC_ID: usize = 3;

/// The APIC ID of a processor that is not there.
pub(crate) const ABSENT: u8 = 0x77;

/// A reserved region (VT-d 8.4) of function 00:1d.7, with these bounds.
fn region(base: u64, limit: u64) -> Vec<u8> {
    let head = [1, 0, 32, 0, 0, 0, 0, 0];
    let scope = [1, 8, 0, 0, 0, 0, 0x1d, 7];
    [&head[..], &base.to_le_bytes(), &limit.to_le_bytes(), &scope].concat()
}

/// Spoils tables of ours. DMAR gets regions that cannot be, and zeros behind its last structure; DMAR and MCFG get wrong checksums.
pub(crate) fn spoil(tables: &mut [Vec<u8>]) {
    for table in tables {
        match table.get(..4) {
            Some(b"DMAR") => {
                table.extend([region(0, 0), region(0x2000, 0x1fff), region(0x2010, 0x2fff), vec![0; 16]].concat());
                let len = table.len() as u32;
                table[4..8].copy_from_slice(&len.to_le_bytes());
                set_sum(table, 0x5a);
            }
            Some(b"MCFG") => set_sum(table, 1),
            _ => {}
        }
    }
}

/// Makes the second processor of the MADT, which an RSDT at `rsdt` lists, one that is not there.
pub(crate) fn spoil_madt(rsdt: u32, memory: &mut dyn Memory) -> Option<()> {
    let list = read_table(memory, rsdt)?;
    let addresses =
        list.get(HEADER..)?.chunks_exact(4).map(|entry| u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]));
    for address in addresses {
        let Some(mut table) = read_table(memory, address).filter(|table| table.starts_with(b"APIC")) else { continue };
        let second = MADT_ENTRIES + usize::from(LOCAL_APIC[1]);
        if table.get(second..second + 2) == Some(&LOCAL_APIC) {
            table[second + APIC_ID] = ABSENT;
            set_sum(&mut table, 0);
            memory.write(address.into(), &table).then_some(())?;
        }
    }
    Some(())
}

/// Has the table's bytes add up to this.
fn set_sum(table: &mut [u8], to: u8) {
    table[9] = 0;
    table[9] = to.wrapping_sub(sum(table));
}

#[cfg(test)]
mod tests {
    use vtd_model::Ram;

    use super::*;
    use crate::acpi::{dmar, mcfg, table};

    #[test]
    fn our_tables_are_spoilt_and_their_first_structures_stay() {
        let (right, window) = (dmar(&[], 40, false), mcfg(0xe800_0000, 0));
        let mut tables = vec![right.clone(), window.clone()];
        spoil(&mut tables);
        assert_eq!((sum(&tables[0]), sum(&tables[1])), (0x5a, 1));
        assert_eq!(tables[0].len(), right.len() + 3 * 32 + 16);
        assert_eq!(tables[0][10..48], right[10..48]);
        assert_eq!(tables[1][10..], window[10..]);
    }

    #[test]
    fn the_second_processor_becomes_one_that_is_not_there() {
        const BASE: u32 = 0x1_0000;
        let local = |id: u8| [0, 8, id, id, 1, 0, 0, 0];
        let madt = table(b"APIC", 1, &[&[0; 8][..], &local(0), &local(1), &local(2)].concat());
        let mut ram = Ram::new(0x10_0000);
        ram.write((BASE + 0x100).into(), &madt);
        ram.write(BASE.into(), &table(b"RSDT", 1, &(BASE + 0x100).to_le_bytes()));
        spoil_madt(BASE, &mut ram).unwrap();
        let spoilt = read_table(&mut ram, BASE + 0x100).unwrap();
        let ids: Vec<u8> = spoilt[MADT_ENTRIES..].chunks(8).map(|entry| entry[APIC_ID]).collect();
        assert_eq!(ids, [0, ABSENT, 2]);
    }
}
