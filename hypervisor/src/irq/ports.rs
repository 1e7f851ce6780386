//! The service's ports on this machine: where a binding of the service becomes a route ([`Delivery::route`]) and a remapping entry ([`Remap::bind`]).
//!
//! An entry leads to a host vector of the virtual processor's processor, or into the virtual processor's posted-interrupt descriptor. The entry's
//! number has the unit in its upper half. Processors that flush entries of one unit wait for each other in the unit's queue.

pub mod fault_log;
mod stores;

use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicU64, Ordering};

use hcall_abi::{Status, Target};

use crate::{
    addr::{Bdf, Hpa},
    apic, cpu,
    ims::{
        Bind, BindRequest, BoundEntry, Delivery, EntryIndex, GuestId, HostRoute, Message, PackedRoute, Remap, Service,
        Span, UnitNumber,
    },
    irq::{
        dma::{Attachments, Requests},
        host_vectors::{VcpuVectors, Vectors},
        mailbox::Mailbox,
        ports::fault_log::FaultLog,
        slow_store::SlowStore,
    },
    machine::discovery::{Machine, Unit},
    memory::{Mmio, Ram},
    sync::{Mutex, Shared},
    vtd::{self, Binder, Remapper, Route, RouteFields, Runs},
};

/// The service on this machine.
pub type MachineService = Service<MachinePorts>;

/// The shift of the unit's number in an entry's number.
const UNIT_SHIFT: u32 = 16;

/// A valid vector, for fields that do not depend on the vector.
const ANY_VECTOR: u8 = 0xff;

/// The entry with this index in the unit of this number.
pub fn entry_index(unit: usize, index: u16) -> EntryIndex {
    EntryIndex((unit as u32) << UNIT_SHIFT | u32::from(index))
}

/// The destination of a virtual processor's interrupts.
struct VcpuRoute {
    guest: GuestId,
    apic_id: u32,
    /// The number of the processor that runs it.
    processor: usize,
    /// The descriptor, if interrupts are posted.
    descriptor: Option<Hpa>,
    /// Whether the processor delivers interrupts from the descriptor to the guest by itself.
    direct: bool,
    /// The mailbox, for interrupts that no device raises.
    mailbox: Option<Arc<Mailbox>>,
}

/// The machine, as the service's ports reach it.
pub struct MachinePorts {
    machine: &'static Machine,
    units: Vec<Option<Unit>>,
    /// The vectors of each processor, by its number.
    vectors: Vec<Vectors>,
    /// The route of each virtual processor.
    vcpu_routes: Shared<Vec<VcpuRoute>>,
    attachments: Attachments,
    spurious: AtomicU64,
    late: AtomicU64,
    own: AtomicU64,
    faults: FaultLog,
    /// Stores behind command interfaces, each with its function and its bus lock.
    slow_stores: Shared<Vec<(Bdf, Mutex<SlowStore<Mmio>>)>>,
}

impl MachinePorts {
    /// The ports with the machine's units, in the machine's order, `None` for a unit that is not up; and with the vectors of each processor
    /// by its number.
    ///
    /// # Safety
    /// Each [`StoreSpec`](crate::ims::StoreSpec) that a service with these ports is told of is one that `devices::passthrough::prepare` made: `slots` slots of mapped,
    /// uncached device memory at `base`, and of frames of its own at `shadow`, for as long as the service holds it.
    pub unsafe fn new(machine: &'static Machine, units: Vec<Option<Unit>>, vectors: Vec<Vectors>) -> Self {
        Self {
            machine,
            faults: FaultLog::new(units.len()),
            units,
            vectors,
            vcpu_routes: Shared::new(Vec::new()),
            attachments: Attachments::default(),
            spurious: AtomicU64::new(0),
            late: AtomicU64::new(0),
            own: AtomicU64::new(0),
            slow_stores: Shared::new(Vec::new()),
        }
    }

    /// The vectors of every processor.
    pub fn vectors(&self) -> &[Vectors] {
        &self.vectors
    }

    /// The vectors of processor `number`.
    pub fn vectors_of(&self, number: usize) -> Option<&Vectors> {
        self.vectors.get(number)
    }

    /// Sets the processor that runs a guest's virtual processor, so its interrupts go there from now on.
    pub fn settle(&self, guest: GuestId, apic_id: u32, number: usize) {
        self.vcpu_routes.write().push(VcpuRoute {
            guest,
            apic_id,
            processor: number,
            descriptor: None,
            direct: false,
            mailbox: None,
        });
    }

