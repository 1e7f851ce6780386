//! How virtual processors halt, and how the processor waits when none can run.

use crate::{
    apic, console,
    cpu::{self, interrupts},
    sched::run_queue::LEAST_TURN,
    vm::virtual_cpu::{State, VirtualCpu},
};

use super::{Running, Scheduler};

/// One in so many deliveries to a halted virtual processor is a full one.
const OWN_DELIVERIES: u32 = 64;

impl Scheduler {
    /// Halts a virtual processor. Returns the end of its turn if it goes on: at once, because an interrupt is pending already, or after a wait in
    /// its turn. The turn's end was `end`.
    pub(super) fn halt(&mut self, index: usize, end: u64) -> Option<u64> {
        let cpu = &mut self.cpus[index];
        cpu.state = if cpu.can_wake() { State::Halted } else { State::Stopped };
        cpu.sleeps_through_timer = false;
        if cpu.state == State::Stopped {
            return self.stop(index).then_some(end);
        }
        // All signals interrupt the processor still, as they do while it runs, so none is missed.
        if cpu.nmi || cpu.has_pending() {
            cpu.state = State::Ready;
            return Some(end);
        }
        self.poll_devices();
        let waits_here = self.has_no_rival(index) && !self.has_news();
        // Interrupts that have arrived since the exit are taken before the turn is given up and before the timers are set.
        interrupts::poll();
        if interrupts::any() {
            if !self.deliver_own(index) {
                self.deliver_during_turn(index);
            }
            return (self.cpus[index].state == State::Ready).then_some(end);
        }
        if waits_here { self.wait_in_turn(index) } else { None }
    }

    /// Delivers what has come to one that has halted, if it can be for nobody else: without a look at anything else. Returns false for what can,
    /// and now and then in any case, because other work waits for a look at everything: vectors that retire, rate counters.
    fn deliver_own(&mut self, index: usize) -> bool {
        self.deliveries = self.deliveries.wrapping_add(1);
        if self.deliveries.is_multiple_of(OWN_DELIVERIES) {
            return false;
        }
        if self.is_only_notified(index) && interrupts::take_only(apic::INJECT_VECTOR) {
            self.cpus[index].take_posted();
        } else if self.cpus.len() == 1
            && (interrupts::take_only(apic::WAKE_UP_VECTOR) || interrupts::take_only(apic::NOTIFICATION_VECTOR))
        {
            self.cpus[index].take_sent();
        } else {
            return false;
        }
        let cpu = &mut self.cpus[index];
        if cpu.state == State::Halted && cpu.has_pending() {
            cpu.state = State::Ready;
        }
        true
    }

    /// One has halted with interrupts off. Returns whether it goes on all the same.
    #[cold]
    fn stop(&mut self, index: usize) -> bool {
        interrupts::poll();
        if interrupts::any() {
            self.deliver_during_turn(index);
        }
        let cpu = &mut self.cpus[index];
        cpu.publish(false, self.queue.is_muted(cpu.vm.id));
        // What came before that came perhaps without an interrupt.
        cpu.take_sent();
        if cpu.state == State::Stopped && cpu.nmi {
            cpu.state = State::Ready;
        } else if cpu.state == State::Stopped {
            cpu.vm.stopped(cpu.number);
        }
        if cpu.state == State::Ready {
            cpu.publish(true, false);
        }
        cpu.state == State::Ready
    }

    /// One that has halted waits in its turn, because nobody else can run. If it has woken and is to run next, its next turn has begun, and the turn's
    /// end is returned: the least turn's, because nobody else has to be looked at before that (`RunQueue::turn_end`). Whom to interrupt for it is
    /// said already, because it has the processor all the time.
    fn wait_in_turn(&mut self, index: usize) -> Option<u64> {
        let guest = self.cpus[index].vm.id;
        self.charge(index, cpu::tsc());
        self.charge_owed(guest);
        self.queue.set_ready(guest, false);
        self.idle();
        let now = cpu::tsc();
        self.charged_until = now;
        self.running = Some(Running { index, began: now });
        let mut has_no_rival = true;
        if !self.deliver_own(index) {
            self.deliver();
            has_no_rival = self.has_no_rival(index);
        }
        self.preempt = false;
        let cpu = &mut self.cpus[index];
        if !has_no_rival || cpu.state != State::Ready || !self.queue.wakes_alone(guest, &mut cpu.ran, now) {
            return None;
        }
        cpu.devices.request_timer_check();
        Some(now.saturating_add(LEAST_TURN))
    }

    /// Whether the maker has something to look at.
    fn has_news(&self) -> bool {
        let (guests, number) = (self.maker.guests(), cpu::percpu::this_cpu().number);
        let has_news = guests.has_news(number, cpu::tsc());
        if has_news {
            // That was taken for a look, which is still to come.
            guests.look_again(number);
        }
        has_news
    }

    /// Waits for an interrupt, or for the next timer, because no virtual processor can run.
    pub(super) fn idle(&mut self) {
        // What processors send to their own come without an interrupt.
        if interrupts::any() {
            return;
        }
        let now = cpu::tsc();
        // Nobody is interrupted.
        while let Some(guest) = self.queue.unmute(now) {
            self.publish_guest(guest);
        }
        self.hold_devices(false);
        if interrupts::any() {
            return;
        }
        match self.next_timer(now) {
            Some(deadline) if deadline > now && self.has_tsc_deadline => apic::arm_timer(deadline),
            // A guest can have timers that are due all the time; what is to be written does not wait for their end.
            Some(_) => {
                console::pump();
                return interrupts::poll();
            }
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
}
