//! PCI configuration space: functions, BARs, capabilities.

use core::fmt;

/// A function: bus 15:8, device 7:3, function 2:0. As a number it is also the requester ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function(pub u16);

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.0 >> 8, self.0 >> 3 & 0x1f, self.0 & 7)
    }
}

/// Access to configuration space, by dwords.
pub trait ConfigSpace {
    /// The last bus that is worth a look.
    fn last_bus(&self) -> u8;
    /// Reads the dword at `offset`, a multiple of 4.
    fn read(&self, function: Function, offset: u16) -> u32;
    /// Writes it.
    fn write(&self, function: Function, offset: u16, value: u32);
}

const COMMAND: u16 = 0x04;
const COMMAND_MEMORY: u32 = 1 << 1;
const COMMAND_BUS_MASTER: u32 = 1 << 2;
const STATUS_CAPABILITIES: u32 = 1 << 20;
const BAR0: u16 = 0x10;
/// The subsystem's vendor ID and its ID.
const SUBSYSTEM: u16 = 0x2c;
const CAPABILITIES: u16 = 0x34;
const EXTENDED_CAPABILITIES: u16 = 0x100;
/// The most capabilities that fit a list: beyond them it is a ring.
const MAX_CAPABILITIES: usize = 48;
const MAX_EXTENDED_CAPABILITIES: usize = 480;

/// MSI-X (PCIe 7.7.2).
pub const CAPABILITY_MSIX: u8 = 0x11;
/// In the first dword of the capability: MSI-X is enabled.
pub const MSIX_ENABLE: u32 = 1 << 31;
/// There as well: all vectors are masked.
pub const MSIX_FUNCTION_MASK: u32 = 1 << 30;
/// In the capability: where the table is, and in which BAR.
pub const MSIX_TABLE: u16 = 4;
/// The same of the pending bits.
pub const MSIX_PENDING_BITS: u16 = 8;
/// PCI Express (PCIe 7.5.3): device capabilities and device control, and what they have for a function level reset.
const CAPABILITY_EXPRESS: u8 = 0x10;
const DEVICE_CAPABILITIES: u16 = 4;
const CAN_RESET: u32 = 1 << 28;
const DEVICE_CONTROL: u16 = 8;
const INITIATE_RESET: u32 = 1 << 15;
/// Designated vendor-specific (PCIe 7.9.6).
const EXTENDED_CAPABILITY_DVSEC: u16 = 0x23;
/// DVSEC of Intel's Scalable I/O Virtualization: vendor and ID.
const SIOV_VENDOR: u32 = 0x8086;
const SIOV_ID: u32 = 5;
const SIOV_CAPABILITIES: u16 = 0x14;

/// How many entries an MSI-X table has, by the first dword of the capability.
pub const fn msix_entries(first: u32) -> u16 {
    (first >> 16 & 0x7ff) as u16 + 1
}

/// All places of bus 0.
pub fn on_bus_0() -> impl Iterator<Item = Function> {
    (0..=0xff).map(Function)
}

/// The first function with this vendor and one of these device IDs.
pub fn find(config: &impl ConfigSpace, vendor: u16, devices: &[u16]) -> Option<Function> {
    find_all(config, vendor, devices).next()
}

/// All of them.
pub fn find_all(config: &impl ConfigSpace, vendor: u16, devices: &[u16]) -> impl Iterator<Item = Function> {
    let functions = (0..=u16::from(config.last_bus()) << 8 | 0xff).map(Function);
    functions.filter(move |&function| {
        let id = config.read(function, 0);
        id as u16 == vendor && devices.contains(&((id >> 16) as u16))
    })
}

/// Its subsystem ID.
pub fn subsystem(config: &impl ConfigSpace, function: Function) -> u16 {
    (config.read(function, SUBSYSTEM) >> 16) as u16
}

/// Lets the function answer in memory and send requests.
pub fn enable(config: &impl ConfigSpace, function: Function) {
    // Status, the upper half, has bits that a 1 clears: write zeros there.
    let command = config.read(function, COMMAND) & 0xffff;
    config.write(function, COMMAND, command | COMMAND_MEMORY | COMMAND_BUS_MASTER);
}

