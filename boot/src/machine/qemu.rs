//! QEMU: with nested KVM real VT-x; with its own emulation (TCG) none, but the same remapping unit and devices.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use anyhow::{Context, Result};

use super::dsa_server::{self, DsaServer};
use super::run::{Manner, Run};
use super::serial::{self, Port};
use super::{Config, GDB, IMAGE, MONITOR, SERIAL, trace};
use crate::prefix::Tools;

const OUTPUT: &str = "qemu.out";

/// Where the NVMe controller is.
pub const NVME: &str = "00:02.0";

/// The graphics adapter of a machine with a screen.
pub const SCREEN: &str = "VGA,addr=10.0";

/// What the hypervisor writes to end a run.
const SHUTDOWN: &[u8] = b"Shutdown";

/// Who executes the machine's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accelerator {
    /// The processor.
    Kvm,
    /// QEMU itself.
    Tcg,
}

impl Accelerator {
    /// Machine, accelerator, processor. With KVM the remapping unit has to be between devices and local APICs, so the I/O APIC is
    /// QEMU's.
    fn arguments(self, features: &str) -> Vec<String> {
        let words: [&str; 6] = match self {
            Self::Kvm => ["-machine", "q35,kernel-irqchip=split", "-accel", "kvm", "-cpu", "host,+vmx"],
            Self::Tcg => ["-machine", "q35", "-accel", "tcg", "-cpu", "max"],
        };
        let mut arguments = words.map(str::to_owned).to_vec();
        if let Some(cpu) = arguments.last_mut() {
            cpu.push_str(features);
        }
        arguments
    }

    /// The remapping unit. With KVM it has 32-bit destinations where the kernel can; with TCG only where they are asked for.
    fn remapping_unit(self) -> &'static str {
        match self {
            Self::Kvm => "intel-iommu,intremap=on",
            Self::Tcg => "intel-iommu,intremap=on,eim=on",
        }
    }

    /// Whether time can go by instructions: not where another process takes its own time, nor with firmware that waits for a person.
    fn counts_time(self, config: &Config) -> bool {
        self == Self::Tcg && config.dsa_server.is_none() && !config.screen
    }
}

/// Starts QEMU in a run's directory that holds the image.
pub(super) fn start(accelerator: Accelerator, tools: &Tools, config: &Config, directory: PathBuf) -> Result<Run> {
    let qemu = tools.qemu.as_ref().context("no QEMU was looked for")?;
    let mut command = qemu.command();
    let output = File::create(directory.join(OUTPUT)).context("cannot create QEMU's output")?;
    let errors = output.try_clone().context("cannot share QEMU's output")?;
    command.args(arguments(accelerator, config, &serial::ports(config, SERIAL)?)).stdout(output).stderr(errors);
    let server = config.dsa_server.as_deref().map(|program| DsaServer::start(program, &directory)).transpose()?;
    let mut run = Run::start(command, directory, config, Manner::alone(inquest))?;
    if let Some(server) = server {
        run.keep(server);
    }
    Ok(run)
}

