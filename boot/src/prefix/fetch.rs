//! Fetches emulators and GRUB's tools into private prefixes, without root.
//!
//! Everything is unpacked into a directory beside the prefix, which is renamed when it is complete: an interrupted fetch
//! leaves nothing that looks finished.

use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{FlockOperation, flock, statvfs};

use super::apt::Apt;
use super::sources::{self, MIRROR_VARIABLE, Release, Source};
use crate::paths::{Paths, on_path, replace_directory};
use crate::progress::Step;

/// Debian's release that has most of the versions we want.
pub(super) const TRIXIE: &str = "trixie";
/// Debian's keys, as its package installs them.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Chooses packages by what an apt knows of them.
pub type Choice = fn(&Apt) -> Result<Vec<String>>;

/// Packages that are fetched together into a prefix of their own.
#[derive(Debug)]
pub struct Kit {
    /// The prefix's name below the launcher's directory.
    pub directory: &'static str,
    /// What it is, for people.
    pub what: &'static str,
    /// Debian's release that has them.
    pub suite: &'static str,
    /// The packages. The first is the one whose version counts.
    pub packages: &'static [&'static str],
    /// The packages to download by themselves, found with an apt that has the lists; none where all that [`Self::packages`] depend
    /// on is downloaded, too.
    pub alone: Option<Choice>,
    /// Whether the packages come from the release's backports where those have them.
    pub backports: bool,
    /// Whether that version is one that works.
    pub works: fn(&str) -> bool,
    /// The version that is needed, for people.
    pub needed: &'static str,
    /// What to install by hand where nothing can be fetched.
    pub by_hand: &'static str,
    /// The environment variable that names another program instead.
    pub variable: &'static str,
    /// Changes whenever a prefix made by an older launcher would not do.
    pub recipe: &'static str,
}

impl Kit {
    /// The package whose version counts.
    fn leader(&self) -> &'static str {
        self.packages.first().copied().unwrap_or_default()
    }
}

/// The file that says that a prefix is complete, and which version it holds.
const STAMP: &str = ".imsvisor";

/// Makes sure that a kit's prefix is there and complete.
pub fn ensure(paths: &Paths, kit: &Kit) -> Result<PathBuf> {
    let prefix = paths.home.join(kit.directory);
    if is_complete(&prefix, kit) {
        return Ok(prefix);
    }
    fs::create_dir_all(&paths.home).with_context(|| format!("cannot create {}", paths.home.display()))?;
    let lock = File::create(prefix.with_extension("lock")).context("cannot create the prefix's lock")?;
    flock(&lock, FlockOperation::LockExclusive).context("cannot lock the prefix")?;
    // Another process may have fetched it while this one waited.
    if !is_complete(&prefix, kit) {
        let work = prefix.with_extension("partial");
        let make = || has_room(&paths.home).and_then(|()| fetch(&prefix, &work, kit));
        without_leftovers(&work, make).with_context(|| format!("cannot fetch {}", kit.what))?;
    }
    Ok(prefix)
}

/// Makes something by way of a directory that is gone before and after it. After a failure, too: what is half there helps nobody, and
/// may be what fills the disk.
fn without_leftovers(work: &Path, make: impl FnOnce() -> Result<()>) -> Result<()> {
    remove(work)?;
    let made = make();
    made.and(remove(work))
}

/// What the largest kit takes while it is unpacked, its packages included.
const ROOM: u64 = 400 << 20;

/// Refuses to begin what would end on a full disk.
fn has_room(directory: &Path) -> Result<()> {
    // Where the file system does not say, the unpacking will.
    let Ok(disk) = statvfs(directory) else { return Ok(()) };
    match no_room(disk.f_bavail.saturating_mul(disk.f_frsize), directory) {
        Some(words) => bail!("{words}"),
        None => Ok(()),
    }
}

