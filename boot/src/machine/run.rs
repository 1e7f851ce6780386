//! A machine that runs: its serial lines as they come, and a watchdog that ends it when it hangs.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{fmt, thread};

use anyhow::{Context, Result};
use rustix::param::clock_ticks_per_second;

use super::dsa_server::DsaServer;
use super::{Config, IMAGE, PLUGIN_REPORT, PLUGINS, SERIAL, die_with_parent, trace};
use crate::event::{Line, parse_number};
use crate::report::Summary;

/// How often the serial file is looked at.
const POLL: Duration = Duration::from_millis(4);
/// How long a machine may take to end after its `done`.
const GRACE: Duration = Duration::from_secs(5);
/// A machine that gets no processor time has not hung, but some time it has to end: after so many times its silence on the host's clock.
const PATIENCE: u32 = 10;
/// How long a machine that has died is listened to: the lines that tell why may come after the one that tells that.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// More on the serial console than this is a flood.
const FLOOD: u64 = 64 << 20;

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

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The hypervisor switched the machine off.
    Off,
    /// The machine was still on after `done`, and was ended.
    LeftOn,
    /// The machine ended by itself; its own last words.
    Died(String),
    /// No line came for so long, on the host's clock.
    Silent(Duration),
    /// It took longer than it may.
    TooLong(Duration),
    /// The console was flooded.
    Flooded,
    /// The person at the terminal ended it.
    Asked,
    /// It was not run, because the machine that it should run on lacks something.
    Refused(String),
}

impl End {
    /// Whether the run came to its own end.
    pub fn is_right(&self) -> bool {
        matches!(self, Self::Off | Self::LeftOn)
    }

    /// What else it may have been, and what helps.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Silent(_) => Some(
                "a guest that computes for long without a line is ended as well: --silence SECONDS gives it more time",
            ),
            Self::TooLong(_) => Some("--timeout SECONDS gives it more time"),
            Self::Off | Self::LeftOn | Self::Died(_) | Self::Flooded | Self::Asked | Self::Refused(_) => None,
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => write!(f, "the machine was switched off"),
            Self::LeftOn => write!(f, "the machine was still on after the run was done"),
            Self::Died(words) => write!(f, "the machine ended by itself: {words}"),
            Self::Silent(time) => write!(f, "the machine hung: no line for {} seconds", time.as_secs()),
            Self::TooLong(time) => write!(f, "the run took longer than {} seconds", time.as_secs()),
            Self::Flooded => write!(f, "more than {} MiB on the serial console", FLOOD >> 20),
            Self::Asked => write!(f, "the run was ended at the terminal"),
            Self::Refused(why) => write!(f, "it could not be run: {why}"),
        }
    }
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

/// A serial line: its file in the run's directory, and how to read a line of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Console {
    pub file: &'static str,
    pub parse: fn(&str) -> Line,
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

/// A serial line's file as it grows.
#[derive(Debug)]
struct Tail {
    console: Console,
    file: Option<File>,
    partial: Vec<u8>,
}

impl Tail {
    /// Takes what is new: the whole lines, and how many bytes were read.
    fn look(&mut self, directory: &Path) -> (Vec<String>, u64) {
        if self.file.is_none() {
            self.file = File::open(directory.join(self.console.file)).ok();
        }
        let Some(file) = &mut self.file else { return (Vec::new(), 0) };
        let mut bytes = Vec::new();
        // An error leaves what was read; the next look tries again.
        let _ = file.take(FLOOD).read_to_end(&mut bytes);
        let read = bytes.len() as u64;
        let mut lines = Vec::new();
        for byte in bytes {
            if byte == b'\n' { lines.push(self.rest()) } else { self.partial.push(byte) }
        }
        (lines, read)
    }

