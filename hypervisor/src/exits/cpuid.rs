//! CPUID.

use core::arch::x86_64::__cpuid_count;

use super::Action;
use crate::{
    vdev::cpuid::{Leaf, Policy, VcpuState},
    vmx::{Registers, Vcpu},
};

/// Handles CPUID by the guest's policy.
pub fn handle(vcpu: &mut Vcpu, policy: &Policy, apic_id: u32, xcr0: u64) -> Action {
    let (leaf, subleaf) = (vcpu.registers.get32(Registers::RAX), vcpu.registers.get32(Registers::RCX));
    let state = VcpuState { apic_id, cr4: vcpu.cr4(), xcr0 };
    let answer = policy.answer(leaf, subleaf, &state, &host);
    for (register, value) in [
        (Registers::RAX, answer.eax),
        (Registers::RBX, answer.ebx),
        (Registers::RCX, answer.ecx),
        (Registers::RDX, answer.edx),
    ] {
        vcpu.registers.set(register, value.into());
    }
    Action::Advance
}

fn host(leaf: u32, subleaf: u32) -> Leaf {
    let host = __cpuid_count(leaf, subleaf);
    Leaf::new(host.eax, host.ebx, host.ecx, host.edx)
}
