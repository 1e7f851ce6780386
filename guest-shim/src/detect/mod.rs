//! The bare-metal test: a single hint of a virtual machine is enough to fail it.
//!
//! The hints are those of Linux's `on_bare_metal` as proposed with device IMS in 2021 (Message-ID 1612385805-3412-12). Its
//! vendor strings were compared whole, so that "VMware, Inc." passed for bare metal; here they are compared word by word. A name that
//! stands on servers as well as on virtual machines ("Oracle Corporation", "Google") is no hint; product names are ("VirtualBox", "KVM").
//! What neither says anywhere that it is virtual nor shows it cannot be known: a hypervisor that hides itself and passes its host's
//! strings on.

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
    /// SMBIOS type 1, product name: Linux's `DMI_PRODUCT_NAME`.
    pub system_product: Option<&'a str>,
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
    /// The system's product name is that of a virtual machine.
    SystemProduct,
}

/// A name, as words.
enum Name {
    /// These words and no others.
    Whole(&'static [&'static str]),
    /// What begins with these words.
    Begins(&'static [&'static str]),
}
use Name::{Begins, Whole};

/// Vendors of virtual machines. "Microsoft Corporation" and "Oracle Corporation" are not among them: bare metal bears them as well.
const VENDORS: [Name; 11] = [
    Whole(&["qemu"]),
    Whole(&["bochs"]),
    Whole(&["kvm"]),
    Whole(&["xen"]),
    Begins(&["vmware"]),
    Whole(&["vmw"]),
    Begins(&["innotek", "gmbh"]),
    Begins(&["parallels"]),
    Whole(&["bhyve"]),
    Whole(&["cloud", "hypervisor"]),
    Whole(&["kubevirt"]),
];

