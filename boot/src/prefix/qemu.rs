//! QEMU: the system's where it is new enough, else that of a prefix of its own, which is only fetched when it is asked for.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::fetch::{self, Kit};
use super::{Program, resolve};
use crate::paths::{Paths, on_path};

/// The oldest QEMU that will do: its remapping unit is the first that records the faults of interrupts, and its TCG the
/// first whose unit has 32-bit APIC IDs.
pub const WORKING_QEMU: &str = "QEMU 10.0 or later";
const OLDEST: (u32, u32) = (10, 0);

/// Names a QEMU to use instead of the system's or the prefix's.
pub const QEMU_VARIABLE: &str = "IMSVISOR_QEMU";

const PROGRAM: &str = "qemu-system-x86_64";

/// QEMU with the firmware that it depends on.
pub(super) const QEMU: Kit = Kit {
    directory: "qemu",
    what: "QEMU",
    // The second has the links from /lib64, where the dynamic linker is looked for.
    packages: &["qemu-system-x86", "base-files"],
    works,
    needed: WORKING_QEMU,
    by_hand: "- QEMU 10.0 or later for x86-64 (Debian, Ubuntu: qemu-system-x86)",
    variable: QEMU_VARIABLE,
    recipe: "1",
};

/// QEMU, and where it looks for firmware.
#[derive(Debug, Clone)]
pub struct Qemu {
    program: Program,
    firmware: Vec<PathBuf>,
}

impl Qemu {
    /// A command that starts it.
    pub fn command(&self) -> Command {
        let mut command = self.program.command();
        for directory in &self.firmware {
            command.arg("-L").arg(directory);
        }
        command
    }
}

/// Finds QEMU, and fetches it where the system has none that is new enough.
pub fn qemu(paths: &Paths) -> Result<Qemu> {
    if let Some(named) = std::env::var_os(QEMU_VARIABLE) {
        let file =
            resolve(&named).with_context(|| format!("{QEMU_VARIABLE}: there is no program {}", named.display()))?;
        return match of_system(file.clone()) {
            Ok(qemu) => Ok(qemu),
            Err(found) => bail!("{QEMU_VARIABLE}: {} is {found}, but {WORKING_QEMU} is needed", file.display()),
        };
    }
    match on_path(PROGRAM).map(of_system) {
        Some(Ok(qemu)) => Ok(qemu),
        _ => of_prefix(&fetch::ensure(paths, &QEMU)?),
    }
}

/// A QEMU of the system, or what it is instead of one that works.
fn of_system(file: PathBuf) -> std::result::Result<Qemu, String> {
    let program = Program::of_system(file);
    judge(version(&program)).map(|()| Qemu { program, firmware: Vec::new() })
}

fn judge(version: Option<String>) -> std::result::Result<(), String> {
    match version {
        Some(version) if works(&version) => Ok(()),
        Some(version) => Err(format!("QEMU {version}")),
        None => Err("no QEMU".to_owned()),
    }
}

fn of_prefix(prefix: &Path) -> Result<Qemu> {
    let program = Program::of_prefix(prefix, &format!("usr/bin/{PROGRAM}"));
    let firmware = ["usr/share/qemu", "usr/share/seabios"].map(|directory| prefix.join(directory));
    for file in [&program.file, &prefix.join("usr/share/seabios/bios-256k.bin")] {
        if !file.is_file() {
            bail!("{} is missing: remove {} to fetch it again", file.display(), prefix.display());
        }
    }
    Ok(Qemu { program, firmware: firmware.into() })
}

/// Whether a version, of QEMU itself (`10.0.13`) or of a package (`1:10.0.13+ds-1`), is new enough.
fn works(version: &str) -> bool {
    let version = version.split_once(':').map_or(version, |(_, version)| version);
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().ok());
    let (major, minor) = (numbers.next().flatten(), numbers.next().flatten());
    major.zip(minor).is_some_and(|found: (u32, u32)| found >= OLDEST)
}

/// What a QEMU says of itself: `QEMU emulator version 10.0.13 (…)`.
fn version(program: &Program) -> Option<String> {
    let output = program.command().arg("--version").output().ok()?;
    version_in(&String::from_utf8_lossy(&output.stdout))
}

fn version_in(text: &str) -> Option<String> {
    let rest = text.lines().find_map(|line| line.split_once("QEMU emulator version "))?.1;
    rest.split_whitespace().next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_versions_that_record_faults_of_interrupts_work() {
        for version in ["10.0.13", "1:10.0.13+ds-0+deb13u1", "10.0.0~rc1", "11.1", "1:11.1.3-1~bpo13+1"] {
            assert!(works(version), "{version}");
        }
        for version in ["7.2.17", "1:9.2.4+dfsg-1", "9.99", "10", "", "1:", "x.y"] {
            assert!(!works(version), "{version}");
        }
    }

    #[test]
    fn qemu_says_its_version() {
        let text = "QEMU emulator version 10.0.13 (Debian 1:10.0.13+ds-0+deb13u1)\nCopyright (c)\n";
        assert_eq!(version_in(text), Some("10.0.13".into()));
        assert_eq!(version_in("qemu: x"), None);
    }

    #[test]
    fn a_program_that_is_too_old_or_no_qemu_is_named() {
        let judge = |version: Option<&str>| judge(version.map(str::to_owned));
        assert_eq!(judge(Some("10.0.2")), Ok(()));
        assert_eq!(judge(Some("7.2.17")), Err("QEMU 7.2.17".to_owned()));
        assert_eq!(judge(None), Err("no QEMU".to_owned()));
        assert_eq!(of_system("/bin/true".into()).unwrap_err(), "no QEMU");
    }

    #[test]
    fn a_prefix_without_firmware_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("usr/bin");
        std::fs::create_dir_all(&program).unwrap();
        std::fs::write(program.join(PROGRAM), "").unwrap();
        let error = of_prefix(directory.path()).unwrap_err().to_string();
        assert!(error.contains("bios-256k.bin is missing"), "{error}");
    }
}
