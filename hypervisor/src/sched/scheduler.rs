//! The run loop: whose turn it is, what waits for it, and what became of it.
//!
//! A processor serves its virtual processors in turn: the one that has run least comes next. One runs until its slice is over, it waits,
//! its guest ends, or one wakes that has run less; interrupts of the machine come in by VM exits, or, when nobody runs, by the
//! interrupt that ends the processor's HLT.

use alloc::{sync::Arc, vec::Vec};

use crate::{
    apic, console,
    cpu::{self, fpu::Xsave, interrupts, speculation},
    devices::virtual_functions::{Parent, Parents},
    exits::EndReason,
    irq::{
        host_vectors::{Owner, Vectors},
        ports::MachineService,
    },
    sched::{
        exit_loop::{ExitLoop, RunExit},
        guest_change::GuestChange,
        policy,
    },
    vdev::msr::Optional,
    vm::{
        switched_state,
        virtual_cpu::{State, VirtualCpu},
    },
    vmx::{Host, posted::RunState},
};

/// Ticks between two looks at a function that its guest has reset.
const RESET_LOOKS: u64 = 2_000_000;

/// What the processor has, and who runs on it.
pub struct Scheduler {
    host: Host,
    xsave: Xsave,
    optional_msrs: Optional,
    has_tsc_deadline: bool,
    service: &'static MachineService,
    parents: &'static Parents,
    /// Its own vectors.
    vectors: Option<&'static Vectors>,
    cpus: Vec<VirtualCpu>,
    /// Whose registers are in the processor.
    current: Option<usize>,
    /// Whose guest's traces the predictors hold.
    guest_change: GuestChange,
    /// One has woken that has run less than the one that runs.
    preempt: bool,
    /// TSC at the hypervisor's entry.
    epoch: u64,
}

impl Scheduler {
    /// With no guest yet.
    pub fn new(
        host: Host,
        xsave: Xsave,
        (service, parents): (&'static MachineService, &'static Parents),
        epoch: u64,
    ) -> Self {
        let optional_msrs = switched_state::optional_msrs(&host.capabilities);
        speculation::begin(&host.plan);
        Self {
            host,
            xsave,
            optional_msrs,
            has_tsc_deadline: apic::has_tsc_deadline(),
            service,
            parents,
            vectors: service.ports().vectors_of(cpu::percpu::this_cpu().number),
            cpus: Vec::new(),
            current: None,
            guest_change: GuestChange::default(),
            preempt: false,
            epoch,
        }
    }

    /// The processor, as a VMCS's host state knows it.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Adds a virtual processor that has not run yet.
    pub fn add(&mut self, cpu: VirtualCpu) {
        self.cpus.push(cpu);
    }

    /// Runs all virtual processors until their guests have ended. Returns whether all guests that the processor saw the end of ended
    /// well.
    pub fn run(mut self) -> bool {
        let mut good = true;
        while !self.cpus.is_empty() {
            self.deliver();
            good &= self.reap();
            match self.next() {
                Some(index) => self.run_slice(index),
                None if self.cpus.is_empty() => {}
                None => self.idle(),
            }
            self.service.ports().faults().poll(self.service);
            self.parents.poll(self.service, |parent| self.runs_guest_of(parent));
            self.cpus.iter().for_each(|cpu| cpu.vm.resources.look_at_resets());
            console::pump();
        }
        good
    }

    /// Whether a guest that runs here has a part of the function.
    fn runs_guest_of(&self, parent: &Arc<Parent>) -> bool {
        self.cpus.iter().any(|cpu| cpu.vm.resources.parents.iter().any(|own| Arc::ptr_eq(own, parent)))
    }

    /// Who can run and has run least.
    fn next(&self) -> Option<usize> {
        let ready = self.cpus.iter().enumerate().filter(|(_, cpu)| cpu.state.is_ready());
        policy::next(ready.map(|(index, cpu)| (index, cpu.ran)))
    }

    fn run_slice(&mut self, index: usize) {
        self.preempt = false;
        let began = cpu::tsc();
        self.cpus[index].slice_start = Some(began);
        let ended = self.run_vcpu(index);
        let cpu = &mut self.cpus[index];
        cpu.slice_start = None;
        cpu.ran = cpu.ran.saturating_add(cpu::tsc().saturating_sub(began));
        if let Some(reason) = ended {
            self.end(index, reason);
        }
    }

