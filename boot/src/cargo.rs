//! Builds the plugin, the hypervisor and the guests with a nested cargo, and reports its progress.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{ChildStderr, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::paths::{Paths, cargo_program};
use crate::progress::Step;
use crate::toolchain::{self, TARGET};

/// Everything that runs in the emulator.
#[derive(Debug, Clone)]
pub struct Programs {
    /// The plugin for Bochs.
    pub plugin: PathBuf,
    /// The hypervisor's ELF image.
    pub hypervisor: PathBuf,
    /// The guests' ELF images by name.
    pub guests: BTreeMap<String, PathBuf>,
}

impl Programs {
    /// Builds all three; `guests` are the names of those wanted, none for every one that there is.
    pub fn build(paths: &Paths, guests: &[&str]) -> Result<Self> {
        toolchain::ensure_target()?;
        Ok(Self { plugin: plugin(paths)?, hypervisor: hypervisor(paths)?, guests: self::guests(paths, guests)? })
    }
}

/// The plugin for Bochs, for the host.
pub fn plugin(paths: &Paths) -> Result<PathBuf> {
    let artifacts = build(paths, "building the plugin", &["-p", "bochs-plugin", "--release"])?;
    let library = artifacts.into_iter().flat_map(|artifact| artifact.files).find(|file| is_plugin(file));
    library.context("the build of bochs-plugin left no libbx_ims.so")
}

fn is_plugin(file: &Path) -> bool {
    file.file_name().is_some_and(|name| name == "libbx_ims.so")
}

/// The server of DSAs for QEMU, on the host and in the nested machine.
pub fn dsa_server(paths: &Paths) -> Result<PathBuf> {
    static_program(paths, "building the DSA server", "dsa-server", "dsa-server")
}

/// The hypervisor, for the bare machine.
pub fn hypervisor(paths: &Paths) -> Result<PathBuf> {
    toolchain::ensure_target()?;
    let mut arguments = vec!["-p", "imsvisor", "--bin", "imsvisor"];
    arguments.extend(BARE);
    let mut programs = executables(build(paths, "building the hypervisor", &arguments)?);
    programs.remove("imsvisor").context("the build left no hypervisor")
}

/// The image that holds the hypervisor's VT-d code against QEMU's remapping unit.
pub fn vtd_check(paths: &Paths) -> Result<PathBuf> {
    toolchain::ensure_target()?;
    let mut arguments = vec!["-p", "vtd-check"];
    arguments.extend(BARE);
    let mut programs = executables(build(paths, "building the VT-d check", &arguments)?);
    programs.remove("vtd-check").context("the build left no vtd-check")
}

/// The nested machine's first process: for Linux, and without any library beside it.
pub fn outer_init(paths: &Paths) -> Result<PathBuf> {
    static_program(paths, "building the nested machine's init", "imsvisor-boot", "outer-init")
}

/// A program for a Linux that has no C library. The C library's own archive comes with the headers that a C linker has anyway.
fn static_program(paths: &Paths, what: &str, package: &str, name: &str) -> Result<PathBuf> {
    let arguments = ["-p", package, "--bin", name, "--target", LINUX, "--profile", "release", "--config", STATIC];
    let mut programs = executables(build(paths, what, &arguments)?);
    programs.remove(name).with_context(|| format!("the build of {package} left no {name}"))
}

const LINUX: &str = "x86_64-unknown-linux-gnu";
const STATIC: &str = "target.x86_64-unknown-linux-gnu.rustflags=[\"-C\",\"target-feature=+crt-static\"]";

/// The guest shim for C: a static library for bare guests.
pub fn shim_for_c(paths: &Paths) -> Result<PathBuf> {
    toolchain::ensure_target()?;
    let arguments = ["-p", "guest-shim-c", "--target", TARGET, "--profile", "bare"];
    let artifacts = build(paths, "building the shim for C", &arguments)?;
    let library = artifacts.into_iter().flat_map(|artifact| artifact.files).find(|file| file.ends_with(SHIM_FOR_C));
    library.with_context(|| format!("the build of guest-shim-c left no {SHIM_FOR_C}"))
}

const SHIM_FOR_C: &str = "libimsvisor_shim.a";

/// The guests of these names, none for all.
pub fn guests(paths: &Paths, names: &[&str]) -> Result<BTreeMap<String, PathBuf>> {
    toolchain::ensure_target()?;
    let mut arguments = vec!["-p", "guests"];
    if names.is_empty() {
        arguments.push("--bins");
    }
    for name in names {
        arguments.extend(["--bin", name]);
    }
    arguments.extend(BARE);
    let what = if names.len() == 1 { "building the guest" } else { "building the guests" };
    Ok(executables(build(paths, what, &arguments)?))
}

