//! VMCALL: the hypercalls of `hcall-abi`.

use hcall_abi::{Status, rax_from_result};

use super::{Action, Platform};
use crate::vmx::{Registers, Vcpu};

/// Handles a hypercall. Only 64-bit code at CPL 0 may make one. Other code gets a status, and the call has no effect.
#[inline(always)]
pub fn handle(vcpu: &mut Vcpu, platform: &mut impl Platform) -> Action {
    let result = if vcpu.is_64_bit_kernel() {
        let r = &vcpu.registers;
        let arguments = [Registers::RBX, Registers::RCX, Registers::RDX, Registers::RSI].map(|n| r.get(n));
        platform.hypercall(r.get(Registers::RAX), arguments)
    } else {
        rax_from_result(Err(Status::NotPrivileged))
    };
    vcpu.registers.set(Registers::RAX, result);
    Action::Advance
}
