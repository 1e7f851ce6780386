//! The descriptions of a guest, its devices and their stores, which do not change, and their names.

use alloc::vec::Vec;

use hcall_abi::{DeviceId, FaultStore, Pasid, Status};

use super::ctrl::pasid_bits;
use crate::addr::{Bdf, Hpa};

/// The stores that a device can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoreName {
    /// The MSI-X table.
    Msix,
    /// The interrupt message store.
    Ims,
    /// The store in the guest's own memory.
    Queue,
}

impl From<StoreName> for FaultStore {
    fn from(name: StoreName) -> Self {
        match name {
            StoreName::Msix => Self::Msix,
            StoreName::Ims => Self::Array,
            StoreName::Queue => Self::Queue,
        }
    }
}

/// Most slots an IMS store can have: what a [`SlotHandle`](hcall_abi::SlotHandle) can name.
pub const MOST_IMS_SLOTS: u32 = 65_536;
/// Most entries of an MSI-X table (PCI 7.7.2.2).
pub const MOST_MSIX_SLOTS: u32 = 2048;
/// The most slots of a store that the hypervisor signals: a word has a bit for each.
const MOST_EMULATED: u16 = 64;

/// Names a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestId(pub u16);

/// A store of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreSpec {
    /// The store's address in the device.
    pub base: Hpa,
    /// The store's shadow, which the guest reads.
    pub shadow: Hpa,
    /// The number of slots, of 16 bytes each.
    pub slots: u32,
    /// The BAR that holds the store, as the guest numbers it.
    pub bar: u32,
    /// Offset of the store in that BAR, in bytes.
    pub offset: u32,
    /// For an MSI-X table that slots of an interrupt message store emulate: which slots.
    pub backing: Option<Backing>,
    /// Where the store is, and so how it is written.
    pub location: StoreLocation,
}

/// Where a store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreLocation {
    /// In the device's memory (MMIO).
    DeviceMemory,
    /// Behind the command interface with this number. Writes have arrived when [`Store::commit`](super::Store::commit) returns.
    SlowStore(u16),
    /// In the guest's own memory. The service does not write it, treats its slots as masked, and shows no shadow of it.
    GuestMemory,
}

/// A store in the guest's own memory.
pub(super) const GUESTS_STORE: StoreSpec = StoreSpec {
    base: Hpa::new(0),
    shadow: Hpa::new(0),
    slots: 0,
    bar: 0,
    offset: 0,
    backing: None,
    location: StoreLocation::GuestMemory,
};

/// How the MSI-X table of a virtual function lies in its parent function's interrupt message store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backing {
    /// The PASID of the work that raises the slots.
    pub pasid: Pasid,
    /// The number of slots, from the first, that the hypervisor signals and the device never raises. At most 64.
    pub emulated: u16,
}

impl StoreSpec {
    /// The control bits that all slots have in the device, beside their own.
    pub(super) fn fixed_ctrl(&self) -> u32 {
        self.backing.map_or(0, |backing| pasid_bits(backing.pasid))
    }

    /// Whether the hypervisor signals slot `index`.
    pub(super) fn is_emulated(&self, index: u16) -> bool {
        self.backing.is_some_and(|backing| index < backing.emulated)
    }
}

/// A PCI function assigned to a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceSpec {
    /// The guest's name for the device.
    pub id: DeviceId,
    /// The function's requester ID on the host.
    pub requester: Bdf,
    /// Its MSI-X table.
    pub msix: Option<StoreSpec>,
    /// Its interrupt message store.
    pub ims: Option<StoreSpec>,
    /// The PASIDs that the guest owns for it: the first and the last.
    pub pasids: Option<(Pasid, Pasid)>,
    /// Whether other guests' work has the same requester ID. If so, the guest gets no store in its own memory, which the service cannot
    /// watch.
    pub shares_requester: bool,
}

impl DeviceSpec {
    /// The store with this name.
    pub fn store(&self, name: StoreName) -> Option<&StoreSpec> {
        match name {
            StoreName::Msix => self.msix.as_ref(),
            StoreName::Ims => self.ims.as_ref(),
            StoreName::Queue => Some(&GUESTS_STORE),
        }
    }

    /// Whether the guest owns `pasid`.
    pub(super) fn owns(&self, pasid: Pasid) -> bool {
        self.pasids.is_some_and(|(first, last)| (first..=last).contains(&pasid))
    }

    /// Whether this device and `other` exclude each other, because one of them needs the requester ID for itself.
    pub(super) fn collides_with(&self, other: &Self) -> bool {
        self.requester == other.requester && !(self.shares_requester && other.shares_requester)
    }

    fn check(&self) -> Result<(), Status> {
        let signals = |s: StoreSpec| s.backing.is_none_or(|backing| backing.emulated <= MOST_EMULATED);
        let fits = |store: Option<StoreSpec>, most| store.is_none_or(|s| (1..=most).contains(&s.slots) && signals(s));
        let unbacked = self.ims.is_none_or(|store| store.backing.is_none());
        if fits(self.msix, MOST_MSIX_SLOTS) && fits(self.ims, MOST_IMS_SLOTS) && unbacked {
            Ok(())
        } else {
            Err(Status::InvalidArgument)
        }
    }
}

/// What [`Service::attach`](super::Service::attach) needs to know of a guest.
#[derive(Clone, Debug)]
pub struct GuestSpec {
    /// The guest's ID.
    pub guest: GuestId,
    /// The x2APIC IDs of the guest's virtual processors.
    pub apic_ids: Vec<u32>,
    /// Whether the guest can make hypercalls.
    pub hypercalls: bool,
    /// The guest's devices.
    pub devices: Vec<DeviceSpec>,
}

impl GuestSpec {
    /// Refuses a guest without processors, doubled names and impossible stores.
    pub(super) fn check(&self) -> Result<(), Status> {
        let distinct = |mut names: Vec<u32>| {
            let count = names.len();
            names.sort_unstable();
            names.dedup();
            names.len() == count
        };
        self.devices.iter().try_for_each(DeviceSpec::check)?;
        let good = !self.apic_ids.is_empty()
            && distinct(self.apic_ids.clone())
            && distinct(self.devices.iter().map(|d| d.id.0.into()).collect())
            && !self
                .devices
                .iter()
                .enumerate()
                .any(|(n, d)| self.devices.iter().skip(n + 1).any(|o| d.collides_with(o)));
        if good { Ok(()) } else { Err(Status::InvalidArgument) }
    }
}
