//! The outcome of a run.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::{PLUGIN_REPORT, trace};
use super::Seen;
use super::end::End;
use crate::event::parse_number;

/// What came of a run.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Every line of the console.
    pub lines: Vec<Seen>,
    /// How it ended.
    pub end: End,
    /// The counters of the plugin or of the DSA server; empty where neither wrote any.
    pub plugin: BTreeMap<String, u64>,
    /// Whether the machine had either, which then has to have left its counters.
    pub with_counters: bool,
    /// Whether every device of the guests counts what it sends.
    pub counts_all: bool,
    /// What the machine's time-stamp counter counts, for people.
    pub unit: &'static str,
    /// How long it took, on the host's clock.
    pub wall: Duration,
    /// Where its logs are.
    pub directory: PathBuf,
}

impl Outcome {
    /// A counter of the machine's; 0 where it has none.
    pub fn counter(&self, name: &str) -> u64 {
        self.plugin.get(name).copied().unwrap_or(0)
    }

    /// The console's last lines.
    pub fn last_lines(&self, count: usize) -> impl Iterator<Item = &str> {
        self.lines.iter().skip(self.lines.len().saturating_sub(count)).map(|seen| seen.raw.as_str())
    }

    /// The whole console as one text, for messages of tests.
    pub fn console(&self) -> String {
        self.lines.iter().flat_map(|seen| [seen.raw.as_str(), "\n"]).collect()
    }
}

/// What devices and remapping unit counted, each for itself.
pub(super) fn counters(directory: &Path) -> BTreeMap<String, u64> {
    let mut counters = trace::counters(directory);
    counters.extend(report_of_devices(&directory.join(PLUGIN_REPORT)));
    counters
}

fn report_of_devices(file: &Path) -> BTreeMap<String, u64> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let pair = |line: &str| {
        let (key, value) = line.split_once('=')?;
        Some((key.trim().to_owned(), parse_number(value.trim())?))
    };
    text.lines().filter_map(pair).collect()
}
