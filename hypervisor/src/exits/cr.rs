//! Accesses to control registers and to XCR0.
//!
//! The guest owns most bits and changes them without an exit. What comes here are changes of the bits that the hypervisor
//! watches, because they change the guest's mode or because VMX fixes them.

use super::Action;
use crate::{
    addr::Gpa,
    cpu::{
        bits::{cr0, cr4, efer},
        fpu::XCR0_GUEST,
    },
    vdev::cpuid,
    vmx::{Registers, Vcpu, exit::CrAccess, fields, vcpu::CR4_ALLOWED},
};

// The room of virtual devices knows nothing of the processor, so each has its own list of the components that a guest may have.
const _: () = assert!(cpuid::XCR0_ALLOWED == XCR0_GUEST);

/// Reads the guest's memory: four page-directory-pointer-table entries at a 32-byte aligned address.
pub type ReadPdptes<'a> = &'a dyn Fn(Gpa) -> Option<[u64; 4]>;

/// Serves a MOV to CR, CLTS or LMSW. Wrong values are #GP in the guest, as the processor itself would do (SDM vol. 2, MOV CR).
pub fn access(vcpu: &mut Vcpu, access: CrAccess, pdptes: ReadPdptes<'_>) -> Action {
    let done = match access {
        CrAccess::Write { register: 0, source } => {
            let value = vcpu.general(source.into());
            write_cr0(vcpu, value, pdptes)
        }
        CrAccess::Write { register: 4, source } => {
            let value = vcpu.general(source.into());
            write_cr4(vcpu, value, pdptes)
        }
        CrAccess::Clts => {
            const TS: u64 = 1 << 3;
            let value = vcpu.cr0() & !TS;
            write_cr0(vcpu, value, pdptes)
        }
        CrAccess::Lmsw(operand) => {
            // LMSW writes PE, MP, EM and TS, and cannot clear PE.
            let old = vcpu.cr0();
            write_cr0(vcpu, old & !0xe | u64::from(operand & 0xf), pdptes)
        }
        _ => None,
    };
    match done {
        Some(()) => Action::Advance,
        None => Action::GENERAL_PROTECTION,
    }
}

fn write_cr0(vcpu: &mut Vcpu, value: u64, pdptes: ReadPdptes<'_>) -> Option<()> {
    let old = vcpu.cr0();
    let set = |bit| value & bit != 0;
    if value >> 32 != 0 || set(cr0::PG) && !set(cr0::PE) || set(cr0::NW) && !set(cr0::CD) {
        return None;
    }
    let efer_value = vcpu.read(fields::GUEST_EFER);
    let long_enabled = efer_value & efer::LME != 0;
    let paging_changes = (old ^ value) & cr0::PG != 0;
    if paging_changes && set(cr0::PG) && long_enabled && vcpu.cr4() & cr4::PAE == 0 {
        return None;
    }
    if paging_changes && !set(cr0::PG) && (vcpu.is_64_bit_code() || vcpu.cr4() & cr4::PCIDE != 0) {
        return None;
    }
    let long_mode = set(cr0::PG) && long_enabled;
    if set(cr0::PG) && !long_mode && vcpu.cr4() & cr4::PAE != 0 && (old ^ value) & (cr0::PG | cr0::CD | cr0::NW) != 0 {
        load_pdptes(vcpu, pdptes)?;
    }
    if paging_changes && long_enabled {
        vcpu.set_long_mode(set(cr0::PG));
    }
    // CD and NW stay clear: the guest's caches are the machine's.
    vcpu.write(fields::GUEST_CR0, value & !(cr0::CD | cr0::NW) | cr0::NE | cr0::ET);
    vcpu.write(fields::CR0_SHADOW, value | cr0::ET);
    Some(())
}

fn write_cr4(vcpu: &mut Vcpu, value: u64, pdptes: ReadPdptes<'_>) -> Option<()> {
    let old = vcpu.cr4();
    let long_mode = vcpu.read(fields::GUEST_EFER) & efer::LMA != 0;
    let paging = vcpu.cr0() & cr0::PG != 0;
    if value & !supported_cr4() != 0 || long_mode && value & cr4::PAE == 0 {
        return None;
    }
    // SDM vol. 3, 4.10.1: PCIDE can be set only in long mode and with PCID 0.
    let pcide_rises = value & !old & cr4::PCIDE != 0;
    if pcide_rises && (!long_mode || vcpu.cr3().as_u64() & 0xfff != 0) {
        return None;
    }
    if paging
        && !long_mode
        && value & cr4::PAE != 0
        && (old ^ value) & (cr4::PAE | cr4::PGE | cr4::PSE | cr4::SMEP) != 0
    {
        load_pdptes(vcpu, pdptes)?;
    }
    vcpu.write(fields::GUEST_CR4, value | cr4::VMXE);
    vcpu.write(fields::CR4_SHADOW, value);
    Some(())
}

/// CR4 bits that a guest may set on this processor.
fn supported_cr4() -> u64 {
    let cpuid = raw_cpuid::CpuId::new();
    let mut bits = CR4_ALLOWED;
    let extended = cpuid.get_extended_feature_info();
    let mut need = |bit: u64, present: bool| {
        if !present {
            bits &= !bit;
        }
    };
    need(cr4::PCIDE, cpuid.get_feature_info().is_some_and(|f| f.has_pcid()));
    need(cr4::FSGSBASE, extended.as_ref().is_some_and(|f| f.has_fsgsbase()));
    need(cr4::SMEP, extended.as_ref().is_some_and(|f| f.has_smep()));
    need(cr4::SMAP, extended.as_ref().is_some_and(|f| f.has_smap()));
    need(cr4::UMIP, extended.as_ref().is_some_and(|f| f.has_umip()));
    bits
}

/// Loads the PDPTEs that PAE paging keeps in the processor (SDM vol. 3, 4.4.1). Reserved bits are #GP.
fn load_pdptes(vcpu: &mut Vcpu, pdptes: ReadPdptes<'_>) -> Option<()> {
    const PRESENT: u64 = 1;
    const RESERVED: u64 = 0xfff0_0000_0000_01e6;
    let entries = pdptes(Gpa::new(vcpu.cr3().as_u64() & 0xffff_ffe0))?;
    if entries.iter().any(|entry| entry & PRESENT != 0 && entry & RESERVED != 0) {
        return None;
    }
    for (n, entry) in (0..).zip(entries) {
        vcpu.write(fields::guest_pdpte(n), entry);
    }
    Some(())
}

/// Serves XSETBV: XCR0 alone, only what the guest's CPUID offers, x87 always, AVX only with SSE (SDM vol. 2, XSETBV).
/// `Err` is #GP. The value is the guest's new XCR0.
pub fn xsetbv(vcpu: &Vcpu, supported: u64) -> Result<u64, Action> {
    if vcpu.cr4() & cr4::OSXSAVE == 0 {
        return Err(Action::UNDEFINED_OPCODE);
    }
    let value = vcpu.registers.edx_eax();
    let bad = vcpu.cpl() != 0 || vcpu.registers.get32(Registers::RCX) != 0 || !cpuid::is_valid_xcr0(value, supported);
    if bad { Err(Action::GENERAL_PROTECTION) } else { Ok(value) }
}
