//! The bare-metal test: a single hint of a virtual machine is enough to fail it.
//!
//! The hints are those of Linux's `on_bare_metal` as proposed with device IMS in 2021 (Message-ID 1612385805-3412-12). Its
//! vendor strings were compared whole, so that "VMware, Inc." passed for bare metal; here they are compared word by word.

pub mod smbios;

use crate::discover::Cpuid;

/// What the operating system knows of the machine. What it does not know stays at its default.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts<'a> {
    /// CPUID leaf 1, ECX bit 31: [`cpuid_hypervisor_bit`].
    pub cpuid_hypervisor: bool,
    /// The SMBIOS structure of type 0 (BIOS information), from its first byte.
    pub smbios_bios: Option<&'a [u8]>,
    /// SMBIOS type 1, manufacturer: Linux's `DMI_SYS_VENDOR`.
    pub system_vendor: Option<&'a str>,
    /// Signs of an emulated IOMMU.
    pub viommu: ViommuHints,
}

/// Signs of an emulated IOMMU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ViommuHints {
    /// VT-d CAP.CM, caching mode (VT-d 11.4.2).
    pub caching_mode: bool,
    /// AMD's NpCache, not-present entries are cached.
    pub np_cache: bool,
    /// A virtio-iommu device.
    pub virtio_iommu: bool,
}

impl ViommuHints {
    /// Looks at the capability register of a VT-d unit (11.4.2): caching mode is bit 7.
    pub const fn see_vtd(&mut self, cap: u64) {
        self.caching_mode |= cap & 1 << 7 != 0;
    }

    /// Looks at the first dword of an AMD IOMMU's PCI capability (AMD I/O virtualisation specification, 3.3.1): NpCache is bit 26.
    pub const fn see_amd(&mut self, capability: u32) {
        self.np_cache |= capability & 1 << 26 != 0;
    }

    /// Looks at a PCI function: a virtio-iommu is device 0x1057 of vendor 0x1af4 (virtio 1.2, 4.1.2).
    pub const fn see_pci(&mut self, vendor: u16, device: u16) {
        self.virtio_iommu |= vendor == 0x1af4 && device == 0x1057;
    }
}

/// Why a machine is taken for a virtual one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint {
    /// CPUID says that there is a hypervisor.
    CpuidHypervisor,
    /// SMBIOS says "virtual machine".
    SmbiosVirtualMachine,
    /// The VT-d unit is in caching mode.
    CachingMode,
    /// The AMD IOMMU caches not-present entries.
    NpCache,
    /// There is a virtio-iommu.
    VirtioIommu,
    /// The system's vendor makes virtual machines only.
    SystemVendor,
}

/// Vendors of virtual machines, as words. "Microsoft Corporation" is not among them: bare metal bears it as well.
const VENDORS: [&[&str]; 10] = [
    &["qemu"],
    &["bochs"],
    &["kvm"],
    &["xen"],
    &["vmware"],
    &["vmw"],
    &["innotek", "gmbh"],
    &["oracle", "corporation"],
    &["parallels"],
    &["bhyve"],
];

/// SMBIOS type 0: offset of characteristics extension byte 2, and its bit "the table describes a virtual machine"
/// (SMBIOS 7.1.2.2).
const SMBIOS_EXTENSION: usize = 0x13;
const SMBIOS_VIRTUAL_MACHINE: u8 = 1 << 4;

/// Whether nothing hints at a virtual machine.
pub fn on_bare_metal(facts: &Facts) -> bool {
    first_hint(facts).is_none()
}

/// The first hint that this is a virtual machine.
pub fn first_hint(facts: &Facts) -> Option<Hint> {
    hints(facts).next()
}

/// Every hint that this is a virtual machine.
pub fn hints(facts: &Facts) -> impl Iterator<Item = Hint> + use<> {
    [
        (facts.cpuid_hypervisor, Hint::CpuidHypervisor),
        (facts.smbios_bios.is_some_and(smbios_virtual_machine), Hint::SmbiosVirtualMachine),
        (facts.viommu.caching_mode, Hint::CachingMode),
        (facts.viommu.np_cache, Hint::NpCache),
        (facts.viommu.virtio_iommu, Hint::VirtioIommu),
        (facts.system_vendor.is_some_and(vendor_of_virtual_machines), Hint::SystemVendor),
    ]
    .into_iter()
    .filter_map(|(seen, hint)| seen.then_some(hint))
}

/// Whether CPUID says that there is a hypervisor (leaf 1, ECX bit 31).
pub fn cpuid_hypervisor_bit(cpuid: &impl Cpuid) -> bool {
    cpuid.cpuid(1).ecx & 1 << 31 != 0
}

/// Whether a type 0 structure says "virtual machine". Its length byte decides whether the bit is there at all.
fn smbios_virtual_machine(structure: &[u8]) -> bool {
    let length = structure.get(1).copied().map_or(0, usize::from);
    length > SMBIOS_EXTENSION && structure.get(SMBIOS_EXTENSION).is_some_and(|byte| byte & SMBIOS_VIRTUAL_MACHINE != 0)
}

