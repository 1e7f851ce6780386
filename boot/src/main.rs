//! `cargo boot`: see the library, and `cargo boot -- --help`.

use std::process::ExitCode;

use anyhow::{Context, Result};
use imsvisor_boot::cli::{Options, Wish};
use imsvisor_boot::image::{Firmware, Image, Module};
use imsvisor_boot::machine::{self, Kind, kvm};
use imsvisor_boot::paths::Paths;
use imsvisor_boot::prefix::{Need, Tools};
use imsvisor_boot::show::{self, Show};
use imsvisor_boot::{cargo, prefix};

/// An option's value is none, as clap says of those that it looks at itself.
const WRONG_OPTION: u8 = 2;
/// It could not be run at all.
const NOT_RUN: u8 = 3;

fn main() -> ExitCode {
    let options = Options::of_arguments(std::env::args_os());
    if let Err(error) = options.wishes(true) {
        return failed(WRONG_OPTION, &error);
    }
    let right = match &options.image {
        Some(_) => write_image(&options).map(|()| true),
        None => run(&options),
    };
    match right {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => failed(NOT_RUN, &error),
    }
}

fn failed(code: u8, error: &anyhow::Error) -> ExitCode {
    eprintln!("{} {error:#}", console::style("error:").red().bold().for_stderr());
    ExitCode::from(code)
}

/// The guests that were asked for, built where they are ours.
fn modules(paths: &Paths, wishes: &[Wish]) -> Result<Vec<Module>> {
    let mut ours: Vec<&str> = wishes.iter().filter_map(Wish::ours).collect();
    ours.sort_unstable();
    ours.dedup();
    let built = if ours.is_empty() { Default::default() } else { cargo::guests(paths, &ours)? };
    wishes.iter().map(|wish| wish.module(&built)).collect()
}

fn write_image(options: &Options) -> Result<()> {
    let Some(file) = &options.image else { return Ok(()) };
    let file = std::path::absolute(file).context("the image's path")?;
    let folder = file.parent().filter(|folder| folder.is_dir());
    folder.with_context(|| format!("--image {}: there is no such folder", file.display()))?;
    let paths = Paths::find()?;
    let wishes = options.wishes(true)?;
    let tools = prefix::image_tools(&paths)?;
    let image =
        Image { hypervisor: cargo::hypervisor(&paths)?, options: Vec::new(), modules: modules(&paths, &wishes)? };
    image.write(&tools.grub, Firmware::Any, &paths.new_run()?, &file)?;
    show::image(&file);
    Ok(())
}

/// The machine that was asked for, with what it needs.
fn machine_and_tools(paths: &Paths, asked: Option<Kind>) -> Result<(Kind, Tools)> {
    let kind = Kind::choose(asked, kvm::preflight).context("--machine kvm")?;
    let tools = if kind == Kind::Bochs { prefix::tools(paths) } else { prefix::qemu_tools(paths, Need::VfioUser) };
    Ok((kind, tools?))
}

/// Builds, boots, shows and judges.
fn run(options: &Options) -> Result<bool> {
    let paths = Paths::find()?;
    let (kind, tools) = machine_and_tools(&paths, options.machine)?;
    let on_bochs = kind == Kind::Bochs;
    let wishes = options.wishes(on_bochs)?;
    let mut config = options.config();
    if on_bochs {
        config.plugin = Some(cargo::plugin(&paths)?);
    } else {
        config.dsa_server = Some(cargo::dsa_server(&paths)?);
    }
    let hypervisor = cargo::hypervisor(&paths)?;
    let guests = modules(&paths, &wishes)?;
    let mut run = machine::start_on(kind, &paths, &tools, &config, &hypervisor, &guests)?;
    let mut live = Show::new(options.verbose);
    for seen in run.by_ref() {
        live.line(&seen);
    }
    let outcome = run.finish();
    let summary = outcome.summary();
    let verdict = summary.verdict();
    show::report(&summary, &verdict, &outcome);
    Ok(verdict.is_right())
}
