//! The DSA that was assigned to the guest, and the hypercall domain: found, looked at, and started.

use core::fmt;
use core::ptr::NonNull;

use guest_shim::discover::{NativeCpuid, discover};
use guest_shim::hcall_abi::DeviceId;
use guest_shim::policy::{Decision, decide};
use guest_shim::vmcall::Vmcall;
use guest_shim::{BatchPage, Hypercalls, MmioStore, detect};

use super::device::DeviceMemory;
use super::dma::DmaBuffer;
use super::{Guest, config, physical, portal};
use crate::dsa::{Completion, Descriptor, Dsa, Error, Portal, WorkQueue, spec};
use crate::pci::Function;
use crate::{acpi, pci};

/// Work queues that the guests use.
pub const QUEUES: u8 = 2;
/// Descriptors that each of them holds.
pub const QUEUE_SIZE: u16 = 64;

/// The device.
#[derive(Clone, Copy, Debug)]
pub struct AssignedDsa {
    /// Where it is.
    pub function: Function,
    /// Its registers.
    pub dsa: Dsa<DeviceMemory>,
    /// All of BAR0.
    pub bar0: DeviceMemory,
    /// Physical address of BAR0.
    pub bar0_address: u64,
    /// The IMS portal of each work queue.
    pub portals: [Portal; QUEUES as usize],
    /// The MSI-X portal of each work queue.
    pub msix_portals: [Portal; QUEUES as usize],
}

/// Why there is no device to use.
#[derive(Clone, Copy, Debug)]
pub enum Missing {
    /// No such function, or it has no BAR where it needs one.
    Device,
    /// ECAM cannot be found, or does not say that the device has a store.
    Dvsec,
    /// The device does not start.
    Start(Error),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device => f.write_str("there is no DSA; a guest of imsvisor gets one by device=dsa"),
            Self::Dvsec => f.write_str("the DSA does not say that it has an interrupt message store"),
            Self::Start(error) => write!(f, "the DSA does not start: {error:?}"),
        }
    }
}

impl AssignedDsa {
    /// Finds the device and starts it with [`QUEUES`] work queues.
    pub fn start(guest: &Guest) -> Result<Self, Missing> {
        // A device shows its store to those who know the interface.
        let _ = hypercalls();
        if !Self::says_ims(guest).ok_or(Missing::Device)? {
            return Err(Missing::Dvsec);
        }
        Self::start_any()
    }

    /// Whether the device says that it has a store. `None` when there is no device.
    pub fn says_ims(guest: &Guest) -> Option<bool> {
        let function = pci::find(&config::Ports, spec::VENDOR, &spec::DEVICES)?;
        says_ims(guest, function)
    }

    /// Finds the device and starts it, whether it says that it has a store or not.
    pub fn start_any() -> Result<Self, Missing> {
        Self::start_at(pci::find(&config::Ports, spec::VENDOR, &spec::DEVICES).ok_or(Missing::Device)?)
    }

    /// Starts the devices behind the first one, where there are more.
    pub fn start_others() -> impl Iterator<Item = Result<Self, Missing>> {
        pci::find_all(&config::Ports, spec::VENDOR, &spec::DEVICES).skip(1).map(Self::start_at)
    }

    fn start_at(function: Function) -> Result<Self, Missing> {
        pci::enable(&config::Ports, function);
        let mut device = Self::map(function).ok_or(Missing::Device)?;
        device.restart().map_err(Missing::Start)?;
        Ok(device)
    }

    /// Resets the device and starts it again.
    pub fn restart(&mut self) -> Result<(), Error> {
        let queues: [_; QUEUES as usize] =
            core::array::from_fn(|n| WorkQueue { index: n as u8, size: QUEUE_SIZE, pasids: false });
        self.dsa.start(&queues)
    }

    fn map(function: Function) -> Option<Self> {
        let bar0_address = pci::bar(&config::Ports, function, 0)?;
        let portals = pci::bar(&config::Ports, function, 2)?;
        // SAFETY: what a BAR names is the device's; no command of the device is given here.
        let registers = unsafe { DeviceMemory::new(bar0_address, 4096) }?;
        let dsa = Dsa::new(registers);
        let size = dsa.ims_offset() + u64::from(dsa.ims_slots()) * 16;
        // SAFETY: as above: the store is in BAR0, and the tables before it.
        let bar0 = unsafe { DeviceMemory::new(bar0_address, size) }?;
        let queue_portal = |n: u8, kind: u64| {
            let page = u64::from(n) * spec::PORTALS_PER_WQ + kind;
            // SAFETY: BAR2 is the portals'; the guests give the device their own buffers' addresses, or foreign ones that
            // must not be reached.
            unsafe { portal::at(function, portals + page * spec::PORTAL_SIZE) }
        };
        let of_kind = |kind| Some([queue_portal(0, kind)?, queue_portal(1, kind)?]);
        Some(Self {
            function,
            dsa: Dsa::new(bar0),
            bar0,
            bar0_address,
            portals: of_kind(spec::PORTAL_IMS_UNLIMITED)?,
            msix_portals: of_kind(spec::PORTAL_MSIX_UNLIMITED)?,
        })
    }

