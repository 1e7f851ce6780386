//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};

use crate::completions::Shell;
use crate::guest::{self, GuestArg};
use crate::linux::{self, Asked};
use crate::machine::{Config, Kind, bochs, serial};
use crate::words;

/// Why our initrd is of no use on QEMU's machines.
const NOT_ON_QEMU: &str = "the guest linux hands its work to the DSA by stores of 64 bytes, which devices of QEMU do not take: \
                           --machine bochs, or another --initrd";
/// What a Linux guest's machine has beside its guests' memory, in MiB.
const AROUND_LINUX_MIB: u32 = 256;
/// How long a Linux may say nothing, in the machine's own time: it boots quietly, and slowly in an emulator.
const QUIET_LINUX: Duration = Duration::from_secs(120);

/// The machine's processors, if neither the command line nor a guest `linux` asks for another number.
const CPUS: u32 = 2;
/// The guest that runs, in two ways, when none is named.
const DEMO: &str = "demo";
/// The DSAs whose virtual functions tenants get; the machine has two more with the plugin's option [`FOUR_DSAS`].
const PARENTS: [&str; 2] = [bochs::DSAS[0], bochs::DSAS[1]];
const FOUR_DSAS: &str = "four-dsas";
/// Most tenants: two DSAs have 16 work queues, and each tenant takes two.
const TENANTS: u32 = 8;

const AFTER_HELP: &str = "\
Examples:
  cargo boot                                   see it work
  cargo boot -- --machine bochs --verbose      on the emulator, with everything on the console
  cargo boot -- --machine nested               in QEMU on the KVM of a Linux in the emulator: minutes
  cargo boot -- --console --guest echo         type to a guest
  cargo boot -- --guest 'demo mem=128M device=dsa cmdline=\"slots=64\"'
  cargo boot -- --guest linux                  Debian's Linux, which copies memory by the DSA
  cargo boot -- --guest 'linux cpus=2 device=vdsa' --append 'threads=2 affinity=yes end=reboot'
  cargo boot -- --guest linux --ims            it takes 3,000 interrupts of the DSA's message store
  cargo boot -- --native linux --append intel_iommu=on,sm_off
                                               Debian's Linux on the emulated machine, without imsvisor
  cargo boot -- --image imsvisor.iso           an image for a real machine, which reports on its screen
                                               and on the serial port that its firmware names, else COM1
  cargo boot -- --image imsvisor.iso --hypervisor console=com2

Guests:
  Ours are in tests/guests/src/bin; --list-guests tells what each is.
  A file is an ELF64 executable at fixed addresses (no PIE), or a kernel of Linux (bzImage). A path
  that holds a space needs quotes of its own: --guest '\"/my guests/one.elf\" mem=64M'
  linux is Debian's kernel 6.12 as packaged, with an initrd of ours; without mem= and device= it
  has mem=512M device=dsa, and but for --image unsafe=INTEL-SA-01084, because its driver knows
  only DSAs that have this erratum. tests/linux/init says what can be appended to its command line.
  name=… names the guest, by 1 to 16 of a-z, 0-9 and -. Without it one of ours has its own
  name, and a file its file's, with - for what no name can hold; a second guest of one name
  gets -2 behind it. The other options are in hypervisor/src/guest/MODULES.md; all are
  checked before anything is built.

Environment:
  IMSVISOR_BOCHS          a Bochs 3.0 to use instead of the system's or the fetched one
  IMSVISOR_QEMU           a QEMU 11.1 or later to use instead of the system's or the fetched one
  IMSVISOR_OVMF           a directory with OVMF_CODE_4M.fd and OVMF_VARS_4M.fd, for the tests by UEFI
  IMSVISOR_LINUX          a directory with Debian's cloud kernel 6.12, unpacked, to use instead of the fetched one
  IMSVISOR_STOCK_LINUX    a directory with the packages of the guest linux, unpacked, to use instead of the fetched ones
  IMSVISOR_DEBIAN_MIRROR  where to fetch Debian packages from, if not where /etc/apt says
  CARGO_TARGET_DIR        everything fetched, built and logged goes to `imsvisor` below it

