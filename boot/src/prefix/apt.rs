//! A private apt: with its own state, cache and sources, it downloads packages without root and installs none.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

use super::sources::{MIRROR_VARIABLE, Source};
use crate::progress::Step;

/// A private apt in a directory.
#[derive(Debug)]
pub struct Apt {
    directory: PathBuf,
}

impl Apt {
    /// Sets one up with these sources and nothing installed. Where they hold a package in several suites, that of `preferred`
    /// counts (apt.conf(5), `APT::Default-Release`).
    pub fn new(directory: &Path, sources: &[Source], preferred: Option<&str>) -> Result<Self> {
        for part in ["state/lists/partial", "cache/archives/partial", "log", "empty"] {
            fs::create_dir_all(directory.join(part))
                .with_context(|| format!("cannot create {}", directory.display()))?;
        }
        let mut list = String::new();
        for source in sources {
            writeln!(list, "{source}")?;
        }
        fs::write(directory.join("sources.list"), list)?;
        fs::write(directory.join("state/status"), "")?;
        fs::write(directory.join("apt.conf"), configuration(directory, &host_settings(), preferred))?;
        Ok(Self { directory: directory.to_owned() })
    }

    /// Fetches the lists of packages. Without a network apt complains, ends well, and has none: that is an error here.
    pub fn update(&self, step: &mut Step) -> Result<()> {
        step.at("lists of packages");
        let complaints = self.run(&["update"], step)?;
        if !has_lists(&self.directory.join("state/lists"))? {
            bail!("{}", no_lists(&complaints));
        }
        Ok(())
    }

    /// The version that would be installed.
    pub fn candidate(&self, package: &str) -> Result<Option<String>> {
        let output = self.command("apt-cache").args(["policy", package]).output().context("cannot start apt-cache")?;
        Ok(candidate(&String::from_utf8_lossy(&output.stdout)))
    }

    /// Downloads packages with all that they depend on; returns the files.
    pub fn download(&self, packages: &[&str], step: &mut Step) -> Result<Vec<PathBuf>> {
        let mut arguments = vec!["install", "--download-only", "--yes"];
        arguments.extend(packages);
        self.run(&arguments, step)?;
        packages_in(&self.directory.join("cache/archives"))
    }

    /// The packages that a package depends on, without alternatives.
    pub fn dependencies(&self, package: &str) -> Result<Vec<String>> {
        let output = self.command("apt-cache").args(["depends", package]).output().context("cannot start apt-cache")?;
        Ok(dependencies(&String::from_utf8_lossy(&output.stdout)))
    }

    /// Downloads packages by themselves into a directory; returns the files.
    pub fn download_alone(&self, packages: &[String], into: &Path, step: &mut Step) -> Result<Vec<PathBuf>> {
        fs::create_dir_all(into).with_context(|| format!("cannot create {}", into.display()))?;
        let mut arguments = vec!["download"];
        arguments.extend(packages.iter().map(String::as_str));
        self.run_in(into, &arguments, step)?;
        packages_in(into)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", self.directory.join("apt.conf")).env("LC_ALL", "C").stdin(Stdio::null());
        command
    }

    /// Runs apt-get; returns what it complained of.
    fn run(&self, arguments: &[&str], step: &mut Step) -> Result<String> {
        self.run_in(&self.directory, arguments, step)
    }

    fn run_in(&self, directory: &Path, arguments: &[&str], step: &mut Step) -> Result<String> {
        let mut command = self.command("apt-get");
        command.current_dir(directory).args(["-qq", "-o", "APT::Status-Fd=1"]).args(arguments);
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("cannot start apt-get")?;
        let stderr = child.stderr.take();
        let complaints = std::thread::spawn(move || {
            let mut text = String::new();
            stderr.map(|mut stderr| stderr.read_to_string(&mut text));
            text
        });
        if let Some(stdout) = child.stdout.take() {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                show(&line, step);
            }
        }
        let status = child.wait().context("cannot wait for apt-get")?;
        let complaints = complaints.join().unwrap_or_default();
        if !status.success() {
            bail!("apt-get {} failed:\n{}", arguments.first().unwrap_or(&""), complaints.trim());
        }
        Ok(complaints)
    }
}