    /// Gives the interrupts that have arrived to whom they are for, lets timers expire, and wakes who has something to do.
    fn deliver(&mut self) {
        let sweeps = self.vectors.is_some_and(Vectors::begin_sweep);
        if sweeps {
            interrupts::poll();
        }
        for vector in interrupts::take() {
            self.interrupt(vector);
        }
        if sweeps && let Some(own) = self.vectors {
            own.finish_sweep();
        }
        let now = cpu::tsc();
        for index in 0..self.cpus.len() {
            let cpu = &mut self.cpus[index];
            let was_ready = cpu.state.is_ready();
            cpu.take_sent();
            let guest_now = cpu.devices.guest_tsc(now);
            cpu.devices.apic.expire(guest_now);
            cpu.judge(now);
            let wakes = match cpu.state {
                State::Halted => cpu.has_pending(),
                State::Blocked => cpu.devices.held_until <= now && cpu.vm.has_console_room(),
                _ => false,
            };
            if wakes {
                cpu.state = State::Ready;
            }
            if !was_ready && cpu.state.is_ready() {
                self.woken(index, now);
            }
        }
    }

    /// One can run again: it may have its turn before those that have run more, but what it slept through is lost.
    fn woken(&mut self, index: usize, now: u64) {
        let others = self.cpus.iter().enumerate().filter(|(n, cpu)| *n != index && cpu.state.is_ready());
        let Some(least) = others.map(|(_, cpu)| cpu.ran_until(now)).min() else { return };
        let running = self.cpus.iter().find(|cpu| cpu.slice_start.is_some()).map(|cpu| cpu.ran_until(now));
        let cpu = &mut self.cpus[index];
        cpu.ran = policy::wake(cpu.ran, least);
        self.preempt |= running.is_some_and(|running| cpu.ran < running);
    }

    /// Gives an interrupt that has arrived to whom its vector belongs.
    fn interrupt(&mut self, vector: u8) {
        match vector {
            // Whoever waits for them is looked after in any case.
            apic::TIMER_VECTOR | apic::SPURIOUS_VECTOR | apic::NOTIFICATION_VECTOR | apic::WAKE_UP_VECTOR => {}
            apic::INJECT_VECTOR => self.cpus.iter_mut().for_each(VirtualCpu::take_posted),
            apic::FAULT_VECTOR => self.service.ports().faults().event(self.service),
            apic::DEVICE_VECTOR => {
                self.service.ports().count_own_interrupt();
                self.parents.event(self.service);
            }
            _ => match self.owner(vector) {
                Some((cpu, vector)) => cpu.accept(vector),
                None => self.service.ports().count_spurious(),
            },
        }
    }

    /// Whose a host vector is, and which of the virtual processor's own vectors it stands for.
    fn owner(&mut self, vector: u8) -> Option<(&mut VirtualCpu, u8)> {
        let Owner { guest, target } = self.vectors?.owner(vector)?;
        let is_its = |cpu: &&mut VirtualCpu| cpu.vm.id == guest && cpu.number == target.apic_id as usize;
        Some((self.cpus.iter_mut().find(is_its)?, target.vector))
    }

    /// Runs a virtual processor until its slice is over or it cannot go on. `Some` when it ends its guest.
    fn run_vcpu(&mut self, index: usize) -> Option<EndReason> {
        self.switch_to(index);
        let slice = ExitLoop {
            end: self.slice_end(cpu::tsc()),
            preemption_shift: self.host.capabilities.preemption_shift,
            has_tsc_deadline: self.has_tsc_deadline,
            xcr0_supported: self.xsave.supported(),
        };
        self.cpus[index].vm.announce(self.epoch);
        self.cpus[index].devices.request_timer_check();
        loop {
            // The hypervisor has been elsewhere: in other guests' state, or in another guest.
            speculation::enter_guest(&self.host.plan);
            match slice.run(&mut self.cpus[index]) {
                RunExit::SliceEnd => {
                    interrupts::poll();
                    return None;
                }
                RunExit::Yield => {
                    self.cpus[index].state = State::Blocked;
                    return None;
                }
                RunExit::Halt => {
                    if !self.halt(index) {
                        return None;
                    }
                }
                RunExit::End(reason) => return Some(reason),
                RunExit::Interrupt => {}
            }
            if interrupts::any() {
                self.deliver();
                if self.cpus[index].state != State::Ready || self.preempt {
                    return None;
                }
            }
        }
    }

    fn slice_end(&self, now: u64) -> u64 {
        policy::slice_end(now, self.next_timer(now))
    }