Exit codes:
  0  the run was right        1  the run was not right
  2  a wrong option           3  it could not be run or reported; the message says why";

/// What can run on the machine without the hypervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum System {
    /// Debian's Linux, as it is packaged.
    Linux,
}

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
    /// (name=a, mem=64M, cpus=2, device=dsa, cmdline="…"); may be given several times
    #[arg(long = "guest", value_name = "GUEST OPTION=VALUE …")]
    pub guests: Vec<String>,

    /// Tenants instead of the demos: so many guests with virtual functions of two DSAs, and a hostile one that tries to take their time; the
    /// report tells what each of them had of it
    #[arg(
        long,
        value_name = "COUNT",
        value_parser = clap::value_parser!(u32).range(1..=i64::from(TENANTS)),
        conflicts_with_all = ["machine", "image", "guests", "list_guests", "native", "console"]
    )]
    pub tenants: Option<u32>,

    /// Boot this on the emulated machine itself, without imsvisor: its own drivers for the remapping unit and the DSA judge the machine
    #[arg(long, value_enum, conflicts_with_all = ["machine", "image", "guests", "list_guests", "console", "debug"])]
    pub native: Option<System>,

    /// Linux, as a guest or natively: this kernel, a bzImage (a guest also an ELF executable), instead of Debian's; without --initrd it has
    /// none
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,

    /// Linux: this initrd
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,

    /// Linux: words for the end of its command line; the first process takes some as well (tests/linux/init)
    #[arg(long, value_name = "TEXT")]
    pub append: Option<String>,

    /// Linux: instead of copying by its own driver, the guest takes 3,000 interrupts of the DSA's message store by the modules of
    /// guest-shim/linux, on 16 virtual processors; the machine is `generous`, whose DSAs have 4,096 slots (tests/linux/ims)
    #[arg(long, conflicts_with = "native")]
    pub ims: bool,

    /// Words for the hypervisor's own command line: console=auto, com1 to com4 or a base (0x2f8) is where it reports, screen=on or off whether
    /// a screen shows it, too, mitigations=auto or off what is done against speculation [default: console=auto, the port that the firmware names,
    /// else COM1; screen=off on an emulator; mitigations=auto]
    #[arg(long, value_name = "WORDS", conflicts_with = "native")]
    pub hypervisor: Option<String>,

    /// The machine's memory in MiB [default: 512; with a guest linux what the guests have, and 256 more]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(64..=2048))]
    pub memory: Option<u32>,

    /// Bochs' model of the processor [default: sapphire_rapids]
    #[arg(long, value_name = "MODEL")]
    pub cpu: Option<String>,

    /// Changes to the emulated machine, which is laid out as Sapphire Rapids is: generous is one with everything on bus 0 and DSAs
    /// with more than real ones have; tests/MACHINES.md has all options
    #[arg(long, value_name = "OPTION,…", value_delimiter = ',')]
    pub plugin: Vec<String>,

    /// The machine's processors [default: 2; with a guest linux 1, because Bochs with several of them spoils VM exits that follow an
    /// exception]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=8))]
    pub cpus: Option<u32>,

    /// End a run that takes longer than this [default: 600; none with --console or --debug]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout: Option<u64>,

    /// End a run that writes no line for this long: it hangs. Counted in the machine's own time (the emulator's, else processor time), so
    /// that a busy host does no harm; a machine that stands still ends after ten times as long on the clock
    /// [default: 30; with a guest linux 120; none with --console or --debug]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub silence: Option<u64>,

    /// Use this terminal as the serial port of a guest: of the one with console=on, else of the first. Ctrl-] ends the run
    #[arg(long, conflicts_with_all = ["verbose", "quiet", "json", "image", "list_guests"])]
    pub console: bool,

    /// Hold the machine before its first instruction for a debugger: on Bochs its own one, which has this terminal (help tells its commands, c
    /// goes on, Ctrl-C stops, q ends), with --machine kvm a GDB that is connected as the launcher tells. The run has no time limits then
    #[arg(long, conflicts_with_all = ["console", "quiet", "json", "image", "dry_run", "list_guests"])]
    pub debug: bool,

    /// Show everything on the serial console, as the machine writes it
    #[arg(long, short)]
    pub verbose: bool,

    /// Show only the report
    #[arg(long, short, conflicts_with = "verbose")]
    pub quiet: bool,

    /// Write only the report, as JSON, to standard output
    #[arg(long, conflicts_with_all = ["verbose", "quiet", "image", "dry_run", "list_guests"])]
    pub json: bool,

    /// Only check what is asked for, and show what would be booted
    #[arg(long)]
    pub dry_run: bool,

    /// Only list our guests
    #[arg(long)]
    pub list_guests: bool,

    /// Only write a script to standard output that lets a shell complete `cargo boot --…`. Bash: source <(cargo -q boot --completions bash)
    #[arg(long, value_name = "SHELL", value_enum, exclusive = true)]
    pub completions: Option<Shell>,
}

