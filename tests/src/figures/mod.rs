//! `cargo bench`: boots the guest `bench`, once for interrupts that are injected, once for those that are posted and once on several
//! processors, and makes a table, JSON and plots of what it measured.

mod console;
mod document;
mod peer;
mod plot;
mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use imsvisor_boot::machine::bochs::{self, GENEROUS, GENEROUS_DSAS};
use imsvisor_boot::machine::{DSAS, Kind, Outcome};
use imsvisor_boot::report::Summary;
use serde_json::{Value, json};

use crate::isolation;
use crate::scenario::{self, Plan};

/// What `cargo bench` is told.
#[derive(Debug, Parser)]
#[command(
    bin_name = "cargo bench --",
    about = "Measures the trap and remap path: on the emulated machine, whose TSC counts instructions, or under KVM with QEMU",
    after_help = "Leaves bench.json, slots.svg and scenarios.svg in target/imsvisor.\n\
                  A value is the mean of a round's operations: minimum, median and 99th percentile are those of the rounds.\n\
                  Ratios are to the median of an exit that does nothing (CPUID)."
)]
pub struct Options {
    /// Measure only scenarios with this in their names (CPUID is measured in any case)
    #[arg(long, value_name = "TEXT", value_parser = word)]
    only: Option<String>,
    /// The machine to measure on. Under KVM every VM exit is a nested one, so each figure has its run's null exit beside it
    #[arg(long, value_enum, default_value_t)]
    machine: Kind,
    /// The emulated machine with more than real ones have: 16,128 slots in each of its DSAs, which are all on bus 0
    #[arg(long, conflicts_with = "machine")]
    generous: bool,
    /// Rounds that are timed for each scenario [default: 256; nested: 16]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=4096))]
    rounds: Option<u16>,
    /// Show the result in the documents, too: the README's rows, and tests/figures with its table and plots (of the emulated machine only)
    #[arg(long, conflicts_with_all = ["only", "machine", "generous"])]
    update: bool,
    /// What cargo itself adds
    #[arg(long, hide = true)]
    bench: bool,
}

/// Scenarios' names are letters, digits and hyphens.
fn word(text: &str) -> Result<String, String> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if text.bytes().all(legal) { Ok(text.to_owned()) } else { Err("no scenario has such a name".to_owned()) }
}

/// A machine to measure on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// The kind.
    pub kind: Kind,
    /// Of the emulated ones, the one with more than real ones have.
    pub generous: bool,
}

impl Machine {
    /// The emulated machine with more than real ones have.
    pub const GENEROUS: Self = Self { kind: Kind::Bochs, generous: true };

    /// Its name, for people and programs.
    fn name(self) -> String {
        let kind = self.kind.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
        match self {
            Self { kind: Kind::Bochs, generous: false } => format!("{kind}, as Sapphire Rapids"),
            Self { kind: Kind::Bochs, generous: true } => format!("{kind}, {GENEROUS}"),
            _ => kind,
        }
    }

    /// All of its DSAs, as a guest's options. The emulated machine has four, with 8,192 slots in all; the generous one's have 64,512.
    fn devices(self) -> String {
        let devices = match self {
            Self { kind: Kind::Bochs, generous: false } => &bochs::DSAS[..],
            Self { kind: Kind::Bochs, generous: true } => &GENEROUS_DSAS[..],
            _ => &DSAS[..],
        };
        devices.iter().map(|device| format!("device={device} ")).collect()
    }

    /// Changes to it that are measured with.
    fn plugin(self) -> &'static [&'static str] {
        match self {
            Self { kind: Kind::Bochs, generous: false } => &["four-dsas"],
            Self { kind: Kind::Bochs, generous: true } => &[GENEROUS, "four-dsas", "most-slots"],
            _ => &[],
        }
    }
}

