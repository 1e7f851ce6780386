//! The Rust target that the hypervisor and its guests are built for.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::paths::on_path;
use crate::progress::Step;

/// A bare x86-64 machine.
pub const TARGET: &str = "x86_64-unknown-none";

/// Adds the target if the toolchain lacks it. rustup does not do it by itself where automatic installs are off.
pub fn ensure_target() -> Result<()> {
    if has_target()? {
        return Ok(());
    }
    let Some(rustup) = on_path("rustup").or_else(rustup_at_home) else {
        bail!("this Rust lacks the target {TARGET}, and there is no rustup to add it: install Rust with rustup");
    };
    let step = Step::new("adding the Rust target");
    let output = Command::new(rustup).args(["target", "add", TARGET]).output().context("cannot start rustup")?;
    if !output.status.success() || !has_target()? {
        bail!("`rustup target add {TARGET}` failed:\n{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    step.done(TARGET);
    Ok(())
}

fn rustup_at_home() -> Option<std::path::PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(Into::into).or_else(|| Some(std::env::home_dir()?.join(".cargo")))?;
    Some(home.join("bin/rustup")).filter(|file| file.is_file())
}

/// Whether the target's core library is there: the directory exists also for targets that were never added.
fn has_target() -> Result<bool> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc)
        .args(["--print", "target-libdir", "--target", TARGET])
        .output()
        .context("cannot start rustc")?;
    if !output.status.success() {
        bail!("rustc does not know the target {TARGET}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(holds_core(Path::new(String::from_utf8_lossy(&output.stdout).trim())))
}

fn holds_core(directory: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(directory) else { return false };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_without_its_core_library_is_missing() {
        let directory = tempfile::tempdir().unwrap();
        assert!(!holds_core(&directory.path().join("absent")));
        assert!(!holds_core(directory.path()));
        std::fs::write(directory.path().join("libcore-1234.rlib"), "").unwrap();
        assert!(holds_core(directory.path()));
    }
}
