//! Reads apt's sources, in both of their formats (sources.list(5)), and `os-release`.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// The environment variable that names a mirror of Debian, for hosts whose own configuration names none.
pub const MIRROR_VARIABLE: &str = "IMSVISOR_DEBIAN_MIRROR";

/// A source of binary packages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Where the archive is.
    pub uri: String,
    /// The suite, such as a release's code name.
    pub suite: String,
    /// `main` and so on.
    pub components: Vec<String>,
    /// The keyring that signs it, where the source names a file.
    pub signed_by: Option<PathBuf>,
}

impl Source {
    /// Whether it is a release's archive itself or the updates to it, for this code name.
    pub fn belongs_to(&self, codename: &str) -> bool {
        let rest = self.suite.strip_prefix(codename);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    }

    fn is_security(&self) -> bool {
        self.suite.contains("security")
    }
}

/// As one line of a `sources.list`.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "deb ")?;
        if let Some(keyring) = &self.signed_by {
            write!(f, "[signed-by={}] ", keyring.display())?;
        }
        write!(f, "{} {} {}", self.uri, self.suite, self.components.join(" "))
    }
}

/// Every source of the host, or none where it has no apt.
pub fn of_host(etc_apt: &Path) -> Vec<Source> {
    let mut files = vec![etc_apt.join("sources.list")];
    let parts = fs::read_dir(etc_apt.join("sources.list.d")).into_iter().flatten().flatten();
    files.extend(parts.map(|entry| entry.path()));
    files.sort();
    files.iter().flat_map(|file| of_file(file)).collect()
}

fn of_file(file: &Path) -> Vec<Source> {
    // A file that this user may not read is one that this user's apt does not know either.
    let Ok(text) = fs::read_to_string(file) else { return Vec::new() };
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("list") => text.lines().flat_map(one_line).collect(),
        Some("sources") => deb822(&text),
        _ => Vec::new(),
    }
}

/// `deb [options] uri suite component…`, one per suite.
fn one_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let rest = line.strip_prefix("deb")?;
    let rest = rest.strip_prefix([' ', '\t'])?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace().map(str::to_owned);
    let signed_by = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
    Some(Source {
        uri: words.next()?,
        suite: words.next()?,
        components: words.collect(),
        signed_by: signed_by.and_then(keyring_file),
    })
}

/// Stanzas of `Key: value` lines, where a line that begins with a blank continues the value.
fn deb822(text: &str) -> Vec<Source> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    lines.split(|line| line.trim().is_empty()).flat_map(|stanza| sources_of(&fields(stanza))).collect()
}

fn fields(stanza: &[&str]) -> BTreeMap<String, String> {
    let mut fields: BTreeMap<String, String> = BTreeMap::new();
    let mut last = None;
    for line in stanza {
        if line.starts_with([' ', '\t']) {
            if let Some(value) = last.as_ref().and_then(|key| fields.get_mut(key)) {
                value.push('\n');
                value.push_str(line.trim());
            }
        } else if let Some((key, value)) = line.split_once(':') {
            let key = key.trim().to_ascii_lowercase();
            fields.insert(key.clone(), value.trim().to_owned());
            last = Some(key);
        }
    }
    fields
}

fn sources_of(fields: &BTreeMap<String, String>) -> Vec<Source> {
    let words = |key: &str| fields.get(key).into_iter().flat_map(|value| value.split_whitespace());
    let enabled = fields.get("enabled").is_none_or(|value| value != "no");
    if !enabled || !words("types").any(|kind| kind == "deb") {
        return Vec::new();
    }
    let signed_by = fields.get("signed-by").and_then(|value| keyring_file(value));
    let components: Vec<String> = words("components").map(str::to_owned).collect();
    let source = |uri: &str, suite: &str| Source {
        uri: uri.to_owned(),
        suite: suite.to_owned(),
        components: components.clone(),
        signed_by: signed_by.clone(),
    };
    words("uris")
        .flat_map(|uri| words("suites").map(move |suite| (uri, suite)))
        .map(|(uri, suite)| source(uri, suite))
        .collect()
}

/// A keyring named by its path; a key written into the source itself, or a fingerprint, is none.
fn keyring_file(value: &str) -> Option<PathBuf> {
    let first = value.split([',', '\n']).next()?.trim();
    first.starts_with('/').then(|| PathBuf::from(first))
}

/// The archive of the host's own release, not its security updates.
pub fn main_archive<'a>(sources: &'a [Source], codename: &str) -> Option<&'a Source> {
    let fits =
        |source: &&Source| source.components.iter().any(|component| component == "main") && !source.is_security();
    let mut own = sources.iter().filter(fits).filter(|source| source.belongs_to(codename));
    own.next().or_else(|| {
        // A machine may follow names such as `stable` or `testing` instead.
        let names = ["stable", "testing", "unstable", "sid", "oldstable"];
        sources.iter().filter(fits).find(|source| names.contains(&source.suite.as_str()))
    })
}

