//! A guest's interrupt domain: its virtual processors and devices.

use alloc::{sync::Arc, vec::Vec};
use core::{
    fmt,
    sync::atomic::{AtomicU32, Ordering},
};

use hcall_abi::{DeviceId, Status, Target};

use super::{counters::GuestCounts, device::Device, faults::FaultRing, spec::GuestId};

/// A guest's interrupt domain. The fields that never change need no lock; each device has its own locks.
pub struct Domain {
    pub(super) guest: GuestId,
    /// The x2APIC IDs of the guest's virtual processors, sorted.
    apic_ids: Vec<u32>,
    pub(super) devices: Vec<Arc<Device>>,
    pub(super) counts: GuestCounts,
    /// Whether the guest can make hypercalls.
    pub(super) offers_calls: bool,
    /// The faults of the guest's slots that the guest has not read yet.
    pub(super) faults: Arc<FaultRing>,
    /// The minor version that the guest enabled, plus one; 0 before.
    enabled: AtomicU32,
}

impl Domain {
    pub(super) fn new(
        guest: GuestId,
        mut apic_ids: Vec<u32>,
        devices: Vec<Arc<Device>>,
        offers_calls: bool,
        faults: Arc<FaultRing>,
    ) -> Self {
        apic_ids.sort_unstable();
        let (counts, enabled) = (GuestCounts::default(), AtomicU32::new(0));
        Self { guest, apic_ids, devices, counts, offers_calls, faults, enabled }
    }

    /// Whether the guest has enabled the interface. Until then its devices have no interrupt message stores.
    pub fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Relaxed) != 0
    }

    /// Whether the guest has enabled this minor version or a later one.
    pub(super) fn knows(&self, minor: u16) -> bool {
        self.enabled.load(Ordering::Relaxed) > minor.into()
    }

    pub(super) fn enable(&self, minor: u16) {
        self.enabled.store(u32::from(minor) + 1, Ordering::Relaxed);
    }

    /// The guest of the domain.
    pub fn guest(&self) -> GuestId {
        self.guest
    }

    /// The guest's counters.
    pub fn counters(&self) -> super::GuestCounters {
        self.counts.read()
    }

    /// Whether `apic_id` is one of the guest's virtual processors.
    pub(super) fn has_processor(&self, apic_id: u32) -> bool {
        self.apic_ids.binary_search(&apic_id).is_ok()
    }

    /// Returns `target` if its processor is the guest's own.
    pub(super) fn own(&self, target: Target) -> Result<Target, Status> {
        if self.has_processor(target.apic_id) { Ok(target) } else { Err(Status::BadTarget) }
    }

    /// The guest's device with this name.
    pub(super) fn device(&self, id: DeviceId) -> Result<&Device, Status> {
        self.devices.iter().find(|device| device.spec.id == id).map(|device| &**device).ok_or(Status::NoSuchDevice)
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Domain").field("guest", &self.guest).field("apic_ids", &self.apic_ids).finish_non_exhaustive()
    }
}
