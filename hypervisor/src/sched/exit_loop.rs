//! The loop of VM exits: it enters the guest, handles the exit, and enters the guest again.
//!
//! Every exit goes through one loop, and the compiler keeps the loop short if it holds nothing but the virtual processor. So values that do
//! not change are looked up before, rare exits are handled by functions of their own, and events of the processor as a whole end the loop.

use alloc::sync::Arc;

use crate::{
    apic,
    cpu::{self, interrupts},
    exits::{Context, EndReason, Next, dispatch},
    vm::{guest_io::GuestIo, instance::Vm, virtual_cpu::VirtualCpu},
    vmx::{Event, EventKind, fields, instr::Failure},
};

/// Exits after which the timers are checked in any case.
const EXITS_BETWEEN_TIMER_CHECKS: u32 = 64;

/// Ticks after the VMX-preemption timer's end at which the local APIC's timer ends a guest's MWAIT. In C-states deeper than C2 the
/// VMX-preemption timer stands still (SDM vol. 3, 27.5.1). Without the APIC's timer a guest could keep the processor from others, or sleep
/// through its own timer.
const SLEEP_GRACE: u64 = 10_000;

/// A virtual processor's slice of time.
pub struct ExitLoop {
    /// The end of the slice, as the machine's TSC.
    pub end: u64,
    /// The ratio of TSC ticks to ticks of the VMX-preemption timer, as a power of two.
    pub preemption_shift: u32,
    /// Whether the local APIC's timer has TSC-deadline mode.
    pub has_tsc_deadline: bool,
    /// Bits that guests may set in XCR0.
    pub xcr0_supported: u64,
    /// Of the virtual processors of this processor units notify of this one alone now, so each notification is for it.
    pub is_only_notified: bool,
}

/// Why the loop returned to the scheduler.
#[derive(Debug)]
pub enum RunExit {
    /// The slice is over.
    SliceEnd,
    /// An interrupt of the machine has arrived.
    Interrupt,
    /// The virtual processor waits for space in the console's buffer.
    Yield,
    /// The virtual processor has halted.
    Halt,
    /// The guest has ended.
    End(EndReason),
}

impl From<Next> for RunExit {
    fn from(next: Next) -> Self {
        match next {
            Next::Run | Next::Interrupt(_) => Self::Interrupt,
            Next::Yield => Self::Yield,
            Next::Halt => Self::Halt,
            Next::End(reason) => Self::End(reason),
        }
    }
}

impl ExitLoop {
    /// Runs the virtual processor, whose VMCS is current. `vm` is its guest. Not inlined: the scheduler's values would take the loop's registers.
    #[inline(never)]
    pub fn run(&self, vm: &Arc<Vm>, guest: &mut VirtualCpu) -> RunExit {
        let (Some(ram), Some(domain)) = (&vm.resources.ram, &vm.resources.domain) else {
            return RunExit::End(EndReason::Killed("it has no memory"));
        };
        let mut platform = GuestIo { vm, number: guest.number, domain, service: vm.resources.service, ram };
        loop {
            // The timer stands still while the hypervisor works, and what an exit asks for may take long (a reset of the device, a
            // batch): the slice is over when it is.
            let now = cpu::tsc();
            if now >= self.end {
                return RunExit::SliceEnd;
            }
            guest.devices.exits_to_timer_check -= 1;
            if guest.devices.exits_to_timer_check == 0 {
                self.check_timers(guest, now);
            }
            prepare_interrupts(guest);
            let (number, exit) = match guest.vcpu.run() {
                Ok(done) => done,
                Err(failure) => return entry_failed(&guest.vm.name, failure),
            };
            guest.mailbox.counts.exit(number);
            let mut context = Context {
                vcpu: &mut guest.vcpu,
                devices: &mut guest.devices,
                ram,
                xcr0: (&mut guest.switched.fpu.xcr0, self.xcr0_supported),
                platform: &mut platform,
            };
            match dispatch::serve(&mut context, exit) {
                Next::Run => {}
                Next::Interrupt(vector) => self.interrupt(guest, vector),
                // Two comparisons, and no table of jumps: most exits are the first, and most of the others the second.
                other => return other.into(),
            }
            if interrupts::any() {
                return RunExit::Interrupt;
            }
        }
    }

    /// The machine's interrupt has ended the guest's run. A notification that can only be for this virtual processor is taken here; the scheduler
    /// takes every other interrupt.
    #[inline(always)]
    fn interrupt(&self, guest: &mut VirtualCpu, vector: u8) {
        if vector == apic::INJECT_VECTOR && self.is_only_notified {
            apic::eoi();
            guest.take_posted();
        } else {
            interrupts::arrived(vector);
        }
    }

    /// Sets the timers anew. This is needed only when one of them has changed, or after some exits, because they keep running across exits.
    #[inline(never)]
    fn check_timers(&self, guest: &mut VirtualCpu, now: u64) {
        guest.devices.exits_to_timer_check = EXITS_BETWEEN_TIMER_CHECKS;
        let deadline = self.set_timer(guest, now);
        // Ends the sleep of a guest whose MWAIT does not exit, some time after the VMX-preemption timer should have done so.
        if self.has_tsc_deadline && guest.virtual_apic.is_some() {
            apic::arm_timer(deadline.saturating_add(SLEEP_GRACE));
        }
    }

    /// Sets the preemption timer to the end of the slice, or to the deadline of the virtual local APIC's timer if that comes first. Returns
    /// that time, as the machine's TSC.
    fn set_timer(&self, guest: &mut VirtualCpu, now: u64) -> u64 {
        let devices = &mut guest.devices;
        let guest_now = devices.guest_tsc(now);
        devices.apic.expire(guest_now);
        let deadline = devices.apic.next_deadline().map_or(self.end, |at| devices.host_deadline(at, now).min(self.end));
        let ticks = deadline.saturating_sub(now) >> self.preemption_shift;
        guest.vcpu.write(fields::PREEMPTION_TIMER, u32::try_from(ticks).unwrap_or(u32::MAX));
        deadline
    }
}

#[cold]
fn entry_failed(name: &str, failure: Failure) -> RunExit {
    log::error!("guest {name}: VM entry: {failure}");
    RunExit::End(EndReason::Killed("VM entry failed"))
}

/// Injects the next interrupt if the guest can take it; else requests an exit for when it can.
#[inline(always)]
fn prepare_interrupts(guest: &mut VirtualCpu) {
    let window = guest.vcpu.has_interrupt_window();
    if guest.nmi || guest.virtual_apic.is_some() || guest.devices.apic.has_requests() || window {
        deliver_interrupts(guest);
    }
}

#[inline(never)]
fn deliver_interrupts(guest: &mut VirtualCpu) {
    if guest.nmi {
        guest.nmi = !guest.vcpu.inject_nmi(false);
    }
    if guest.hand_over_requests() {
        return;
    }
    if guest.devices.pv_eoi.is_offered() {
        guest.settle_eoi();
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
    vcpu.set_interrupt_window(devices.apic.has_requests() && devices.apic.pending().is_some());
    if guest.mailbox.pv_eoi().is_some() {
        guest.offer_pv_eoi();
    }
}