/// QEMU's arguments. The remapping unit comes before every other device, as QEMU asks.
fn arguments(accelerator: Accelerator, config: &Config, serial: &[Port<'_>]) -> Vec<String> {
    let features: String = config.exclude_features.iter().map(|feature| format!(",-{feature}")).collect();
    let mut arguments = accelerator.arguments(&features);
    if accelerator.counts_time(config) {
        // Nobody sleeps: a device that takes its time costs none of ours.
        arguments.extend(["-icount", "shift=7,sleep=off"].map(str::to_owned));
    }
    let fixed = [
        ("-m", config.memory_mib.to_string()),
        ("-smp", config.cpus.to_string()),
        ("-device", accelerator.remapping_unit().to_owned()),
        // A device for tests, whose DMA goes wherever it is told, and one with a table of messages.
        ("-device", "edu,dma_mask=0xffffffffffffffff".to_owned()),
        ("-device", format!("nvme,serial=imsvisor,addr={}", NVME.trim_start_matches("00:"))),
        ("-cdrom", IMAGE.to_owned()),
        ("-boot", "d".to_owned()),
        ("-display", "none".to_owned()),
        ("-nic", "none".to_owned()),
        ("-monitor", "none".to_owned()),
        ("-vga", "none".to_owned()),
        match config.screen {
            true => ("-qmp", format!("unix:{MONITOR},server=on,wait=off")),
            // The port and the bytes by which the hypervisor ends a run on Bochs end QEMU, too.
            false => ("-device", "isa-debug-exit,iobase=0x8900,iosize=0x1".to_owned()),
        },
    ];
    arguments.extend(fixed.into_iter().flat_map(|(name, value)| [name.to_owned(), value]));
    if config.debugger {
        arguments.extend(["-S".to_owned(), "-gdb".to_owned(), format!("unix:{GDB},server=on,wait=off")]);
    }
    if config.screen {
        // Other devices keep their places.
        arguments.extend(["-device", SCREEN].map(str::to_owned));
    }
    arguments.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(str::to_owned));
    if config.dsa_server.is_some() {
        arguments.extend(dsa_server::arguments(config.memory_mib));
        arguments.extend(trace::arguments());
    }
    let at = |port: &Port<'_>| match *port {
        Port::Nothing => "null".to_owned(),
        Port::File(file) => format!("file:{file}"),
        Port::Terminal(device) => device.to_owned(),
    };
    arguments.extend(serial.iter().flat_map(|port| ["-serial".to_owned(), at(port)]));
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

    fn arguments(accelerator: Accelerator, config: &Config) -> Vec<String> {
        super::arguments(accelerator, config, &serial::ports(config, SERIAL).unwrap())
    }

    fn value<'a>(arguments: &'a [String], name: &str) -> Vec<&'a str> {
        let is_name = |pair: &&[String]| pair[0] == name;
        arguments.windows(2).filter(is_name).map(|pair| pair[1].as_str()).collect()
    }

    #[test]
    fn with_kvm_there_is_nested_vmx_and_the_io_apic_is_behind_the_remapping_unit() {
        let arguments = arguments(Accelerator::Kvm, &Config { memory_mib: 768, cpus: 2, ..Config::default() });
        assert_eq!(value(&arguments, "-machine"), ["q35,kernel-irqchip=split"]);
        assert_eq!(value(&arguments, "-accel"), ["kvm"]);
        assert_eq!(value(&arguments, "-cpu"), ["host,+vmx"]);
        assert_eq!((value(&arguments, "-m"), value(&arguments, "-smp")), (vec!["768"], vec!["2"]));
        assert_eq!(value(&arguments, "-cdrom"), ["image.iso"]);
        assert_eq!(value(&arguments, "-serial"), ["file:serial.log"]);
        assert!(arguments.iter().any(|argument| argument == "-no-reboot"));
        assert!(value(&arguments, "-icount").is_empty());
    }

    #[test]
    fn a_guests_console_is_the_second_serial_line() {
        let config = Config { terminal: Some("/dev/pts/7".into()), ..Config::default() };
        let arguments = arguments(Accelerator::Kvm, &config);
        assert_eq!(value(&arguments, "-serial"), ["file:serial.log", "/dev/pts/7"]);
    }

    #[test]
    fn without_kvm_time_goes_by_instructions() {
        let arguments = arguments(Accelerator::Tcg, &Config::default());
        assert_eq!((value(&arguments, "-accel"), value(&arguments, "-cpu")), (vec!["tcg"], vec!["max"]));
        assert_eq!(value(&arguments, "-icount"), ["shift=7,sleep=off"]);
    }

    #[test]
    fn dsas_are_behind_sockets_and_the_unit_is_in_caching_mode() {
        let config = Config { dsa_server: Some("/x/dsa-server".into()), memory_mib: 768, ..Config::default() };
        for accelerator in [Accelerator::Kvm, Accelerator::Tcg] {
            let arguments = arguments(accelerator, &config);
            let devices = value(&arguments, "-device");
            assert_eq!(value(&arguments, "-global"), ["intel-iommu.caching-mode=on"]);
            let dsas: Vec<_> = devices.iter().filter(|device| device.contains("vfio-user-pci")).collect();
            assert_eq!(dsas.len(), 2);
            assert!(dsas[1].contains(r#""path":"dsa-1.sock""#) && dsas[1].contains(r#""addr":"06.0""#), "{dsas:?}");
            assert_eq!(value(&arguments, "-object"), ["memory-backend-memfd,id=ram,size=768M,share=on"]);
            assert!(value(&arguments, "-icount").is_empty());
        }
    }

    #[test]
    fn the_remapping_unit_comes_before_other_devices() {
        for accelerator in [Accelerator::Kvm, Accelerator::Tcg] {
            let arguments = arguments(accelerator, &Config::default());
            let devices = value(&arguments, "-device");
            assert!(devices[0].starts_with("intel-iommu,intremap=on"), "{devices:?}");
            assert!(devices[1].starts_with("edu,") && devices[2].starts_with("nvme,"), "{devices:?}");
        }
    }

    #[test]
    fn a_debugger_is_waited_for_at_a_socket_of_the_run() {
        let config = Config { debugger: true, ..Config::default() };
        let arguments = |config: &Config| arguments(Accelerator::Kvm, config);
        assert_eq!(value(&arguments(&config), "-gdb"), ["unix:gdb.sock,server=on,wait=off"]);
        let waits = |config: &Config| arguments(config).iter().any(|argument| argument == "-S");
        assert_eq!([waits(&config), waits(&Config::default())], [true, false]);
    }

    #[test]
    fn features_are_taken_away_and_extra_arguments_come_last() {
        let config = Config {
            exclude_features: vec!["x2apic".into(), "pcid".into()],
            extra: vec!["-d".into(), "int".into()],
            ..Config::default()
        };
        let arguments = arguments(Accelerator::Kvm, &config);
        assert_eq!(value(&arguments, "-cpu"), ["host,+vmx,-x2apic,-pcid"]);
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
