//! The machines that the hypervisor boots on: Bochs with our plugin, and QEMU, with nested KVM or without VT-x.

pub mod bochs;
mod dsa_server;
pub mod kvm;
pub mod native;
pub mod nested;
mod qemu;
mod run;
pub mod serial;
mod trace;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};

pub use dsa_server::DSAS;
pub use qemu::{NVME, SCREEN};
pub use run::{End, Outcome, Run, Seen, Silence};

use crate::image::{Firmware, Image, Module};
use crate::paths::Paths;
use crate::prefix::Tools;
use crate::terminal::Pty;

/// What a machine is like, and how long it may take.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Config {
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Processors.
    pub cpus: u32,
    /// Bochs' name of the processor's model.
    pub cpu_model: String,
    /// Features that the model has and this machine's processor lacks, by Bochs' names (`vmx`, `x2apic`, …).
    pub exclude_features: Vec<String>,
    /// The plugin, `libbx_ims.so`; without it there is neither a remapping unit nor a device.
    pub plugin: Option<PathBuf>,
    /// The server of DSAs for QEMU; without it QEMU's machine has none.
    pub dsa_server: Option<PathBuf>,
    /// Options for the plugin; `tests/MACHINES.md` lists them.
    pub plugin_options: Vec<String>,
    /// Words for the hypervisor's own command line (`imsvisor::options`).
    pub hypervisor_options: Vec<String>,
    /// A guest of ours is booted in the hypervisor's place: the words are the guest's.
    pub native: bool,
    /// The device of ours at which its second serial line ends, where a guest has its console.
    pub terminal: Option<String>,
    /// A debugger holds the machine before its first instruction and lets it go on: Bochs' own one, which has the terminal, or one that
    /// is connected to QEMU ([`GDB`]).
    pub debugger: bool,
    /// QEMU's machine has a screen, a monitor ([`MONITOR`]) and nothing that ends it, as a person's has; its image is one for real machines.
    pub screen: bool,
    /// Further lines for Bochs' configuration, or further arguments for QEMU.
    pub extra: Vec<String>,
    /// A run that writes no line for so long, in the machine's own time (the emulator's, else processor time) and on the host's clock, has
    /// hung.
    pub silence: Duration,
    /// A run that takes longer than this is ended.
    pub limit: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            memory_mib: 512,
            cpus: 1,
            cpu_model: "sapphire_rapids".into(),
            exclude_features: Vec::new(),
            plugin: None,
            dsa_server: None,
            plugin_options: Vec::new(),
            hypervisor_options: Vec::new(),
            native: false,
            terminal: None,
            debugger: false,
            screen: false,
            extra: Vec::new(),
            silence: Duration::from_secs(30),
            limit: Duration::from_secs(600),
        }
    }
}

impl Config {
    /// Whether the run leaves counters: those of the plugin, or of the DSA server.
    fn has_counters(&self) -> bool {
        self.plugin.is_some() || self.dsa_server.is_some()
    }
}

/// Ties a child to the life of the thread that starts it. The closure makes two system calls: no allocation, no lock; so it may run
/// between fork and exec.
fn die_with_parent() -> impl FnMut() -> std::io::Result<()> + Send + Sync + 'static {
    let parent = getpid();
    move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have ended before the call.
        if getppid() == Some(parent) { Ok(()) } else { Err(std::io::ErrorKind::NotFound.into()) }
    }
}

/// Units of a time-stamp counter: see [`Kind::unit`].
pub const INSTRUCTIONS: &str = "instructions";
/// Ticks of a clock.
pub const TICKS: &str = "TSC ticks";

/// The kinds of machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// The emulator, everywhere.
    #[default]
    Bochs,
    /// QEMU with nested KVM, on an Intel machine.
    Kvm,
    /// QEMU with nested KVM of a Linux in the emulator, everywhere; slow.
    Nested,
    /// QEMU's own emulation, everywhere. It has no VT-x, but a remapping unit that others have written: for the tests.
    #[value(skip)]
    Tcg,
}

impl Kind {
    /// Whether the machine's remapping unit can post interrupts; QEMU's cannot.
    pub fn posts(self) -> bool {
        self == Self::Bochs
    }

    /// What the machine's time-stamp counter counts, for people: on Bochs those are instructions, of all levels that run in it.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Bochs | Self::Nested => INSTRUCTIONS,
            Self::Kvm | Self::Tcg => TICKS,
        }
    }

    /// The machine that was asked for; else Bochs, which has a device with a message store and is the same everywhere. KVM is refused where
    /// it cannot offer VMX to guests.
    pub fn choose(asked: Option<Self>, kvm: impl FnOnce() -> Result<()>) -> Result<Self> {
        match asked {
            Some(Self::Kvm) => kvm().map(|()| Self::Kvm),
            Some(kind) => Ok(kind),
            None => Ok(Self::Bochs),
        }
    }
}