fn no_room(free: u64, directory: &Path) -> Option<String> {
    let mib = |bytes: u64| bytes >> 20;
    (free < ROOM).then(|| {
        format!(
            "{} has {} MiB free, but {} MiB are needed for a while: make room, or set CARGO_TARGET_DIR to another disk",
            directory.display(),
            mib(free),
            mib(ROOM)
        )
    })
}

fn is_complete(prefix: &Path, kit: &Kit) -> bool {
    fs::read_to_string(prefix.join(STAMP)).is_ok_and(|stamp| stamp.lines().next() == Some(kit.recipe))
}

/// What a fetch takes its time for, in percent: lists, packages, unpacking.
const PHASES: [Range<u64>; 3] = [0..20, 20..80, 80..100];

fn fetch(prefix: &Path, work: &Path, kit: &Kit) -> Result<()> {
    for tool in ["apt-get", "apt-cache", "dpkg-deb"] {
        if on_path(tool).is_none() {
            bail!("{}", without_apt(tool, kit));
        }
    }
    let mut step = Step::new(&format!("fetching {}", kit.what));
    let [lists, packages, files] = PHASES;
    step.phase(lists);
    let (apt, version) = apt_with(kit, &work.join("apt"), &mut step)?;
    step.phase(packages);
    let packages = match kit.alone {
        None => apt.download(kit.packages, &mut step)?,
        Some(packages) => apt.download_alone(&packages(&apt)?, &work.join("alone"), &mut step)?,
    };
    let root = work.join("root");
    step.phase(files);
    unpack(&packages, &root, &mut step)?;
    fs::write(root.join(STAMP), format!("{}\n{} {version}\n", kit.recipe, kit.leader()))?;
    replace_directory(&root, prefix).context("cannot move the prefix into its place")?;
    step.done(&format!("{} {version}, {} packages", kit.leader(), packages.len()));
    Ok(())
}

fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// An apt whose sources have a version that works, and that version.
fn apt_with(kit: &Kit, directory: &Path, step: &mut Step) -> Result<(Apt, String)> {
    let release = sources::release(&fs::read_to_string("/etc/os-release").unwrap_or_default());
    let host = sources::of_host(Path::new("/etc/apt"));
    if let Some(mirror) = std::env::var_os(MIRROR_VARIABLE) {
        let mirror = mirror.to_string_lossy().into_owned();
        return debian(kit, directory, mirror, keyring(None)?, step);
    }
    if release.id == "debian" {
        let own = sources::main_archive(&host, &release.codename)
            .ok_or_else(|| anyhow!("/etc/apt names no Debian archive: set {MIRROR_VARIABLE} to a mirror's address"))?;
        return debian(kit, directory, own.uri.clone(), keyring(own.signed_by.as_deref())?, step);
    }
    other(kit, directory, &release, &host, step)
}

/// Debian's own archive at this mirror.
fn debian(kit: &Kit, directory: &Path, mirror: String, keyring: PathBuf, step: &mut Step) -> Result<(Apt, String)> {
    let backports = format!("{}-backports", kit.suite);
    let suites = [kit.suite].into_iter().chain(kit.backports.then_some(backports.as_str()));
    let source = |suite: &str| Source {
        uri: mirror.clone(),
        suite: suite.into(),
        components: vec!["main".into()],
        signed_by: Some(keyring.clone()),
    };
    let sources: Vec<_> = suites.map(source).collect();
    let apt = Apt::new(directory, &sources, kit.backports.then_some(backports.as_str()))?;
    apt.update(step)?;
    match apt.candidate(kit.leader())? {
        Some(version) if (kit.works)(&version) => Ok((apt, version)),
        found => bail!("Debian {} has {}, but {} is needed", kit.suite, described(kit, found.as_deref()), kit.needed),
    }
}

fn described(kit: &Kit, version: Option<&str>) -> String {
    version.map_or_else(|| format!("no {}", kit.leader()), |version| format!("{} {version}", kit.leader()))
}