    /// Gives a virtual processor that has settled vectors of its processor: for guests with devices.
    pub fn admit(&self, guest: GuestId, apic_id: u32) {
        let vcpu_routes = self.vcpu_routes.read();
        let home = vcpu_routes.iter().find(|home| home.is_of(guest, apic_id) && home.descriptor.is_none());
        if let Some(vectors) = home.and_then(|home| self.vectors.get(home.processor)) {
            vectors.admit(guest, apic_id);
        }
    }

    /// The units that are up.
    pub fn units(&self) -> impl Iterator<Item = &Unit> {
        self.units.iter().flatten()
    }

    /// The units that are up, with their numbers.
    pub fn numbered_units(&self) -> impl Iterator<Item = (usize, &Unit)> {
        self.units.iter().enumerate().filter_map(|(number, unit)| Some((number, unit.as_ref()?)))
    }

    /// The segment that unit `number` serves.
    pub fn segment_of(&self, number: usize) -> u16 {
        self.machine.segment_of_unit(number)
    }

    /// The log of the units' faults.
    pub fn faults(&self) -> &FaultLog {
        &self.faults
    }

    /// The guest that these requests belong to.
    pub fn guest_of(&self, requests: Requests) -> Option<GuestId> {
        self.attachments.guest_of(requests)
    }

    /// Whether a unit that is up serves the function.
    pub fn covers(&self, bdf: Bdf) -> bool {
        self.unit(bdf).is_some()
    }

    /// The unit that serves a function, and its number.
    fn unit(&self, bdf: Bdf) -> Option<(usize, &Unit)> {
        let number = self.machine.unit_of(bdf)?;
        Some((number, self.units.get(number)?.as_ref()?))
    }

    /// Whether all units can post interrupts.
    pub fn can_post(&self) -> bool {
        self.units().all(|unit| unit.unit().capabilities().posts())
    }

    /// A processor's APIC ID in the format of a posted-interrupt descriptor: [`crate::vmx::posted::Descriptor::new`].
    pub fn notification_destination(&self, apic_id: u32) -> Option<u32> {
        let wide = self.units().all(Remapper::has_wide_destinations);
        if wide { Some(apic_id) } else { u8::try_from(apic_id).ok().map(|id| u32::from(id) << 8) }
    }

    /// Posts the interrupts of a virtual processor that has settled: new routes lead into its descriptor from now on. If `direct` is set,
    /// the processor delivers them to the guest by itself, else the hypervisor does.
    pub fn post_to(&self, guest: GuestId, apic_id: u32, descriptor: Hpa, direct: bool) {
        if let Some(home) = self.vcpu_routes.write().iter_mut().find(|home| home.is_of(guest, apic_id)) {
            (home.descriptor, home.direct) = (Some(descriptor), direct);
        }
    }

    /// Sets the mailbox of a virtual processor that has settled, for interrupts that no device raises.
    pub fn mailbox(&self, guest: GuestId, apic_id: u32, mailbox: &Arc<Mailbox>) {
        if let Some(home) = self.vcpu_routes.write().iter_mut().find(|home| home.is_of(guest, apic_id)) {
            home.mailbox = Some(Arc::clone(mailbox));
        }
    }

    /// Whether hardware posts a guest's interrupts to the guest without the hypervisor.
    pub fn posts_to(&self, guest: GuestId) -> bool {
        self.vcpu_routes.read().iter().any(|home| home.guest == guest && home.direct)
    }

    /// Forgets a guest's processors and descriptors. The service has released all routes to them.
    pub fn forget(&self, guest: GuestId) {
        self.vcpu_routes.write().retain(|home| home.guest != guest);
        self.vectors.iter().for_each(|vectors| vectors.forget(guest));
    }

