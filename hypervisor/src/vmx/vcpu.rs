//! A virtual processor: its VMCS, its registers, and its way into and out of the guest.
//!
//! Fields of a VMCS that is current and complete can always be read and written; where that fails, the defect is ours and the
//! hypervisor panics. Nothing a guest does leads there.

use super::{
    caps,
    entry::{self, Registers},
    exit::{self, Event, Exit},
    fields::{self, Field, Segment, Width},
    instr::{self, Failure},
    root::{Host, prepare_region},
};
use crate::{
    addr::{Gpa, Hpa},
    apic::NOTIFICATION_VECTOR,
    cpu::tables::{CODE, DATA, TSS},
};

/// CR0 bits by name.
pub mod cr0 {
    #![allow(missing_docs)]
    pub const PE: u64 = 1 << 0;
    pub const ET: u64 = 1 << 4;
    pub const NE: u64 = 1 << 5;
    pub const WP: u64 = 1 << 16;
    pub const NW: u64 = 1 << 29;
    pub const CD: u64 = 1 << 30;
    pub const PG: u64 = 1 << 31;
    /// Bits whose changes the hypervisor wants to see; the guest owns the others.
    pub const WATCHED: u64 = PE | NE | NW | CD | PG;
}

/// CR4 bits by name.
pub mod cr4 {
    #![allow(missing_docs)]
    pub const TSD: u64 = 1 << 2;
    pub const DE: u64 = 1 << 3;
    pub const PSE: u64 = 1 << 4;
    pub const PAE: u64 = 1 << 5;
    pub const MCE: u64 = 1 << 6;
    pub const PGE: u64 = 1 << 7;
    pub const OSFXSR: u64 = 1 << 9;
    pub const OSXMMEXCPT: u64 = 1 << 10;
    pub const UMIP: u64 = 1 << 11;
    pub const VMXE: u64 = 1 << 13;
    pub const FSGSBASE: u64 = 1 << 16;
    pub const PCIDE: u64 = 1 << 17;
    pub const OSXSAVE: u64 = 1 << 18;
    pub const SMEP: u64 = 1 << 20;
    pub const SMAP: u64 = 1 << 21;
    /// Bits the guest may change without an exit: none of them changes what an exit or an entry means.
    pub const OWNED: u64 = TSD | DE | PGE | OSFXSR | OSXMMEXCPT;
    /// Bits a guest may set at all, as far as the processor knows them.
    pub const ALLOWED: u64 = OWNED | 0b11 | PSE | PAE | MCE | UMIP | FSGSBASE | PCIDE | OSXSAVE | SMEP | SMAP;
}

/// IA32_EFER bits by name.
pub mod efer {
    #![allow(missing_docs)]
    pub const SCE: u64 = 1 << 0;
    pub const LME: u64 = 1 << 8;
    pub const LMA: u64 = 1 << 10;
    pub const NXE: u64 = 1 << 11;
}

/// RFLAGS bits by name.
pub mod rflags {
    #![allow(missing_docs)]
    pub const FIXED: u64 = 1 << 1;
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
}

/// Interruptibility: blocking by STI, by MOV SS, by NMI.
const BLOCKING_STI: u32 = 1 << 0;
const BLOCKING_MOV_SS: u32 = 1 << 1;

/// Pending debug exceptions: single step.
const PENDING_BS: u64 = 1 << 14;

/// Exceptions that the hypervisor intercepts. #DB and #AC, because a guest can arrange for their delivery to cause them again
/// without end, which no interrupt could break into (CVE-2015-8104, CVE-2015-5307); #MC, because it is the machine's.
pub const VECTOR_DB: u8 = 1;
/// Alignment check: see [`VECTOR_DB`].
pub const VECTOR_AC: u8 = 17;
/// Machine check: see [`VECTOR_DB`].
pub const VECTOR_MC: u8 = 18;

/// Where and how a guest begins: Linux's 64-bit boot protocol (Documentation/arch/x86/boot.rst).
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// First instruction.
    pub rip: u64,
    /// Stack.
    pub rsp: u64,
    /// `boot_params`.
    pub rsi: u64,
    /// Page tables: at least an identity map of what the guest needs at first.
    pub cr3: u64,
    /// Base and limit of the GDT.
    pub gdt: (u64, u16),
    /// Selectors of the 64-bit code segment, the data segment and the TSS.
    pub selectors: [u16; 3],
    /// Base and limit of the TSS.
    pub tss: (u64, u32),
}

