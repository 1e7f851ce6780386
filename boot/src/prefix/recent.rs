//! A newer Linux of Debian's than the guests', for shared virtual addressing by users: since the end of 2025, stable kernels before 6.19
//! refuse that on x86 (`iommu_sva_bind_device`). It comes without the means to build a module.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::apt::Apt;
use super::fetch::{self, Kit, TRIXIE};
use super::linux::{self, Linux};
use super::stock;
use crate::paths::Paths;

const RECENT: Kit = Kit {
    directory: "recent",
    what: "a recent Linux of Debian's",
    suite: TRIXIE,
    packages: &[IMAGE],
    alone: Some(packages),
    backports: true,
    works,
    needed: "Linux 7",
    by_hand: "- Debian's linux-base-7…-amd64, linux-binary-…, and linux-modules-… of trixie-backports, and busybox-static, unpacked into \
              one directory",
    variable: RECENT_VARIABLE,
    recipe: "1",
};

/// Names a directory with the packages, unpacked, to use instead of the prefix.
pub const RECENT_VARIABLE: &str = "IMSVISOR_RECENT_LINUX";

/// The package that depends on the newest kernel of its release.
const IMAGE: &str = "linux-image-amd64";
/// What a kernel is split into: lists, the kernel, and its modules.
const PARTS: [&str; 3] = ["linux-base", "linux-binary", "linux-modules"];

fn works(version: &str) -> bool {
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    major.is_some_and(|major| major >= 7)
}

/// The packages of the newest kernel.
fn packages(apt: &Apt) -> Result<Vec<String>> {
    let found = apt.dependencies(IMAGE)?;
    let release = found.iter().find_map(|name| name.strip_prefix("linux-image-"));
    let release = release.with_context(|| format!("{IMAGE} depends on no kernel"))?;
    let parts = PARTS.map(|part| format!("{part}-{release}"));
    Ok(parts.into_iter().chain(["busybox-static".to_owned()]).collect())
}

/// A kernel with its modules, and a static busybox.
#[derive(Debug, Clone)]
pub struct Recent {
    /// The kernel and its modules.
    pub linux: Linux,
    /// A static busybox.
    pub busybox: PathBuf,
}

/// Finds the kernel, and fetches it where no other is named.
pub fn recent(paths: &Paths) -> Result<Recent> {
    match std::env::var_os(RECENT_VARIABLE) {
        Some(root) => in_root(Path::new(&root)).context(RECENT_VARIABLE),
        None => {
            let root = fetch::ensure(paths, &RECENT)?;
            in_root(&root).with_context(|| format!("remove {} to fetch it again", root.display()))
        }
    }
}

fn in_root(root: &Path) -> Result<Recent> {
    Ok(Recent { linux: linux::in_root(root)?, busybox: stock::busybox_in(root)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_refuses_users_does_not_do() {
        assert!(works("7.3.4-1~bpo13+1") && works("10.1-1"));
        assert!(!works("6.12.117-1") && !works(""));
    }
}