    /// Counts an interrupt whose vector has no owner.
    pub fn count_spurious(&self) {
        self.spurious.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an interrupt for a virtual processor that has left.
    pub fn count_late(&self) {
        self.late.fetch_add(1, Ordering::Relaxed);
    }

    /// The number of interrupts for virtual processors that had left.
    pub fn late(&self) -> u64 {
        self.late.load(Ordering::Relaxed)
    }

    /// The number of interrupts whose vector had no owner.
    pub fn spurious(&self) -> u64 {
        self.spurious.load(Ordering::Relaxed)
    }

    /// Counts an interrupt of a parent function.
    pub fn count_own_interrupt(&self) {
        self.own.fetch_add(1, Ordering::Relaxed);
    }

    /// The number of interrupts of parent functions.
    pub fn own_interrupts(&self) -> u64 {
        self.own.load(Ordering::Relaxed)
    }

    /// Allocates the memory that attaching the function needs. It is never freed.
    pub fn prepare(&self, bdf: Bdf) -> Result<(), vtd::Error> {
        self.unit(bdf).map_or(Ok(()), |(_, unit)| unit.prepare(bdf))
    }

    /// Whether requests with PASIDs of a function can be attached: only if its unit is in scalable mode. If not, they are blocked.
    pub fn has_pasids(&self, bdf: Bdf) -> bool {
        self.unit(bdf).is_some_and(|(_, unit)| unit.has_pasids())
    }

    /// Attaches requests of a function to a guest's memory, at the guest's own addresses. `None` if no unit serves the function.
    pub fn attach(&self, guest: GuestId, requests: Requests, ram: &Ram) -> Option<Result<(), vtd::Error>> {
        let (_, unit) = self.unit(requests.0)?;
        Some(self.attachments.add(guest, requests, ram, unit))
    }

    /// Blocks a function's DMA to a guest's memory. Returns whether none can be under way any more.
    pub fn detach(&self, guest: GuestId, bdf: Bdf) -> bool {
        // Without a unit nothing was ever attached.
        self.unit(bdf).is_none_or(|(_, unit)| self.attachments.remove(guest, bdf, unit))
    }

    /// How interrupts are delivered to a guest's virtual processor.
    fn delivery_path(
        &self,
        vcpu_routes: &[VcpuRoute],
        guest: GuestId,
        apic_id: u32,
    ) -> Result<DeliveryPath<'_>, Status> {
        let home = vcpu_routes.iter().find(|home| home.is_of(guest, apic_id)).ok_or(Status::BadTarget)?;
        match home.descriptor {
            Some(descriptor) => Ok(DeliveryPath::Posted(descriptor)),
            None => self
                .vectors
                .get(home.processor)
                .ok_or(Status::BadTarget)?
                .vcpu(guest, apic_id)
                .map(DeliveryPath::Injected),
        }
    }

    /// The delivery path to a guest's virtual processor, and the fields of entries that lead there.
    #[inline(never)]
    fn run_binder(
        &self,
        vcpu_routes: &[VcpuRoute],
        entries: &Binder<'_>,
        unit: UnitNumber,
        guest: GuestId,
        apic_id: u32,
    ) -> Result<RunBinder<'_>, Status> {
        let path = self.delivery_path(vcpu_routes, guest, apic_id)?;
        let fields = entries.route_fields(path.route(ANY_VECTOR).into()).map_err(status)?;
        let route = PackedRoute::new(path.route(0));
        Ok(RunBinder { path, route, fields, unit: entry_index(unit.0.into(), 0) })
    }

    /// The unit of an entry, and the entry's index there.
    fn entry(&self, entry: EntryIndex) -> Option<(&Unit, u16)> {
        Some((self.units.get((entry.0 >> UNIT_SHIFT) as usize)?.as_ref()?, entry.0 as u16))
    }
}

/// How interrupts are delivered to a virtual processor.
enum DeliveryPath<'a> {
    /// Hardware posts them into the descriptor at this address.
    Posted(Hpa),
    /// They arrive at host vectors, and the hypervisor injects them.
    Injected(VcpuVectors<'a>),
}

impl DeliveryPath<'_> {
    /// The vector that an entry for a guest's vector holds. Counts one more use of it.
    #[inline]
    fn vector(&mut self, vector: u8) -> Result<u8, Status> {
        match self {
            Self::Posted(_) => Ok(vector),
            Self::Injected(vectors) => vectors.borrow().host(vector),
        }
    }

    /// The route with an entry's vector.
    #[inline]
    fn route(&self, vector: u8) -> HostRoute {
        match self {
            Self::Posted(descriptor) => HostRoute::Posted { descriptor: *descriptor, vector },
            Self::Injected(vectors) => vectors.host_route(vector),
        }
    }
}

