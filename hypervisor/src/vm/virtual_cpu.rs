//! A virtual processor, which runs or waits on this processor.

use alloc::sync::Arc;

use hcall_abi::Target;

use crate::{
    cpu,
    exits::{Devices, EndReason, PvEoi},
    ims::Attribution,
    irq::{
        mailbox::{Mailbox, NotifyMask, Taken, Vectors, count},
        storm::{RateCounter, Suspect},
    },
    vdev::x2apic::Accepted,
    vm::{instance::Vm, switched_state::SwitchedState},
    vmx::{
        Vcpu, VirtualApic, fields,
        instr::{self, Forgotten},
        posted::RunState,
    },
};

/// Whether a virtual processor can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It can run.
    Ready,
    /// It can run, and begins at this page.
    Starting(u8),
    /// It waits for an interrupt.
    Halted,
    /// It has halted with interrupts off: only a command can wake it.
    Stopped,
    /// It waits for a start-up command.
    WaitForSipi,
    /// It waits for space in the console's buffer, for the end of a reset, or because it has locked the bus too often.
    Blocked,
    /// Its guest has ended.
    Ended,
}

impl State {
    /// Whether it can run.
    pub const fn is_ready(self) -> bool {
        matches!(self, Self::Ready | Self::Starting(_))
    }
}

/// A virtual processor.
pub struct VirtualCpu {
    /// Its guest.
    pub vm: Arc<Vm>,
    /// Its number in the guest, and its x2APIC ID.
    pub number: usize,
    /// Whether it can run.
    pub state: State,
    /// Its VMCS and registers.
    pub vcpu: Vcpu,
    /// Its switched state, while another one runs.
    pub switched: SwitchedState,
    /// Its virtual devices.
    pub devices: Devices,
    /// The virtual-APIC page, if the processor virtualises the local APIC.
    pub virtual_apic: Option<VirtualApic>,
    /// Whether an NMI is pending.
    pub nmi: bool,
    /// The rate counter of its interrupts, if there is a limit for them.
    pub rate_counter: Option<RateCounter>,
    /// Its mailbox, as [`Vm::mailbox`] gives it.
    pub mailbox: Arc<Mailbox>,
    /// Ticks that it has run, or is taken to have run: by these the virtual processors of one guest take turns.
    pub ran: u64,
    /// A signal or an interrupt for it has interrupted the processor since the last delivery.
    pub interrupted_others: bool,
    /// Its timer has fired since it halted, and has not woken it.
    pub sleeps_through_timer: bool,
    /// Units suppress the notifications of its interrupts.
    pub(super) is_suppressed: bool,
}

impl VirtualCpu {
    /// Sets the signals that interrupt its processor, and whether units notify it. `is_running`: it has the processor. `is_muted`: its guest has
    /// interrupted others too often. The caller then takes what has arrived without a notification.
    pub fn publish(&mut self, is_running: bool, is_muted: bool) {
        let (notify_mask, run_state) = match self.state {
            _ if is_running => (NotifyMask::ALL, RunState::Running),
            State::Halted if !is_muted => (NotifyMask::HALTED, RunState::Halted),
            State::Stopped if !is_muted => (NotifyMask::STOPPED, RunState::Preempted),
            State::WaitForSipi if !is_muted => (NotifyMask::WAIT_FOR_SIPI, RunState::Preempted),
            _ => (NotifyMask::NONE, RunState::Preempted),
        };
        self.mailbox.set_notify_mask(notify_mask);
        self.set_run_state(run_state);
    }

    /// It waits for its turn: no signal interrupts its processor. Units are told when another one runs.
    pub fn rest(&self) {
        self.mailbox.set_notify_mask(NotifyMask::NONE);
    }

    /// Accepts a device's interrupt that the hypervisor has taken for it.
    #[inline]
    pub fn accept(&mut self, vector: u8) {
        if self.rate_counter.is_some() {
            self.count_rate(vector);
        }
        let counts = &self.mailbox.counts;
        if let Some(virtual_apic) = &self.virtual_apic {
            virtual_apic.request(vector);
            return count(&counts.delivered);
        }
        count(match self.devices.apic.accept(vector) {
            Accepted::New => &counts.delivered,
            Accepted::Merged => &counts.merged,
            Accepted::Illegal | Accepted::Disabled => &counts.dropped,
        });
    }

