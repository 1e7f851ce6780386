//! QEMU's own counts: its trace of the remapping unit, with a line for each event.
//!
//! They are an independent check: the device reports its messages, the hypervisor its deliveries, and QEMU the requests that its unit
//! remapped.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// The file in the run's directory.
const TRACE: &str = "qemu.trace";

/// QEMU's events (`hw/i386/trace-events`), and the counters that they are.
const EVENTS: [(&str, &str); 3] = [
    ("vtd_ir_remap_msi", "vtd.remapped"),
    ("vtd_dmar_fault", "vtd.dma_faults"),
    ("vtd_inv_desc_iec", "vtd.iec_flushes"),
];

/// Arguments by which QEMU writes the trace.
pub(super) fn arguments() -> impl Iterator<Item = String> {
    let events = EVENTS.into_iter().flat_map(|(event, _)| ["-trace", event]);
    events.chain(["-D", TRACE]).map(str::to_owned)
}

/// Counts the events of a run; nothing where there is no trace.
pub(super) fn counters(directory: &Path) -> BTreeMap<String, u64> {
    let Ok(file) = File::open(directory.join(TRACE)) else { return BTreeMap::new() };
    count(BufReader::new(file))
}

fn count(trace: impl BufRead) -> BTreeMap<String, u64> {
    let mut counters: BTreeMap<String, u64> = EVENTS.iter().map(|(_, counter)| ((*counter).to_owned(), 0)).collect();
    // A line that is no text is none of these events.
    for line in trace.split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        let found = EVENTS.iter().find(|(event, _)| is_remappable(&line, event));
        if let Some((_, counter)) = found {
            *counters.entry((*counter).to_owned()).or_default() += 1;
        }
    }
    counters
}

/// Whether a line is of this event. `vtd_ir_remap_msi` comes for messages in compatibility format, too; those have bit 4 of the
/// address clear (VT-d 5.1.2.1), and QEMU passes them as they are.
fn is_remappable(line: &str, event: &str) -> bool {
    let Some(rest) = line.strip_prefix(event).and_then(|rest| rest.strip_prefix(' ')) else { return false };
    let Some(address) = rest.strip_prefix("(addr 0x") else { return true };
    let digits = address.split(|c: char| !c.is_ascii_hexdigit()).next().unwrap_or_default();
    u64::from_str_radix(digits, 16).is_ok_and(|address| address >> 4 & 1 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_is_counted_and_compatibility_format_is_not() {
        let trace = "\
vtd_ir_remap_msi (addr 0xfee00000, data 0x0) -> (addr 0xfee00000, data 0x0)
vtd_ir_remap_msi (addr 0xfee00018, data 0x0) -> (addr 0xfee00000, data 0x51)
vtd_ir_remap_msi (addr 0xfee00038, data 0x0) -> (addr 0xfee00000, data 0x52)
vtd_ir_remap_msi_req (addr 0xfee00038, data 0x0)
vtd_inv_desc_iec granularity 0x1 index 0x0 mask 0x0
vtd_dmar_fault sid 0x28 fault 1 addr 0x40000000 write 0
something else
";
        let counters = count(trace.as_bytes());
        let found: Vec<_> = counters.iter().map(|(key, value)| (key.as_str(), *value)).collect();
        assert_eq!(found, [("vtd.dma_faults", 1), ("vtd.iec_flushes", 1), ("vtd.remapped", 2)]);
    }

    #[test]
    fn without_a_trace_nothing_is_counted() {
        let directory = tempfile::tempdir().unwrap();
        assert!(counters(directory.path()).is_empty());
        std::fs::write(directory.path().join(TRACE), b"\xff\xfe\nvtd_inv_desc_iec x\n").unwrap();
        assert_eq!(counters(directory.path()).get("vtd.iec_flushes"), Some(&1));
    }
}
