//! A processor's scheduler: it selects virtual processors, runs them and delivers interrupts to them. `SCHEDULER.md` beside this file describes
//! the policy.
//!
//! A virtual processor runs until its turn is over, it waits, its guest ends, or one of another guest wakes that is to run before it. Interrupts
//! of the machine arrive by VM exits or, when nothing runs, by the interrupt that ends the processor's HLT.

mod waiting;

use alloc::{sync::Arc, vec::Vec};

use crate::{
    apic, console,
    cpu::{self, fpu::Xsave, interrupts, speculation},
    devices::virtual_functions::{Parent, Parents},
    exits::EndReason,
    ims::GuestId,
    irq::{
        host_vectors::{Owner, Vectors},
        ports::{MachineService, fault_log::Bill},
        storm::RateCounter,
    },
    sched::{
        exit_loop::{ExitLoop, RunExit},
        guest_change::GuestChange,
        maker::Maker,
        run_queue::{LEAST_TURN, RunQueue},
    },
    vdev::msr::Optional,
    vm::{
        switched_state,
        virtual_cpu::{State, VirtualCpu},
    },
    vmx::Host,
};

/// Ticks between two polls of a function that its guest has reset.
const RESET_LOOKS: u64 = 2_000_000;

/// Ticks of a VM exit and the next VM entry, which an interrupt costs beside the hypervisor's own work.
const EXIT_AND_ENTRY: u64 = 1_000;

/// Ticks of a turn in which a guest is made or released. Nobody who wakes ends it.
const MAKING_TURN: u64 = 300_000;

/// A turn.
#[derive(Clone, Copy)]
struct Running {
    /// The virtual processor that has it.
    index: usize,
    /// The TSC at its beginning.
    began: u64,
}

/// What the processor has, and who runs on it.
pub struct Scheduler {
    host: Host,
    xsave: Xsave,
    optional_msrs: Optional,
    has_tsc_deadline: bool,
    service: &'static MachineService,
    parents: &'static Parents,
    /// The processor's own host vectors.
    vectors: Option<&'static Vectors>,
    cpus: Vec<VirtualCpu>,
    /// The virtual processor whose registers are in the processor.
    current: Option<usize>,
    /// Whose guest's traces the predictors hold.
    guest_change: GuestChange,
    /// Whose turn the processor's time is.
    queue: RunQueue,
    /// Who has the turn.
    running: Option<Running>,
    /// Up to when the processor's time has been charged, or was nobody's.
    charged_until: u64,
    /// One has woken that is to run before the one that runs.
    preempt: bool,
    /// Counts deliveries to virtual processors that have halted.
    deliveries: u32,
    /// Units post all devices' interrupts, and can be told to suppress them.
    can_post: bool,
    /// The local APIC holds devices' interrupts back.
    holds_devices: bool,
    /// TSC at the hypervisor's entry.
    epoch: u64,
    /// Its part in the lives of guests.
    maker: Maker,
}

/// Whose turn it is.
#[derive(Clone, Copy, Debug)]
enum Turn {
    /// A virtual processor's, by its index.
    Vcpu(usize),
    /// The guest's that is made here, or released.
    Making(GuestId),
}

