//! The one switch over VM exits, and the one tail behind it.

use super::{
    Action, EndReason, cpuid, cr, io,
    machine::VcpuMachine,
    memo::Memo,
    mmio::{self, Emulated, Fault, emulate, store_known},
    msr,
    pv_eoi::PvEoi,
    vmcall,
};
use crate::{
    addr::Gpa,
    cpu::{
        self,
        machine_check::{self, Interrupted, Severity},
    },
    memory::Ram,
    vdev::{
        cpuid::Policy,
        msr::Msrs,
        x2apic::{self, Ipi, X2Apic},
    },
    vmx::{
        Event, EventKind, Exit, Vcpu,
        exit::{self, CrAccess, EptViolation, Exception, IoAccess},
        fields,
        vcpu::{VECTOR_DB, VECTOR_MC},
    },
};

/// Counts the exits in a row of one instruction at one address that emulation cannot complete. There are two causes: the address is not one
/// of the instruction's operands (the processor reads a descriptor or a task state segment there), or another virtual processor changes the
/// instruction or its page tables before each emulation.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stuck {
    at: Option<(u64, Fault)>,
    times: u32,
}

impl Stuck {
    /// Exits in a row after which the guest ends. Another processor that changes code or page tables all the time makes a few likely; this many
    /// take milliseconds.
    const MOST: u32 = 1000;

    /// Counts an exit at this RIP with this fault. Returns whether there were more than [`Self::MOST`] in a row.
    fn is_at(&mut self, here: (u64, Fault)) -> bool {
        let again = self.at == Some(here);
        *self = Self { at: Some(here), times: if again { self.times + 1 } else { 1 } };
        self.times > Self::MOST
    }
}

/// What a virtual processor has of its own beside its VMCS.
pub struct Devices {
    /// Local APIC.
    pub apic: X2Apic,
    /// Whether its interrupt ends without an exit.
    pub pv_eoi: PvEoi,
    /// Model-specific registers.
    pub msrs: Msrs,
    /// What CPUID tells.
    pub policy: Policy,
    /// Instructions that it has executed on trapped pages.
    pub memo: Memo,
    /// Added to the machine's TSC.
    pub tsc_offset: u64,
    /// Its x2APIC ID.
    pub apic_id: u32,
    /// Bits of a physical address, as CPUID tells it.
    pub physical_bits: u8,
    /// Exits until the time is looked at; never 0.
    pub exits_to_look: u32,
    /// The exits in a row without progress.
    pub stuck: Stuck,
}

impl Devices {
    /// Has the time looked at before the guest goes on: it has slept, or its timer has run down, or was set.
    pub fn look_at_time(&mut self) {
        self.exits_to_look = 1;
    }

    /// The guest's TSC when the machine's is `now`.
    pub fn guest_tsc(&self, now: u64) -> u64 {
        now.wrapping_add(self.tsc_offset)
    }

    /// The machine's TSC at a deadline of the guest's, when it is `now`. A deadline that the machine's counter never reaches is its end.
    pub fn host_deadline(&self, deadline: u64, now: u64) -> u64 {
        now.saturating_add(deadline.saturating_sub(self.guest_tsc(now)))
    }
}

/// What a guest's exits have to do outside of the guest.
pub trait Platform {
    /// IN of `width` (1, 2 or 4) bytes. The low bytes of the result count.
    fn port_read(&mut self, port: u16, width: u8) -> u32;
    /// OUT of `width` (1, 2 or 4) bytes.
    fn port_write(&mut self, port: u16, width: u8, value: u32) -> PortWrite;
    /// The guest reads `bytes` bytes outside of its memory. The low bytes of the result count.
    fn mmio_read(&mut self, gpa: Gpa, bytes: u8) -> u64;
    /// The guest writes `bytes` bytes outside of its memory.
    fn mmio_write(&mut self, gpa: Gpa, bytes: u8, value: u64);
    /// The guest writes 9 to 64 bytes outside of its memory, in one page, by one instruction.
    fn mmio_write_bytes(&mut self, gpa: Gpa, bytes: &[u8]);
    /// The guest reads 1 to 16 bytes outside of its memory, in one page, and writes what `modify` makes of them, in one step.
    fn mmio_modify(&mut self, gpa: Gpa, bytes: u8, modify: &mut dyn FnMut(u128) -> u128);
    /// The virtual processor sends an interrupt command.
    fn ipi(&mut self, ipi: Ipi);
    /// The virtual processor ends interrupts by the 4 bytes at this address from now on, or by none.
    fn set_pv_eoi(&mut self, at: Option<Gpa>);
    /// A hypercall: its number and arguments; the result for RAX.
    fn hypercall(&mut self, number: u64, arguments: [u64; 4]) -> u64;
}

/// What came of a write to a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortWrite {
    /// It is done.
    Done,
    /// The console has no room: it is to be tried again.
    NoRoom,
    /// The guest ends, with this code.
    Exit(u8),
    /// The guest asks for a reset.
    Reset,
}

