//! A guest's interrupt domain: its virtual processors and its devices.

use alloc::{sync::Arc, vec::Vec};
use core::{
    fmt,
    sync::atomic::{AtomicU32, Ordering},
};

use hcall_abi::{DeviceId, Status, Target};

use super::{counters::GuestCounts, device::Device, faults::FaultRing, spec::GuestId};

/// A guest's interrupt domain. What may never change is here without a lock; each device has its own.
pub struct Domain {
    pub(super) guest: GuestId,
    /// Sorted.
    apic_ids: Vec<u32>,
    pub(super) devices: Vec<Arc<Device>>,
    pub(super) counts: GuestCounts,
    /// Whether it can make hypercalls.
    pub(super) offers_calls: bool,
    /// Faults of its slots that it has not read yet.
    pub(super) faults: Arc<FaultRing>,
    /// The minor version that it enabled, plus one; 0 before.
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

    /// Whether the guest has said that it knows the interface. Until then its devices have no interrupt message stores.
    pub fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Relaxed) != 0
    }

    /// Whether it knows what came with this minor version.
    pub(super) fn knows(&self, minor: u16) -> bool {
        self.enabled.load(Ordering::Relaxed) > minor.into()
    }

    pub(super) fn enable(&self, minor: u16) {
        self.enabled.store(u32::from(minor) + 1, Ordering::Relaxed);
    }

    /// Whose it is.
    pub fn guest(&self) -> GuestId {
        self.guest
    }

    /// What its guest did so far.
    pub fn counters(&self) -> super::GuestCounters {
        self.counts.read()
    }

    /// Whether this is one of the guest's virtual processors.
    pub(super) fn has_processor(&self, apic_id: u32) -> bool {
        self.apic_ids.binary_search(&apic_id).is_ok()
    }

    /// `target`, if the processor is the guest's own.
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
