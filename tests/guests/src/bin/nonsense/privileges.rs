//! What is not for a guest, or not for a guest's user mode: VMX, the host's registers, a call from CPL 3 (attack 27).

use core::ops::RangeInclusive;

use guests::guest_shim::hcall_abi::{Status, result_from_rax};
use guests::may_fault;

use crate::Attacker;

/// #UD and #GP.
const UNDEFINED: Option<u8> = Some(6);
const PROTECTION: Option<u8> = Some(13);

/// CR4.VMXE.
const VMXE: u64 = 1 << 13;
/// IA32_VMX_BASIC, IA32_SMM_MONITOR_CTL, an MSR that no bitmap covers.
const FOREIGN_MSRS: [u32; 3] = [0x480, 0x9b, 0x4000_0000];

/// The MSRs of the bitmap's two ranges that can be read, by SDM vol. 4, table 2-2, and vol. 3, table 12-6 (x2APIC). All others fault.
const READABLE: [RangeInclusive<u32>; 28] = [
    0x10..=0x10,   // IA32_TIME_STAMP_COUNTER
    0x17..=0x17,   // IA32_PLATFORM_ID
    0x1b..=0x1b,   // IA32_APIC_BASE
    0x3a..=0x3b,   // IA32_FEATURE_CONTROL, IA32_TSC_ADJUST
    0x48..=0x48,   // IA32_SPEC_CTRL
    0x8b..=0x8b,   // IA32_BIOS_SIGN_ID
    0xce..=0xce,   // MSR_PLATFORM_INFO
    0xfe..=0xfe,   // IA32_MTRRCAP
    0x10a..=0x10a, // IA32_ARCH_CAPABILITIES
    0x174..=0x176, // IA32_SYSENTER_CS, ESP, EIP
    0x179..=0x17a, // IA32_MCG_CAP, IA32_MCG_STATUS
    0x1a0..=0x1a0, // IA32_MISC_ENABLE
    0x1d9..=0x1d9, // IA32_DEBUGCTL
    0x200..=0x20f, // IA32_MTRR_PHYSBASE0 to IA32_MTRR_PHYSMASK7
    0x250..=0x250, // IA32_MTRR_FIX64K_00000
    0x258..=0x259, // IA32_MTRR_FIX16K
    0x268..=0x26f, // IA32_MTRR_FIX4K
    0x277..=0x277, // IA32_PAT
    0x2ff..=0x2ff, // IA32_MTRR_DEF_TYPE
    0x6e0..=0x6e0, // IA32_TSC_DEADLINE
    0x802..=0x803, // x2APIC: ID and version
    0x808..=0x808, // TPR
    0x80a..=0x80a, // PPR
    0x80d..=0x80d, // LDR
    0x80f..=0x828, // SVR, ISR, TMR, IRR, ESR
    0x830..=0x830, // ICR
    0x832..=0x839, // LVT, initial and current count
    0x83e..=0x83e, // DCR
];
/// Those of the other range: IA32_EFER to IA32_FMASK, the bases of FS and GS, IA32_TSC_AUX.
const READABLE_ABOVE: [RangeInclusive<u32>; 2] = [0xc000_0080..=0xc000_0084, 0xc000_0100..=0xc000_0103];

/// Tries all of them. `call_base` is the number of the call that does nothing.
pub fn all(attacker: &mut Attacker, call_base: u32) {
    attacker.cases += 1;
    if cr4() & VMXE != 0 {
        attacker.error(format_args!("the guest sees CR4.VMXE"));
    }
    attacker.cases += 1;
    let fault = set_vmxe();
    if fault != PROTECTION || cr4() & VMXE != 0 {
        attacker.error(format_args!("CR4.VMXE can be set: {fault:?}"));
    }
    attacker.cases += 1;
    let fault = vmxoff();
    if fault != UNDEFINED {
        attacker.error(format_args!("VMXOFF: {fault:?}"));
    }
    for msr in FOREIGN_MSRS {
        attacker.cases += 1;
        let fault = read_msr(msr);
        if fault != PROTECTION {
            attacker.error(format_args!("MSR {msr:#x} can be read: {fault:?}"));
        }
    }
    sweep_msrs(attacker);
    attacker.cases += 1;
    let from_user = vmcall_from_user(call_base);
    if from_user != Err(Status::NotPrivileged) {
        attacker.error(format_args!("a call from CPL 3: {from_user:?}"));
    }
}

/// Reads every MSR of the bitmap's two ranges.
fn sweep_msrs(attacker: &mut Attacker) {
    for msr in (0..=0x1fff).chain(0xc000_0000..=0xc000_1fff) {
        attacker.cases += 1;
        let expected = READABLE.iter().chain(&READABLE_ABOVE).any(|range| range.contains(&msr));
        if (read_msr(msr) == PROTECTION) == expected {
            attacker.error(format_args!("MSR {msr:#x} can be read: {}", !expected));
        }
    }
}

