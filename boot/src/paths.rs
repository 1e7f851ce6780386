//! Paths: the sources, cargo's target directory, and the launcher's files below it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};
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
    /// Our guests: their names, and the source that each begins in.
    pub guests: BTreeMap<String, PathBuf>,
}

/// How many runs of this process keep their directories' names apart.
static RUNS: AtomicU32 = AtomicU32::new(0);

/// Directories of old runs that are kept for a look.
const KEPT_RUNS: usize = 20;

impl Paths {
    /// Finds the checkout, and asks cargo for its target directory, so that `CARGO_TARGET_DIR` and `build.target-dir` are honoured.
    pub fn find() -> Result<Self> {
        let workspace = workspace()?;
        let mut command = Command::new(cargo_program());
        command.args(["metadata", "--no-deps", "--offline", "--format-version", "1", "--manifest-path"]);
        command.arg(workspace.join("Cargo.toml"));
        for (name, directory) in relative_targets() {
            command.env(name, directory);
        }
        let output = command.output().context("cannot start cargo")?;
        if !output.status.success() {
            bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let metadata: serde_json::Value =
            serde_json::from_slice(&output.stdout).context("cargo metadata is not JSON")?;
        let target = metadata["target_directory"].as_str().context("cargo metadata names no target directory")?;
        Ok(Self { workspace, home: Path::new(target).join("imsvisor"), guests: guests_in(&metadata) })
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

/// The programs of the package `guests`, as `cargo metadata` has them.
fn guests_in(metadata: &serde_json::Value) -> BTreeMap<String, PathBuf> {
    let all = |value: &serde_json::Value| value.as_array().cloned().unwrap_or_default();
    let package = all(&metadata["packages"]).into_iter().find(|package| package["name"] == "guests");
    let targets = package.map(|package| all(&package["targets"])).unwrap_or_default();
    let program = |target: &serde_json::Value| {
        let is_program = all(&target["kind"]).iter().any(|kind| kind == "bin");
        is_program.then_some((target["name"].as_str()?.to_owned(), target["src_path"].as_str()?.into()))
    };
    targets.iter().filter_map(program).collect()
}

/// Cargo: the one that started us, else the one on the path.
pub fn cargo_program() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// The checkout that this program is to work on. Found anew in each run, never remembered from the build: a checkout may be copied or
/// renamed together with its target directory, and cargo then takes the programs in it as they are.
pub fn workspace() -> Result<PathBuf> {
    // Cargo names the package that it runs, or whose tests it runs; a program that was started by hand has its surroundings.
    let package = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let here = std::env::current_dir().ok();
    let program = std::env::current_exe().ok();
    let found = [package, here, program].into_iter().flatten().find_map(|start| workspace_above(&start));
    found.context("no checkout of imsvisor is here: start this from a folder inside one")
}

/// The nearest folder from `start` upwards that is a checkout's root.
fn workspace_above(start: &Path) -> Option<PathBuf> {
    let is_root = |folder: &&Path| ROOT_HOLDS.iter().all(|file| folder.join(file).is_file());
    start.ancestors().find(is_root).map(Path::to_owned)
}

/// What lies in a checkout's root and, taken together, nowhere else.
const ROOT_HOLDS: [&str; 3] = ["Cargo.toml", "boot/Cargo.toml", "hcall-abi/Cargo.toml"];

/// The variables that name a target directory for cargo.
const TARGET_VARIABLES: [&str; 2] = ["CARGO_TARGET_DIR", "CARGO_BUILD_TARGET_DIR"];

/// Those of the variables that hold a relative path, with the directory that the outer cargo took it for. Cargo resolves it against
/// its own current directory, which is not always ours: tests are run in their package's folder.
fn relative_targets() -> Vec<(&'static str, PathBuf)> {
    let (program, here) = (std::env::current_exe().unwrap_or_default(), std::env::current_dir().unwrap_or_default());
    let value = |name| Some((name, std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_relative())?));
    let relative = TARGET_VARIABLES.into_iter().filter_map(value);
    relative.map(|(name, path)| (name, resolve_target(&path, &program, &here))).collect()
}

/// The directory above the running program that ends as `relative` does, for cargo has put the program there; else `relative` below
/// the current directory.
fn resolve_target(relative: &Path, program: &Path, here: &Path) -> PathBuf {
    let named: PathBuf = relative.components().filter(|part| matches!(part, Component::Normal(_))).collect();
    let above = program.ancestors().skip(1).find(|folder| named != Path::new("") && folder.ends_with(&named));
    above.map_or_else(|| here.join(relative), Path::to_owned)
}

/// Removes the oldest runs' directories, but none of a process that is alive: it may be in use.
fn remove_old_runs(runs: &Path) {
    let Ok(entries) = fs::read_dir(runs) else { return };
    let is_alive = |name: &str| name.split('-').nth(1).is_some_and(|process| Path::new("/proc").join(process).exists());
    let mut old: Vec<_> = entries
        .flatten()
        .filter(|entry| !is_alive(&entry.file_name().to_string_lossy()))
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that looks like a checkout.
    fn checkout(root: &Path) {
        for file in ROOT_HOLDS {
            let file = root.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "").unwrap();
        }
    }

    #[test]
    fn the_nearest_checkout_upwards_is_found_wherever_it_was_copied_to() {
        let directory = tempfile::tempdir().unwrap();
        let (outer, inner) = (directory.path().join("outer"), directory.path().join("outer/copy of it"));
        checkout(&outer);
        checkout(&inner);
        assert_eq!(workspace_above(&inner.join("boot")), Some(inner.clone()));
        assert_eq!(workspace_above(&inner.join("target/release/cargo-boot")), Some(inner.clone()));
        assert_eq!(workspace_above(&outer.join("boot")), Some(outer));
        // A folder with a manifest of its own is not the root.
        fs::remove_file(inner.join("hcall-abi/Cargo.toml")).unwrap();
        assert_eq!(workspace_above(&inner.join("boot")), Some(directory.path().join("outer")));
        assert_eq!(workspace_above(directory.path()), None);
    }

    #[test]
    fn no_source_remembers_where_it_was_built() {
        // The words are put together here, or this file would be found.
        let built_in = [["env!(\"CARGO_", "MANIFEST_DIR"].concat(), ["env!(\"CARGO", "\")"].concat()];
        let files = sources(&workspace().unwrap());
        assert!(files.iter().any(|file| file.ends_with("boot/src/paths.rs")), "{files:?}");
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            assert!(!built_in.iter().any(|word| text.contains(word)), "{}", file.display());
        }
    }

