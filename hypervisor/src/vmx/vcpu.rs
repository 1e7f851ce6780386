//! A virtual processor: its VMCS, its registers, and VM entry.
//!
//! Fields of a VMCS that is current and complete can always be read and written. A failure is our defect, and the hypervisor panics. No
//! guest can cause one.

use super::{
    controls,
    entry::{self, Registers, Way},
    exit::{Event, EventKind, Exit},
    fields::{self, Field, Guests, Width},
    instr::{self, Failure},
    reason,
    root::{Host, prepare_region},
    spec_ctrl::SpecCtrl,
    start::{Frames, LocalApic, Start},
};
use crate::{
    addr::{Gpa, Hpa},
    cpu::bits::{cr0, cr4, efer, rflags},
};

/// CR0 bits whose changes the hypervisor traps; the guest owns the others.
pub const CR0_WATCHED: u64 = cr0::PE | cr0::NE | cr0::NW | cr0::CD | cr0::PG;

/// CR4 bits the guest may change without an exit: none of them changes what an exit or an entry means.
pub const CR4_OWNED: u64 = cr4::TSD | cr4::DE | cr4::PGE | cr4::OSFXSR | cr4::OSXMMEXCPT;
const _: () =
    assert!(CR4_OWNED & (cr4::PSE | cr4::PAE | cr4::LA57 | cr4::SMEP | cr4::SMAP) == 0, "translation is watched");
/// CR4 bits that a guest may set if the processor has them.
pub const CR4_ALLOWED: u64 = CR4_OWNED
    | cr4::VME
    | cr4::PVI
    | cr4::PSE
    | cr4::PAE
    | cr4::MCE
    | cr4::UMIP
    | cr4::FSGSBASE
    | cr4::PCIDE
    | cr4::OSXSAVE
    | cr4::SMEP
    | cr4::SMAP;

/// The CR4 in force while a guest runs that reads `guest`. A machine check shuts the processor down if CR4.MCE is clear, also in a guest
/// (SDM vol. 3, 16.1). So that bit is the hypervisor's, whose CR4 is `host`.
pub const fn cr4_in_force(guest: u64, host: u64) -> u64 {
    guest | cr4::VMXE | host & cr4::MCE
}

/// Interruptibility: blocking by STI, by MOV SS, by NMI.
const BLOCKING_STI: u32 = 1 << 0;
const BLOCKING_MOV_SS: u32 = 1 << 1;
const BLOCKING_NMI: u32 = 1 << 3;

/// Access rights of segments (SDM vol. 3, table 26-2): of a code segment that it is conforming, DPL, 64-bit code.
const CS_CONFORMING: u32 = 1 << 2;
const RIGHTS_DPL: u32 = 3 << 5;
const CS_L: u32 = 1 << 13;

/// Pending debug exceptions: single step.
const PENDING_BS: u64 = 1 << 14;

/// Exceptions that the hypervisor intercepts. #DB and #AC, because a guest can make their delivery cause them again without end, which no
/// interrupt could break (CVE-2015-8104, CVE-2015-5307); #MC, because it is the machine's.
pub const VECTOR_DB: u8 = 1;
/// Alignment check: see [`VECTOR_DB`].
pub const VECTOR_AC: u8 = 17;
/// Machine check: see [`VECTOR_DB`].
pub const VECTOR_MC: u8 = 18;

/// Copies of fields that only the hypervisor changes. Most exits need the guest's mode.
#[derive(Debug, Default)]
struct CachedFields {
    cr0_shadow: u64,
    cr4_shadow: u64,
    efer: u64,
}

/// A virtual processor.
#[derive(Debug)]
pub struct Vcpu {
    /// General registers.
    pub registers: Registers,
    vmcs: Hpa,
    vpid: u16,
    /// How it is entered next, and after that.
    way: Way,
    again: Way,
    /// The values of the [`fields::Cached`] fields in the VMCS.
    cached: CachedFields,
    pub(super) entry_controls: u32,
    pub(super) primary_controls: u32,
    /// IA32_SPEC_CTRL, where the hypervisor has its own value there.
    pub(super) spec_ctrl: Option<SpecCtrl>,
}