/// What the bare programs share.
const BARE: [&str; 6] = ["--features", "bare", "--target", TARGET, "--profile", "bare"];

/// Settings of the outer cargo or of the user that would change how the bare programs are linked, or where.
const FOREIGN: [&str; 7] = [
    "RUSTFLAGS",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_TARGET_DIR",
    "CARGO_BUILD_TARGET_DIR",
    "LD_LIBRARY_PATH",
];

/// One thing that cargo built.
struct Artifact {
    name: String,
    executable: Option<PathBuf>,
    files: Vec<PathBuf>,
}

fn executables(artifacts: Vec<Artifact>) -> BTreeMap<String, PathBuf> {
    artifacts.into_iter().filter_map(|artifact| Some((artifact.name, artifact.executable?))).collect()
}

/// Runs one nested `cargo build` and gathers what it says.
fn build(paths: &Paths, what: &str, arguments: &[&str]) -> Result<Vec<Artifact>> {
    let mut command = Command::new(cargo_program());
    command.arg("build").args(arguments).args(["--message-format", "json-render-diagnostics", "--target-dir"]);
    command.arg(paths.build()).current_dir(&paths.workspace);
    for name in FOREIGN {
        command.env_remove(name);
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start cargo")?;
    let said = child.stderr.take().map(|stderr| std::thread::spawn(move || read_all(stderr)));
    let mut step = Step::new(what);
    let stdout = child.stdout.take().context("cargo has no output")?;
    let built = follow(BufReader::new(stdout), &mut step);
    let status = child.wait().context("cannot wait for cargo")?;
    let said = said.and_then(|thread| thread.join().ok()).unwrap_or_default();
    if !status.success() {
        drop(step);
        bail!("{what} failed (cargo build {}):\n{}", arguments.join(" "), said.trim_end());
    }
    let built = built?;
    step.done(&if built.fresh { "up to date".to_owned() } else { format!("{} crates", built.crates) });
    Ok(built.artifacts)
}

fn read_all(mut stderr: ChildStderr) -> String {
    let mut bytes = Vec::new();
    // What was read before an error is still the best there is to show.
    let _ = stderr.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

struct Built {
    artifacts: Vec<Artifact>,
    crates: usize,
    fresh: bool,
}

/// Reads cargo's messages to their end.
fn follow(output: impl BufRead, step: &mut Step) -> Result<Built> {
    let mut built = Built { artifacts: Vec::new(), crates: 0, fresh: true };
    for line in output.lines() {
        let line = line.context("cannot read cargo's messages")?;
        // A build script's or a wrapper's stray line is not a message.
        let Ok(message) = serde_json::from_str::<Value>(&line) else { continue };
        let Some(artifact) = artifact(&message) else { continue };
        built.crates += 1;
        built.fresh &= message["fresh"].as_bool().unwrap_or(false);
        step.at(&format!("{} {}", built.crates, artifact.name));
        built.artifacts.push(artifact);
    }
    Ok(built)
}

fn artifact(message: &Value) -> Option<Artifact> {
    (message["reason"] == "compiler-artifact").then_some(())?;
    let files = message["filenames"].as_array()?;
    Some(Artifact {
        name: message["target"]["name"].as_str()?.to_owned(),
        executable: message["executable"].as_str().map(PathBuf::from),
        files: files.iter().filter_map(|file| file.as_str().map(PathBuf::from)).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_is_found_among_cargos_messages() {
        let messages = r#"stray line
{"reason":"compiler-artifact","target":{"name":"spin"},"filenames":["/t/libspin.rlib"],"executable":null,"fresh":true}
{"reason":"compiler-artifact","target":{"name":"demo"},"filenames":["/t/demo"],"executable":"/t/demo","fresh":false}
{"reason":"build-finished","success":true}
"#;
        let built = follow(messages.as_bytes(), &mut Step::new("testing")).unwrap();
        assert_eq!((built.crates, built.fresh), (2, false));
        let programs = executables(built.artifacts);
        assert_eq!(programs.into_iter().collect::<Vec<_>>(), [("demo".to_owned(), PathBuf::from("/t/demo"))]);
    }

    #[test]
    fn the_plugin_is_known_by_its_file_name() {
        assert!(is_plugin(Path::new("/t/release/libbx_ims.so")));
        assert!(!is_plugin(Path::new("/t/release/deps/libbx_ims.d")));
    }
}