impl From<HostRoute> for Route {
    fn from(route: HostRoute) -> Self {
        match route {
            HostRoute::Remapped { vector, destination } => Self::Remapped { vector, destination },
            HostRoute::Posted { descriptor, vector } => Self::Posted { descriptor, vector },
        }
    }
}

fn status(error: vtd::Error) -> Status {
    match error {
        vtd::Error::NoFreeEntry => Status::NoFreeEntry,
        vtd::Error::BadVector => Status::BadVector,
        vtd::Error::BadDestination => Status::BadTarget,
        _ => Status::HardwareError,
    }
}

/// Checks an operation on an entry that the service holds. It fails only if the service's accounts are wrong, which is our defect.
fn must(what: &str, entry: EntryIndex, result: Option<Result<(), vtd::Error>>) {
    match result {
        Some(Ok(())) => {}
        other => panic!("{what} of entry {:#x}: {other:?}", entry.0),
    }
}

impl Remap for MachinePorts {
    fn capacity(&self) -> u32 {
        (self.units.len() as u32) << UNIT_SHIFT
    }

    fn unit_of(&self, requester: Bdf) -> Result<UnitNumber, Status> {
        let number = self.unit(requester).and_then(|(number, _)| u16::try_from(number).ok());
        number.map(UnitNumber).ok_or(Status::Unsupported)
    }

    fn bind(&self, unit: UnitNumber, requester: Bdf, route: HostRoute) -> Result<EntryIndex, Status> {
        let remapper = self.units.get(usize::from(unit.0)).and_then(Option::as_ref).ok_or(Status::Unsupported)?;
        let index = remapper.bind(requester, route.into()).map_err(status)?;
        Ok(entry_index(unit.0.into(), index))
    }

    fn program(&self, entry: EntryIndex, route: HostRoute) {
        must("programming", entry, self.entry(entry).map(|(unit, index)| unit.program(index, route.into())));
    }

    fn clear(&self, entry: EntryIndex) {
        must("clearing", entry, self.entry(entry).map(|(unit, index)| unit.clear(index)));
    }

    fn block(&self, entry: EntryIndex) {
        must("blocking", entry, self.entry(entry).map(|(unit, index)| unit.block(index)));
    }

    fn flush(&self, entries: impl Iterator<Item = EntryIndex> + Clone) -> Result<(), Status> {
        let mut rest = entries.clone();
        if let (Some(entry), None) = (rest.next(), rest.next()) {
            let (unit, index) = self.entry(entry).ok_or(Status::HardwareError)?;
            return unit.flush_entry(index).map_err(|_| Status::HardwareError);
        }
        for (number, unit) in self.numbered_units() {
            let (first, end) = (entry_index(number, 0).0, entry_index(number + 1, 0).0);
            let own = entries.clone().filter(|entry| (first..end).contains(&entry.0)).map(|entry| entry.0 as u16);
            // What of a run is the unit's, if it is any.
            let runs = Runs::new(entries.clone().map(|entry| entry.0)).filter_map(|(from, to)| {
                let (from, to) = (from.max(first), to.min(end));
                (from < to).then(|| (from - first, to - first))
            });
            unit.flush_runs(runs, own).map_err(|_| Status::HardwareError)?;
        }
        Ok(())
    }

    fn flush_span(&self, Span { lowest, highest }: Span) -> Result<(), Status> {
        let (unit, first) = self.entry(lowest).ok_or(Status::HardwareError)?;
        unit.flush_run(first, highest.0 as u16).map_err(|_| Status::HardwareError)
    }

    fn release(&self, entry: EntryIndex) {
        must("releasing", entry, self.entry(entry).map(|(unit, index)| unit.release(index)));
    }

    fn message(&self, entry: EntryIndex) -> Message {
        let (address, data) = vtd::message(entry.0 as u16);
        Message { address, data }
    }
}

impl Bind for MachinePorts {
    /// Locks the table once for all runs, and a processor's vectors once for each run.
    #[inline(never)]
    fn bind_all<'a, W: AsMut<BindRequest> + 'a>(
        &self,
        guest: GuestId,
        unit: UnitNumber,
        requester: Bdf,
        runs: impl Iterator<Item = &'a mut [W]>,
    ) -> (usize, Span) {
        let (mut failed, mut span) = (0, Span::NONE);
        let Some(remapper) = self.units.get(usize::from(unit.0)).and_then(Option::as_ref) else {
            return (runs.map(|run| refuse(run, Status::Unsupported)).sum(), span);
        };
        let vcpu_routes = self.vcpu_routes.read();
        let mut entries = remapper.binder(requester);
        for run in runs {
            let Some(apic_id) = run.first_mut().map(|first| first.as_mut().target.apic_id) else { continue };
            failed += match self.run_binder(&vcpu_routes, &entries, unit, guest, apic_id) {
                Ok(mut binder) => binder.bind_run(&mut entries, run, &mut span),
                Err(status) => refuse(run, status),
            };
        }
        (failed, span)
    }
}