    /// When the next timer of one that has halted fires, or slots that are held, or devices, are to be looked at.
    fn next_timer(&self, now: u64) -> Option<u64> {
        let halted = self.cpus.iter().filter(|cpu| cpu.state == State::Halted);
        let timers = halted.filter_map(|cpu| Some(cpu.devices.host_deadline(cpu.devices.apic.next_deadline()?, now)));
        let looks = self.cpus.iter().filter_map(|cpu| cpu.rate_counter.as_ref()?.due());
        let is_resetting = self.cpus.iter().any(|cpu| cpu.vm.resources.is_resetting());
        let resets = is_resetting.then(|| now.saturating_add(RESET_LOOKS));
        let parents = self.parents.due(now, |parent| self.runs_guest_of(parent));
        timers.chain(looks).chain(resets).chain(parents).min()
    }

    /// A virtual processor waits for an interrupt. Returns whether there is one already, so that it goes on.
    fn halt(&mut self, index: usize) -> bool {
        interrupts::poll();
        self.deliver();
        let cpu = &mut self.cpus[index];
        if cpu.state != State::Ready {
            return false;
        }
        cpu.set_run_state(RunState::Halted);
        if cpu.nmi || cpu.can_wake() && cpu.has_pending() {
            cpu.set_run_state(RunState::Running);
            return true;
        }
        if cpu.can_wake() {
            cpu.state = State::Halted;
        } else {
            cpu.state = State::Stopped;
            cpu.vm.stopped(cpu.number);
        }
        false
    }

    /// Nobody can run: waits for an interrupt, or for the next timer of a guest.
    fn idle(&mut self) {
        // What processors send to their own come without an interrupt.
        if interrupts::any() {
            return;
        }
        let now = cpu::tsc();
        match self.next_timer(now) {
            Some(deadline) if deadline <= now => return,
            Some(deadline) if self.has_tsc_deadline => apic::arm_timer(deadline),
            Some(_) => return interrupts::poll(),
            None => apic::disarm_timer(),
        }
        // The serial lines take their time; whatever comes meanwhile ends the wait, and so does room for what a guest writes.
        let blocked = |cpu: &&VirtualCpu| cpu.state == State::Blocked;
        while console::pump() {
            interrupts::poll();
            if interrupts::any() || self.cpus.iter().filter(blocked).any(|cpu| cpu.vm.has_console_room()) {
                return;
            }
        }
        // With the rings empty there is room, and nothing would wake a virtual processor that waits for it.
        if !self.cpus.iter().any(|cpu| blocked(&cpu)) {
            interrupts::idle();
        }
    }

    fn switch_to(&mut self, index: usize) {
        if self.guest_change.enter(self.cpus[index].vm.id) {
            speculation::change_guest(&self.host.plan);
        }
        self.cpus[index].set_run_state(RunState::Running);
        if self.current == Some(index) {
            return self.cpus[index].begin();
        }
        if let Some(guest) = self.current.and_then(|current| self.cpus.get_mut(current)) {
            guest.switched.save(self.xsave, self.optional_msrs);
            if matches!(guest.state, State::Ready | State::Blocked) {
                guest.set_run_state(RunState::Preempted);
            }
        }
        let guest = &self.cpus[index];
        guest.vcpu.make_current().unwrap_or_else(|failure| panic!("VMPTRLD: {failure}"));
        guest.switched.restore(self.xsave, self.optional_msrs);
        self.current = Some(index);
        self.cpus[index].begin();
    }

    /// A virtual processor, which is the current one, has ended its guest.
    fn end(&mut self, index: usize, reason: EndReason) {
        let cpu = &mut self.cpus[index];
        if matches!(reason, EndReason::Killed(_) | EndReason::TripleFault) {
            cpu.vcpu.dump(&cpu.vm.name, cpu.number);
        }
        cpu.vm.end(reason);
        cpu.state = State::Ended;
    }

    /// Lets the virtual processors go whose guests are at their end. Returns whether the guests whose last one this was ended well.
    fn reap(&mut self) -> bool {
        let mut good = true;
        while let Some(index) = self.cpus.iter().position(|cpu| cpu.state == State::Ended) {
            let cpu = self.cpus.remove(index);
            self.guest_change.leave(cpu.vm.id);
            self.current = self.current.filter(|&current| current != index).map(|n| if n > index { n - 1 } else { n });
            good &= cpu.leave().unwrap_or(true);
        }
        good
    }
}
