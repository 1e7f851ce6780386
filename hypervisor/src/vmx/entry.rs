//! VM entry and VM exit: the one place where the registers of guest and hypervisor are exchanged.

use core::mem::offset_of;

use super::instr::{Failure, instruction_error};
use crate::cpu::{
    speculation::{Plan, Returns},
    tables::DATA,
};

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
    // What the guest has left in the registers goes where they are kept. RSP as it was at the entry.
    ".macro vmx_exit_save",
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
    ".endm",
    // A call that no return takes, and a wait until it has been executed: `Returns::OneCall`.
    ".macro vmx_exit_one_call",
    "call 5f",
    "int3",
    "5:",
    "add rsp, 8",
    "lfence",
    ".endm",
    // As many calls as the stack of returns has room for: `Returns::Refill`.
    ".macro vmx_exit_refill",
    ".rept 32",
    "call 5f",
    "int3",
    "5:",
    ".endr",
    "add rsp, 32 * 8",
    "lfence",
    ".endm",
    // Taken branches of ours take the place of the guest's in the history, five times five in calls: Intel, Branch History Injection, the
    // software sequence.
    ".macro vmx_exit_clear_history",
    "mov ecx, 5",
    "call 5f",
    "jmp 9f",
    ".balign 64, 0xcc",
    "5:",
    "call 6f",
    "ret",
    ".balign 64, 0xcc",
    "6:",
    "mov eax, 5",
    "7:",
    "jmp 8f",
    "nop",
    "8:",
    "sub eax, 1",
    "jnz 7b",
    "sub ecx, 1",
    "jnz 5b",
    "ret",
    "9:",
    "lfence",
    ".endm",
    ".section .text.vmx_enter, \"ax\"",
    ".balign 16",
    ".global vmx_enter",
    // RDI = registers, ESI = how (`Way`). Returns 0 after a VM exit, 1 for VMfailInvalid, 2 for VMfailValid.
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
    "cmp esi, 1", // Below: launch. Equal: resume. Above: resume with VERW.
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
    "jne 2f",
    "vmresume",
    "jmp 3f",
    // The guest's registers are loaded: nothing that VERW has overwritten is loaded again. VERW changes ZF alone. A launch has it in any case:
    // it harms no processor. Its form with memory is the one that overwrites (Intel, Microarchitectural Data Sampling).
    "2:",
    "verw word ptr [rip + vmx_data_selector]",
    "jb 4f",
    "vmresume",
    "jmp 3f",
    "4:",
    "vmlaunch",
    "3:", // The entry failed: the registers are the guest's still, and may stay where they are saved.
    "mov eax, 1",
    "mov ecx, 2",
    "cmovnc eax, ecx",
    "add rsp, 8",
    "jmp vmx_return",
    // Each HOST_RIP: what `Exit` says.
    ".irp returns, one_call, refill",
    ".balign 16",
    ".global vmx_exit_\\returns, vmx_exit_\\returns\\()_and_history",
    "vmx_exit_\\returns\\():",
    "vmx_exit_save",
    "vmx_exit_\\returns",
    "jmp vmx_exited",
    ".balign 16",
    "vmx_exit_\\returns\\()_and_history:",
    "vmx_exit_save",
    "vmx_exit_\\returns",
    "vmx_exit_clear_history",
    "jmp vmx_exited",
    ".endr",
    ".balign 16",
    ".global vmx_exit_history, vmx_exit",
    "vmx_exit_history:",
    "vmx_exit_save",
    "vmx_exit_clear_history",
    "jmp vmx_exited",
    ".balign 16",
    "vmx_exit:",
    "vmx_exit_save",
    "vmx_exited:",
    "xor eax, eax",
    "vmx_return:",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    ".balign 2",
    "vmx_data_selector:",
    ".short {data}",
    data = const DATA,
);

// The assembler above counts on registers of 8 bytes in the order of their numbers.
const _: () = assert!(size_of::<Registers>() == 128 && offset_of!(Registers, 0) == 0);