/// Fails all requests of a run with `status`. Returns their number.
#[cold]
fn refuse(run: &mut [impl AsMut<BindRequest>], status: Status) -> usize {
    run.iter_mut().for_each(|request| request.as_mut().result = Err(status));
    run.len()
}

/// Binds runs of requests for one virtual processor.
struct RunBinder<'a> {
    path: DeliveryPath<'a>,
    /// The route there, with vector 0.
    route: PackedRoute,
    fields: RouteFields,
    /// The unit's first entry.
    unit: EntryIndex,
}

impl RunBinder<'_> {
    /// Binds the requests of a run. Returns how many failed.
    #[inline(never)]
    fn bind_run(&mut self, entries: &mut Binder<'_>, run: &mut [impl AsMut<BindRequest>], span: &mut Span) -> usize {
        let (route, fields, first) = (self.route, self.fields, self.unit.0);
        let mut bound = |vector| {
            let entry = EntryIndex(first | u32::from(entries.bind(fields, vector).map_err(status)?));
            Ok(BoundEntry { route: route.or_vector(vector), entry })
        };
        match &mut self.path {
            DeliveryPath::Posted(_) => bind_each(run, span, bound),
            DeliveryPath::Injected(vectors) => {
                let mut vectors = vectors.borrow();
                bind_each(run, span, |vector| {
                    let host = vectors.host(vector)?;
                    bound(host).inspect_err(|_| vectors.end_use(vector, host))
                })
            }
        }
    }
}

/// Calls `bind` with the vector of each request of a run and stores the result. Returns how many failed.
#[inline(always)]
fn bind_each(
    run: &mut [impl AsMut<BindRequest>],
    span: &mut Span,
    mut bind: impl FnMut(u8) -> Result<BoundEntry, Status>,
) -> usize {
    let (mut failed, mut own) = (0, *span);
    for request in run.iter_mut().map(AsMut::as_mut) {
        match bind(request.target.vector) {
            Ok(bound) => {
                own.add(bound.entry);
                request.result = Ok(bound);
            }
            Err(status) => {
                failed += 1;
                request.result = Err(status);
            }
        }
    }
    *span = own;
    failed
}

impl VcpuRoute {
    fn is_of(&self, guest: GuestId, apic_id: u32) -> bool {
        self.guest == guest && self.apic_id == apic_id
    }
}

impl Delivery for MachinePorts {
    fn route(&self, guest: GuestId, target: Target) -> Result<HostRoute, Status> {
        let mut path = self.delivery_path(&self.vcpu_routes.read(), guest, target.apic_id)?;
        let vector = path.vector(target.vector)?;
        Ok(path.route(vector))
    }

    fn unroute(&self, guest: GuestId, target: Target, route: HostRoute) {
        let vcpu_routes = self.vcpu_routes.read();
        if let Some(home) = vcpu_routes.iter().find(|home| home.is_of(guest, target.apic_id))
            && let Some(vectors) = self.vectors.get(home.processor)
        {
            vectors.unroute(guest, target, route);
        }
    }

    fn nowhere(&self) -> HostRoute {
        // Nothing else uses the vector, so an interrupt that ends there is counted once, as discarded. This processor gets it: a guest that has many
        // discarded takes nobody else's time.
        let destination = self.vectors.get(cpu::percpu::this_cpu().number).map_or(0, Vectors::destination);
        HostRoute::Remapped { vector: apic::DISCARD_VECTOR, destination }
    }

    fn deliver(&self, guest: GuestId, target: Target) {
        let vcpu_routes = self.vcpu_routes.read();
        if let Some(home) = vcpu_routes.iter().find(|home| home.is_of(guest, target.apic_id))
            && let Some(mailbox) = &home.mailbox
        {
            mailbox.request(target.vector);
        }
    }
}
