//! The outcome of a Linux on the machine itself: Linux's own words and counts, compared with those of the devices and the remapping unit.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::event::{Line, Pairs};
use crate::machine::{End, Outcome};
use crate::words::grouped;

/// Linux' words that a report shows, by a part of each.
const WORDS: [&str; 5] =
    ["Linux version", "Enabled IRQ remapping", "IOAPIC id", "Default domain type", "TLB invalidation policy"];

/// What Linux says when a remapping unit, firmware or Linux itself is at fault, by a part of each: the messages of
/// `drivers/iommu/intel`, FW_BUG, WARN and BUG.
const COMPLAINTS: [&str; 9] = [
    "[Firmware Bug]",
    "[Firmware Warn]",
    "Your BIOS is broken",
    "handling fault status",
    "hardware malfunction",
    "Failed to enable irq remapping",
    "cut here",
    "BUG:",
    "Call Trace",
];

/// Without these words Linux does not do what the run is for.
const REMAPPING: &str = "Enabled IRQ remapping in x2apic mode";

/// A run of Linux on the machine itself.
#[derive(Debug, Clone)]
pub struct Native {
    /// Linux' words on remapping, without their times.
    pub words: Vec<String>,
    /// Linux' words on what is wrong.
    pub complaints: Vec<String>,
    /// The first process's report.
    pub result: Option<Pairs>,
    /// The plugin's counters.
    pub plugin: BTreeMap<String, u64>,
    /// Lines for the launcher that could not be read.
    pub broken: Vec<String>,
    /// How the run ended.
    pub end: End,
    /// How long it took, on the host's clock.
    pub wall: Duration,
}

/// The way of the DSAs' interrupts: each figure was counted by another party.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Messages that left the DSAs, by the DSAs.
    pub raised: u64,
    /// Those that the remapping unit remapped, by the unit.
    pub remapped: u64,
    /// Those that met a request of the same vector in a local APIC, by the machine.
    pub merged: u64,
    /// Those that Linux counts in /proc/interrupts.
    pub handled: u64,
    /// Those that Linux handles after that count, when it disables the device.
    pub closing: u64,
}

/// A line of the kernel's without its time, `[    0.394862] `.
fn without_time(line: &str) -> &str {
    let rest = line.strip_prefix('[').and_then(|rest| rest.split_once("] "));
    match rest {
        Some((time, text)) if time.trim().bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') => text,
        _ => line,
    }
}

impl Native {
    /// Reads a run's lines.
    pub fn new(outcome: &Outcome) -> Self {
        let mut native = Self {
            words: Vec::new(),
            complaints: Vec::new(),
            result: None,
            plugin: outcome.plugin.clone(),
            broken: Vec::new(),
            end: outcome.end.clone(),
            wall: outcome.wall,
        };
        for seen in &outcome.lines {
            match &seen.line {
                Line::Text(text) => native.take(without_time(text)),
                Line::Result { pairs, .. } => native.result = Some(pairs.clone()),
                Line::Broken { line, why } => native.broken.push(format!("{why}: {line}")),
                _ => {}
            }
        }
        native
    }

    fn take(&mut self, text: &str) {
        let has = |parts: &[&str]| parts.iter().any(|part| text.contains(part));
        let kept = match () {
            () if has(&COMPLAINTS) => &mut self.complaints,
            () if has(&WORDS) => &mut self.words,
            () => return,
        };
        // Who built the kernel, and with what, is in brackets.
        let text = if text.starts_with("Linux version") { text.split(" (").next().unwrap_or(text) } else { text };
        // A warning is on the console when it comes, and again among the words that are looked for.
        if !kept.iter().any(|other| other == text) {
            kept.push(text.to_owned());
        }
    }

    /// A counter of the machine's; 0 where it has none.
    pub fn counter(&self, name: &str) -> u64 {
        self.plugin.get(name).copied().unwrap_or(0)
    }