/// How a guest is entered. The numbers are the assembler's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Way {
    /// For the first time since its VMCS was cleared.
    Launch = 0,
    /// Again.
    Resume = 1,
    /// Again, with VERW as the last instruction before.
    ResumeClearing = 2,
}

impl Way {
    /// How a guest is entered that has run.
    pub const fn again(plan: &Plan) -> Self {
        if plan.clear_buffers { Self::ResumeClearing } else { Self::Resume }
    }
}

unsafe extern "C" {
    fn vmx_enter(registers: *mut Registers, way: Way) -> u32;
    fn vmx_exit();
    fn vmx_exit_one_call();
    fn vmx_exit_one_call_and_history();
    fn vmx_exit_refill();
    fn vmx_exit_refill_and_history();
    fn vmx_exit_history();
}

/// The address for HOST_RIP: what is done after each exit before the hypervisor goes on.
pub fn exit_address(plan: &Plan) -> u64 {
    let exit: unsafe extern "C" fn() = match (plan.returns, plan.clear_history) {
        (Returns::Safe, false) => vmx_exit,
        (Returns::Safe, true) => vmx_exit_history,
        (Returns::OneCall, false) => vmx_exit_one_call,
        (Returns::OneCall, true) => vmx_exit_one_call_and_history,
        (Returns::Refill, false) => vmx_exit_refill,
        (Returns::Refill, true) => vmx_exit_refill_and_history,
    };
    exit as *const () as u64
}

