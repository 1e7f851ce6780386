//! How virtual processors halt, and how the processor waits when none can run.

use crate::{
    apic, console,
    cpu::{self, interrupts},
    vm::virtual_cpu::{State, VirtualCpu},
};

use super::{Running, Scheduler};

impl Scheduler {
    /// Halts a virtual processor. Returns true if an interrupt is pending already, so that it continues.
    pub(super) fn halt(&mut self, index: usize) -> bool {
        interrupts::poll();
        if interrupts::any() {
            self.deliver_during_turn(index);
        }
        let cpu = &mut self.cpus[index];
        if cpu.state != State::Ready {
            return false;
        }
        let is_muted = self.queue.is_muted(cpu.vm.id);
        cpu.state = if cpu.can_wake() { State::Halted } else { State::Stopped };
        cpu.sleeps_through_timer = false;
        cpu.publish(false, is_muted);
        // What came before that came perhaps without an interrupt.
        cpu.take_sent();
        let goes_on = match cpu.state {
            State::Halted => cpu.nmi || cpu.has_pending(),
            State::Stopped => cpu.nmi,
            _ => false,
        };
        if goes_on {
            cpu.state = State::Ready;
        } else if cpu.state == State::Stopped {
            cpu.vm.stopped(cpu.number);
        }
        if cpu.state != State::Ready {
            return false;
        }
        cpu.publish(true, false);
        true
    }

    /// One that has halted waits in its turn, if nobody else can run. Returns whether it has woken and is to run next; its next turn has begun
    /// then.
    pub(super) fn wait_in_turn(&mut self, index: usize) -> bool {
        let guest = self.cpus[index].vm.id;
        self.running = None;
        self.charge(index, cpu::tsc());
        self.poll_devices();
        self.look_for_news();
        self.queue.set_ready(guest, false);
        if !self.has_no_rival(index) {
            return false;
        }
        self.idle();
        let now = cpu::tsc();
        self.charged_until = now;
        self.running = Some(Running { index, began: now });
        self.deliver();
        self.preempt = false;
        let cpu = &self.cpus[index];
        let goes_on = cpu.state == State::Ready
            && self.has_no_rival(index)
            && self.queue.goes_on(guest, self.cpus[index].ran, now);
        if goes_on {
            self.cpus[index].publish(true, false);
        }
        goes_on
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
}
