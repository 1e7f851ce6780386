//! `cargo boot`: see the library, and `cargo boot -- --help`.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::CommandFactory;
use imsvisor_boot::cli::Options;
use imsvisor_boot::guest::{self, GuestArg, Images};
use imsvisor_boot::image::{self, Firmware, Image, Module};
use imsvisor_boot::machine::{self, Config, End, Kind, Run, kvm};
use imsvisor_boot::native::Native;
use imsvisor_boot::paths::Paths;
use imsvisor_boot::prefix::{Need, Tools};
use imsvisor_boot::progress::Step;
use imsvisor_boot::show::{self, Show};
use imsvisor_boot::terminal::{Terminal, Turn};
use imsvisor_boot::{cargo, json, linux, prefix};

/// Exit code for an invalid value of an option; clap uses the same.
const WRONG_OPTION: u8 = 2;
/// It could not be run at all.
const NOT_RUN: u8 = 3;

/// Why there was no run: the exit code, and the words.
struct Failure(u8, anyhow::Error);

/// What fails without a code of its own keeps it from being run.
impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self(NOT_RUN, error)
    }
}

fn wrong_option(error: anyhow::Error) -> Failure {
    Failure(WRONG_OPTION, error)
}

fn main() -> ExitCode {
    let options = Options::of_arguments(std::env::args_os());
    match act(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(Failure(code, error)) => {
            eprintln!("{} {error:#}", console::style("error:").red().bold().for_stderr());
            ExitCode::from(code)
        }
    }
}

/// Looks at everything that was asked for before anything is built or fetched, then does it.
fn act(options: &Options) -> Result<bool, Failure> {
    if let Some(shell) = options.completions {
        shell.print(Options::command()).context("cannot write to standard output")?;
        return Ok(true);
    }
    let (guests, holder) = options.guests().map_err(wrong_option)?;
    options.check(&guests).map_err(wrong_option)?;
    let appended = options.appended().map_err(wrong_option)?;
    let file = options.image.as_deref().map(image::check_place).transpose().map_err(wrong_option)?;
    let paths = Paths::find()?;
    if options.list_guests {
        show::guests(&paths.guests);
        show::all_was_written()?;
        return Ok(true);
    }
    guest::check_ours(&guests, &paths.guests).map_err(wrong_option)?;
    if options.dry_run {
        show::plan(&options.described(&guests), &guests);
        show::all_was_written()?;
        return Ok(true);
    }
    let right = match file {
        _ if options.native.is_some() => run_native(options, &paths, &appended),
        Some(file) => write_image(&paths, &guests, options.hypervisor_options(), &file).map(|()| true),
        None => run(options, &paths, &guests, holder.as_deref()),
    };
    // A report that could not be written is an error.
    show::all_was_written()?;
    Ok(right?)
}

/// The guests that were asked for, built or fetched where they are no files of the user's.
fn modules(paths: &Paths, guests: &[GuestArg]) -> Result<Vec<Module>> {
    let images = images(paths, guests)?;
    let modules: Vec<Vec<Module>> = guests.iter().map(|guest| guest.modules(&images)).collect::<Result<_>>()?;
    Ok(modules.concat())
}

fn images(paths: &Paths, guests: &[GuestArg]) -> Result<Images> {
    let mut ours: Vec<&str> = guests.iter().filter_map(GuestArg::ours).collect();
    ours.sort_unstable();
    ours.dedup();
    let ours = if ours.is_empty() { Default::default() } else { cargo::guests(paths, &ours)? };
    let linux: Vec<_> = guests.iter().filter_map(GuestArg::linux).collect();
    let initrd = linux.iter().any(|asked| asked.takes_initrd());
    let kernel = linux.iter().any(|asked| asked.takes_kernel());
    Ok(Images { ours, linux: kernel.then(|| linux::payload(paths, initrd)).transpose()? })
}

fn write_image(paths: &Paths, guests: &[GuestArg], options: Vec<String>, file: &Path) -> Result<()> {
    let tools = prefix::image_tools(paths)?;
    let image = Image { hypervisor: cargo::hypervisor(paths)?, options, modules: modules(paths, guests)? };
    let grub = tools.grub.context("no GRUB was looked for")?;
    image.write(&grub, Firmware::Any, &paths.new_run()?, file)?;
    show::image(file, &image::reports_on(&image.options));
    Ok(())
}

/// The machine that was asked for, with what it needs.
fn machine_and_tools(paths: &Paths, asked: Option<Kind>) -> Result<(Kind, Tools)> {
    let kind = Kind::choose(asked, kvm::preflight).context("--machine kvm")?;
    let tools = match kind {
        Kind::Bochs => prefix::tools(paths),
        Kind::Nested => prefix::nested_tools(paths),
        Kind::Kvm | Kind::Tcg => prefix::qemu_tools(paths, Need::VfioUser),
    };
    Ok((kind, tools?))
}

