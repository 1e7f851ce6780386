//! The model for QEMU: regions, and the device's requests to QEMU.

use std::collections::VecDeque;

use dsa_model::spec::{BAR2_SIZE, MSIX_CAPABILITY};
use dsa_model::{Config, Dsa, Fault, Upstream};

use crate::memory::{DmaMap, Missing};
use crate::wire::{self, Errno, Place};

/// `VFIO_PCI_*_REGION_INDEX` (`linux/vfio.h`).
const REGION_BAR0: u32 = 0;
const REGION_BAR2: u32 = 2;
const REGION_CONFIG: u32 = 7;
/// `VFIO_PCI_NUM_REGIONS` and `VFIO_PCI_NUM_IRQS`.
pub const REGIONS: u32 = 9;
/// Kinds of interrupts. The device has none of any kind that the client would signal: it sends its messages itself.
pub const IRQS: u32 = 5;

/// Bytes of configuration space.
const CONFIG_SIZE: u64 = 4096;
/// The widest load and store of registers.
const WIDEST: usize = 8;
/// The most bytes that one store to a portal has.
const DESCRIPTOR: usize = 64;

/// Where messages of interrupts go (SDM vol. 3, "Message Address Register Format").
const MESSAGES: std::ops::RangeInclusive<u64> = 0xfee0_0000..=0xfeef_ffff;
/// The ID of a vendor-specific capability, which QEMU leaves to the device.
const VENDOR_SPECIFIC: u8 = 0x09;

/// The device and what it wants to say.
pub struct Device {
    dsa: Dsa,
    memory: DmaMap,
    requests: Requests,
    /// QEMU has made its own picture of the capabilities.
    realized: bool,
}

/// What the device asks of the client, whole messages in their order.
#[derive(Default)]
pub struct Requests {
    next: u16,
    waiting: VecDeque<Vec<u8>>,
}

impl Requests {
    fn write(&mut self, address: u64, data: &[u8]) {
        let message = wire::dma_write(self.next, address, data);
        self.push(message);
    }

    fn read(&mut self, address: u64, count: usize) {
        let message = wire::dma_read(self.next, address, count);
        self.push(message);
    }

    fn push(&mut self, message: Vec<u8>) {
        self.next = self.next.wrapping_add(1);
        self.waiting.push_back(message);
    }
}

/// The way upstream. Nothing here waits for the client: it may be waiting for us, and holds the lock that our request needs.
///
/// Memory is written and read directly. What is not mapped is a fault for the device at once, and is asked for as well, so that
/// the client's remapping unit refuses it and records the fault. (A translation that appears before the client looks makes a late
/// access of it.) What only the client can reach can be written, and reading it is a fault. Messages are writes that want no answer.
struct Bus<'a> {
    memory: &'a DmaMap,
    requests: &'a mut Requests,
}

impl Upstream for Bus<'_> {
    fn read(&mut self, pasid: Option<u32>, address: u64, buf: &mut [u8]) -> Result<(), Fault> {
        // The protocol's requests have no PASID.
        if pasid.is_some() {
            return Err(Fault);
        }
        self.memory.read(address, buf).map_err(|missing| {
            if missing == Missing::NotMapped {
                self.requests.read(address, buf.len());
            }
            Fault
        })
    }

    fn write(&mut self, pasid: Option<u32>, address: u64, data: &[u8]) -> Result<(), Fault> {
        if pasid.is_some() {
            return Err(Fault);
        }
        if MESSAGES.contains(&address) {
            // A message is an aligned dword. It is posted: the device never learns what became of it.
            if data.len() != 4 || !address.is_multiple_of(4) {
                return Err(Fault);
            }
            self.requests.write(address, data);
            return Ok(());
        }
        let written = self.memory.write(address, data);
        if written.is_err() {
            self.requests.write(address, data);
        }
        if written == Err(Missing::NotMapped) { Err(Fault) } else { Ok(()) }
    }
}

impl Device {
    /// A device after power-on.
    pub fn new(config: Config) -> Self {
        Self { dsa: Dsa::new(config), memory: DmaMap::default(), requests: Requests::default(), realized: false }
    }

    /// The model.
    pub fn dsa(&self) -> &Dsa {
        &self.dsa
    }

    /// The client's memory.
    pub fn memory(&mut self) -> &mut DmaMap {
        &mut self.memory
    }

