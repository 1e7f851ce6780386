//! The first process of the Linux in Bochs: it loads KVM, starts QEMU, and passes on the lines of QEMU's machine.

use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, delete_module, init_module, reboot};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use super::disc::{CD, FOR_CD, FOR_KVM, KVM_INTEL, in_modules};
use super::level;
use super::plan::{self, Plan, Turn};
use crate::machine::{IMAGE, Outcome, kvm, qemu};
use crate::prefix;

/// COM2: what the launcher reads.
const LINE: &str = "/dev/ttyS1";
const SPEED: u32 = 115_200;
/// The CD's drive, and how long it may take to appear.
const DRIVE: &str = "/dev/sr0";
const DRIVE_TIME: Duration = Duration::from_secs(10);

/// Runs what the plan on the CD says, and switches the machine off. As the first process it must not return before that.
pub fn main() {
    match Report::open() {
        Ok(mut report) => {
            if let Err(error) = work(&mut report) {
                report.refused(&error);
            }
            report.event(level::OFF, &[]);
            report.drain();
        }
        // The console is all that there is.
        Err(error) => eprintln!("outer-init: {error:#}"),
    }
    let error = reboot(RebootCommand::PowerOff);
    // The kernel panics when its first process returns, and says so on its console.
    eprintln!("outer-init: cannot switch the machine off: {error:?}");
}

fn work(report: &mut Report) -> Result<()> {
    report.event(level::LINUX, &[]);
    for module in FOR_CD {
        load(Path::new("/"), module, "")?;
    }
    mount_cd()?;
    let cd = Path::new(CD);
    let plan = fs::read(cd.join(plan::FILE)).context("cannot read the plan")?;
    let plan: Plan = serde_json::from_slice(&plan).context("the plan")?;
    for module in FOR_KVM {
        load(cd, module, "")?;
    }
    let mut nesting = None;
    for (index, turn) in plan.turns.iter().enumerate() {
        report.event(level::RUN, &[("number", index.to_string()), ("counters", counters(turn).to_owned())]);
        match run(report, index, turn, &mut nesting) {
            Ok(outcome) => report.end(&outcome),
            Err(error) => report.refused(&error),
        }
    }
    Ok(())
}

/// Runs one machine to its end. `nesting` is how KVM is loaded now.
fn run(report: &mut Report, index: usize, turn: &Turn, nesting: &mut Option<bool>) -> Result<Outcome> {
    if *nesting != Some(turn.nesting) {
        if nesting.take().is_some() {
            delete_module(c"kvm_intel", 0).context("cannot unload kvm_intel")?;
        }
        // Bochs wants the descriptors that KVM's APICv hands to the processor aligned to pages.
        load(Path::new(CD), KVM_INTEL, &format!("nested={} enable_apicv=0", u8::from(turn.nesting)))?;
        *nesting = Some(turn.nesting);
    }
    report.event(level::KVM, &[("nested", yes_or_no(turn.nesting))]);
    kvm::preflight()?;
    let directory = PathBuf::from(format!("/run/{index}"));
    fs::create_dir(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    symlink(Path::new(CD).join(plan::image(index)), directory.join(IMAGE)).context("cannot link the image")?;
    let tools = prefix::ready_tools()?;
    report.event(level::QEMU, &[]);
    let mut run = qemu::start(qemu::Accelerator::Kvm, &tools, &turn.config, directory)?;
    for seen in run.by_ref() {
        report.line(&seen.raw);
    }
    Ok(run.finish())
}

fn yes_or_no(what: bool) -> String {
    if what { "yes" } else { "no" }.to_owned()
}

/// Which devices of a machine's guests count what they send.
fn counters(turn: &Turn) -> &'static str {
    match (turn.config.has_counters(), turn.counts_all) {
        (false, _) => level::NO_COUNTERS,
        (true, false) => level::SOME_COUNTERS,
        (true, true) => level::ALL_COUNTERS,
    }
}

/// File systems that the kernel makes.
fn mount_kernels() -> Result<()> {
    for (kind, at) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        mount(kind, at, kind, MountFlags::empty(), None).with_context(|| format!("cannot mount {at}"))?;
    }
    Ok(())
}

/// Mounts the CD once its drive is there.
fn mount_cd() -> Result<()> {
    let began = Instant::now();
    while !Path::new(DRIVE).exists() {
        if began.elapsed() > DRIVE_TIME {
            bail!("there is no {DRIVE}");
        }
        thread::sleep(Duration::from_millis(5));
    }
    mount(DRIVE, CD, "iso9660", MountFlags::RDONLY, None).context("cannot mount the CD")
}

/// Loads a module from below a root, with its parameters.
fn load(root: &Path, module: &str, parameters: &str) -> Result<()> {
    let file = root.join(in_modules(module));
    let image = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let parameters = std::ffi::CString::new(parameters).context("a module's parameters")?;
    init_module(&image, &parameters).with_context(|| format!("cannot load {}", file.display()))
}

/// The line to the launcher.
struct Report(File);

impl Report {
    fn open() -> Result<Self> {
        mount_kernels()?;
        let file =
            OpenOptions::new().read(true).write(true).open(LINE).with_context(|| format!("cannot open {LINE}"))?;
        let mut settings = tcgetattr(&file).with_context(|| format!("{LINE} has no settings"))?;
        settings.make_raw();
        settings.set_speed(SPEED).context("the line's speed")?;
        tcsetattr(&file, OptionalActions::Now, &settings).with_context(|| format!("cannot set {LINE} up"))?;
        Ok(Self(file))
    }

    /// A line. There is nobody to tell that it cannot be written.
    fn line(&mut self, text: &str) {
        let _ = self.0.write_all(format!("{text}\n").as_bytes());
    }

    /// One of our own, with the time since the kernel's start on the machine's clock.
    fn event(&mut self, name: &str, pairs: &[(&str, String)]) {
        let up = fs::read_to_string("/proc/uptime").unwrap_or_default();
        let up = up.split_whitespace().next().unwrap_or("0").to_owned();
        let pairs: Vec<_> = pairs.iter().cloned().chain([("up", up)]).collect();
        self.line(&level::line(name, &pairs));
    }

    fn refused(&mut self, error: &impl Display) {
        self.event(level::REFUSED, &[("why", format!("{error:#}"))]);
    }

    fn end(&mut self, outcome: &Outcome) {
        if let Some(line) = level::counters_line(outcome) {
            self.line(&line);
        }
        self.line(&level::end_line(&outcome.end));
    }

    /// Waits until everything is on the line.
    fn drain(&mut self) {
        let _ = rustix::termios::tcdrain(&self.0);
    }
}
