//! IN and OUT.

use super::{Action, EndReason, Platform, PortWrite};
use crate::vmx::{Registers, Vcpu, exit::IoAccess};

/// Serves an access to an I/O port. INS and OUTS are #UD: the ports that a guest has are no memory to copy from or to.
#[inline(never)]
pub fn access(vcpu: &mut Vcpu, platform: &mut impl Platform, access: IoAccess) -> Action {
    if access.string {
        return Action::UNDEFINED_OPCODE;
    }
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