    /// A figure that the first process reports.
    pub fn reported(&self, key: &str) -> Option<u64> {
        self.result.as_ref()?.number(key)
    }

    /// The way of the DSAs' interrupts. The unit counts those of the I/O APIC and of others as well.
    pub fn counts(&self) -> Counts {
        let of_dsas = |key: &str| {
            let others = ["ioapic", "other"].iter().map(|name| self.counter(&format!("{name}.{key}"))).sum();
            self.counter(&format!("vtd.{key}")).saturating_sub(others)
        };
        Counts {
            raised: self.counter("dsa.messages"),
            remapped: of_dsas("remapped"),
            merged: of_dsas("merged"),
            handled: self.reported("handled").unwrap_or(0),
            closing: self.reported("closing").unwrap_or(0),
        }
    }

    /// Everything that was wrong with the run, a sentence each. A right run has none.
    pub fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        if !self.end.is_right() {
            failures.push(self.end.to_string());
        }
        failures.extend(self.broken.iter().map(|line| format!("an unreadable line: {line}")));
        if self.plugin.is_empty() {
            failures.push("the machine left no counters".to_owned());
        }
        if !self.words.iter().any(|words| words.contains(REMAPPING)) {
            failures.push(format!("Linux does not say \"{REMAPPING}\""));
        }
        failures.extend(self.complaints.iter().map(|words| format!("Linux complains: {words}")));
        failures.extend(self.unit_failures());
        match &self.result {
            Some(result) => failures.extend(self.work_failures(result)),
            None => failures.push("the first process did not report".to_owned()),
        }
        failures
    }

    fn unit_failures(&self) -> impl Iterator<Item = String> {
        let never = [
            ("vtd.violations", "times Linux did what the VT-d manual forbids"),
            ("vtd.dma_faults", "DMA faults"),
            ("vtd.interrupt_faults", "interrupt faults"),
            ("vtd.blocked", "interrupts blocked by the unit"),
        ];
        let counted = never.map(|(key, what)| (self.counter(key), what));
        counted.into_iter().filter(|(count, _)| *count != 0).map(|(count, what)| format!("{} {what}", grouped(count)))
    }

    fn work_failures(&self, result: &Pairs) -> Vec<String> {
        let mut failures = Vec::new();
        for key in ["errors", "timeouts", "user_errors", "user_timeouts"] {
            if let Some(count) = result.number(key).filter(|count| *count != 0) {
                failures.push(format!("Linux counts {count} {key}"));
            }
        }
        if let (Some(done), Some(verified)) = (result.number("descriptors"), result.number("verified"))
            && done != verified
        {
            failures.push(format!("{done} descriptors, but {verified} verified"));
        }
        let Counts { raised, remapped, merged, handled, closing } = self.counts();
        if raised != remapped {
            failures.push(format!("{raised} interrupts raised, but {remapped} remapped"));
        }
        if remapped != handled + closing + merged {
            let aside = format!("{merged} merged, {closing} after Linux' count");
            failures.push(format!("{remapped} interrupts remapped, but {handled} handled ({aside})"));
        }
        failures
    }

    /// The report's lines: a label and a text.
    pub fn rows(&self) -> Vec<(&'static str, String)> {
        let mut rows: Vec<_> = self.words.iter().map(|words| ("Linux", words.clone())).collect();
        if let Some(done) = self.reported("descriptors") {
            let verified = grouped(self.reported("verified").unwrap_or(0));
            let moved = self.reported("moved").filter(|moved| *moved != 0);
            let moved = moved.map(|moved| format!("; interrupt moved {} times meanwhile", grouped(moved)));
            let (done, moved) = (grouped(done), moved.unwrap_or_default());
            rows.push(("work", format!("{done} descriptors done, {verified} verified{moved}")));
        }
        if let Some(verified) = self.reported("user_verified") {
            let faults = grouped(self.reported("user_faulted").unwrap_or(0));
            let pages = grouped(self.counter("vtd.page_requests"));
            let verified = grouped(verified);
            rows.push((
                "user",
                format!("{verified} copies verified, {faults} page faults reported; {pages} pages asked for"),
            ));
        }
        let Counts { raised, remapped, merged, handled, closing } = self.counts();
        let [raised, remapped, handled] = [raised, remapped, handled].map(grouped);
        rows.push(("interrupts", format!("{raised} raised → {remapped} remapped → {handled} in /proc/interrupts")));
        let aside = [(merged, "merged in a local APIC"), (closing, "when Linux disabled the device, after its count")];
        let aside = aside.iter().filter(|(count, _)| *count != 0);
        let aside: Vec<String> = aside.map(|(count, what)| format!("{} {what}", grouped(*count))).collect();
        if !aside.is_empty() {
            rows.push(("besides", aside.join(", ")));
        }
        let [sent, remapped] = ["ioapic.messages", "ioapic.remapped"].map(|key| grouped(self.counter(key)));
        rows.push(("I/O APIC", format!("{sent} messages, {remapped} of them remapped")));
        let [flushes, waits, roots] =
            ["vtd.iec_flushes", "vtd.waits", "vtd.scalable_roots"].map(|key| self.counter(key));
        let mode = if roots == 0 { "legacy mode" } else { "scalable mode" };
        let [flushes, waits] = [flushes, waits].map(grouped);
        rows.push(("unit", format!("{mode}; {flushes} interrupt entry flushes, {waits} waits")));
        let [interrupts, dma, violations] =
            ["vtd.interrupt_faults", "vtd.dma_faults", "vtd.violations"].map(|key| grouped(self.counter(key)));
        let violations = format!("{violations} violations of the manual's rules");
        rows.push(("faults", format!("{dma} of DMA, {interrupts} of interrupts; {violations}")));
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{INSTRUCTIONS, Seen};

    const CONSOLE: [&str; 5] = [
        "[    0.000000] Linux version 6.12.95+deb12-amd64 (x)",
        "[    0.394862] DMAR-IR: Enabled IRQ remapping in x2apic mode",
        "[    1.579703] iommu: Default domain type: Translated",
        "init: up",
        "@result descriptors=400 verified=400 errors=0 timeouts=0 handled=402 closing=1 moved=261",
    ];
    const PLUGIN: [(&str, u64); 6] = [
        ("dsa.messages", 404),
        ("vtd.remapped", 612),
        ("ioapic.remapped", 208),
        ("vtd.merged", 3),
        ("ioapic.merged", 2),
        ("vtd.violations", 0),
    ];

    fn native(console: &[&str], plugin: &[(&str, u64)]) -> Native {
        let line = |raw: &str| match raw.strip_prefix("@result") {
            Some(_) => Line::parse(&format!("[linux] {raw}")),
            None => Line::Text(raw.to_owned()),
        };
        let seen = |raw: &&str| Seen { at: Duration::ZERO, raw: (*raw).to_owned(), line: line(raw) };
        Native::new(&Outcome {
            lines: console.iter().map(seen).collect(),
            end: End::Off,
            plugin: plugin.iter().map(|(key, value)| ((*key).to_owned(), *value)).collect(),
            with_counters: true,
            counts_all: true,
            unit: INSTRUCTIONS,
            wall: Duration::ZERO,
            directory: "/".into(),
        })
    }

    /// What the verdict says with this line more, and this counter instead.
    fn failures(line: &str, counter: (&str, u64)) -> Vec<String> {
        let plugin: Vec<_> = PLUGIN.into_iter().filter(|(key, _)| *key != counter.0).chain([counter]).collect();
        native(&[&CONSOLE[..], &[line]].concat(), &plugin).failures()
    }

    #[test]
    fn a_run_in_which_linux_and_the_models_agree_is_right() {
        let native = native(&CONSOLE, &PLUGIN);
        assert_eq!(native.failures(), Vec::<String>::new());
        assert_eq!(native.words[0], "Linux version 6.12.95+deb12-amd64");
        assert_eq!(native.words[1], "DMAR-IR: Enabled IRQ remapping in x2apic mode");
        let counts = Counts { raised: 404, remapped: 404, merged: 1, handled: 402, closing: 1 };
        assert_eq!(native.counts(), counts);
        let rows = native.rows();
        let text = |label: &str| rows.iter().find(|row| row.0 == label).unwrap().1.as_str();
        assert_eq!(text("interrupts"), "404 raised → 404 remapped → 402 in /proc/interrupts");
        assert!(text("work").ends_with("moved 261 times meanwhile"));
    }

    #[test]
    fn an_interrupt_that_is_lost_or_doubled_fails_the_run() {
        for remapped in [611, 613] {
            assert_eq!(failures("", ("vtd.remapped", remapped)).len(), 2, "raised and handled differ from it");
        }
        let words = "404 interrupts remapped, but 402 handled (2 merged, 1 after Linux' count)";
        assert_eq!(failures("", ("vtd.merged", 4)), [words]);
    }

    #[test]
    fn what_linux_complains_of_fails_the_run_once() {
        let line = "[    2.1] DMAR: DRHD: handling fault status reg 2";
        let failures = failures(line, ("vtd.violations", 0));
        assert_eq!(failures, ["Linux complains: DMAR: DRHD: handling fault status reg 2"]);
        let twice = native(&[&CONSOLE[..], &[line, line]].concat(), &PLUGIN);
        assert_eq!(twice.failures().len(), 1);
    }

    #[test]
    fn what_the_unit_counts_against_linux_fails_the_run() {
        for key in ["vtd.violations", "vtd.dma_faults", "vtd.interrupt_faults", "vtd.blocked"] {
            assert_eq!(failures("", (key, 2)).len(), 1, "{key}");
        }
    }

    #[test]
    fn a_linux_that_does_not_remap_or_report_is_not_right() {
        let without = |index: usize| {
            let lines: Vec<&str> =
                CONSOLE.iter().enumerate().filter(|(n, _)| *n != index).map(|(_, line)| *line).collect();
            native(&lines, &PLUGIN).failures()
        };
        assert_eq!(without(1), ["Linux does not say \"Enabled IRQ remapping in x2apic mode\""]);
        assert_eq!(without(4), ["the first process did not report"]);
        let wrong = CONSOLE[4].replace("verified=400 errors=0", "verified=399 errors=1");
        let failures = native(&[CONSOLE[1], &wrong], &PLUGIN).failures();
        assert_eq!(failures, ["Linux counts 1 errors", "400 descriptors, but 399 verified"]);
        assert_eq!(native(&CONSOLE, &[]).failures()[0], "the machine left no counters");
    }

    #[test]
    fn a_users_program_that_fails_fails_the_run() {
        let with = |words: &str| native(&[CONSOLE[1], &format!("{} {words}", CONSOLE[4])], &PLUGIN);
        assert_eq!(with("user_errors=1 user_failed=open").failures(), ["Linux counts 1 user_errors"]);
        let right = with("user_verified=3 user_faulted=1 user_errors=0 user_timeouts=0");
        assert_eq!(right.failures(), Vec::<String>::new());
        let row = right.rows().into_iter().find(|row| row.0 == "user").map(|row| row.1);
        assert_eq!(row.as_deref(), Some("3 copies verified, 1 page faults reported; 0 pages asked for"));
    }

    #[test]
    fn only_a_time_is_cut_off_a_line() {
        assert_eq!(without_time("[    0.39] x"), "x");
        assert_eq!(without_time("[Firmware Bug]] x"), "[Firmware Bug]] x");
        assert_eq!(without_time("init: up"), "init: up");
    }
}