    /// What it asks of the client next.
    pub fn take_request(&mut self) -> Option<Vec<u8>> {
        self.requests.waiting.pop_front()
    }

    /// Back to the state after power-on. QEMU does this for the first time when it has read the capabilities.
    pub fn reset(&mut self) {
        self.realized = true;
        self.dsa.reset();
    }

    /// One round of the engines. Says whether more is waiting.
    pub fn work(&mut self) -> bool {
        let mut bus = Bus { memory: &self.memory, requests: &mut self.requests };
        self.dsa.work(&mut bus)
    }

    /// Bytes of a region; none, where the device has no such region.
    pub fn region_size(&self, region: u32) -> u64 {
        match region {
            REGION_BAR0 => self.dsa.config().layout.bytes.into(),
            REGION_BAR2 => BAR2_SIZE.into(),
            REGION_CONFIG => CONFIG_SIZE,
            _ => 0,
        }
    }

    fn within(&self, place: Place, count: usize) -> Result<(), Errno> {
        let end = place.offset.checked_add(count as u64);
        let inside = end.is_some_and(|end| end <= self.region_size(place.region));
        if count > 0 && inside { Ok(()) } else { Err(Errno::Invalid) }
    }

    /// A load.
    pub fn load(&self, place: Place, count: usize) -> Result<Vec<u8>, Errno> {
        self.within(place, count)?;
        match place.region {
            REGION_CONFIG => Ok((place.offset..).take(count).map(|at| self.config_byte(at)).collect()),
            REGION_BAR0 if is_register(count) => {
                let value = self.dsa.bar0_read(place.offset, count).to_le_bytes();
                Ok(value[..count].to_vec())
            }
            // Portals are for stores only.
            REGION_BAR2 => Ok(vec![0xff; count]),
            _ => Err(Errno::Invalid),
        }
    }

    /// A byte of configuration space.
    ///
    /// QEMU keeps a device's MSI-X table to itself, masks and messages included, when it finds the capability; and this table has
    /// to be the model's. So while QEMU makes its picture, before the first reset, the capability has another ID. From then
    /// on it is what it is: QEMU passes reads of it on. (QEMU 11.1, `vfio_pci_add_capabilities` and `vfio_pci_read_config`.)
    fn config_byte(&self, at: u64) -> u8 {
        if !self.realized && at == u64::from(MSIX_CAPABILITY) {
            return VENDOR_SPECIFIC;
        }
        self.dsa.config_read(at as u16, 1) as u8
    }

    /// A store.
    pub fn store(&mut self, place: Place, data: &[u8]) -> Result<(), Errno> {
        self.within(place, data.len())?;
        let mut bus = Bus { memory: &self.memory, requests: &mut self.requests };
        match place.region {
            REGION_CONFIG if data.len() <= 4 => {
                self.dsa.config_write(place.offset as u16, data.len(), number(data) as u32, &mut bus);
            }
            REGION_BAR0 if is_register(data.len()) => {
                self.dsa.bar0_write(place.offset, data.len(), number(data), &mut bus);
            }
            REGION_BAR2 if data.len() <= DESCRIPTOR => {
                self.dsa.portal_write(place.offset, data);
            }
            _ => return Err(Errno::Invalid),
        }
        Ok(())
    }
}

fn is_register(count: usize) -> bool {
    count <= WIDEST && count.is_power_of_two()
}