/// Connects the terminal to the guest of this name.
fn terminal(run: &mut Run, guest: &str) -> Result<Terminal> {
    let machine = run.take_terminal().context("the machine has no line for a terminal")?;
    let sides = [io::stdin().as_fd().try_clone_to_owned(), io::stdout().as_fd().try_clone_to_owned()];
    let [input, output] = sides.map(|side| side.context("cannot use the terminal"));
    Terminal::new(guest, machine, [input?, output?], run.stop())
}

/// Shows a run's lines to its end. While a guest has the terminal, nothing else is shown.
fn follow(run: &mut Run, options: &Options, guest: Option<&str>) -> Result<()> {
    let mut terminal = guest.map(|guest| terminal(run, guest)).transpose()?;
    let mut live = Show::new(options.verbose, options.quiet || options.json);
    // The firmware and GRUB say nothing for seconds; a debugger waits for words.
    let mut waiting = (!options.debug).then(|| Step::new("starting the machine"));
    for seen in run {
        waiting.take();
        let Some(terminal) = &mut terminal else {
            live.line(&seen);
            continue;
        };
        let turn = terminal.turn(&seen.line);
        if turn == Some(Turn::Ends) {
            terminal.end();
        }
        if !terminal.is_on() {
            live.line(&seen);
        }
        if turn == Some(Turn::Begins) {
            show::terminal(guest.unwrap_or_default());
            terminal.begin()?;
        }
    }
    Ok(())
}

/// Ctrl-C stops the machine in its debugger, which has the terminal together with us: it is not to end us.
fn keep_running_at_ctrl_c() -> Result<()> {
    let taken = signal_hook::flag::register(signal_hook::consts::SIGINT, Arc::default());
    taken.map(drop).context("cannot leave Ctrl-C to the debugger")
}

/// Builds, boots, shows and judges.
fn run(options: &Options, paths: &Paths, guests: &[GuestArg], holder: Option<&str>) -> Result<bool> {
    let (kind, tools) = machine_and_tools(paths, options.machine)?;
    let mut config = options.config(guests);
    if kind == Kind::Bochs {
        config.plugin = Some(cargo::plugin(paths)?);
    } else {
        config.dsa_server = Some(cargo::dsa_server(paths)?);
    }
    let hypervisor = cargo::hypervisor(paths)?;
    let modules = modules(paths, guests)?;
    if options.debug && kind == Kind::Bochs {
        show::debugger(None, &hypervisor);
        keep_running_at_ctrl_c()?;
    }
    let mut run = machine::start_on(kind, paths, &tools, &config, &hypervisor, &modules)?;
    if options.debug && kind == Kind::Kvm {
        show::debugger(Some(&run.directory().join(machine::GDB)), &hypervisor);
    }
    follow(&mut run, options, holder)?;
    let outcome = run.finish();
    if outcome.end == End::Asked {
        show::asked(&outcome);
        return Ok(true);
    }
    if let End::Refused(why) = outcome.end {
        bail!("--machine nested: {why}; logs: {}", outcome.directory.display());
    }
    let summary = outcome.summary();
    let verdict = summary.verdict();
    match options.json {
        true => show::json(&json::report(&summary, &verdict, &outcome)),
        false => show::report(&summary, &verdict, &outcome),
    }
    Ok(verdict.is_right())
}

/// Boots Linux on the machine itself, shows and judges.
fn run_native(options: &Options, paths: &Paths, appended: &[String]) -> Result<bool> {
    let tools = prefix::tools(paths)?;
    let config = Config { plugin: Some(cargo::plugin(paths)?), ..options.config(&[]) };
    let asked = options.asked();
    let users = appended.iter().any(|word| word == machine::native::SVA);
    let payload = || match users {
        true => linux::payload_for_users(paths),
        false => linux::payload(paths, asked.takes_initrd()),
    };
    let payload = asked.takes_kernel().then(payload).transpose()?;
    let (kernel, initrd) = asked.files(payload.as_ref())?;
    let initrd = initrd.context("--native linux with --kernel needs --initrd")?;
    let mut run = machine::native::start(paths, &tools, &config, &kernel, &initrd, appended)?;
    follow(&mut run, options, None)?;
    let outcome = run.finish();
    let native = Native::new(&outcome);
    let failures = native.failures();
    match options.json {
        true => show::json(&json::native(&native, &failures, &outcome)),
        false => show::native(&native, &failures, &outcome),
    }
    Ok(failures.is_empty())
}