    /// Counts an interrupt, and throttles its slots if there were too many.
    #[inline(never)]
    fn count_rate(&mut self, vector: u8) {
        if self.rate_counter.as_mut().is_some_and(|rate_counter| rate_counter.count(vector, cpu::tsc()))
            && let Some(domain) = &self.vm.resources.domain
        {
            self.vm.resources.service.throttle(domain, self.target(vector));
            self.rate_counter.as_mut().into_iter().for_each(|rate_counter| rate_counter.begin(cpu::tsc()));
        }
    }

    /// Accepts devices' interrupts that units have posted for the hypervisor.
    #[inline]
    pub fn take_posted(&mut self) {
        let Some(vectors) = self.mailbox.take_posted() else { return };
        self.interrupted_others = true;
        self.accept_posted(vectors);
    }

    #[inline]
    fn accept_posted(&mut self, vectors: Vectors) {
        vectors.for_each(|vector| {
            count(&self.mailbox.counts.from_descriptors);
            self.accept(vector);
        });
    }

    fn target(&self, vector: u8) -> Target {
        Target { apic_id: self.number as u32, vector }
    }

    /// Checks throttled slots, when a check is due.
    pub fn judge(&mut self, now: u64) {
        let (Some(rate_counter), Some(domain)) = (&mut self.rate_counter, &self.vm.resources.domain) else { return };
        let Some(Suspect { vector, last, passes_by }) = rate_counter.suspect(now) else { return };
        let target = Target { apic_id: self.number as u32, vector };
        let service = self.vm.resources.service;
        let tell = |slot: Attribution| self.vm.log_storm(&slot);
        if passes_by {
            return service.block(domain, target, tell);
        }
        match service.unthrottle(domain, target, last, tell) {
            0 => rate_counter.nobody_held(),
            _ => rate_counter.begin(cpu::tsc()),
        }
    }

    /// Whether one that is [`State::Blocked`] still is `now`.
    pub fn is_held(&self, now: u64) -> bool {
        self.devices.held_until > now || self.vm.resources.is_waiting(self.number) || !self.vm.has_console_room()
    }

    /// Takes commands and interrupts that processors, or it itself, have sent since the last call. One that waits for the end of a reset
    /// ([`Resources::is_waiting`](crate::vm::resources::Resources::is_waiting)) has sent itself a signal.
    #[inline]
    pub fn take_sent(&mut self) {
        if let Some(signal) = self.mailbox.take_signal() {
            self.take_signalled(signal);
        }
    }

    #[inline(never)]
    fn take_signalled(&mut self, signal: Taken) {
        self.interrupted_others |= signal.interrupted;
        for vector in self.mailbox.take_requests() {
            self.devices.apic.accept(vector);
        }
        if let Some(ram) = &self.vm.resources.ram {
            self.devices.pv_eoi.leave_for(self.mailbox.pv_eoi(), &mut self.devices.apic, ram);
        }
        let commands = self.vm.take_commands(self.number);
        if commands.init {
            self.init();
        }
        if let (State::WaitForSipi, Some(page)) = (self.state, commands.start_up) {
            self.state = State::Starting(page);
        }
        if commands.nmi && self.state != State::WaitForSipi {
            self.nmi = true;
            if matches!(self.state, State::Halted | State::Stopped) {
                self.state = State::Ready;
            }
        }
        if self.state == State::Ready && self.vm.resources.is_waiting(self.number) {
            self.state = State::Blocked;
        }
        if self.vm.is_ending() {
            self.state = State::Ended;
        } else if matches!(self.state, State::Stopped | State::WaitForSipi) {
            self.vm.stopped(self.number);
        }
    }

    /// Handles INIT. The bootstrap processor would begin in the firmware, which a guest does not have, so the guest is reset. The others
    /// wait to be started.
    fn init(&mut self) {
        if self.number == 0 {
            return self.vm.end(EndReason::Reset);
        }
        self.state = State::WaitForSipi;
        self.nmi = false;
        self.devices.apic.reset();
        self.devices.msrs.init();
        self.devices.pv_eoi = PvEoi::default();
        self.mailbox.set_pv_eoi(None);
        if let Some(virtual_apic) = &self.virtual_apic {
            virtual_apic.set_run_state(RunState::Preempted);
            virtual_apic.reset();
        }
    }