/// The fields of `os-release` that matter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Release {
    /// `debian`, `ubuntu`, …
    pub id: String,
    /// Its code name, empty where it has none.
    pub codename: String,
    /// Its name for people.
    pub pretty: String,
}

/// Reads the text of `os-release(5)`.
pub fn release(text: &str) -> Release {
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_default().trim().trim_matches(['"', '\'']).to_owned()
    };
    Release { id: value("ID"), codename: value("VERSION_CODENAME"), pretty: value("PRETTY_NAME") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYRING: &str = "/usr/share/keyrings/archive.gpg";

    #[test]
    fn both_formats_give_the_same_sources() {
        let lines = format!("deb [arch=amd64 signed-by={KEYRING}] http://mirror/debian bookworm main contrib # why\n");
        let stanza = format!(
            "Types: deb deb-src\n# a comment\nURIs: http://mirror/debian\nSuites: bookworm\nComponents: main\n contrib\nSigned-By: {KEYRING}\n"
        );
        let sources = deb822(&stanza);
        assert_eq!(lines.lines().flat_map(one_line).collect::<Vec<_>>(), sources);
        assert_eq!(
            sources[0].to_string(),
            format!("deb [signed-by={KEYRING}] http://mirror/debian bookworm main contrib")
        );
    }

    #[test]
    fn a_stanza_gives_one_source_for_each_uri_and_suite() {
        let sources = deb822(
            "Types: deb\nURIs: http://a http://b\nSuites: x x-updates\nComponents: main\n\nTypes: deb\nURIs: http://c\nSuites: x\nComponents: main",
        );
        let pairs: Vec<_> = sources.iter().map(|source| (source.uri.as_str(), source.suite.as_str())).collect();
        assert_eq!(
            pairs,
            [
                ("http://a", "x"),
                ("http://a", "x-updates"),
                ("http://b", "x"),
                ("http://b", "x-updates"),
                ("http://c", "x")
            ]
        );
    }

    #[test]
    fn what_is_switched_off_or_for_sources_only_is_left_out() {
        assert!(deb822("Enabled: no\nTypes: deb\nURIs: http://a\nSuites: x\nComponents: main").is_empty());
        assert!(deb822("Types: deb-src\nURIs: http://a\nSuites: x\nComponents: main").is_empty());
        assert_eq!(one_line("# deb http://a x main"), None);
        assert_eq!(one_line("deb-src http://a x main"), None);
        assert_eq!(one_line("debian"), None);
    }

    #[test]
    fn a_key_inside_the_source_is_not_taken_for_a_file() {
        let stanza = "Types: deb\nURIs: http://a\nSuites: x\nComponents: main\nSigned-By:\n -----BEGIN PGP\n .\n abc\n";
        assert_eq!(deb822(stanza)[0].signed_by, None);
    }

    #[test]
    fn the_main_archive_is_neither_security_nor_a_strangers() {
        let text = "deb http://other/x nodistro main\ndeb http://m/security bookworm-security main\ndeb http://m/debian bookworm contrib main\n";
        let sources: Vec<_> = text.lines().flat_map(one_line).collect();
        assert_eq!(main_archive(&sources, "bookworm").unwrap().uri, "http://m/debian");
        assert_eq!(main_archive(&sources, "trixie"), None);
        let sid: Vec<_> = one_line("deb http://m/debian sid main").into_iter().collect();
        assert_eq!(main_archive(&sid, "trixie").unwrap().suite, "sid");
    }

    #[test]
    fn a_hosts_files_are_read_wherever_they_are() {
        let directory = tempfile::tempdir().unwrap();
        let parts = directory.path().join("sources.list.d");
        fs::create_dir(&parts).unwrap();
        fs::write(directory.path().join("sources.list"), "deb http://a x main\n").unwrap();
        fs::write(parts.join("b.sources"), "Types: deb\nURIs: http://b\nSuites: x\nComponents: main\n").unwrap();
        fs::write(parts.join("c.list.save"), "deb http://c x main\n").unwrap();
        let uris: Vec<_> = of_host(directory.path()).into_iter().map(|source| source.uri).collect();
        assert_eq!(uris, ["http://a", "http://b"]);
        assert!(of_host(&directory.path().join("absent")).is_empty());
    }

    #[test]
    fn the_release_is_known_with_and_without_quotes() {
        let text = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_CODENAME=bookworm\nID=debian\n";
        let expected = Release {
            id: "debian".into(),
            codename: "bookworm".into(),
            pretty: "Debian GNU/Linux 12 (bookworm)".into(),
        };
        assert_eq!(release(text), expected);
        assert_eq!(release(""), Release::default());
    }
}