impl Options {
    /// Reads the arguments, or ends the program with a message. The alias puts a `--` before them, so that both
    /// `cargo boot --verbose` and `cargo boot -- --verbose` do what they say: a second `--` is passed over.
    pub fn of_arguments(arguments: impl Iterator<Item = OsString>) -> Self {
        Self::parse_from(without_separator(arguments))
    }

    /// The machine's configuration for these guests; the plugin is still to come.
    pub fn config(&self, guests: &[GuestArg]) -> Config {
        let standard = Config::default();
        let linux = self.has_linux(guests);
        let silence = if linux { QUIET_LINUX } else { standard.silence };
        let cpus = if linux && self.native.is_none() { 1 } else { CPUS };
        Config {
            memory_mib: self.memory_for(guests, standard.memory_mib),
            cpus: self.cpus.unwrap_or(cpus),
            cpu_model: self.cpu.clone().unwrap_or(standard.cpu_model),
            silence: self.time(self.silence, silence),
            limit: self.time(self.timeout, standard.limit),
            hypervisor_options: self.hypervisor_options(),
            debugger: self.debug,
            plugin_options: (linux && self.native.is_none())
                .then(|| linux::DEVICE_OPTION.to_owned())
                .into_iter()
                .chain(self.tenants.map(|_| FOUR_DSAS.to_owned()))
                .chain(self.ims.then(|| bochs::GENEROUS.to_owned()))
                .chain(self.plugin.clone())
                .collect(),
            ..standard
        }
    }

    /// The words of the hypervisor's own command line.
    pub fn hypervisor_options(&self) -> Vec<String> {
        self.hypervisor.iter().flat_map(|words| words.split_ascii_whitespace()).map(str::to_owned).collect()
    }

    /// The machine's memory in MiB, `standard` where neither the command line nor a Linux asks for more.
    fn memory_for(&self, guests: &[GuestArg], standard: u32) -> u32 {
        let all: u64 = guests.iter().map(GuestArg::memory).sum();
        let needed = u32::try_from(all >> 20).unwrap_or(u32::MAX).saturating_add(AROUND_LINUX_MIB);
        let linux = self.has_linux(guests);
        self.memory.unwrap_or(if linux { needed.max(standard) } else { standard })
    }

    /// Whether there is a Linux, as a guest or on the machine itself.
    fn has_linux(&self, guests: &[GuestArg]) -> bool {
        self.native.is_some() || guests.iter().any(|guest| guest.linux().is_some())
    }

