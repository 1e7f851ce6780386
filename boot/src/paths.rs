//! Where things lie: the sources, cargo's target directory, and what the launcher keeps below it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::{fs, io};

use anyhow::{Context, Result, bail};

/// The directories of one checkout.
#[derive(Debug, Clone)]
pub struct Paths {
    /// The workspace's root: where the top `Cargo.toml` lies.
    pub workspace: PathBuf,
    /// `target/imsvisor`: everything that the launcher fetches, builds and leaves.
    pub home: PathBuf,
}

/// How many runs of this process keep their directories' names apart.
static RUNS: AtomicU32 = AtomicU32::new(0);

/// Directories of old runs that are kept for a look.
const KEPT_RUNS: usize = 20;

impl Paths {
    /// Asks cargo for its target directory, so that `CARGO_TARGET_DIR` and `build.target-dir` are honoured.
    pub fn find() -> Result<Self> {
        let workspace =
            Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the launcher's folder has no parent")?.to_owned();
        let output = Command::new(cargo_program())
            .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
            .current_dir(&workspace)
            .output()
            .context("cannot start cargo")?;
        if !output.status.success() {
            bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let metadata: serde_json::Value =
            serde_json::from_slice(&output.stdout).context("cargo metadata is not JSON")?;
        let target = metadata["target_directory"].as_str().context("cargo metadata names no target directory")?;
        Ok(Self { workspace, home: Path::new(target).join("imsvisor") })
    }

    /// The nested cargo's target directory: separate, so that other flags do not rebuild the launcher's own packages.
    pub fn build(&self) -> PathBuf {
        self.home.join("build")
    }

    /// A fresh directory for one run; old ones beyond the newest few are removed.
    pub fn new_run(&self) -> Result<PathBuf> {
        let runs = self.home.join("runs");
        fs::create_dir_all(&runs).with_context(|| format!("cannot create {}", runs.display()))?;
        remove_old_runs(&runs);
        let seconds =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let number = RUNS.fetch_add(1, Ordering::Relaxed);
        let run = runs.join(format!("{seconds}-{}-{number}", std::process::id()));
        fs::create_dir(&run).with_context(|| format!("cannot create {}", run.display()))?;
        Ok(run)
    }
}

/// Cargo as the running toolchain has it: the one that started us, else the one that built us.
pub fn cargo_program() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| {
        let built_by = Path::new(env!("CARGO"));
        if built_by.exists() { built_by.into() } else { "cargo".into() }
    })
}

/// Removes the oldest runs' directories, but none of a process that may still use it (younger than an hour).
fn remove_old_runs(runs: &Path) {
    let Ok(entries) = fs::read_dir(runs) else { return };
    let mut old: Vec<_> = entries
        .flatten()
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .filter(|(modified, _)| modified.elapsed().is_ok_and(|age| age.as_secs() > 3600))
        .collect();
    old.sort();
    let surplus = old.len().saturating_sub(KEPT_RUNS);
    for (_, path) in old.into_iter().take(surplus) {
        // Another process may have removed it first.
        let _ = fs::remove_dir_all(path);
    }
}

/// The first file of this name on `PATH`.
pub fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    // Debian keeps some tools where an ordinary user's PATH does not look.
    let extra = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(extra).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Renames, after removing what was there: the step that makes a finished directory visible.
pub fn replace_directory(from: &Path, to: &Path) -> io::Result<()> {
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    fs::rename(from, to)
}