impl Vcpu {
    /// Makes a virtual processor that begins at `start` with the memory of `eptp`. Its VMCS is current afterwards.
    ///
    /// # Safety
    /// `eptp` maps nothing but the guest's own memory, and the bitmap lets through no MSR that endangers the hypervisor. The frames, and
    /// those of `apic`, are used for nothing else until the virtual processor is retired.
    pub unsafe fn new(
        host: &Host,
        frames: Frames,
        eptp: u64,
        vpid: u16,
        start: &Start,
        apic: LocalApic,
    ) -> Result<Self, Failure> {
        // SAFETY: the caller has given the frame away, and it is prepared before it is used.
        unsafe {
            prepare_region(frames.vmcs, host.capabilities.revision);
            instr::vmclear(frames.vmcs)?;
            instr::vmptrld(frames.vmcs)?;
        }
        let mut vcpu = Self {
            registers: Registers::default(),
            vmcs: frames.vmcs,
            vpid,
            way: Way::Launch,
            again: Way::again(&host.plan),
            cached: CachedFields::default(),
            entry_controls: host.capabilities.entry | controls::ENTRY_IA32E,
            primary_controls: host.capabilities.primary,
            spec_ctrl: SpecCtrl::new(host, frames.msr_bitmap),
        };
        // SAFETY: the caller vouches for the EPT, the bitmap and the frames.
        unsafe { vcpu.write_controls(host, frames.msr_bitmap, eptp, vpid) };
        if let LocalApic::Virtualised { page, descriptor } = apic {
            // SAFETY: the caller vouches that page and descriptor are used for nothing else.
            unsafe { vcpu.virtualise_apic(host, page, descriptor) };
        }
        vcpu.set_spec_ctrl(0);
        vcpu.write_host_state(host);
        vcpu.write_guest_state(start);
        vcpu.registers.set(Registers::RSI, start.rsi);
        Ok(vcpu)
    }

    /// Makes its VMCS the current one.
    pub fn make_current(&self) -> Result<(), Failure> {
        // SAFETY: the VMCS was made by `new`, and its frame is this virtual processor's for as long as it lives.
        unsafe { instr::vmptrld(self.vmcs) }
    }

    /// Clears the VMCS from the processor, so that the frame can be used again.
    pub fn retire(self) -> Result<(), Failure> {
        // SAFETY: as in `make_current`.
        unsafe { instr::vmclear(self.vmcs) }
    }

    /// Runs the guest until its next exit. Returns the basic exit reason's number and the exit.
    pub fn run(&mut self) -> Result<(u16, Exit), Failure> {
        // SAFETY: `new` has completed the VMCS, and whoever called it vouches for the EPT.
        unsafe { entry::enter(&mut self.registers, self.way)? };
        self.way = self.again;
        Ok(reason::read())
    }

    /// Reads a field. The VMCS must be current.
    pub fn read<W: Width, S>(&self, field: Field<W, S>) -> W::Value {
        instr::vmread(field)
    }

    /// Writes a field of the guest's state, or one of an entry's parameters. The VMCS must be current.
    pub fn write<W: Width>(&mut self, field: Field<W, Guests>, value: W::Value) {
        // SAFETY: such a field can endanger the guest only, as `Guests` says.
        unsafe { self.write_guarded(field, value) }
    }

    /// Writes any field. The VMCS must be current.
    ///
    /// # Safety
    /// As for [`instr::vmwrite`].
    pub(super) unsafe fn write_guarded<W: Width, S>(&mut self, field: Field<W, S>, value: W::Value) {
        // SAFETY: the caller vouches for the value.
        unsafe { instr::vmwrite(field, value) }
    }

    /// The length of the instruction that caused the exit. Valid for instructions that exit unconditionally or by a control
    /// (SDM vol. 3, 29.2.5), not for EPT violations.
    pub fn instruction_length(&self) -> u8 {
        self.read(fields::EXIT_INSTRUCTION_LENGTH) as u8
    }

    /// Advances RIP over an instruction of `length` bytes. RIP moves only here.
    ///
    /// The instruction is done, so blocking by STI or MOV SS ends with it, and a single step traps after it (SDM vol. 3, 27.7.3).
    pub fn advance(&mut self, length: u8) {
        let rip = self.read(fields::GUEST_RIP);
        let mut next = rip.wrapping_add(u64::from(length));
        // Only at the end of 4 GiB does it matter what code this is.
        if (rip ^ next) >> 32 != 0 && !self.is_64_bit_code() {
            next &= 0xffff_ffff;
        }
        self.write(fields::GUEST_RIP, next);
        self.end_blocking();
        let flags = self.read(fields::GUEST_RFLAGS);
        // RF ends with the instruction (SDM vol. 3, 18.3.1.1). EPT violations have it saved as 1 in any case (29.3.3).
        if flags & rflags::RF != 0 {
            self.write(fields::GUEST_RFLAGS, flags & !rflags::RF);
        }
        if flags & rflags::TF != 0 {
            self.pend_debug(PENDING_BS);
        }
    }