/// Whether any list of packages was fetched. A release's own file is not enough: the list may have failed after it.
fn has_lists(directory: &Path) -> Result<bool> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let is_list = |name: &str| name.ends_with("_Packages") || name.contains("_Packages.");
    Ok(entries.flatten().any(|entry| is_list(&entry.file_name().to_string_lossy())))
}

/// Lines of apt's complaints that are shown.
const COMPLAINTS: usize = 3;

/// Says that nothing came from any archive, why, and what helps.
fn no_lists(complaints: &str) -> String {
    let mut lines: Vec<&str> = complaints.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.truncate(COMPLAINTS);
    format!(
        "no list of packages came from the Debian archive: is there a network? Behind a proxy set http_proxy, or apt's own \
         Acquire::http::Proxy; {MIRROR_VARIABLE} names another archive. The first run needs it, later ones do not.\n{}",
        lines.join("\n")
    )
}

fn packages_in(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "deb"));
    Ok(files)
}

/// `dlstatus:number:percent:text`.
fn show(line: &str, step: &mut Step) {
    let Some((percent, text)) = download_status(line) else { return };
    step.part(percent, 100);
    step.at(text);
}

fn download_status(line: &str) -> Option<(u64, &str)> {
    let mut fields = line.strip_prefix("dlstatus:")?.splitn(3, ':');
    let percent: f64 = fields.nth(1)?.parse().ok()?;
    Some((percent.clamp(0.0, 100.0) as u64, fields.next()?))
}

/// The names in lines `  Depends: name`. One with a bar before it has alternatives.
fn dependencies(depends: &str) -> Vec<String> {
    depends.lines().filter_map(|line| line.strip_prefix("  Depends: ")).map(str::to_owned).collect()
}

fn candidate(policy: &str) -> Option<String> {
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate:"))?.trim();
    (version != "(none)").then(|| version.to_owned())
}

/// The host's settings for reaching the network (proxies, time-outs, dates), but none of its hooks.
fn host_settings() -> String {
    let Ok(Output { stdout, .. }) = Command::new("apt-config").arg("dump").output() else { return String::new() };
    network_settings(&String::from_utf8_lossy(&stdout))
}

fn network_settings(dump: &str) -> String {
    let wanted = ["http::", "https::", "ftp::", "Retries", "Check-Valid-Until", "Check-Date", "ForceIPv4", "ForceIPv6"];
    let is_wanted = |line: &&str| {
        let setting = line.strip_prefix("Acquire::");
        // `Name::Sub:: "x"` adds to a list; an empty value only opens a section.
        setting.is_some_and(|setting| wanted.iter().any(|name| setting.starts_with(name)) && !line.ends_with("\"\";"))
    };
    dump.lines().filter(is_wanted).flat_map(|line| [line, "\n"]).collect()
}