fn number(data: &[u8]) -> u64 {
    data.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMAND: u64 = 4;

    fn device() -> Device {
        let mut device = Device::new(Config::default());
        device.store(config(COMMAND), &[6, 0]).unwrap();
        device
    }

    fn config(offset: u64) -> Place {
        Place { region: REGION_CONFIG, offset }
    }

    fn bar(region: u32, offset: u64) -> Place {
        Place { region, offset }
    }

    #[test]
    fn the_msix_capability_is_told_after_the_first_reset() {
        let mut device = device();
        let id = |device: &Device| device.load(config(MSIX_CAPABILITY.into()), 1).unwrap()[0];
        assert_eq!(id(&device), 0x09);
        device.reset();
        assert_eq!(id(&device), 0x11);
        device.reset();
        assert_eq!(id(&device), 0x11);
    }

    #[test]
    fn configuration_space_is_read_at_any_width_and_written_as_pci_does() {
        let mut device = device();
        let all = device.load(config(0), 4096).unwrap();
        assert_eq!(all[..4], [0x86, 0x80, 0xfb, 0x11]);
        assert_eq!(device.load(config(COMMAND), 2), Ok(vec![6, 0]));
        assert_eq!(device.load(config(4095), 2), Err(Errno::Invalid));
        assert_eq!(device.store(config(COMMAND), &[0; 8]), Err(Errno::Invalid));
    }

    #[test]
    fn registers_are_as_wide_as_registers_are() {
        let mut device = device();
        assert_eq!(device.load(bar(0, 0), 4), Ok(vec![0, 1, 0, 0]));
        for count in [0, 3, 5, 16, 64] {
            assert_eq!(device.load(bar(0, 0), count), Err(Errno::Invalid), "{count}");
            assert_eq!(device.store(bar(0, 0), &vec![0; count]), Err(Errno::Invalid), "{count}");
        }
        device.store(bar(0, 0x4_0008), &[0x55, 0, 0, 0, 1, 0, 0, 0]).unwrap();
        assert_eq!(device.load(bar(0, 0x4_0008), 8), Ok(vec![0x55, 0, 0, 0, 1, 0, 0, 0]));
    }

    #[test]
    fn there_is_nothing_outside_of_the_regions() {
        let mut device = device();
        let end = device.region_size(REGION_BAR0);
        for place in [bar(0, end), bar(0, u64::MAX), bar(1, 0), bar(6, 0), bar(9, 0), bar(u32::MAX, 0)] {
            assert_eq!(device.load(place, 4), Err(Errno::Invalid), "{place:?}");
            assert_eq!(device.store(place, &[0; 4]), Err(Errno::Invalid), "{place:?}");
        }
        assert_eq!(device.store(bar(2, u64::from(BAR2_SIZE) - 8), &[0; 16]), Err(Errno::Invalid));
        assert_eq!(device.store(bar(2, 0), &[0; 128]), Err(Errno::Invalid));
        assert_eq!(device.load(bar(2, 0), 8), Ok(vec![0xff; 8]));
    }

    #[test]
    fn what_is_not_mapped_is_a_fault_and_asked_for() {
        let mut device = device();
        let mut bus = Bus { memory: &device.memory, requests: &mut device.requests };
        assert_eq!(bus.read(None, 0x1000, &mut [0; 8]), Err(Fault));
        assert_eq!(bus.write(None, 0x2000, &[7; 2]), Err(Fault));
        assert_eq!(bus.read(Some(1), 0x1000, &mut [0; 8]), Err(Fault));
        assert_eq!(bus.write(Some(1), 0xfee0_0000, &[0; 4]), Err(Fault));
        assert_eq!(device.take_request(), Some(wire::dma_read(0, 0x1000, 8)));
        assert_eq!(device.take_request(), Some(wire::dma_write(1, 0x2000, &[7; 2])));
        assert_eq!(device.take_request(), None);
    }

    #[test]
    fn what_only_the_client_reaches_can_be_written_and_not_read() {
        let mut device = device();
        let range = crate::wire::Range::new(0x1000, 0x1000).unwrap();
        device.memory.map(crate::wire::Map { range, offset: 0, read: true, write: true }, None).unwrap();
        let mut bus = Bus { memory: &device.memory, requests: &mut device.requests };
        assert_eq!(bus.read(None, 0x1000, &mut [0; 8]), Err(Fault));
        assert_eq!(bus.write(None, 0x1008, &[7; 8]), Ok(()));
        assert_eq!(device.take_request(), Some(wire::dma_write(0, 0x1008, &[7; 8])));
        assert_eq!(device.take_request(), None);
    }

    #[test]
    fn only_an_aligned_dword_is_a_message() {
        let mut device = device();
        let mut bus = Bus { memory: &device.memory, requests: &mut device.requests };
        assert_eq!(bus.write(None, 0xfee0_1002, &[0; 4]), Err(Fault));
        assert_eq!(bus.write(None, 0xfee0_1000, &[0; 8]), Err(Fault));
        assert_eq!(bus.write(None, 0xfee0_1000, &[1, 0, 0, 0]), Ok(()));
        assert_eq!(device.take_request(), Some(wire::dma_write(0, 0xfee0_1000, &[1, 0, 0, 0])));
        assert_eq!(device.take_request(), None);
    }
}
