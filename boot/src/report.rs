//! The report of a run: its figures, and whether the run passed.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::event::{Line, Pairs};
use crate::machine::{End, Outcome};
use crate::words::grouped;

/// One guest's part in a run. Figures of several lives are added up.
#[derive(Debug, Clone, Default)]
pub struct Guest {
    /// How often it was started.
    pub lives: u64,
    /// How many of its lives have reported.
    pub reports: u64,
    /// The sums of the lives before the current one: VM exits and interrupts.
    before: (BTreeMap<String, u64>, Pairs),
    /// The hypervisor's number for it.
    pub number: String,
    /// Its name.
    pub name: String,
    /// `guest-start` of its first life.
    pub start: Pairs,
    /// `guest-end` of its last life, if that ended.
    pub end: Option<Pairs>,
    /// `exits`: VM exits by reason.
    pub exits: BTreeMap<String, u64>,
    /// `interrupts`.
    pub interrupts: Pairs,
    /// `guest-released` of its last life.
    pub time: Pairs,
    /// What the guest itself reports.
    pub result: Option<Pairs>,
}

impl Guest {
    /// A figure of the guest's own report.
    pub fn reported(&self, key: &str) -> Option<u64> {
        self.result.as_ref()?.number(key)
    }

    /// Interrupts that it handled: those that it counted, and those that it says come after its count (Linux' driver has one more when it
    /// disables a device at the end).
    /// One that was forced before it could say so makes it unknown.
    pub fn handled(&self) -> Option<u64> {
        if self.reports < self.lives {
            return None;
        }
        Some(self.reported("handled")?.saturating_add(self.reported("closing").unwrap_or(0)))
    }

    /// A life begins.
    fn begin(&mut self, start: &Pairs) {
        if self.lives == 0 {
            self.start = start.clone();
        }
        self.lives += 1;
        self.end = None;
        self.before = (self.exits.clone(), self.interrupts.clone());
    }

    /// VM exits of the current life so far.
    fn take_exits(&mut self, counts: impl Iterator<Item = (String, u64)>) {
        self.exits = self.before.0.clone();
        for (reason, count) in counts {
            *self.exits.entry(reason).or_default() += count;
        }
    }

    fn take_interrupts(&mut self, pairs: &Pairs) {
        self.interrupts = self.before.1.clone();
        self.interrupts.add(pairs);
    }