/// Takes from the function the right to send requests.
pub fn disable_bus_master(config: &impl ConfigSpace, function: Function) {
    let command = config.read(function, COMMAND) & 0xffff;
    config.write(function, COMMAND, command & !COMMAND_BUS_MASTER);
}

/// Device control of a function that has function level reset: where it is, and what is in it.
pub fn device_control(config: &impl ConfigSpace, function: Function) -> Option<(u16, u32)> {
    let express = capability(config, function, CAPABILITY_EXPRESS)?;
    let at = express + DEVICE_CONTROL;
    let can_reset = config.read(function, express + DEVICE_CAPABILITIES) & CAN_RESET != 0;
    can_reset.then(|| (at, config.read(function, at) & 0xffff))
}

/// Begins a function level reset (PCIe 6.6.2). `None` where the function has none.
pub fn initiate_reset(config: &impl ConfigSpace, function: Function) -> Option<()> {
    let (at, control) = device_control(config, function)?;
    config.write(function, at, control | INITIATE_RESET);
    Some(())
}

/// Whether nothing is left of what a driver has set: the function neither answers nor sends, MSI-X is off, and the bit that resets reads
/// as zero.
pub fn is_as_after_reset(config: &impl ConfigSpace, function: Function) -> bool {
    let enabled = COMMAND_MEMORY | COMMAND_BUS_MASTER;
    let msix = capability(config, function, CAPABILITY_MSIX).map_or(0, |at| config.read(function, at));
    config.read(function, COMMAND) & enabled == 0
        && msix & (MSIX_ENABLE | MSIX_FUNCTION_MASK) == 0
        && device_control(config, function).is_some_and(|(_, control)| control & INITIATE_RESET == 0)
}

/// The address of memory BAR `n`; `None` when it is I/O or was not placed.
pub fn bar(config: &impl ConfigSpace, function: Function, n: u16) -> Option<u64> {
    let low = config.read(function, BAR0 + 4 * n);
    let high = match low & 0b111 {
        0b000 => 0,
        0b100 => config.read(function, BAR0 + 4 * n + 4),
        _ => return None,
    };
    let address = u64::from(high) << 32 | u64::from(low & !0xf);
    (address != 0).then_some(address)
}

/// Where the capability with this ID is.
pub fn capability(config: &impl ConfigSpace, function: Function, id: u8) -> Option<u16> {
    if config.read(function, COMMAND) & STATUS_CAPABILITIES == 0 {
        return None;
    }
    let mut at = config.read(function, CAPABILITIES) as u16 & 0xfc;
    for _ in 0..MAX_CAPABILITIES {
        if at < 0x40 {
            return None;
        }
        let [found, next, ..] = config.read(function, at).to_le_bytes();
        if found == id {
            return Some(at);
        }
        at = u16::from(next & 0xfc);
    }
    None
}

