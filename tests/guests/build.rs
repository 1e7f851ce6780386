//! Passes the linker script to the linker for the guests' images only.
//!
//! The linker gets a copy in `OUT_DIR`: cargo keeps what this prints, and corrects paths below that directory, and no others, when the
//! checkout is copied or renamed together with its target directory.

use std::path::Path;
use std::{env, fs, io};

/// Relative to the package's folder, where cargo runs build scripts.
const SCRIPT: &str = "guest.ld";

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed={SCRIPT}");
    println!("cargo:rerun-if-changed=../../boot/entry/multiboot2.S");
    if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let copy = Path::new(&env::var_os("OUT_DIR").unwrap_or_default()).join("guest.ld");
        fs::copy(SCRIPT, &copy)?;
        println!("cargo:rustc-link-arg-bins=-T{}", copy.display());
        println!("cargo:rustc-link-arg-bins=--no-dynamic-linker");
    }
    Ok(())
}
