//! The launcher behind `cargo boot`: it fetches an emulator, builds the hypervisor and its guests, writes a GRUB image,
//! boots it on a machine, follows the serial console, and judges the run.
//!
//! The boot tests use the same pieces:
//!
//! ```no_run
//! use imsvisor_boot::{cargo, image, machine, paths::Paths, prefix};
//! # fn main() -> anyhow::Result<()> {
//! let paths = Paths::find()?;
//! let tools = prefix::tools(&paths)?;
//! let programs = cargo::Programs::build(&paths, &["demo"])?;
//! let guest = image::Module::new(&programs.guests["demo"], "demo mem=64M device=dsa")?;
//! let mut config = machine::Config::default();
//! config.plugin = Some(programs.plugin.clone());
//! let outcome = machine::boot(&paths, &tools, &config, &programs.hypervisor, &[guest])?;
//! assert!(outcome.summary().verdict().is_right());
//! # Ok(())
//! # }
//! ```

pub mod cargo;
pub mod cli;
pub mod completions;
pub mod event;
pub mod guest;
pub mod image;
mod initramfs;
pub mod json;
pub mod linux;
pub mod machine;
pub mod native;
pub mod paths;
pub mod prefix;
pub mod progress;
pub mod report;
pub mod show;
pub mod terminal;
pub mod toolchain;
pub mod words;
