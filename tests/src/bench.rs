//! What every boot needs, each fetched or built once for a test program: the emulator, the plugin, the hypervisor, the guests.
//!
//! The launcher's library does the work, in a target directory of its own; nothing has to be prepared. What it does is said on
//! standard error, past the test harness, which would keep it until a test fails.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use imsvisor_boot::linux::{self, Payload};
use imsvisor_boot::machine::Kind;
use imsvisor_boot::paths::Paths;
use imsvisor_boot::prefix::{self, Need, Ovmf, Tools};
use imsvisor_boot::{cargo, toolchain};

/// Most machines that run at one time.
const MACHINES: usize = 2;

/// A thing that is made once. Who comes meanwhile waits; a failure is everybody's.
pub struct Once<T>(OnceLock<std::result::Result<T, String>>);

impl<T> Once<T> {
    /// Not made yet.
    pub const fn new() -> Self {
        Self(OnceLock::new())
    }

    /// Makes it, or tells what came of making it.
    pub fn get(&self, make: impl FnOnce() -> Result<T>) -> Result<&T> {
        self.0
            .get_or_init(|| make().map_err(|error| format!("{error:#}")))
            .as_ref()
            .map_err(|error| anyhow!(error.clone()))
    }
}

impl<T> Default for Once<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// The directories of this checkout.
pub fn paths() -> Result<&'static Paths> {
    static PATHS: Once<Paths> = Once::new();
    PATHS.get(Paths::find)
}

/// The emulator and what makes images.
pub fn tools() -> Result<&'static Tools> {
    static TOOLS: Once<Tools> = Once::new();
    TOOLS.get(|| prepare("the emulator", || prefix::tools(paths()?)))
}

/// The emulator's plugin.
pub fn plugin() -> Result<&'static Path> {
    static PLUGIN: Once<PathBuf> = Once::new();
    PLUGIN.get(|| prepare("the plugin", || cargo::plugin(paths()?))).map(PathBuf::as_path)
}

/// The hypervisor's image.
pub fn hypervisor() -> Result<&'static Path> {
    static HYPERVISOR: Once<PathBuf> = Once::new();
    let build = || {
        toolchain::ensure_target()?;
        cargo::hypervisor(paths()?)
    };
    HYPERVISOR.get(|| prepare("the hypervisor", build)).map(PathBuf::as_path)
}

/// QEMU, and what makes images. `None` where it cannot be had, which is said: its tests are left out. With [`ALL_VARIABLE`] set it is an
/// error.
pub fn qemu_tools() -> Result<Option<&'static Tools>> {
    static TOOLS: Once<Tools> = Once::new();
    let tools = TOOLS.get(|| prepare("QEMU", || prefix::qemu_tools(paths()?, Need::Unit)));
    optional(tools, std::env::var_os(ALL_VARIABLE).is_some())
}

/// The same of a QEMU that takes devices of another process.
pub fn vfio_user_tools() -> Result<Option<&'static Tools>> {
    static TOOLS: Once<Tools> = Once::new();
    let tools = TOOLS.get(|| prepare("QEMU", || prefix::qemu_tools(paths()?, Need::VfioUser)));
    optional(tools, std::env::var_os(ALL_VARIABLE).is_some())
}

/// UEFI firmware for QEMU.
pub fn ovmf() -> Result<Option<&'static Ovmf>> {
    static OVMF: Once<Ovmf> = Once::new();
    let ovmf = OVMF.get(|| prepare("UEFI firmware", || prefix::ovmf(paths()?)));
    optional(ovmf, std::env::var_os(ALL_VARIABLE).is_some())
}

/// The same with the emulator and a Linux that run it.
pub fn nested_tools() -> Result<Option<&'static Tools>> {
    static TOOLS: Once<Tools> = Once::new();
    let tools = TOOLS.get(|| prepare("the emulator, Linux and QEMU", || prefix::nested_tools(paths()?)));
    optional(tools, std::env::var_os(ALL_VARIABLE).is_some())
}

/// Debian's Linux as it is packaged, with an initrd of ours.
pub fn linux() -> Result<Option<&'static Payload>> {
    static LINUX: Once<Payload> = Once::new();
    let payload = LINUX.get(|| prepare("Debian's Linux", || linux::payload(paths()?, true)));
    optional(payload, std::env::var_os(ALL_VARIABLE).is_some())
}

/// A recent Linux of Debian's, which gives users shared virtual addressing, with an initrd of ours.
pub fn linux_for_users() -> Result<Option<&'static Payload>> {
    static LINUX: Once<Payload> = Once::new();
    let payload = LINUX.get(|| prepare("a recent Linux", || linux::payload_for_users(paths()?)));
    optional(payload, std::env::var_os(ALL_VARIABLE).is_some())
}

/// Set, it makes a test fail for which something cannot be fetched; else such a test is left out with a word.
pub const ALL_VARIABLE: &str = "IMSVISOR_TEST_ALL";

fn optional<T>(thing: Result<T>, all: bool) -> Result<Option<T>> {
    match thing {
        Err(why) if !all => {
            say(&format!("LEFT OUT: {why:#}. Set {ALL_VARIABLE}=1 to have this fail."));
            Ok(None)
        }
        thing => thing.map(Some),
    }
}

/// What a machine of this kind needs, and what makes images.
pub fn tools_of(kind: Kind) -> Result<&'static Tools> {
    match kind {
        Kind::Bochs => tools(),
        Kind::Nested => nested_tools()?.context("the emulator, Linux and QEMU cannot all be had"),
        _ => vfio_user_tools()?.context("there is no QEMU that takes devices of other processes"),
    }
}

