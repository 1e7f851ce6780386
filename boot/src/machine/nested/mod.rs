//! QEMU with nested KVM in a Linux in the emulator: a machine with VT-x, remapping unit and devices that are not ours, on any host.
//!
//! Bochs boots a CD (`disc`) with a Linux kernel. Its first process (`init`) loads KVM, checks whether it nests, and starts QEMU, with the
//! same code as `--machine kvm` on a host. COM1 is the console of that Linux. COM2 carries the lines of QEMU's machine as they are written,
//! between the first process's own (`level`).

mod disc;
pub mod init;
mod level;
mod plan;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::run::{Console, Manner, Meaning, Run};
use super::serial::Port;
use super::{Config, End, Kind, Outcome, SERIAL, Seen, bochs};
use crate::cargo;
use crate::event::Line;
use crate::image::Module;
use crate::paths::Paths;
use crate::prefix::Tools;
use plan::{Plan, Turn};

/// The console of the Linux in Bochs.
const CONSOLE: &str = "linux.log";

/// What Linux, QEMU and KVM need beside the machine's own memory.
const MEMORY_AROUND_MIB: u32 = 1024;

/// Seconds of the host for a second of the machine in the emulator, at least.
const SLOWNESS: u32 = 5;

/// A machine to run in the one Linux, after others.
#[derive(Debug, Clone)]
pub struct Inner<'a> {
    /// The machine's memory, processors, devices and limits.
    pub config: Config,
    /// The hypervisor's image.
    pub hypervisor: &'a Path,
    /// Its guests.
    pub guests: &'a [Module],
    /// Whether KVM gives VMX to its guests.
    pub nesting: bool,
}

/// Starts Bochs with a Linux that runs these machines one after another.
pub fn start(paths: &Paths, tools: &Tools, inner: &[Inner]) -> Result<Run> {
    let init = cargo::outer_init(paths)?;
    let directory = paths.new_run()?;
    for (index, machine) in inner.iter().enumerate() {
        let Inner { config, hypervisor, guests, .. } = machine;
        super::write_image(tools, config, hypervisor, guests, &directory, &plan::image(index))?;
    }
    let turn = |machine: &Inner| Turn {
        config: machine.config.clone(),
        nesting: machine.nesting,
        counts_all: super::all_count(machine.guests),
    };
    let turns = inner.iter().map(turn).collect();
    disc::write(tools, &init, &Plan { turns }, &directory).context("cannot make the nested machine's CD")?;
    let configs: Vec<&Config> = inner.iter().map(|machine| &machine.config).collect();
    Ok(bochs::start_with(&[Port::File(CONSOLE), Port::File(SERIAL)], MANNER, tools, &around(&configs), directory)?
        .counting(Kind::Nested.unit()))
}

/// Bochs' model of the processor that KVM sees.
const MODEL: &str = "corei7_skylake_x";

/// The machine in which the others run.
fn around(inner: &[&Config]) -> Config {
    let memory = inner.iter().map(|config| config.memory_mib).max().unwrap_or(0);
    let silence = inner.iter().map(|config| config.silence).max().unwrap_or_default();
    Config {
        memory_mib: memory + MEMORY_AROUND_MIB,
        silence: silence.saturating_mul(SLOWNESS),
        cpu_model: MODEL.to_owned(),
        // KVM reads registers that Bochs lacks at each VM exit: a line each makes 19 MB of log.
        extra: vec!["error: action=ignore".to_owned()],
        // One after another.
        limit: inner.iter().fold(Duration::ZERO, |sum, config| sum.saturating_add(config.limit)),
        ..Config::default()
    }
}

const MANNER: Manner = Manner {
    consoles: &[Console { file: SERIAL, parse: Line::parse }, Console { file: CONSOLE, parse: of_linux }],
    preface: Some(level::PREFACE),
    meaning,
    inquest: bochs::inquest,
    outcomes,
};

/// A line on the console of the Linux.
fn of_linux(line: &str) -> Line {
    Line::Linux(line.to_owned())
}

/// What the kernel says when it gives up. The machine stays on then.
const PANIC: &str = "Kernel panic - not syncing: ";

fn meaning(line: &Line) -> Meaning {
    match line {
        Line::Linux(text) => match text.split_once(PANIC) {
            Some((_, why)) => Meaning::Dead(format!("Linux panicked: {why}")),
            None => Meaning::Nothing,
        },
        line if line.nested(level::OFF).is_some() => Meaning::Done,
        _ => Meaning::Nothing,
    }
}

/// What came of each machine, out of the lines between the first process's own.
fn outcomes(whole: Outcome) -> Vec<Outcome> {
    let starts = |seen: &Seen| seen.line.nested(level::RUN).is_some();
    let mut parts = vec![Vec::new()];
    for seen in &whole.lines {
        match parts.last_mut() {
            // What was before the first belongs to it.
            Some(part) if !starts(seen) || !part.iter().any(starts) => part.push(seen.clone()),
            _ => parts.push(vec![seen.clone()]),
        }
    }
    let outcome = |lines: Vec<Seen>| {
        let find = |name: &str| lines.iter().find_map(|seen| seen.line.nested(name));
        let end = find(level::END).map(level::end);
        let refused = find(level::REFUSED).map(|pairs| End::Refused(pairs.get("why").unwrap_or("?").to_owned()));
        let counters = find(level::RUN).and_then(|pairs| pairs.get("counters")).unwrap_or(level::NO_COUNTERS);
        let times = lines.first().zip(lines.last()).map(|(first, last)| last.at.saturating_sub(first.at));
        Outcome {
            end: refused.or(end).unwrap_or_else(|| before_its_end(whole.end.clone())),
            plugin: find(level::COUNTERS).map(level::counters).unwrap_or_default(),
            with_counters: counters != level::NO_COUNTERS,
            counts_all: counters == level::ALL_COUNTERS,
            unit: whole.unit,
            wall: times.unwrap_or_default(),
            directory: whole.directory.clone(),
            lines,
        }
    };
    parts.into_iter().map(outcome).collect()
}