    /// Starts at a page, if a start-up is pending. Its VMCS must be current.
    pub fn begin(&mut self) {
        if let State::Starting(page) = self.state {
            self.state = State::Ready;
            self.vcpu.start_up(page, cpu::signature());
            if let Some(virtual_apic) = &self.virtual_apic {
                // What came while it waited is lost: its local APIC was as after reset.
                virtual_apic.reset();
                self.vcpu.write(fields::GUEST_INTERRUPT_STATUS, 0);
            }
        }
    }

    /// Whether an interrupt would be delivered if RFLAGS.IF were set. Only called while it does not run.
    pub fn has_pending(&mut self) -> bool {
        if self.virtual_apic.is_some() {
            self.gather_requests();
        }
        match &self.virtual_apic {
            Some(virtual_apic) => virtual_apic.is_pending(),
            None => {
                if self.devices.pv_eoi.is_offered() {
                    self.settle_eoi();
                }
                self.devices.apic.pending().is_some()
            }
        }
    }

    /// Ends an interrupt that the guest may have ended by paravirtual EOI.
    #[inline(never)]
    pub fn settle_eoi(&mut self) {
        if let Some(ram) = &self.vm.resources.ram {
            self.devices.pv_eoi.settle(&mut self.devices.apic, ram);
        }
    }

    /// Offers paravirtual EOI for the interrupt that is delivered now, if the guest has set an address.
    #[inline(never)]
    pub fn offer_pv_eoi(&mut self) {
        if let (Some(at), Some(ram)) = (self.mailbox.pv_eoi(), &self.vm.resources.ram) {
            self.devices.pv_eoi.offer(at, &self.devices.apic, ram);
        }
    }

    /// Whether units suppress the notifications of its interrupts.
    pub fn is_suppressed(&self) -> bool {
        self.is_suppressed
    }

    /// Says who runs, to those who post interrupts, and takes what came while nobody was notified.
    fn set_run_state(&mut self, state: RunState) {
        let is_suppressed = state == RunState::Preempted;
        if let Some(virtual_apic) = &self.virtual_apic {
            self.is_suppressed = is_suppressed;
            return virtual_apic.set_run_state(state);
        }
        if is_suppressed == self.is_suppressed {
            return;
        }
        self.is_suppressed = is_suppressed;
        self.mailbox.set_run_state(state);
        if !is_suppressed && let Some(vectors) = self.mailbox.take_suppressed() {
            self.accept_posted(vectors);
        }
    }

    /// Leaves the delivery of interrupts to the processor, if it virtualises the local APIC. Returns whether it does.
    pub fn hand_over_requests(&mut self) -> bool {
        if self.virtual_apic.is_none() {
            return false;
        }
        self.gather_requests();
        let Some(virtual_apic) = &self.virtual_apic else { return false };
        if let Some(vector) = virtual_apic.highest_request() {
            self.vcpu.set_requested(vector);
        }
        true
    }

    /// Puts posted interrupts, and those that the emulated part of the local APIC requests (its timer, IPIs), into the virtual-APIC page,
    /// if there is one.
    fn gather_requests(&mut self) {
        let Some(virtual_apic) = &self.virtual_apic else { return };
        while let Some(vector) = self.devices.apic.pending() {
            // The model has done its part with the request: service and EOI are the page's.
            self.devices.apic.begin(vector);
            self.devices.apic.end();
            virtual_apic.request(vector);
        }
        // Nobody was notified while that was suppressed.
        self.interrupted_others |= virtual_apic.take_posted() && !self.is_suppressed;
    }

    /// Whether an interrupt could wake it from HLT: whether RFLAGS.IF is set.
    pub fn can_wake(&self) -> bool {
        self.vcpu.read(fields::GUEST_RFLAGS) & cpu::bits::rflags::IF != 0
    }

    /// Removes the virtual processor from its processor. Returns the result of [`Vm::leave`].
    pub fn leave(self) -> bool {
        let Self { vm, vcpu, .. } = self;
        // The frame of the VMCS is among the guest's resources, and so are the tables that this processor may have cached.
        vcpu.retire().unwrap_or_else(|failure| panic!("VMCLEAR: {failure}"));
        let forgotten = match &vm.resources.ept {
            Some(ept) => instr::invept(ept.pointer()).unwrap_or_else(|failure| panic!("INVEPT: {failure}")),
            None => Forgotten::never_ran(),
        };
        vm.leave(forgotten)
    }
}
