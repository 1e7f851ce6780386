//! A running machine: its serial lines as they arrive, and a watchdog that ends the machine when it hangs.

mod end;
mod outcome;
mod tail;
mod watch;

use std::collections::VecDeque;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

pub use self::end::{End, Silence};
pub use self::outcome::Outcome;
pub(super) use self::tail::Console;

use self::end::FLOOD;
use self::outcome::counters;
use self::tail::Tail;
use self::watch::{OwnTime, Watchdog};
use super::dsa_server::DsaServer;
use super::{Config, IMAGE, PLUGINS, SERIAL, die_with_parent};
use crate::event::Line;

/// How often the serial file is looked at.
const POLL: Duration = Duration::from_millis(4);
/// How long a machine may take to end after its `done`.
const GRACE: Duration = Duration::from_secs(5);
/// How long a machine that has died is listened to: the lines that tell why may come after the one that tells that.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A line of the serial console.
#[derive(Debug, Clone)]
pub struct Seen {
    /// When it came, from the machine's start, on the host's clock.
    pub at: Duration,
    /// As it was written, without its end.
    pub raw: String,
    /// What it means.
    pub line: Line,
}

/// Tells whether a machine ended because it was switched off; else why it ended.
pub(super) type Inquest = fn(&Path, ExitStatus) -> Result<(), String>;

/// How a kind of machine is followed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manner {
    /// Its serial lines.
    pub consoles: &'static [Console],
    /// The first line of every run, before any of the machine's.
    pub preface: Option<&'static str>,
    /// What a line means for the run.
    pub meaning: fn(&Line) -> Meaning,
    /// Asked when the machine ends by itself.
    pub inquest: Inquest,
    /// Takes apart what came of it, for machines in which several others run one after another; there is one at least.
    pub outcomes: fn(Outcome) -> Vec<Outcome>,
}

/// What a line means for the run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Meaning {
    /// It goes on.
    Nothing,
    /// Nothing but the machine's end is to come.
    Done,
    /// The machine is dead, although it does not end; its last words.
    Dead(String),
}

impl Manner {
    /// The hypervisor has the machine for itself, and its `done` is the last line.
    pub const fn alone(inquest: Inquest) -> Self {
        Self {
            consoles: &[Console { file: SERIAL, parse: Line::parse }],
            preface: None,
            meaning: |line| if line.event("done").is_some() { Meaning::Done } else { Meaning::Nothing },
            inquest,
            outcomes: |outcome| vec![outcome],
        }
    }
}

/// A machine under way: an iterator over its lines, which ends when the machine has ended.
#[derive(Debug)]
pub struct Run {
    child: Child,
    server: Option<DsaServer>,
    /// Our side of the machine's second serial line.
    terminal: Option<OwnedFd>,
    /// Setting this ends the run.
    stop: Arc<AtomicBool>,
    directory: PathBuf,
    manner: Manner,
    with_counters: bool,
    with_debugger: bool,
    counts_all: bool,
    unit: &'static str,
    limit: Duration,
    began: Instant,
    last_line: Instant,
    watchdog: Watchdog,
    own_time: OwnTime,
    done: Option<Instant>,
    dead: Option<String>,
    consoles: Vec<Tail>,
    read: u64,
    waiting: VecDeque<Seen>,
    seen: Vec<Seen>,
    end: Option<End>,
}

impl Run {
    /// Starts a machine in its directory.
    pub(super) fn start(mut command: Command, directory: PathBuf, config: &Config, manner: Manner) -> Result<Self> {
        command.current_dir(&directory);
        // SAFETY: `die_with_parent` says that its closure may run between fork and exec.
        unsafe { command.pre_exec(die_with_parent()) };
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let now = Instant::now();
        let mut run = Self {
            child,
            server: None,
            terminal: None,
            stop: Arc::default(),
            directory,
            consoles: manner.consoles.iter().copied().map(Tail::new).collect(),
            manner,
            with_counters: config.has_counters(),
            with_debugger: config.debugger,
            counts_all: true,
            unit: super::TICKS,
            limit: config.limit,
            began: now,
            last_line: now,
            watchdog: Watchdog::new(config.silence),
            own_time: OwnTime::default(),
            done: None,
            dead: None,
            read: 0,
            waiting: VecDeque::new(),
            seen: Vec::new(),
            end: None,
        };
        if let Some(preface) = manner.preface {
            run.heed(preface.to_owned(), Line::parse);
        }
        Ok(run)
    }

    /// Keeps the server of the machine's DSAs, which ends after the machine.
    pub(super) fn keep(&mut self, server: DsaServer) {
        self.server = Some(server);
    }