    /// The device's name in hypercalls.
    pub fn id(&self) -> DeviceId {
        DeviceId(self.function.0)
    }

    /// The store's first byte.
    pub fn ims(&self) -> NonNull<u8> {
        let size = u64::from(self.dsa.ims_slots()) * 16;
        self.bar0.pointer(self.dsa.ims_offset(), size).expect("BAR0 was mapped up to the store's end")
    }

    /// Physical address of the store.
    pub fn ims_address(&self) -> u64 {
        self.bar0_address + self.dsa.ims_offset()
    }

    /// The store, as a driver writes it that knows of no hypervisor.
    pub fn store(&self) -> MmioStore {
        // SAFETY: the store's slots, mapped as long as the guest runs. Each slot has one user.
        unsafe { MmioStore::new(self.ims().cast(), self.dsa.ims_slots()) }
    }
}

/// Whether configuration space says that a function has a message store; `None` without ECAM.
pub fn says_ims(guest: &Guest, function: Function) -> Option<bool> {
    let (base, last_bus) = acpi::ecam(&physical::PhysicalMemory, guest.boot.rsdp()?)?;
    // SAFETY: MCFG says that configuration space is there.
    let ecam = unsafe { config::Ecam::new(base, last_bus) }?;
    Some(pci::says_ims(&ecam, function))
}

/// The way that the bare-metal test and the policy say is open, by what the processor says.
pub fn decision() -> Decision {
    let facts = detect::Facts { cpuid_hypervisor: detect::cpuid_hypervisor_bit(&NativeCpuid), ..Default::default() };
    decide(detect::on_bare_metal(&facts), false, discover(&NativeCpuid).ok())
}

/// The hypercalls, if they are the way. The interface is enabled.
pub fn hypercalls() -> Option<Hypercalls<Vmcall>> {
    match decision() {
        Decision::Hypercall(interface) => {
            // SAFETY: the guest runs at CPL 0, and the interface was found.
            let calls = Hypercalls::new(unsafe { Vmcall::new() }, interface);
            calls.enable().ok().map(|_| calls)
        }
        Decision::Native | Decision::Refuse(_) => None,
    }
}

/// The batch page in `buffer`.
pub fn batch_page(buffer: &'static DmaBuffer<4096>) -> BatchPage<'static> {
    // SAFETY: a page of memory, mapped at its own address, which its caller uses for nothing else.
    unsafe { BatchPage::new(buffer.pointer().cast(), buffer.address()) }.expect("buffers lie at pages")
}

/// Completion records, one for each name of a descriptor.
#[derive(Debug)]
pub struct Records<const BYTES: usize>(DmaBuffer<BYTES>);

impl<const BYTES: usize> Records<BYTES> {
    /// No record is complete.
    #[expect(clippy::new_without_default, reason = "it lives in a static")]
    pub const fn new() -> Self {
        Self(DmaBuffer::new())
    }

    /// Where record `n` is.
    pub fn address(&self, n: usize) -> u64 {
        self.0.address() + n as u64 * Completion::SIZE
    }

    /// Makes record `n` incomplete.
    pub fn clear(&self, n: usize) {
        let size = Completion::SIZE as usize;
        self.0.fill(n * size, size, 0);
    }

    /// Record `n`.
    pub fn get(&self, n: usize) -> Completion {
        let at = n * Completion::SIZE as usize;
        Completion::from_words([0, 8, 16].map(|offset| self.0.read(at + offset)))
    }

    /// Whether record `n` is complete.
    pub fn complete(&self, n: usize) -> bool {
        self.get(n).status != spec::STATUS_NONE
    }
}

/// Submits a descriptor and looks at its record until it is complete. `None` when it is not within `limit` ticks.
pub fn submit_and_poll<const BYTES: usize>(
    portal: &Portal,
    descriptor: &Descriptor,
    records: &Records<BYTES>,
    record: usize,
    limit: u64,
) -> Option<Completion> {
    records.clear(record);
    portal.submit(descriptor);
    super::idle::poll_until(limit, || records.complete(record)).then(|| records.get(record))
}
