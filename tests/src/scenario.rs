//! Scenarios: each is booted once, however many tests use its result.

use std::collections::BTreeSet;
use std::ops::Deref;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use imsvisor_boot::event::{Line, Pairs};
use imsvisor_boot::guest::{GuestArg, Images};
use imsvisor_boot::image::Module;
use imsvisor_boot::linux::{self, Asked, Payload};
use imsvisor_boot::machine::{self, Config, Kind, Outcome, Run};
use imsvisor_boot::report::{Guest, Summary};
use tempfile::TempDir;

use crate::bench::{self, Once};

/// A run that writes no line for so long has hung. Two emulators and a compiler may share two processors.
const SILENCE: Duration = Duration::from_secs(60);
/// A run that takes longer than this is ended.
const LIMIT: Duration = Duration::from_secs(240);
/// The same where Linux boots, which takes billions of instructions.
const LIMIT_OF_LINUX: Duration = Duration::from_secs(600);

/// Lines of the console that a test shows when it fails.
const LAST_LINES: usize = 60;

/// A machine and its guests; booted when a test first asks for what came of it.
pub struct Scenario {
    name: &'static str,
    set_up: fn(&mut Plan) -> Result<()>,
    ran: Once<Ran>,
}

struct Ran {
    /// The modules' names in their order, which is the guests' numbers.
    modules: Vec<String>,
    outcome: Outcome,
    summary: Summary,
}

impl Scenario {
    /// A scenario under a name for people.
    pub const fn new(name: &'static str, set_up: fn(&mut Plan) -> Result<()>) -> Self {
        Self { name, set_up, ran: Once::new() }
    }

    /// What came of it. Panics when it could not be booted.
    pub fn run(&'static self) -> Boot {
        match self.ran.get(|| self.boot()) {
            Ok(ran) => Boot { name: self.name, ran },
            Err(error) => panic!("the scenario \"{}\" could not be booted: {error:#}", self.name),
        }
    }

    fn boot(&self) -> Result<Ran> {
        let mut plan = Plan::new()?;
        (self.set_up)(&mut plan)?;
        let outcome = boot(self.name, &plan)?;
        let modules = plan.modules.iter().map(|module| module.name().to_owned()).collect();
        Ok(Ran { modules, summary: outcome.summary(), outcome })
    }
}

/// Boots a plan, when its turn comes.
pub(crate) fn boot(name: &str, plan: &Plan) -> Result<Outcome> {
    start(name, plan, |run| Ok(run.finish()))
}

/// Starts a plan, when its turn comes, and has `follow` see it to its end.
pub(crate) fn start(name: &str, plan: &Plan, follow: impl FnOnce(Run) -> Result<Outcome>) -> Result<Outcome> {
    let (paths, tools) = (bench::paths()?, bench::tools_of(plan.kind)?);
    let image = plan.native.map_or_else(bench::hypervisor, bench::guest)?;
    in_turn(name, || follow(machine::start_on(plan.kind, paths, tools, &plan.config, image, &plan.modules)?))
}

/// Boots a machine when its turn comes, and says so.
fn in_turn(name: &str, boot: impl FnOnce() -> Result<Outcome>) -> Result<Outcome> {
    let _permit = bench::machine_permit();
    bench::say(&format!("booting {name}"));
    let outcome = boot()?;
    let seconds = outcome.wall.as_secs_f32();
    bench::say(&format!("booted {name}: {} after {seconds:.1} s", outcome.end));
    Ok(outcome)
}

/// Boots Debian's Linux on the emulated machine itself, with two processors and options for the plugin, when its turn comes. `None` where
/// it cannot be had.
pub fn boot_linux(name: &str, plugin_options: &[&str], append: &[String]) -> Result<Option<Outcome>> {
    let users = append.iter().any(|word| word == machine::native::SVA);
    let payload = if users { bench::linux_for_users() } else { bench::linux() };
    let Some(Payload { kernel, initrd }) = payload? else { return Ok(None) };
    let initrd = initrd.as_deref().context("no initrd was made")?;
    let (paths, tools) = (bench::paths()?, bench::tools()?);
    let mut config = Config { cpus: 2, limit: LIMIT_OF_LINUX, ..Plan::new()?.config };
    config.plugin_options.extend(plugin_options.iter().map(|option| (*option).to_owned()));
    let boot = || Ok(machine::native::start(paths, tools, &config, kernel, initrd, append)?.finish());
    in_turn(&format!("Linux, {name}"), boot).map(Some)
}

/// What a scenario consists of.
pub struct Plan {
    kind: Kind,
    /// The machine.
    pub config: Config,
    modules: Vec<Module>,
    /// A guest that runs without the hypervisor.
    native: Option<&'static str>,
    /// Holds modules that were made for this scenario until the image is written.
    made: TempDir,
}

impl Plan {
    /// The default machine without a guest.
    pub fn new() -> Result<Self> {
        Self::on(Kind::Bochs)
    }

