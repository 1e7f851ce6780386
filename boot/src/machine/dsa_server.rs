//! The process that serves DSAs to QEMU. It starts before QEMU and ends after it.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{PLUGIN_REPORT, die_with_parent};
use crate::words::harmless;

/// Where each DSA is in QEMU's machine; by its number.
pub const DSAS: [&str; 2] = ["00:05.0", "00:06.0"];

const OUTPUT: &str = "dsa-server.out";
/// What the server says when QEMU may come.
const LISTENING: &str = "listening";
/// How long the server may take to write its report after QEMU has ended.
const PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(2);
/// How long QEMU waits for an answer of the server's before it gives the device up: a device may have megabytes to drain, and a host other
/// things to do. QEMU's default is 5 s.
const QEMU_PATIENCE_MS: u32 = 60_000;

/// Whether a guest's `device=` is one of the served DSAs.
pub(super) fn is_served(device: &str) -> bool {
    device == "dsa" || DSAS.contains(&device)
}

/// A server under way. Dropped, it is ended.
#[derive(Debug)]
pub(super) struct DsaServer {
    child: Child,
    directory: PathBuf,
}

/// The socket of a DSA, in the run's directory. The path has to be short (108 bytes, unix(7)), so it is a relative one.
pub(super) fn socket(number: usize) -> String {
    format!("dsa-{number}.sock")
}

/// What QEMU has to be told: RAM that another process can be given, and the devices. The unit is in caching mode: without it software
/// need not tell of translations that appear, and QEMU ends itself when one does.
pub(super) fn arguments(memory_mib: u32) -> Vec<String> {
    let memory = format!("memory-backend-memfd,id=ram,size={memory_mib}M,share=on");
    let fixed = ["-object", &memory, "-machine", "memory-backend=ram", "-global", "intel-iommu.caching-mode=on"];
    let mut arguments = fixed.map(str::to_owned).to_vec();
    for (number, place) in DSAS.iter().enumerate() {
        let address = place.trim_start_matches("00:");
        let socket = socket(number);
        arguments.push("-device".to_owned());
        // Properties that are objects are only taken as JSON.
        arguments.push(format!(
            r#"{{"driver":"vfio-user-pci","socket":{{"type":"unix","path":"{socket}"}},"addr":"{address}","rombar":0,"x-msg-timeout":{QEMU_PATIENCE_MS}}}"#
        ));
    }
    arguments
}

impl DsaServer {
    /// Starts the server in a run's directory and waits until it listens: QEMU does not try twice.
    pub(super) fn start(program: &Path, directory: &Path) -> Result<Self> {
        let output = File::create(directory.join(OUTPUT)).context("cannot create the DSA server's output")?;
        let mut command = Command::new(program);
        command.arg(PLUGIN_REPORT).args((0..DSAS.len()).map(socket)).current_dir(directory);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(output);
        // SAFETY: `die_with_parent` says that its closure may run between fork and exec.
        unsafe { command.pre_exec(die_with_parent()) };
        let child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let mut server = Self { child, directory: directory.to_owned() };
        server.wait_until_it_listens()?;
        Ok(server)
    }

    fn wait_until_it_listens(&mut self) -> Result<()> {
        let mut said = String::new();
        if let Some(stdout) = self.child.stdout.take() {
            BufReader::new(stdout).read_line(&mut said).context("cannot read the DSA server's output")?;
        }
        match said.trim_end() {
            LISTENING => Ok(()),
            // The end of its output is its own end.
            "" => {
                let status = self.child.wait().context("cannot wait for the DSA server")?;
                bail!("{}", self.ended(status))
            }
            other => bail!("the DSA server says `{}`, not that it listens", harmless(other)),
        }
    }

    fn ended(&self, status: ExitStatus) -> String {
        let output = std::fs::read_to_string(self.directory.join(OUTPUT)).unwrap_or_default();
        let words = output.lines().last().unwrap_or("it says nothing");
        format!("the DSA server ended with {status}: {words}")
    }

    /// Lets the server write its report, once QEMU has ended. Returns a complaint if the server did not end as it should.
    pub(super) fn finish(mut self) -> Option<String> {
        // A socket that QEMU has not come to is given up.
        drop(self.child.stdin.take());
        let began = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return None,
                Ok(Some(status)) => return Some(self.ended(status)),
                Ok(None) if began.elapsed() < PATIENCE => thread::sleep(POLL),
                _ => return Some(format!("the DSA server did not end within {} seconds", PATIENCE.as_secs())),
            }
        }
    }
}

impl Drop for DsaServer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        for number in 0..DSAS.len() {
            let _ = std::fs::remove_file(self.directory.join(socket(number)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(script: &str) -> (tempfile::TempDir, Result<DsaServer>) {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("server");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&program, mode).unwrap();
        let server = DsaServer::start(&program, directory.path());
        (directory, server)
    }

    #[test]
    fn a_server_that_ends_before_it_listens_is_told_with_its_last_words() {
        let (_directory, server) = started("echo no room >&2; exit 3");
        let words = server.unwrap_err().to_string();
        assert!(words.contains("exit status: 3") && words.contains("no room"), "{words}");
    }

    #[test]
    fn a_program_that_is_no_server_is_not_waited_for() {
        let (_directory, server) = started("echo hello; exec sleep 1000");
        let words = server.unwrap_err().to_string();
        assert!(words.contains("`hello`"), "{words}");
    }

    #[test]
    fn a_server_that_leaves_with_qemu_has_written_its_report() {
        let (directory, server) = started("echo listening; cat; echo dsa.messages=7 > $1");
        assert_eq!(server.unwrap().finish(), None);
        let report = std::fs::read_to_string(directory.path().join(PLUGIN_REPORT)).unwrap();
        assert_eq!(report, "dsa.messages=7\n");
    }

    #[test]
    fn a_server_that_fails_while_qemu_runs_is_told() {
        let (_directory, server) = started("echo listening; cat; echo a message of 3 bytes >&2; exit 1");
        let words = server.unwrap().finish().unwrap();
        assert!(words.contains("exit status: 1") && words.contains("a message of 3 bytes"), "{words}");
    }

    #[test]
    fn a_server_that_is_dropped_is_ended() {
        let (_directory, server) = started("echo listening; exec sleep 1000");
        let server = server.unwrap();
        let process = PathBuf::from(format!("/proc/{}", server.child.id()));
        assert!(process.exists());
        drop(server);
        assert!(!process.exists());
    }
}
