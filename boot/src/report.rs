//! What a run did, in figures, and whether it was right.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::event::{Line, Pairs};
use crate::machine::{End, Outcome};

/// One guest's part in a run.
#[derive(Debug, Clone, Default)]
pub struct Guest {
    /// The hypervisor's number for it.
    pub number: String,
    /// Its name.
    pub name: String,
    /// `guest-start`.
    pub start: Pairs,
    /// `guest-end`, if it ended.
    pub end: Option<Pairs>,
    /// `exits`: VM exits by reason.
    pub exits: BTreeMap<String, u64>,
    /// `interrupts`.
    pub interrupts: Pairs,
    /// What the guest itself reports.
    pub result: Option<Pairs>,
}

impl Guest {
    /// A figure of the guest's own report.
    pub fn reported(&self, key: &str) -> Option<u64> {
        self.result.as_ref()?.number(key)
    }

    fn failures(&self) -> Vec<String> {
        let mut failures = self.end_failures();
        if let Some(result) = &self.result {
            let mut differ = |a: &str, b: &str| {
                if let (Some(x), Some(y)) = (result.number(a), result.number(b))
                    && x != y
                {
                    failures.push(format!("guest {}: {a} {x}, but {b} {y}", self.name));
                }
            };
            differ("descriptors", "verified");
            differ("slots", "slots_fired");
            if result.number("errors").is_some_and(|errors| errors != 0) {
                failures.push(format!("guest {} counts {} errors", self.name, result.number("errors").unwrap_or(0)));
            }
        }
        failures
    }

    fn end_failures(&self) -> Vec<String> {
        let Some(end) = &self.end else { return vec![format!("guest {} did not end", self.name)] };
        match (end.get("reason"), end.number("code")) {
            (Some("exit"), Some(0)) => Vec::new(),
            (Some("exit"), code) => vec![format!("guest {} ended with code {}", self.name, shown(code))],
            (reason, _) => vec![format!("guest {} ended by {}", self.name, reason.unwrap_or("?"))],
        }
    }
}

fn shown(number: Option<u64>) -> String {
    number.map_or_else(|| "?".to_owned(), |number| number.to_string())
}

/// The way of the interrupts: each figure was counted by another party.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Interrupts {
    /// Messages that left the device, by the device.
    pub raised: Option<u64>,
    /// Requests that the remapping unit remapped or posted, by the unit.
    pub remapped: Option<u64>,
    /// Those of them that were posted, by the unit: they reach their guest without the hypervisor.
    pub posted: u64,
    /// Interrupts given to guests, by the hypervisor; unknown where all guests have theirs posted.
    pub delivered: Option<u64>,
    /// Interrupts that guests' handlers saw, by the guests.
    pub handled: Option<u64>,
    /// Of these, those of guests whose interrupts are posted.
    pub handled_posted: u64,
}

impl Interrupts {
    /// The parties' figures in the order of the way; those that nobody counted are left out. Delivered are those that were posted, too.
    pub fn stations(&self) -> Vec<(&'static str, u64)> {
        let all = [
            ("raised", self.raised),
            ("remapped", self.remapped),
            ("delivered", self.delivered.map(|delivered| delivered + self.posted)),
            ("handled", self.handled),
        ];
        all.into_iter().filter_map(|(name, count)| Some((name, count?))).collect()
    }

    fn failures(&self) -> Vec<String> {
        let stations = self.stations();
        let mut failures: Vec<String> = stations
            .windows(2)
            .filter_map(|pair| match pair {
                [(a, x), (b, y)] if x != y => Some(format!("{x} interrupts {a}, but {y} {b}")),
                _ => None,
            })
            .collect();
        // What one kind of guest lost and the other had too much must not make up for each other.
        if let (Some(remapped), Some(handled)) = (self.remapped, self.handled)
            && remapped == handled
            && self.posted != self.handled_posted
        {
            failures.push(format!(
                "{} interrupts posted, but {} handled by guests that have them posted",
                self.posted, self.handled_posted
            ));
        }
        if self.handled == Some(0) {
            failures.push("no interrupt was handled".to_owned());
        }
        failures
    }
}

/// All that a run's lines and counters tell.
#[derive(Debug, Clone)]
pub struct Summary {
    /// `boot` and `machine`.
    pub machine: Pairs,
    /// The guests in the order of their start.
    pub guests: Vec<Guest>,
    /// `remap`: the remapping entries.
    pub remap: Pairs,
    /// Faults that were reported, in all.
    pub faults: u64,
    /// What was refused, and why.
    pub refused: Vec<String>,
    /// Lines for the launcher that could not be read.
    pub broken: Vec<String>,
    /// The last line's status.
    pub done: Option<String>,
    /// How the run ended.
    pub end: End,
    /// How long it took, on the host's clock.
    pub wall: Duration,
    /// The plugin's counters.
    pub plugin: BTreeMap<String, u64>,
    with_counters: bool,
    counts_all: bool,
}