/// How a machine ended that the first process has not told the end of.
fn before_its_end(end: End) -> End {
    match end {
        End::Off | End::LeftOn => End::Died("Linux switched the machine off before the run was over".to_owned()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(lines: &[&str], end: End) -> Outcome {
        let seen = |(second, raw): (u64, &&str)| Seen {
            at: Duration::from_secs(second),
            raw: (*raw).to_owned(),
            line: Line::parse(raw),
        };
        Outcome {
            lines: (0..).zip(lines).map(seen).collect(),
            end,
            plugin: Default::default(),
            with_counters: false,
            counts_all: true,
            unit: Kind::Nested.unit(),
            wall: Duration::from_secs(100),
            directory: "/".into(),
        }
    }

    const TWO: [&str; 9] = [
        "@nested boot",
        "@nested run number=0 counters=all",
        "@ims boot version=1",
        "@nested counters dsa.messages=7",
        "@nested end how=off",
        "@nested run number=1 counters=none",
        "@ims boot version=2",
        "@nested end how=died why=\"QEMU ended with exit status: 1\"",
        "@nested off",
    ];

    #[test]
    fn each_machine_has_its_own_lines_end_and_counters() {
        let outcomes = outcomes(whole(&TWO, End::Off));
        let ends: Vec<_> = outcomes.iter().map(|outcome| outcome.end.clone()).collect();
        assert_eq!(ends, [End::Off, End::Died("QEMU ended with exit status: 1".into())]);
        assert_eq!(outcomes.iter().map(|outcome| outcome.counter("dsa.messages")).collect::<Vec<_>>(), [7, 0]);
        let versions =
            outcomes.iter().map(|outcome| outcome.lines.iter().filter(|seen| seen.line.event("boot").is_some()));
        assert_eq!(versions.map(Iterator::count).collect::<Vec<_>>(), [1, 1]);
        let counted: Vec<_> = outcomes.iter().map(|outcome| (outcome.with_counters, outcome.counts_all)).collect();
        assert_eq!(counted, [(true, true), (false, false)]);
        assert_eq!(outcomes[0].lines[0].raw, "@nested boot");
        assert_eq!(outcomes.iter().map(|outcome| outcome.wall.as_secs()).collect::<Vec<_>>(), [4, 3]);
    }

    #[test]
    fn a_machine_whose_end_nobody_told_ended_with_the_one_around_it() {
        let outcomes_of = |lines: &[&str], end: End| outcomes(whole(lines, end)).pop().unwrap().end;
        let died = End::Died("Linux panicked: x".into());
        assert_eq!(outcomes_of(&TWO[..7], died.clone()), died);
        assert_eq!(outcomes_of(&[], End::Flooded), End::Flooded);
        assert!(matches!(outcomes_of(&TWO[..7], End::Off), End::Died(why) if why.contains("switched the machine off")));
    }

    #[test]
    fn what_is_refused_was_not_run() {
        let refused = outcomes(whole(&["@nested run number=0", "@nested refused why=\"nested=N\" up=1.0"], End::Off));
        assert_eq!(refused[0].end, End::Refused("nested=N".into()));
        let early = outcomes(whole(&["@nested linux", "@nested refused why=x"], End::Off));
        assert_eq!(early[0].end, End::Refused("x".into()));
    }

    #[test]
    fn a_panic_of_linux_ends_the_run_and_its_last_line_is_the_end() {
        let panic = of_linux("[    1.2] Kernel panic - not syncing: VFS: Unable to mount root fs");
        assert_eq!(meaning(&panic), Meaning::Dead("Linux panicked: VFS: Unable to mount root fs".into()));
        assert_eq!(meaning(&of_linux("@nested off")), Meaning::Nothing);
        assert_eq!(meaning(&Line::parse("@nested off up=1")), Meaning::Done);
        // Another machine may come after this one.
        assert_eq!(meaning(&Line::parse("@ims done status=ok")), Meaning::Nothing);
        assert_eq!(meaning(&Line::parse("[evil] Kernel panic - not syncing: x")), Meaning::Nothing);
    }

    #[test]
    fn the_machine_around_has_room_and_time_for_the_largest() {
        let small = Config::default();
        let large = Config { memory_mib: 2048, silence: Duration::from_secs(40), cpus: 4, ..Config::default() };
        let around = around(&[&small, &large]);
        assert_eq!((around.memory_mib, around.cpus), (3072, 1));
        assert_eq!((around.silence, around.limit), (large.silence * SLOWNESS, small.limit + large.limit));
        assert_eq!((around.plugin, around.extra), (None, vec!["error: action=ignore".to_owned()]));
    }
}
