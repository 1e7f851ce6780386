//! QEMU with nested KVM: real VT-x, on an Intel machine whose KVM offers VMX to its guests.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};
use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_ioctls::Kvm;

use super::run::Run;
use super::{Config, IMAGE, SERIAL};
use crate::paths::on_path;

const QEMU: &str = "qemu-system-x86_64";
const OUTPUT: &str = "qemu.out";

/// CPUID leaf 1, ECX: VMX (SDM volume 2A, CPUID, "Feature Information Returned in the ECX Register").
const CPUID_1_ECX_VMX: u32 = 1 << 5;

/// What the hypervisor writes to end a run.
const SHUTDOWN: &[u8] = b"Shutdown";

/// Whether this machine can do it: QEMU is there, KVM works, and KVM offers VMX to guests.
pub fn preflight() -> Result<()> {
    if on_path(QEMU).is_none() {
        bail!("{QEMU} is not installed (Debian, Ubuntu: qemu-system-x86)");
    }
    let kvm = Kvm::new().context("/dev/kvm cannot be opened (does it exist, and is this user in the group kvm?)")?;
    // A container may show a /dev/kvm behind which there is nothing.
    kvm.create_vm().context("/dev/kvm is there, but no machine can be created with it")?;
    if !offers_vmx(&kvm)? {
        bail!("KVM offers no VMX to guests (an Intel processor with kvm_intel nested=1 is needed)");
    }
    Ok(())
}

/// What KVM says that it can give to guests; `nested=0` takes VMX away from this list.
fn offers_vmx(kvm: &Kvm) -> Result<bool> {
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).context("KVM does not say what it supports")?;
    Ok(cpuid.as_slice().iter().any(|entry| entry.function == 1 && entry.ecx & CPUID_1_ECX_VMX != 0))
}

/// Starts QEMU in a run's directory that holds the image.
pub(super) fn start(config: &Config, directory: PathBuf) -> Result<Run> {
    let mut command = Command::new(QEMU);
    let output = File::create(directory.join(OUTPUT)).context("cannot create QEMU's output")?;
    let errors = output.try_clone().context("cannot share QEMU's output")?;
    command.args(arguments(config)).env_remove("LD_LIBRARY_PATH").stdin(Stdio::null()).stdout(output).stderr(errors);
    Run::start(command, directory, config, inquest)
}

/// QEMU's arguments. The remapping unit comes before every other device, as QEMU asks.
fn arguments(config: &Config) -> Vec<String> {
    let mut cpu = String::from("host,+vmx");
    for feature in &config.exclude_features {
        cpu.push_str(",-");
        cpu.push_str(feature);
    }
    let fixed = [
        ("-machine", "q35,kernel-irqchip=split".to_owned()),
        ("-accel", "kvm".to_owned()),
        ("-cpu", cpu),
        ("-m", config.memory_mib.to_string()),
        ("-smp", config.cpus.to_string()),
        ("-device", "intel-iommu,intremap=on".to_owned()),
        ("-device", "edu".to_owned()),
        // The port and the byte by which the hypervisor ends a run on Bochs end QEMU, too.
        ("-device", "isa-debug-exit,iobase=0x8900,iosize=0x1".to_owned()),
        ("-cdrom", IMAGE.to_owned()),
        ("-boot", "d".to_owned()),
        ("-serial", format!("file:{SERIAL}")),
        ("-display", "none".to_owned()),
        ("-monitor", "none".to_owned()),
    ];
    let mut arguments: Vec<String> = fixed.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect();
    arguments.push("-no-reboot".to_owned());
    arguments.extend(config.extra.iter().cloned());
    arguments
}

/// `isa-debug-exit` ends QEMU with twice the byte plus one. Old versions end at the first byte, newer ones a moment later,
/// with whichever came last.
fn was_switched_off(status: ExitStatus) -> bool {
    status.code().is_some_and(|code| SHUTDOWN.iter().any(|byte| code == i32::from(*byte) * 2 + 1))
}

fn inquest(directory: &Path, status: ExitStatus) -> Result<(), String> {
    if was_switched_off(status) {
        return Ok(());
    }
    let output = fs::read_to_string(directory.join(OUTPUT)).unwrap_or_default();
    let words = output.lines().last().unwrap_or("it says nothing (a triple fault?)");
    Err(format!("QEMU ended with {status}: {words}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn value<'a>(arguments: &'a [String], name: &str) -> Vec<&'a str> {
        let is_name = |pair: &&[String]| pair[0] == name;
        arguments.windows(2).filter(is_name).map(|pair| pair[1].as_str()).collect()
    }

    #[test]
    fn the_command_line_has_nested_vmx_and_a_remapping_unit() {
        let arguments = arguments(&Config { memory_mib: 768, cpus: 2, ..Config::default() });
        assert_eq!(value(&arguments, "-machine"), ["q35,kernel-irqchip=split"]);
        assert_eq!(value(&arguments, "-accel"), ["kvm"]);
        assert_eq!(value(&arguments, "-cpu"), ["host,+vmx"]);
        assert_eq!((value(&arguments, "-m"), value(&arguments, "-smp")), (vec!["768"], vec!["2"]));
        assert_eq!(value(&arguments, "-cdrom"), ["image.iso"]);
        assert_eq!(value(&arguments, "-serial"), ["file:serial.log"]);
        assert!(arguments.iter().any(|argument| argument == "-no-reboot"));
    }

    #[test]
    fn the_remapping_unit_comes_before_other_devices() {
        let arguments = arguments(&Config::default());
        assert_eq!(value(&arguments, "-device")[0], "intel-iommu,intremap=on");
        assert_eq!(value(&arguments, "-device")[1], "edu");
    }

    #[test]
    fn features_are_taken_away_and_extra_arguments_come_last() {
        let config = Config {
            exclude_features: vec!["x2apic".into()],
            extra: vec!["-d".into(), "int".into()],
            ..Config::default()
        };
        let arguments = arguments(&config);
        assert_eq!(value(&arguments, "-cpu"), ["host,+vmx,-x2apic"]);
        assert_eq!(arguments[arguments.len() - 2..], ["-d", "int"]);
    }

    #[test]
    fn only_a_byte_of_shutdown_ends_a_run_rightly() {
        let directory = tempfile::tempdir().unwrap();
        for code in [i32::from(b'S') * 2 + 1, i32::from(b'n') * 2 + 1] {
            assert_eq!(inquest(directory.path(), ExitStatus::from_raw(code << 8)), Ok(()));
        }
        assert!(inquest(directory.path(), ExitStatus::from_raw(1 << 8)).is_err());
        assert!(inquest(directory.path(), ExitStatus::from_raw(0)).unwrap_err().contains("triple fault"));
    }
}
