//! DMAR and MCFG, and the way into the tables that the BIOS built (ACPI 6.5, 5.2; VT-d 8.1; PCI Firmware 3.3, 4.1.2).

use vtd_model::Memory;

/// Where a BIOS puts the RSDP.
pub(crate) const BIOS: std::ops::Range<u64> = 0xe_0000..0x10_0000;
pub(crate) const HEADER: usize = 36;
const RSDP: usize = 20;
/// No table of this machine's BIOS comes near this; what claims more is not a table.
const MAX_TABLE: usize = 0x1_0000;

pub(crate) fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Puts a header before a table's body.
pub(crate) fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
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

/// A remapping unit, and what it serves of segment 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Drhd {
    /// Its registers.
    pub(crate) base: u64,
    /// The I/O APIC's ID and its requester ID, if it serves that.
    pub(crate) ioapic: Option<(u8, u16)>,
    /// Requester IDs.
    pub(crate) functions: Vec<u16>,
}

/// A device scope with a path of one step (VT-d 8.3.1): type, length, flags, reserved, enumeration ID, start bus, device, function.
fn scope(kind: u8, enumeration_id: u8, source: u16) -> [u8; 8] {
    let [function, bus] = source.to_le_bytes();
    [kind, 8, 0, 0, enumeration_id, bus, function >> 3, function & 7]
}

impl Drhd {
    fn scopes(&self) -> impl Iterator<Item = [u8; 8]> {
        const ENDPOINT: u8 = 1;
        const IOAPIC: u8 = 3;
        let ioapic = self.ioapic.map(|(id, source)| scope(IOAPIC, id, source));
        ioapic.into_iter().chain(self.functions.iter().map(|function| scope(ENDPOINT, 0, *function)))
    }
}

/// A DMAR table with units that remap interrupts. None says that it serves all functions. With `opt_out` the firmware asks not to use
/// x2APIC mode.
pub(crate) fn dmar(units: &[Drhd], host_address_width: u32, opt_out: bool) -> Vec<u8> {
    const INTR_REMAP: u8 = 1 << 0;
    const X2APIC_OPT_OUT: u8 = 1 << 1;
    let flags = if opt_out { INTR_REMAP | X2APIC_OPT_OUT } else { INTR_REMAP };
    let mut body = vec![host_address_width.saturating_sub(1) as u8, flags];
    body.extend([0; 10]);
    for unit in units {
        let scopes = unit.scopes().collect::<Vec<_>>().concat();
        // DRHD: type 0, length, flags, size of the register set (4 KiB), segment 0.
        body.extend([0, 0, 16 + scopes.len() as u8, 0, 0, 0, 0, 0]);
        body.extend(unit.base.to_le_bytes());
        body.extend(scopes);
    }
    table(b"DMAR", 1, &body)
}

/// An MCFG table: ECAM for the buses from 0 on of segment 0.
pub(crate) fn mcfg(base: u64, last_bus: u8) -> Vec<u8> {
    let mut body = vec![0; 8];
    body.extend(base.to_le_bytes());
    body.extend([0, 0, 0, last_bus, 0, 0, 0, 0]);
    table(b"MCFG", 1, &body)
}

/// The I/O APIC's ID in a MADT (ACPI 6.5, 5.2.12.3).
fn ioapic_id(madt: &[u8]) -> Option<u8> {
    const IOAPIC: u8 = 1;
    let mut at = HEADER + 8;
    while let Some([kind, len, ..]) = madt.get(at..) {
        if *kind == IOAPIC {
            return madt.get(at + 2).copied();
        }
        // A structure is at least as long as its head.
        at += usize::from(*len).max(2);
    }
    None
}

