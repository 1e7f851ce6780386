//! Finds UEFI firmware for QEMU: the system's, else Debian's, fetched into a prefix of its own.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use super::fetch::{self, Kit, TRIXIE};
use crate::paths::Paths;

/// Names a directory that holds the firmware's two files, to use instead of the system's or the prefix's.
pub const OVMF_VARIABLE: &str = "IMSVISOR_OVMF";

/// The program, which is read only, and the variables, of which each machine needs a copy of its own.
const FILES: [&str; 2] = ["OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"];
/// Where Debian's package has them.
const DIRECTORY: &str = "usr/share/OVMF";

const OVMF: Kit = Kit {
    directory: "ovmf",
    what: "UEFI firmware",
    suite: TRIXIE,
    packages: &["ovmf"],
    // It depends on nothing.
    alone: Some(|_| Ok(vec!["ovmf".to_owned()])),
    backports: false,
    works: |_| true,
    needed: "OVMF",
    by_hand: "- OVMF, UEFI firmware for QEMU (Debian: ovmf)",
    variable: OVMF_VARIABLE,
    recipe: "1",
};

/// UEFI firmware.
#[derive(Debug, Clone)]
pub struct Ovmf {
    /// The program.
    pub code: PathBuf,
    /// Variables as they are at the first start.
    pub variables: PathBuf,
}

impl Ovmf {
    fn of(directory: &Path) -> Option<Self> {
        let [code, variables] = FILES.map(|file| directory.join(file));
        (code.is_file() && variables.is_file()).then_some(Self { code, variables })
    }
}

/// Finds the firmware, and fetches it where the system has none.
pub fn ovmf(paths: &Paths) -> Result<Ovmf> {
    if let Some(named) = std::env::var_os(OVMF_VARIABLE) {
        let directory = PathBuf::from(named);
        return match Ovmf::of(&directory) {
            Some(ovmf) => Ok(ovmf),
            None => bail!("{OVMF_VARIABLE}: {} does not hold {}", directory.display(), FILES.join(" and ")),
        };
    }
    if let Some(ovmf) = Ovmf::of(&Path::new("/").join(DIRECTORY)) {
        return Ok(ovmf);
    }
    let prefix = fetch::ensure(paths, &OVMF)?;
    match Ovmf::of(&prefix.join(DIRECTORY)) {
        Some(ovmf) => Ok(ovmf),
        None => bail!("{} holds no firmware: remove it to fetch it again", prefix.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn firmware_is_two_files() {
        let directory = tempfile::tempdir().unwrap();
        for file in FILES {
            assert!(Ovmf::of(directory.path()).is_none());
            std::fs::write(directory.path().join(file), "").unwrap();
        }
        assert!(Ovmf::of(directory.path()).is_some_and(|ovmf| ovmf.code.ends_with(FILES[0])));
    }
}
