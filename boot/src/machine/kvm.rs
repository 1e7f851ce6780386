//! Whether this machine can run the hypervisor under nested KVM, and if not, what is missing and how to get it.
//!
//! The facts are gathered first (`Host`), and judged after that, so that tests of the judgement run anywhere.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result, bail};
use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_ioctls::Kvm;

const DEVICE: &str = "/dev/kvm";
/// Whether kvm_intel gives VMX to its guests: `Y` or `1`.
const NESTED: &str = "/sys/module/kvm_intel/parameters/nested";

/// CPUID leaf 1, ECX: VMX (SDM vol. 2A, CPUID, "Feature Information Returned in the ECX Register").
const CPUID_1_ECX_VMX: u32 = 1 << 5;

/// Whether this machine can do it: KVM works, and offers VMX to guests. QEMU is looked for after that.
pub fn preflight() -> Result<()> {
    match Host::look().lacks() {
        None => Ok(()),
        Some(what) => bail!("{what}"),
    }
}

/// How /dev/kvm answers.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Device {
    /// There is no such file.
    Absent,
    /// This user may not open it.
    Forbidden,
    /// It cannot be used for another reason.
    Broken(String),
    /// A machine can be created; whether KVM says that it gives VMX to guests.
    Works(bool),
}

/// What is there.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Host {
    device: Device,
    /// The flags of the first processor in /proc/cpuinfo.
    flags: String,
    /// `kvm_intel`'s parameter `nested`; none where the module is not loaded.
    nested: Option<String>,
    /// /proc/cpuinfo's vendor.
    vendor: String,
}

impl Host {
    fn look() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self {
            device: look_at_device(),
            flags: field(&cpuinfo, "flags"),
            vendor: field(&cpuinfo, "vendor_id"),
            nested: fs::read_to_string(NESTED).ok().map(|text| text.trim().to_owned()),
        }
    }

    fn has(&self, flag: &str) -> bool {
        self.flags.split_whitespace().any(|other| other == flag)
    }

    /// The first thing that is missing, and what to do.
    fn lacks(&self) -> Option<String> {
        self.lacks_processor().or_else(|| self.lacks_device()).or_else(|| self.lacks_nesting())
    }

    fn lacks_processor(&self) -> Option<String> {
        if self.has("vmx") {
            return None;
        }
        let words = if self.has("svm") {
            "this processor has AMD's SVM (CPU flag svm), not Intel's VT-x (vmx): nothing but another machine helps"
                .to_owned()
        } else if self.has("hypervisor") {
            "this is a virtual machine without VT-x (no CPU flag vmx): its host has to give it nested virtualisation"
                .to_owned()
        } else if self.vendor == "GenuineIntel" {
            "this processor shows no VT-x (no CPU flag vmx): switch it on in the firmware's setup".to_owned()
        } else {
            format!("this processor ({}) has no VT-x (no CPU flag vmx)", self.vendor)
        };
        Some(words)
    }

    fn lacks_device(&self) -> Option<String> {
        match &self.device {
            Device::Works(_) => None,
            Device::Absent if self.nested.is_none() => {
                Some(format!("{DEVICE} is missing: load the module (modprobe kvm_intel)"))
            }
            Device::Absent => {
                Some(format!("{DEVICE} is missing, although kvm_intel is loaded: a container has to be given it"))
            }
            Device::Forbidden => Some(format!(
                "{DEVICE} may not be opened by this user: join its group (usermod -aG kvm USER, then log in again)"
            )),
            // A container may show a device behind which there is nothing.
            Device::Broken(why) => Some(format!("{DEVICE} is there, but no machine can be created with it: {why}")),
        }
    }

    fn lacks_nesting(&self) -> Option<String> {
        if self.device == Device::Works(true) {
            return None;
        }
        let reload = "modprobe -r kvm_intel && modprobe kvm_intel nested=1, while no virtual machine runs";
        Some(match self.nested.as_deref() {
            Some("N" | "0") => format!("kvm_intel is loaded with nested=N, so guests get no VMX: {reload}"),
            Some(value) => format!("KVM gives no VMX to guests, although kvm_intel says nested={value}: {reload}"),
            None => format!("KVM gives no VMX to guests, and kvm_intel is not loaded: {reload}"),
        })
    }
}

