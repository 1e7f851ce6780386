//! DMAR and MCFG, and the way into the tables that the BIOS built (ACPI 6.5, 5.2; VT-d 8.1; PCI Firmware 3.3, 4.1.2).

use vtd_model::Memory;

/// Where a BIOS puts the RSDP.
pub(crate) const BIOS: std::ops::Range<u64> = 0xe_0000..0x10_0000;
const HEADER: usize = 36;
const RSDP: usize = 20;
/// No table of this machine's BIOS comes near this; what claims more is not a table.
const MAX_TABLE: usize = 0x1_0000;

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Puts a header before a table's body.
fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = signature.to_vec();
    bytes.extend(((HEADER + body.len()) as u32).to_le_bytes());
    bytes.extend([revision, 0]);
    bytes.extend(b"IMSVSRIMSVISOR");
    bytes.extend(1u32.to_le_bytes());
    bytes.extend(b"IMSV");
    bytes.extend(1u32.to_le_bytes());
    bytes.extend(body);
    bytes[9] = sum(&bytes).wrapping_neg();
    bytes
}

/// A DMAR table with units that remap interrupts of segment 0. The last one covers everything, one before it the function `scoped` of
/// bus 0.
pub(crate) fn dmar(bases: &[u64], scoped: Option<u8>, host_address_width: u32) -> Vec<u8> {
    const INTR_REMAP: u8 = 1;
    const INCLUDE_PCI_ALL: u8 = 1;
    let mut body = vec![host_address_width.saturating_sub(1) as u8, INTR_REMAP];
    body.extend([0; 10]);
    for (n, base) in bases.iter().enumerate() {
        // An endpoint: type 1, 8 bytes, two reserved, enumeration ID, bus, device and function.
        let scope =
            scoped.filter(|_| n + 1 < bases.len()).map(|function| [1, 8, 0, 0, 0, 0, function >> 3, function & 7]);
        let scope = scope.as_ref().map_or(&[][..], |scope| scope);
        let flags = if n + 1 == bases.len() { INCLUDE_PCI_ALL } else { 0 };
        // DRHD: type 0, length, flags, size of the register set (4 KiB), segment 0.
        body.extend([0, 0, 16 + scope.len() as u8, 0, flags, 0, 0, 0]);
        body.extend(base.to_le_bytes());
        body.extend(scope);
    }
    table(b"DMAR", 1, &body)
}

/// An MCFG table: ECAM for bus 0 of segment 0.
pub(crate) fn mcfg(base: u64) -> Vec<u8> {
    let mut body = vec![0; 8];
    body.extend(base.to_le_bytes());
    body.extend([0; 8]);
    table(b"MCFG", 1, &body)
}

/// The place of a valid RSDP in `bios`.
fn find_rsdp(bios: &[u8]) -> Option<usize> {
    let candidate =
        |at: &usize| bios.get(*at..*at + RSDP).is_some_and(|rsdp| rsdp.starts_with(b"RSD PTR ") && sum(rsdp) == 0);
    (0..bios.len()).step_by(16).find(candidate)
}

/// A whole table, if there is a valid one.
fn read_table(memory: &mut dyn Memory, address: u32) -> Option<Vec<u8>> {
    let mut header = vec![0; HEADER];
    memory.read(address.into(), &mut header).then_some(())?;
    let len = u32_at(&header, 4)? as usize;
    if !(HEADER..=MAX_TABLE).contains(&len) {
        return None;
    }
    let mut bytes = vec![0; len];
    memory.read(address.into(), &mut bytes).then_some(())?;
    (sum(&bytes) == 0).then_some(bytes)
}

/// The end of what a table occupies, the FADT's DSDT and FACS included.
fn end_of(memory: &mut dyn Memory, address: u32, bytes: &[u8]) -> u64 {
    let mut end = u64::from(address) + bytes.len() as u64;
    if bytes.starts_with(b"FACP") {
        for at in [36, 40] {
            let pointed = u32_at(bytes, at).unwrap_or(0);
            let mut header = [0; 8];
            let len = if memory.read(pointed.into(), &mut header) { u32_at(&header, 4).unwrap_or(0) } else { 0 };
            end = end.max(u64::from(pointed) + u64::from(len).min(MAX_TABLE as u64));
        }
    }
    end
}

/// A change to the RSDP: only the caller can write there.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Patch {
    pub(crate) address: u64,
    pub(crate) bytes: [u8; RSDP],
}