/// Frames that a virtual processor is made of. Whoever made it takes them back when it is gone.
#[derive(Clone, Copy, Debug)]
pub struct Frames {
    /// The VMCS, zeroed.
    pub vmcs: Hpa,
    /// The MSR bitmaps, filled in.
    pub msr_bitmap: Hpa,
}

/// Who keeps a virtual processor's local APIC.
#[derive(Clone, Copy, Debug)]
pub enum LocalApic {
    /// The hypervisor alone: it injects interrupts.
    Emulated,
    /// The processor, in this page, which posted interrupts of this descriptor reach while the guest runs.
    Virtualised {
        /// The virtual-APIC page.
        page: Hpa,
        /// The posted-interrupt descriptor.
        descriptor: Hpa,
    },
}

/// A virtual processor.
#[derive(Debug)]
pub struct Vcpu {
    /// General registers.
    pub registers: Registers,
    vmcs: Hpa,
    launched: bool,
    entry_controls: u32,
    primary_controls: u32,
}

impl Vcpu {
    /// Makes a virtual processor that begins at `start` and sees the memory of `eptp`. Its VMCS is current afterwards.
    ///
    /// # Safety
    /// `eptp` maps nothing but the guest's own memory, and the bitmap lets through no MSR that endangers the hypervisor.
    pub unsafe fn new(
        host: &Host,
        frames: Frames,
        eptp: u64,
        vpid: u16,
        start: &Start,
        apic: LocalApic,
    ) -> Result<Self, Failure> {
        prepare_region(frames.vmcs, host.capabilities.revision);
        // SAFETY: the frame is prepared, and the caller has given it away.
        unsafe {
            instr::vmclear(frames.vmcs)?;
            instr::vmptrld(frames.vmcs)?;
        }
        let mut vcpu = Self {
            registers: Registers::default(),
            vmcs: frames.vmcs,
            launched: false,
            entry_controls: host.capabilities.entry | caps::ENTRY_IA32E,
            primary_controls: host.capabilities.primary,
        };
        vcpu.write_controls(host, frames.msr_bitmap, eptp, vpid);
        if let LocalApic::Virtualised { page, descriptor } = apic {
            vcpu.virtualise_apic(host, page, descriptor);
        }
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

    /// Takes its VMCS out of the processor, so that the frame can be used for something else.
    pub fn retire(self) -> Result<(), Failure> {
        // SAFETY: as in `make_current`.
        unsafe { instr::vmclear(self.vmcs) }
    }

    /// Runs the guest until its next exit. Returns the basic exit reason's number and the exit.
    pub fn run(&mut self) -> Result<(u16, Exit), Failure> {
        // SAFETY: `new` has completed the VMCS, and whoever called it vouches for the EPT.
        unsafe { entry::enter(&mut self.registers, self.launched)? };
        self.launched = true;
        exit::read()
    }

    /// Reads a field. The VMCS must be current.
    pub fn read<W: Width>(&self, field: Field<W>) -> W::Value {
        instr::vmread(field).unwrap_or_else(|failure| panic!("VMREAD of field {:#x}: {failure}", field.encoding()))
    }

    /// Writes a field of the guest's state, or one of an entry's parameters.
    pub fn write<W: Width>(&mut self, field: Field<W>, value: W::Value) {
        // SAFETY: the guest's own state can endanger the guest only: what it may reach is decided by the EPT, the bitmaps and the
        // controls, which `new` alone writes (and `set_interrupt_window`, `set_long_mode`, of which neither opens a way).
        unsafe { instr::vmwrite(field, value) }
            .unwrap_or_else(|failure| panic!("VMWRITE of field {:#x}: {failure}", field.encoding()));
    }

    /// The length of the instruction that caused the exit. Valid for instructions that exit unconditionally or by a control
    /// (SDM vol. 3, 29.2.5), not for EPT violations.
    pub fn instruction_length(&self) -> u8 {
        self.read(fields::EXIT_INSTRUCTION_LENGTH) as u8
    }

    /// Advances RIP over an instruction of `length` bytes: the one place where RIP moves.
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
        let interruptibility = self.read(fields::GUEST_INTERRUPTIBILITY);
        if interruptibility & (BLOCKING_STI | BLOCKING_MOV_SS) != 0 {
            self.write(fields::GUEST_INTERRUPTIBILITY, interruptibility & !(BLOCKING_STI | BLOCKING_MOV_SS));
        }
        if self.read(fields::GUEST_RFLAGS) & rflags::TF != 0 {
            let pending = self.read(fields::GUEST_PENDING_DEBUG);
            self.write(fields::GUEST_PENDING_DEBUG, pending | PENDING_BS);
        }
    }

