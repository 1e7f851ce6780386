//! `dsa-server`: listens at its sockets, serves a DSA at each, and leaves their counters when the clients have left.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use dsa_model::Config;
use dsa_server::connection::End;
use dsa_server::device::Device;
use dsa_server::server;

const USAGE: &str = "usage: dsa-server REPORT SOCKET…
Serves a DSA over vfio-user at each SOCKET, to one client each.
When all have left, their counters are written to the file REPORT.";

fn main() -> ExitCode {
    match run(std::env::args_os().skip(1).map(PathBuf::from).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dsa-server: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Vec<PathBuf>) -> Result<()> {
    let [report, sockets @ ..] = &arguments[..] else { bail!("{USAGE}") };
    if sockets.is_empty() || report.as_os_str() == "--help" {
        bail!("{USAGE}");
    }
    let listen =
        |path: &PathBuf| UnixListener::bind(path).with_context(|| format!("cannot listen at {}", path.display()));
    let listeners = sockets.iter().map(listen).collect::<Result<Vec<_>>>()?;
    let config = Config { pieces: true, ..Config::default() };
    let devices = server::serve(
        listeners,
        || Device::new(config),
        |number, end| match end {
            End::Closed => {}
            End::Broken(why) => eprintln!("dsa-server: {}: {why}", sockets[number].display()),
            End::Failed(error) => eprintln!("dsa-server: {}: {error}", sockets[number].display()),
        },
    )?;
    fs::write(report, server::report(&devices)).with_context(|| format!("cannot write {}", report.display()))
}
