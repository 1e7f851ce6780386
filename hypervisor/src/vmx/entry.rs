//! VM entry and VM exit: the one place where the registers of guest and hypervisor are exchanged.

use core::mem::offset_of;

use super::instr::{Failure, instruction_error};

/// The guest's general registers, but for RSP, which the VMCS holds. In the order of their numbers.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Registers([u64; 16]);

impl Registers {
    /// RAX.
    pub const RAX: usize = 0;
    /// RCX.
    pub const RCX: usize = 1;
    /// RDX.
    pub const RDX: usize = 2;
    /// RBX.
    pub const RBX: usize = 3;
    /// RSP: its place here is not used.
    pub const RSP: usize = 4;
    /// RSI.
    pub const RSI: usize = 6;

    /// Register `number`; only its low four bits count.
    pub fn get(&self, number: usize) -> u64 {
        self.0[number & 15]
    }

    /// Sets register `number`; only its low four bits count.
    pub fn set(&mut self, number: usize, value: u64) {
        self.0[number & 15] = value;
    }

    /// The low half of register `number`.
    pub fn get32(&self, number: usize) -> u32 {
        self.get(number) as u32
    }

    /// EDX:EAX.
    pub fn edx_eax(&self) -> u64 {
        u64::from(self.get32(Self::RDX)) << 32 | u64::from(self.get32(Self::RAX))
    }

    /// Sets EDX:EAX; the high halves of RDX and RAX become 0.
    pub fn set_edx_eax(&mut self, value: u64) {
        self.set(Self::RAX, value & 0xffff_ffff);
        self.set(Self::RDX, value >> 32);
    }
}

core::arch::global_asm!(
    ".section .text.vmx_enter, \"ax\"",
    ".balign 16",
    ".global vmx_enter",
    // RDI = registers, RSI = launched before. Returns 0 after a VM exit, 1 for VMfailInvalid, 2 for VMfailValid.
    "vmx_enter:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "push rdi",
    "mov eax, 0x6c14", // HOST_RSP
    "vmwrite rax, rsp",
    "test sil, sil",
    "mov rax, [rdi]",
    "mov rcx, [rdi + 8]",
    "mov rdx, [rdi + 16]",
    "mov rbx, [rdi + 24]",
    "mov rbp, [rdi + 40]",
    "mov rsi, [rdi + 48]",
    "mov r8,  [rdi + 64]",
    "mov r9,  [rdi + 72]",
    "mov r10, [rdi + 80]",
    "mov r11, [rdi + 88]",
    "mov r12, [rdi + 96]",
    "mov r13, [rdi + 104]",
    "mov r14, [rdi + 112]",
    "mov r15, [rdi + 120]",
    "mov rdi, [rdi + 56]",
    "jnz 2f",
    "vmlaunch",
    "jmp 3f",
    "2:",
    "vmresume",
    "3:", // The entry failed: the registers are the guest's still, and may stay where they are saved.
    "mov eax, 1",
    "mov ecx, 2",
    "cmovnc eax, ecx",
    "add rsp, 8",
    "jmp 4f",
    ".balign 16",
    ".global vmx_exit",
    "vmx_exit:", // HOST_RIP; RSP as it was at the entry.
    "xchg rdi, [rsp]",
    "mov [rdi], rax",
    "mov [rdi + 8], rcx",
    "mov [rdi + 16], rdx",
    "mov [rdi + 24], rbx",
    "mov [rdi + 40], rbp",
    "mov [rdi + 48], rsi",
    "mov [rdi + 64], r8",
    "mov [rdi + 72], r9",
    "mov [rdi + 80], r10",
    "mov [rdi + 88], r11",
    "mov [rdi + 96], r12",
    "mov [rdi + 104], r13",
    "mov [rdi + 112], r14",
    "mov [rdi + 120], r15",
    "pop rax",
    "mov [rdi + 56], rax",
    "xor eax, eax",
    "4:",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
);

// The assembler above counts on registers of 8 bytes in the order of their numbers.
const _: () = assert!(size_of::<Registers>() == 128 && offset_of!(Registers, 0) == 0);

unsafe extern "C" {
    fn vmx_enter(registers: *mut Registers, launched: bool) -> u32;
    fn vmx_exit();
}

/// The address for HOST_RIP.
pub fn exit_address() -> u64 {
    vmx_exit as *const () as u64
}

/// Runs the guest of the current VMCS until its next exit.
///
/// # Safety
/// The current VMCS is complete: its host state is this processor's, with HOST_RIP = [`exit_address`], and its EPT keeps the guest
/// within its own memory. `launched` says whether it has been entered since it was cleared.
pub unsafe fn enter(registers: &mut Registers, launched: bool) -> Result<(), Failure> {
    // SAFETY: the caller vouches for the VMCS; the assembler keeps every register that the calling convention wants kept, and the
    // guest changes no memory but its own.
    match unsafe { vmx_enter(registers, launched) } {
        0 => Ok(()),
        1 => Err(Failure::Invalid),
        _ => Err(Failure::Valid(instruction_error())),
    }
}
