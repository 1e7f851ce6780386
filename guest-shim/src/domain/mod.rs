//! The interrupt domain, which a driver uses in the same way natively and by hypercalls.

mod hypercall;
mod native;
mod queue;

pub use hypercall::HypercallDomain;
pub use native::{NativeDomain, SlotState};
pub use queue::QueueDomain;

use hcall_abi::{DeviceId, MapRequest, Pasid, SlotHandle, SlotInfo, Status, Target};

use crate::calls::{BatchPage, Hypercalls};
use crate::store::Store;
use crate::transport::Transport;

/// A slot that the driver holds. It is given back with [`Domain::free`]; one that is dropped stays taken.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the slot stays taken until it is freed"]
pub struct Interrupt(SlotHandle);

impl Interrupt {
    /// The slot's index in the store: what a device is told to raise this interrupt.
    pub const fn index(&self) -> u16 {
        self.0.index()
    }

    /// The slot that this handle names: for who keeps handles, as C does. Whether it is held is found out when it is used.
    pub const fn from_handle(handle: SlotHandle) -> Self {
        Self(handle)
    }

    /// The slot's handle.
    pub const fn handle(&self) -> SlotHandle {
        self.0
    }
}

/// Where an interrupt shall go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// To whom.
    pub target: Target,
    /// Whether the slot is unmasked at the end.
    pub unmask: bool,
    /// The driver's own name for it; the native way has no use for it.
    pub cookie: u64,
}

impl Request {
    fn item(&self, interrupt: &Interrupt) -> MapRequest {
        MapRequest { handle: interrupt.0, target: self.target, unmask: self.unmask, cookie: self.cookie }
    }
}

/// Takes slots one by one, at least `min`.
fn alloc_each(
    min: usize,
    out: &mut dyn ExactSizeIterator<Item = &mut Option<Interrupt>>,
    alloc: &mut dyn FnMut() -> Result<SlotHandle, Status>,
) -> Result<(), Status> {
    for (n, place) in out.enumerate() {
        match alloc() {
            Ok(handle) => *place = Some(Interrupt(handle)),
            Err(Status::NoFreeSlot) if n >= min => break,
            Err(status) => return Err(status),
        }
    }
    Ok(())
}

/// Takes an item's position and what became of it.
type Report<'a> = &'a mut dyn FnMut(usize, Result<(), Status>);

