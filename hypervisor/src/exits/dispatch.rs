//! The dispatch of VM exits, and the common tail after each handler.

use super::{
    Action, EndReason,
    context::{Context, Devices, Platform, RepeatedFault},
    cpuid, cr, io,
    machine::VcpuMachine,
    mmio::{self, Emulated, Fault, emulate, store_known},
    msr, vmcall,
};
use crate::{
    addr::Gpa,
    cpu::{
        self,
        machine_check::{self, Interrupted, Severity},
    },
    memory::Ram,
    vdev::x2apic,
    vmx::{
        Event, EventKind, Exit, Vcpu,
        exit::{self, CrAccess, EptViolation, Exception, IoAccess},
        fields,
        vcpu::{VECTOR_DB, VECTOR_MC},
    },
};

/// How a guest continues after an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The guest continues.
    Run,
    /// The guest continues after the machine's interrupt at this vector, which is not ended yet.
    Interrupt(u8),
    /// The guest continues after the others have run.
    Yield,
    /// The guest waits for an interrupt.
    Halt,
    /// The guest has ended.
    End(EndReason),
}

/// Handles an exit. If the exit interrupted the delivery of an event, the event is delivered again first.
#[inline(always)]
pub fn serve<P: Platform>(context: &mut Context<'_, P>, exit: Exit) -> Next {
    // An instruction that exits by itself is executed after every event has been delivered.
    if !exit.is_instruction()
        && Event::from_field(context.vcpu.read(fields::IDT_VECTORING)).is_some()
        && let Some(action) = deliver_again(context.vcpu, exit)
    {
        return finish(context.vcpu, action);
    }
    let action = act(context, exit);
    finish(context.vcpu, action)
}

/// Prepares the second delivery of an event whose delivery the exit interrupted. Returns `Some` if the exit needs nothing else.
#[cold]
fn deliver_again(vcpu: &mut Vcpu, exit: Exit) -> Option<Action> {
    if exit == Exit::EptViolation {
        return Some(Action::End(EndReason::Killed("an event was delivered through a page that is no memory")));
    }
    vcpu.reinject();
    // The event that was interrupted comes first; a fault comes again with the instruction that caused it.
    let faults = exit == Exit::ExceptionOrNmi && Exception::read().is_some_and(|e| e.event.vector() != VECTOR_MC);
    faults.then_some(Action::Resume)
}

#[inline(always)]
fn act<P: Platform>(context: &mut Context<'_, P>, exit: Exit) -> Action {
    let Context { vcpu, devices, ram, xcr0, platform } = context;
    match exit {
        Exit::ExternalInterrupt => Action::Interrupt(exit::interrupt_vector()),
        Exit::EptViolation => ept_violation(context, EptViolation::read()),
        Exit::Vmcall => vmcall::handle(vcpu, *platform),
        Exit::Wrmsr if msr::end_interrupt(vcpu, devices) => Action::Advance,
        Exit::Wrmsr => msr::write(vcpu, devices, ram, *platform, cpu::tsc()),
        Exit::Rdmsr => msr::read(vcpu, devices, ram, cpu::tsc()),
        Exit::Cpuid => cpuid::handle(vcpu, &devices.policy, devices.apic_id, *xcr0.0),
        Exit::Io => io::access(vcpu, *platform, IoAccess::read()),
        Exit::Hlt => {
            devices.request_timer_check();
            Action::Halt
        }
        Exit::PreemptionTimer => {
            devices.request_timer_check();
            Action::Resume
        }
        Exit::InterruptWindow | Exit::NmiWindow | Exit::Signal => Action::Resume,
        Exit::ControlRegister => control_register(vcpu, devices, ram, CrAccess::read()),
        Exit::Xsetbv => match cr::xsetbv(vcpu, xcr0.1) {
            Ok(value) => {
                *xcr0.0 = value;
                cpu::fpu::set_guest_xcr0(value);
                Action::Advance
            }
            Err(action) => action,
        },
        // The guest's caches are the machine's, and coherent: there is nothing to write back that others could miss.
        Exit::CacheFlush => Action::Advance,
        Exit::NotOffered => Action::UNDEFINED_OPCODE,
        Exit::ExceptionOrNmi => exception_or_nmi(vcpu),
        Exit::BusLock => bus_lock(devices, *platform, cpu::tsc()),
        Exit::TripleFault => Action::End(EndReason::TripleFault),
        Exit::ApicWrite => apic_write(vcpu, devices),
        Exit::TaskSwitch => {
            Action::End(EndReason::Killed("a hardware task switch, which the hypervisor does not carry out"))
        }
        Exit::EntryFailure => Action::End(EndReason::Killed("the processor refused the guest's state")),
        Exit::EntryMachineCheck => machine_check(Interrupted::Hypervisor),
        Exit::EptMisconfiguration => {
            Action::End(EndReason::Killed("the processor refused an entry of the guest's EPT"))
        }
        Exit::NotAskedFor => Action::End(EndReason::Killed("an exit that the hypervisor has not asked for")),
    }
}

