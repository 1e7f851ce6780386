//! The configuration of a device.

use crate::layout::Layout;
use crate::spec::{self, gencap};

/// A device as it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// PCI device ID: [`spec::DEVICE_ID`], or one of the others there. With any other one software does not take it for a DSA.
    pub device_id: u16,
    /// Where the tables lie in BAR0.
    pub layout: Layout,
    /// BARs of 64 bits, prefetchable; else of 32 bits.
    pub wide_bars: bool,
    /// Entries of the MSI-X table, 1 to 2,048.
    pub msix_entries: u16,
    /// Slots of the interrupt message store, in units of 256 (GENCAP's maximum IMS multiplier), 0 to 63.
    pub ims_multiplier: u8,
    /// Interrupt handles that can be out at the same time. `None`: there are no handles and no CMDCAP register (GENCAP bit 4), and a
    /// descriptor names the entry itself.
    pub interrupt_handles: Option<u16>,
    /// log2 of the longest transfer, at most 31.
    pub max_transfer_shift: u8,
    /// log2 of the longest batch, at most 15.
    pub max_batch_shift: u8,
    /// Bits of GENCAP that software has to ignore.
    pub gencap_reserved: u64,
    /// The store is behind a command interface: not Intel's. Portals of such a device take pieces, too.
    pub slow_store: bool,
    /// Portals take a descriptor in pieces of 8 bytes, in order, and the subsystem ID says so. Else they take one write of 64 bytes at a
    /// boundary of 64 bytes, and drop everything else, as real ones do.
    pub pieces: bool,
    /// ATS and PRI: requests with a PASID ask for translations first, and descriptors may wait for pages. The device keeps no
    /// translation for later (it has no device-TLB), so an invalidation of one is complete at once.
    pub page_requests: bool,
    /// After so many descriptors the device halts, once, and takes no more until it is reset; 0: never.
    pub halts_after: u32,
    /// Rounds of [`Dsa::work`](crate::Dsa::work) for which a command is under way, at least 1. One that drains takes as many more as
    /// the descriptors do.
    pub command_rounds: u32,
    /// As `command_rounds`, of the command that resets the device, if that takes longer.
    pub reset_rounds: u32,
}

impl Default for Config {
    /// The generous device: 4,096 slots, a handle for every one of them and for every MSI-X entry, and a page for every table. No real
    /// device is like it.
    fn default() -> Self {
        Self {
            device_id: spec::DEVICE_ID,
            layout: Layout::GENEROUS,
            wide_bars: false,
            msix_entries: 64,
            ims_multiplier: 16,
            interrupt_handles: Some(4096 + 64),
            max_transfer_shift: 21,
            max_batch_shift: 5,
            gencap_reserved: 0,
            slow_store: false,
            pieces: false,
            page_requests: false,
            halts_after: 0,
            command_rounds: 1,
            reset_rounds: 0,
        }
    }
}

impl Config {
    /// A DSA as Sapphire Rapids has it, by `lspci`, `accel-config` and the kernel's log (GENCAP 40915f010f), but with the device ID of one
    /// without that one's erratum: 2,048 slots and 9 MSI-X entries, no handles, transfers of 2 GiB, batches of 1,024. GENCAP's bit 8
    /// (readback of the destination) is left out, as the flag of descriptors is.
    pub fn sapphire_rapids() -> Self {
        Self {
            layout: Layout::SAPPHIRE_RAPIDS,
            wide_bars: true,
            msix_entries: 9,
            ims_multiplier: 8,
            interrupt_handles: None,
            max_transfer_shift: 31,
            max_batch_shift: 10,
            gencap_reserved: 1 << 38,
            page_requests: true,
            command_rounds: 16,
            ..Self::default()
        }
    }

    /// The generous device with as many slots as GENCAP can tell of: 16,128.
    pub fn most_slots() -> Self {
        let generous = Self::default();
        let slots = u16::from(gencap::MOST_MULTIPLIER) * gencap::IMS_UNIT;
        let interrupt_handles = Some(slots + generous.msix_entries);
        Self { ims_multiplier: gencap::MOST_MULTIPLIER, interrupt_handles, ..generous }
    }

    /// Slots of the store.
    pub(crate) fn slots(&self) -> usize {
        usize::from(self.ims_multiplier.min(gencap::MOST_MULTIPLIER)) * usize::from(gencap::IMS_UNIT)
    }

    /// Whether portals take a descriptor in pieces.
    pub(crate) fn takes_pieces(&self) -> bool {
        self.pieces || self.slow_store
    }

    /// The subsystem ID tells kinds of the device apart.
    pub(crate) fn subsystem(&self) -> u16 {
        match (self.slow_store, self.pieces) {
            (true, _) => spec::SLOW_STORE_SUBSYSTEM,
            (false, true) => spec::PIECES_SUBSYSTEM,
            (false, false) => 0,
        }
    }
}
