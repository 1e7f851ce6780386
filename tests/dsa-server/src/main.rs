//! `dsa-server`: listens at its sockets, serves a DSA at each, and writes their counters when the clients have left.

use std::fs;
use std::io::{Write, stdin, stdout};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;

use anyhow::{Context, Result, bail};
use dsa_model::Config;
use dsa_server::connection::End;
use dsa_server::device::Device;
use dsa_server::server;

const USAGE: &str = "usage: dsa-server REPORT SOCKET…
Serves a DSA over vfio-user at each SOCKET, to one client each, and says `listening` when clients may come.
When all have left, the DSAs' counters are written to the file REPORT. A socket to which nobody has come
is given up when the pipe that is the standard input is closed.";

fn main() -> ExitCode {
    match run(std::env::args_os().skip(1).map(PathBuf::from).collect()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("dsa-server: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Serves all. Returns whether every client left of its own accord.
fn run(arguments: Vec<PathBuf>) -> Result<bool> {
    let [report, sockets @ ..] = &arguments[..] else { bail!("{USAGE}") };
    if sockets.is_empty() || report.as_os_str() == "--help" {
        bail!("{USAGE}");
    }
    let listen =
        |path: &PathBuf| UnixListener::bind(path).with_context(|| format!("cannot listen at {}", path.display()));
    let listeners = sockets.iter().map(listen).collect::<Result<Vec<_>>>()?;
    writeln!(stdout(), "listening").context("cannot say that it listens")?;
    let served = serve_all(&listeners);
    let mut right = true;
    for ((_, end), socket) in served.iter().zip(sockets) {
        if let Some(why) = end.failure() {
            eprintln!("dsa-server: {}: {why}", socket.display());
            right = false;
        }
    }
    let devices: Vec<Device> = served.into_iter().map(|(device, _)| device).collect();
    fs::write(report, server::report(&devices)).with_context(|| format!("cannot write {}", report.display()))?;
    Ok(right)
}

/// A thread for each device: what keeps one busy does not hold up another.
fn serve_all(listeners: &[UnixListener]) -> Vec<(Device, End)> {
    let config = Config { pieces: true, ..Config::sapphire_rapids() };
    let stdin = stdin();
    let starter = stdin.as_fd();
    thread::scope(|scope| {
        let serve = |listener| scope.spawn(move || server::serve(listener, Device::new(config), starter));
        let threads: Vec<_> = listeners.iter().map(serve).collect();
        threads.into_iter().map(|thread| thread.join().expect("a thread that panicked has said why")).collect()
    })
}