    /// The line under way, as it is.
    fn rest(&mut self) -> String {
        let bytes = std::mem::take(&mut self.partial);
        String::from_utf8_lossy(&bytes).trim_end_matches('\r').to_owned()
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
    counts_all: bool,
    unit: &'static str,
    silence: Duration,
    limit: Duration,
    began: Instant,
    last_line: Instant,
    /// The machine's processor time when it was quiet for the first time since its last line.
    quiet_since: Option<Duration>,
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
        let tail = |console: &Console| Tail { console: *console, file: None, partial: Vec::new() };
        let mut run = Self {
            child,
            server: None,
            terminal: None,
            stop: Arc::default(),
            directory,
            consoles: manner.consoles.iter().map(tail).collect(),
            manner,
            with_counters: config.has_counters(),
            counts_all: true,
            unit: super::TICKS,
            silence: config.silence,
            limit: config.limit,
            began: now,
            last_line: now,
            quiet_since: None,
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
        self.quiet_since = None;
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
            return Some((self.manner.inquest)(&self.directory, status).map_or_else(End::Died, |()| End::Off));
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
        if self.done.is_none() && self.has_hung() {
            return Some(End::Silent(self.last_line.elapsed()));
        }
        (self.read > FLOOD).then_some(End::Flooded)
    }

    fn has_hung(&mut self) -> bool {
        let now = processor_time(self.child.id());
        if self.quiet_since.is_none() {
            self.quiet_since = now;
        }
        let spent = now.zip(self.quiet_since).map(|(now, then)| now.saturating_sub(then));
        is_silent(self.last_line.elapsed(), spent, self.silence)
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

/// Whether a machine without a line for `wall`, in which it spent `spent` of processor time, has hung. On a busy host a machine gets little
/// of that, and its silence says nothing: both have to be more than `allowed`. One that sleeps for ever spends none: patience ends, too.
fn is_silent(wall: Duration, spent: Option<Duration>, allowed: Duration) -> bool {
    wall > allowed && (spent.is_none_or(|spent| spent > allowed) || wall > allowed.saturating_mul(PATIENCE))
}

/// The processor time of all threads of a process so far; none where the host does not say.
fn processor_time(process: u32) -> Option<Duration> {
    processor_time_in(&fs::read_to_string(format!("/proc/{process}/stat")).ok()?, clock_ticks_per_second())
}

/// The fields utime and stime of /proc/PID/stat (proc_pid_stat(5)), in ticks. The second field is a name in parentheses, which may hold
/// anything; utime is the twelfth after it.
fn processor_time_in(stat: &str, ticks_per_second: u64) -> Option<Duration> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let sum = ticks()?.checked_add(ticks()?)?;
    Some(Duration::from_millis(sum.checked_mul(1000)?.checked_div(ticks_per_second)?))
}

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
    /// The run's figures and its verdict.
    pub fn summary(&self) -> Summary {
        Summary::new(self)
    }

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
fn counters(directory: &Path) -> BTreeMap<String, u64> {
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
        assert!(matches!(outcome.end, End::Silent(time) if time > impatient().silence), "{:?}", outcome.end);
        assert_eq!(outcome.last_lines(5).collect::<Vec<_>>(), ["before"]);
    }

    #[test]
    fn a_machine_that_gets_no_processor_time_has_not_hung_until_patience_ends() {
        let (_directory, outcome) = machine("echo before > serial.log; exec sleep 1000", &impatient());
        let End::Silent(time) = outcome.end else { panic!("{:?}", outcome.end) };
        assert!(time > impatient().silence * PATIENCE && time < impatient().limit, "{time:?}");
    }

    #[test]
    fn silence_counts_in_the_machines_own_time() {
        let [second, allowed] = [1, 30].map(Duration::from_secs);
        assert!(!is_silent(allowed * 2, Some(second), allowed), "a busy host");
        assert!(!is_silent(second, Some(allowed * 2), allowed), "many processors");
        assert!(is_silent(allowed + second, Some(allowed + second), allowed));
        assert!(is_silent(allowed * PATIENCE + second, Some(second), allowed));
        // A host that does not count has its clock.
        assert!(is_silent(allowed + second, None, allowed));
        assert!(!is_silent(Duration::MAX, Some(second), Duration::MAX - second), "no overflow");
    }

    #[test]
    fn processor_time_is_read_whatever_the_programs_name_is() {
        let stat = "42 (a) b (c) R 1 42 42 0 -1 4194304 100 0 0 0 250 50 7 7 20 0 1 0 99 1 1";
        assert_eq!(processor_time_in(stat, 100), Some(Duration::from_secs(3)));
        assert_eq!(processor_time_in("42 (x) R 1", 100), None);
        assert!(processor_time(std::process::id()).is_some());
        assert_eq!(processor_time(u32::MAX), None);
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
