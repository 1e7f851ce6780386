//! Functions with known deviations from the specifications, by their IDs: with other registers in place of BARs, with a remapping unit that
//! can hang, or unsafe for assignment whatever the remapping unit does.
#![forbid(unsafe_code)]

const INTEL: u16 = 0x8086;

/// Functions of Intel's that have other registers where BARs belong, which must not be written for a trial: Linux, `pci_invalid_bar`
/// (arch/x86/pci/fixup.c): Xeon E5 v3, erratum HSE43; Xeon E5 v4, erratum BDF2; C620's MROMs.
const NO_BARS: [u16; 8] = [0x2fc0, 0x6f60, 0x6fa0, 0x6fc0, 0xa1ec, 0xa1ed, 0xa26c, 0xa26d];

/// Upper bytes of the device IDs of Intel's graphics whose remapping unit can hang when translation is switched off: Linux,
/// `quirk_igfx_skip_te_disable` (drivers/iommu/intel/iommu.c).
const HANGING_GRAPHICS: [u8; 7] = [0x45, 0x46, 0x4c, 0x4e, 0x8a, 0x98, 0x9a];

/// Whether a function with these IDs has no BARs where BARs belong.
pub fn has_other_registers(vendor: u16, device: u16) -> bool {
    vendor == INTEL && NO_BARS.contains(&device)
}

/// Whether the remapping unit of a display controller with these IDs must not stop translating once it does.
pub fn must_stay_translated(vendor: u16, device: u16) -> bool {
    let [generation, _] = device.to_be_bytes();
    vendor == INTEL && HANGING_GRAPHICS.contains(&generation)
}

/// A published erratum.
#[derive(Debug, PartialEq, Eq)]
pub struct Erratum {
    /// The name by which the maker published it: a guest's option `unsafe=` accepts it by this name.
    pub name: &'static str,
    /// Vendor ID of the functions that have it.
    vendor: u16,
    /// Device IDs of those functions.
    devices: &'static [u16],
    /// What a guest with such a function could do.
    pub what: &'static str,
}

/// Functions that Linux's VFIO refuses to assign (`vfio_pci_dev_in_denylist`).
static ERRATA: [Erratum; 2] = [
    // DSA and IAX of Sapphire and Emerald Rapids. 11fb and 1212 are free of it.
    Erratum {
        name: "INTEL-SA-01084",
        vendor: INTEL,
        devices: &[0x0b25, 0x0cfe],
        what: "who may submit work to it can gain privileges (CVE-2024-21823)",
    },
    // QuickAssist C3xxx, C62x and DH895xCC with their virtual functions: errata QATE-39220 and QATE-7495 of Intel's release notes.
    Erratum {
        name: "QATE-39220",
        vendor: INTEL,
        devices: &[0x19e2, 0x19e3, 0x37c8, 0x37c9, 0x0435, 0x0443],
        what: "a malformed request to it can hang the machine",
    },
];

/// The erratum of the functions with these IDs.
pub fn of(vendor: u16, device: u16) -> Option<&'static Erratum> {
    ERRATA.iter().find(|erratum| erratum.vendor == vendor && erratum.devices.contains(&device))
}

/// The erratum of this name.
pub fn named(name: &str) -> Option<&'static Erratum> {
    ERRATA.iter().find(|erratum| erratum.name == name)
}

/// The names of all errata, for messages.
pub fn names() -> impl Iterator<Item = &'static str> {
    ERRATA.iter().map(|erratum| erratum.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dsas_before_the_mended_ones_are_known_as_unsafe() {
        assert_eq!(of(0x8086, 0x0b25).map(|erratum| erratum.name), Some("INTEL-SA-01084"));
        for mended in [0x11fb, 0x1212] {
            assert_eq!(of(0x8086, mended), None);
        }
        assert_eq!(of(0x1af4, 0x0b25), None, "another maker's function");
    }

    #[test]
    fn no_function_is_in_two_errata_and_every_name_finds_its_own() {
        for erratum in &ERRATA {
            assert_eq!(named(erratum.name), Some(erratum));
            for &device in erratum.devices {
                assert_eq!(of(erratum.vendor, device), Some(erratum));
            }
        }
        assert_eq!(named("INTEL"), None);
    }
}