    /// Whether the guest runs 64-bit code: long mode active and CS.L set.
    pub fn is_64_bit_code(&self) -> bool {
        const CS_L: u32 = 1 << 13;
        self.read(fields::GUEST_EFER) & efer::LMA != 0 && self.read(fields::GUEST_CS_RIGHTS) & CS_L != 0
    }

    /// The current privilege level: DPL of SS (SDM vol. 3, 26.4.1).
    pub fn cpl(&self) -> u8 {
        (self.read(fields::GUEST_SS_RIGHTS) >> 5 & 3) as u8
    }

    /// CR0 as the guest sees it.
    pub fn cr0(&self) -> u64 {
        self.read(fields::GUEST_CR0) & !cr0::WATCHED | self.read(fields::CR0_SHADOW) & cr0::WATCHED
    }

    /// CR4 as the guest sees it.
    pub fn cr4(&self) -> u64 {
        self.read(fields::GUEST_CR4) & cr4::OWNED | self.read(fields::CR4_SHADOW) & !cr4::OWNED
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

    /// Whether an external interrupt would be taken if it were injected now.
    pub fn can_take_interrupt(&self) -> bool {
        self.read(fields::GUEST_RFLAGS) & rflags::IF != 0
            && self.read(fields::GUEST_INTERRUPTIBILITY) & (BLOCKING_STI | BLOCKING_MOV_SS) == 0
    }

    /// Asks for an exit as soon as the guest can take an interrupt, or no longer.
    pub fn set_interrupt_window(&mut self, wanted: bool) {
        let controls = if wanted {
            self.primary_controls | caps::PRIMARY_INTERRUPT_WINDOW
        } else {
            self.primary_controls & !caps::PRIMARY_INTERRUPT_WINDOW
        };
        if controls != self.primary_controls {
            self.primary_controls = controls;
            self.write(fields::PRIMARY_CONTROLS, controls);
        }
    }

    /// Injects an event at the next entry. In real mode no event has an error code, and VM entry refuses one (SDM vol. 3, 27.2.1.3).
    pub fn inject(&mut self, event: Event, error_code: u32) {
        let event = if self.cr0() & cr0::PE == 0 { event.without_error_code() } else { event };
        if event.has_error_code() {
            self.write(fields::ENTRY_ERROR_CODE, error_code);
        }
        if event.is_software() {
            let length = self.read(fields::EXIT_INSTRUCTION_LENGTH);
            self.write(fields::ENTRY_INSTRUCTION_LENGTH, length);
        }
        self.write(fields::ENTRY_INTERRUPTION, event.entry_field());
    }

    /// Whether an event is going to be injected at the next entry.
    pub fn injects(&self) -> bool {
        Event::from_field(self.read(fields::ENTRY_INTERRUPTION)).is_some()
    }

    /// Injects again the event whose delivery the last exit cut short, if there is one (SDM vol. 3, 29.2.4).
    pub fn reinject(&mut self) {
        if let Some(event) = Event::from_field(self.read(fields::IDT_VECTORING)) {
            let error_code = self.read(fields::IDT_VECTORING_ERROR_CODE);
            self.inject(event, error_code);
        }
    }

    /// Makes EFER.LMA, and the entry control that goes with it, what `active` says.
    pub fn set_long_mode(&mut self, active: bool) {
        let value = self.read(fields::GUEST_EFER);
        if active {
            self.entry_controls |= caps::ENTRY_IA32E;
            self.write(fields::GUEST_EFER, value | efer::LMA);
        } else {
            self.entry_controls &= !caps::ENTRY_IA32E;
            self.write(fields::GUEST_EFER, value & !efer::LMA);
        }
        self.write(fields::ENTRY_CONTROLS, self.entry_controls);
    }

    fn write_controls(&mut self, host: &Host, msr_bitmap: Hpa, eptp: u64, vpid: u16) {
        let c = &host.capabilities;
        self.write(fields::PIN_CONTROLS, c.pin);
        self.write(fields::PRIMARY_CONTROLS, c.primary);
        self.write(fields::SECONDARY_CONTROLS, c.secondary);
        self.write(fields::EXIT_CONTROLS, c.exit);
        self.write(fields::ENTRY_CONTROLS, self.entry_controls);
        self.write(fields::EXCEPTION_BITMAP, 1 << VECTOR_DB | 1 << VECTOR_AC | 1 << VECTOR_MC);
        for zero in [
            fields::PAGE_FAULT_MASK,
            fields::PAGE_FAULT_MATCH,
            fields::CR3_TARGET_COUNT,
            fields::EXIT_MSR_STORE_COUNT,
            fields::EXIT_MSR_LOAD_COUNT,
            fields::ENTRY_MSR_LOAD_COUNT,
            fields::ENTRY_INTERRUPTION,
        ] {
            self.write(zero, 0);
        }
        self.write(fields::MSR_BITMAP, msr_bitmap.as_u64());
        self.write(fields::TSC_OFFSET, 0);
        self.write(fields::EPT_POINTER, eptp);
        self.write(fields::VPID, vpid);
        self.write(fields::LINK_POINTER, u64::MAX);
        self.write(fields::CR0_MASK, cr0::WATCHED);
        self.write(fields::CR4_MASK, !cr4::OWNED);
    }

    /// SDM vol. 3, 26.6.8 and 31.1. MONITOR and MWAIT do not exit: a guest whose interrupts come without exits idles without one.
    fn virtualise_apic(&mut self, host: &Host, page: Hpa, descriptor: Hpa) {
        let c = &host.capabilities;
        let off = caps::PRIMARY_CR8 | caps::PRIMARY_MONITOR | caps::PRIMARY_MWAIT;
        self.primary_controls = c.primary & !off | caps::PRIMARY_TPR_SHADOW;
        self.write(fields::PRIMARY_CONTROLS, self.primary_controls);
        self.write(fields::SECONDARY_CONTROLS, c.secondary | caps::SECONDARY_APICV);
        self.write(fields::PIN_CONTROLS, c.pin | caps::PIN_POSTED);
        self.write(fields::VIRTUAL_APIC_PAGE, page.as_u64());
        self.write(fields::POSTED_DESCRIPTOR, descriptor.as_u64());
        self.write(fields::POSTED_NOTIFICATION_VECTOR, NOTIFICATION_VECTOR.into());
        self.write(fields::TPR_THRESHOLD, 0);
        self.write(fields::GUEST_INTERRUPT_STATUS, 0);
        for n in 0..4 {
            self.write(fields::eoi_exit_bitmap(n), 0);
        }
    }

    /// Tells the processor the highest requested vector of the virtual-APIC page: RVI. It delivers what it can from then on.
    pub fn set_requested(&mut self, vector: u8) {
        let status = self.read(fields::GUEST_INTERRUPT_STATUS);
        self.write(fields::GUEST_INTERRUPT_STATUS, status & 0xff00 | u16::from(vector));
    }

    fn write_host_state(&mut self, host: &Host) {
        let [cr0, cr3, cr4] = host.cr;
        self.write(fields::HOST_CR0, cr0);
        self.write(fields::HOST_CR3, cr3);
        self.write(fields::HOST_CR4, cr4);
        self.write(fields::HOST_PAT, host.pat);
        self.write(fields::HOST_EFER, host.efer);
        self.write(fields::HOST_CS_SELECTOR, CODE);
        for selector in [fields::HOST_SS_SELECTOR, fields::HOST_DS_SELECTOR, fields::HOST_ES_SELECTOR] {
            self.write(selector, DATA);
        }
        self.write(fields::HOST_FS_SELECTOR, 0);
        self.write(fields::HOST_GS_SELECTOR, 0);
        self.write(fields::HOST_TR_SELECTOR, TSS);
        self.write(fields::HOST_FS_BASE, 0);
        self.write(fields::HOST_GS_BASE, crate::cpu::this::base());
        self.write(fields::HOST_TR_BASE, host.bases.tss);
        self.write(fields::HOST_GDTR_BASE, host.bases.gdt);
        self.write(fields::HOST_IDTR_BASE, host.bases.idt);
        self.write(fields::HOST_SYSENTER_CS, 0);
        self.write(fields::HOST_SYSENTER_ESP, 0);
        self.write(fields::HOST_SYSENTER_EIP, 0);
        self.write(fields::HOST_RIP, entry::exit_address());
    }

    fn write_guest_state(&mut self, start: &Start) {
        let cr0_value = cr0::PE | cr0::ET | cr0::NE | cr0::WP | cr0::PG;
        self.write(fields::GUEST_CR0, cr0_value);
        self.write(fields::CR0_SHADOW, cr0_value);
        self.write(fields::GUEST_CR4, cr4::PAE | cr4::VMXE);
        self.write(fields::CR4_SHADOW, cr4::PAE);
        self.write(fields::GUEST_CR3, start.cr3);
        self.write(fields::GUEST_EFER, efer::LME | efer::LMA);
        // The PAT after reset: SDM vol. 3, table 13-12.
        self.write(fields::GUEST_PAT, 0x0007_0406_0007_0406);
        self.write(fields::GUEST_DEBUGCTL, 0);
        self.write(fields::GUEST_RIP, start.rip);
        self.write(fields::GUEST_RSP, start.rsp);
        self.write(fields::GUEST_RFLAGS, rflags::FIXED);
        self.write(fields::GUEST_DR7, 0x400);
        self.write(fields::GUEST_GDTR_BASE, start.gdt.0);
        self.write(fields::GUEST_GDTR_LIMIT, start.gdt.1.into());
        self.write(fields::GUEST_IDTR_BASE, 0);
        self.write(fields::GUEST_IDTR_LIMIT, 0);
        self.write(fields::GUEST_INTERRUPTIBILITY, 0);
        self.write(fields::GUEST_ACTIVITY, 0);
        self.write(fields::GUEST_PENDING_DEBUG, 0);
        self.write(fields::GUEST_SYSENTER_CS, 0);
        self.write(fields::GUEST_SYSENTER_ESP, 0);
        self.write(fields::GUEST_SYSENTER_EIP, 0);
        for n in 0..4 {
            self.write(fields::guest_pdpte(n), 0);
        }
        for segment in Segment::ALL {
            self.write_segment(segment, start);
        }
    }

    /// Flat segments: SDM vol. 3, 28.3.1.2, tells what VM entry wants of each.
    fn write_segment(&mut self, segment: Segment, start: &Start) {
        const CODE_64: u32 = 0xa09b;
        const DATA_FLAT: u32 = 0xc093;
        const TSS_BUSY: u32 = 0x008b;
        const UNUSABLE: u32 = 1 << 16;
        let [code, data, tss] = start.selectors;
        let (selector, base, limit, rights) = match segment {
            Segment::Cs => (code, 0, u32::MAX, CODE_64),
            Segment::Ldtr => (0, 0, 0, UNUSABLE),
            Segment::Tr => (tss, start.tss.0, start.tss.1, TSS_BUSY),
            _ => (data, 0, u32::MAX, DATA_FLAT),
        };
        self.write(segment.selector(), selector);
        self.write(segment.base(), base);
        self.write(segment.limit(), limit);
        self.write(segment.rights(), rights);
    }

    /// What a person wants to see of a guest that went wrong.
    pub fn dump(&self) {
        log::info!(
            "rip {:#x} rsp {:#x} rflags {:#x} cr0 {:#x} cr3 {:#x} cr4 {:#x} efer {:#x}",
            self.read(fields::GUEST_RIP),
            self.read(fields::GUEST_RSP),
            self.read(fields::GUEST_RFLAGS),
            self.cr0(),
            self.read(fields::GUEST_CR3),
            self.cr4(),
            self.read(fields::GUEST_EFER)
        );
    }

    /// Guest-physical address of the page tables.
    pub fn cr3(&self) -> Gpa {
        Gpa::new(self.read(fields::GUEST_CR3))
    }
}