/// What was measured of one scenario.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// What was done.
    pub scenario: String,
    /// In which way.
    pub variant: String,
    /// Slots that were live.
    pub slots: u64,
    /// Virtual processors of the guest.
    pub vcpus: u64,
    /// Operations that were timed.
    pub ops: u64,
    /// VM exits of an operation.
    pub exits_per_op: f64,
    /// Instructions of an operation in the best round.
    pub min: f64,
    /// In the middle one.
    pub median: f64,
    /// 99 of 100 rounds are not above this.
    pub p99: f64,
    /// The median of an exit that does nothing, in the same run.
    pub null_exit: f64,
}

impl Figure {
    /// The median in medians of an exit that does nothing.
    pub fn ratio(&self) -> f64 {
        self.median / self.null_exit
    }

    fn json(&self, machine: Machine) -> Value {
        json!({
            "machine": machine.name(),
            "scenario": self.scenario,
            "variant": self.variant,
            "slots": self.slots,
            "vcpus": self.vcpus,
            "ops": self.ops,
            "exits_per_op": rounded(self.exits_per_op),
            "min": rounded(self.min),
            "median": rounded(self.median),
            "p99": rounded(self.p99),
            "unit": machine.kind.unit(),
            "null_exit": rounded(self.null_exit),
            "ratio_to_null_exit": rounded(self.ratio()),
        })
    }
}

/// To thousandths: more is noise in the last bits.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// Measures, shows and writes everything.
pub fn run(options: &Options) -> Result<()> {
    let kind = options.machine;
    let machine = Machine { kind, generous: options.generous };
    let figures = measure(machine, options.rounds.unwrap_or(rounds(kind)), options.only.as_deref())?;
    println!("\n  Machine: {}", machine.name());
    print!("{}", table::terminal(&figures, kind));
    left_out(machine).for_each(|words| println!("  {words}"));
    if kind == Kind::Bochs && ISOLATION.contains(options.only.as_deref().unwrap_or_default()) {
        print!("{}", isolation::table(&isolation()?));
    }
    let home = &crate::bench::paths()?.home;
    let mut files = vec![write(home, "bench.json", &json_text(&figures, machine)?)?];
    files.extend(plots(home, &figures, kind)?);
    if options.update {
        let folder = crate::bench::paths()?.workspace.join("tests/figures");
        files.extend(plots(&folder, &figures, kind)?);
        files.extend(document::update(&crate::bench::paths()?.workspace, &figures, &machine.name())?);
    }
    println!();
    files.iter().for_each(|file| println!("  {}", file.display()));
    Ok(())
}

/// The scenario in which one guest attacks the time of another one. It has a table of its own.
const ISOLATION: &str = "isolation";

/// What the attacks left a victim of its time.
fn isolation() -> Result<Vec<isolation::Attacked>> {
    let mut plan = Plan::new()?;
    isolation::set_up(&mut plan, "", "")?;
    isolation::read(&scenario::boot("a thief of time", &plan)?)
}

/// Rounds where none were asked for. On the nested machine everything takes fifty times as long.
fn rounds(kind: Kind) -> u16 {
    if kind == Kind::Nested { 16 } else { 256 }
}

/// Processors of the machine, and of the guest, where there are several.
const PROCESSORS: u32 = 4;

/// Whether rows with several processors can be had: as many are needed.
fn has_processors(kind: Kind) -> bool {
    let of_host = || std::thread::available_parallelism().is_ok_and(|count| count.get() >= PROCESSORS as usize);
    match kind {
        Kind::Bochs => true,
        Kind::Nested => false,
        Kind::Kvm | Kind::Tcg => of_host(),
    }
}

/// Which rows the machine does not have, and why.
fn left_out(machine: Machine) -> impl Iterator<Item = String> {
    let kind = machine.kind;
    let posted = "no rows with posted interrupts: QEMU's remapping unit cannot post".to_owned();
    let several = format!("no rows with several vCPUs: they need {PROCESSORS} processors");
    let slots = match kind {
        Kind::Bochs => "no rows with more live slots than the machine has: --generous has 64,512",
        _ => "no rows with more live slots than the two DSAs of QEMU's machine have",
    };
    let all = [(kind.posts(), posted), (has_processors(kind), several), (machine.generous, slots.to_owned())];
    all.into_iter().filter(|(there, _)| !there).map(|(_, words)| words)
}

