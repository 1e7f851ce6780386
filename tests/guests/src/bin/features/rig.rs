//! A device, its interrupt domain, and interrupts that are counted.

use core::sync::atomic::{AtomicU32, Ordering::SeqCst};

use guests::bare::assigned::{AssignedDsa, Records, batch_page, hypercalls};
use guests::bare::dma::DmaBuffer;
use guests::bare::{Guest, apic, idle, interrupts, smp};
use guests::dsa::Descriptor;
use guests::guest_shim::hcall_abi::{FaultRecord, Status, Target};
use guests::guest_shim::vmcall::Vmcall;
use guests::guest_shim::{BatchPage, Domain, Hypercalls, Interrupt, MmioStore, Request};
use guests::println;

/// Ticks after which an interrupt is given up.
pub const LIMIT: u64 = 100_000_000;
/// Ticks in which an interrupt that must not come would have come.
pub const QUIET: u64 = 50_000;

/// A domain, whichever way it goes.
pub type ImsDomain = Domain<'static, Vmcall, MmioStore>;

static DOMAIN_PAGE: DmaBuffer<4096> = DmaBuffer::new();
static CALLS_PAGE: DmaBuffer<4096> = DmaBuffer::new();
static RECORDS: Records<4096> = Records::new();

/// Interrupts by the processor and the vector on which they came.
static CAME: [[AtomicU32; 256]; smp::MOST] = [const { [const { AtomicU32::new(0) }; 256] }; smp::MOST];

/// Counts interrupts from now on.
pub fn count_interrupts() {
    smp::install();
    interrupts::set_handler(|vector| {
        CAME[smp::number()][usize::from(vector)].fetch_add(1, SeqCst);
    });
}

/// How many interrupts came to a target.
pub fn came(target: Target) -> u32 {
    CAME[target.apic_id as usize][usize::from(target.vector)].load(SeqCst)
}

/// How many interrupts came at all.
pub fn all_that_came() -> u32 {
    CAME.iter().flatten().map(|count| count.load(SeqCst)).sum()
}

/// The target on this processor.
pub fn here(vector: u8) -> Target {
    Target { apic_id: apic::id(), vector }
}

/// What a driver has.
pub struct Rig {
    /// The device.
    pub device: AssignedDsa,
    /// Its interrupts.
    pub domain: ImsDomain,
    /// Calls.
    pub calls: Hypercalls<Vmcall>,
    /// A page for calls.
    pub page: BatchPage<'static>,
    /// What went wrong.
    pub errors: u32,
}

impl Rig {
    /// Everything, ready to work.
    pub fn new(guest: &Guest) -> Result<Self, &'static str> {
        count_interrupts();
        let calls = hypercalls().ok_or("no hypercall domain")?;
        let device = AssignedDsa::start(guest).map_err(|_| "no device to work with")?;
        let domain = Domain::hypercall(calls, device.id(), batch_page(&DOMAIN_PAGE));
        Ok(Self { device, domain, calls, page: batch_page(&CALLS_PAGE), errors: 0 })
    }

    /// Something is not as it should be.
    pub fn wrong(&mut self, what: &str) {
        self.errors += 1;
        println!("features: error: {what}");
    }

    /// It has to be so.
    pub fn check(&mut self, what: &str, right: bool) {
        if !right {
            self.wrong(what);
        }
    }

    /// It has to succeed.
    pub fn need<T>(&mut self, what: &str, result: Result<T, Status>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(status) => {
                println!("features: {what}: {status}");
                self.wrong(what);
                None
            }
        }
    }

    /// A slot that is mapped and unmasked; its cookie is `cookie`.
    pub fn mapped(&mut self, group: u32, target: Target, cookie: u64) -> Result<Interrupt, &'static str> {
        let mut out = [None];
        let request = Request { target, unmask: true, cookie };
        self.domain.request(group, &[request], &mut out).map_err(|_| "no slot can be mapped")?;
        out[0].take().ok_or("no slot")
    }

    /// Has the device raise the slot with this index, and waits until it has done so.
    pub fn raise(&mut self, index: u16) -> bool {
        let Ok(handle) = self.device.dsa.request_ims_handle(index) else { return false };
        RECORDS.clear(0);
        self.device.portals[0].submit(&Descriptor::noop(RECORDS.address(0), handle));
        idle::poll_until(LIMIT, || RECORDS.complete(0)) && RECORDS.get(0).succeeded()
    }

    /// Raises a slot; exactly one interrupt has to come, to the target.
    pub fn fires(&mut self, index: u16, target: Target) -> bool {
        let (before, all) = (came(target), all_that_came());
        let raised = self.raise(index) && idle::poll_until(LIMIT, || came(target) != before);
        raised && came(target) == before + 1 && all_that_came() == all + 1
    }

    /// Raises a slot; nothing may come of it.
    pub fn is_quiet(&mut self, index: u16) -> bool {
        let all = all_that_came();
        let raised = self.raise(index);
        idle::linger(QUIET);
        raised && all_that_came() == all
    }

    /// Free slots, as the hypervisor counts them.
    pub fn free_slots(&mut self) -> Result<u32, &'static str> {
        self.calls.query(self.device.id(), &mut self.page).map(|info| info.free).map_err(|_| "the query failed")
    }

    /// Reads faults of the guest's slots, at most as many as `records` has room for.
    pub fn read_faults(&mut self, records: &mut [Option<FaultRecord>]) -> usize {
        let read = self.calls.read_faults(records, &mut self.page);
        self.need("reading faults", read).unwrap_or(0)
    }

    /// Nothing may have gone wrong.
    pub fn finish(&self) -> Result<(), &'static str> {
        if self.errors == 0 { Ok(()) } else { Err("not everything was right") }
    }
}
