//! `cargo bench`: boots the guest `bench`, once for interrupts that are injected, once for those that are posted and once on several
//! processors, and makes a table, JSON and plots of what it measured.

mod console;
mod document;
mod peer;
mod plot;
mod table;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use imsvisor_boot::machine::Outcome;
use imsvisor_boot::report::Summary;
use serde_json::{Value, json};

use crate::scenario::{self, Plan};

/// What `cargo bench` is told.
#[derive(Debug, Parser)]
#[command(
    bin_name = "cargo bench --",
    about = "Measures the trap and remap path on the emulated machine, whose TSC counts instructions",
    after_help = "Leaves bench.json, slots.svg and scenarios.svg in target/imsvisor.\n\
                  A value is the mean of a round's operations: minimum, median and 99th percentile are those of the rounds.\n\
                  Ratios are to the median of an exit that does nothing (CPUID)."
)]
pub struct Options {
    /// Measure only scenarios with this in their names (CPUID is measured in any case)
    #[arg(long, value_name = "TEXT", value_parser = word)]
    only: Option<String>,
    /// Rounds that are timed for each scenario
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..=4096))]
    rounds: u16,
    /// Show the result in the README, too: its table, and the plots in tests/figures
    #[arg(long, conflicts_with = "only")]
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
    /// The median in medians of an exit that does nothing.
    pub ratio: f64,
}

/// What the machine's TSC counts, on which the figures are taken.
const UNIT: &str = imsvisor_boot::machine::INSTRUCTIONS;

impl Figure {
    fn json(&self, unit: &str) -> Value {
        json!({
            "scenario": self.scenario,
            "variant": self.variant,
            "slots": self.slots,
            "vcpus": self.vcpus,
            "ops": self.ops,
            "exits_per_op": rounded(self.exits_per_op),
            "min": rounded(self.min),
            "median": rounded(self.median),
            "p99": rounded(self.p99),
            "unit": unit,
            "ratio_to_null_exit": rounded(self.ratio),
        })
    }
}

/// To thousandths: more is noise in the last bits.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// Measures, shows and writes everything.
pub fn run(options: &Options) -> Result<()> {
    let figures = measure(options.rounds, options.only.as_deref())?;
    print!("{}", table::terminal(&figures, UNIT));
    let home = &crate::bench::paths()?.home;
    let mut files = vec![write(home, "bench.json", &json_text(&figures, UNIT)?)?];
    files.extend(plots(home, &figures)?);
    if options.update {
        let folder = crate::bench::paths()?.workspace.join("tests/figures");
        files.extend(plots(&folder, &figures)?);
        files.push(document::update(&crate::bench::paths()?.workspace.join("README.md"), &figures, UNIT)?);
    }
    println!();
    files.iter().for_each(|file| println!("  {}", file.display()));
    Ok(())
}

/// Boots the guest and reads what it measured: the scenarios with `only` in their names, and the floor.
pub fn measure(rounds: u16, only: Option<&str>) -> Result<Vec<Figure>> {
    let only = only.unwrap_or_default();
    let mut figures = console::read(&boot(1, FOUR_DEVICES, &format!("rounds={rounds} only={only}"))?)?;
    // What is posted needs another guest, and differs from what is injected in nothing else.
    if COME_IN_TWO_WAYS.iter().any(|name| name.contains(only)) {
        let posted = boot(
            1,
            "device=dsa apicv=on posting=on",
            &format!("rounds={rounds} only={only} delivery=posted profile=posted"),
        )?;
        let posted =
            console::read(&posted)?.into_iter().filter(|figure| COME_IN_TWO_WAYS.contains(&figure.scenario.as_str()));
        let after = figures
            .iter()
            .rposition(|figure| COME_IN_TWO_WAYS.contains(&figure.scenario.as_str()))
            .map_or(0, |last| last + 1);
        figures.splice(after..after, posted);
    }
    // Several processors are another machine.
    let several = boot(
        PROCESSORS,
        &format!("device=dsa cpus={PROCESSORS}"),
        &format!("rounds={rounds} only={only} cpus={PROCESSORS}"),
    )?;
    figures.extend(console::read(&several)?.into_iter().filter(|figure| figure.scenario != FLOOR));
    Ok(figures)
}

/// All of the machine's, which have 64,512 slots.
const FOUR_DEVICES: &str = "device=00:1e.0 device=00:1f.0 device=00:1c.0 device=00:1d.0";
/// Processors of the machine, and of the guest, where there are several.
const PROCESSORS: u32 = 4;
/// The scenario that all others are compared with.
const FLOOR: &str = "null-exit";

/// Scenarios whose interrupts can come in two ways.
const COME_IN_TWO_WAYS: [&str; 3] = ["interrupt-latency", "interrupt-whole", "interrupt-stream"];

fn boot(processors: u32, options: &str, command_line: &str) -> Result<Outcome> {
    let mut plan = Plan::new()?;
    plan.config.cpus = processors;
    plan.config.plugin_options.extend(["most-slots", "four-dsas"].map(str::to_owned));
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

fn json_text(figures: &[Figure], unit: &str) -> Result<String> {
    let all: Vec<_> = figures.iter().map(|figure| figure.json(unit)).collect();
    Ok(serde_json::to_string_pretty(&all).context("the figures as JSON")? + "\n")
}

fn plots(folder: &Path, figures: &[Figure]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for (name, svg) in [("slots.svg", plot::slots(figures)?), ("scenarios.svg", plot::scenarios(figures)?)] {
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
        ratio: median / 100.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_an_array_with_every_key() {
        let text = json_text(&[figure("mask", "trapped", 16, 1234.0625)], "TSC ticks").unwrap();
        let expected = json!([{
            "scenario": "mask", "variant": "trapped", "slots": 16, "vcpus": 1, "ops": 4096, "exits_per_op": 1.0,
            "min": 1233.063, "median": 1234.063, "p99": 1235.313, "unit": "TSC ticks", "ratio_to_null_exit": 12.341,
        }]);
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expected);
    }

    #[test]
    fn a_filter_is_one_word_of_the_guests_command_line() {
        assert!(Options::try_parse_from(["figures", "--bench", "--only", "map-1"]).is_ok());
        assert!(Options::try_parse_from(["figures", "--only", "a b=c"]).is_err());
        assert!(Options::try_parse_from(["figures", "--only", "map", "--update"]).is_err());
        assert!(Options::try_parse_from(["figures", "--rounds", "0"]).is_err());
    }
}