/// Changes the host bridge's claim to buses 0 to ff in a DSDT to bus 0, for which there is ECAM. Says whether there was one.
fn claim_one_bus(dsdt: &mut [u8]) -> bool {
    // A word address space descriptor of type "bus number" (6.4.3.5.3): flags at 4, then granularity, first, last, offset, length.
    const HEAD: [u8; 4] = [0x88, 0x0d, 0x00, 0x02];
    const ALL: [u8; 10] = [0, 0, 0, 0, 0xff, 0, 0, 0, 0, 1];
    const ONE: [u8; 10] = [0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    let found = dsdt.windows(16).position(|window| window.starts_with(&HEAD) && window.ends_with(&ALL));
    let Some(fields) = found.and_then(|at| dsdt.get_mut(at + 6..at + 16)) else { return false };
    fields.copy_from_slice(&ONE);
    dsdt[9] = 0;
    dsdt[9] = sum(dsdt).wrapping_neg();
    true
}

/// Mends the DSDT of a FADT.
fn mend_dsdt(fadt: &[u8], memory: &mut dyn Memory) {
    let dsdt = u32_at(fadt, 40).and_then(|address| Some((address, read_table(memory, address)?)));
    if let Some((address, mut dsdt)) = dsdt
        && claim_one_bus(&mut dsdt)
    {
        memory.write(address.into(), &dsdt);
    }
}

/// The place of a valid RSDP in `bios`.
fn find_rsdp(bios: &[u8]) -> Option<usize> {
    let candidate =
        |at: &usize| bios.get(*at..*at + RSDP).is_some_and(|rsdp| rsdp.starts_with(b"RSD PTR ") && sum(rsdp) == 0);
    (0..bios.len()).step_by(16).find(candidate)
}

/// A whole table, if there is a valid one.
pub(crate) fn read_table(memory: &mut dyn Memory, address: u32) -> Option<Vec<u8>> {
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

impl Patch {
    /// Where the new RSDT is.
    pub(crate) fn rsdt(&self) -> u32 {
        u32_at(&self.bytes, 16).unwrap_or(0)
    }
}

/// Adds tables to those of the BIOS: behind its last table, in memory below `limit`, followed by a longer RSDT. `tables` makes them,
/// for an I/O APIC of this ID. `bios` is the content of [`BIOS`]. `None` while the BIOS has not finished its own tables.
pub(crate) fn extend(
    bios: &[u8],
    tables: impl FnOnce(Option<u8>) -> Vec<Vec<u8>>,
    limit: u64,
    memory: &mut dyn Memory,
) -> Option<Patch> {
    let at = find_rsdp(bios)?;
    let rsdt_address = u32_at(bios, at + 16)?;
    let rsdt = read_table(memory, rsdt_address).filter(|rsdt| rsdt.starts_with(b"RSDT"))?;
    let mut entries: Vec<u8> = rsdt[HEADER..].to_vec();
    let mut end = u64::from(rsdt_address) + rsdt.len() as u64;
    let mut ioapic = None;
    for entry in rsdt[HEADER..].chunks_exact(4) {
        let address = u32_at(entry, 0)?;
        let bytes = read_table(memory, address)?;
        end = end.max(end_of(memory, address, &bytes));
        match bytes.get(..4) {
            Some(b"APIC") => ioapic = ioapic_id(&bytes),
            Some(b"FACP") => mend_dsdt(&bytes, memory),
            _ => {}
        }
    }
    for table in tables(ioapic) {
        let address = put(&table, &mut end, limit, memory)?;
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

    /// A processor, then an I/O APIC with ID 2.
    const MADT: [u8; 28] =
        [0, 0, 0xe0, 0xfe, 1, 0, 0, 0, 0, 8, 0, 0, 1, 0, 0, 0, 1, 12, 2, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0];

    /// Memory with an RSDT of one table, and the BIOS area with its RSDP.
    fn machine() -> (Ram, Vec<u8>) {
        let mut ram = Ram::new(0x4000_0000);
        ram.write(BASE + 0x100, &table(b"APIC", 1, &MADT));
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
        let unit = |ioapic: Option<u8>| Drhd {
            base: 0xfed9_0000,
            ioapic: ioapic.map(|id| (id, 0xf0f8)),
            functions: vec![0x6a08],
        };
        let tables = |ioapic| vec![dmar(&[unit(ioapic)], 40, false), mcfg(0xe000_0000, 0xff)];
        let patch = extend(&bios, tables, 0x4000_0000, &mut ram).unwrap();
        assert_eq!((patch.address, sum(&patch.bytes)), (0xf_a0b0, 0));
        let rsdt = read_table(&mut ram, u32_at(&patch.bytes, 16).unwrap()).unwrap();
        let tables: Vec<Vec<u8>> = rsdt[HEADER..]
            .chunks_exact(4)
            .map(|entry| read_table(&mut ram, u32_at(entry, 0).unwrap()).unwrap())
            .collect();
        let signatures: Vec<&[u8]> = tables.iter().map(|table| &table[..4]).collect();
        assert_eq!(signatures, [b"APIC", b"DMAR", b"MCFG"]);
        assert_eq!(tables[1], dmar(&[unit(Some(2))], 40, false), "the I/O APIC's ID is the MADT's");
    }

    #[test]
    fn unfinished_tables_are_waited_for() {
        let (mut ram, bios) = machine();
        assert_eq!(extend(&vec![0; 0x2_0000], |_| vec![], 0x4000_0000, &mut ram), None);
        ram.write(BASE + 0x100, b"????");
        assert_eq!(extend(&bios, |_| vec![], 0x4000_0000, &mut ram), None);
        let (mut ram, bios) = machine();
        ram.write(BASE + 4, &[0xff; 4]);
        assert_eq!(extend(&bios, |_| vec![], 0x4000_0000, &mut ram), None);
    }

    #[test]
    fn nothing_is_written_beyond_the_limit() {
        let (mut ram, bios) = machine();
        assert_eq!(extend(&bios, |_| vec![mcfg(0, 0)], BASE + 0x13a, &mut ram), None);
        assert_eq!(ram.u64(BASE + 0x140), 0);
    }

    #[test]
    fn the_tables_have_their_fields() {
        let unit = Drhd { base: 0xfed9_0000, ioapic: Some((1, 0xf0f8)), functions: vec![0x6a08] };
        assert_eq!(dmar(&[], 40, true)[37], 3);
        let dmar = dmar(&[unit], 40, false);
        assert_eq!((dmar.len(), sum(&dmar), dmar[36], dmar[37]), (80, 0, 39, 1));
        assert_eq!(
            (u32_at(&dmar, 48), u32_at(&dmar, 52), u32_at(&dmar, 56)),
            (Some(32 << 16), Some(0), Some(0xfed9_0000))
        );
        assert_eq!(dmar[64..], [3, 8, 0, 0, 1, 0xf0, 0x1f, 0, 1, 8, 0, 0, 0, 0x6a, 1, 0]);
        let mcfg = mcfg(0xe000_0000, 0xff);
        assert_eq!((mcfg.len(), sum(&mcfg), u32_at(&mcfg, 44), u32_at(&mcfg, 48)), (60, 0, Some(0xe000_0000), Some(0)));
        assert_eq!(mcfg[52..56], [0, 0, 0, 0xff], "segment, first and last bus");
    }

    #[test]
    fn the_host_bridge_claims_the_bus_that_has_ecam() {
        let (mut ram, bios) = machine();
        let buses = |last: u8, count: u16| {
            let [low, high] = count.to_le_bytes();
            [0x5b, 0x88, 0x0d, 0, 2, 0x0c, 0, 0, 0, 0, 0, last, 0, 0, 0, low, high, 0x79]
        };
        ram.write(BASE + 0x400, &table(b"DSDT", 1, &buses(0xff, 0x100)));
        let mut fadt = vec![0; 80];
        fadt[4..8].copy_from_slice(&(BASE as u32 + 0x400).to_le_bytes());
        ram.write(BASE + 0x100, &table(b"FACP", 1, &fadt));
        extend(&bios, |_| vec![], 0x4000_0000, &mut ram).unwrap();
        let dsdt = read_table(&mut ram, BASE as u32 + 0x400).unwrap();
        assert_eq!(dsdt[HEADER..], buses(0, 1));
    }
}