    /// Makes a single step pending, if RFLAGS.TF is set.
    fn pend_single_step(&mut self) {
        if self.read(fields::GUEST_RFLAGS) & rflags::TF != 0 {
            self.pend_debug(PENDING_BS);
        }
    }

    /// Completes an element of a repeated string instruction with others left: as [`Vcpu::advance`], except for RIP and RF.
    pub fn finish_element(&mut self) {
        self.end_blocking();
        self.pend_single_step();
    }

    fn end_blocking(&mut self) {
        let interruptibility = self.read(fields::GUEST_INTERRUPTIBILITY);
        if interruptibility & (BLOCKING_STI | BLOCKING_MOV_SS) != 0 {
            self.write(fields::GUEST_INTERRUPTIBILITY, interruptibility & !(BLOCKING_STI | BLOCKING_MOV_SS));
        }
    }

    /// Makes a debug exception for `causes`, in the format of the field, pending.
    pub fn pend_debug(&mut self, causes: u64) {
        let pending = self.read(fields::GUEST_PENDING_DEBUG);
        self.write(fields::GUEST_PENDING_DEBUG, pending | causes);
    }

    /// Whether a debug exception is pending, which comes before anything else (SDM vol. 3, 7.9).
    pub fn has_pending_debug(&self) -> bool {
        self.read(fields::GUEST_PENDING_DEBUG) != 0
    }

    /// Keeps the guest's state valid for VM entry when a debug exception has exited right after STI or MOV SS: such an exit drops the
    /// single step that TF has pending there, and VM entry requires it (SDM vol. 3, 28.3.1.5).
    pub fn keep_single_step(&mut self) {
        if self.read(fields::GUEST_INTERRUPTIBILITY) & (BLOCKING_STI | BLOCKING_MOV_SS) != 0 {
            self.pend_single_step();
        }
    }

    /// Drops the guest's cached translations, as a change of its paging mode does on a processor of its own: with a VPID, VM entry
    /// keeps them.
    pub fn flush_translations(&self) {
        instr::invvpid(self.vpid).unwrap_or_else(|failure| panic!("INVVPID {}: {failure}", self.vpid));
    }

    /// Whether the guest runs 64-bit code: long mode active and CS.L set.
    pub fn is_64_bit_code(&self) -> bool {
        self.cached.efer & efer::LMA != 0 && self.read(fields::GUEST_CS_RIGHTS) & CS_L != 0
    }

    /// Whether the guest runs 64-bit code at CPL 0. A code segment that is not conforming tells the CPL by itself: it is its DPL
    /// (SDM vol. 3, 28.3.1.2).
    pub fn is_64_bit_kernel(&self) -> bool {
        let rights = self.read(fields::GUEST_CS_RIGHTS);
        let long = self.cached.efer & efer::LMA != 0 && rights & CS_L != 0;
        long && (rights & (CS_CONFORMING | RIGHTS_DPL) == 0 || self.cpl() == 0)
    }

    /// The current privilege level: DPL of SS (SDM vol. 3, 26.4.1).
    pub fn cpl(&self) -> u8 {
        ((self.read(fields::GUEST_SS_RIGHTS) & RIGHTS_DPL) >> 5) as u8
    }

    /// The guest's EFER.
    pub fn efer(&self) -> u64 {
        self.cached.efer
    }

    /// Sets the guest's EFER. LMA goes with an entry control: [`Vcpu::set_long_mode`].
    pub fn set_efer(&mut self, value: u64) {
        self.cached.efer = value;
        // SAFETY: the register is the guest's own.
        unsafe { self.write_guarded(fields::GUEST_EFER, value) }
    }

