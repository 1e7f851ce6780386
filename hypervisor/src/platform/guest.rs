//! A guest that runs, or waits.

use alloc::vec::Vec;

use super::{memory::FRAMES, outside::Outside, world::World};
use crate::{
    addr::Hpa,
    cpu,
    ept::Ept,
    event,
    exits::{Devices, EndReason},
    ims::GuestId,
    memory::{FrameSource, Ram},
    vmx::{Vcpu, exit::Reason},
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
    /// Its memory.
    pub ram: Ram,
    /// Everything else it can reach.
    pub outside: Outside,
    /// Its extended page tables.
    pub ept: Ept,
    /// Frames that are its own besides: VMCS, bitmaps, shadows; first frame and number.
    pub frames: Vec<(Hpa, u64)>,
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

    /// Tells that the guest starts, once, right before its first instruction. `epoch` is the TSC at the hypervisor's entry.
    pub fn announce(&mut self, epoch: u64) {
        if !self.announced {
            self.announced = true;
            event!(
                "guest-start guest={} name={} memory_mib={} entry_instructions={}",
                self.id.0,
                self.name(),
                self.ram.len() >> 20,
                cpu::tsc().wrapping_sub(epoch)
            );
        }
    }

    /// Tells how it ended, and what it did.
    pub fn report(&mut self, reason: EndReason) {
        use crate::exits::Platform;
        let Self { devices, outside, .. } = self;
        devices.uart.flush(&mut |line| outside.console(line));
        if let EndReason::Killed(why) = reason {
            log::error!("guest {}: {why}", self.name());
            self.vcpu.dump();
        }
        if reason == EndReason::TripleFault {
            self.vcpu.dump();
        }
        self.report_exits();
        let domain = self.outside.domain.counters();
        event!(
            "interrupts guest={} delivered={} merged={} dropped={} hypercalls={} trapped_writes={} refused={}",
            self.id.0,
            self.counts.delivered,
            self.counts.merged,
            self.counts.dropped,
            domain.hypercalls,
            domain.trapped_writes,
            domain.refused
        );
        event!("guest-end guest={} name={} reason={} code={}", self.id.0, self.name(), reason.name(), reason.code());
    }

    /// One key for each name of a reason; several reasons can share a name.
    fn report_exits(&self) {
        let mut named: Vec<(&str, u64)> = Vec::new();
        for (number, &count) in (0..).zip(&self.counts.exits).filter(|(_, count)| **count != 0) {
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
        event!("exits guest={}{line}", self.id.0);
    }

    /// Gives back everything that the guest held: interrupts first, then its devices' ways to memory, then the memory.
    pub fn tear_down(self) {
        let Self { vcpu, ram, outside, ept, frames, devices, .. } = self;
        let Outside { functions, service, domain, .. } = outside;
        for function in &functions {
            function.quiesce();
        }
        service.detach(&domain);
        let mut reachable = false;
        for function in functions {
            reachable |= !function.release(service.ports());
        }
        // Before its EPT goes, the processor forgets what it cached of it.
        let eptp = ept.pointer();
        vcpu.retire().unwrap_or_else(|failure| panic!("VMCLEAR: {failure}"));
        crate::vmx::instr::invept(eptp).unwrap_or_else(|failure| panic!("INVEPT: {failure}"));
        drop(devices);
        if reachable {
            log::error!("a device of guest memory could not be detached: the memory is given up");
            return;
        }
        // SAFETY: the VMCS is cleared and cached translations are dropped, the devices are detached and flushed, so nothing leads to
        // the guest's frames any more.
        unsafe {
            ept.free(&FRAMES);
            ram.free(&FRAMES);
            for (base, count) in frames {
                FRAMES.free(base, count);
            }
        }
    }
}
