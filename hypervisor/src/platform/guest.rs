//! A guest that runs, or waits.

use alloc::{format, string::String, sync::Arc, vec::Vec};

use super::{
    assign::Assigned,
    memory::FRAMES,
    outside::{Outside, Reach},
    ports::MachineService,
    world::World,
};
use crate::{
    addr::Hpa,
    cpu,
    ept::Ept,
    event,
    exits::{Context, Devices, EndReason, Next, dispatch},
    ims::{Domain, GuestId},
    memory::{FrameSource, Ram},
    vdev::x2apic::Accepted,
    vmx::{Exit, Vcpu, VirtualApic, exit::Reason, fields, instr, posted::Turn},
};

/// Exit reasons that are counted: all that the processor can give, in 16 bits, end far below this.
const REASONS: usize = 80;

/// Whether a guest can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It can.
    Ready,
    /// It waits for an interrupt.
    Halted,
    /// It waits for room on the console.
    Blocked,
}

/// What happened to a guest so far.
pub struct Counts {
    exits: [u64; REASONS],
    /// Devices' interrupts given to its local APIC.
    pub delivered: u64,
    /// Those that met one with the same vector there, and became one with it.
    pub merged: u64,
    /// Those that its local APIC did not take.
    pub dropped: u64,
}

impl Default for Counts {
    fn default() -> Self {
        Self { exits: [0; REASONS], delivered: 0, merged: 0, dropped: 0 }
    }
}

impl Counts {
    /// Counts an exit by its basic reason's number.
    pub fn exit(&mut self, number: u16) {
        self.exits[usize::from(number).min(REASONS - 1)] += 1;
    }

    /// Tells the exits so far. One key for each name of a reason; several reasons can share a name.
    pub fn report_exits(&self, guest: GuestId) {
        let mut named: Vec<(&str, u64)> = Vec::new();
        for (number, &count) in (0..).zip(&self.exits).filter(|(_, count)| **count != 0) {
            let name = Reason::name(number);
            match named.iter_mut().find(|(known, _)| *known == name) {
                Some((_, sum)) => *sum += count,
                None => named.push((name, count)),
            }
        }
        let mut line = alloc::string::String::new();
        for (name, count) in named {
            let _ = core::fmt::write(&mut line, format_args!(" {name}={count}"));
        }
        event!("exits guest={}{line}", guest.0);
    }
}

/// What a guest holds of the machine, apart from its processor. It is given back when this is dropped: interrupts first, then the
/// devices' ways to memory, then memory.
pub struct Holdings {
    id: GuestId,
    service: &'static MachineService,
    /// Its memory.
    pub ram: Option<Ram>,
    /// Its extended page tables.
    pub ept: Option<Ept>,
    /// Frames that are its own besides: VMCS, bitmaps, shadows; first frame and number.
    pub frames: Vec<(Hpa, u64)>,
    /// The functions assigned to it.
    pub functions: Vec<Assigned>,
    /// Its interrupt domain.
    pub domain: Option<Arc<Domain>>,
}

impl Holdings {
    /// Whether its devices' interrupts are posted.
    pub fn is_posted(&self) -> bool {
        self.service.ports().posts_to(self.id)
    }

    /// Nothing, for guest `id`.
    pub fn new(id: GuestId, service: &'static MachineService) -> Self {
        Self { id, service, ram: None, ept: None, frames: Vec::new(), functions: Vec::new(), domain: None }
    }
}

impl Drop for Holdings {
    fn drop(&mut self) {
        for function in &self.functions {
            function.quiesce();
        }
        if let Some(domain) = self.domain.take() {
            self.service.detach(&domain);
        }
        self.service.ports().forget(self.id);
        let mut detached = true;
        for function in self.functions.drain(..) {
            detached &= function.release(self.service.ports());
        }
        let (ept, ram) = (self.ept.take(), self.ram.take());
        if let Some(ept) = &ept {
            instr::invept(ept.pointer()).unwrap_or_else(|failure| panic!("INVEPT: {failure}"));
        }
        if !detached {
            log::error!("a device could not be detached: the memory that it could reach is given up");
            return;
        }
        // SAFETY: the guest's VMCS was cleared before this is dropped, cached translations are dropped, and the devices are detached
        // and flushed, so nothing leads to these frames any more.
        unsafe {
            if let Some(ept) = ept {
                ept.free(&FRAMES);
            }
            if let Some(ram) = ram {
                ram.free(&FRAMES);
            }
            for (base, count) in self.frames.drain(..) {
                FRAMES.free(base, count);
            }
        }
    }
}

/// A guest with one virtual processor.
pub struct Guest {
    /// Which.
    pub id: GuestId,
    /// Whether it can run.
    pub state: State,
    /// Its processor.
    pub vcpu: Vcpu,
    /// Its share of the machine's processor while another guest runs.
    pub world: World,
    /// Its virtual devices.
    pub devices: Devices,
    /// Where the processor keeps its local APIC, if it does.
    pub virtual_apic: Option<VirtualApic>,
    /// Its console, and what it finds outside of its memory.
    pub outside: Outside,
    /// What it holds of the machine.
    pub holdings: Holdings,
    /// What happened so far.
    pub counts: Counts,
    /// Whether its start has been told.
    pub announced: bool,
}

