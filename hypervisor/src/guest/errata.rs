//! Functions whose hardware has errata that make them unsafe in the hands of a guest, whatever the remapping unit does.

/// A published erratum.
#[derive(Debug, PartialEq, Eq)]
pub struct Erratum {
    /// The name by which the maker published it: a guest's option `unsafe=` accepts it by this name.
    pub name: &'static str,
    /// Vendor ID of the functions that have it.
    vendor: u16,
    /// Device IDs of those functions.
    devices: &'static [u16],
    /// What a guest with such a function can do.
    pub what: &'static str,
}

/// The functions on Linux' list of those that VFIO gives to nobody (`vfio_pci_dev_in_denylist`).
static ERRATA: [Erratum; 2] = [
    // DSA and IAX of Sapphire and Emerald Rapids. 11fb and 1212 are free of it.
    Erratum {
        name: "INTEL-SA-01084",
        vendor: 0x8086,
        devices: &[0x0b25, 0x0cfe],
        what: "who may submit work to it can gain privileges (CVE-2024-21823)",
    },
    // QuickAssist C3xxx, C62x and DH895xCC with their virtual functions: errata QATE-39220 and QATE-7495 of Intel's release notes.
    Erratum {
        name: "QATE-39220",
        vendor: 0x8086,
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
