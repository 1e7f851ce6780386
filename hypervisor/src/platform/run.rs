//! The run loop: whose turn it is, what waits for it, and what became of it.
//!
//! One processor serves all guests in turn. A guest runs until its slice is over, it waits, or it ends; interrupts of the machine come
//! in by VM exits, or, when nobody runs, by the interrupt that ends the processor's HLT.

use alloc::vec::Vec;

use super::{
    guest::{Guest, State},
    ports::MachineService,
};
use crate::{
    apic, console,
    cpu::{self, fpu::Xsave, interrupts},
    exits::{EndReason, Next},
    vmx::{Event, EventKind, Exit, Host, fields, posted::Turn},
};

/// Ticks of the TSC that a guest runs before another one's turn.
const SLICE: u64 = 4_000_000;

/// Exits after which the time is looked at in any case.
const EXITS_BETWEEN_LOOKS: u32 = 64;

/// Ticks after the VMX-preemption timer's end at which the local APIC's timer ends a guest's MWAIT: in C-states deeper than C2 the
/// VMX-preemption timer stands still (SDM vol. 3, 27.5.1), and a guest could keep the processor from the others, or sleep through its
/// own timer.
const SLEEP_GRACE: u64 = 10_000;

/// What the processor has, and who runs on it.
pub struct Runner {
    host: Host,
    xsave: Xsave,
    has_tsc_aux: bool,
    has_tsc_deadline: bool,
    service: &'static MachineService,
    guests: Vec<Guest>,
    /// Whose registers are in the processor.
    current: Option<usize>,
    /// TSC at the hypervisor's entry.
    epoch: u64,
}

impl Runner {
    /// With no guest yet.
    pub fn new(host: Host, xsave: Xsave, service: &'static MachineService, epoch: u64) -> Self {
        let has_tsc_aux = raw_cpuid::CpuId::new()
            .get_extended_processor_and_feature_identifiers()
            .is_some_and(|features| features.has_rdtscp());
        Self {
            host,
            xsave,
            has_tsc_aux,
            has_tsc_deadline: apic::has_tsc_deadline(),
            service,
            guests: Vec::new(),
            current: None,
            epoch,
        }
    }

    /// The processor, as a VMCS's host state knows it.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Adds a guest that has not run yet.
    pub fn add(&mut self, guest: Guest) {
        self.guests.push(guest);
    }

    /// Runs all guests until each has ended. Returns whether all of them ended well.
    pub fn run(mut self) -> bool {
        let mut turn = 0;
        let mut good = true;
        while !self.guests.is_empty() {
            self.deliver();
            match self.next(turn) {
                Some(index) => {
                    turn = index + 1;
                    if let Some(reason) = self.slice(index) {
                        good &= reason == EndReason::Exit(0);
                        self.end(index, reason);
                    } else if self.guests[index].state == State::Blocked {
                        // Who finds no room is the first when there is some.
                        turn = index;
                    }
                }
                None => self.idle(),
            }
            console::pump();
        }
        good
    }

    /// The next guest in turn that can run.
    fn next(&self, turn: usize) -> Option<usize> {
        let count = self.guests.len();
        (0..count).map(|n| (turn + n) % count).find(|&index| self.guests[index].state == State::Ready)
    }

    /// Gives the interrupts that have arrived to whom they are for, lets timers expire, and wakes who has something to do.
    fn deliver(&mut self) {
        for vector in interrupts::take() {
            self.interrupt(vector);
        }
        let now = cpu::tsc();
        for guest in &mut self.guests {
            let guest_now = guest.devices.guest_tsc(now);
            guest.devices.apic.expire(guest_now);
            let goes_on = match guest.state {
                State::Ready => true,
                State::Halted => guest.has_pending(),
                State::Blocked => console::has_room(),
            };
            if goes_on {
                guest.state = State::Ready;
            }
        }
    }

    fn interrupt(&mut self, vector: u8) {
        match vector {
            // Whoever waits for them is looked after in any case.
            apic::TIMER_VECTOR | apic::SPURIOUS_VECTOR | apic::NOTIFICATION_VECTOR | apic::WAKE_UP_VECTOR => {}
            apic::FAULT_VECTOR => self.service.ports().report_faults(),
            _ => {
                let own = self.service.ports().vectors_of(cpu::this::this().number);
                let owner = own.and_then(|vectors| vectors.owner(vector));
                let guest = owner.and_then(|o| Some((self.guests.iter_mut().find(|g| g.id == o.guest)?, o)));
                if let Some((guest, owner)) = guest {
                    guest.accept(owner.target.vector);
                } else {
                    self.service.ports().count_stray();
                }
            }
        }
    }

