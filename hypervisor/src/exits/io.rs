//! IN and OUT.

use super::{Action, Devices, EndReason, Platform};
use crate::{
    vdev::{
        ports::{Effect, Ports},
        uart,
    },
    vmx::{Registers, Vcpu, exit::IoAccess},
};

/// Serves an access to an I/O port. INS and OUTS are #UD: the ports that a guest has are no memory to copy from or to.
pub fn access(vcpu: &mut Vcpu, devices: &mut Devices, platform: &mut impl Platform, access: IoAccess) -> Action {
    if access.string {
        return Action::UNDEFINED_OPCODE;
    }
    let rax = vcpu.registers.get(Registers::RAX);
    let mask = u64::MAX >> (64 - 8 * u32::from(access.width.clamp(1, 4)));
    let mut ports = Ports { uart: &mut devices.uart, bus: &mut devices.bus };
    if access.input {
        let value = u64::from(ports.read(access.port, access.width)) & mask;
        // A 32-bit result clears the upper half, a narrower one leaves the rest as it is.
        let kept = if access.width == 4 { 0 } else { rax & !mask };
        vcpu.registers.set(Registers::RAX, kept | value);
        return Action::Advance;
    }
    // A guest that writes faster than the console's line takes it waits by itself: neither the processor nor a lock does.
    if access.port == uart::BASE && !platform.console_has_room() {
        return Action::Yield;
    }
    let value = (rax & mask) as u32;
    match ports.write(access.port, access.width, value, &mut |line| platform.console(line)) {
        Effect::None => Action::Advance,
        Effect::Exit(code) => Action::End(EndReason::Exit(code)),
        Effect::Reset => Action::End(EndReason::Reset),
        Effect::Pci(function, effect) => {
            platform.pci(function, effect);
            Action::Advance
        }
    }
}