/// Adds `tables` to those of the BIOS: behind its last table, in memory below `limit`, followed by a longer RSDT. `bios` is
/// the content of [`BIOS`]. `None` while the BIOS has not finished its own tables.
pub(crate) fn extend(bios: &[u8], tables: &[Vec<u8>], limit: u64, memory: &mut dyn Memory) -> Option<Patch> {
    let at = find_rsdp(bios)?;
    let rsdt_address = u32_at(bios, at + 16)?;
    let rsdt = read_table(memory, rsdt_address).filter(|rsdt| rsdt.starts_with(b"RSDT"))?;
    let mut entries: Vec<u8> = rsdt[HEADER..].to_vec();
    let mut end = u64::from(rsdt_address) + rsdt.len() as u64;
    for entry in rsdt[HEADER..].chunks_exact(4) {
        let address = u32_at(entry, 0)?;
        let bytes = read_table(memory, address)?;
        end = end.max(end_of(memory, address, &bytes));
    }
    for table in tables {
        let address = put(table, &mut end, limit, memory)?;
        entries.extend(address.to_le_bytes());
    }
    let rsdt = put(&self::table(b"RSDT", 1, &entries), &mut end, limit, memory)?;
    let mut bytes: [u8; RSDP] = bios.get(at..at + RSDP)?.try_into().ok()?;
    bytes[16..20].copy_from_slice(&rsdt.to_le_bytes());
    bytes[8] = 0;
    bytes[8] = sum(&bytes).wrapping_neg();
    Some(Patch { address: BIOS.start + at as u64, bytes })
}

/// Writes a table behind `end`, and moves `end`.
fn put(bytes: &[u8], end: &mut u64, limit: u64, memory: &mut dyn Memory) -> Option<u32> {
    let at = end.next_multiple_of(16);
    let next = at + bytes.len() as u64;
    if next > limit || !memory.write(at, bytes) {
        return None;
    }
    *end = next;
    u32::try_from(at).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use vtd_model::Ram;

    const BASE: u64 = 0x3fff_0000;

    /// Memory with an RSDT of one table, and the BIOS area with its RSDP.
    fn machine() -> (Ram, Vec<u8>) {
        let mut ram = Ram::new(0x4000_0000);
        ram.write(BASE + 0x100, &table(b"APIC", 1, &[0; 21]));
        ram.write(BASE, &table(b"RSDT", 1, &(BASE as u32 + 0x100).to_le_bytes()));
        let mut bios = vec![0; 0x2_0000];
        let mut rsdp = b"RSD PTR \0BOCHS \0".to_vec();
        rsdp.extend((BASE as u32).to_le_bytes());
        rsdp[8] = sum(&rsdp).wrapping_neg();
        bios[0x1_a0b0..0x1_a0b0 + RSDP].copy_from_slice(&rsdp);
        (ram, bios)
    }

    #[test]
    fn the_new_rsdt_lists_the_old_tables_and_the_new_ones() {
        let (mut ram, bios) = machine();
        let tables = [dmar(&[0xfed9_0000], None, 40), mcfg(0xe800_0000)];
        let patch = extend(&bios, &tables, 0x4000_0000, &mut ram).unwrap();
        assert_eq!((patch.address, sum(&patch.bytes)), (0xf_a0b0, 0));
        let rsdt = read_table(&mut ram, u32_at(&patch.bytes, 16).unwrap()).unwrap();
        let signatures: Vec<Vec<u8>> = rsdt[HEADER..]
            .chunks_exact(4)
            .map(|entry| read_table(&mut ram, u32_at(entry, 0).unwrap()).unwrap()[..4].to_vec())
            .collect();
        assert_eq!(signatures, [b"APIC", b"DMAR", b"MCFG"]);
    }

    #[test]
    fn unfinished_tables_are_waited_for() {
        let (mut ram, bios) = machine();
        assert_eq!(extend(&vec![0; 0x2_0000], &[], 0x4000_0000, &mut ram), None);
        ram.write(BASE + 0x100, b"????");
        assert_eq!(extend(&bios, &[], 0x4000_0000, &mut ram), None);
        let (mut ram, bios) = machine();
        ram.write(BASE + 4, &[0xff; 4]);
        assert_eq!(extend(&bios, &[], 0x4000_0000, &mut ram), None);
    }

    #[test]
    fn nothing_is_written_beyond_the_limit() {
        let (mut ram, bios) = machine();
        assert_eq!(extend(&bios, &[mcfg(0)], BASE + 0x13a, &mut ram), None);
        assert_eq!(ram.u64(BASE + 0x140), 0);
    }

    #[test]
    fn the_tables_have_their_fields() {
        let dmar = dmar(&[0xfed9_0000], None, 40);
        assert_eq!((dmar.len(), sum(&dmar), dmar[36], dmar[37]), (64, 0, 39, 1));
        assert_eq!(
            (u32_at(&dmar, 48), u32_at(&dmar, 52), u32_at(&dmar, 56)),
            (Some(16 << 16), Some(1), Some(0xfed9_0000))
        );
        let mcfg = mcfg(0xe800_0000);
        assert_eq!((mcfg.len(), sum(&mcfg), u32_at(&mcfg, 44), u32_at(&mcfg, 52)), (60, 0, Some(0xe800_0000), Some(0)));
    }
}
