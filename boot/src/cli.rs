//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;

use crate::image::Module;
use crate::machine::{Config, Kind, NVME};
use crate::words;

/// The guest that runs, in two ways, when none is named.
const DEMO: &str = "demo";
/// The guest for a device without a message store.
const WHOLE: &str = "whole";

const AFTER_HELP: &str = "\
Examples:
  cargo boot                                   see it work
  cargo boot -- --machine bochs --verbose      on the emulator, with everything on the console
  cargo boot -- --guest 'demo mem=128M device=dsa cmdline=\"slots=64\"'
  cargo boot -- --image imsvisor.iso           an image for a real machine, which reports on COM1

Guests:
  Ours are in tests/guests/src/bin: hello, demo, and those that the tests and benchmarks run.
  All their options are in ARCHITECTURE.md, \"Guests' modules\".

Environment:
  IMSVISOR_BOCHS          a Bochs 3.0 to use instead of the system's or the fetched one
  IMSVISOR_QEMU           a QEMU 10.0 or later to use instead of the system's or the fetched one
  IMSVISOR_DEBIAN_MIRROR  where to fetch Debian packages from, if not where /etc/apt says
  CARGO_TARGET_DIR        everything fetched, built and logged goes to `imsvisor` below it

Exit codes:
  0  the run was right        1  the run was not right
  2  a wrong option           3  it could not be run; the message says why";

/// Builds imsvisor and its guests, boots them on a machine, shows what happens, and reports.
///
/// The first run fetches what is missing: the Rust target, and (without root, into cargo's target directory) an emulator
/// with GRUB's tools. Later runs fetch nothing and start within seconds.
#[derive(Debug, Parser)]
#[command(name = "cargo boot", bin_name = "cargo boot", version, after_help = AFTER_HELP)]
pub struct Options {
    /// The machine to boot on [default: bochs]
    #[arg(long, value_enum)]
    pub machine: Option<Kind>,

    /// Only write an image to FILE: it boots real machines, by BIOS or UEFI, from CD or stick
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,

    /// A guest to run instead of the demos: the name of one of ours or the path of an ELF image (with a / in it), then its options
    /// (mem=64M, cpus=2, device=dsa, cmdline="…"); may be given several times
    #[arg(long = "guest", value_name = "GUEST OPTION=VALUE …")]
    pub guests: Vec<String>,

    /// The machine's memory in MiB
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = clap::value_parser!(u32).range(64..=2048))]
    pub memory: u32,

    /// The machine's processors
    #[arg(long, value_name = "COUNT", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=8))]
    pub cpus: u32,

    /// End a run that takes longer than this
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub timeout: u64,

    /// End a run that writes no line for this long: it hangs
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub silence: u64,

    /// Show everything on the serial console, as the machine writes it
    #[arg(long, short)]
    pub verbose: bool,
}

impl Options {
    /// Reads the arguments, or ends the program with a message. The alias puts a `--` before them, so that both
    /// `cargo boot --verbose` and `cargo boot -- --verbose` do what they say: a second `--` is passed over.
    pub fn of_arguments(arguments: impl Iterator<Item = OsString>) -> Self {
        Self::parse_from(without_separator(arguments))
    }

    /// The machine's configuration; the plugin is still to come.
    pub fn config(&self) -> Config {
        Config {
            memory_mib: self.memory,
            cpus: self.cpus,
            silence: Duration::from_secs(self.silence),
            limit: Duration::from_secs(self.timeout),
            ..Config::default()
        }
    }

    /// The guests that were asked for; if none was, demos with the devices that there are: DSAs on our machine, an NVMe controller on
    /// QEMU's.
    pub fn wishes(&self, with_dsa: bool) -> Result<Vec<Wish>> {
        if self.guests.is_empty() {
            return if with_dsa { demos() } else { Ok(vec![Wish::new(&format!("{WHOLE} mem=64M device={NVME}"))?]) };
        }
        self.guests.iter().map(|text| Wish::new(text).with_context(|| format!("--guest '{text}'"))).collect()
    }
}

fn without_separator(arguments: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    arguments.enumerate().filter(|(index, argument)| *index != 1 || argument != "--").map(|(_, argument)| argument)
}

