//! IN and OUT.

use super::{
    Action, EndReason, Platform, PortWrite,
    breakpoints::{self, Breakpoints, are_armed},
};
use crate::{
    cpu::{self, bits::cr4},
    vmx::{Registers, Vcpu, exit::IoAccess, fields},
};

/// Handles an access to an I/O port. INS and OUTS are #UD, because no port of a guest transfers blocks of data.
#[inline(never)]
pub fn access(vcpu: &mut Vcpu, platform: &mut impl Platform, access: IoAccess) -> Action {
    if access.string {
        return Action::UNDEFINED_OPCODE;
    }
    let action = carry_out(vcpu, platform, access);
    if action == Action::Advance {
        let dr7 = vcpu.read(fields::GUEST_DR7);
        if are_armed(dr7) && vcpu.cr4() & cr4::DE != 0 {
            watched(vcpu, dr7, access);
        }
    }
    action
}

/// Checks breakpoints on the port: the trap comes after the instruction, which the hypervisor has executed (SDM vol. 3, 18.2.5).
#[cold]
fn watched(vcpu: &mut Vcpu, dr7: u64, access: IoAccess) {
    let breakpoints = Breakpoints::new(dr7, cpu::breakpoint_addresses());
    let hits = breakpoints.hit(breakpoints::Access::Port, access.port.into(), access.width.into());
    if hits != 0 {
        vcpu.pend_debug(hits);
    }
}

fn carry_out(vcpu: &mut Vcpu, platform: &mut impl Platform, access: IoAccess) -> Action {
    let rax = vcpu.registers.get(Registers::RAX);
    let mask = u64::MAX >> (64 - 8 * u32::from(access.width.clamp(1, 4)));
    if access.input {
        let value = u64::from(platform.port_read(access.port, access.width)) & mask;
        // A 32-bit result clears the upper half, a narrower one leaves the rest as it is.
        let kept = if access.width == 4 { 0 } else { rax & !mask };
        vcpu.registers.set(Registers::RAX, kept | value);
        return Action::Advance;
    }
    match platform.port_write(access.port, access.width, (rax & mask) as u32) {
        PortWrite::Done => Action::Advance,
        PortWrite::NoRoom => Action::Yield,
        PortWrite::Exit(code) => Action::End(EndReason::Exit(code)),
        PortWrite::Reset => Action::End(EndReason::Reset),
    }
}
