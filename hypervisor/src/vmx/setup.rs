//! The contents of a VMCS before its guest's first instruction.

use super::{
    controls,
    entry::{self, Registers},
    fields::{self, Segment},
    root::Host,
    start::Start,
    vcpu::{CR0_WATCHED, CR4_OWNED, VECTOR_AC, VECTOR_DB, VECTOR_MC, Vcpu, cr4_in_force},
};
use crate::{
    addr::Hpa,
    apic::NOTIFICATION_VECTOR,
    cpu::{
        self,
        bits::{cr0, cr4, efer, rflags},
        tables::{CODE, DATA, TSS},
    },
};

impl Vcpu {
    /// # Safety
    /// The EPT and the bitmap are as [`Vcpu::new`] asks for them.
    pub(super) unsafe fn write_controls(&mut self, host: &Host, msr_bitmap: Hpa, eptp: u64, vpid: u16) {
        let c = &host.capabilities;
        // SAFETY: the controls are those that the hypervisor was made for; the caller vouches for the EPT and the bitmap.
        unsafe {
            self.write_guarded(fields::PIN_CONTROLS, c.pin);
            self.write_guarded(fields::PRIMARY_CONTROLS, c.primary);
            self.write_guarded(fields::SECONDARY_CONTROLS, c.secondary);
            self.write_guarded(fields::EXIT_CONTROLS, c.exit);
            self.write_guarded(fields::ENTRY_CONTROLS, self.entry_controls);
            self.write_guarded(fields::EXCEPTION_BITMAP, 1 << VECTOR_DB | 1 << VECTOR_AC | 1 << VECTOR_MC);
            for zero in [
                fields::PAGE_FAULT_MASK,
                fields::PAGE_FAULT_MATCH,
                fields::CR3_TARGET_COUNT,
                fields::EXIT_MSR_STORE_COUNT,
                fields::EXIT_MSR_LOAD_COUNT,
                fields::ENTRY_MSR_LOAD_COUNT,
            ] {
                self.write_guarded(zero, 0);
            }
            self.write_guarded(fields::MSR_BITMAP, msr_bitmap.as_u64());
            self.write_guarded(fields::EPT_POINTER, eptp);
            self.write_guarded(fields::VPID, vpid);
            self.write_guarded(fields::LINK_POINTER, u64::MAX);
            self.write_guarded(fields::CR0_MASK, CR0_WATCHED);
            self.write_guarded(fields::CR4_MASK, !CR4_OWNED);
            if c.secondary & controls::SECONDARY_ENCLS != 0 {
                self.write_guarded(fields::ENCLS_EXITING_BITMAP, u64::MAX);
            }
        }
        self.write(fields::TSC_OFFSET, 0);
    }

    /// # Safety
    /// The page and the descriptor are as [`Vcpu::new`] asks for them.
    pub(super) unsafe fn virtualise_apic(&mut self, host: &Host, page: Hpa, descriptor: Hpa) {
        let controls = host.capabilities.controls(true);
        self.primary_controls = controls.primary;
        // SAFETY: with a TPR shadow CR8 is the page's, not the machine's; the caller vouches for the page and the descriptor.
        unsafe {
            self.write_guarded(fields::PRIMARY_CONTROLS, controls.primary);
            self.write_guarded(fields::SECONDARY_CONTROLS, controls.secondary);
            self.write_guarded(fields::PIN_CONTROLS, controls.pin);
            self.write_guarded(fields::VIRTUAL_APIC_PAGE, page.as_u64());
            self.write_guarded(fields::POSTED_DESCRIPTOR, descriptor.as_u64());
            self.write_guarded(fields::POSTED_NOTIFICATION_VECTOR, NOTIFICATION_VECTOR.into());
            self.write_guarded(fields::TPR_THRESHOLD, 0);
            for n in 0..4 {
                self.write_guarded(fields::eoi_exit_bitmap(n), 0);
            }
        }
        self.write(fields::GUEST_INTERRUPT_STATUS, 0);
    }

    /// Writes the state that VM exit loads (SDM vol. 3, 29.5): this processor's own registers and tables.
    pub(super) fn write_host_state(&mut self, host: &Host) {
        let [cr0, cr3, cr4] = host.cr;
        // SAFETY: VM exit leads into `entry`, with the control registers and tables that are in force now.
        unsafe {
            self.write_guarded(fields::HOST_CR0, cr0);
            self.write_guarded(fields::HOST_CR3, cr3);
            self.write_guarded(fields::HOST_CR4, cr4);
            self.write_guarded(fields::HOST_PAT, host.pat);
            self.write_guarded(fields::HOST_EFER, host.efer);
            self.write_guarded(fields::HOST_CS_SELECTOR, CODE);
            for selector in [fields::HOST_SS_SELECTOR, fields::HOST_DS_SELECTOR, fields::HOST_ES_SELECTOR] {
                self.write_guarded(selector, DATA);
            }
            self.write_guarded(fields::HOST_FS_SELECTOR, 0);
            self.write_guarded(fields::HOST_GS_SELECTOR, 0);
            self.write_guarded(fields::HOST_TR_SELECTOR, TSS);
            self.write_guarded(fields::HOST_FS_BASE, 0);
            self.write_guarded(fields::HOST_GS_BASE, cpu::percpu::base());
            self.write_guarded(fields::HOST_TR_BASE, host.bases.tss);
            self.write_guarded(fields::HOST_GDTR_BASE, host.bases.gdt);
            self.write_guarded(fields::HOST_IDTR_BASE, host.bases.idt);
            self.write_guarded(fields::HOST_SYSENTER_CS, 0);
            self.write_guarded(fields::HOST_SYSENTER_ESP, 0);
            self.write_guarded(fields::HOST_SYSENTER_EIP, 0);
            self.write_guarded(fields::HOST_RIP, entry::exit_address(&host.plan));
        }
    }

