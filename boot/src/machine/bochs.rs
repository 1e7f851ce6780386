//! Bochs with our plugin: the machine that runs on every host and counts every instruction.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, ensure};

use super::run::{Manner, Run};
use super::serial::{self, Port};
use super::{Config, IMAGE, PLUGIN_REPORT, PLUGINS, PROGRESS, SERIAL};
use crate::prefix::{Bochs, Tools};

const BIOS: &str = "bios.bin";
const VGA_BIOS: &str = "vgabios.bin";
const LOG: &str = "bochs.log";
/// What the emulator itself writes.
const OUTPUT: &str = "bochs.out";

/// The terminal of the `term` display. Its screen is a pseudo-terminal that the emulator opens and nobody reads: after 20 KiB the emulator
/// stops for good. So curses must not write to it. It writes nothing but a blank each time that the screen is cleared, because the screen
/// is one character large and that one is its lower right corner: on a terminal of this kind, which scrolls by itself and cannot be told
/// not to, curses leaves the corner alone. Nor has the terminal a cursor that could be switched. Its description is on every Debian.
const SCREEN: [(&str, &str); 3] = [("TERM", "dumb"), ("LINES", "1"), ("COLUMNS", "1")];

/// The TSC's frequency, and the scale of device time; unrelated to the host's clock.
pub const IPS: u32 = 200_000_000;

/// Where each DSA is in the emulated machine; a machine with two has the first two. The hypervisor meets them in the order of their buses.
pub const DSAS: [&str; 4] = ["6a:01.0", "74:01.0", "6f:01.0", "79:01.0"];
/// The same with the plugin's option [`GENEROUS`].
pub const GENEROUS_DSAS: [&str; 4] = ["00:1e.0", "00:1f.0", "00:1c.0", "00:1d.0"];
/// The plugin's option for a machine with more than real ones have.
pub const GENEROUS: &str = "generous";
/// The plugin's options; tests/MACHINES.md says what they do.
const PLUGIN_OPTIONS: [&str; 20] = [
    GENEROUS,
    "idxd",
    "no-vtd",
    "no-dmar",
    "no-dsa",
    "two-units",
    "odd-firmware",
    "opt-out",
    "no-posting",
    "legacy",
    "client-units",
    "first-stage",
    "sva",
    "four-dsas",
    "halts",
    "most-slots",
    "slow-commands",
    "slow-resets",
    "slow-store",
    "unknown",
];

/// Refuses an option that the plugin does not know, before it does.
pub fn check_plugin_option(option: &str) -> Result<()> {
    ensure!(PLUGIN_OPTIONS.contains(&option), "there is no such option; there are {}", PLUGIN_OPTIONS.join(", "));
    Ok(())
}

/// Bochs 3.0's models of processors that have VT-x with what the hypervisor needs (`bochs --help cpu` lists all models).
const MODELS: [&str; 8] = [
    "corei7_haswell_4770",
    "broadwell_ult",
    "corei7_skylake_x",
    "corei3_cnl",
    "corei7_icelake_u",
    "tigerlake",
    "sapphire_rapids",
    "arrow_lake",
];

/// Refuses a name that no model has, before Bochs does.
pub fn check_model(model: &str) -> Result<()> {
    ensure!(MODELS.contains(&model), "Bochs has no such model with VT-x; there are {}", MODELS.join(", "));
    Ok(())
}

/// Starts Bochs in a run's directory that holds the image.
pub(super) fn start(tools: &Tools, config: &Config, directory: PathBuf) -> Result<Run> {
    let serial = serial::ports(config, SERIAL)?;
    start_with(&serial, Manner::alone(inquest), tools, config, directory)
}