    /// Refuses options that do not go together.
    pub fn check(&self, guests: &[GuestArg]) -> Result<()> {
        self.asked().check(self.has_linux(guests))?;
        self.check_hypervisor().context("--hypervisor")?;
        let on_bochs = self.machine.unwrap_or_default() == Kind::Bochs;
        ensure!(!self.debug || self.machine != Some(Kind::Nested), "--debug is for --machine bochs and kvm");
        let ours = guests.iter().filter_map(GuestArg::linux).any(Asked::takes_initrd);
        ensure!(on_bochs || !ours, "{NOT_ON_QEMU}");
        let emulated = on_bochs && self.image.is_none();
        ensure!(emulated || self.plugin.is_empty(), "--plugin is for --machine bochs");
        for option in &self.plugin {
            bochs::check_plugin_option(option).with_context(|| format!("--plugin {option}"))?;
        }
        let Some(model) = &self.cpu else { return Ok(()) };
        ensure!(emulated, "--cpu is for --machine bochs");
        bochs::check_model(model).with_context(|| format!("--cpu {model}"))
    }

    /// A real machine may have its console anywhere, an emulated one at four places.
    fn check_hypervisor(&self) -> Result<()> {
        let words = self.hypervisor_options();
        match self.image {
            Some(_) => serial::check_options(&words).map(drop),
            None => serial::console_number(&words).map(drop),
        }
    }

    /// The files and words that the command line gives a Linux.
    pub fn asked(&self) -> Asked {
        Asked {
            kernel: self.kernel.clone(),
            initrd: self.initrd.clone(),
            append: self.append.clone(),
            ims: self.ims,
            real_machine: self.image.is_some(),
        }
    }

    /// The same for a guest. At a terminal our first process ends with a shell, unless `--append` says otherwise.
    fn asked_of_guests(&self) -> Asked {
        let asked = self.asked();
        let shell = (self.console && asked.takes_initrd()).then_some("end=shell");
        let words: Vec<&str> = shell.into_iter().chain(self.append.as_deref()).collect();
        Asked { append: (!words.is_empty()).then(|| words.join(" ")), ..asked }
    }

    /// A limit in seconds, or the one that there is by itself: a person at a terminal or a debugger has none.
    fn time(&self, seconds: Option<u64>, default: Duration) -> Duration {
        let default = if self.console || self.debug { Duration::MAX } else { default };
        seconds.map_or(default, Duration::from_secs)
    }

    /// The machine that was asked for, for people.
    pub fn described(&self, guests: &[GuestArg]) -> String {
        if let Some(file) = &self.image {
            return format!("image {}", file.display());
        }
        if self.native.is_some() {
            let config = self.config(guests);
            return format!("Linux on the machine itself: {} MiB, {} processors", config.memory_mib, config.cpus);
        }
        let kind = self.machine.unwrap_or_default().to_possible_value();
        let name = kind.as_ref().map_or("", |kind| kind.get_name());
        let config = self.config(guests);
        format!("machine {name}: {} MiB, {} processors", config.memory_mib, config.cpus)
    }

    /// The words for Linux' command line.
    pub fn appended(&self) -> Result<Vec<String>> {
        let text = self.append.as_deref().unwrap_or_default();
        let words = words::split(text).with_context(|| format!("--append '{text}'"))?;
        if text.contains(char::is_control) {
            bail!("--append '{}': a control character", words::harmless(text));
        }
        Ok(words)
    }

    /// The guests that were asked for; if none was, two demos. With them, the name of the guest that has the terminal.
    pub fn guests(&self) -> Result<(Vec<GuestArg>, Option<String>)> {
        let mut guests = self.named()?;
        ensure!(
            !self.console || self.machine != Some(Kind::Nested),
            "--console: the nested machine has no terminal for a guest"
        );
        let holder = self.console.then(|| guest::give_console(&mut guests)).transpose()?;
        Ok((guests, holder))
    }

    /// Without the hypervisor there are none.
    fn named(&self) -> Result<Vec<GuestArg>> {
        if self.native.is_some() {
            return Ok(Vec::new());
        }
        if let Some(count) = self.tenants {
            return tenants(count);
        }
        if self.guests.is_empty() {
            return demos(self.machine.unwrap_or_default().posts());
        }
        let asked = self.asked_of_guests();
        let read = |text: &String| GuestArg::with(text, &asked).with_context(|| format!("--guest '{text}'"));
        let mut guests = self.guests.iter().map(read).collect::<Result<Vec<_>>>()?;
        guest::make_distinct(&mut guests)?;
        Ok(guests)
    }
}