/// Debian's keys on this host.
fn keyring(signed_by: Option<&Path>) -> Result<PathBuf> {
    let known = [Some(Path::new(KEYRING)), signed_by];
    let found = known.into_iter().flatten().find(|file| file.is_file());
    found
        .map(Path::to_owned)
        .ok_or_else(|| anyhow!("Debian's keys are not here: install the package debian-archive-keyring"))
}

/// Ubuntu and the like: their own version if it works; else Debian's, whose keys and default mirror their packages
/// `debian-archive-keyring` and `debootstrap` carry.
fn other(kit: &Kit, directory: &Path, release: &Release, host: &[Source], step: &mut Step) -> Result<(Apt, String)> {
    let mut own: Vec<Source> = host.iter().filter(|source| source.belongs_to(&release.codename)).cloned().collect();
    if own.is_empty() {
        own = host.to_vec();
    }
    let apt = Apt::new(&directory.join("own"), &own, None)?;
    apt.update(step)?;
    let version = apt.candidate(kit.leader())?;
    if let Some(version) = version.as_deref().filter(|version| (kit.works)(version)) {
        return Ok((apt, version.to_owned()));
    }
    let (mirror, keyring) =
        debian_from(&apt, directory, step).with_context(|| without_it(kit, &release.pretty, version.as_deref()))?;
    debian(kit, &directory.join("debian"), mirror, keyring, step)
}

/// Debian's default mirror and its keys, out of packages that the host's own distribution has signed.
fn debian_from(apt: &Apt, directory: &Path, step: &mut Step) -> Result<(String, PathBuf)> {
    let files = apt.download_alone(
        &["debootstrap", "debian-archive-keyring"].map(str::to_owned),
        &directory.join("alone"),
        step,
    )?;
    let root = directory.join("keys");
    for file in &files {
        unpack_one(file, &root)?;
    }
    let read = |file: &str| fs::read_to_string(root.join(file)).unwrap_or_default();
    let mirror =
        mirror_in(&read("usr/share/debootstrap/scripts/sid")).or_else(|| mirror_in(&read("usr/sbin/debootstrap")));
    let mirror = mirror.context("debootstrap names no mirror of Debian")?;
    let keyring = root.join(KEYRING.trim_start_matches('/'));
    if !keyring.is_file() {
        bail!("debian-archive-keyring holds no {KEYRING}");
    }
    Ok((mirror, keyring))
}

/// The first address of a Debian archive in a script of debootstrap (`default_mirror URL`, `DEF_MIRROR="URL"`).
fn mirror_in(script: &str) -> Option<String> {
    let is_separator = |c: char| c.is_whitespace() || "\"'=;".contains(c);
    let mut addresses = script.split(is_separator).filter(|word| word.starts_with("http"));
    addresses.find(|address| address.trim_end_matches('/').ends_with("/debian")).map(str::to_owned)
}

/// Unpacks packages with every core there is.
fn unpack(packages: &[PathBuf], root: &Path, step: &mut Step) -> Result<()> {
    fs::create_dir_all(root).with_context(|| format!("cannot create {}", root.display()))?;
    // Libraries' directories are links to those in /usr; the package that has the links must come before all others.
    let (base, others): (Vec<_>, Vec<_>) = packages.iter().partition(|file| is_base(file));
    for file in base {
        unpack_one(file, root)?;
    }
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
    let workers = std::thread::available_parallelism().map_or(2, |count| count.get().min(8));
    step.at("unpacking");
    let show = Mutex::new(step);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(file) = others.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = unpack_one(file, root) {
                        failed.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).get_or_insert(error);
                    }
                    let done = next.load(Ordering::Relaxed).min(others.len());
                    show.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).part(done as u64, others.len() as u64);
                }
            });
        }
    });
    failed.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()).map_or(Ok(()), Err)
}

fn is_base(file: &Path) -> bool {
    file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("base-files_"))
}