impl Scheduler {
    /// A scheduler without virtual processors.
    pub fn new(
        (host, xsave): (Host, Xsave),
        (service, parents): (&'static MachineService, &'static Parents),
        maker: Maker,
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
            queue: RunQueue::default(),
            running: None,
            charged_until: 0,
            preempt: false,
            deliveries: 0,
            can_post: service.ports().can_post(),
            holds_devices: false,
            epoch,
            maker,
        }
    }

    /// Takes the virtual processors that are new here, and looks for work for guests.
    fn look_for_news(&mut self) {
        let now = cpu::tsc();
        for new in self.maker.look(now) {
            let (guest, began) = (new.guest(), cpu::tsc());
            match new.create(&self.host) {
                Ok(cpu) => self.add(cpu),
                Err(true) => self.maker.guests().left(guest),
                Err(false) => {}
            }
            // The VMCS of the new one is current now.
            if let Some(current) = self.current.and_then(|index| self.cpus.get(index)) {
                current.vcpu.make_current().unwrap_or_else(|failure| panic!("VMPTRLD: {failure}"));
            }
            self.has_built(guest, began);
        }
        if let Some(guest) = self.maker.guest() {
            self.queue.add(guest, self.maker.guests().shares(guest), now);
        }
    }

    /// Adds a virtual processor that has not run yet.
    fn add(&mut self, mut cpu: VirtualCpu) {
        self.queue.add(cpu.vm.id, cpu.vm.shares, cpu::tsc());
        cpu.publish(false, false);
        self.cpus.push(cpu);
        // What was sent to it before has interrupted nobody.
        interrupts::raise(apic::WAKE_UP_VECTOR);
    }

    /// Runs virtual processors, and makes and releases guests, until all guests have ended and none is started again.
    pub fn run(mut self) {
        self.charged_until = cpu::tsc();
        loop {
            self.deliver();
            self.reap();
            self.look_for_news();
            if self.cpus.is_empty() && self.maker.guests().are_over() {
                return;
            }
            let next = self.next();
            match next {
                Some(Turn::Vcpu(index)) => self.run_slice(index),
                Some(Turn::Making(guest)) => {
                    let now = cpu::tsc();
                    let end = self.queue.turn_end(guest, now, self.next_timer(now));
                    self.maker.work(end.min(now.saturating_add(MAKING_TURN)));
                    interrupts::poll();
                }
                None => self.idle(),
            }
            self.poll_devices();
            console::pump();
            match next {
                Some(Turn::Vcpu(index)) => {
                    self.charge(index, cpu::tsc());
                    self.charge_owed(self.cpus[index].vm.id);
                }
                Some(Turn::Making(guest)) => {
                    self.charge_making(guest, cpu::tsc());
                    self.charge_owed(guest);
                }
                None => self.charged_until = cpu::tsc(),
            }
        }
    }

    /// Polls what devices and units tell by no interrupt. It is charged to the guests that it is for.
    #[inline(always)]
    fn poll_devices(&mut self) {
        let (service, parents) = (self.service, self.parents);
        self.for_guests(|own, bill| {
            service.ports().faults().poll(service, bill);
            parents.poll(service, |parent| own.runs_guest_of(parent), bill);
            for cpu in own.cpus.iter().filter(|cpu| cpu.vm.resources.is_resetting()) {
                let began = cpu::tsc();
                cpu.vm.resources.look_at_resets(began);
                bill(cpu.vm.id, cpu::tsc().saturating_sub(began));
            }
        });
    }

    /// Does work for guests. `work` calls the [`Bill`] with each guest and the ticks that it took. These ticks are charged to that guest, and not to
    /// the running one.
    #[inline]
    fn for_guests(&mut self, work: impl FnOnce(&Self, &mut Bill<'_>)) {
        let (guests, mut all) = (self.maker.guests(), 0);
        work(self, &mut |guest, ticks| {
            guests.owe(guest, ticks);
            all += ticks;
        });
        if all != 0 {
            self.charge_bills(all);
        }
    }

    /// Takes ticks that were billed to guests from the running guest's time, and charges those guests that run here: others have waited here.
    #[inline(never)]
    fn charge_bills(&mut self, all: u64) {
        self.charged_until = self.charged_until.saturating_add(all);
        for index in 0..self.cpus.len() {
            self.charge_owed(self.cpus[index].vm.id);
        }
    }

    /// Charges a guest for making or removing one of its virtual processors, which took from `began` until now.
    fn has_built(&mut self, guest: GuestId, began: u64) {
        let ticks = cpu::tsc().saturating_sub(began);
        self.maker.guests().add_building_time(guest, ticks);
        self.for_guests(|_, bill| bill(guest, ticks));
    }

    /// Whether a guest that runs here has a virtual function of the parent.
    fn runs_guest_of(&self, parent: &Arc<Parent>) -> bool {
        self.cpus.iter().any(|cpu| cpu.vm.resources.parents.iter().any(|own| Arc::ptr_eq(own, parent)))
    }

    /// Who runs next: of the guest whose turn it is, the one that has run least.
    fn next(&mut self) -> Option<Turn> {
        let (cpus, now) = (&self.cpus, cpu::tsc());
        let making = self.maker.ready(now);
        let is_ready =
            |guest| making == Some(guest) || cpus.iter().any(|cpu| cpu.vm.id == guest && cpu.state.is_ready());
        self.queue.refresh(is_ready);
        let guest = self.queue.next(now)?;
        if making == Some(guest) {
            return Some(Turn::Making(guest));
        }
        let ready = self.cpus.iter().enumerate().filter(|(_, cpu)| cpu.vm.id == guest && cpu.state.is_ready());
        self.queue.next_sibling(guest, ready.map(|(index, cpu)| (index, cpu.ran))).map(Turn::Vcpu)
    }

    fn run_slice(&mut self, index: usize) {
        self.preempt = false;
        self.running = Some(Running { index, began: cpu::tsc() });
        let ended = self.run_vcpu(index);
        self.running = None;
        if let Some(reason) = ended {
            self.end(index, reason);
        }
        if self.cpus[index].state == State::Ready {
            self.cpus[index].rest();
        } else {
            self.publish(index);
        }
    }

    /// Says for what the processor is to be interrupted on behalf of a virtual processor that does not run.
    fn publish(&mut self, index: usize) {
        let cpu = &mut self.cpus[index];
        cpu.publish(false, self.queue.is_muted(cpu.vm.id));
        // What came before that came perhaps without an interrupt.
        if cpu.mailbox.has_signal() {
            interrupts::raise(apic::WAKE_UP_VECTOR);
        }
    }

    /// Charges the processor's time up to `until` that nobody was charged yet to the guest of a virtual processor.
    fn charge(&mut self, index: usize, until: u64) {
        let ticks = until.saturating_sub(self.charged_until);
        self.charged_until = self.charged_until.max(until);
        let cpu = &mut self.cpus[index];
        cpu.ran = cpu.ran.saturating_add(ticks);
        self.queue.charge(cpu.vm.id, ticks);
        cpu.vm.add_time(ticks);
    }

    /// Charges a guest the ticks that it owes ([`Guests::owe`](crate::sched::guests::Guests::owe)).
    fn charge_owed(&mut self, guest: GuestId) {
        let owed = self.maker.guests().take_owed(guest);
        if owed == 0 {
            return;
        }
        self.queue.charge(guest, owed);
        if let Some(cpu) = self.cpus.iter().find(|cpu| cpu.vm.id == guest) {
            cpu.vm.add_interrupting(owed);
        }
    }

    /// Charges the processor's time up to `until` that nobody was charged yet to the guest that is made or released here.
    fn charge_making(&mut self, guest: GuestId, until: u64) {
        self.queue.charge(guest, until.saturating_sub(self.charged_until));
        self.charged_until = self.charged_until.max(until);
    }

    /// Delivers interrupts while a virtual processor has its turn. What they cost is charged to the guests that they are for.
    fn deliver_during_turn(&mut self, index: usize) {
        // With one guest there is nobody else to charge; its virtual processors take turns by what they have run.
        if self.queue.has_one_guest() {
            self.charge(index, cpu::tsc());
            return self.deliver();
        }
        let before = cpu::tsc().saturating_sub(EXIT_AND_ENTRY);
        self.cpus.iter_mut().for_each(|cpu| cpu.interrupted_others = false);
        self.charge(index, before);
        self.deliver();
        let own = self.cpus[index].vm.id;
        let all = self.cpus.iter().filter(|cpu| cpu.interrupted_others).count() as u64;
        let others = self.cpus.iter().filter(|cpu| cpu.interrupted_others && cpu.vm.id != own).count() as u64;
        if others == 0 {
            return;
        }
        let now = cpu::tsc();
        // Ticks for other guests, such as those of a unit's faults, are billed already.
        let each = now.saturating_sub(self.charged_until.max(before)) / all;
        // The rest is its own: interrupts of its guest.
        self.charged_until = now.saturating_sub(each * (all - others)).max(self.charged_until);
        for other in 0..self.cpus.len() {
            let cpu = &self.cpus[other];
            let guest = cpu.vm.id;
            if !cpu.interrupted_others || guest == own {
                continue;
            }
            cpu.vm.add_interrupting(each);
            if self.queue.charge_interruption(guest, each, now) {
                self.publish_guest(guest);
            }
        }
        self.hold_devices_of_muted(Some(index));
    }

    /// Holds devices' interrupts back while others than the guest of the virtual processor that runs are muted, where units cannot be told to
    /// suppress them.
    fn hold_devices_of_muted(&mut self, running: Option<usize>) {
        let is_other_muted = running.is_some_and(|index| self.queue.is_other_muted(self.cpus[index].vm.id));
        self.hold_devices(is_other_muted && !self.can_post);
    }

    fn hold_devices(&mut self, holds: bool) {
        if self.holds_devices != holds {
            self.holds_devices = holds;
            apic::hold_devices(holds);
        }
    }

    /// Publishes all virtual processors of a guest that is muted now, or is so no longer.
    fn publish_guest(&mut self, guest: GuestId) {
        let running = self.running.map(|running| running.index);
        for index in 0..self.cpus.len() {
            if self.cpus[index].vm.id == guest && running != Some(index) {
                self.publish(index);
            }
        }
        // Interrupts that were posted meanwhile have notified nobody.
        interrupts::raise(apic::WAKE_UP_VECTOR);
    }

    /// Delivers the interrupts that have arrived, expires timers, and wakes virtual processors that have work.
    fn deliver(&mut self) {
        let sweeps = self.vectors.is_some_and(Vectors::begin_sweep);
        // In a sweep, and between two turns, interrupts that are held back come as well.
        if sweeps || self.running.is_none() && self.holds_devices {
            self.hold_devices(false);
            interrupts::poll();
        }
        for vector in interrupts::take() {
            self.interrupt(vector);
        }
        if sweeps && let Some(own) = self.vectors {
            own.finish_sweep();
        }
        let now = cpu::tsc();
        while let Some(guest) = self.queue.take_unmuted(now) {
            self.publish_guest(guest);
        }
        let running = self.running.map(|running| running.index);
        self.hold_devices_of_muted(running);
        for index in 0..self.cpus.len() {
            let cpu = &mut self.cpus[index];
            let before = cpu.state;
            cpu.take_sent();
            let guest_now = cpu.devices.guest_tsc(now);
            let is_timer_due = cpu.devices.apic.next_deadline().is_some_and(|deadline| deadline <= guest_now);
            cpu.devices.apic.expire(guest_now);
            cpu.judge(now);
            let wakes = match cpu.state {
                State::Halted => cpu.has_pending(),
                State::Blocked => !cpu.is_held(now),
                _ => false,
            };
            if wakes {
                cpu.state = State::Ready;
            }
            // A timer that does not wake it now does not as long as it has halted, and need not end others' turns. That its interrupt may have been
            // pending before makes no difference.
            cpu.sleeps_through_timer |= is_timer_due && cpu.state == State::Halted;
            let after = cpu.state;
            if after == before {
                continue;
            }
            if after.is_ready() && !before.is_ready() {
                self.woken(index);
            }
            if running != Some(index) {
                self.publish(index);
            }
        }
    }

    /// Whether neither a virtual processor but this one nor the making of a guest can have the processor, and nobody has ended.
    fn has_no_rival(&self, index: usize) -> bool {
        let waits = |cpu: &VirtualCpu| !cpu.state.is_ready() && cpu.state != State::Ended;
        self.maker.guest().is_none() && self.cpus.iter().enumerate().all(|(other, cpu)| other == index || waits(cpu))
    }

    /// One can run again: it may have its turn before those that have run more, but what it slept through is lost.
    fn woken(&mut self, index: usize) {
        let guest = self.cpus[index].vm.id;
        let cpu = &mut self.cpus[index];
        cpu.ran = self.queue.wake_sibling(guest, cpu.ran);
        let ran = cpu.ran;
        self.queue.set_ready(guest, true);
        let Some(Running { index, .. }) = self.running else { return };
        let running = &self.cpus[index];
        self.preempt |= match running.vm.id {
            same if same == guest => ran < running.ran,
            other => self.queue.preempts(guest, other),
        };
    }

    /// Delivers an interrupt to the owner of its vector.
    fn interrupt(&mut self, vector: u8) {
        match vector {
            // They carry nothing: each delivery looks at every virtual processor.
            apic::TIMER_VECTOR
            | apic::SPURIOUS_VECTOR
            | apic::NOTIFICATION_VECTOR
            | apic::WAKE_UP_VECTOR
            | apic::DISCARD_VECTOR => {}
            apic::INJECT_VECTOR => self.cpus.iter_mut().for_each(VirtualCpu::take_posted),
            apic::FAULT_VECTOR => {
                let service = self.service;
                self.for_guests(|_, bill| service.ports().faults().event(service, bill));
            }
            apic::DEVICE_VECTOR => {
                let (service, parents) = (self.service, self.parents);
                service.ports().count_own_interrupt();
                self.for_guests(|_, bill| parents.event(service, bill));
            }
            _ => self.device_interrupt(vector),
        }
    }

    /// Delivers a device's interrupt to the owner of its vector.
    fn device_interrupt(&mut self, vector: u8) {
        let ports = self.service.ports();
        let Some(Owner { guest, target }) = self.vectors.and_then(|vectors| vectors.owner(vector)) else {
            return ports.count_spurious();
        };
        let is_its = |cpu: &&mut VirtualCpu| cpu.vm.id == guest && cpu.number == target.apic_id as usize;
        match self.cpus.iter_mut().find(is_its) {
            Some(cpu) => {
                cpu.interrupted_others = true;
                cpu.accept(target.vector);
            }
            // Its guest has ended, and what it held is being released.
            None => ports.count_late(),
        }
    }

    /// Runs a virtual processor until its turn is over or it cannot go on. `Some` when it ends its guest.
    fn run_vcpu(&mut self, index: usize) -> Option<EndReason> {
        self.switch_to(index);
        let mut slice = ExitLoop {
            end: self.turn_end(index, cpu::tsc()),
            preemption_shift: self.host.capabilities.preemption_shift,
            has_tsc_deadline: self.has_tsc_deadline,
            xcr0_supported: self.xsave.supported(),
            is_only_notified: self.is_only_notified(index),
        };
        let vm = Arc::clone(&self.cpus[index].vm);
        vm.announce(self.epoch);
        self.cpus[index].devices.request_timer_check();
        // What was sent to it since `deliver` has interrupted nobody.
        if self.cpus[index].mailbox.has_signal() {
            interrupts::raise(apic::WAKE_UP_VECTOR);
        }
        loop {
            if interrupts::any() {
                self.deliver_during_turn(index);
                slice.is_only_notified = self.is_only_notified(index);
                if self.cpus[index].state != State::Ready || self.preempt && !self.goes_on(index, &mut slice) {
                    return None;
                }
            }
            // The hypervisor has been elsewhere: in other guests' state, or in another guest.
            speculation::enter_guest(&self.host.plan);
            match slice.run(&vm, &mut self.cpus[index]) {
                RunExit::SliceEnd => {
                    interrupts::poll();
                    return None;
                }
                RunExit::Yield => {
                    self.cpus[index].state = State::Blocked;
                    return None;
                }
                RunExit::Halt => {
                    slice.end = self.halt(index, slice.end)?;
                    slice.is_only_notified = self.is_only_notified(index);
                    if self.preempt && !self.goes_on(index, &mut slice) {
                        return None;
                    }
                }
                RunExit::End(reason) => return Some(reason),
                RunExit::Interrupt => {}
            }
        }
    }

    /// One that has woken is to run before this one. Whether this one goes on all the same, because it has not had the least turn yet: until it
    /// has.
    fn goes_on(&mut self, index: usize, slice: &mut ExitLoop) -> bool {
        let least = self.running.map_or(0, |running| running.began.saturating_add(LEAST_TURN));
        slice.end = slice.end.min(least);
        self.cpus[index].devices.request_timer_check();
        cpu::tsc() < least
    }

    /// Whether units notify of no other virtual processor here than this one. One with a limit for its interrupts has the scheduler look at each
    /// of them.
    fn is_only_notified(&self, index: usize) -> bool {
        let is_quiet = |(other, cpu): (usize, &VirtualCpu)| other == index || cpu.is_suppressed();
        self.cpus[index].rate_counter.is_none() && self.cpus.iter().enumerate().all(is_quiet)
    }

    fn turn_end(&self, index: usize, now: u64) -> u64 {
        self.queue.turn_end(self.cpus[index].vm.id, now, self.next_timer(now))
    }

    /// The next time at which a halted virtual processor's timer fires, or throttled slots or devices need a check.
    #[inline]
    fn next_timer(&self, now: u64) -> Option<u64> {
        // A loop, because a chain of iterators takes three times as long, and each wait and each turn begins with this.
        let mut next = u64::MAX;
        for cpu in &self.cpus {
            if cpu.state == State::Halted
                && !cpu.sleeps_through_timer
                && let Some(deadline) = cpu.devices.apic.next_deadline()
            {
                next = next.min(cpu.devices.host_deadline(deadline, now));
            }
            if let Some(look) = cpu.rate_counter.as_ref().and_then(RateCounter::due) {
                next = next.min(look);
            }
            if cpu.vm.resources.is_resetting() {
                next = next.min(now.saturating_add(RESET_LOOKS));
            }
        }
        let parents = self.parents.due(now, |parent| self.runs_guest_of(parent));
        for event in [parents, self.queue.next_event(), self.maker.due(now)] {
            next = next.min(event.unwrap_or(u64::MAX));
        }
        (next != u64::MAX).then_some(next)
    }

    fn switch_to(&mut self, index: usize) {
        if self.guest_change.enter(self.cpus[index].vm.id) {
            speculation::change_guest(&self.host.plan);
        }
        self.cpus[index].publish(true, false);
        self.hold_devices_of_muted(Some(index));
        if self.current == Some(index) {
            return self.cpus[index].begin();
        }
        if let Some(current) = self.current.filter(|&current| current < self.cpus.len()) {
            let guest = &mut self.cpus[current];
            guest.switched.save(self.xsave, self.optional_msrs);
            if matches!(guest.state, State::Ready | State::Blocked) {
                guest.publish(false, false);
            }
        }
        let guest = &self.cpus[index];
        guest.vcpu.make_current().unwrap_or_else(|failure| panic!("VMPTRLD: {failure}"));
        guest.switched.restore(self.xsave, self.optional_msrs);
        self.current = Some(index);
        self.cpus[index].begin();
    }

    /// Ends the guest of a virtual processor, which is the current one.
    fn end(&mut self, index: usize, reason: EndReason) {
        let cpu = &mut self.cpus[index];
        if matches!(reason, EndReason::Killed(_) | EndReason::TripleFault) {
            cpu.vcpu.dump(&cpu.vm.name, cpu.number);
        }
        cpu.vm.end(reason);
        cpu.state = State::Ended;
    }

    /// Removes the virtual processors whose guests have ended.
    fn reap(&mut self) {
        while let Some(index) = self.cpus.iter().position(|cpu| cpu.state == State::Ended) {
            let (cpu, began) = (self.cpus.remove(index), cpu::tsc());
            self.guest_change.leave(cpu.vm.id);
            self.current = self.current.filter(|&current| current != index).map(|n| if n > index { n - 1 } else { n });
            let guest = cpu.vm.id;
            if cpu.leave() {
                self.maker.guests().left(guest);
            }
            self.has_built(guest, began);
        }
    }
}
