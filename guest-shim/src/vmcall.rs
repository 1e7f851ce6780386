//! VMCALL, the one instruction that the shim needs.

use crate::transport::Transport;

/// Calls by VMCALL.
#[derive(Clone, Copy, Debug)]
pub struct Vmcall(());

impl Vmcall {
    /// The right to make calls.
    ///
    /// # Safety
    /// The caller runs at CPL 0 in 64-bit mode below a hypervisor whose interface it found
    /// ([`discover`](crate::discover::discover)): elsewhere VMCALL is an invalid opcode, or means something else.
    pub const unsafe fn new() -> Self {
        Self(())
    }
}

impl Transport for Vmcall {
    fn call(&self, number: u64, [rbx, rcx, rdx, rsi]: [u64; 4]) -> u64 {
        let result;
        // SAFETY: `new` was told that a hypervisor answers. It changes RAX and memory that an argument names, and nothing
        // else (`hcall_abi`). The compiler keeps RBX for itself, so it is exchanged around the instruction.
        unsafe {
            core::arch::asm!(
                "xchg rbx, {saved}",
                "vmcall",
                "xchg rbx, {saved}",
                saved = inout(reg) rbx => _,
                inout("rax") number => result,
                in("rcx") rcx,
                in("rdx") rdx,
                in("rsi") rsi,
                options(nostack),
            );
        }
        result
    }
}
