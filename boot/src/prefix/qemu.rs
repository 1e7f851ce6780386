//! Finds QEMU: the system's if its version suffices, else one that is fetched into a prefix of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::fetch::{self, Kit, TRIXIE};
use super::{Program, resolve};
use crate::paths::{Paths, on_path};

/// A release of QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    major: u32,
    minor: u32,
}

/// What a QEMU is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Its remapping unit and its own devices. 10.0's unit is the first that records the faults of interrupts, and its TCG the
    /// first whose unit has 32-bit APIC IDs.
    Unit,
    /// A device of another process besides (`vfio-user-pci`). 11.1 was tried.
    VfioUser,
}

impl Need {
    fn oldest(self) -> Version {
        match self {
            Self::Unit => Version { major: 10, minor: 0 },
            Self::VfioUser => Version { major: 11, minor: 1 },
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Unit => "QEMU 10.0 or later",
            Self::VfioUser => WORKING_QEMU,
        }
    }
}

/// What is fetched, which serves everything.
pub const WORKING_QEMU: &str = "QEMU 11.1 or later";

/// Names a QEMU to use instead of the system's or the prefix's.
pub const QEMU_VARIABLE: &str = "IMSVISOR_QEMU";

const PROGRAM: &str = "qemu-system-x86_64";

/// QEMU with the firmware that it depends on.
pub(super) const QEMU: Kit = Kit {
    directory: "qemu",
    what: "QEMU",
    suite: TRIXIE,
    // The second has the links from /lib64, where the dynamic linker is looked for.
    packages: &["qemu-system-x86", "base-files"],
    alone: None,
    backports: true,
    works: |version| Version::of(version).is_some_and(|version| version >= Need::VfioUser.oldest()),
    needed: WORKING_QEMU,
    by_hand: "- QEMU 11.1 or later for x86-64 (Debian: qemu-system-x86 of trixie-backports)",
    variable: QEMU_VARIABLE,
    recipe: "2",
};

/// QEMU, and where it looks for firmware.
#[derive(Debug, Clone)]
pub struct Qemu {
    program: Program,
    firmware: Vec<PathBuf>,
    version: Version,
}

impl Qemu {
    /// A command that starts it.
    pub fn command(&self) -> Command {
        let mut command = self.program.command();
        for directory in &self.firmware {
            command.arg("-L").arg(directory);
        }
        // Modules of another build on the host are not for it.
        command.env("QEMU_MODULE_DIR", "/none");
        command
    }

    /// The name of its unit's property for scalable mode, which is no experiment any longer from 11 on.
    pub fn scalable_mode(&self) -> &'static str {
        if self.version.major >= 11 { "scalable-mode" } else { "x-scalable-mode" }
    }
}

/// Finds QEMU, and fetches it where the system has none that is new enough.
pub fn qemu(paths: &Paths, need: Need) -> Result<Qemu> {
    if let Some(named) = std::env::var_os(QEMU_VARIABLE) {
        let file =
            resolve(&named).with_context(|| format!("{QEMU_VARIABLE}: there is no program {}", named.display()))?;
        return match of_system(file.clone(), need) {
            Ok(qemu) => Ok(qemu),
            Err(found) => bail!("{QEMU_VARIABLE}: {} is {found}, but {} is needed", file.display(), need.words()),
        };
    }
    match on_path(PROGRAM).map(|file| of_system(file, need)) {
        Some(Ok(qemu)) => Ok(qemu),
        _ => of_prefix(&fetch::ensure(paths, &QEMU)?),
    }
}

/// A QEMU of the system, or what it is instead of one that works.
fn of_system(file: PathBuf, need: Need) -> std::result::Result<Qemu, String> {
    let program = Program::of_system(file);
    let version = judge(version(&program), need)?;
    Ok(Qemu { program, firmware: Vec::new(), version })
}

fn judge(found: Option<String>, need: Need) -> std::result::Result<Version, String> {
    let Some(found) = found else { return Err("no QEMU".to_owned()) };
    let version = Version::of(&found).filter(|version| *version >= need.oldest());
    version.ok_or_else(|| format!("QEMU {found}"))
}

fn of_prefix(prefix: &Path) -> Result<Qemu> {
    let program = Program::of_prefix(prefix, &format!("usr/bin/{PROGRAM}"));
    let firmware = ["usr/share/qemu", "usr/share/seabios"].map(|directory| prefix.join(directory));
    for file in [&program.file, &prefix.join("usr/share/seabios/bios-256k.bin")] {
        if !file.is_file() {
            bail!("{} is missing: remove {} to fetch it again", file.display(), prefix.display());
        }
    }
    let version = judge(version(&program), Need::VfioUser);
    let version = version.map_err(|found| anyhow::anyhow!("{} holds {found}: remove it", prefix.display()))?;
    Ok(Qemu { program, firmware: firmware.into(), version })
}

impl Version {
    /// Of QEMU itself (`10.0.13`) or of a package (`1:10.0.13+ds-1`).
    fn of(text: &str) -> Option<Self> {
        let text = text.split_once(':').map_or(text, |(_, version)| version);
        let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().ok());
        Some(Self { major: numbers.next()??, minor: numbers.next()?? })
    }
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

    fn works(version: &str, need: Need) -> bool {
        judge(Some(version.to_owned()), need).is_ok()
    }

    #[test]
    fn only_versions_that_record_faults_of_interrupts_work() {
        for version in ["10.0.13", "1:10.0.13+ds-0+deb13u1", "10.0.0~rc1", "11.1", "1:11.1.3-1~bpo13+1"] {
            assert!(works(version, Need::Unit), "{version}");
        }
        for version in ["7.2.17", "1:9.2.4+dfsg-1", "9.99", "10", "", "1:", "x.y"] {
            assert!(!works(version, Need::Unit), "{version}");
        }
    }

    #[test]
    fn devices_of_other_processes_want_a_newer_one() {
        for version in ["11.1.3", "1:11.1.3-1~bpo13+1", "12.0"] {
            assert!(works(version, Need::VfioUser) && (QEMU.works)(version), "{version}");
        }
        for version in ["10.0.13", "11.0.2", "1:10.2+ds-1"] {
            assert!(!works(version, Need::VfioUser) && !(QEMU.works)(version), "{version}");
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
        let judge = |version: Option<&str>, need| judge(version.map(str::to_owned), need);
        assert_eq!(judge(Some("10.0.2"), Need::Unit), Ok(Version { major: 10, minor: 0 }));
        assert_eq!(judge(Some("7.2.17"), Need::Unit), Err("QEMU 7.2.17".to_owned()));
        assert_eq!(judge(Some("10.0.2"), Need::VfioUser), Err("QEMU 10.0.2".to_owned()));
        assert_eq!(judge(None, Need::Unit), Err("no QEMU".to_owned()));
        assert_eq!(of_system("/bin/true".into(), Need::Unit).unwrap_err(), "no QEMU");
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