    /// The guest has written `value`, whose bits the processor has, to IA32_SPEC_CTRL; or it begins, with 0. Its VMCS must be current.
    pub fn set_spec_ctrl(&mut self, value: u64) {
        let Some([guest, host]) = self.spec_ctrl.as_mut().and_then(|own| own.set(value)) else { return };
        // SAFETY: the entries live as long as the virtual processor, and name a register that is there.
        unsafe {
            for (address, count, entry) in [
                (fields::EXIT_MSR_STORE_ADDRESS, fields::EXIT_MSR_STORE_COUNT, guest),
                (fields::EXIT_MSR_LOAD_ADDRESS, fields::EXIT_MSR_LOAD_COUNT, host),
                (fields::ENTRY_MSR_LOAD_ADDRESS, fields::ENTRY_MSR_LOAD_COUNT, guest),
            ] {
                self.write_guarded(address, entry);
                self.write_guarded(count, 1);
            }
        }
    }

    /// Sets the values that the guest reads of CR0 bits that it does not own.
    pub fn set_cr0_shadow(&mut self, value: u64) {
        self.cached.cr0_shadow = value;
        // SAFETY: only the guest reads it.
        unsafe { self.write_guarded(fields::CR0_SHADOW, value) }
    }

    /// Sets the values that the guest reads of CR4 bits that it does not own.
    pub fn set_cr4_shadow(&mut self, value: u64) {
        self.cached.cr4_shadow = value;
        // SAFETY: only the guest reads it.
        unsafe { self.write_guarded(fields::CR4_SHADOW, value) }
    }

    /// CR0 as the guest sees it.
    pub fn cr0(&self) -> u64 {
        self.read(fields::GUEST_CR0) & !CR0_WATCHED | self.cached.cr0_shadow & CR0_WATCHED
    }

    /// CR4 as the guest sees it.
    pub fn cr4(&self) -> u64 {
        self.read(fields::GUEST_CR4) & CR4_OWNED | self.cached.cr4_shadow & !CR4_OWNED
    }

    /// CR4 without the bits that the guest owns. None of those affects translations.
    pub fn cr4_watched(&self) -> u64 {
        self.cached.cr4_shadow & !CR4_OWNED
    }

    /// General register `number`, RSP included.
    pub fn general(&self, number: usize) -> u64 {
        if number & 15 == Registers::RSP { self.read(fields::GUEST_RSP) } else { self.registers.get(number) }
    }

    /// Sets general register `number`, RSP included.
    pub fn set_general(&mut self, number: usize, value: u64) {
        if number & 15 == Registers::RSP {
            self.write(fields::GUEST_RSP, value);
        } else {
            self.registers.set(number, value);
        }
    }

    /// Whether an external interrupt could be injected now. With a pending debug exception it cannot, because that exception would be lost.
    pub fn can_take_interrupt(&self) -> bool {
        self.read(fields::GUEST_RFLAGS) & rflags::IF != 0
            && self.read(fields::GUEST_INTERRUPTIBILITY) & (BLOCKING_STI | BLOCKING_MOV_SS) == 0
            && !self.has_pending_debug()
    }

    /// Requests an exit as soon as the guest can take an interrupt, or ends the request.
    pub fn set_interrupt_window(&mut self, wanted: bool) {
        self.set_window(controls::PRIMARY_INTERRUPT_WINDOW, wanted);
    }

    /// Injects an NMI at the next entry if the guest can take one. If it cannot, or if `more` follow, requests an exit for when it can.
    /// Returns whether the NMI was injected.
    pub fn inject_nmi(&mut self, more: bool) -> bool {
        const VECTOR_NMI: u8 = 2;
        let blocking = BLOCKING_STI | BLOCKING_MOV_SS | BLOCKING_NMI;
        let possible =
            !self.injects() && self.read(fields::GUEST_INTERRUPTIBILITY) & blocking == 0 && !self.has_pending_debug();
        if possible {
            self.inject(Event::new(EventKind::Nmi, VECTOR_NMI, false), 0);
        }
        self.set_window(controls::PRIMARY_NMI_WINDOW, more || !possible);
        possible
    }

    /// Whether there is to be an exit as soon as the guest can take an interrupt.
    pub fn has_interrupt_window(&self) -> bool {
        self.primary_controls & controls::PRIMARY_INTERRUPT_WINDOW != 0
    }

    pub(super) fn set_window(&mut self, window: u32, wanted: bool) {
        let controls = if wanted { self.primary_controls | window } else { self.primary_controls & !window };
        if controls != self.primary_controls {
            self.primary_controls = controls;
            // SAFETY: the controls are those of `new`, but for an exit more or less that nothing is kept by.
            unsafe { self.write_guarded(fields::PRIMARY_CONTROLS, controls) }
        }
    }