    fn take_result(&mut self, pairs: &Pairs) {
        self.reports += 1;
        self.result.get_or_insert_default().add(pairs);
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

    /// Whether interrupts of devices can have been for it: it asked for some.
    fn has_slots(&self) -> bool {
        ["delivered", "hypercalls", "trapped_writes"]
            .into_iter()
            .any(|key| self.interrupts.number(key).is_some_and(|count| count != 0))
    }

    /// Whether it waited for each of its interrupts, and no wait was in vain.
    fn vouches(&self) -> bool {
        self.reported("timeouts") == Some(0) && self.reported("errors").is_none_or(|errors| errors == 0)
    }

    fn end_failures(&self) -> Vec<String> {
        let Some(end) = &self.end else { return vec![format!("guest {} did not end", self.name)] };
        match (end.get("reason"), end.number("code")) {
            (Some("exit"), Some(0)) | (Some("stopped"), _) => Vec::new(),
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
    /// Requests that the remapping unit posted, by the unit's count.
    pub posted: u64,
    /// Posted interrupts that the hypervisor took from its own descriptors, by its count. The other posted ones reach their guest without
    /// the hypervisor.
    pub from_descriptors: u64,
    /// Interrupts given to guests, by the hypervisor; unknown where all guests have theirs posted.
    pub delivered: Option<u64>,
    /// Interrupts that guests' handlers saw, by the guests.
    pub handled: Option<u64>,
    /// Interrupts that the handlers of guests with posting saw, by the guests.
    pub handled_posted: u64,
    /// Interrupts that were remapped and that no guest has to handle.
    pub aside: Aside,
    /// Interrupts that met a request of the same vector in the machine's local APICs, by the machine; unknown where it cannot see
    /// them.
    pub met: Option<u64>,
    /// Posted interrupts whose vector the descriptor had already, by the unit.
    pub posted_met: u64,
    /// Whether every guest that asked for interrupts vouches that it waited for none in vain.
    pub vouched: bool,
}

/// Interrupts that no guest has to handle, by the hypervisor's count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Aside {
    /// Interrupts that met a pending one of the same vector, in the hypervisor or in a guest's virtual local APIC.
    pub merged: u64,
    /// Interrupts of functions that the hypervisor keeps.
    pub own: u64,
    /// Pending interrupts that a function's reset discarded.
    pub discarded: u64,
    /// Interrupts that the guest's local APIC did not accept.
    pub dropped: u64,
    /// Interrupts that lead to no guest.
    pub strays: u64,
}

impl Aside {
    fn all(&self) -> [(&'static str, u64); 5] {
        [
            ("merged with one of the same vector", self.merged),
            ("for the hypervisor itself", self.own),
            ("discarded by a reset", self.discarded),
            ("not taken by the guest", self.dropped),
            ("for nobody", self.strays),
        ]
    }

    /// How many there are.
    pub fn sum(&self) -> u64 {
        self.all().iter().map(|(_, count)| count).sum()
    }

    /// The counts that are not 0, for people.
    pub fn words(&self) -> String {
        let there = self.all().into_iter().filter(|(_, count)| *count != 0);
        there.map(|(what, count)| format!("{} {what}", grouped(count))).collect::<Vec<_>>().join(", ")
    }
}

impl Interrupts {
    /// The figures of all parties in the order of the way. A figure that no party counted is left out. The deliveries include the posted
    /// interrupts.
    pub fn stations(&self) -> Vec<(&'static str, u64)> {
        let all = [
            ("raised", self.raised),
            ("remapped", self.remapped),
            (
                "delivered",
                self.delivered.map(|delivered| delivered + self.posted.saturating_sub(self.from_descriptors)),
            ),
            ("handled", self.handled),
        ];
        all.into_iter().filter_map(|(name, count)| Some((name, count?))).collect()
    }

    /// Those that go aside between two stations that follow each other, by somebody's count.
    fn counted_aside(&self, a: &str, b: &str) -> u64 {
        let before_delivery = if a == "remapped" { self.aside.sum() + self.met.unwrap_or(0) } else { 0 };
        let in_descriptors = if b == "handled" { self.posted_met } else { 0 };
        before_delivery + in_descriptors
    }

    /// Interrupts that were remapped and that no party counted after that. Two interrupts that come together with one vector are one in a local
    /// APIC (SDM vol. 3, 12.8.4). No party counts such merges in a guest's local APIC that the processor keeps, nor on a machine that does
    /// not see them. There the difference is no failure if the guests vouch.
    pub fn unseen(&self) -> u64 {
        let after = self.stations().into_iter().find(|(name, _)| ["delivered", "handled"].contains(name));
        let Some((name, count)) = after else { return self.remapped.unwrap_or(0) };
        if self.met.is_some() && (name == "delivered" || self.posted == 0) {
            return 0;
        }
        self.remapped.unwrap_or(0).saturating_sub(count + self.counted_aside("remapped", name))
    }

    /// The merges that the machine sees, in its local APICs and in descriptors, for people.
    pub fn met_words(&self) -> Option<String> {
        let met = self.met.unwrap_or(0) + self.posted_met;
        (met != 0).then(|| format!("{} merged with one of the same vector in the machine", grouped(met)))
    }

    /// Compares two stations that follow each other. Returns the failure if their counts do not agree. From the remapping unit on, the second
    /// count may be lower by the interrupts that a party counted aside, and, if the guests vouch, by the interrupts that no party can count.
    /// The second count may never be higher.
    fn difference(&self, (a, x): (&str, u64), (b, y): (&str, u64)) -> Option<String> {
        let aside = self.counted_aside(a, b);
        let unseen = if a == "remapped" && self.vouched { self.unseen() } else { 0 };
        let words = [self.aside.words(), self.met_words().unwrap_or_default()];
        let words = words.iter().filter(|words| !words.is_empty()).cloned().collect::<Vec<_>>().join(", ");
        let but = if aside == 0 { String::new() } else { format!(" ({words})") };
        (x != y + aside + unseen).then(|| format!("{x} interrupts {a}, but {y} {b}{but}"))
    }

    fn failures(&self) -> Vec<String> {
        let stations = self.stations();
        let pairs = stations.iter().zip(stations.iter().skip(1));
        let mut failures: Vec<String> = pairs.filter_map(|(a, b)| self.difference(*a, *b)).collect();
        // What one kind of guest lost and the other had too much must not make up for each other.
        if let (Some(remapped), Some(handled)) = (self.remapped, self.handled)
            && remapped == handled + self.counted_aside("remapped", "handled")
            && self.posted != self.from_descriptors + self.handled_posted + self.posted_met
        {
            failures.push(format!(
                "{} interrupts posted, but {} taken by the hypervisor and {} handled by guests that have them posted",
                self.posted, self.from_descriptors, self.handled_posted
            ));
        }
        if self.aside.strays != 0 {
            failures.push(format!("{} interrupts came for which nobody was waiting", self.aside.strays));
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
    /// What the machine's time-stamp counter counts, for people.
    pub unit: &'static str,
}

impl Outcome {
    /// The run's figures and its verdict.
    pub fn summary(&self) -> Summary {
        Summary::new(self)
    }
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
            unit: outcome.unit,
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
            Line::Guest { .. } | Line::Text(_) | Line::Nested(_) | Line::Linux(_) => {}
        }
    }

    fn take_event(&mut self, name: &str, pairs: &Pairs) {
        match name {
            "machine" => self.machine = pairs.clone(),
            "refused" => {
                let value = |key| pairs.get(key).unwrap_or("?");
                self.refused.push(format!("{}: {}", value("what"), value("why")));
            }
            "guest-start" => self.guest(pairs).begin(pairs),
            "guest-end" => self.guest(pairs).end = Some(pairs.clone()),
            "interrupts" => self.guest(pairs).take_interrupts(pairs),
            "guest-released" => self.guest(pairs).time = pairs.clone(),
            "exits" => {
                let counts = pairs.iter().filter_map(|(reason, _)| Some((reason.to_owned(), pairs.number(reason)?)));
                self.guest(pairs).take_exits(counts.filter(|(reason, _)| reason != "guest"));
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

    /// A guest's report goes to the first of its name whose life has none yet.
    fn take_result(&mut self, name: &str, pairs: &Pairs) {
        let of_name = self.guests.iter_mut().find(|guest| guest.name == name && guest.reports < guest.lives);
        match of_name {
            Some(guest) => guest.take_result(pairs),
            None => self.broken.push(format!("a result of a guest that did not start: {name}")),
        }
    }

    /// The way of the interrupts, as each party counted it.
    pub fn interrupts(&self) -> Interrupts {
        // Where another device sends as well, the DSAs' messages are not all that were raised.
        let counter = |name: &str| self.plugin.get(name).copied().filter(|_| self.counts_all);
        let delivered: Vec<u64> = self.guests.iter().filter_map(|guest| guest.interrupts.number("delivered")).collect();
        let is_posted = |guest: &&Guest| guest.interrupts.get("posted") == Some("yes");
        let handled_posted = self.guests.iter().filter(is_posted).filter_map(Guest::handled).sum();
        let handled: Vec<u64> = self.guests.iter().filter_map(Guest::handled).collect();
        let remapped = (counter("vtd.remapped"), counter("vtd.posted"));
        Interrupts {
            raised: counter("dsa.messages"),
            remapped: matches!(remapped, (Some(_), _) | (_, Some(_)))
                .then(|| remapped.0.unwrap_or(0) + remapped.1.unwrap_or(0)),
            posted: remapped.1.unwrap_or(0),
            from_descriptors: self.guests.iter().filter_map(|guest| guest.interrupts.number("from_descriptors")).sum(),
            delivered: (!delivered.is_empty()).then(|| delivered.iter().sum()),
            handled_posted,
            aside: self.aside(),
            met: counter("vtd.merged"),
            posted_met: counter("vtd.posted_merged").unwrap_or(0),
            vouched: self.guests.iter().filter(|guest| guest.has_slots()).all(Guest::vouches)
                && self.guests.iter().any(Guest::vouches),
            // A guest that does not count makes the sum meaningless.
            handled: (!handled.is_empty() && handled.len() == self.guests.len()).then(|| handled.iter().sum()),
        }
    }

    fn aside(&self) -> Aside {
        let machine = |key: &str| self.remap.number(key).unwrap_or(0);
        let guests = |key: &str| self.guests.iter().filter_map(|guest| guest.interrupts.number(key)).sum::<u64>();
        Aside {
            merged: machine("merged") + guests("merged"),
            own: machine("own"),
            discarded: machine("discarded"),
            dropped: guests("dropped"),
            strays: machine("strays"),
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
        // QEMU's own trace is there in any case.
        let of_devices = ["dsa.messages", "other.messages"].iter().any(|key| self.plugin.contains_key(*key));
        if self.with_counters && !of_devices {
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
    use crate::machine::Silence;

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
            unit: crate::machine::INSTRUCTIONS,
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
        assert_eq!(
            failures,
            ["3 interrupts posted, but 0 taken by the hypervisor and 2 handled by guests that have them posted"]
        );
    }

    #[test]
    fn interrupts_posted_for_the_hypervisor_are_compared_with_what_it_injected() {
        let failures = |from: &str, to: &str, met: u64| {
            let console = CONSOLE.replace("hypercalls=3", "merged=1 from_descriptors=9 hypercalls=3");
            let console = console.replace("delivered=10", "delivered=8").replace("handled=10", "handled=8");
            assert!(console.contains(from), "{from}");
            let counters = [("dsa.messages", 9 + met), ("vtd.remapped", 0), ("vtd.posted", 9 + met)];
            let counters = [&counters[..], &[("vtd.merged", 0), ("vtd.posted_merged", met)]].concat();
            outcome(&console.replace(from, to), &counters, End::Off).summary().verdict().failures
        };
        assert_eq!(failures("guest=1", "guest=1", 0), Vec::<String>::new());
        assert_eq!(failures("guest=1", "guest=1", 2), Vec::<String>::new(), "two met in the descriptor");
        assert_eq!(failures("handled=8", "handled=7", 0), ["8 interrupts delivered, but 7 handled"]);
        assert!(!failures("from_descriptors=9", "from_descriptors=8", 0).is_empty(), "one was posted and not taken");
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

    /// The plain run with what the hypervisor counts aside, and as many remapped.
    fn with_aside(guest: &str, machine: &str, remapped: u64) -> Summary {
        let console = CONSOLE
            .replace("hypercalls=3", &format!("hypercalls=3 {guest}"))
            .replace("high_water=4", &format!("high_water=4 {machine}"));
        outcome(&console, &[("dsa.messages", remapped), ("vtd.remapped", remapped)], End::Off).summary()
    }

    #[test]
    fn each_interrupt_that_goes_aside_is_one_that_somebody_counted() {
        for (guest, machine) in [
            ("merged=2", ""),
            ("", "merged=2"),
            ("merged=1 dropped=1", ""),
            ("", "own=2"),
            ("", "discarded=2"),
            ("merged=1", "merged=1"),
        ] {
            assert_eq!(with_aside(guest, machine, 12).verdict().failures, Vec::<String>::new(), "{guest} {machine}");
            let [fewer, more] = [11, 13].map(|remapped| with_aside(guest, machine, remapped).verdict().is_right());
            assert!(!fewer && !more, "{guest} {machine}");
        }
        // This one is known, and wrong.
        let stray = with_aside("", "strays=2", 12).verdict().failures;
        assert_eq!(stray, ["2 interrupts came for which nobody was waiting"]);
        let summary = with_aside("merged=1", "own=2", 14);
        let expected = "14 interrupts remapped, but 10 delivered (1 merged with one of the same vector, 2 for the hypervisor itself)";
        assert_eq!(summary.verdict().failures, [expected]);
    }

    #[test]
    fn interrupts_that_meet_in_a_local_apic_are_right_where_the_machine_counts_them() {
        let failures = |met: u64, remapped: u64, result: &str| {
            let counters = [("dsa.messages", remapped), ("vtd.remapped", remapped), ("vtd.merged", met)];
            outcome(&CONSOLE.replace("errors=0", result), &counters, End::Off).summary().verdict().failures
        };
        assert_eq!(failures(2, 12, "errors=0"), Vec::<String>::new());
        assert_eq!(failures(0, 10, "errors=0"), Vec::<String>::new());
        let expected = "12 interrupts remapped, but 10 delivered (1 merged with one of the same vector in the machine)";
        assert_eq!(failures(1, 12, "errors=0"), [expected]);
        assert_eq!(failures(3, 12, "errors=0").len(), 1, "more merged than are missing");
        // Here nobody need vouch, and nobody may.
        assert_eq!(failures(0, 12, "errors=0 timeouts=0"), ["12 interrupts remapped, but 10 delivered"]);
    }

    #[test]
    fn posted_interrupts_that_meet_in_a_descriptor_are_counted_by_the_unit() {
        let failures = |handled: u64, result: &str| {
            let console = CONSOLE.replace("delivered=10", "posted=yes").replace("errors=0", result);
            let console = console.replace("handled=10", &format!("handled={handled}"));
            let counters = [POSTED.as_slice(), &[("vtd.merged", 0), ("vtd.posted_merged", 2)]].concat();
            outcome(&console, &counters, End::Off).summary().verdict().failures
        };
        assert_eq!(failures(8, "errors=0"), Vec::<String>::new());
        assert_eq!(failures(10, "errors=0").len(), 1, "none of them was handled");
        assert_eq!(failures(7, "errors=0").len(), 1, "one more is missing");
        assert_eq!(failures(7, "errors=0 timeouts=0"), Vec::<String>::new(), "merged in the virtual local APIC");
    }

    #[test]
    fn what_comes_after_a_guests_count_is_what_it_says_and_no_more() {
        let failures = |counted: &str| {
            let console = CONSOLE.replace("handled=10", counted);
            outcome(&console, &REMAPPED, End::Off).summary().verdict().failures
        };
        assert_eq!(failures("handled=9 closing=1"), Vec::<String>::new());
        assert_eq!(failures("handled=9"), ["10 interrupts delivered, but 9 handled"]);
        assert_eq!(failures("handled=10 closing=1"), ["10 interrupts delivered, but 11 handled"]);
        assert_eq!(failures("handled=8 closing=1"), ["10 interrupts delivered, but 9 handled"]);
    }

    #[test]
    fn interrupts_that_meet_unseen_are_right_only_where_every_guest_vouches() {
        let run = |result: &str, remapped: u64| {
            let console = CONSOLE.replace("errors=0", result);
            outcome(&console, &[("dsa.messages", remapped), ("vtd.remapped", remapped)], End::Off).summary()
        };
        let vouched = run("errors=0 timeouts=0", 12);
        assert_eq!((vouched.verdict().failures, vouched.interrupts().unseen()), (Vec::new(), 2));
        assert!(!run("errors=0", 12).verdict().is_right(), "the guest does not say that it waited for all");
        assert!(!run("errors=0 timeouts=1", 12).verdict().is_right());
        assert!(!run("errors=0 timeouts=0", 9).verdict().is_right(), "more delivered than there were");
        let miscounted = CONSOLE.replace("errors=0", "errors=0 timeouts=0").replace("handled=10", "handled=9");
        assert!(!outcome(&miscounted, &REMAPPED, End::Off).summary().verdict().is_right(), "lost in the guest");
        // Another guest, which asked for interrupts, says nothing.
        let other = "@ims guest-start guest=2 name=x\n@ims interrupts guest=2 delivered=0 hypercalls=1\n\
                     @ims guest-end guest=2 name=x reason=exit code=0\n@ims done";
        let both = CONSOLE.replace("errors=0", "errors=0 timeouts=0").replace("@ims done", other);
        let counters = [("dsa.messages", 12), ("vtd.remapped", 12)];
        assert!(!outcome(&both, &counters, End::Off).summary().verdict().is_right());
        // One that never asked for any has nothing to vouch for.
        let without = both.replace("hypercalls=1", "hypercalls=0");
        assert_eq!(outcome(&without, &counters, End::Off).summary().verdict().failures, Vec::<String>::new());
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
            End::Silent(Silence { wall: Duration::from_secs(30), own: None, rips: Vec::new() }),
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
        for others in [&[][..], &[("vtd.remapped", 10), ("vtd.iec_flushes", 3), ("vtd.dma_faults", 0)]] {
            let verdict = outcome(CONSOLE, others, End::Off).summary().verdict();
            assert_eq!(verdict.failures, ["the machine's devices left no counters"]);
        }
    }

    #[test]
    fn a_run_without_a_guest_is_not_right() {
        let verdict = outcome("@ims done status=ok", &PLUGIN[..1], End::Off).summary().verdict();
        assert_eq!(verdict.failures, ["no guest was started"]);
    }

    #[test]
    fn lives_of_one_guest_are_added_up_and_the_last_end_counts() {
        let life = CONSOLE.replace("@ims done status=ok\n", "");
        let failed = life.replace("reason=exit code=0", "reason=triple-fault code=255");
        let plugin = [("dsa.messages", 30), ("vtd.remapped", 30)];
        let summary = outcome(&format!("{life}{failed}{CONSOLE}"), &plugin, End::Off).summary();
        assert_eq!(summary.verdict().failures, Vec::<String>::new());
        let [guest] = &summary.guests[..] else { panic!("{:?}", summary.guests) };
        assert_eq!((guest.lives, guest.handled(), guest.exits["vmcall"]), (3, Some(30), 9));
        assert_eq!(guest.interrupts.number("delivered"), Some(30));
        let summary = outcome(&format!("{life}{failed}"), &plugin, End::Off).summary();
        assert!(summary.verdict().failures.contains(&"guest demo ended by triple-fault".to_owned()));
        // One that was stopped by force has not said what it handled.
        let forced = life.replace("reason=exit code=0", "reason=stopped code=255");
        let silent: String =
            forced.lines().filter(|line| !line.contains("@result")).map(|line| format!("{line}\n")).collect();
        let summary =
            outcome(&format!("{silent}{CONSOLE}"), &[("dsa.messages", 20), ("vtd.remapped", 20)], End::Off).summary();
        assert_eq!(summary.verdict().failures, Vec::<String>::new());
        assert_eq!(summary.guests[0].handled(), None);
        let summary = outcome(
            &format!("{life}{silent}@ims done status=ok\n"),
            &[("dsa.messages", 20), ("vtd.remapped", 20)],
            End::Off,
        )
        .summary();
        assert_eq!(summary.verdict().failures, Vec::<String>::new());
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