/// Whether a DVSEC says that the function has an interrupt message store (Scalable IOV 3.7). `config` must reach the extended
/// space: ECAM does, the I/O ports do not.
pub fn says_ims(config: &impl ConfigSpace, function: Function) -> bool {
    let mut at = EXTENDED_CAPABILITIES;
    for _ in 0..MAX_EXTENDED_CAPABILITIES {
        let header = config.read(function, at);
        if header == 0 || header == !0 {
            return false;
        }
        let is_siov = header as u16 == EXTENDED_CAPABILITY_DVSEC
            && config.read(function, at + 4) & 0xffff == SIOV_VENDOR
            && config.read(function, at + 8) & 0xffff == SIOV_ID;
        if is_siov {
            return config.read(function, at + SIOV_CAPABILITIES) & 1 != 0;
        }
        at = (header >> 20) as u16 & 0xffc;
        if at < EXTENDED_CAPABILITIES {
            return false;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::RefCell;

    /// One function, 6a:01.0; the others read all ones.
    struct Fake(RefCell<Vec<u32>>);

    const DSA: Function = Function(0x6a08);

    impl Fake {
        fn new(dwords: &[(u16, u32)]) -> Self {
            let mut space = vec![0; 1024];
            for &(at, value) in dwords {
                space[usize::from(at) / 4] = value;
            }
            Self(RefCell::new(space))
        }
    }

    impl ConfigSpace for Fake {
        fn last_bus(&self) -> u8 {
            0x6a
        }

        fn read(&self, function: Function, offset: u16) -> u32 {
            if function == DSA { self.0.borrow()[usize::from(offset) / 4] } else { !0 }
        }

        fn write(&self, function: Function, offset: u16, value: u32) {
            if function == DSA {
                self.0.borrow_mut()[usize::from(offset) / 4] = value;
            }
        }
    }

    #[test]
    fn a_function_is_found_by_its_id_and_named_as_usual() {
        let config = Fake::new(&[(0, 0x0b25_8086)]);
        assert_eq!(find(&config, 0x8086, &[0x11fb, 0x0b25]), Some(DSA));
        assert_eq!((find(&config, 0x8086, &[0x0b26]), find(&config, 0x8087, &[0x0b25])), (None, None));
        assert_eq!(DSA.to_string(), "6a:01.0");
    }

    #[test]
    fn enabling_writes_no_status_bit_back() {
        let config = Fake::new(&[(COMMAND, 0xf910_0400)]);
        enable(&config, DSA);
        assert_eq!(config.read(DSA, COMMAND), 0x0406);
    }

    #[test]
    fn a_function_is_reset_only_where_it_says_that_it_can_be() {
        let capabilities = [(COMMAND, 0x10_0006), (0x34, 0x40), (0x40, 0x0002_0010), (0x48, 0x0009_2810)];
        let config = Fake::new(&capabilities);
        assert_eq!((initiate_reset(&config, DSA), config.read(DSA, 0x48)), (None, 0x0009_2810));
        let config = Fake::new(&[&capabilities[..], &[(0x44, CAN_RESET)]].concat());
        assert!(!is_as_after_reset(&config, DSA), "it is enabled");
        assert_eq!((initiate_reset(&config, DSA), config.read(DSA, 0x48)), (Some(()), 0xa810));
        config.write(DSA, COMMAND, 0x10_0000);
        assert!(!is_as_after_reset(&config, DSA), "the bit is still there");
        config.write(DSA, 0x48, 0x2810);
        assert!(is_as_after_reset(&config, DSA));
    }

    #[test]
    fn bars_of_both_widths_are_read_and_others_refused() {
        let config = Fake::new(&[(0x10, 0xfe00_0008), (0x14, 0xc001), (0x18, 0x8000_000c), (0x1c, 1), (0x20, 0)]);
        assert_eq!(bar(&config, DSA, 0), Some(0xfe00_0000), "prefetchable");
        let config = Fake::new(&[(0x10, 0xfe00_0000), (0x14, 0xc001), (0x18, 0x8000_000c), (0x1c, 1), (0x20, 0)]);
        assert_eq!(bar(&config, DSA, 0), Some(0xfe00_0000));
        assert_eq!(bar(&config, DSA, 1), None);
        assert_eq!(bar(&config, DSA, 2), Some(0x1_8000_0000));
        assert_eq!(bar(&config, DSA, 4), None);
    }

    #[test]
    fn capabilities_are_found_and_a_ring_of_them_ends() {
        let config = Fake::new(&[(COMMAND, STATUS_CAPABILITIES), (CAPABILITIES, 0x40), (0x40, 0x8010), (0x80, 0x4011)]);
        assert_eq!(capability(&config, DSA, CAPABILITY_MSIX), Some(0x80));
        assert_eq!(capability(&config, DSA, 5), None);
        assert_eq!(capability(&Fake::new(&[]), DSA, CAPABILITY_MSIX), None);
    }

    #[test]
    fn the_dvsec_is_found_behind_others_and_its_bit_decides() {
        let dvsec = |bit| {
            Fake::new(&[(0x100, 0x1201_001b), (0x120, 0x0001_0023), (0x124, 0x0180_8086), (0x128, 5), (0x134, bit)])
        };
        assert!(says_ims(&dvsec(1), DSA));
        assert!(!says_ims(&dvsec(0), DSA));
        assert!(!says_ims(&Fake::new(&[(0x100, 0x1001_001b)]), DSA), "a ring");
        assert!(!says_ims(&Fake::new(&[]), DSA));
    }
}
