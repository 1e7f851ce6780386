//! The counters for the report of a run.

use std::fmt::Write;

use crate::Dsa;

type Counter = fn(&Dsa) -> u64;

const COUNTERS: [(&str, Counter); 14] = [
    ("descriptors", |dsa| dsa.stats.descriptors),
    ("bytes", |dsa| dsa.stats.bytes),
    ("messages", |dsa| dsa.stats.messages),
    ("pending", |dsa| dsa.stats.pending),
    ("refused", |dsa| dsa.stats.refused),
    ("partial_writes", |dsa| dsa.stats.partial_writes),
    ("page_requests", |dsa| dsa.stats.page_requests),
    ("page_responses", |dsa| dsa.stats.page_responses),
    ("with_pasid", |dsa| dsa.stats.with_pasid),
    ("faults", |dsa| dsa.stats.faults),
    ("store_commands", |dsa| dsa.stats.store_commands),
    ("commands_lost", |dsa| dsa.stats.commands_lost),
    ("enabled", |dsa| dsa.enabled().into()),
    ("bus_master", |dsa| dsa.space.bus_master().into()),
];

/// The sums of all functions, a line `dsa.key=value` each.
pub fn report(dsas: &[&Dsa]) -> String {
    let mut text = String::new();
    for (key, counter) in COUNTERS {
        let sum: u64 = dsas.iter().map(|dsa| counter(dsa)).sum();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "dsa.{key}={sum}");
    }
    text
}