fn without_separator(arguments: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    arguments.enumerate().filter(|(index, argument)| *index != 1 || argument != "--").map(|(_, argument)| argument)
}

/// The demo twice, each with a device of its own. Interrupts are injected into one, and posted to the other where that can be.
fn demos(posts: bool) -> Result<Vec<GuestArg>> {
    let second = if posts {
        "name=posted mem=64M device=dsa apicv=on cmdline=profile=posted"
    } else {
        "name=second mem=64M device=dsa"
    };
    [format!("{DEMO} mem=64M device=dsa"), format!("{DEMO} {second}")].iter().map(|text| GuestArg::new(text)).collect()
}

/// Tenants with two virtual functions each, by turns of two DSAs, and the hostile guest with a DSA of its own.
fn tenants(count: u32) -> Result<Vec<GuestArg>> {
    let tenant = |number: u32| {
        let parent = PARENTS[number as usize % PARENTS.len()];
        format!("vfunc name=tenant-{} mem=32M device=vdsa:{parent} device=vdsa:{parent}", number + 1)
    };
    let hostile =
        "thief name=hostile mem=64M cpus=8 device=dsa cmdline=\"cpus=8 device=yes forge=no phase=2\"".to_owned();
    (0..count).map(tenant).chain([hostile]).map(|text| GuestArg::new(&text)).collect()
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
    fn the_help_has_the_rules_for_guests() {
        let help = Options::command().render_long_help().to_string();
        let help: Vec<_> = help.split_whitespace().collect();
        let help = help.join(" ");
        for words in ["name=… names the guest", "quotes of its own", "a-z, 0-9 and -", "--list-guests", "no PIE"] {
            assert!(help.contains(words), "{words}");
        }
    }

    #[test]
    fn what_would_be_booted_is_described() {
        let described =
            |arguments: &[&str]| Options::parse_from(["cargo boot"].iter().chain(arguments).copied()).described(&[]);
        assert_eq!(described(&["--cpus", "4"]), "machine bochs: 512 MiB, 4 processors");
        assert_eq!(described(&["--machine", "kvm", "--memory", "64"]), "machine kvm: 64 MiB, 2 processors");
        assert_eq!(described(&["--image", "x.iso"]), "image x.iso");
    }

    #[test]
    fn options_may_come_after_a_separator_of_their_own() {
        for arguments in [vec!["x", "--", "--verbose"], vec!["x", "--verbose"]] {
            let arguments = without_separator(arguments.into_iter().map(OsString::from));
            assert!(Options::try_parse_from(arguments).unwrap().verbose);
        }
    }

    #[test]
    fn tenants_share_two_dsas_and_the_hostile_guest_has_one() {
        let (config, guests) = all(&["--tenants", "3"]).unwrap();
        let strings: Vec<_> = guests.iter().map(GuestArg::string).collect();
        assert!(config.plugin_options.contains(&FOUR_DSAS.to_owned()));
        assert_eq!(strings.len(), 4);
        assert!(strings[0].starts_with("tenant-1 ") && strings[0].contains(PARENTS[0]));
        assert!(strings[1].contains(PARENTS[1]) && strings[2].contains(PARENTS[0]));
        assert!(strings[3].starts_with("hostile ") && strings[3].contains("device=dsa"));
        for wrong in [&["--tenants", "9"][..], &["--tenants", "1", "--guest", "demo"]] {
            assert!(Options::try_parse_from(["cargo boot"].iter().chain(wrong)).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn without_guests_the_demo_runs_in_the_ways_that_the_machine_has() {
        let options = Options::parse_from(["cargo boot"]);
        let both = options.guests().unwrap().0;
        let strings: Vec<_> = both.iter().map(GuestArg::string).collect();
        assert_eq!(strings, ["demo mem=64M device=dsa", "posted mem=64M device=dsa apicv=on cmdline=profile=posted"]);
        assert_eq!(both[1].ours(), Some("demo"));
        let both = Options::parse_from(["cargo boot", "--machine", "kvm"]).guests().unwrap().0;
        let strings: Vec<_> = both.iter().map(GuestArg::string).collect();
        assert_eq!(strings, ["demo mem=64M device=dsa", "second mem=64M device=dsa"]);
    }

    #[test]
    fn at_a_terminal_a_guest_has_it_and_time_has_no_end() {
        let options = |more: &[&str]| Options::parse_from(["cargo boot", "--console"].iter().chain(more).copied());
        let (guests, holder) = options(&["--guest", "hello", "--guest", "echo console=on"]).guests().unwrap();
        assert_eq!((guests.len(), holder.as_deref()), (2, Some("echo")));
        let config = options(&["--timeout", "9"]).config(&[]);
        assert_eq!((config.limit, config.silence), (Duration::from_secs(9), Duration::MAX));
        let refused = options(&["--machine", "nested"]).guests().unwrap_err().to_string();
        assert!(refused.contains("no terminal"), "{refused}");
        assert!(Options::try_parse_from(["cargo boot", "--console", "--json"]).is_err());
        let append = |more: &[&str]| options(more).asked_of_guests().append;
        assert_eq!(append(&[]).as_deref(), Some("end=shell"));
        assert_eq!(append(&["--append", "end=reboot"]).as_deref(), Some("end=shell end=reboot"), "the last one counts");
        assert_eq!(append(&["--kernel", "k", "--append", "quiet"]).as_deref(), Some("quiet"));
    }

    #[test]
    fn guests_are_read_with_what_is_wrong_and_which_it_is() {
        let guests = |texts: &[&str]| {
            let arguments = texts.iter().flat_map(|text| ["--guest", text]);
            Options::parse_from(["cargo boot"].into_iter().chain(arguments)).guests().map(|(guests, _)| guests)
        };
        let names: Vec<_> = guests(&["demo", "demo mem=1G"]).unwrap().iter().map(GuestArg::string).collect();
        assert_eq!(names, ["demo", "demo-2 mem=1G"]);
        let error = format!("{:#}", guests(&["demo", "hello mem=1"]).unwrap_err());
        assert!(error.starts_with("--guest 'hello mem=1': mem=1: a number"), "{error}");
    }

    /// What these arguments make of the machine and of its guests.
    fn all(arguments: &[&str]) -> Result<(Config, Vec<GuestArg>)> {
        let options = Options::parse_from(["cargo boot"].iter().chain(arguments));
        let (guests, _) = options.guests()?;
        options.check(&guests)?;
        Ok((options.config(&guests), guests))
    }

    #[test]
    fn a_linux_has_a_machine_that_is_large_enough_and_a_processor_that_its_driver_can_use() {
        let (config, guests) = all(&["--guest", "linux", "--guest", "linux mem=768M device=vdsa"]).unwrap();
        assert_eq!((config.memory_mib, config.cpu_model.as_str()), (512 + 768 + 256, "sapphire_rapids"));
        assert_eq!(config.cpus, 1);
        assert_eq!(guests.iter().map(GuestArg::name).collect::<Vec<_>>(), ["linux", "linux-2"]);
        let (config, _) =
            all(&["--guest", "linux", "--memory", "900", "--cpu", "arrow_lake", "--silence", "9"]).unwrap();
        assert_eq!((config.memory_mib, config.cpu_model.as_str(), config.silence.as_secs()), (900, "arrow_lake", 9));
        let (config, _) = all(&["--guest", "demo"]).unwrap();
        assert_eq!(
            (config.memory_mib, config.cpu_model, config.silence.as_secs()),
            (512, Config::default().cpu_model, 30)
        );
    }

    #[test]
    fn what_is_for_linux_or_for_bochs_alone_is_refused_elsewhere() {
        for (arguments, words) in [
            (&["--append", "x"][..], "--append is for the guest linux"),
            (&["--kernel", "/k", "--guest", "demo"], "--kernel is for the guest linux"),
            (&["--guest", "linux", "--kernel", "/no/such"], "cannot read /no/such"),
            (&["--guest", "linux", "--initrd", "/no/such"], "cannot read /no/such"),
            (&["--guest", "linux", "--machine", "nested"], "by stores of 64 bytes"),
            (&["--plugin", "generous,fast"], "--plugin fast: there is no such option"),
            (&["--plugin", "generous", "--machine", "nested"], "--plugin is for --machine bochs"),
            (&["--hypervisor", "console=com9"], "--hypervisor: console=com9: auto, com1 to com4"),
            (&["--hypervisor", "console=0xc000"], "the emulated machine has COM1 to COM4"),
            (&["--image", "x", "--hypervisor", "quiet"], "--hypervisor: quiet: the hypervisor's options"),
            (&["--debug", "--machine", "nested"], "--debug is for --machine bochs and kvm"),
            (&["--cpu", "i387"], "--cpu i387: Bochs has no such model"),
            (&["--cpu", "sapphire_rapids", "--machine", "nested"], "--cpu is for --machine bochs"),
        ] {
            let error = format!("{:#}", all(arguments).map(drop).expect_err(words));
            assert!(error.contains(words), "{arguments:?}: {error}");
        }
    }

    #[test]
    fn the_hypervisors_own_words_are_checked_for_the_machine_that_reads_them() {
        let (config, _) = all(&["--guest", "demo", "--hypervisor", "console=com2  screen=on"]).unwrap();
        assert_eq!(config.hypervisor_options, ["console=com2", "screen=on"]);
        assert!(all(&["--guest", "demo", "--image", "x", "--hypervisor", "console=0xc000"]).is_ok());
    }

    #[test]
    fn a_linux_on_the_machine_itself_has_no_guests_and_its_words_are_split() {
        let parse = |arguments: &[&str]| Options::try_parse_from(["cargo boot"].iter().chain(arguments).copied());
        let options = parse(&["--native", "linux", "--append", "intel_iommu=on,sm_on copies=8"]).unwrap();
        assert_eq!(options.appended().unwrap(), ["intel_iommu=on,sm_on", "copies=8"]);
        assert_eq!((options.guests().unwrap().0.len(), options.described(&[]).starts_with("Linux on")), (0, true));
        for wrong in ["a 'b", "a\nb"] {
            assert!(parse(&["--native", "linux", "--append", wrong]).unwrap().appended().is_err(), "{wrong}");
        }
        let config = options.config(&[]);
        assert_eq!((config.cpu_model.as_str(), config.cpus), (crate::linux::CPU_MODEL, 2));
        assert!(options.check(&[]).is_ok(), "--append is for it");
        for other in [["--guest", "demo"], ["--machine", "kvm"], ["--image", "x.iso"]] {
            assert!(parse(&[&["--native", "linux"], &other[..]].concat()).is_err(), "{other:?}");
        }
    }

    #[test]
    fn options_reach_the_machine() {
        let options =
            Options::parse_from(["cargo boot", "--memory", "768", "--cpus", "2", "--timeout", "9", "--silence", "5"]);
        let config = options.config(&[]);
        assert_eq!((config.memory_mib, config.cpus), (768, 2));
        assert_eq!((config.limit.as_secs(), config.silence.as_secs()), (9, 5));
        let options = Options::parse_from(["cargo boot", "--plugin", "generous,slow-store"]);
        assert_eq!(options.config(&[]).plugin_options, ["generous", "slow-store"]);
        let config = Options::parse_from(["cargo boot"]).config(&[]);
        assert_eq!((config.limit.as_secs(), config.silence.as_secs()), (600, 30));
        for both in [["--quiet", "--verbose"], ["--json", "--quiet"]] {
            assert!(Options::try_parse_from(["cargo boot"].into_iter().chain(both)).is_err(), "{both:?}");
        }
        for option in ["--timeout", "--silence"] {
            assert!(Options::try_parse_from(["cargo boot", option, "0"]).is_err(), "{option} 0");
        }
    }
}
