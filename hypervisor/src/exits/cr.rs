//! Accesses to control registers and to XCR0.
//!
//! The guest owns most bits and changes them without an exit. Exits come from changes of the bits that the hypervisor watches, because they
//! change the guest's mode or because VMX fixes them.

use super::Action;
use crate::{
    addr::Gpa,
    cpu::{
        self,
        bits::{cr0, cr4, efer},
        fpu::XCR0_GUEST,
    },
    vdev::cpuid,
    vmx::{
        Registers, Vcpu,
        exit::CrAccess,
        fields::{self, Segment},
        vcpu::{CR4_ALLOWED, cr4_in_force},
    },
};

// The room of virtual devices knows nothing of the processor, so each has its own list of the components that a guest may have.
const _: () = assert!(cpuid::XCR0_ALLOWED == XCR0_GUEST);

/// Reads the guest's memory: four page-directory-pointer-table entries at a 32-byte aligned address.
pub type ReadPdptes<'a> = &'a dyn Fn(Gpa) -> Option<[u64; 4]>;

/// Handles a MOV to CR, CLTS or LMSW. Wrong values are #GP in the guest, as on the processor (SDM vol. 2, MOV CR).
///
/// `physical_bits` is the address width that the guest's CPUID reports.
pub fn access(vcpu: &mut Vcpu, access: CrAccess, physical_bits: u8, pdptes: ReadPdptes<'_>) -> Action {
    let pdptes: ReadPdptes<'_> = &|gpa| pdptes(gpa).filter(|entries| are_valid_pdptes(entries, physical_bits));
    let done = match access {
        CrAccess::Write { register: 0, source } => {
            let value = operand(vcpu, source);
            write_cr0(vcpu, value, pdptes)
        }
        CrAccess::Write { register: 4, source } => {
            let value = operand(vcpu, source);
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

/// The general register that a MOV to a control register reads: its low half outside of 64-bit code.
pub fn operand(vcpu: &Vcpu, register: u8) -> u64 {
    let value = vcpu.general(register.into());
    if vcpu.is_64_bit_code() { value } else { value & 0xffff_ffff }
}

/// Writes CR0. `None` means #GP.
fn write_cr0(vcpu: &mut Vcpu, value: u64, pdptes: ReadPdptes<'_>) -> Option<()> {
    let old = vcpu.cr0();
    if !may_write_cr0(vcpu, old, value) {
        return None;
    }
    let paging = value & cr0::PG != 0;
    let paging_changes = (old ^ value) & cr0::PG != 0;
    let long_enabled = vcpu.efer() & efer::LME != 0;
    // SDM vol. 3, 5.4.1: these changes load the PDPTEs where PAE paging is in use afterwards.
    let loads = (old ^ value) & (cr0::PG | cr0::CD | cr0::NW) != 0;
    if loads && paging && !long_enabled && vcpu.cr4() & cr4::PAE != 0 {
        load_pdptes(vcpu, pdptes)?;
    }
    if paging_changes && long_enabled {
        vcpu.set_long_mode(paging);
    }
    if paging_changes {
        vcpu.flush_translations();
    }
    // CD and NW stay clear: the guest's caches are the machine's.
    vcpu.write(fields::GUEST_CR0, value & !(cr0::CD | cr0::NW) | cr0::NE | cr0::ET);
    vcpu.set_cr0_shadow(value | cr0::ET);
    Some(())
}

/// Whether the bits of CR0 are consistent with each other and with the guest's mode.
fn may_write_cr0(vcpu: &Vcpu, old: u64, value: u64) -> bool {
    let set = |bit| value & bit != 0;
    if value >> 32 != 0 || set(cr0::PG) && !set(cr0::PE) || set(cr0::NW) && !set(cr0::CD) {
        return false;
    }
    match (old & cr0::PG != 0, set(cr0::PG)) {
        (false, true) if vcpu.efer() & efer::LME != 0 => {
            let (cs, tr) = (vcpu.read(fields::GUEST_CS_RIGHTS), vcpu.read(Segment::Tr.rights()));
            vcpu.cr4() & cr4::PAE != 0 && can_enter_long_mode(cs, tr)
        }
        (true, false) => !vcpu.is_64_bit_code() && vcpu.cr4() & cr4::PCIDE == 0,
        _ => true,
    }
}

/// Writes CR4. `None` means #GP.
fn write_cr4(vcpu: &mut Vcpu, value: u64, pdptes: ReadPdptes<'_>) -> Option<()> {
    let old = vcpu.cr4();
    let long_mode = vcpu.efer() & efer::LMA != 0;
    let paging = vcpu.cr0() & cr0::PG != 0;
    if value & !supported_cr4() != 0 || long_mode && value & cr4::PAE == 0 {
        return None;
    }
    // SDM vol. 3, 5.10.1: PCIDE can be set only in long mode and with PCID 0.
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
    // SDM vol. 3, 5.10.4.1: what a MOV to CR4 drops besides. PGE is the guest's own.
    if (old ^ value) & (cr4::PAE | cr4::PSE | cr4::PCIDE | cr4::SMEP) != 0 {
        vcpu.flush_translations();
    }
    vcpu.write(fields::GUEST_CR4, cr4_in_force(value, cpu::cr4()));
    vcpu.set_cr4_shadow(value);
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

/// Whether these segments may be in use when paging turns long mode on: 64-bit code and a 16-bit TSS are #GP (SDM vol. 3, 11.8.5),
/// and states that VM entry refuses.
const fn can_enter_long_mode(cs_rights: u32, tr_rights: u32) -> bool {
    const CS_L: u32 = 1 << 13;
    const BUSY_TSS: u32 = 11;
    cs_rights & CS_L == 0 && tr_rights & 0xf == BUSY_TSS
}

/// Loads the PDPTEs that PAE paging keeps in the processor (SDM vol. 3, 5.4.1).
fn load_pdptes(vcpu: &mut Vcpu, pdptes: ReadPdptes<'_>) -> Option<()> {
    let entries = pdptes(Gpa::new(vcpu.cr3().as_u64() & 0xffff_ffe0))?;
    for (n, entry) in (0..).zip(entries) {
        vcpu.write(fields::guest_pdpte(n), entry);
    }
    Some(())
}

/// Reserved bits in an entry that is present are #GP, and a state that VM entry refuses.
fn are_valid_pdptes(entries: &[u64; 4], physical_bits: u8) -> bool {
    const PRESENT: u64 = 1;
    const RESERVED: u64 = 0x1e6;
    let reserved = RESERVED | u64::MAX << physical_bits.clamp(32, 52);
    entries.iter().all(|entry| entry & PRESENT == 0 || entry & reserved == 0)
}

/// Handles XSETBV: XCR0 only, with the components that the guest's CPUID offers, x87 always, AVX only with SSE (SDM vol. 2, XSETBV). `Err`
/// is #GP. The value is the guest's new XCR0.
pub fn xsetbv(vcpu: &Vcpu, supported: u64) -> Result<u64, Action> {
    if vcpu.cr4() & cr4::OSXSAVE == 0 {
        return Err(Action::UNDEFINED_OPCODE);
    }
    let value = vcpu.registers.edx_eax();
    let bad = vcpu.cpl() != 0 || vcpu.registers.get32(Registers::RCX) != 0 || !cpuid::is_valid_xcr0(value, supported);
    if bad { Err(Action::GENERAL_PROTECTION) } else { Ok(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_does_not_switch_machine_checks_off_for_the_machine() {
        let checks = |guest, host| cr4_in_force(guest, host) & cr4::MCE != 0;
        assert!(checks(0, cr4::MCE) && checks(cr4::MCE, cr4::MCE) && checks(cr4::MCE, 0) && !checks(0, 0));
        assert_eq!(cr4_in_force(cr4::PAE, !0), cr4::PAE | cr4::VMXE | cr4::MCE);
    }

    #[test]
    fn long_mode_wants_neither_64_bit_code_nor_a_16_bit_tss() {
        const CODE_32: u32 = 0xc09b;
        const CODE_64_AND_32: u32 = CODE_32 | 1 << 13;
        const TSS_32_BUSY: u32 = 0x8b;
        const TSS_16_BUSY: u32 = 0x83;
        assert!(can_enter_long_mode(CODE_32, TSS_32_BUSY));
        assert!(!can_enter_long_mode(CODE_64_AND_32, TSS_32_BUSY));
        assert!(!can_enter_long_mode(CODE_32, TSS_16_BUSY));
    }

    #[test]
    fn reserved_bits_of_pdptes_end_where_the_address_does() {
        let with = |bit: u32, present: u64| [0, present | 1 << bit, 0, 0];
        for bit in [1, 2, 5, 8, 39, 52, 63] {
            assert!(!are_valid_pdptes(&with(bit, 1), 39), "{bit}");
            assert!(are_valid_pdptes(&with(bit, 0), 39), "{bit}, not present");
        }
        for bit in [3, 4, 9, 12, 38] {
            assert!(are_valid_pdptes(&with(bit, 1), 39), "{bit}");
        }
        assert!(are_valid_pdptes(&with(51, 1), 52));
    }
}