/// The server of DSAs for QEMU.
pub fn dsa_server() -> Result<&'static Path> {
    static SERVER: Once<PathBuf> = Once::new();
    SERVER.get(|| prepare("the DSA server", || cargo::dsa_server(paths()?))).map(PathBuf::as_path)
}

/// The image that holds the VT-d code against QEMU's remapping unit.
pub fn vtd_check() -> Result<&'static Path> {
    static CHECK: Once<PathBuf> = Once::new();
    CHECK.get(|| prepare("the VT-d check", || cargo::vtd_check(paths()?))).map(PathBuf::as_path)
}

/// A guest that is written in C (`tests/guests/c`), compiled by the system's compiler and linked with the guest shim's library for C.
pub fn c_guest(name: &str) -> Result<PathBuf> {
    static LIBRARY: Once<PathBuf> = Once::new();
    let library = LIBRARY.get(|| prepare("the shim for C", || cargo::shim_for_c(paths()?)))?;
    compile_c_guest(name, library)
}

/// Freestanding, at fixed addresses, and with nothing in it that the shim's target does not have either.
const C_FLAGS: [&str; 17] = [
    "-std=c11",
    "-O2",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-ffreestanding",
    "-fno-pic",
    "-fno-pie",
    "-no-pie",
    "-static",
    "-nostdlib",
    "-mno-red-zone",
    "-mgeneral-regs-only",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-Wl,--gc-sections",
    "-Wl,--build-id=none",
];

fn compile_c_guest(name: &str, library: &Path) -> Result<PathBuf> {
    let paths = paths()?;
    let guests = paths.workspace.join("tests/guests");
    let image = library.with_file_name(format!("c-{name}"));
    let mut compiler = Command::new("cc");
    compiler.args(C_FLAGS).arg("-I").arg(paths.workspace.join("guest-shim/c/include"));
    compiler.arg(guests.join("c").join(name).with_extension("c")).arg(library);
    compiler.arg(format!("-Wl,-T,{}", guests.join("guest.ld").display())).arg("-o").arg(&image);
    let output = compiler.output().context("cannot start cc: a C compiler is needed (apt install gcc)")?;
    if !output.status.success() {
        bail!("cc failed:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(image)
}

/// The image of one of our guests.
pub fn guest(name: &str) -> Result<&'static Path> {
    static GUESTS: Once<BTreeMap<String, PathBuf>> = Once::new();
    let guests = GUESTS.get(|| prepare("the guests", || cargo::guests(paths()?, &[])))?;
    guests.get(name).map(PathBuf::as_path).with_context(|| format!("there is no guest {name}"))
}

/// One thing at a time is fetched or built: cargo uses every processor already.
fn prepare<T>(what: &str, make: impl FnOnce() -> Result<T>) -> Result<T> {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    say(&format!("getting {what} …"));
    let began = Instant::now();
    let made = make().with_context(|| format!("getting {what}"));
    let came = if made.is_ok() { "ready" } else { "failed" };
    say(&format!("getting {what}: {came} after {:.1} s", began.elapsed().as_secs_f32()));
    made
}

/// Says what is going on.
pub(crate) fn say(text: &str) {
    // Whoever read it may have left.
    let _ = writeln!(std::io::stderr(), "imsvisor-tests: {text}");
}

/// Leave to run a machine, until it is dropped.
pub(crate) struct MachinePermit(&'static MachinePermits);

/// So many machines may run at one time.
struct MachinePermits {
    free: Mutex<usize>,
    one_is_free: Condvar,
}

impl MachinePermits {
    const fn new(count: usize) -> Self {
        Self { free: Mutex::new(count), one_is_free: Condvar::new() }
    }

    fn take(&'static self) -> MachinePermit {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.one_is_free.wait_while(free, |free| *free == 0);
        *waited.unwrap_or_else(PoisonError::into_inner) -= 1;
        MachinePermit(self)
    }
}

impl Drop for MachinePermit {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.one_is_free.notify_one();
    }
}

/// Waits until another machine may run.
pub(crate) fn machine_permit() -> MachinePermit {
    static PERMITS: MachinePermits = MachinePermits::new(MACHINES);
    PERMITS.take()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn no_more_machines_run_than_there_are_permits() {
        static PERMITS: MachinePermits = MachinePermits::new(2);
        static RUNNING: AtomicUsize = AtomicUsize::new(0);
        let run = || {
            let _permit = PERMITS.take();
            let running = RUNNING.fetch_add(1, SeqCst) + 1;
            thread::sleep(Duration::from_millis(5));
            RUNNING.fetch_sub(1, SeqCst);
            running
        };
        let runs: Vec<_> = (0..8).map(|_| thread::spawn(run)).collect();
        let most = runs.into_iter().map(|run| run.join().unwrap()).max();
        assert_eq!(most, Some(2));
        assert_eq!(*PERMITS.free.lock().unwrap(), 2);
    }

    #[test]
    fn a_test_that_fails_gives_its_permit_back() {
        static PERMITS: MachinePermits = MachinePermits::new(1);
        let failed = thread::spawn(|| {
            let _permit = PERMITS.take();
            std::panic::resume_unwind(Box::new(()));
        });
        assert!(failed.join().is_err());
        drop(PERMITS.take());
    }

    #[test]
    fn what_failed_once_is_not_tried_again() {
        let once: Once<u8> = Once::new();
        let first = once.get(|| Err(anyhow!("inner").context("outer"))).unwrap_err().to_string();
        let second = once.get(|| Ok(1)).unwrap_err().to_string();
        assert_eq!((first.as_str(), second.as_str()), ("outer: inner", "outer: inner"));
    }
}