impl Summary {
    /// Reads a run's lines.
    pub fn new(outcome: &Outcome) -> Self {
        let mut summary = Self {
            machine: Pairs::default(),
            guests: Vec::new(),
            remap: Pairs::default(),
            faults: 0,
            refused: Vec::new(),
            broken: Vec::new(),
            done: None,
            end: outcome.end.clone(),
            wall: outcome.wall,
            plugin: outcome.plugin.clone(),
            with_counters: outcome.with_counters,
            counts_all: outcome.counts_all,
        };
        for seen in &outcome.lines {
            summary.take(&seen.line);
        }
        summary
    }

    fn take(&mut self, line: &Line) {
        match line {
            Line::Event(event) => self.take_event(&event.name, &event.pairs),
            Line::Result { guest, pairs } => self.take_result(guest, pairs),
            Line::Broken { line, why } => self.broken.push(format!("{why}: {line}")),
            Line::Guest { .. } | Line::Text(_) => {}
        }
    }

    fn take_event(&mut self, name: &str, pairs: &Pairs) {
        match name {
            "machine" => self.machine = pairs.clone(),
            "refused" => {
                let value = |key| pairs.get(key).unwrap_or("?");
                self.refused.push(format!("{}: {}", value("what"), value("why")));
            }
            "guest-start" => self.guest(pairs).start = pairs.clone(),
            "guest-end" => self.guest(pairs).end = Some(pairs.clone()),
            "interrupts" => self.guest(pairs).interrupts = pairs.clone(),
            "exits" => {
                let counts = pairs.iter().filter_map(|(reason, _)| Some((reason.to_owned(), pairs.number(reason)?)));
                self.guest(pairs).exits = counts.filter(|(reason, _)| reason != "guest").collect();
            }
            "remap" => self.remap = pairs.clone(),
            "fault" => self.faults += 1,
            "done" => self.done = Some(pairs.get("status").unwrap_or("?").to_owned()),
            _ => {}
        }
    }

    /// The guest that an event is about.
    fn guest(&mut self, pairs: &Pairs) -> &mut Guest {
        let number = pairs.get("guest").unwrap_or("?");
        let known = self.guests.iter().position(|guest| guest.number == number);
        let index = known.unwrap_or_else(|| {
            self.guests.push(Guest { number: number.to_owned(), name: number.to_owned(), ..Guest::default() });
            self.guests.len() - 1
        });
        let guest = &mut self.guests[index];
        if let Some(name) = pairs.get("name") {
            guest.name = name.to_owned();
        }
        guest
    }

    /// A guest's report goes to the first of its name that has none yet.
    fn take_result(&mut self, name: &str, pairs: &Pairs) {
        let of_name = self.guests.iter_mut().find(|guest| guest.name == name && guest.result.is_none());
        match of_name {
            Some(guest) => guest.result = Some(pairs.clone()),
            None => self.broken.push(format!("a result of a guest that did not start: {name}")),
        }
    }

    /// The way of the interrupts, as each party counted it.
    pub fn interrupts(&self) -> Interrupts {
        // Where another device sends as well, the DSAs' messages are not all that were raised.
        let counter = |name: &str| self.plugin.get(name).copied().filter(|_| self.counts_all);
        let delivered: Vec<u64> = self.guests.iter().filter_map(|guest| guest.interrupts.number("delivered")).collect();
        let is_posted = |guest: &&Guest| guest.interrupts.get("posted") == Some("yes");
        let handled_posted = self.guests.iter().filter(is_posted).filter_map(|guest| guest.reported("handled")).sum();
        let handled: Vec<u64> = self.guests.iter().filter_map(|guest| guest.reported("handled")).collect();
        let remapped = (counter("vtd.remapped"), counter("vtd.posted"));
        Interrupts {
            raised: counter("dsa.messages"),
            remapped: matches!(remapped, (Some(_), _) | (_, Some(_)))
                .then(|| remapped.0.unwrap_or(0) + remapped.1.unwrap_or(0)),
            posted: remapped.1.unwrap_or(0),
            delivered: (!delivered.is_empty()).then(|| delivered.iter().sum()),
            handled_posted,
            // A guest that does not count makes the sum meaningless.
            handled: (!handled.is_empty() && handled.len() == self.guests.len()).then(|| handled.iter().sum()),
        }
    }