/// Whether the vendor's words begin with those of a maker of virtual machines.
fn vendor_of_virtual_machines(vendor: &str) -> bool {
    VENDORS.iter().any(|known| {
        let mut words = vendor.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
        known.iter().all(|known| words.next().is_some_and(|word| word.eq_ignore_ascii_case(known)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeCpuid;

    #[test]
    fn feature_bare_metal_test_vendors_of_virtual_machines_are_known_whatever_their_punctuation() {
        for vendor in [
            "QEMU",
            "Bochs",
            "KVM",
            "Xen",
            "VMware",
            "VMW",
            "VMware Inc.",
            "VMware, Inc.",
            "  vmware,inc",
            "innotek GmbH",
            "innotek, GmbH",
            "Oracle Corporation",
            "Parallels",
            "Parallels Software International Inc.",
            "Parallels International GmbH.",
            "BHYVE",
            "bhyve",
        ] {
            assert!(vendor_of_virtual_machines(vendor), "{vendor}");
        }
    }

    #[test]
    fn vendors_of_bare_metal_are_not_taken_for_others() {
        for vendor in [
            "",
            "Dell Inc.",
            "HP",
            "LENOVO",
            "Intel Corporation",
            "Supermicro",
            "Xenith Computers",
            "Kvmtech",
            "Oracle",
            "innotek",
            "GIGABYTE",
            "Microsoft Corporation",
            "To Be Filled By O.E.M.",
            "Made for VMware",
            // Who makes machines and rents virtual ones bears one name for both: no hint.
            "Amazon EC2",
            "Google",
            "Alibaba Cloud",
            "Red Hat",
            "Nutanix",
            "HPE",
            "Hewlett-Packard",
            "HITACHI",
            "FUJITSU",
            "ASUSTeK COMPUTER INC.",
            "Gigabyte Technology Co., Ltd.",
            "System manufacturer",
        ] {
            assert!(!vendor_of_virtual_machines(vendor), "{vendor}");
        }
    }

    #[test]
    fn the_smbios_bit_counts_only_when_the_structure_reaches_it() {
        let mut structure = [0u8; 0x18];
        structure[SMBIOS_EXTENSION] = SMBIOS_VIRTUAL_MACHINE;
        for (length, expected) in [(0x18, true), (0x14, true), (0x13, false), (0x12, false), (0, false)] {
            structure[1] = length;
            assert_eq!(smbios_virtual_machine(&structure), expected, "length {length:#x}");
        }
        structure[1] = 0x18;
        assert!(!smbios_virtual_machine(&structure[..SMBIOS_EXTENSION]), "cut short");
        structure[SMBIOS_EXTENSION] = !SMBIOS_VIRTUAL_MACHINE;
        assert!(!smbios_virtual_machine(&structure), "the other bits");
    }

    #[test]
    fn feature_bare_metal_test_any_one_hint_is_enough_and_none_is_bare_metal() {
        let mut smbios = [0u8; 0x18];
        smbios[1] = 0x18;
        let bare = Facts { smbios_bios: Some(&smbios), system_vendor: Some("Dell Inc."), ..Facts::default() };
        assert!(on_bare_metal(&bare));
        assert!(on_bare_metal(&Facts::default()));
        let mut virtual_smbios = smbios;
        virtual_smbios[SMBIOS_EXTENSION] = SMBIOS_VIRTUAL_MACHINE;
        let viommu = ViommuHints::default();
        for (facts, hint) in [
            (Facts { cpuid_hypervisor: true, ..bare }, Hint::CpuidHypervisor),
            (Facts { smbios_bios: Some(&virtual_smbios), ..bare }, Hint::SmbiosVirtualMachine),
            (Facts { viommu: ViommuHints { caching_mode: true, ..viommu }, ..bare }, Hint::CachingMode),
            (Facts { viommu: ViommuHints { np_cache: true, ..viommu }, ..bare }, Hint::NpCache),
            (Facts { viommu: ViommuHints { virtio_iommu: true, ..viommu }, ..bare }, Hint::VirtioIommu),
            (Facts { system_vendor: Some("VMware, Inc."), ..bare }, Hint::SystemVendor),
        ] {
            assert_eq!(first_hint(&facts), Some(hint));
        }
    }

    #[test]
    fn emulated_iommus_are_known_by_one_bit_or_one_id() {
        let seen = |look: fn(&mut ViommuHints)| {
            let mut hints = ViommuHints::default();
            look(&mut hints);
            [hints.caching_mode, hints.np_cache, hints.virtio_iommu]
        };
        assert_eq!(seen(|hints| hints.see_vtd(1 << 7)), [true, false, false]);
        assert_eq!(seen(|hints| hints.see_vtd(!(1 << 7))), [false; 3]);
        assert_eq!(seen(|hints| hints.see_amd(1 << 26)), [false, true, false]);
        assert_eq!(seen(|hints| hints.see_amd(!(1 << 26))), [false; 3]);
        assert_eq!(seen(|hints| hints.see_pci(0x1af4, 0x1057)), [false, false, true]);
        assert_eq!(seen(|hints| hints.see_pci(0x1af4, 0x1041)), [false; 3]);
        assert_eq!(seen(|hints| hints.see_pci(0x8086, 0x1057)), [false; 3]);
    }

    #[test]
    fn the_hypervisor_bit_is_bit_31_of_ecx() {
        assert!(cpuid_hypervisor_bit(&FakeCpuid::new().with(1, [0, 0, 1 << 31, 0])));
        assert!(!cpuid_hypervisor_bit(&FakeCpuid::new().with(1, [!0, !0, !(1 << 31), !0])));
    }
}