    /// The Rust sources below a folder, without what cargo and git keep.
    fn sources(folder: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path());
        let kept = |path: &PathBuf| !path.ends_with("target") && !path.ends_with(".git");
        let (folders, files): (Vec<_>, Vec<_>) = entries.filter(kept).partition(|path| path.is_dir());
        let rust = files.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
        rust.chain(folders.iter().flat_map(|folder| sources(folder))).collect()
    }

    #[test]
    fn a_relative_target_directory_is_the_one_that_the_program_lies_in() {
        let resolve = |relative: &str, program: &str| {
            resolve_target(Path::new(relative), Path::new(program), Path::new("/w/tests"))
        };
        assert_eq!(resolve("out", "/w/boot/out/release/cargo-boot"), Path::new("/w/boot/out"));
        assert_eq!(resolve("../out/x", "/w/out/x/debug/deps/boot-1234"), Path::new("/w/out/x"));
        assert_eq!(resolve("./out/", "/w/out/debug/deps/boot-1234"), Path::new("/w/out"));
        // The program lies elsewhere, or the path has no name to look for.
        assert_eq!(resolve("out", "/usr/bin/cargo-boot"), Path::new("/w/tests/out"));
        assert_eq!(resolve("..", "/w/out/debug/x"), Path::new("/w/tests/.."));
    }

    #[test]
    fn old_runs_go_but_for_the_newest_and_those_of_processes_that_live() {
        let directory = tempfile::tempdir().unwrap();
        let alive = directory.path().join(format!("1-{}-0", std::process::id()));
        fs::create_dir(&alive).unwrap();
        for number in 0..KEPT_RUNS + 5 {
            // No process has this number.
            fs::create_dir(directory.path().join(format!("1-4294967295-{number}"))).unwrap();
        }
        remove_old_runs(directory.path());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), KEPT_RUNS + 1);
        assert!(alive.exists());
    }

    #[test]
    fn a_checkout_has_one_target_directory_whatever_folder_it_is_asked_from() {
        let paths = Paths::find().unwrap();
        assert!(paths.workspace.join("boot/src/paths.rs").is_file());
        assert!(paths.home.is_absolute() && paths.home.ends_with("imsvisor"));
        for guest in ["demo", "hello", "hostile-state"] {
            assert!(paths.guests.get(guest).is_some_and(|source| source.is_file()), "{guest}: {:?}", paths.guests);
        }
    }
}