/// The demo twice, each with a device of its own: interrupts are injected into one and posted to the other.
fn demos() -> Result<Vec<Wish>> {
    let mut posted = Wish::new(&format!("{DEMO} mem=64M device=dsa apicv=on cmdline=profile=posted"))?;
    "posted".clone_into(&mut posted.words[0]);
    Ok(vec![Wish::new(&format!("{DEMO} mem=64M device=dsa"))?, posted])
}

/// A guest that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    source: Source,
    words: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    Ours(String),
    File(PathBuf),
}

impl Wish {
    /// Reads `name option=value …` or `path option=value …`.
    fn new(text: &str) -> Result<Self> {
        let mut words = words::split(text)?;
        if let Some(option) = words.iter().skip(1).find(|word| !word.contains('=')) {
            bail!("`{option}` is no option=value");
        }
        let Some(first) = words.first_mut() else { bail!("no guest is named") };
        if !first.contains('/') {
            return Ok(Self { source: Source::Ours(first.clone()), words });
        }
        let path = PathBuf::from(first.as_str());
        if !path.is_file() {
            bail!("there is no file {}", path.display());
        }
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        *first = stem.replace(char::is_whitespace, "-");
        Ok(Self { source: Source::File(path), words })
    }

    /// The name of one of ours, which has to be built.
    pub fn ours(&self) -> Option<&str> {
        match &self.source {
            Source::Ours(name) => Some(name),
            Source::File(_) => None,
        }
    }

    /// The module, with the images of ours by name.
    pub fn module(&self, ours: &std::collections::BTreeMap<String, PathBuf>) -> Result<Module> {
        let path = match &self.source {
            Source::File(path) => path,
            Source::Ours(name) => ours.get(name).with_context(|| format!("there is no guest {name}"))?,
        };
        Module::from_words(path, self.words.clone())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn options_may_come_after_a_separator_of_their_own() {
        for arguments in [vec!["x", "--", "--verbose"], vec!["x", "--verbose"]] {
            let arguments = without_separator(arguments.into_iter().map(OsString::from));
            assert!(Options::try_parse_from(arguments).unwrap().verbose);
        }
    }

    #[test]
    fn without_guests_the_demo_runs_with_the_device_that_there_is() {
        let options = Options::parse_from(["cargo boot"]);
        let both = options.wishes(true).unwrap();
        assert_eq!(both[0].words, ["demo", "mem=64M", "device=dsa"]);
        assert_eq!(both[1].words, ["posted", "mem=64M", "device=dsa", "apicv=on", "cmdline=profile=posted"]);
        assert_eq!((both.len(), both[1].ours()), (2, Some("demo")));
        assert_eq!(options.wishes(false).unwrap()[0].words, ["whole", "mem=64M", "device=00:02.0"]);
    }

    #[test]
    fn guests_are_ours_by_name_or_files_by_path() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("other.elf");
        std::fs::write(&file, "").unwrap();
        let text = format!("{} mem=1G", file.display());
        let options = Options::parse_from(["cargo boot", "--guest", "hostile cmdline=\"a b\"", "--guest", &text]);
        let wishes = options.wishes(true).unwrap();
        assert_eq!((wishes[0].ours(), wishes[1].ours()), (Some("hostile"), None));
        assert_eq!(wishes[0].words, ["hostile", "cmdline=a b"]);
        assert_eq!(wishes[1].words, ["other", "mem=1G"]);
        assert_eq!(wishes[1].module(&Default::default()).unwrap().name(), "other");
        assert!(wishes[0].module(&Default::default()).is_err());
    }

    #[test]
    fn a_guest_that_cannot_be_is_refused() {
        for text in ["", "demo mem", "/no/such/file", "demo \"x"] {
            assert!(Wish::new(text).is_err(), "{text}");
        }
    }

    #[test]
    fn options_reach_the_machine() {
        let options =
            Options::parse_from(["cargo boot", "--memory", "768", "--cpus", "2", "--timeout", "9", "--silence", "5"]);
        let config = options.config();
        assert_eq!((config.memory_mib, config.cpus), (768, 2));
        assert_eq!((config.limit.as_secs(), config.silence.as_secs()), (9, 5));
    }
}