    /// A machine of this kind with its DSAs, without a guest.
    pub(crate) fn on(kind: Kind) -> Result<Self> {
        let mut config = Config { silence: SILENCE, limit: LIMIT, ..Config::default() };
        match kind {
            Kind::Bochs => config.plugin = Some(bench::plugin()?.to_owned()),
            _ => config.dsa_server = Some(bench::dsa_server()?.to_owned()),
        }
        Ok(Self {
            kind,
            config,
            modules: Vec::new(),
            native: None,
            made: tempfile::tempdir().context("a directory for modules")?,
        })
    }

    /// Changes the emulated machine by options of the plugin.
    pub fn plugin(&mut self, options: &[&str]) {
        self.config.plugin_options.extend(options.iter().map(|option| (*option).to_owned()));
    }

    /// Adds one of our guests with its module's command line, whose first word is the guest's name there.
    pub fn guest(&mut self, image: &str, string: &str) -> Result<()> {
        self.image(bench::guest(image)?, string)
    }

    /// Adds a guest's image with its module's command line.
    pub fn image(&mut self, image: &Path, string: &str) -> Result<()> {
        self.modules.push(Module::new(image, string)?);
        Ok(())
    }

    /// Adds Debian's Linux with our initrd. `string` is as for `--guest`, `append` what the first process is to do. Nothing is added where Linux cannot be had ([`bench::linux`]).
    pub fn linux(&mut self, string: &str, append: &str) -> Result<()> {
        let Some(payload) = bench::linux()? else { return Ok(()) };
        let guest = GuestArg::with(string, &Asked { append: Some(append.to_owned()), ..Asked::default() })?;
        self.modules.extend(guest.modules(&Images { linux: Some(payload.clone()), ..Images::default() })?);
        self.config.plugin_options.push(linux::DEVICE_OPTION.into());
        self.config.limit = LIMIT_OF_LINUX;
        Ok(())
    }

    /// Boots one of our guests in the hypervisor's place, with a command line.
    pub fn native(&mut self, image: &'static str, line: &str) {
        self.native = Some(image);
        self.config.native = true;
        self.config.hypervisor_options = line.split_whitespace().map(String::from).collect();
    }

    /// Adds a module that holds these bytes.
    pub fn file(&mut self, bytes: &[u8], string: &str) -> Result<()> {
        let file = self.made.path().join(self.modules.len().to_string());
        std::fs::write(&file, bytes).context("cannot write a module")?;
        self.modules.push(Module::new(file, string)?);
        Ok(())
    }
}

/// What came of a scenario, in the hands of one test. When the test fails, it shows the end of the console.
pub struct Boot {
    name: &'static str,
    ran: &'static Ran,
}

impl Deref for Boot {
    type Target = Summary;

    fn deref(&self) -> &Summary {
        &self.ran.summary
    }
}

impl Boot {
    /// The run itself.
    pub fn outcome(&self) -> &Outcome {
        &self.ran.outcome
    }

    /// The guest of this name, which has to have been started.
    pub fn guest(&self, name: &str) -> &Guest {
        let found = self.guests.iter().find(|guest| guest.name == name);
        found.unwrap_or_else(|| panic!("the guest {name} was not started"))
    }

    /// A figure that the guest of this name reports about itself. Panics when it does not.
    pub fn reported(&self, name: &str, key: &str) -> u64 {
        self.guest(name).reported(key).unwrap_or_else(|| panic!("the guest {name} does not report {key}"))
    }

    /// [`reported`](Self::reported) by a guest that has found everything right, on a hypervisor that came to its own end.
    pub fn verified(&self, name: &str, key: &str) -> u64 {
        self.assert_hypervisor_lived();
        self.assert_guest_right(name);
        assert_eq!(self.reported(name, "errors"), 0, "errors of {name}");
        self.reported(name, key)
    }

    /// Whether a guest of this name was started.
    pub fn started(&self, name: &str) -> bool {
        self.guests.iter().any(|guest| guest.name == name)
    }

    /// All events of a name.
    pub fn events(&self, name: &str) -> Vec<&Pairs> {
        self.outcome().lines.iter().filter_map(|seen| seen.line.event(name)).collect()
    }

    /// The events' lines as they were written.
    pub fn event_lines(&self) -> Vec<&str> {
        let events = self.outcome().lines.iter().filter(|seen| matches!(seen.line, Line::Event(_)));
        events.map(|seen| seen.raw.as_str()).collect()
    }

    /// Whether a refusal of anything has one of these words.
    pub fn refuses_with(&self, words: &[&str]) -> bool {
        self.refused.iter().any(|text| has_one(text, words))
    }