/// Boots the guest and reads what it measured: the scenarios with `only` in their names, and the floor.
pub fn measure(machine: Machine, rounds: u16, only: Option<&str>) -> Result<Vec<Figure>> {
    let kind = machine.kind;
    let only = only.unwrap_or_default();
    // Where QEMU carries out a store to a portal, the device is done before the store is.
    let from = if kind == Kind::Bochs { "" } else { " from=store" };
    let line = format!("rounds={rounds} only={only}{from}");
    let mut figures = console::read(&boot(machine, 1, &machine.devices(), &line, &[])?)?;
    if FLOOR.contains(only) {
        let at = after_last(&figures, &[FLOOR]);
        figures.splice(at..at, without_mitigations(machine, rounds)?);
    }
    // What is posted needs another guest, and differs from what is injected in nothing else.
    if kind.posts() && COME_IN_TWO_WAYS.iter().any(|name| name.contains(only)) {
        let options = "device=dsa apicv=on posting=on";
        let posted = boot(machine, 1, options, &format!("{line} delivery=posted profile=posted"), &[])?;
        let posted =
            console::read(&posted)?.into_iter().filter(|figure| COME_IN_TWO_WAYS.contains(&figure.scenario.as_str()));
        let after = after_last(&figures, &COME_IN_TWO_WAYS);
        figures.splice(after..after, posted);
    }
    // Several processors are another machine.
    if has_processors(kind) {
        let options = format!("device=dsa cpus={PROCESSORS}");
        let several = boot(machine, PROCESSORS, &options, &format!("{line} cpus={PROCESSORS}"), &[])?;
        figures.extend(console::read(&several)?.into_iter().filter(|figure| figure.scenario != FLOOR));
    }
    Ok(figures)
}

/// Behind the last figure of these scenarios.
fn after_last(figures: &[Figure], scenarios: &[&str]) -> usize {
    let last = figures.iter().rposition(|figure| scenarios.contains(&figure.scenario.as_str()));
    last.map_or(0, |last| last + 1)
}

/// What an exit costs where nothing is done against speculation.
fn without_mitigations(machine: Machine, rounds: u16) -> Result<Vec<Figure>> {
    let line = format!("rounds={rounds} only={FLOOR}");
    let mut figures = console::read(&boot(machine, 1, &machine.devices(), &line, &["mitigations=off"])?)?;
    figures.retain(|figure| figure.scenario == FLOOR);
    figures.iter_mut().for_each(|figure| figure.variant += "-mitigations-off");
    Ok(figures)
}

/// The scenario that all others are compared with.
const FLOOR: &str = "null-exit";

/// Scenarios whose interrupts can come in two ways.
const COME_IN_TWO_WAYS: [&str; 3] = ["interrupt-latency", "interrupt-whole", "interrupt-stream"];

/// A run of all scenarios takes longer on machines whose exits do.
const LIMIT: Duration = Duration::from_secs(3600);

/// Boots the guest with module `options` and a command line, and the hypervisor with `hypervisor` added to its own.
fn boot(machine: Machine, processors: u32, options: &str, command_line: &str, hypervisor: &[&str]) -> Result<Outcome> {
    let mut plan = Plan::on(machine.kind)?;
    plan.config.cpus = processors;
    plan.config.hypervisor_options.extend(hypervisor.iter().map(|&word| word.to_owned()));
    plan.plugin(machine.plugin());
    if machine.kind != Kind::Bochs {
        plan.config.limit = LIMIT;
    }
    plan.guest("bench", &format!("bench mem=64M exits=marks {options} cmdline=\"{command_line}\""))?;
    let outcome = scenario::boot("the benchmarks", &plan)?;
    if let Err(error) = judge(&outcome.summary()) {
        let end: Vec<_> = outcome.last_lines(40).map(imsvisor_boot::words::harmless).collect();
        bail!("{}\n{error:#}\nlogs: {}", end.join("\n"), outcome.directory.display());
    }
    Ok(outcome)
}