/// The interrupts of one device.
///
/// The same calls mean the same on both ways. A call that fails changes nothing, unless it says otherwise.
#[derive(Debug)]
pub enum Domain<'a, T, S> {
    /// The hypervisor programs the store.
    Hypercall(HypercallDomain<'a, T>),
    /// The driver programs the store.
    Native(NativeDomain<'a, S>),
}

/// Calls the same method on whichever way it is.
macro_rules! either {
    ($self:ident, $domain:ident => $call:expr) => {
        match $self {
            Domain::Hypercall($domain) => $call,
            Domain::Native($domain) => $call,
        }
    };
}

impl<'a, T: Transport, S: Store> Domain<'a, T, S> {
    /// A domain that goes by hypercall. `page` is used for batches.
    pub const fn hypercall(calls: Hypercalls<T>, device: DeviceId, page: BatchPage<'a>) -> Self {
        Self::Hypercall(HypercallDomain::new(calls, device, page))
    }

    /// A domain that programs `store` itself. `states` has an element for each slot that may be used, from slot 0.
    pub fn native(store: S, states: &'a mut [SlotState]) -> Self {
        Self::Native(NativeDomain::new(store, states))
    }

    /// Takes a free slot, in a group; it stays masked. By hypercall a group is below the number in the interface's limits.
    ///
    /// # Errors
    /// [`Status::NoFreeSlot`].
    pub fn alloc(&mut self, group: u32) -> Result<Interrupt, Status> {
        either!(self, domain => domain.alloc(group)).map(Interrupt)
    }

    /// Takes free slots for `out`, from its beginning: as many as there are, at least `min`. How many.
    ///
    /// # Errors
    /// [`Status::NoFreeSlot`] with fewer than `min`; `out` is all `None` then, and nothing is taken.
    pub fn alloc_many(&mut self, group: u32, min: usize, out: &mut [Option<Interrupt>]) -> Result<usize, Status> {
        out.fill_with(|| None);
        let result = either!(self, domain => domain.alloc_many(group, min, &mut out.iter_mut()));
        let count = out.iter().flatten().count();
        let enough = if count < min { Err(Status::NoFreeSlot) } else { Ok(count) };
        result.and(enough).inspect_err(|_| _ = self.free_all(out))
    }

    /// Gives all of these slots back, by as few calls as can be; `interrupts` is all `None` then. How many there were; those that
    /// could not be given back are lost to the driver.
    pub fn free_all(&mut self, interrupts: &mut [Option<Interrupt>]) -> usize {
        self.free_each(&mut interrupts.iter_mut().filter_map(Option::take).map(|interrupt| interrupt.0))
    }

    /// The same for a caller that keeps handles.
    pub fn free_each(&mut self, handles: &mut dyn Iterator<Item = SlotHandle>) -> usize {
        either!(self, domain => domain.free_all(handles))
    }

    /// Gives all slots back that were allocated with this group; their [`Interrupt`]s are good for nothing then. How many.
    pub fn free_group(&mut self, group: u32) -> Result<usize, Status> {
        either!(self, domain => domain.free_group(group))
    }

    /// From now on the device takes the slot only for work that is submitted with this PASID, or with any.
    ///
    /// # Errors
    /// [`Status::BadPasid`] for one that is not the guest's.
    pub fn set_pasid(&mut self, interrupt: &Interrupt, pasid: Option<Pasid>) -> Result<(), Status> {
        either!(self, domain => domain.set_pasid(interrupt.0, pasid))
    }

    /// What is known of a slot.
    ///
    /// # Errors
    /// [`Status::StaleHandle`] when it was freed by its group.
    pub fn query(&mut self, interrupt: &Interrupt) -> Result<SlotInfo, Status> {
        either!(self, domain => domain.query(interrupt.0))
    }

    /// Gives a slot back: masked and unmapped. When this fails, the slot is lost to the driver.
    pub fn free(&mut self, interrupt: Interrupt) -> Result<(), Status> {
        either!(self, domain => domain.free(interrupt.0))
    }

    /// Sends a slot's interrupts to a target.
    ///
    /// # Errors
    /// [`Status::Exists`] when it is mapped already in another way, [`Status::BadVector`], [`Status::BadTarget`], or that the
    /// hypervisor has no entry left.
    pub fn map(&mut self, interrupt: &Interrupt, request: &Request) -> Result<(), Status> {
        let mut result = Err(Status::HardwareError);
        self.map_each(&mut core::iter::once(request.item(interrupt)), &mut |_, item| result = item)?;
        result
    }

    /// Maps many, in as few batches as can be. `results` gets what became of each, and the number of those that succeeded is
    /// returned.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] when `results` has another length than `items`, with nothing mapped. When a whole batch is
    /// refused, its status; the results of the batches before it stand.
    pub fn map_batch(
        &mut self,
        items: &[(&Interrupt, Request)],
        results: &mut [Result<(), Status>],
    ) -> Result<usize, Status> {
        if items.len() != results.len() {
            return Err(Status::InvalidArgument);
        }
        let mut succeeded = 0;
        self.map_each(&mut items.iter().map(|(interrupt, request)| request.item(interrupt)), &mut |n, result| {
            succeeded += usize::from(result.is_ok());
            if let Some(place) = results.get_mut(n) {
                *place = result;
            }
        })?;
        Ok(succeeded)
    }

    /// Maps the items in as few batches as can be, for a caller that keeps handles. `report` gets each item's position and what became
    /// of it.
    ///
    /// # Errors
    /// When a whole batch is refused, its status; what was reported of the batches before it stands.
    pub fn map_each(
        &mut self,
        items: &mut dyn Iterator<Item = MapRequest>,
        report: &mut dyn FnMut(usize, Result<(), Status>),
    ) -> Result<(), Status> {
        either!(self, domain => domain.map_each(items, report))
    }

    /// Takes a slot for each request and maps it: all of them, or none. `out` gets them in the requests' order.
    ///
    /// # Errors
    /// The first that came up; what had been taken is given back, and `out` is all `None`. [`Status::InvalidArgument`] when
    /// `out` is shorter than `requests`.
    pub fn request(&mut self, group: u32, requests: &[Request], out: &mut [Option<Interrupt>]) -> Result<(), Status> {
        self.request_some(group, requests.len(), requests, out).map(drop)
    }

    /// Takes slots for the first of the requests, as many as there are and at least `min`, and maps them. How many; the rest of `out`
    /// is `None`. What a driver does that can work with fewer interrupts than it asks for (`pci_alloc_irq_vectors`).
    ///
    /// # Errors
    /// [`Status::NoFreeSlot`] with fewer than `min`, or what came up when they were mapped. Nothing is taken then, and `out` is all
    /// `None`.
    pub fn request_some(
        &mut self,
        group: u32,
        min: usize,
        requests: &[Request],
        out: &mut [Option<Interrupt>],
    ) -> Result<usize, Status> {
        let out = out.get_mut(..requests.len()).ok_or(Status::InvalidArgument)?;
        let count = self.alloc_many(group, min, out)?;
        let mapped = self.map_requests(requests, out);
        mapped.map(|()| count).inspect_err(|_| _ = self.free_all(out))
    }

    fn map_requests(&mut self, requests: &[Request], out: &[Option<Interrupt>]) -> Result<(), Status> {
        let mut failed = Ok(());
        let mut items = requests.iter().zip(out.iter().flatten()).map(|(request, interrupt)| request.item(interrupt));
        self.map_each(&mut items, &mut |_, result| failed = failed.and(result))?;
        failed
    }

    /// Masks a slot and takes its mapping away; the slot stays taken. One that is not mapped is left as it is.
    pub fn unmap(&mut self, interrupt: &Interrupt) -> Result<(), Status> {
        either!(self, domain => domain.unmap(interrupt.0))
    }

    /// Masks a slot: after this no message of it is sent. One that comes meanwhile waits.
    pub fn mask(&mut self, interrupt: &Interrupt) -> Result<(), Status> {
        either!(self, domain => domain.mask(interrupt.0))
    }

    /// Unmasks a slot. A message that came meanwhile is sent.
    pub fn unmask(&mut self, interrupt: &Interrupt) -> Result<(), Status> {
        either!(self, domain => domain.unmask(interrupt.0))
    }

    /// Sends a slot's interrupts elsewhere, losing none.
    pub fn set_affinity(&mut self, interrupt: &Interrupt, target: Target) -> Result<(), Status> {
        either!(self, domain => domain.set_affinity(interrupt.0, target))
    }
}

#[cfg(test)]
mod tests;