/// Handles a write of the virtual-APIC page that the processor has completed only in part: a self-IPI whose vector is below 16 (SDM vol. 3,
/// 31.1.5 and 31.4.3.3). The emulated APIC notes the error. The instruction is done.
#[cold]
fn apic_write(vcpu: &Vcpu, devices: &mut Devices) -> Action {
    const SELF_IPI: u16 = 0x3f0;
    if exit::apic_write_offset() != SELF_IPI {
        return Action::End(EndReason::Killed("a write to its local APIC that the processor should have carried out"));
    }
    // The write did not fault, so the register took it.
    let _ = devices.apic.write(x2apic::SELF_IPI, vcpu.registers.edx_eax() & 0xff, devices.guest_tsc(cpu::tsc()));
    Action::Resume
}

/// The tail of every exit: only here does RIP advance and are handlers' events injected.
#[inline(always)]
fn finish(vcpu: &mut Vcpu, action: Action) -> Next {
    match action {
        Action::Advance => {
            let length = vcpu.instruction_length();
            vcpu.advance(length);
            Next::Run
        }
        Action::AdvanceBy(length) => {
            vcpu.advance(length);
            Next::Run
        }
        Action::Halt => {
            let length = vcpu.instruction_length();
            vcpu.advance(length);
            // The trap behind HLT ends its wait (SDM vol. 2, HLT).
            if vcpu.has_pending_debug() { Next::Run } else { Next::Halt }
        }
        Action::Resume => Next::Run,
        Action::Interrupt(vector) => Next::Interrupt(vector),
        Action::Yield => Next::Yield,
        Action::Inject { event, error_code } => {
            vcpu.raise(event, error_code);
            Next::Run
        }
        Action::End(reason) => Next::End(reason),
    }
}

#[inline(always)]
fn ept_violation<P: Platform>(context: &mut Context<'_, P>, violation: EptViolation) -> Action {
    let Some(gva) = violation.gva else {
        return Action::End(EndReason::Killed("page tables outside of its memory"));
    };
    if violation.fetch {
        return fetch(context.platform, violation.gpa);
    }
    let fault = Fault { gpa: violation.gpa, gva, write: violation.write };
    match store_known(&mut machine(context).0, fault) {
        Some(length) => Action::AdvanceBy(length),
        None => {
            let (machine, repeated_fault) = machine(context);
            emulated(machine, repeated_fault, fault)
        }
    }
}

/// The access is done. A guest that locks the bus too often waits.
#[cold]
fn bus_lock(devices: &mut Devices, platform: &mut impl Platform, now: u64) -> Action {
    match platform.bus_lock(now) {
        None => Action::Resume,
        Some(until) => {
            devices.held_until = until;
            Action::Yield
        }
    }
}

/// The guest executes where it may not: in a large page that is to be split, or outside of its memory.
#[cold]
fn fetch(platform: &mut impl Platform, gpa: Gpa) -> Action {
    match platform.make_executable(gpa) {
        Ok(true) => Action::Resume,
        Ok(false) => Action::End(EndReason::Killed("code outside of its memory")),
        Err(why) => Action::End(EndReason::Killed(why)),
    }
}

/// The parts of the context that the emulation needs, and the counter of exits without progress.
#[inline(always)]
fn machine<'a, P>(context: &'a mut Context<'_, P>) -> (VcpuMachine<'a, P>, &'a mut RepeatedFault) {
    let Devices { decode_cache, repeated_fault, physical_bits, .. } = &mut *context.devices;
    let machine = VcpuMachine {
        vcpu: context.vcpu,
        ram: context.ram,
        platform: context.platform,
        decode_cache,
        physical_bits: *physical_bits,
        hits: 0,
    };
    (machine, repeated_fault)
}

