//! The firmware's tables.

use imsvisor::{
    acpi::{
        ChipsetPorts, CmosClock, Dmar, FirmwareMemory, PmTimer, Rsdp, Tables, ecam_windows, firmware_console, io_apics,
        processors,
    },
    addr::{Bdf, Hpa},
};

/// A few KiB of memory at the address 0.
struct Image<'a>(&'a [u8]);

impl FirmwareMemory for Image<'_> {
    fn bytes(&self, address: Hpa, len: usize) -> Option<&[u8]> {
        let start = usize::try_from(address.as_u64()).ok()?;
        self.0.get(start..start.checked_add(len)?)
    }
}

/// The first byte selects a table's reader, or the search from the root pointer; the rest is the table, or the memory.
pub fn acpi(data: &[u8]) {
    let Some((&kind, table)) = data.split_first() else { return };
    match kind % 6 {
        0 => dmar(table),
        1 => {
            let (found, refused) = processors(table);
            assert!(found.len() <= table.len() && refused.is_none_or(|at| at <= table.len()));
            assert!(io_apics(table).len() <= table.len());
        }
        2 => assert!(ecam_windows(table).0.len() <= table.len()),
        3 => {
            let ports = ChipsetPorts::parse(table);
            let _ = (PmTimer::parse(table), CmosClock::parse(table), firmware_console(table, Some(&ports)));
        }
        4 => {
            let _ = firmware_console(table, None);
        }
        _ => search(table),
    }
}

fn dmar(table: &[u8]) {
    let Ok(dmar) = Dmar::parse(table) else { return };
    let _ = dmar.usable();
    for bdf in [Bdf::new(0, 0, 0), Bdf::new(0xff, 31, 7)] {
        let _ = (dmar.unit_of(bdf, bdf.bus(), |_| Some((0, 0xff))), dmar.is_whole(0));
        let _ = dmar.reserved_of(bdf, |_| None).count();
        let _ = dmar.requires_ats(bdf, |_| None);
    }
}

/// All readers, on what the root pointer leads to.
fn search(memory: &[u8]) {
    let image = Image(memory);
    let Some(tables) = Rsdp::scan(&image).or_else(|| Rsdp::parse(memory)).and_then(|rsdp| Tables::new(&image, rsdp))
    else {
        return;
    };
    for signature in [b"DMAR", b"APIC", b"MCFG", b"FACP", b"SPCR"] {
        if let Ok(table) = tables.find(signature) {
            assert!(table.bytes.len() <= memory.len());
            dmar(table.bytes);
        }
    }
}