/// Product names of virtual machines: most of those that systemd's `detect-virt` knows.
const PRODUCTS: [Name; 17] = [
    Whole(&["kvm"]),
    Whole(&["bhyve"]),
    Whole(&["bochs"]),
    Whole(&["qemu"]),
    // QEMU's: "Standard PC (Q35 + ICH9, 2009)".
    Begins(&["standard", "pc"]),
    Whole(&["virtualbox"]),
    Begins(&["vmware"]),
    // "VMware20,1".
    Begins(&["vmware7"]),
    Begins(&["vmware20"]),
    Whole(&["hvm", "domu"]),
    // Microsoft's.
    Whole(&["virtual", "machine"]),
    Begins(&["parallels"]),
    Begins(&["openstack"]),
    Whole(&["ahv"]),
    Begins(&["apple", "virtualization"]),
    Whole(&["cloud", "hypervisor"]),
    Whole(&["kubevirt"]),
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
        (facts.system_product.is_some_and(virtual_product), Hint::SystemProduct),
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

/// Whether the vendor makes virtual machines only.
fn vendor_of_virtual_machines(vendor: &str) -> bool {
    VENDORS.iter().any(|known| known.is(vendor))
}

/// Whether the product is a virtual machine.
fn virtual_product(product: &str) -> bool {
    PRODUCTS.iter().any(|known| known.is(product))
}

impl Name {
    /// Whether a text's words are this name, whatever their case and punctuation.
    fn is(&self, text: &str) -> bool {
        let mut words = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
        let (Whole(known) | Begins(known)) = self;
        let begins = known.iter().all(|known| words.next().is_some_and(|word| word.eq_ignore_ascii_case(known)));
        begins && (matches!(self, Begins(_)) || words.next().is_none())
    }
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
            "Xen Micro Systems",
            "Oracle Corporation",
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

    /// A machine of `real/smbios-strings.tsv`: whether it is virtual, its strings, and its three bits.
    fn real_machines() -> impl Iterator<Item = (bool, Vec<&'static str>, [bool; 3])> {
        let lines = include_str!("real/smbios-strings.tsv").lines().filter(|line| !line.starts_with('#'));
        lines.map(|line| {
            let fields: Vec<_> = line.split('\t').collect();
            let bits = [5, 6, 7].map(|bit| fields[bit] == "1");
            (fields[0] == "vm", fields[1..5].to_vec(), bits)
        })
    }

    fn facts<'a>(strings: &[&'a str], smbios: &'a [u8], [_, cpuid_hypervisor, caching_mode]: [bool; 3]) -> Facts<'a> {
        Facts {
            cpuid_hypervisor,
            smbios_bios: Some(smbios),
            system_vendor: Some(strings[0]),
            system_product: Some(strings[1]),
            viommu: ViommuHints { caching_mode, ..ViommuHints::default() },
        }
    }

    fn bios(virtual_machine: bool) -> [u8; 0x18] {
        let mut structure = [0; 0x18];
        structure[1] = 0x18;
        structure[SMBIOS_EXTENSION] = if virtual_machine { SMBIOS_VIRTUAL_MACHINE } else { 0 };
        structure
    }

    #[test]
    fn feature_bare_metal_test_real_machines_are_what_they_are() {
        let (mut metal, mut unknown) = (0, Vec::new());
        for (is_virtual, strings, bits) in real_machines() {
            let smbios = bios(bits[0]);
            let taken_for_virtual = !on_bare_metal(&facts(&strings, &smbios, bits));
            assert!(is_virtual || !taken_for_virtual, "{strings:?}");
            metal += u32::from(!is_virtual);
            unknown.extend((is_virtual && !taken_for_virtual).then_some(strings[1]));
        }
        assert_eq!(metal, 10);
        assert_eq!(unknown, ["System Product Name (hypervisor hidden for a graphics card)"], "it shows nothing at all");
    }

    #[test]
    fn a_hypervisor_that_hides_its_bits_is_known_by_its_names() {
        let names = |(_, strings, _): &(bool, Vec<&'static str>, _)| {
            let smbios = bios(false);
            on_bare_metal(&facts(strings, &smbios, [false; 3]))
        };
        let hidden: Vec<_> =
            real_machines().filter(|machine| machine.0).filter(names).map(|(_, strings, _)| strings[1]).collect();
        // What rents machines and virtual machines by one name, or names itself as it likes.
        assert_eq!(
            hidden,
            [
                "m5.large",
                "c7i.large",
                "Google Compute Engine",
                "Alibaba Cloud ECS",
                "CVM",
                "Droplet",
                "vServer",
                "VPS",
                "20N2S00600",
                "PowerEdge R640 (strings of the host passed on)",
                "System Product Name (hypervisor hidden for a graphics card)"
            ]
        );
    }

    #[test]
    fn products_of_bare_metal_are_not_taken_for_others() {
        for product in [
            "",
            "SUN FIRE X4170 M3",
            "ORACLE SERVER X9-2",
            "KVM Switch Station",
            "Standard Server",
            "Virtual Desk",
            "MacPro7,1",
        ] {
            assert!(!virtual_product(product), "{product}");
        }
        let server = Facts {
            system_vendor: Some("Oracle Corporation"),
            system_product: Some("ORACLE SERVER X9-2"),
            ..Facts::default()
        };
        assert!(on_bare_metal(&server));
        assert!(!on_bare_metal(&Facts { system_product: Some("VirtualBox"), ..server }));
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
            (Facts { system_product: Some("KVM"), ..bare }, Hint::SystemProduct),
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

    /// The names in C, as `guest-shim/linux/policy.c` writes them, `*` behind those that may go on.
    fn names_in_c(array: &str) -> Vec<&'static str> {
        let source = include_str!("../../linux/policy.c");
        let (_, list) = source.split_once(&format!("{array}[] = {{")).unwrap();
        let (list, _) = list.split_once("};").unwrap();
        list.split('"').skip(1).step_by(2).collect()
    }

    #[test]
    fn the_linux_module_knows_the_same_names() {
        let text = |name: &Name| match name {
            Whole(words) => words.join(" "),
            Begins(words) => words.join(" ") + "*",
        };
        assert_eq!(names_in_c("vendors"), VENDORS.iter().map(text).collect::<Vec<_>>());
        assert_eq!(names_in_c("products"), PRODUCTS.iter().map(text).collect::<Vec<_>>());
    }

    #[test]
    fn the_hypervisor_bit_is_bit_31_of_ecx() {
        assert!(cpuid_hypervisor_bit(&FakeCpuid::new().with(1, [0, 0, 1 << 31, 0])));
        assert!(!cpuid_hypervisor_bit(&FakeCpuid::new().with(1, [!0, !0, !(1 << 31), !0])));
    }
}