fn unpack_one(package: &Path, root: &Path) -> Result<()> {
    let output = Command::new("dpkg-deb")
        .arg("-x")
        .args([package, root])
        .stdin(Stdio::null())
        .output()
        .context("cannot start dpkg-deb")?;
    if !output.status.success() {
        bail!("cannot unpack {}: {}", package.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn without_apt(tool: &str, kit: &Kit) -> String {
    format!(
        "this machine has no {tool}, so {} cannot be fetched. Install these yourself:\n{} (or name another program in {})",
        kit.what, kit.by_hand, kit.variable
    )
}

fn without_it(kit: &Kit, system: &str, version: Option<&str>) -> String {
    format!(
        "{system} has {}, but {} is needed. Any of these helps: set {MIRROR_VARIABLE} to the address of a Debian mirror and \
         install the package debian-archive-keyring; or set {} to a program of your own",
        described(kit, version),
        kit.needed,
        kit.variable
    )
}

#[cfg(test)]
mod tests {
    use super::super::{BOCHS, qemu::QEMU};
    use super::*;

    #[test]
    fn a_prefix_is_complete_only_with_the_stamp_of_this_recipe() {
        let directory = tempfile::tempdir().unwrap();
        assert!(!is_complete(directory.path(), &BOCHS));
        fs::write(directory.path().join(STAMP), "0\nbochs 2.7\n").unwrap();
        assert!(!is_complete(directory.path(), &BOCHS));
        fs::write(directory.path().join(STAMP), format!("{}\nbochs 3.0\n", BOCHS.recipe)).unwrap();
        assert!(is_complete(directory.path(), &BOCHS));
    }

    #[test]
    fn debootstraps_mirror_of_debian_is_found_and_no_other() {
        let script = "case $ARCH in\n\talpha) default_mirror http://p/debian-ports ;;\n\t*) x ;;\nesac\n  default_mirror http://m/debian\n";
        assert_eq!(mirror_in(script), Some("http://m/debian".into()));
        assert_eq!(mirror_in("DEF_MIRROR=\"http://m/debian\"\n"), Some("http://m/debian".into()));
        assert_eq!(mirror_in("DEF_MIRROR=\"http://m/ubuntu\"\n"), None);
    }

    #[test]
    fn a_package_that_cannot_be_unpacked_fails_the_fetch() {
        let directory = tempfile::tempdir().unwrap();
        let package = directory.path().join("x_1_all.deb");
        fs::write(&package, "no package").unwrap();
        assert!(unpack(&[package], &directory.path().join("root"), &mut Step::new("testing")).is_err());
    }

    #[test]
    fn a_fetch_that_fails_leaves_nothing_half_made() {
        let directory = tempfile::tempdir().unwrap();
        let work = directory.path().join("prefix.partial");
        let half = |file: &str| {
            fs::create_dir_all(&work).unwrap();
            fs::write(work.join(file), "").unwrap();
        };
        half("old");
        let failed = without_leftovers(&work, || {
            assert!(!work.exists(), "an older one is gone");
            half("new");
            bail!("the disk is full")
        });
        assert_eq!(failed.unwrap_err().to_string(), "the disk is full");
        assert!(!work.exists());
    }

    #[test]
    fn a_disk_without_room_is_told_before_anything_is_fetched() {
        assert_eq!(no_room(ROOM, Path::new("/d")), None);
        let words = no_room(50 << 20, Path::new("/d")).unwrap();
        assert!(words.contains("/d has 50 MiB free") && words.contains("400 MiB"), "{words}");
        assert!(has_room(Path::new("/proc")).is_err(), "a file system without any room");
    }

    #[test]
    fn messages_say_what_to_install() {
        assert!(without_apt("apt-get", &BOCHS).contains("xorriso"));
        let words = without_it(&BOCHS, "Ubuntu 24.04", Some("2.7"));
        assert!(words.contains("Ubuntu 24.04 has bochs 2.7, but Bochs 3.0 is needed"), "{words}");
        let words = without_it(&QEMU, "Ubuntu 22.04", None);
        assert!(words.contains("Ubuntu 22.04 has no qemu-system-x86, but QEMU 11.1 or later is needed"), "{words}");
    }
}