    /// Keeps our side of the machine's second serial line until somebody takes it.
    pub(super) fn keep_terminal(&mut self, terminal: Option<OwnedFd>) {
        self.terminal = terminal;
    }

    /// Our side of the machine's second serial line, where a guest has its console. The caller has to read from it.
    pub fn take_terminal(&mut self) -> Option<OwnedFd> {
        self.terminal.take()
    }

    /// Setting this ends the run.
    pub fn stop(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.stop)
    }

    /// Guests have devices that do not count what they send.
    pub(super) fn others_send(&mut self) {
        self.counts_all = false;
    }

    /// The same on a machine whose time-stamp counter counts these.
    pub(super) fn counting(mut self, unit: &'static str) -> Self {
        self.unit = unit;
        self
    }

    /// The run's directory: image, serial log, the emulator's own log.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Follows the run to its end and tells what came of it; where several ran, of the first.
    pub fn finish(self) -> Outcome {
        self.finish_each().swap_remove(0)
    }

    /// The same of each machine that ran in this one, in their order; at least of one.
    pub fn finish_each(mut self) -> Vec<Outcome> {
        while self.next().is_some() {}
        // A machine without its devices' server was not right to its end, and one that died may have died of it.
        if let Some(why) = self.server.take().and_then(DsaServer::finish) {
            self.end = Some(match self.end.take() {
                Some(End::Died(words)) => End::Died(format!("{words}; {why}")),
                Some(end) if !end.is_right() => end,
                _ => End::Died(why),
            });
        }
        let outcomes = (self.manner.outcomes)(Outcome {
            plugin: counters(&self.directory),
            with_counters: self.with_counters,
            counts_all: self.counts_all,
            unit: self.unit,
            directory: self.directory.clone(),
            lines: std::mem::take(&mut self.seen),
            end: self.end.clone().unwrap_or(End::Off),
            wall: self.began.elapsed(),
        });
        if outcomes.iter().all(|outcome| outcome.end.is_right()) {
            self.tidy();
        }
        outcomes
    }

    /// Removes what is large and only of use for a second look at a run that went wrong.
    fn tidy(&self) {
        // What is not there need not be removed.
        let _ = fs::remove_file(self.directory.join(IMAGE));
        let _ = fs::remove_dir_all(self.directory.join(PLUGINS));
    }

    /// Takes what is new on the consoles.
    fn look(&mut self) {
        for index in 0..self.consoles.len() {
            let tail = &mut self.consoles[index];
            let parse = tail.console.parse;
            let (lines, read) = tail.look(&self.directory);
            self.read += read;
            lines.into_iter().for_each(|line| self.heed(line, parse));
        }
    }

    /// Takes lines that have no end, and will get none.
    fn look_at_the_rest(&mut self) {
        for index in 0..self.consoles.len() {
            let tail = &mut self.consoles[index];
            let parse = tail.console.parse;
            let line = tail.rest();
            if !line.is_empty() {
                self.heed(line, parse);
            }
        }
    }

    fn heed(&mut self, raw: String, parse: fn(&str) -> Line) {
        let line = parse(&raw);
        self.last_line = Instant::now();
        self.watchdog.line(self.began.elapsed());
        match (self.manner.meaning)(&line) {
            Meaning::Nothing => {}
            Meaning::Done => self.done = Some(self.last_line),
            Meaning::Dead(words) => self.dead = self.dead.take().or(Some(words)),
        }
        self.waiting.push_back(Seen { at: self.began.elapsed(), raw, line });
    }

    /// Why the run is at its end, if it is.
    fn ending(&mut self) -> Option<End> {
        if let Ok(Some(status)) = self.child.try_wait() {
            // What was written last may have come after the last look.
            self.look();
            return Some(match (self.manner.inquest)(&self.directory, status) {
                Ok(()) => End::Off,
                // A debugger that is told to ends the machine, and without complaint.
                Err(_) if self.with_debugger && status.success() => End::Asked,
                Err(words) => End::Died(words),
            });
        }
        if let Some(words) = &self.dead
            && self.last_line.elapsed() > LAST_WORDS
        {
            return Some(End::Died(words.clone()));
        }
        if self.stop.load(Ordering::Relaxed) {
            return Some(End::Asked);
        }
        if self.done.is_some_and(|done| done.elapsed() > GRACE) {
            return Some(End::LeftOn);
        }
        if self.began.elapsed() > self.limit {
            return Some(End::TooLong(self.limit));
        }
        if self.done.is_none()
            && let Some(silence) = self.silence()
        {
            return Some(End::Silent(silence));
        }
        (self.read > FLOOD).then_some(End::Flooded)
    }

    /// The silence of a machine that has hung.
    fn silence(&mut self) -> Option<Silence> {
        let own = self.own_time.look(&self.directory, self.child.id());
        let silence = self.watchdog.quiet(self.began.elapsed(), own)?;
        Some(Silence { rips: self.own_time.rips().to_vec(), ..silence })
    }

    fn kill(&mut self) {
        // It may have ended by itself just now.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Iterator for Run {
    type Item = Seen;

    fn next(&mut self) -> Option<Seen> {
        loop {
            if let Some(seen) = self.waiting.pop_front() {
                self.seen.push(seen.clone());
                return Some(seen);
            }
            if self.end.is_some() {
                return None;
            }
            self.look();
            if !self.waiting.is_empty() {
                // Also a machine that never stops writing has to end some time.
                let too_long = (self.began.elapsed() > self.limit).then_some(End::TooLong(self.limit));
                self.end = (self.read > FLOOD).then_some(End::Flooded).or(too_long);
            } else if let Some(end) = self.ending() {
                self.end = Some(end);
            }
            if self.end.is_some() {
                self.kill();
                self.look_at_the_rest();
            } else if self.waiting.is_empty() {
                thread::sleep(POLL);
            }
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shell script in place of a machine; it exits with 0 when it was switched off.
    fn machine(script: &str, config: &Config) -> (tempfile::TempDir, Outcome) {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let inquest: Inquest = |_, status| if status.success() { Ok(()) } else { Err(format!("ended with {status}")) };
        let run = Run::start(command, directory.path().to_owned(), config, Manner::alone(inquest)).unwrap();
        (directory, run.finish())
    }

    fn impatient() -> Config {
        Config { silence: Duration::from_millis(300), limit: Duration::from_secs(60), ..Config::default() }
    }

    #[test]
    fn lines_arrive_whole_and_in_order() {
        let script =
            "printf 'one\\r\\ntw' > serial.log; sleep 0.05; printf 'o\\n@ims done status=ok\\nlast' >> serial.log";
        let (_directory, outcome) = machine(script, &Config::default());
        let lines: Vec<_> = outcome.lines.iter().map(|seen| seen.raw.as_str()).collect();
        assert_eq!(lines, ["one", "two", "@ims done status=ok", "last"]);
        assert_eq!(outcome.end, End::Off);
    }

    #[test]
    fn a_machine_that_hangs_is_ended_and_its_last_lines_are_kept() {
        let (_directory, outcome) = machine("echo before > serial.log; while :; do :; done", &impatient());
        assert!(
            matches!(&outcome.end, End::Silent(silence) if silence.wall > impatient().silence),
            "{:?}",
            outcome.end
        );
        assert_eq!(outcome.last_lines(5).collect::<Vec<_>>(), ["before"]);
    }

    #[test]
    fn a_machine_that_gets_no_processor_time_has_not_hung_until_patience_ends() {
        let (_directory, outcome) = machine("echo before > serial.log; exec sleep 1000", &impatient());
        let End::Silent(Silence { wall, .. }) = outcome.end else { panic!("{:?}", outcome.end) };
        assert!(wall > impatient().silence * 10 && wall < impatient().limit, "{wall:?}");
    }

    /// A machine with a second console, on which it dies.
    const MORTAL: Manner = Manner {
        consoles: &[
            Console { file: SERIAL, parse: Line::parse },
            Console { file: "other.log", parse: |line| Line::Linux(line.to_owned()) },
        ],
        preface: Some("@nested boot"),
        meaning: |line| match line {
            Line::Linux(text) if text == "dead" => Meaning::Dead("it says so".to_owned()),
            _ => Meaning::Nothing,
        },
        ..Manner::alone(|_, _| Ok(()))
    };

    #[test]
    fn a_machine_that_says_that_it_is_dead_is_listened_to_for_a_moment_and_ended() {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo one > serial.log; printf 'dead\\nwhy\\n' > other.log; exec sleep 1000"]);
        let outcome = Run::start(command, directory.path().to_owned(), &Config::default(), MORTAL).unwrap().finish();
        assert_eq!(outcome.end, End::Died("it says so".into()));
        let mut lines: Vec<_> = outcome.lines.iter().map(|seen| seen.raw.as_str()).collect();
        lines[1..].sort_unstable();
        assert_eq!(lines, ["@nested boot", "dead", "one", "why"]);
        assert!(outcome.lines.iter().any(|seen| seen.line == Line::Linux("why".into())));
    }

    #[test]
    fn an_emulator_that_tells_how_far_it_has_come_has_not_hung_before_its_own_time_is_over() {
        let progress = |step: u64| {
            format!("n=0; while [ $n -lt 90 ]; do n=$((n + 1)); echo $((n * {step})) > progress; sleep 0.01; done")
        };
        let (_directory, outcome) = machine(&progress(2), &impatient());
        assert_eq!(outcome.end, End::Off, "180 ms of its own, in at least 900 of the host's");
        let (_directory, outcome) = machine(&progress(100), &impatient());
        assert!(matches!(outcome.end, End::Silent(Silence { own: Some(_), .. })), "{:?}", outcome.end);
    }

    #[test]
    fn lines_keep_the_watchdog_quiet() {
        let script = "for i in 1 2 3 4 5 6 7 8; do echo $i >> serial.log; sleep 0.1; done";
        let (_directory, outcome) = machine(script, &impatient());
        assert_eq!((outcome.end, outcome.lines.len()), (End::Off, 8));
    }

    #[test]
    fn a_machine_that_writes_for_ever_is_ended_too() {
        let config = Config { limit: Duration::from_secs(5), ..Config::default() };
        let (_directory, outcome) = machine("while :; do echo x >> serial.log; done", &config);
        assert_eq!(outcome.end, End::TooLong(config.limit));
        assert!(!outcome.lines.is_empty());
    }

    #[test]
    fn a_run_ends_when_it_is_asked_to() {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("sleep");
        command.arg("1000");
        let manner = Manner::alone(|_, _| Ok(()));
        let run = Run::start(command, directory.path().to_owned(), &Config::default(), manner).unwrap();
        run.stop().store(true, Ordering::Relaxed);
        assert_eq!(run.finish().end, End::Asked);
    }

    #[test]
    fn a_machine_that_floods_its_console_is_ended() {
        let config = Config { limit: Duration::from_secs(600), ..Config::default() };
        let line = "x".repeat(1 << 16);
        let (_directory, outcome) = machine(&format!("exec yes {line} > serial.log"), &config);
        assert_eq!(outcome.end, End::Flooded);
    }

    #[test]
    fn an_end_without_complaint_is_the_debuggers_where_there_is_one() {
        let end = |script: &str, debugger| {
            let directory = tempfile::tempdir().unwrap();
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            let manner = Manner::alone(|_, _| Err("x".to_owned()));
            let config = Config { debugger, ..Config::default() };
            Run::start(command, directory.path().to_owned(), &config, manner).unwrap().finish().end
        };
        assert_eq!([end("exit 0", true), end("exit 0", false)], [End::Asked, End::Died("x".into())]);
        assert_eq!(end("exit 1", true), End::Died("x".into()));
    }

    #[test]
    fn a_machine_that_hung_tells_where_its_processors_were() {
        let script =
            "n=0; while :; do n=$((n + 100)); echo $n 00000000000fff00 8 > new; mv new progress; sleep 0.01; done";
        let (_directory, outcome) = machine(script, &impatient());
        let told = "; processor 0 was at RIP 0xfff00, processor 1 was at RIP 0x8";
        assert!(outcome.end.to_string().ends_with(told), "{}", outcome.end);
        assert!(outcome.end.hint().is_some_and(|hint| hint.contains("--debug")));
    }

    #[test]
    fn a_machine_that_dies_is_not_taken_for_one_switched_off() {
        let (_directory, outcome) = machine("echo x > serial.log; exit 3", &Config::default());
        assert!(matches!(&outcome.end, End::Died(words) if words.contains("exit status: 3")), "{:?}", outcome.end);
    }

    #[test]
    fn the_plugins_report_is_read() {
        let script = "printf 'dsa.messages=12\\nvtd.remapped=0x10\\nbad\\n' > plugin.report";
        let (_directory, outcome) = machine(script, &Config::default());
        assert_eq!((outcome.counter("dsa.messages"), outcome.counter("vtd.remapped")), (12, 16));
        assert_eq!((outcome.counter("bad"), outcome.plugin.len()), (0, 2));
    }

    #[test]
    fn a_run_that_is_dropped_leaves_no_machine_behind() {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("sleep");
        command.arg("1000");
        let run =
            Run::start(command, directory.path().to_owned(), &Config::default(), Manner::alone(|_, _| Ok(()))).unwrap();
        let process = PathBuf::from(format!("/proc/{}", run.child.id()));
        assert!(process.exists());
        drop(run);
        assert!(!process.exists());
    }
}
