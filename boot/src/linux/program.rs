//! Builds the users' programs of the initrd, which need no library, with the compiler that builds the kernel modules.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::kbuild;
use crate::paths::Paths;

/// The programs' names in the initrd, and their sources, below the checkout.
pub const PROGRAMS: [(&str, &str); 2] =
    [("svacopy", "tests/linux/svacopy.c"), ("imsvisorctl", "guest-shim/linux/tools/imsvisorctl.c")];
/// Where headers of ours are, below the checkout.
const HEADERS: [&str; 2] = ["guest-shim/linux", "hcall-abi/include"];
/// How they are compiled: alone in a process, without what a library or the compiler's defaults would add.
const FLAGS: [&str; 11] = [
    "-O2",
    "-static",
    "-nostdlib",
    "-ffreestanding",
    "-fno-stack-protector",
    "-fno-pie",
    "-no-pie",
    "-mno-sse",
    "-mmovdir64b",
    "-Wl,--build-id=none",
    "-s",
];

/// Compiles a program, a moment's work, in a directory; the program's bytes come back.
pub fn build(paths: &Paths, (name, source): (&str, &str), directory: &Path) -> Result<Vec<u8>> {
    let source = paths.workspace.join(source);
    let file = directory.join(format!("{name}.{}", std::process::id()));
    let mut command = Command::new(kbuild::compiler()?);
    command.args(FLAGS).args(HEADERS.map(|folder| format!("-I{}", paths.workspace.join(folder).display())));
    command.arg("-o").arg(&file).arg(&source).env("LC_ALL", "C").stdin(Stdio::null());
    let output = command.output().context("cannot start the compiler")?;
    if !output.status.success() {
        bail!("{} cannot be compiled:\n{}", source.display(), String::from_utf8_lossy(&output.stderr).trim_end());
    }
    let program = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
    Ok(program)
}