    /// Injects an event at the next entry. In real mode no event has an error code, and VM entry refuses one (SDM vol. 3, 27.2.1.3).
    #[inline]
    pub fn inject(&mut self, event: Event, error_code: u32) {
        let has_code = event.has_error_code();
        let event = if has_code && self.cr0() & cr0::PE == 0 { event.without_error_code() } else { event };
        if event.has_error_code() {
            self.write(fields::ENTRY_ERROR_CODE, error_code);
        }
        if event.is_software() {
            let length = self.read(fields::EXIT_INSTRUCTION_LENGTH);
            self.write(fields::ENTRY_INSTRUCTION_LENGTH, length);
        }
        self.write(fields::ENTRY_INTERRUPTION, event.entry_field());
    }

    /// Injects an exception of the instruction at RIP. For a fault, RF is set in the pushed RFLAGS, so that the instruction's breakpoint
    /// does not hit again; VM entry pushes RFLAGS as they are (SDM vol. 3, 18.3.1.1 and 28.6.1).
    pub fn raise(&mut self, event: Event, error_code: u32) {
        if event.is_fault() {
            let flags = self.read(fields::GUEST_RFLAGS);
            self.write(fields::GUEST_RFLAGS, flags | rflags::RF);
        }
        self.inject(event, error_code);
    }

    /// Blocks NMIs again, because an IRET that unblocks them has faulted, or exited, and is executed again (SDM vol. 3, 29.2.3).
    pub fn block_nmis(&mut self) {
        let interruptibility = self.read(fields::GUEST_INTERRUPTIBILITY);
        self.write(fields::GUEST_INTERRUPTIBILITY, interruptibility | BLOCKING_NMI);
    }

    /// Whether an event will be injected at the next entry.
    pub fn injects(&self) -> bool {
        Event::from_field(self.read(fields::ENTRY_INTERRUPTION)).is_some()
    }

    /// Injects the event again whose delivery the last exit interrupted, if there is one (SDM vol. 3, 29.2.4).
    pub fn reinject(&mut self) {
        if let Some(event) = Event::from_field(self.read(fields::IDT_VECTORING)) {
            // VM entry refuses an NMI while NMIs are blocked, and the one that was cut short has blocked them (SDM vol. 3, 27.2.1.3).
            if event.is_nmi() {
                let interruptibility = self.read(fields::GUEST_INTERRUPTIBILITY);
                self.write(fields::GUEST_INTERRUPTIBILITY, interruptibility & !BLOCKING_NMI);
            }
            let error_code = self.read(fields::IDT_VECTORING_ERROR_CODE);
            self.inject(event, error_code);
        }
    }

    /// Sets EFER.LMA, and the entry control that belongs to it, to `active`.
    pub fn set_long_mode(&mut self, active: bool) {
        let value = self.cached.efer;
        if active {
            self.entry_controls |= controls::ENTRY_IA32E;
            self.set_efer(value | efer::LMA);
        } else {
            self.entry_controls &= !controls::ENTRY_IA32E;
            self.set_efer(value & !efer::LMA);
        }
        // SAFETY: the controls are those of `new`, but for the mode that the guest is in.
        unsafe { self.write_guarded(fields::ENTRY_CONTROLS, self.entry_controls) }
    }

    /// Sets RVI, the highest requested vector of the virtual-APIC page. The processor delivers interrupts from then on.
    pub fn set_requested(&mut self, vector: u8) {
        let status = self.read(fields::GUEST_INTERRUPT_STATUS);
        self.write(fields::GUEST_INTERRUPT_STATUS, status & 0xff00 | u16::from(vector));
    }

    /// Logs the state of virtual processor `number` of a guest that failed.
    pub fn dump(&self, guest: &str, number: usize) {
        log::info!(
            "guest {guest}, processor {number}: rip {:#x} rsp {:#x} rflags {:#x} cr0 {:#x} cr3 {:#x} cr4 {:#x} efer {:#x}",
            self.read(fields::GUEST_RIP),
            self.read(fields::GUEST_RSP),
            self.read(fields::GUEST_RFLAGS),
            self.cr0(),
            self.read(fields::GUEST_CR3),
            self.cr4(),
            self.cached.efer
        );
    }

    /// Guest-physical address of the page tables.
    pub fn cr3(&self) -> Gpa {
        Gpa::new(self.read(fields::GUEST_CR3))
    }
}
