//! The process that serves DSAs to QEMU: started before it, gone after it.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{PLUGIN_REPORT, die_with_parent};

/// Where each DSA is in QEMU's machine; by its number.
pub const DSAS: [&str; 2] = ["00:05.0", "00:06.0"];

const OUTPUT: &str = "dsa-server.out";
/// How long the server may take until it listens, and until it has written its report after QEMU has ended.
const PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(2);

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
            r#"{{"driver":"vfio-user-pci","socket":{{"type":"unix","path":"{socket}"}},"addr":"{address}","rombar":0}}"#
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
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output);
        // SAFETY: `die_with_parent` may be called between fork and exec.
        unsafe { command.pre_exec(die_with_parent) };
        let child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let mut server = Self { child, directory: directory.to_owned() };
        server.wait_for_sockets()?;
        Ok(server)
    }

    fn wait_for_sockets(&mut self) -> Result<()> {
        let began = Instant::now();
        while !(0..DSAS.len()).all(|number| self.directory.join(socket(number)).exists()) {
            if let Some(status) = self.child.try_wait().context("cannot wait for the DSA server")? {
                bail!("the DSA server ended with {status}: {}", self.last_words());
            }
            if began.elapsed() > PATIENCE {
                bail!("the DSA server does not listen after {} seconds", PATIENCE.as_secs());
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    fn last_words(&self) -> String {
        let output = std::fs::read_to_string(self.directory.join(OUTPUT)).unwrap_or_default();
        output.lines().last().unwrap_or("it says nothing").to_owned()
    }

    /// QEMU has ended: lets the server write its report.
    pub(super) fn finish(mut self) {
        let began = Instant::now();
        while self.child.try_wait().is_ok_and(|status| status.is_none()) && began.elapsed() < PATIENCE {
            thread::sleep(POLL);
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
    fn a_server_that_leaves_with_qemu_has_written_its_report() {
        let (directory, server) = started("touch $2 $3; sleep 0.2; echo dsa.messages=7 > $1");
        server.unwrap().finish();
        let report = std::fs::read_to_string(directory.path().join(PLUGIN_REPORT)).unwrap();
        assert_eq!(report, "dsa.messages=7\n");
        assert!(!directory.path().join(socket(0)).exists());
    }

    #[test]
    fn a_server_that_is_dropped_is_ended() {
        let (_directory, server) = started("touch $2 $3; exec sleep 1000");
        let server = server.unwrap();
        let process = PathBuf::from(format!("/proc/{}", server.child.id()));
        assert!(process.exists());
        drop(server);
        assert!(!process.exists());
    }
}