/// The same with these serial ports, COM1 first.
pub(super) fn start_with(
    serial: &[Port<'_>],
    manner: Manner,
    tools: &Tools,
    config: &Config,
    directory: PathBuf,
) -> Result<Run> {
    let bochs = tools.bochs.as_ref().context("no Bochs was looked for")?;
    symlink(bochs.share.join("BIOS-bochs-latest"), directory.join(BIOS)).context("cannot link the BIOS")?;
    symlink(&bochs.vga_bios, directory.join(VGA_BIOS)).context("cannot link the VGA BIOS")?;
    let configuration = bochsrc(config, serial, display(bochs.plugins.as_deref()));
    fs::write(directory.join("bochsrc"), configuration).context("cannot write Bochs' configuration")?;
    let command = command(bochs, config, &directory)?;
    Run::start(command, directory, config, manner)
}

/// The text of Bochs' configuration. File names are relative to the run's directory.
fn bochsrc(config: &Config, serial: &[Port<'_>], display: &str) -> String {
    let Config { memory_mib, cpus, cpu_model, exclude_features, .. } = config;
    let mut text = format!(
        "display_library: {display}\n\
         memory: guest={memory_mib}, host={memory_mib}\n\
         romimage: file={BIOS}, options=fastboot\n\
         vgaromimage: file={VGA_BIOS}\n\
         vga: extension=none\n\
         cpu: model={cpu_model}, count={cpus}, ips={IPS}, quantum=16, reset_on_triple_fault=0, ignore_bad_msrs=1"
    );
    if !exclude_features.is_empty() {
        // Writing to a String cannot fail.
        let _ = write!(text, ", exclude_features=\"{}\"", exclude_features.join(" "));
    }
    // A guest that waits for a person must not have its time fly by.
    let sync = if config.terminal.is_some() { "slowdown" } else { "none" };
    let _ = write!(
        text,
        "\nclock: sync={sync}, time0=1700000000, rtc_sync=0\n\
         boot: cdrom\n\
         ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14\n\
         ata0-master: type=cdrom, path={IMAGE}, status=inserted\n\
         log: {LOG}\n\
         info: action=ignore\n\
         panic: action=fatal\n"
    );
    for (number, port) in (1..).zip(serial) {
        let _ = match port {
            Port::Nothing => writeln!(text, "com{number}: enabled=1, mode=null"),
            Port::File(file) => writeln!(text, "com{number}: enabled=1, mode=file, dev={file}"),
            Port::Terminal(device) => writeln!(text, "com{number}: enabled=1, mode=term, dev={device}"),
        };
    }
    if config.plugin.is_some() {
        text.push_str("plugin_ctrl: ims=1\n");
    }
    for line in &config.extra {
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// A display that needs neither a window nor, where it can be helped, a network port.
fn display(plugins: Option<&Path>) -> &'static str {
    let has = |name: &str| plugins.is_some_and(|plugins| plugins.join(format!("libbx_{name}_gui.so")).exists());
    match () {
        () if has("nogui") => "nogui",
        () if has("term") => "term",
        () => "rfb, options=\"timeout=0\"",
    }
}

fn command(bochs: &Bochs, config: &Config, directory: &Path) -> Result<Command> {
    let mut command = bochs.program.command();
    let output = File::create(directory.join(OUTPUT)).context("cannot create the emulator's output")?;
    let errors = output.try_clone().context("cannot share the emulator's output")?;
    command.args(["-q", "-f", "bochsrc"]).stdout(output).stderr(errors);
    if config.debugger {
        command.arg("-debugger").stdin(Stdio::inherit()).stdout(Stdio::inherit()).stderr(Stdio::inherit());
    }
    command.env("BXSHARE", &bochs.share);
    command.envs(SCREEN);
    let ours = config.plugin.as_deref().map(|plugin| own_directory(plugin, directory)).transpose()?;
    let places: Vec<&Path> = ours.as_deref().into_iter().chain(bochs.plugins.as_deref()).collect();
    if !places.is_empty() {
        command.env("LTDL_LIBRARY_PATH", std::env::join_paths(places).context("a colon in a path to plugins")?);
    }
    command.env("IMSVISOR_PLUGIN", config.plugin_options.join(","));
    command.env("IMSVISOR_PLUGIN_REPORT", directory.join(PLUGIN_REPORT));
    command.env("IMSVISOR_PLUGIN_PROGRESS", directory.join(PROGRESS));
    Ok(command)
}

/// A directory with nothing but our plugin: Bochs tries every library that looks like one. A copy, so that a build during
/// the run does not change it.
fn own_directory(plugin: &Path, directory: &Path) -> Result<PathBuf> {
    let own = directory.join(PLUGINS);
    fs::create_dir(&own).context("cannot create the plugin's directory")?;
    fs::copy(plugin, own.join("libbx_ims.so")).with_context(|| format!("cannot copy {}", plugin.display()))?;
    Ok(own)
}

/// How its log tells that a program switched the machine off: by Bochs' own port, or as ACPI has it.
const SWITCHED_OFF: [&str; 2] = ["shutdown requested", "ACPI control: soft power off"];

/// Bochs panics also when a program asks it to end, and its exit code varies: its log tells.
pub(super) fn inquest(directory: &Path, status: ExitStatus) -> Result<(), String> {
    let text = |file: &str| {
        fs::read(directory.join(file)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    };
    let log = text(LOG);
    if SWITCHED_OFF.iter().any(|words| log.contains(words)) {
        return Ok(());
    }
    let words = last_words(&log).or_else(|| last_words(&text(OUTPUT)));
    Err(words.map_or_else(|| format!("Bochs ended with {status}"), |words| format!("Bochs says: {words}")))
}

/// The last panic in a log, else its last line.
fn last_words(log: &str) -> Option<String> {
    let lines = || log.lines().rev().map(str::trim).filter(|line| line.contains(char::is_alphanumeric));
    let panic = lines().find(|line| line.contains("PANIC"));
    panic.or_else(|| lines().next()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;
    use crate::prefix::Program;

    #[test]
    fn the_configuration_describes_the_machine_that_was_asked_for() {
        let config = Config {
            memory_mib: 768,
            cpus: 2,
            exclude_features: vec!["vmx".into(), "x2apic".into()],
            extra: vec!["debug: action=ignore".into()],
            plugin: Some("/x/libbx_ims.so".into()),
            ..Config::default()
        };
        let text = bochsrc(&config, &[Port::File("a.log"), Port::Nothing, Port::File("b.log")], "term");
        for line in [
            "display_library: term",
            "memory: guest=768, host=768",
            "plugin_ctrl: ims=1",
            "debug: action=ignore",
            "info: action=ignore",
            "vga: extension=none",
            "com1: enabled=1, mode=file, dev=a.log",
            "com2: enabled=1, mode=null",
            "com3: enabled=1, mode=file, dev=b.log",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}\n{text}");
        }
        let cpu = text.lines().find(|line| line.starts_with("cpu:")).unwrap();
        assert!(cpu.contains("model=sapphire_rapids, count=2,"), "{cpu}");
        assert!(cpu.ends_with("exclude_features=\"vmx x2apic\""), "{cpu}");
    }

    #[test]
    fn the_options_are_those_of_the_plugin() {
        let source = include_str!("../../../tests/plugin/src/options.rs");
        let (_, arms) = source.split_once("match word {").unwrap();
        let (arms, _) = arms.split_once("_ => return").unwrap();
        let mut known: Vec<_> =
            arms.lines().filter_map(|line| line.trim().strip_prefix('"')?.split('"').next()).collect();
        let mut ours = PLUGIN_OPTIONS.to_vec();
        known.sort_unstable();
        ours.sort_unstable();
        assert_eq!(ours, known);
        assert!(check_plugin_option("fast").unwrap_err().to_string().contains("generous"));
    }

    #[test]
    fn only_models_with_vt_x_are_known() {
        assert!(check_model(&Config::default().cpu_model).is_ok() && check_model(crate::linux::CPU_MODEL).is_ok());
        for model in ["", "i386", "ryzen", "corei7_skylake_x, count=9"] {
            assert!(check_model(model).unwrap_err().to_string().contains("sapphire_rapids"), "{model}");
        }
    }

    #[test]
    fn a_guests_console_ends_at_a_device_and_its_time_is_the_hosts() {
        let config = Config { terminal: Some("/dev/pts/7".into()), ..Config::default() };
        let text = bochsrc(&config, &serial::ports(&config, SERIAL).unwrap(), "term");
        assert!(text.contains("\ncom2: enabled=1, mode=term, dev=/dev/pts/7\n"), "{text}");
        assert!(text.contains("sync=slowdown,"), "{text}");
        assert!(bochsrc(&Config::default(), &[Port::File(SERIAL)], "term").contains("sync=none,"));
    }

    #[test]
    fn without_the_plugin_bochs_does_not_look_for_it() {
        let text = bochsrc(&Config::default(), &[Port::File(SERIAL)], "term");
        assert!(!text.contains("plugin_ctrl") && !text.contains("exclude_features"));
    }

    #[test]
    fn nothing_is_written_to_the_screen_that_nobody_reads() {
        let directory = tempfile::tempdir().unwrap();
        let bochs = Bochs {
            program: Program::of_system("/x/bochs".into()),
            plugins: None,
            share: "/x".into(),
            vga_bios: "/x".into(),
        };
        let command = command(&bochs, &Config::default(), directory.path()).unwrap();
        let value =
            |name: &str| command.get_envs().find(|(key, _)| *key == name).and_then(|(_, value)| value?.to_str());
        assert_eq!([value("TERM"), value("LINES"), value("COLUMNS")], [Some("dumb"), Some("1"), Some("1")]);
    }

    #[test]
    fn a_run_with_a_debugger_begins_in_it() {
        let directory = tempfile::tempdir().unwrap();
        let bochs = Bochs {
            program: Program::of_system("/x/bochs".into()),
            plugins: None,
            share: "/x".into(),
            vga_bios: "/x".into(),
        };
        let begins = |debugger| {
            let config = Config { debugger, ..Config::default() };
            command(&bochs, &config, directory.path()).unwrap().get_args().any(|argument| argument == "-debugger")
        };
        assert_eq!([begins(true), begins(false)], [true, false]);
    }

    #[test]
    fn a_display_without_a_port_is_preferred() {
        let directory = tempfile::tempdir().unwrap();
        assert!(display(None).starts_with("rfb"));
        assert!(display(Some(directory.path())).starts_with("rfb"));
        fs::write(directory.path().join("libbx_term_gui.so"), "").unwrap();
        assert_eq!(display(Some(directory.path())), "term");
        fs::write(directory.path().join("libbx_nogui_gui.so"), "").unwrap();
        assert_eq!(display(Some(directory.path())), "nogui");
    }

    #[test]
    fn the_log_tells_an_end_that_was_asked_for_from_a_crash() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join(LOG);
        fs::write(&log, "00112197374p[UNMAP ] >>PANIC<< Shutdown port: shutdown requested\n").unwrap();
        assert_eq!(inquest(directory.path(), ExitStatus::from_raw(1 << 8)), Ok(()));
        fs::write(&log, "06588100151p[ACPI  ] >>PANIC<< ACPI control: soft power off\n").unwrap();
        assert_eq!(inquest(directory.path(), ExitStatus::from_raw(1 << 8)), Ok(()));
        fs::write(&log, "1p[CPU0 ] >>PANIC<< 3rd exception with no resolution\n2i[SYS] bye\n").unwrap();
        let words = inquest(directory.path(), ExitStatus::from_raw(1 << 8)).unwrap_err();
        assert!(words.contains("3rd exception"), "{words}");
        fs::remove_file(&log).unwrap();
        assert!(inquest(directory.path(), ExitStatus::from_raw(139)).unwrap_err().contains("signal"));
    }
}