fn cr4() -> u64 {
    let value: u64;
    // SAFETY: reading it changes nothing.
    unsafe { core::arch::asm!("mov {}, cr4", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

fn set_vmxe() -> Option<u8> {
    // SAFETY: the bit means nothing to the program.
    unsafe { may_fault!(["mov cr4, {value}"], value = in(reg) cr4() | VMXE) }
}

fn vmxoff() -> Option<u8> {
    // SAFETY: the guest is not in VMX operation.
    unsafe { may_fault!(["vmxoff"]) }
}

fn read_msr(msr: u32) -> Option<u8> {
    // SAFETY: reading it changes nothing.
    unsafe { may_fault!(["rdmsr"], in("ecx") msr, out("eax") _, out("edx") _) }
}

// IRET leads to CPL 3 and SYSCALL back, without a stack in between and with interrupts off. The run-time's descriptor table has no
// segments for CPL 3, so another one is loaded meanwhile; its other segments are at the same places.
core::arch::global_asm!(
    ".pushsection .text.vmcall_from_user_mode, \"ax\"",
    ".globl vmcall_from_user_mode",
    "vmcall_from_user_mode:",
    "push rbx",
    "push rbp",
    "pushfq",
    "cli",
    "sub rsp, 16",
    "sgdt [rsp]",
    "lgdt [rip + 5f]",
    "mov ecx, 0xc0000080", // IA32_EFER.SCE
    "rdmsr",
    "or eax, 1",
    "wrmsr",
    "mov ecx, 0xc0000081", // IA32_STAR: SYSCALL loads CS with 0x10, SS with 0x18
    "xor eax, eax",
    "mov edx, 0x10",
    "wrmsr",
    "mov ecx, 0xc0000082", // IA32_LSTAR
    "lea rax, [rip + 3f]",
    "xor edx, edx",
    "wrmsr",
    "mov eax, edi",
    "mov rbp, rsp",
    "lea rcx, [rip + 2f]",
    "push 0x2b",
    "push rbp",
    "push 2",
    "push 0x23",
    "push rcx",
    "iretq",
    "2:",
    "xor ebx, ebx",
    "xor ecx, ecx",
    "xor edx, edx",
    "xor esi, esi",
    "vmcall",
    "syscall",
    "3:",
    "mov rsp, rbp",
    "lgdt [rsp]",
    "add rsp, 16",
    "popfq",
    "pop rbp",
    "pop rbx",
    "ret",
    ".popsection",
    ".pushsection .rodata.gdt_user, \"a\"",
    ".balign 8",
    "4: .quad 0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00affb000000ffff, 0x00cff3000000ffff",
    "5: .word 47",
    ".quad 4b",
    ".popsection",
);

unsafe extern "sysv64" {
    fn vmcall_from_user_mode(number: u32) -> u64;
}

/// Makes a call without arguments from CPL 3.
fn vmcall_from_user(number: u32) -> Result<u64, Status> {
    let_user_in();
    // SAFETY: a hypervisor answers VMCALL; user mode may fetch the code now; what is changed is brought back, or used by nobody else.
    result_from_rax(unsafe { vmcall_from_user_mode(number) })
}

/// Lets user mode reach the low 2 MiB-page's worth of addresses around the code: U/S in each entry on the way (SDM vol. 3, 5.5).
fn let_user_in() {
    const USER: u64 = 1 << 2;
    const LARGE: u64 = 1 << 7;
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    let address = vmcall_from_user_mode as *const () as u64;
    let mut table: u64;
    // SAFETY: reading it changes nothing.
    unsafe { core::arch::asm!("mov {}, cr3", out(reg) table, options(nomem, nostack, preserves_flags)) };
    for level in (0..4).rev() {
        let entry = ((table & ADDRESS) + (address >> (12 + 9 * level) & 511) * 8) as *mut u64;
        // SAFETY: the page tables are where CR3 and their entries say, mapped to themselves, and belong to no object of the program.
        let value = unsafe { entry.read_volatile() } | USER;
        // SAFETY: as above; one bit more, which supervisor code does not see.
        unsafe { entry.write_volatile(value) };
        if value & LARGE != 0 && level > 0 {
            break;
        }
        table = value;
    }
    // SAFETY: the same tables again, so that the processor forgets what it knew of them.
    unsafe { core::arch::asm!("mov {r}, cr3", "mov cr3, {r}", r = out(reg) _, options(nostack, preserves_flags)) };
}