/// Runs the guest of the current VMCS until its next exit.
///
/// # Safety
/// The current VMCS is complete: its host state is this processor's, with HOST_RIP = [`exit_address`], and its EPT keeps the guest
/// within its own memory. `way` is [`Way::Launch`] if and only if it has not been entered since it was cleared.
pub unsafe fn enter(registers: &mut Registers, way: Way) -> Result<(), Failure> {
    // SAFETY: the caller vouches for the VMCS; the assembler keeps every register that the calling convention wants kept, and the
    // guest changes no memory but its own.
    match unsafe { vmx_enter(registers, way) } {
        0 => Ok(()),
        1 => Err(Failure::Invalid),
        _ => Err(Failure::Valid(instruction_error())),
    }
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind};

    use super::*;
    use crate::cpu::speculation::HostSpecCtrl;

    /// The instructions from an address of this process on, in the order in which they lie there.
    fn code(at: u64) -> impl Iterator<Item = Instruction> {
        // SAFETY: the assembler above, and other code behind it, are mapped for reading.
        let bytes = unsafe { core::slice::from_raw_parts(at as *const u8, 1024) };
        let mut decoder = Decoder::with_ip(64, bytes, at, DecoderOptions::NONE);
        core::iter::from_fn(move || Some(decoder.decode()))
    }

    fn entry_code() -> Vec<Instruction> {
        code(vmx_enter as *const () as u64).take_while(|i| i.mnemonic() != Mnemonic::Cmovae).collect()
    }

    fn position(code: &[Instruction], mnemonic: Mnemonic) -> usize {
        code.iter().position(|i| i.mnemonic() == mnemonic).expect("it is there")
    }

    fn loads(instruction: &Instruction) -> bool {
        (0..instruction.op_count()).any(|n| instruction.op_kind(n) == OpKind::Memory)
    }

    #[test]
    fn nothing_is_loaded_between_verw_and_vm_entry() {
        let code = entry_code();
        let verw = position(&code, Mnemonic::Verw);
        assert!(loads(&code[verw]), "the form with a register overwrites nothing");
        let last_load = (0..verw).rev().find(|n| loads(&code[*n])).expect("the guest's registers are loaded");
        assert!(code[last_load + 1..verw].iter().all(|i| !loads(i)));
        let behind: Vec<_> = code[verw + 1..].iter().map(Instruction::mnemonic).collect();
        assert_eq!(behind[..4], [Mnemonic::Jb, Mnemonic::Vmresume, Mnemonic::Jmp, Mnemonic::Vmlaunch]);
        // Both ways of `Jb` end in an entry: the taken one at the launch.
        assert_eq!(code[verw + 1].near_branch_target(), code[verw + 4].ip());
    }

    #[test]
    fn an_entry_without_verw_executes_no_instruction_more_than_one_without_any() {
        let code = entry_code();
        let resume = position(&code, Mnemonic::Vmresume);
        let (compare, jump) = (position(&code, Mnemonic::Cmp), position(&code, Mnemonic::Jne));
        assert!(compare < jump && jump + 1 == resume, "one compare and one branch choose");
        assert!(!code[..resume].iter().any(|i| i.mnemonic() == Mnemonic::Verw));
        let flags = &code[compare + 1..jump];
        assert!(flags.iter().all(|i| i.mnemonic() == Mnemonic::Mov), "and nothing between them changes the flags");
    }

    /// Instructions of an exit up to where all exits join.
    fn exit_code(plan: &Plan) -> Vec<Mnemonic> {
        let join = code(vmx_exit as *const () as u64).find(|i| i.mnemonic() == Mnemonic::Xor).map(|i| i.ip());
        let joins = |i: &Instruction| {
            Some(i.ip()) == join || i.mnemonic() == Mnemonic::Jmp && Some(i.near_branch_target()) == join
        };
        code(exit_address(plan)).take_while(|i| !joins(i)).map(|i| i.mnemonic()).collect()
    }

    #[test]
    fn each_exit_does_what_the_plan_says_after_the_guests_registers_are_safe() {
        let plain = exit_code(&Plan::OFF);
        let history = [
            Mnemonic::Mov,
            Mnemonic::Call,
            Mnemonic::Jmp,
            Mnemonic::Call,
            Mnemonic::Ret,
            Mnemonic::Mov,
            Mnemonic::Jmp,
            Mnemonic::Nop,
            Mnemonic::Sub,
            Mnemonic::Jne,
            Mnemonic::Sub,
            Mnemonic::Jne,
            Mnemonic::Ret,
            Mnemonic::Lfence,
        ];
        let calls = |number| {
            let each = core::iter::repeat_n([Mnemonic::Call, Mnemonic::Int3], number).flatten();
            each.chain([Mnemonic::Add, Mnemonic::Lfence]).collect::<Vec<_>>()
        };
        for (returns, stack) in [(Returns::Safe, vec![]), (Returns::OneCall, calls(1)), (Returns::Refill, calls(32))] {
            for clear_history in [false, true] {
                let plan = Plan { returns, clear_history, ..Plan::OFF };
                let code = exit_code(&plan);
                assert_eq!(code[..plain.len()], plain, "{plan:?}");
                let rest: Vec<_> = code[plain.len()..].to_vec();
                let (before, after) = rest.split_at(stack.len().min(rest.len()));
                assert_eq!(before, stack, "{plan:?}");
                let padding = |mnemonic: &Mnemonic| *mnemonic == Mnemonic::Int3;
                let after: Vec<_> = after.iter().copied().filter(|mnemonic| !padding(mnemonic)).collect();
                assert_eq!(after, if clear_history { history.to_vec() } else { vec![] }, "{plan:?}");
            }
        }
        assert_eq!(plain.len(), 17, "exchange, 14 stores, and the last two");
    }

    #[test]
    fn verw_is_chosen_by_the_plan_alone() {
        assert_eq!(Way::again(&Plan::OFF), Way::Resume);
        assert_eq!(Way::again(&Plan { clear_buffers: true, ..Plan::OFF }), Way::ResumeClearing);
        let spec_ctrl = Some(HostSpecCtrl::default());
        assert_eq!(Way::again(&Plan { ibpb: true, flush_l1d: true, spec_ctrl, ..Plan::OFF }), Way::Resume);
    }
}