    /// Writes the state for Linux's 64-bit entry: long mode, paging on, interrupts off.
    pub(super) fn write_guest_state(&mut self, start: &Start) {
        let cr0_value = cr0::PE | cr0::ET | cr0::NE | cr0::WP | cr0::PG;
        self.write(fields::GUEST_CR0, cr0_value);
        self.set_cr0_shadow(cr0_value);
        self.write(fields::GUEST_CR4, cr4_in_force(cr4::PAE, cpu::cr4()));
        self.set_cr4_shadow(cr4::PAE);
        self.write(fields::GUEST_CR3, start.cr3);
        self.set_efer(efer::LME | efer::LMA);
        // The PAT after reset: SDM vol. 3, table 13-12.
        self.write(fields::GUEST_PAT, 0x0007_0406_0007_0406);
        self.write(fields::GUEST_DEBUGCTL, 0);
        self.write(fields::GUEST_RIP, start.rip);
        self.write(fields::GUEST_RSP, start.rsp);
        self.write_common_state();
        self.write(fields::GUEST_GDTR_BASE, start.gdt.0);
        self.write(fields::GUEST_GDTR_LIMIT, start.gdt.1.into());
        self.write(fields::GUEST_IDTR_BASE, 0);
        self.write(fields::GUEST_IDTR_LIMIT, 0);
        self.write(fields::GUEST_SYSENTER_CS, 0);
        self.write(fields::GUEST_SYSENTER_ESP, 0);
        self.write(fields::GUEST_SYSENTER_EIP, 0);
        for segment in Segment::ALL {
            self.write_segment(segment, start);
        }
    }

    /// Writes the state that all starts have in common.
    fn write_common_state(&mut self) {
        self.write(fields::GUEST_RFLAGS, rflags::FIXED);
        self.write(fields::GUEST_DR7, 0x400);
        self.write(fields::GUEST_INTERRUPTIBILITY, 0);
        self.write(fields::GUEST_ACTIVITY, 0);
        self.write(fields::GUEST_PENDING_DEBUG, 0);
        self.write(fields::ENTRY_INTERRUPTION, 0);
        for n in 0..4 {
            self.write(fields::guest_pdpte(n), 0);
        }
    }

    /// Sets the state after INIT and a start-up command for `page`: real mode, CS at the page, IP 0 (SDM vol. 3, 11.1.1 and 10.4.4.2).
    /// `signature` is CPUID's, for EDX. MSRs except EFER stay. The VMCS must be current.
    pub fn start_up(&mut self, page: u8, signature: u32) {
        let reset = cr0::CD | cr0::NW | cr0::ET;
        self.write(fields::GUEST_CR0, cr0::ET | cr0::NE);
        self.set_cr0_shadow(reset);
        self.write(fields::GUEST_CR3, 0);
        self.write(fields::GUEST_CR4, cr4_in_force(0, cpu::cr4()));
        self.set_cr4_shadow(0);
        self.set_long_mode(false);
        self.set_efer(0);
        self.write_common_state();
        self.write(fields::GUEST_RIP, 0);
        self.write(fields::GUEST_RSP, 0);
        for (base, limit) in
            [(fields::GUEST_GDTR_BASE, fields::GUEST_GDTR_LIMIT), (fields::GUEST_IDTR_BASE, fields::GUEST_IDTR_LIMIT)]
        {
            self.write(base, 0);
            self.write(limit, 0xffff);
        }
        for segment in Segment::ALL {
            self.write_real_mode_segment(segment, page);
        }
        self.registers = Registers::default();
        self.registers.set(Registers::RDX, signature.into());
        self.set_window(controls::PRIMARY_INTERRUPT_WINDOW | controls::PRIMARY_NMI_WINDOW, false);
        self.flush_translations();
    }

    fn write_real_mode_segment(&mut self, segment: Segment, page: u8) {
        const CODE_16: u32 = 0x009b;
        const DATA_16: u32 = 0x0093;
        const LDT: u32 = 0x0082;
        const TSS_BUSY: u32 = 0x008b;
        let (selector, rights) = match segment {
            Segment::Cs => (u16::from(page) << 8, CODE_16),
            Segment::Ldtr => (0, LDT),
            Segment::Tr => (0, TSS_BUSY),
            _ => (0, DATA_16),
        };
        self.write(segment.selector(), selector);
        self.write(segment.base(), u64::from(selector) << 4);
        self.write(segment.limit(), 0xffff);
        self.write(segment.rights(), rights);
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
}