/// The virtual processor whose exit is served.
pub struct Context<'a, P> {
    /// Its processor.
    pub vcpu: &'a mut Vcpu,
    /// Its devices.
    pub devices: &'a mut Devices,
    /// Its memory.
    pub ram: &'a Ram,
    /// Its XCR0, and the bits that may be set there.
    pub xcr0: (&'a mut u64, u64),
    /// All else.
    pub platform: &'a mut P,
}

/// What becomes of a guest after an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It goes on.
    Run,
    /// It goes on when the others have had their turns.
    Yield,
    /// It waits for an interrupt.
    Halt,
    /// It is at its end.
    End(EndReason),
}

/// Serves an exit. An event whose delivery the exit cut short is delivered again first.
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

/// The exit cut the delivery of an event short. `Some` when that is all that there is to do.
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
        Exit::ExternalInterrupt => {
            cpu::interrupts::arrived(exit::interrupt_vector());
            Action::Resume
        }
        Exit::EptViolation => ept_violation(context, EptViolation::read()),
        Exit::Vmcall => vmcall::handle(vcpu, *platform),
        Exit::Wrmsr => msr::write(vcpu, devices, ram, *platform, cpu::tsc()),
        Exit::Rdmsr => msr::read(vcpu, devices, ram, cpu::tsc()),
        Exit::Cpuid => cpuid::handle(vcpu, &devices.policy, devices.apic_id, *xcr0.0),
        Exit::Io => io::access(vcpu, *platform, IoAccess::read()),
        Exit::Hlt => {
            devices.look_at_time();
            Action::Halt
        }
        Exit::PreemptionTimer => {
            devices.look_at_time();
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

/// The processor has written a register of the virtual-APIC page and leaves the rest to us. That is a self-IPI whose vector is below 16
/// (SDM vol. 3, 31.1.5 and 31.4.3.3): the model notes the error. The instruction is done.
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

/// The tail: the only place where RIP moves and where handlers' events are injected.
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
        return Action::End(EndReason::Killed("code outside of its memory"));
    }
    let fault = Fault { gpa: violation.gpa, gva, write: violation.write };
    match store_known(&mut machine(context).0, fault) {
        Some(length) => Action::AdvanceBy(length),
        None => {
            let (machine, stuck) = machine(context);
            emulated(machine, stuck, fault)
        }
    }
}

/// The processor as the emulation sees it, and what it knows of its progress.
#[inline(always)]
fn machine<'a, P>(context: &'a mut Context<'_, P>) -> (VcpuMachine<'a, P>, &'a mut Stuck) {
    let Devices { memo, stuck, physical_bits, .. } = &mut *context.devices;
    let machine = VcpuMachine {
        vcpu: context.vcpu,
        ram: context.ram,
        platform: context.platform,
        memo,
        physical_bits: *physical_bits,
        hits: 0,
    };
    (machine, stuck)
}

/// What [`store_known`] does not take. The parts by value: with a context by reference, each exit would have to put one together.
#[inline(never)]
fn emulated<P: Platform>(mut machine: VcpuMachine<'_, P>, stuck: &mut Stuck, fault: Fault) -> Action {
    if exit::violation_unblocked_nmis() {
        machine.vcpu.block_nmis();
    }
    let outcome = emulate(&mut machine, fault);
    let VcpuMachine { vcpu, hits, .. } = machine;
    if hits != 0 {
        vcpu.pend_debug(hits);
    }
    if outcome == Ok(Emulated::Again) {
        if stuck.is_at((vcpu.read(fields::GUEST_RIP), fault)) {
            return Action::End(EndReason::Killed(
                "an instruction that reads a descriptor, or the like, outside of its memory",
            ));
        }
    } else {
        *stuck = Stuck::default();
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

/// What a machine check leads to. No bank and no address is told to a guest.
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

/// #DB and #AC go to the guest. For #DB the exit qualification holds what DR6 must say (SDM vol. 3, 29.2.1).
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Gva;

    #[test]
    fn an_instruction_of_which_nothing_comes_is_not_executed_for_ever() {
        let fault = |at| Fault { gpa: Gpa::new(at), gva: Gva::new(at), write: false };
        let mut stuck = Stuck::default();
        assert!((0..Stuck::MOST).all(|_| !stuck.is_at((0x1000, fault(0xe000)))));
        assert!(stuck.is_at((0x1000, fault(0xe000))));
        // Another fault, or another place, begins anew.
        assert!(!stuck.is_at((0x1000, fault(0xe008))));
        assert!((1..Stuck::MOST).all(|_| !stuck.is_at((0x1000, fault(0xe008)))));
        assert!(!stuck.is_at((0x1003, fault(0xe008))));
        assert_eq!(stuck.times, 1);
    }
}
