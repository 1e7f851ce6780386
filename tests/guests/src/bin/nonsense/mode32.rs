//! A hypercall from 32-bit code at CPL 0: attack 27's.

use guests::guest_shim::hcall_abi::{Status, result_from_rax};

// The run-time's descriptor table has no 32-bit code segment, so another one is loaded meanwhile; its 64-bit code segment is at
// the same place. Interrupts stay off, and registers that the System V ABI keeps are saved, because the upper halves of all
// registers are undefined after 32-bit code. Addresses are below 4 GiB, the stack's too.
core::arch::global_asm!(
    ".pushsection .text.vmcall_from_32_bit_code, \"ax\"",
    ".globl vmcall_from_32_bit_code",
    "vmcall_from_32_bit_code:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "pushfq",
    "cli",
    "sub rsp, 16",
    "sgdt [rsp]",
    "lgdt [rip + 5f]",
    "mov eax, edi",
    "lea rdi, [rip + 3f]",
    "lea rcx, [rip + 2f]",
    "push 0x20",
    "push rcx",
    "retfq",
    ".code32",
    "2:",
    "xor ebx, ebx",
    "xor ecx, ecx",
    "xor edx, edx",
    "xor esi, esi",
    "vmcall",
    "push 0x10",
    "push edi",
    "retf",
    ".code64",
    "3:",
    "lgdt [rsp]",
    "add rsp, 16",
    "popfq",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    ".popsection",
    ".pushsection .rodata.gdt32, \"a\"",
    ".balign 8",
    "4: .quad 0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cf9b000000ffff",
    "5: .word 39",
    ".quad 4b",
    ".popsection",
);

unsafe extern "sysv64" {
    fn vmcall_from_32_bit_code(number: u32) -> u32;
}

/// Makes a call without arguments from 32-bit code.
pub fn vmcall(number: u32) -> Result<u64, Status> {
    // SAFETY: a hypervisor answers VMCALL, and the code brings back the state it found.
    let eax = unsafe { vmcall_from_32_bit_code(number) };
    result_from_rax(i64::from(eax as i32) as u64)
}
