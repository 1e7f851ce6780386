//! The driver: its slots, how it raises them, and what it counts.

use guests::bare::assigned::{AssignedDsa, Records};
use guests::bare::take_once::TakeOnce;
use guests::bare::{apic, idle, interrupts, vector};
use guests::dsa::{Completion, Descriptor};
use guests::guest_shim::domain::SlotState;
use guests::guest_shim::hcall_abi::{DeviceInfo, Status, StoreKind, Target};
use guests::guest_shim::vmcall::Vmcall;
use guests::guest_shim::{BatchPage, Domain, Hypercalls, Interrupt, MmioStore, Request};
use guests::println;
use guests::tally::Tally;

/// Most slots that the demo takes.
pub const MAX_SLOTS: usize = 1024;
/// Slots that are in flight together: at most as many as there are vectors, and as the queues hold.
pub const IN_FLIGHT: usize = 64;
/// Ticks of the TSC after which an interrupt or a completion is given up.
const LIMIT: u64 = 400_000_000;
/// Errors that are told one by one.
const ERRORS_TOLD: u32 = 20;
/// Most slots a store can have.
const STORE_SLOTS: usize = 1 << 14;

/// Counts the interrupts of slots by number.
pub static TALLY: Tally<MAX_SLOTS> = Tally::new();
static RECORDS: Records<{ MAX_SLOTS * Completion::SIZE as usize }> = Records::new();
static STATES: TakeOnce<[SlotState; STORE_SLOTS]> = TakeOnce::new([SlotState::FREE; STORE_SLOTS]);
static SLOTS: TakeOnce<[Option<Slot>; MAX_SLOTS]> = TakeOnce::new([const { None }; MAX_SLOTS]);

/// A domain of either way.
pub type ImsDomain = Domain<'static, Vmcall, MmioStore>;

/// A slot in use.
pub struct Slot {
    /// What its domain knows it by.
    pub interrupt: Interrupt,
    /// What a descriptor says to raise it.
    pub handle: u16,
    /// The vector it comes on.
    pub vector: u8,
    /// Interrupts raised so far.
    pub raised: u32,
}

/// The driver.
pub struct Driver {
    /// The device.
    pub device: AssignedDsa,
    /// On bare metal there is none.
    by_hypercall: Option<ImsDomain>,
    by_store: ImsDomain,
    slots: &'static mut [Option<Slot>; MAX_SLOTS],
    count: u16,
    /// What went wrong.
    pub errors: u32,
    /// Descriptors that succeeded.
    pub descriptors: u32,
    /// Bytes that were moved.
    pub bytes: u64,
    /// Descriptors whose result was found to be right.
    pub verified: u32,
}