    /// Why the module of this name was refused, if it was.
    pub fn refusal_of(&self, name: &str) -> Option<&str> {
        let number = self.ran.modules.iter().position(|module| module == name).map(|number| number as u64);
        let number = number.unwrap_or_else(|| panic!("{} has no module {name}", self.name));
        let refusals = self.events("refused");
        refusals.into_iter().find(|refusal| refusal.number("guest") == Some(number))?.get("why")
    }

    /// The module of this name was not started, but refused for a reason in which one of these words occurs.
    pub fn assert_refused(&self, name: &str, words: &[&str]) {
        assert!(!self.started(name), "the guest {name} was started");
        let why = self.refusal_of(name).unwrap_or_else(|| panic!("the guest {name} was not refused"));
        assert!(has_one(why, words), "{name} was refused, but not with one of {words:?}: {why}");
    }

    /// The hypervisor came to its own end, without a line that nobody can read, and without a panic.
    pub fn assert_hypervisor_lived(&self) {
        assert!(self.end.is_right(), "{}", self.end);
        assert!(self.done.is_some(), "the hypervisor did not come to its last line");
        assert_eq!(self.broken, Vec::<String>::new(), "unreadable lines");
        let text = |line: &Line| matches!(line, Line::Text(text) if text.contains("panicked at"));
        assert!(!self.outcome().lines.iter().any(|seen| text(&seen.line)), "the hypervisor panicked");
    }

    /// A figure of the `remap` event. Panics when the hypervisor does not report it.
    pub fn remap_number(&self, key: &str) -> u64 {
        self.remap.number(key).unwrap_or_else(|| panic!("the hypervisor does not report {key}"))
    }

    /// No entry and no vector is held any more, and no interrupt came that nobody waited for.
    pub fn assert_all_came_back(&self) {
        let left = ["live", "vectors", "kept_kib", "strays"].map(|key| self.remap_number(key));
        assert_eq!(left, [0; 4], "{}", self.remap);
    }

    /// Each of the plugin's counters of these names is zero.
    pub fn assert_zero(&self, counters: &[&str]) {
        for counter in counters {
            assert_eq!(self.outcome().counter(counter), 0, "{counter}");
        }
    }

    /// The DSAs that guests had are disabled and master no bus. `others` DSAs are bus masters, as firmware left them: no guest had them.
    pub fn assert_devices_quiet(&self, others: u64) {
        let [enabled, masters] = ["dsa.enabled", "dsa.bus_master"].map(|state| self.outcome().counter(state));
        assert_eq!([enabled, masters], [0, others], "enabled, bus masters");
    }

    /// What a guest reported that ran without the hypervisor, to its own end.
    pub fn native_result(&self) -> Pairs {
        native_result(self.outcome())
    }

    /// The guest ran to its own end and found everything right.
    pub fn assert_guest_right(&self, name: &str) {
        let guest = self.guest(name);
        let end = guest.end.as_ref().unwrap_or_else(|| panic!("the guest {name} did not end"));
        assert_eq!((end.get("reason"), end.number("code")), (Some("exit"), Some(0)), "the end of the guest {name}");
    }
}

impl Drop for Boot {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let outcome = self.outcome();
        eprintln!("--- {}: the end of the console ---", self.name);
        for line in outcome.last_lines(LAST_LINES) {
            eprintln!("{}", imsvisor_boot::words::harmless(line));
        }
        eprintln!("--- {}; logs: {} ---", outcome.end, outcome.directory.display());
    }
}

/// What a guest reported that ran without the hypervisor. Panics when it did not come to its own end.
pub fn native_result(outcome: &Outcome) -> Pairs {
    let lines = || outcome.lines.iter().map(|seen| seen.raw.as_str());
    let ended = lines().any(|line| line == "@native exit=0");
    assert!(ended, "the guest did not end as it should:\n{}{}", outcome.console(), outcome.end);
    let result = lines().find_map(|line| line.strip_prefix("@result "));
    let event = Line::parse(&format!("@ims result {}", result.expect("the guest reported nothing")));
    event.event("result").cloned().expect("the result can be read")
}

/// Whether one of these words occurs in a text, as a whole word.
fn has_one(text: &str, words: &[&str]) -> bool {
    let said = words_of(text);
    words.iter().any(|word| said.contains(&word.to_lowercase()))
}

/// The words of a text, in lower case; a hyphen or an underscore is part of a word.
fn words_of(text: &str) -> BTreeSet<String> {
    let part = |c: char| c.is_alphanumeric() || "-_".contains(c);
    text.split(|c| !part(c)).map(str::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_found_as_a_whole_word_only() {
        let text = "the segment at 0x1000 does not lie in memory; mem=16M, VT-d";
        for word in ["segment", "0x1000", "MEMORY", "mem", "16M", "vt-d"] {
            assert!(has_one(text, &["absent", word]), "{word}");
        }
        for word in ["seg", "1000", "vt", "16"] {
            assert!(!has_one(text, &[word]), "{word}");
        }
        assert!(!has_one(text, &[]));
    }
}