impl Guest {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.outside.name
    }

    /// Serves an exit. `xcr0_supported` are the bits that it may set in XCR0.
    pub fn serve(&mut self, exit: Exit, xcr0_supported: u64) -> Next {
        let Holdings { service, ram: Some(ram), functions, domain: Some(domain), .. } = &mut self.holdings else {
            return Next::End(EndReason::Killed("it has no memory"));
        };
        let mut reach =
            Reach { guest: self.id, counts: &self.counts, outside: &mut self.outside, functions, service, domain };
        let mut context = Context {
            vcpu: &mut self.vcpu,
            devices: &mut self.devices,
            ram,
            xcr0: (&mut self.world.fpu.xcr0, xcr0_supported),
            platform: &mut reach,
        };
        dispatch::serve(&mut context, exit)
    }

    /// A device's interrupt that the hypervisor has taken for it.
    pub fn accept(&mut self, vector: u8) {
        if let Some(virtual_apic) = &self.virtual_apic {
            virtual_apic.request(vector);
            self.counts.delivered += 1;
            return;
        }
        match self.devices.apic.accept(vector) {
            Accepted::New => self.counts.delivered += 1,
            Accepted::Merged => self.counts.merged += 1,
            Accepted::Illegal | Accepted::Disabled => self.counts.dropped += 1,
        }
    }

    /// Whether an interrupt would be delivered if it could take any. Only while it does not run.
    pub fn has_pending(&mut self) -> bool {
        self.gather_requests();
        match &self.virtual_apic {
            Some(virtual_apic) => virtual_apic.is_pending(),
            None => self.devices.apic.pending().is_some(),
        }
    }

    /// Says who runs, to those who post interrupts.
    pub fn set_turn(&self, turn: Turn) {
        if let Some(virtual_apic) = &self.virtual_apic {
            virtual_apic.set_turn(turn);
        }
    }

    /// Leaves the delivery of interrupts to the processor, where it keeps the local APIC. Returns whether it does.
    pub fn hand_over_requests(&mut self) -> bool {
        let gathered = self.gather_requests();
        let Some(virtual_apic) = &self.virtual_apic else { return false };
        if gathered && let Some(vector) = virtual_apic.highest_request() {
            self.vcpu.set_requested(vector);
        }
        true
    }

    /// Puts what was posted, and what the model of the local APIC requests (its timer, IPIs), into the virtual-APIC page. Returns
    /// whether there may be something new.
    fn gather_requests(&mut self) -> bool {
        let Some(virtual_apic) = &self.virtual_apic else { return false };
        while let Some(vector) = self.devices.apic.pending() {
            // The model has done its part with the request: service and EOI are the page's.
            self.devices.apic.begin(vector);
            self.devices.apic.end();
            virtual_apic.request(vector);
        }
        virtual_apic.take_posted();
        true
    }

    /// Whether an interrupt could wake it from HLT: RFLAGS.IF.
    pub fn can_wake(&self) -> bool {
        self.vcpu.read(fields::GUEST_RFLAGS) & cpu::bits::rflags::IF != 0
    }

    /// Tells that the guest starts, once, right before its first instruction. `epoch` is the TSC at the hypervisor's entry.
    pub fn announce(&mut self, epoch: u64) {
        if !self.announced {
            self.announced = true;
            event!(
                "guest-start guest={} name={} memory_mib={} entry_instructions={}",
                self.id.0,
                self.name(),
                self.holdings.ram.as_ref().map_or(0, Ram::len) >> 20,
                cpu::tsc().wrapping_sub(epoch)
            );
        }
    }

    /// Tells how it ended, and what it did.
    pub fn report(&mut self, reason: EndReason) {
        let Self { devices, outside, .. } = self;
        devices.uart.flush(&mut |line| {
            outside.console(line);
        });
        if let EndReason::Killed(why) = reason {
            log::error!("guest {}: {why}", self.name());
            self.vcpu.dump();
        }
        if reason == EndReason::TripleFault {
            self.vcpu.dump();
        }
        self.counts.report_exits(self.id);
        let domain = self.holdings.domain.as_ref().map(|domain| domain.counters()).unwrap_or_default();
        // Posted interrupts pass the hypervisor by: nobody there could count them.
        let delivered = if self.holdings.is_posted() {
            String::from("posted=yes")
        } else {
            format!("delivered={}", self.counts.delivered)
        };
        event!(
            "interrupts guest={} {delivered} merged={} dropped={} hypercalls={} trapped_writes={} refused={}",
            self.id.0,
            self.counts.merged,
            self.counts.dropped,
            domain.hypercalls,
            domain.trapped_writes,
            domain.refused
        );
        event!("guest-end guest={} name={} reason={} code={}", self.id.0, self.name(), reason.name(), reason.code());
    }

    /// Gives back everything that the guest held.
    pub fn tear_down(self) {
        let Self { vcpu, holdings, .. } = self;
        // The frame of the VMCS is among the holdings.
        vcpu.retire().unwrap_or_else(|failure| panic!("VMCLEAR: {failure}"));
        drop(holdings);
    }
}
