//! What is fixed of a guest, its devices and their stores, and the names of each.

use alloc::vec::Vec;

use hcall_abi::{DeviceId, FaultStore, Pasid, Status};

use super::ctrl::pasid_bits;
use crate::addr::{Bdf, Hpa};

/// Which of a device's stores.
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
/// Most slots of a store that the hypervisor signals: a bit each in a word.
const MOST_EMULATED: u16 = 64;

/// Names a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestId(pub u16);

/// Where a store of a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreSpec {
    /// The store in the device.
    pub base: Hpa,
    /// The image of it that the guest reads.
    pub shadow: Hpa,
    /// Slots, of 16 bytes each.
    pub slots: u32,
    /// BAR that holds the store, as the guest sees it.
    pub bar: u32,
    /// Offset of the store in that BAR, in bytes.
    pub offset: u32,
    /// Set for an MSI-X table that is emulated by slots of an interrupt message store: describes those.
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
    /// What the device compares with the PASID of the work that raises a slot.
    pub pasid: Pasid,
    /// How many slots, from the first, are the hypervisor's to signal: the device never raises them. At most 64.
    pub emulated: u16,
}

impl StoreSpec {
    /// What all slots have in the device's ctrl beside what is their own.
    pub(super) fn fixed_ctrl(&self) -> u32 {
        self.backing.map_or(0, |backing| pasid_bits(backing.pasid))
    }

    /// Whether slot `index` is the hypervisor's to signal.
    pub(super) fn is_emulated(&self, index: u16) -> bool {
        self.backing.is_some_and(|backing| index < backing.emulated)
    }
}

/// A PCI function assigned to a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceSpec {
    /// Its name in the guest.
    pub id: DeviceId,
    /// Its requester ID on the host.
    pub requester: Bdf,
    /// Its MSI-X table.
    pub msix: Option<StoreSpec>,
    /// Its interrupt message store.
    pub ims: Option<StoreSpec>,
    /// The PASIDs that the guest owns for it: the first and the last.
    pub pasids: Option<(Pasid, Pasid)>,
    /// Whether others work under the same requester ID: then the guest has no store that nobody watches.
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

    /// Whether the guest owns a PASID.
    pub(super) fn owns(&self, pasid: Pasid) -> bool {
        self.pasids.is_some_and(|(first, last)| (first..=last).contains(&pasid))
    }

    /// Whether this cannot be there together with `other`, because one of them takes the requester ID for itself.
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
    /// Its name.
    pub guest: GuestId,
    /// x2APIC IDs of its virtual processors.
    pub apic_ids: Vec<u32>,
    /// Whether it can make hypercalls.
    pub hypercalls: bool,
    /// Its devices.
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