impl Driver {
    /// The driver of `device`, with no slots yet.
    pub fn new(
        device: AssignedDsa,
        calls: Option<Hypercalls<Vmcall>>,
        mut page: BatchPage<'static>,
    ) -> Result<Self, &'static str> {
        if let Some(calls) = &calls {
            check_device(&device, calls, &mut page)?;
        }
        let by_hypercall = calls.map(|calls| Domain::hypercall(calls, device.id(), page));
        let by_store = Domain::native(device.store(), STATES.take());
        let slots = SLOTS.take();
        Ok(Self { device, by_hypercall, by_store, slots, count: 0, errors: 0, descriptors: 0, bytes: 0, verified: 0 })
    }

    /// Takes slots: the even numbers by hypercall, the odd ones by writing them.
    pub fn take_slots(&mut self, count: u16) -> Result<(), &'static str> {
        self.count = count;
        let mut interrupts = [const { None::<Interrupt> }; MAX_SLOTS / 2];
        self.request(0, &mut interrupts).map_err(|status| say("even slots", status))?;
        if self.by_hypercall.is_some() {
            self.keep_away(&interrupts);
        }
        self.place(0, &mut interrupts)?;
        self.request(1, &mut interrupts).map_err(|status| say("odd slots", status))?;
        self.place(1, &mut interrupts)?;
        let by_hypercall = if self.by_hypercall.is_some() { count.div_ceil(2) } else { 0 };
        println!("demo: {by_hypercall} slots mapped by hypercall, {} by writing the store", count - by_hypercall);
        Ok(())
    }

    /// The numbers of `parity`.
    fn numbers(&self, parity: u16) -> impl Iterator<Item = u16> + use<> {
        (parity..self.count).step_by(2)
    }

    fn request(&mut self, parity: u16, out: &mut [Option<Interrupt>; MAX_SLOTS / 2]) -> Result<(), Status> {
        let mut requests = [request_to(vector::FIRST, 0); MAX_SLOTS / 2];
        let mut count = 0;
        for (request, n) in requests.iter_mut().zip(self.numbers(parity)) {
            *request = request_to(vector::of_slot(n), n);
            count += 1;
        }
        self.domain(parity).request(0, &requests[..count], out)
    }

    /// A driver that writes the store has its own slots: not those that the hypervisor gave out.
    fn keep_away(&mut self, taken: &[Option<Interrupt>]) {
        let half = (self.device.dsa.ims_slots() / 2) as u16;
        if let Domain::Native(native) = &mut self.by_store {
            native.reserve(|index| index < half || taken.iter().flatten().any(|interrupt| interrupt.index() == index));
        }
    }

    fn place(&mut self, parity: u16, interrupts: &mut [Option<Interrupt>]) -> Result<(), &'static str> {
        for (n, interrupt) in self.numbers(parity).zip(interrupts) {
            let interrupt = interrupt.take().ok_or("a slot is missing")?;
            self.put(n, interrupt, 0)?;
        }
        Ok(())
    }

    /// Makes `interrupt` the slot with number `n`.
    pub fn put(&mut self, n: u16, interrupt: Interrupt, raised: u32) -> Result<(), &'static str> {
        let handle = self.device.dsa.request_ims_handle(interrupt.index()).map_err(|error| {
            println!("demo: slot {}: {error:?}", interrupt.index());
            "no handle for a slot"
        })?;
        self.slots[usize::from(n)] = Some(Slot { interrupt, handle, vector: vector::of_slot(n), raised });
        Ok(())
    }

    /// Takes the slot with number `n` out.
    pub fn take(&mut self, n: u16) -> Option<Slot> {
        self.slots[usize::from(n)].take()
    }

    /// How many slots there are.
    pub const fn count(&self) -> u16 {
        self.count
    }

    /// The domain of slot number `n`.
    pub const fn domain(&mut self, n: u16) -> &mut ImsDomain {
        match &mut self.by_hypercall {
            Some(domain) if n.is_multiple_of(2) => domain,
            _ => &mut self.by_store,
        }
    }

    /// Slot number `n` and its domain.
    pub fn slot(&mut self, n: u16) -> Option<(&mut ImsDomain, &mut Slot)> {
        let domain = match &mut self.by_hypercall {
            Some(domain) if n.is_multiple_of(2) => domain,
            _ => &mut self.by_store,
        };
        Some((domain, self.slots[usize::from(n)].as_mut()?))
    }

    /// Tells and counts what went wrong.
    pub fn error(&mut self, n: u16, what: &str) {
        self.errors += 1;
        if self.errors <= ERRORS_TOLD {
            println!("demo: error: slot number {n}: {what}");
        }
    }

    /// Submits a descriptor for slot number `n` and expects its interrupt.
    pub fn submit(&mut self, n: u16, descriptor: impl FnOnce(u64, u16) -> Descriptor) {
        let Some(slot) = self.slots[usize::from(n)].as_mut() else {
            return self.error(n, "not taken");
        };
        RECORDS.clear(n.into());
        if !TALLY.expect(slot.vector, n) {
            return self.error(n, "its vector is in use");
        }
        slot.raised += 1;
        let descriptor = descriptor(RECORDS.address(n.into()), slot.handle);
        let queue = usize::from(n / 2) % self.device.portals.len();
        self.device.portals[queue].submit(&descriptor);
    }

    /// Keeps slot number `n`'s queue busy with `count` descriptors that raise nothing.
    pub fn dawdle(&mut self, n: u16, count: usize) {
        let descriptor = Descriptor::noop(RECORDS.address(MAX_SLOTS - 1), 0).without_interrupt();
        let queue = usize::from(n / 2) % self.device.portals.len();
        (0..count).for_each(|_| self.device.portals[queue].submit(&descriptor));
    }

    /// Sleeps until interrupts came for all that is expected.
    pub fn wait_for(&self, total: u32) -> bool {
        idle::wait_until(LIMIT, || TALLY.total() >= total)
    }

    /// Looks until descriptor `n` is complete.
    pub fn poll(&self, n: u16) -> bool {
        idle::poll_until(LIMIT, || RECORDS.complete(n.into()))
    }

    /// What the device says of descriptor `n`, when it was to succeed.
    pub fn completion(&mut self, n: u16) -> Completion {
        let record = RECORDS.get(n.into());
        if record.succeeded() {
            self.descriptors += 1;
        } else {
            println!("demo: slot number {n}: {record:x?}");
            self.error(n, "its descriptor failed");
        }
        record
    }

    /// Ends the expectation of what did not come.
    pub fn settle(&mut self, n: u16) {
        let vector = self.slots[usize::from(n)].as_ref().map_or(0, |slot| slot.vector);
        if TALLY.forget(vector).is_some() {
            self.error(n, "its interrupt did not come");
        }
    }

    /// Counts everything up.
    pub fn report(mut self) -> Result<(), &'static str> {
        for n in 0..self.count {
            let raised = self.slots[usize::from(n)].as_ref().map_or(0, |slot| slot.raised);
            if TALLY.handled(n) != raised {
                self.error(n, "interrupts handled and raised differ");
            }
        }
        if TALLY.strays() != 0 {
            println!("demo: {} strays, the last on vector {:#x}", TALLY.strays(), TALLY.last_stray());
            self.errors += TALLY.strays();
        }
        let fired = (0..self.count).filter(|&n| TALLY.handled(n) > 0).count();
        println!(
            "@result descriptors={} bytes={} verified={} slots={} slots_fired={fired} handled={} errors={} timeouts={}",
            self.descriptors,
            self.bytes,
            self.verified,
            self.count,
            TALLY.total(),
            self.errors,
            interrupts::count(apic::TIMER_VECTOR)
        );
        let complete = fired == usize::from(self.count) && self.errors == 0;
        if complete { Ok(()) } else { Err("not everything was right") }
    }
}

/// Where interrupts of slot number `n` go: to this processor, on `vector`.
pub fn request_to(vector: u8, n: u16) -> Request {
    Request { target: Target { apic_id: apic::id(), vector }, unmask: true, cookie: n.into() }
}

fn say(what: &str, status: Status) -> &'static str {
    println!("demo: {what}: {status}");
    "no slots"
}

/// What the hypervisor says of the device must be what the device says.
fn check_device(device: &AssignedDsa, calls: &Hypercalls<Vmcall>, page: &mut BatchPage) -> Result<(), &'static str> {
    calls.nop().map_err(|status| say("nop", status))?;
    if calls.device(0) != Ok(device.id()) {
        return Err("the hypervisor's first device is not ours");
    }
    let info = calls.query(device.id(), page).map_err(|status| say("query", status))?;
    let expected = DeviceInfo {
        kind: StoreKind::Array,
        slots: device.dsa.ims_slots(),
        free: info.free,
        bar: 0,
        offset: device.dsa.ims_offset() as u32,
        device: device.id(),
        pasids: None,
    };
    if info != expected {
        println!("demo: the hypervisor says {info:?}, the device {expected:?}");
        return Err("hypervisor and device disagree");
    }
    Ok(())
}
