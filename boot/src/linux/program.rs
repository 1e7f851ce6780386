//! Builds the user program of `tests/linux`, which needs no library, with the compiler that builds the kernel module.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::kbuild;
use crate::paths::Paths;

/// The program's name in the initrd.
pub const NAME: &str = "svacopy";
/// Its source, below the checkout.
const SOURCE: &str = "tests/linux/svacopy.c";
/// How it is compiled: alone in its process, without what a library or the compiler's defaults would add.
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

/// Compiles the program, a moment's work. `file` is a path that nothing else uses; the program's bytes come back.
pub fn build(paths: &Paths, file: &Path) -> Result<Vec<u8>> {
    let source = paths.workspace.join(SOURCE);
    let file = file.with_extension(std::process::id().to_string());
    let mut command = Command::new(kbuild::compiler()?);
    command.args(FLAGS).arg("-o").arg(&file).arg(&source).env("LC_ALL", "C").stdin(Stdio::null());
    let output = command.output().context("cannot start the compiler")?;
    if !output.status.success() {
        bail!("{} cannot be compiled:\n{}", source.display(), String::from_utf8_lossy(&output.stderr).trim_end());
    }
    let program = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
    Ok(program)
}