/// Nothing failed, and each interrupt that the device raised was handled. (Who delivers those that are posted does not count them.)
fn judge(summary: &Summary) -> Result<()> {
    let [guest] = summary.guests.as_slice() else { bail!("the guest was not started: {:?}", summary.refused) };
    let end = guest.end.as_ref().and_then(|end| end.get("code"));
    ensure!(summary.end.is_right() && summary.done.as_deref() == Some("ok") && end == Some("0"), "the run failed");
    let interrupts = summary.interrupts();
    ensure!(interrupts.raised.is_some() && interrupts.raised == interrupts.handled, "not each interrupt was handled");
    Ok(())
}

fn json_text(figures: &[Figure], machine: Machine) -> Result<String> {
    let all: Vec<_> = figures.iter().map(|figure| figure.json(machine)).collect();
    Ok(serde_json::to_string_pretty(&all).context("the figures as JSON")? + "\n")
}

fn plots(folder: &Path, figures: &[Figure], kind: Kind) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for (name, svg) in [("slots.svg", plot::slots(figures, kind)?), ("scenarios.svg", plot::scenarios(figures, kind)?)]
    {
        if let Some(svg) = svg {
            files.push(write(folder, name, &svg)?);
        }
    }
    Ok(files)
}

fn write(folder: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let file = folder.join(name);
    fs::create_dir_all(folder).and_then(|()| fs::write(&file, text)).with_context(|| format!("{}", file.display()))?;
    Ok(file)
}

#[cfg(test)]
pub(crate) fn figure(scenario: &str, variant: &str, slots: u64, median: f64) -> Figure {
    Figure {
        scenario: scenario.to_owned(),
        variant: variant.to_owned(),
        slots,
        vcpus: 1,
        ops: 4096,
        exits_per_op: 1.0,
        min: median - 1.0,
        median,
        p99: median + 1.25,
        null_exit: 100.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_an_array_with_every_key() {
        let text = json_text(&[figure("mask", "trapped", 16, 1234.0625)], Machine { kind: Kind::Kvm, generous: false })
            .unwrap();
        let expected = json!([{
            "machine": "kvm", "scenario": "mask", "variant": "trapped", "slots": 16, "vcpus": 1, "ops": 4096,
            "exits_per_op": 1.0, "min": 1233.063, "median": 1234.063, "p99": 1235.313, "unit": "TSC ticks", "null_exit": 100.0,
            "ratio_to_null_exit": 12.341,
        }]);
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expected);
    }

    #[test]
    fn a_filter_is_one_word_of_the_guests_command_line() {
        assert!(Options::try_parse_from(["figures", "--bench", "--only", "map-1"]).is_ok());
        assert!(Options::try_parse_from(["figures", "--only", "a b=c"]).is_err());
        assert!(Options::try_parse_from(["figures", "--only", "map", "--update"]).is_err());
        assert!(Options::try_parse_from(["figures", "--rounds", "0"]).is_err());
        assert!(Options::try_parse_from(["figures", "--machine", "kvm", "--update"]).is_err());
        assert_eq!(Options::try_parse_from(["figures", "--machine", "nested"]).unwrap().machine, Kind::Nested);
    }

    #[test]
    fn what_a_machine_cannot_show_is_said() {
        assert_eq!(left_out(Machine::GENEROUS).count(), 0);
        let of = |kind| left_out(Machine { kind, generous: false });
        assert_eq!(of(Kind::Bochs).count(), 1);
        let nested: Vec<_> = of(Kind::Nested).collect();
        assert!(nested.len() == 3 && nested[0].contains("posted") && nested[1].contains("vCPUs"), "{nested:?}");
    }
}