/// Emulates an access that [`store_known`] does not handle. The parts are passed by value: for a context by reference, each exit would have
/// to build one.
#[inline(never)]
fn emulated<P: Platform>(mut machine: VcpuMachine<'_, P>, repeated_fault: &mut RepeatedFault, fault: Fault) -> Action {
    if exit::violation_unblocked_nmis() {
        machine.vcpu.block_nmis();
    }
    let outcome = emulate(&mut machine, fault);
    let VcpuMachine { vcpu, hits, .. } = machine;
    if hits != 0 {
        vcpu.pend_debug(hits);
    }
    if outcome == Ok(Emulated::Again) {
        if repeated_fault.is_at((vcpu.read(fields::GUEST_RIP), fault)) {
            return Action::End(EndReason::Killed(
                "an instruction that reads a descriptor, or the like, outside of its memory",
            ));
        }
    } else {
        *repeated_fault = RepeatedFault::default();
    }
    match outcome {
        Ok(Emulated::Advance(length)) => Action::AdvanceBy(length),
        Ok(Emulated::Part) => {
            vcpu.finish_element();
            Action::Resume
        }
        Ok(Emulated::Again) => Action::Resume,
        Ok(Emulated::Inject(exception)) => inject(exception),
        Err(_) => Action::End(EndReason::Killed("an instruction or page table outside of its memory")),
    }
}

fn inject(exception: mmio::Exception) -> Action {
    if let Some(cr2) = exception.cr2 {
        cpu::write_cr2(cr2);
    }
    let event = Event::new(EventKind::HardwareException, exception.vector, exception.error_code.is_some());
    Action::Inject { event, error_code: exception.error_code.unwrap_or(0) }
}

#[inline(never)]
fn control_register(vcpu: &mut Vcpu, devices: &mut Devices, ram: &Ram, access: CrAccess) -> Action {
    match access {
        CrAccess::Write { register: 8, source } => match devices.apic.set_cr8(cr::operand(vcpu, source)) {
            Ok(_) => Action::Advance,
            Err(_) => Action::GENERAL_PROTECTION,
        },
        CrAccess::Read { register: 8, target } => {
            vcpu.set_general(target.into(), devices.apic.cr8().into());
            Action::Advance
        }
        _ => cr::access(vcpu, access, devices.physical_bits, &|gpa| read_pdptes(ram, gpa)),
    }
}

fn read_pdptes(ram: &Ram, gpa: Gpa) -> Option<[u64; 4]> {
    let mut entries = [0; 4];
    for (n, entry) in (0..).zip(&mut entries) {
        let mut bytes = [0; 8];
        ram.read(gpa.checked_add(8 * n)?, &mut bytes).ok()?;
        *entry = u64::from_le_bytes(bytes);
    }
    Some(entries)
}

/// The action after a machine check. The guest learns no bank and no address.
#[cold]
fn machine_check(interrupted: Interrupted) -> Action {
    let report = machine_check::take(interrupted);
    match report.severity {
        Severity::GoesOn => {
            log::warn!("{report}: of nobody here");
            Action::Resume
        }
        Severity::GuestEnds => {
            log::error!("{report}");
            Action::End(EndReason::Killed("a machine check while it ran"))
        }
        Severity::Fatal => panic!("{report}"),
    }
}

/// Handles exceptions and NMIs: #DB and #AC go to the guest. For #DB the exit qualification holds the bits for DR6 (SDM vol. 3, 29.2.1).
#[inline(never)]
fn exception_or_nmi(vcpu: &mut Vcpu) -> Action {
    let Some(Exception { event, error_code, qualification }) = Exception::read() else {
        cpu::interrupts::count_nmi();
        cpu::interrupts::unblock_nmis();
        return Action::Resume;
    };
    if exit::exception_unblocked_nmis() {
        vcpu.block_nmis();
    }
    match event.vector() {
        VECTOR_MC => return machine_check(Interrupted::Guest),
        VECTOR_DB => {
            cpu::add_dr6(qualification);
            vcpu.keep_single_step();
            // Delivery of #DB clears DR7.GD.
            const GD: u64 = 1 << 13;
            let dr7 = vcpu.read(fields::GUEST_DR7);
            vcpu.write(fields::GUEST_DR7, dr7 & !GD);
        }
        _ => {}
    }
    Action::Inject { event, error_code }
}