/// The text of apt.conf(5). The hooks and parts of the host's configuration are for its own apt.
fn configuration(directory: &Path, host: &str, preferred: Option<&str>) -> String {
    let at = |part: &str| directory.join(part).display().to_string();
    let settings = [
        ("Dir::State", at("state")),
        ("Dir::State::status", at("state/status")),
        ("Dir::Cache", at("cache")),
        ("Dir::Log", at("log")),
        ("Dir::Etc::sourcelist", at("sources.list")),
        ("Dir::Etc::sourceparts", at("empty")),
        ("Dir::Etc::preferences", "/dev/null".into()),
        ("Dir::Etc::preferencesparts", at("empty")),
        ("Dir::Etc::main", "/dev/null".into()),
        ("Dir::Etc::parts", at("empty")),
        // The name that drops no privileges: root's apt would lose access to a directory of root's.
        ("APT::Sandbox::User", "root".into()),
        ("APT::Architecture", "amd64".into()),
        ("APT::Install-Recommends", "false".into()),
        ("APT::Get::List-Cleanup", "false".into()),
        ("Acquire::Languages", "none".into()),
        ("Debug::NoLocking", "true".into()),
    ];
    let mut text = host.to_owned();
    let preferred = preferred.map(|suite| ("APT::Default-Release", suite.to_owned()));
    for (name, value) in settings.into_iter().chain(preferred) {
        text.push_str(&format!("{name} \"{value}\";\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_progress_of_a_download_is_read() {
        assert_eq!(
            download_status("dlstatus:17:33.5:Retrieving file 18 of 175 (1s: left)"),
            Some((33, "Retrieving file 18 of 175 (1s: left)"))
        );
        assert_eq!(download_status("pmstatus:x:1:y"), None);
        assert_eq!(download_status("dlstatus:17"), None);
    }

    #[test]
    fn the_candidate_is_none_where_there_is_none() {
        assert_eq!(candidate("bochs:\n  Installed: (none)\n  Candidate: 3.0+dfsg-1\n"), Some("3.0+dfsg-1".into()));
        assert_eq!(candidate("bochs:\n  Candidate: (none)\n"), None);
        assert_eq!(candidate(""), None);
    }

    #[test]
    fn only_what_a_package_depends_on_for_certain_is_named() {
        let text = "linux-image-amd64\n  Depends: linux-image-6.12.95+deb12-amd64\n |Depends: a\n  Depends: b\n  Suggests: c\n    d\n";
        assert_eq!(dependencies(text), ["linux-image-6.12.95+deb12-amd64", "b"]);
        assert_eq!(dependencies(""), [""; 0]);
    }

    #[test]
    fn lists_that_did_not_come_are_a_fault_of_the_network_and_not_of_the_archive() {
        let directory = tempfile::tempdir().unwrap();
        let lists = directory.path();
        assert!(!has_lists(lists).unwrap());
        for file in ["lock", "mirror_debian_dists_trixie_InRelease"] {
            fs::write(lists.join(file), "").unwrap();
        }
        fs::create_dir(lists.join("partial")).unwrap();
        assert!(!has_lists(lists).unwrap());
        fs::write(lists.join("mirror_debian_dists_trixie_main_binary-amd64_Packages.lz4"), "").unwrap();
        assert!(has_lists(lists).unwrap());
        let words =
            no_lists("W: Failed to fetch http://mirror/x  Temporary failure resolving 'mirror'\n\nW: a\nW: b\nW: c\n");
        for part in ["network", MIRROR_VARIABLE, "http_proxy", "Temporary failure resolving", "W: b"] {
            assert!(words.contains(part), "{part}: {words}");
        }
        assert!(!words.contains("W: c"), "{words}");
    }

    #[test]
    fn an_archive_that_cannot_be_reached_is_told_as_that() {
        let directory = tempfile::tempdir().unwrap();
        let source = Source {
            // Nobody listens there.
            uri: "http://127.0.0.1:9/debian".into(),
            suite: "trixie".into(),
            components: vec!["main".into()],
            signed_by: None,
        };
        let apt = Apt::new(&directory.path().join("apt"), &[source], None).unwrap();
        // Without the pauses between attempts.
        let configuration = directory.path().join("apt/apt.conf");
        let text = fs::read_to_string(&configuration).unwrap() + "Acquire::Retries \"0\";\n";
        fs::write(configuration, text).unwrap();
        if crate::paths::on_path("apt-get").is_some() {
            let words = apt.update(&mut Step::new("testing")).unwrap_err().to_string();
            assert!(words.contains("is there a network?"), "{words}");
        }
    }

    #[test]
    fn proxies_are_kept_and_hooks_are_not() {
        let dump = "Acquire \"\";\nAcquire::http \"\";\nAcquire::http::Proxy \"http://p:3128\";\nAPT::Update::Post-Invoke:: \"rm x\";\nAcquire::Languages:: \"none\";\nAcquire::Check-Date \"false\";\n";
        assert_eq!(network_settings(dump), "Acquire::http::Proxy \"http://p:3128\";\nAcquire::Check-Date \"false\";\n");
    }

    #[test]
    fn nothing_of_the_hosts_state_is_touched() {
        let text = configuration(Path::new("/p"), "", Some("trixie-backports"));
        for setting in [
            "Dir::State \"/p/state\"",
            "Dir::Cache \"/p/cache\"",
            "Dir::State::status \"/p/state/status\"",
            "Dir::Etc::parts \"/p/empty\"",
            "APT::Default-Release \"trixie-backports\"",
        ] {
            assert!(text.contains(setting), "{setting}");
        }
    }
}