/// The first value of a field in /proc/cpuinfo.
fn field(cpuinfo: &str, name: &str) -> String {
    let fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    let found = fields.into_iter().find(|(key, _)| key.trim() == name);
    found.map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
}

fn look_at_device() -> Device {
    if !Path::new(DEVICE).exists() {
        return Device::Absent;
    }
    if let Err(error) = fs::OpenOptions::new().read(true).write(true).open(DEVICE) {
        return match error.kind() {
            ErrorKind::PermissionDenied => Device::Forbidden,
            _ => Device::Broken(error.to_string()),
        };
    }
    offers_vmx().map_or_else(|error| Device::Broken(format!("{error:#}")), Device::Works)
}

/// What KVM says that it can give to guests; `nested=0` takes VMX away from this list.
fn offers_vmx() -> Result<bool> {
    let kvm = Kvm::new().context("it cannot be opened")?;
    kvm.create_vm().context("a machine is refused")?;
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).context("it does not say what it supports")?;
    Ok(cpuid.as_slice().iter().any(|entry| entry.function == 1 && entry.ecx & CPUID_1_ECX_VMX != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine that lacks nothing.
    fn host() -> Host {
        Host {
            device: Device::Works(true),
            flags: "fpu vmx x2apic".into(),
            nested: Some("Y".into()),
            vendor: "GenuineIntel".into(),
        }
    }

    fn words(host: Host) -> String {
        host.lacks().expect("it lacks something")
    }

    #[test]
    fn an_intel_machine_whose_kvm_nests_lacks_nothing() {
        assert_eq!(host().lacks(), None);
        // The kernel decides, whatever the parameter looks like.
        assert_eq!(Host { nested: None, ..host() }.lacks(), None);
    }

    #[test]
    fn a_processor_without_vmx_is_named_with_what_helps() {
        let without = |flags: &str, vendor: &str| words(Host { flags: flags.into(), vendor: vendor.into(), ..host() });
        assert!(without("fpu svm", "AuthenticAMD").contains("AMD"));
        assert!(without("fpu hypervisor", "GenuineIntel").contains("its host"));
        assert!(without("fpu", "GenuineIntel").contains("firmware"));
        assert!(without("fpu", "CentaurHauls").contains("CentaurHauls"));
        // A flag is a whole word.
        assert!(without("vmxx avmx", "GenuineIntel").contains("no CPU flag vmx"));
    }

    #[test]
    fn a_missing_device_names_the_module_or_the_container() {
        let absent = Host { device: Device::Absent, ..host() };
        assert!(words(Host { nested: None, ..absent.clone() }).contains("modprobe kvm_intel"));
        assert!(words(absent).contains("container"));
    }

    #[test]
    fn a_device_that_may_not_be_opened_names_the_group_and_a_broken_one_the_reason() {
        assert!(words(Host { device: Device::Forbidden, ..host() }).contains("usermod -aG kvm"));
        assert!(words(Host { device: Device::Broken("EIO".into()), ..host() }).contains("EIO"));
    }

    #[test]
    fn kvm_without_nesting_names_the_parameter() {
        let flat = Host { device: Device::Works(false), ..host() };
        for value in ["N", "0"] {
            let words = words(Host { nested: Some(value.into()), ..flat.clone() });
            assert!(words.contains("nested=N") && words.contains("nested=1"), "{words}");
        }
        assert!(words(flat.clone()).contains("although kvm_intel says nested=Y"));
        assert!(words(Host { nested: None, ..flat }).contains("not loaded"));
    }

    #[test]
    fn the_processor_is_looked_at_before_the_device() {
        let nothing = Host { device: Device::Absent, flags: String::new(), nested: None, vendor: String::new() };
        assert!(words(nothing).contains("VT-x"));
    }

    #[test]
    fn cpuinfo_is_read() {
        let text = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu vmx\n\nprocessor\t: 1\nflags\t\t: fpu\n";
        assert_eq!((field(text, "flags"), field(text, "vendor_id")), ("fpu vmx".into(), "GenuineIntel".into()));
        assert_eq!(field("", "flags"), "");
    }

    #[test]
    fn this_machine_is_looked_at_without_a_panic() {
        let host = Host::look();
        assert_eq!(preflight().is_err(), host.lacks().is_some());
    }
}