    /// Whether everything was right, and if not, what was not.
    pub fn verdict(&self) -> Verdict {
        let mut failures = Vec::new();
        if !self.end.is_right() {
            failures.push(self.end.to_string());
        }
        match self.done.as_deref() {
            Some("ok") => {}
            Some(status) => failures.push(format!("the hypervisor ends with the status {status}")),
            None => failures.push("the hypervisor did not say that it is done".to_owned()),
        }
        failures.extend(self.broken.iter().map(|line| format!("an unreadable line: {line}")));
        if self.guests.is_empty() {
            failures.push("no guest was started".to_owned());
        }
        failures.extend(self.guests.iter().flat_map(Guest::failures));
        if self.with_counters && self.plugin.is_empty() {
            failures.push("the machine's devices left no counters".to_owned());
        }
        failures.extend(self.interrupts().failures());
        Verdict { failures }
    }
}

/// Whether a run was right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// What was not right.
    pub failures: Vec<String>,
}

impl Verdict {
    /// Nothing was wrong.
    pub fn is_right(&self) -> bool {
        self.failures.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Seen;

    const CONSOLE: &str = "\
@ims boot version=0.1.0
@ims machine cpu=\"Intel\" memory_mib=512 vtd_units=1 ims_devices=1
@ims guest-start guest=1 name=demo memory_mib=64 entry_instructions=1234567
[demo] hello
[demo] @result descriptors=10 bytes=4096 verified=10 slots=4 slots_fired=4 handled=10 errors=0
@ims guest-end guest=1 name=demo reason=exit code=0
@ims exits guest=1 ept_violation=4 vmcall=3
@ims interrupts guest=1 delivered=10 hypercalls=3 trapped_writes=4
@ims remap live=0 high_water=4 programmed=4 flushes=4 faults=0
@ims done status=ok
";
    const PLUGIN: [(&str, u64); 4] =
        [("dsa.messages", 10), ("vtd.remapped", 7), ("vtd.posted", 3), ("dsa.descriptors", 10)];
    /// The same where all are posted, and where none is.
    const POSTED: [(&str, u64); 3] = [("dsa.messages", 10), ("vtd.remapped", 0), ("vtd.posted", 10)];
    const REMAPPED: [(&str, u64); 2] = [("dsa.messages", 10), ("vtd.remapped", 10)];

    fn outcome(console: &str, plugin: &[(&str, u64)], end: End) -> Outcome {
        let seen = |raw: &str| Seen { at: Duration::ZERO, raw: raw.to_owned(), line: Line::parse(raw) };
        Outcome {
            lines: console.lines().map(seen).collect(),
            end,
            plugin: plugin.iter().map(|(key, value)| ((*key).to_owned(), *value)).collect(),
            with_counters: true,
            counts_all: true,
            wall: Duration::ZERO,
            directory: "/".into(),
        }
    }

    #[test]
    fn posted_interrupts_are_compared_without_the_hypervisors_count() {
        let posted = CONSOLE.replace("delivered=10", "posted=yes");
        let summary = outcome(&posted, &POSTED, End::Off).summary();
        assert_eq!(summary.interrupts().stations(), [("raised", 10), ("remapped", 10), ("handled", 10)]);
        assert!(summary.verdict().is_right());
        let lost = outcome(&posted.replace("handled=10", "handled=9"), &POSTED, End::Off).summary();
        assert_eq!(lost.verdict().failures, ["10 interrupts remapped, but 9 handled"]);
    }

    #[test]
    fn guests_of_both_kinds_are_compared_with_what_the_unit_posted() {
        let other = "\
@ims guest-start guest=2 name=posted memory_mib=64 entry_instructions=1234567
[posted] @result handled=3 errors=0
@ims guest-end guest=2 name=posted reason=exit code=0
@ims interrupts guest=2 posted=yes
@ims done status=ok
";
        let console = CONSOLE.replace("handled=10", "handled=7").replace("delivered=10", "delivered=7");
        let both = console.replace("@ims done status=ok\n", other);
        let summary = outcome(&both, &PLUGIN, End::Off).summary();
        let expected = [("raised", 10), ("remapped", 10), ("delivered", 10), ("handled", 10)];
        assert_eq!(summary.interrupts().stations(), expected);
        assert!(summary.verdict().is_right(), "{:?}", summary.verdict());
        let lost = outcome(&both.replace("handled=3", "handled=2"), &PLUGIN, End::Off).summary();
        assert_eq!(lost.verdict().failures, ["10 interrupts delivered, but 9 handled"]);
        let moved = both.replace("handled=3", "handled=2").replace("handled=7", "handled=8");
        let failures = outcome(&moved, &PLUGIN, End::Off).summary().verdict().failures;
        assert_eq!(failures, ["3 interrupts posted, but 2 handled by guests that have them posted"]);
    }

    /// What the verdict says when one thing on the console is replaced by another.
    fn failures(from: &str, to: &str) -> String {
        assert!(CONSOLE.contains(from), "{from}");
        let summary = outcome(&CONSOLE.replace(from, to), &REMAPPED, End::Off).summary();
        summary.verdict().failures.join("; ")
    }

    #[test]
    fn a_run_in_which_every_party_agrees_is_right() {
        let summary = outcome(CONSOLE, &REMAPPED, End::Off).summary();
        assert_eq!(summary.verdict(), Verdict { failures: vec![] });
        let expected = [("raised", 10), ("remapped", 10), ("delivered", 10), ("handled", 10)];
        assert_eq!(summary.interrupts().stations(), expected);
        assert_eq!(summary.guests[0].exits.get("ept_violation"), Some(&4));
        assert_eq!(summary.guests[0].exits.get("guest"), None);
        assert_eq!(summary.guests[0].start.number("entry_instructions"), Some(1_234_567));
    }

    #[test]
    fn an_interrupt_lost_at_any_station_fails_the_run() {
        assert_eq!(
            failures("delivered=10", "delivered=9"),
            "10 interrupts remapped, but 9 delivered; 9 interrupts delivered, but 10 handled"
        );
        assert_eq!(failures("handled=10", "handled=11"), "10 interrupts delivered, but 11 handled");
        let mut plugin = REMAPPED;
        plugin[0].1 = 12;
        let verdict = outcome(CONSOLE, &plugin, End::Off).summary().verdict();
        assert_eq!(verdict.failures, ["12 interrupts raised, but 10 remapped"]);
    }

    #[test]
    fn a_run_without_interrupts_is_not_right() {
        let console = CONSOLE.replace("handled=10", "handled=0").replace("delivered=10", "delivered=0");
        let plugin = [("dsa.messages", 0), ("vtd.remapped", 0)];
        let verdict = outcome(&console, &plugin, End::Off).summary().verdict();
        assert_eq!(verdict.failures, ["no interrupt was handled"]);
    }

    #[test]
    fn each_thing_that_a_guest_counts_has_to_agree() {
        assert_eq!(failures("verified=10", "verified=9"), "guest demo: descriptors 10, but verified 9");
        assert_eq!(failures("slots_fired=4", "slots_fired=3"), "guest demo: slots 4, but slots_fired 3");
        assert_eq!(failures("errors=0", "errors=2"), "guest demo counts 2 errors");
    }

    #[test]
    fn a_guest_has_to_end_by_itself_with_zero() {
        assert_eq!(failures("code=0", "code=7"), "guest demo ended with code 7");
        assert_eq!(failures("reason=exit", "reason=triple-fault"), "guest demo ended by triple-fault");
        assert_eq!(failures("@ims guest-end guest=1 name=demo reason=exit code=0\n", ""), "guest demo did not end");
    }

    #[test]
    fn the_hypervisor_has_to_say_that_all_is_well() {
        assert_eq!(failures("status=ok", "status=failed"), "the hypervisor ends with the status failed");
        assert_eq!(failures("@ims done status=ok\n", ""), "the hypervisor did not say that it is done");
        assert!(failures("@ims done", "@ims done x").contains("unreadable line"));
    }

    #[test]
    fn a_machine_that_hung_or_died_fails_the_run() {
        for end in [
            End::Silent(Duration::from_secs(30)),
            End::Died("panic".into()),
            End::TooLong(Duration::ZERO),
            End::Flooded,
        ] {
            let verdict = outcome(CONSOLE, &REMAPPED, end.clone()).summary().verdict();
            assert_eq!(verdict.failures, [end.to_string()]);
        }
    }

    #[test]
    fn messages_of_devices_that_do_not_count_are_held_against_nothing() {
        let some = Outcome { counts_all: false, ..outcome(CONSOLE, &[("dsa.messages", 3)], End::Off) };
        assert_eq!(some.summary().interrupts().stations(), [("delivered", 10), ("handled", 10)]);
        assert!(some.summary().verdict().is_right());
    }

    #[test]
    fn counters_that_are_missing_fail_the_run() {
        let verdict = outcome(CONSOLE, &[], End::Off).summary().verdict();
        assert_eq!(verdict.failures, ["the machine's devices left no counters"]);
    }

    #[test]
    fn a_run_without_a_guest_is_not_right() {
        let verdict = outcome("@ims done status=ok", &PLUGIN[..1], End::Off).summary().verdict();
        assert_eq!(verdict.failures, ["no guest was started"]);
    }

    #[test]
    fn two_guests_of_one_name_keep_their_own_results() {
        let second = CONSOLE.replace("guest=1", "guest=2");
        let both = format!("{}{second}", CONSOLE.replace("@ims done status=ok\n", ""));
        let plugin = [("dsa.messages", 20), ("vtd.remapped", 20)];
        let summary = outcome(&both, &plugin, End::Off).summary();
        assert_eq!(summary.verdict().failures, Vec::<String>::new());
        assert_eq!(summary.guests.iter().filter_map(|guest| guest.reported("handled")).sum::<u64>(), 20);
    }
}