    /// Runs a guest until its slice is over or it cannot go on. `Some` when it has ended.
    fn slice(&mut self, index: usize) -> Option<EndReason> {
        self.switch_to(index);
        let shift = self.host.capabilities.preemption_shift;
        let end = cpu::tsc().saturating_add(SLICE);
        let mut exits = 0u32;
        let mut look_at_time = true;
        loop {
            let guest = &mut self.guests[index];
            // The timer stands still while the hypervisor works, and what an exit asks for may take long (a reset of the device, a
            // batch): the slice is over when it is.
            exits = exits.wrapping_add(1);
            let now = cpu::tsc();
            if now >= end {
                interrupts::poll();
                return None;
            }
            if look_at_time || exits.is_multiple_of(EXITS_BETWEEN_LOOKS) {
                guest.announce(self.epoch);
                let deadline = set_timer(guest, now, end, shift);
                // Such a guest's MWAIT does not exit.
                if guest.virtual_apic.is_some() && self.has_tsc_deadline {
                    apic::arm_timer(deadline.saturating_add(SLEEP_GRACE));
                }
            }
            prepare_interrupts(guest);
            let (number, exit) = match guest.vcpu.run() {
                Ok(done) => done,
                Err(failure) => {
                    log::error!("guest {}: VM entry: {failure}", guest.name());
                    return Some(EndReason::Killed("VM entry failed"));
                }
            };
            guest.counts.exit(number);
            look_at_time = matches!(exit, Exit::Wrmsr | Exit::PreemptionTimer | Exit::Hlt);
            match guest.serve(exit, self.xsave.supported()) {
                Next::Run => {}
                Next::Yield => {
                    self.guests[index].state = State::Blocked;
                    return None;
                }
                Next::Halt => {
                    if !self.halt(index) {
                        return (!self.guests[index].can_wake()).then_some(EndReason::Halted);
                    }
                }
                Next::End(reason) => return Some(reason),
            }
            if interrupts::any() {
                self.deliver();
            }
        }
    }

    /// The guest waits for an interrupt. Returns whether there is one already, so that it goes on.
    fn halt(&mut self, index: usize) -> bool {
        interrupts::poll();
        self.deliver();
        let guest = &mut self.guests[index];
        guest.set_turn(Turn::Halted);
        let wakes = guest.can_wake() && guest.has_pending();
        if wakes {
            guest.set_turn(Turn::Running);
        } else {
            guest.state = State::Halted;
        }
        wakes
    }

    /// Nobody can run: waits for an interrupt, or for the next timer of a guest.
    fn idle(&mut self) {
        let now = cpu::tsc();
        let next = self.guests.iter().filter_map(|guest| {
            let devices = &guest.devices;
            Some(devices.host_deadline(devices.apic.next_deadline()?, now))
        });
        match next.min() {
            Some(deadline) if deadline <= now => return,
            Some(deadline) if self.has_tsc_deadline => apic::arm_timer(deadline),
            Some(_) => return interrupts::poll(),
            None => apic::disarm_timer(),
        }
        // The console's line takes its time; whatever comes meanwhile ends the wait, and so does room for a guest's line.
        let blocked = self.guests.iter().any(|guest| guest.state == State::Blocked);
        while console::pump() {
            interrupts::poll();
            if interrupts::any() || blocked && console::has_room() {
                return;
            }
        }
        // With the ring empty there is room: nobody would wake who waits for that.
        if !blocked {
            interrupts::idle();
        }
    }

    fn switch_to(&mut self, index: usize) {
        self.guests[index].set_turn(Turn::Running);
        if self.current == Some(index) {
            return;
        }
        if let Some(guest) = self.current.and_then(|current| self.guests.get_mut(current)) {
            guest.world.save(self.xsave, self.has_tsc_aux);
            if guest.state != State::Halted {
                guest.set_turn(Turn::Preempted);
            }
        }
        let guest = &self.guests[index];
        guest.vcpu.make_current().unwrap_or_else(|failure| panic!("VMPTRLD: {failure}"));
        guest.world.restore(self.xsave, self.has_tsc_aux);
        self.current = Some(index);
    }

    /// A guest is at its end: its report, and everything back that it held.
    fn end(&mut self, index: usize, reason: EndReason) {
        let mut guest = self.guests.remove(index);
        self.current = None;
        guest.report(reason);
        guest.tear_down();
    }
}

/// Lets the guest exit at the end of its slice, or when its local APIC's timer is due. The timer goes on where it was after each exit,
/// so that this is to be done only when one of them has changed.
///
/// Returns when that is, as the machine's TSC.
fn set_timer(guest: &mut Guest, now: u64, slice_end: u64, preemption_shift: u32) -> u64 {
    let devices = &mut guest.devices;
    let guest_now = devices.guest_tsc(now);
    devices.apic.expire(guest_now);
    let deadline = devices.apic.next_deadline().map_or(slice_end, |at| devices.host_deadline(at, now).min(slice_end));
    let ticks = deadline.saturating_sub(now) >> preemption_shift;
    guest.vcpu.write(fields::PREEMPTION_TIMER, u32::try_from(ticks).unwrap_or(u32::MAX));
    deadline
}

/// Has the interrupt delivered that the guest can take, or an exit when it can.
fn prepare_interrupts(guest: &mut Guest) {
    if guest.hand_over_requests() {
        return;
    }
    let (vcpu, devices) = (&mut guest.vcpu, &mut guest.devices);
    let Some(vector) = devices.apic.pending() else {
        vcpu.set_interrupt_window(false);
        return;
    };
    if vcpu.injects() || !vcpu.can_take_interrupt() {
        vcpu.set_interrupt_window(true);
        return;
    }
    devices.apic.begin(vector);
    vcpu.inject(Event::new(EventKind::ExternalInterrupt, vector, false), 0);
    vcpu.set_interrupt_window(devices.apic.pending().is_some());
}