/// Writes an image of the hypervisor and these guests into a directory of its own, and starts Bochs on it.
pub fn start(paths: &Paths, tools: &Tools, config: &Config, hypervisor: &Path, guests: &[Module]) -> Result<Run> {
    start_on(Kind::Bochs, paths, tools, config, hypervisor, guests)
}

/// The same on any kind of machine.
pub fn start_on(
    kind: Kind,
    paths: &Paths,
    tools: &Tools,
    config: &Config,
    hypervisor: &Path,
    guests: &[Module],
) -> Result<Run> {
    let has_terminal = guests.iter().any(Module::has_console);
    if kind == Kind::Nested {
        ensure!(!has_terminal, "the nested machine has no terminal for a guest with console=on");
        let inner = nested::Inner { config: config.clone(), hypervisor, guests, nesting: true };
        return nested::start(paths, tools, &[inner]);
    }
    let directory = paths.new_run()?;
    write_image(tools, config, hypervisor, guests, &directory, IMAGE)?;
    let pty = has_terminal.then(Pty::open).transpose()?;
    let config = &Config { terminal: pty.as_ref().map(|pty| pty.name.clone()), ..config.clone() };
    let run = match kind {
        Kind::Tcg => qemu::start(qemu::Accelerator::Tcg, tools, config, directory),
        Kind::Kvm => qemu::start(qemu::Accelerator::Kvm, tools, config, directory),
        Kind::Bochs | Kind::Nested => bochs::start(tools, config, directory),
    };
    let mut run = run?.counting(kind.unit());
    run.keep_terminal(pty.map(|pty| pty.ours));
    if kind != Kind::Bochs && !all_count(guests) {
        run.others_send();
    }
    Ok(run)
}

/// Whether every device of the guests counts what it sends.
fn all_count(guests: &[Module]) -> bool {
    guests.iter().flat_map(Module::devices).all(dsa_server::is_served)
}

/// Writes an image of the hypervisor and these guests into a run's directory.
fn write_image(
    tools: &Tools,
    config: &Config,
    hypervisor: &Path,
    guests: &[Module],
    directory: &Path,
    name: &str,
) -> Result<()> {
    let mut options = config.hypervisor_options.clone();
    if !config.screen && !config.native && !options.iter().any(|word| word.starts_with("screen=")) {
        // Nobody sees an emulator's screen.
        options.push("screen=off".to_owned());
    }
    let image = Image { hypervisor: hypervisor.to_owned(), options, modules: guests.to_vec() };
    let grub = tools.grub.as_ref().context("no GRUB was looked for")?;
    let firmware = if config.screen { Firmware::Any } else { Firmware::BiosCd };
    image.write(grub, firmware, directory, &directory.join(name))
}

/// Boots Bochs and follows it to its end.
pub fn boot(paths: &Paths, tools: &Tools, config: &Config, hypervisor: &Path, guests: &[Module]) -> Result<Outcome> {
    Ok(start(paths, tools, config, hypervisor, guests)?.finish())
}

/// Names of files in a run's directory. The machine is started there, so that no path needs quoting.
const IMAGE: &str = "image.iso";
/// The file of the console in the directory of a run.
pub const SERIAL: &str = "serial.log";
const PLUGINS: &str = "plugins";
const PLUGIN_REPORT: &str = "plugin.report";
const PROGRESS: &str = "progress";
/// The socket of QEMU's stub for GDB in the directory of a run with a debugger.
pub const GDB: &str = "gdb.sock";
/// The socket of QEMU's monitor (QMP) in the directory of a run with a screen.
pub const MONITOR: &str = "monitor.sock";

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;

    fn no_kvm() -> Result<()> {
        bail!("no KVM")
    }

    #[test]
    fn bochs_is_the_default_even_where_there_is_kvm() {
        assert_eq!(Kind::choose(None, || Ok(())).unwrap(), Kind::Bochs);
        assert_eq!(Kind::choose(None, no_kvm).unwrap(), Kind::Bochs);
    }

    #[test]
    fn a_machine_that_was_asked_for_is_never_replaced_by_another() {
        assert_eq!(Kind::choose(Some(Kind::Bochs), || Ok(())).unwrap(), Kind::Bochs);
        assert_eq!(Kind::choose(Some(Kind::Kvm), no_kvm).unwrap_err().to_string(), "no KVM");
    }
}
