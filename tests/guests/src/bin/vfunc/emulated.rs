//! Vector 0: the hypervisor signals it, for commands that ask for that and for errors of descriptors.

use guests::dsa::{Descriptor, Registers, spec};

use crate::function::{Vf, expect};

/// An operation that the device does not have.
const BAD_OPCODE: u8 = 0x7f;

pub fn all(vf: &mut Vf) {
    vf.take_signals();
    command_completions(vf);
    held_by_masks(vf);
    errors(vf);
    handles_of_its_own_only(vf);
}

/// A command that asks for an interrupt; what it says has to be taken back.
pub fn command(vf: &mut Vf) {
    let ended = vf.dsa.command(spec::CMD_INTERRUPT >> spec::CMD_SHIFT | spec::COMMAND_DRAIN_ALL, 0);
    expect(ended.is_ok(), "a command failed");
    let cause = vf.dsa.registers().read(spec::INTCAUSE);
    expect(cause & spec::INTCAUSE_COMMAND != 0, "INTCAUSE does not say that a command completed");
    vf.dsa.registers().write(spec::INTCAUSE, cause);
}

fn command_completions(vf: &mut Vf) {
    expect(vf.dsa.command(spec::COMMAND_DRAIN_ALL, 0).is_ok(), "a command failed");
    let came = vf.take_signals();
    expect(came == 0, "an interrupt came for a command that did not ask for it");
    for _ in 0..3 {
        command(vf);
        let came = vf.take_signals();
        expect(came == 1, "not one interrupt for one command");
    }
}

fn held_by_masks(vf: &mut Vf) {
    type Mask = fn(&mut Vf, bool);
    let masks: [Mask; 3] = [
        |vf, masked| vf.set_mask(0, masked),
        |vf, masked| vf.set_msix(true, masked),
        |vf, disabled| vf.set_msix(!disabled, false),
    ];
    for mask in masks {
        mask(vf, true);
        command(vf);
        command(vf);
        let came = vf.take_signals();
        expect(came == 0, "an interrupt came that is masked");
        expect(vf.is_pending(0), "vector 0 is not pending");
        mask(vf, false);
        let came = vf.take_signals();
        expect(came == 1, "what was pending did not come once");
        expect(!vf.is_pending(0), "vector 0 is still pending");
    }
}

/// A descriptor without a completion record that fails.
pub fn wrong() -> Descriptor {
    Descriptor { opcode: BAD_OPCODE, flags: 0, ..Descriptor::noop(0, 0) }
}

/// It is told of in SWERR.
fn errors(vf: &mut Vf) {
    vf.dsa.registers().write(spec::GENCTRL, spec::GENCTRL_ERROR);
    vf.submit_raw(&wrong());
    let came = vf.take_signals();
    expect(came == 1, "not one interrupt for an error");
    let [low, high] = [0, 4].map(|at| vf.dsa.registers().read(spec::SWERR + at));
    expect(low & spec::SWERR_VALID != 0, "no error is recorded");
    expect(low >> 16 & 0xff == 0 && high >> 8 & 0xf_ffff == 0, "another work queue's error, or with a PASID");
    expect(high & 0xff == u32::from(BAD_OPCODE), "another operation's error");
    let cause = vf.dsa.registers().read(spec::INTCAUSE);
    expect(cause & spec::INTCAUSE_ERROR != 0, "INTCAUSE does not say that there was an error");
    vf.dsa.registers().write(spec::INTCAUSE, cause);
    vf.dsa.registers().write(spec::SWERR, u32::MAX);
    let left = vf.dsa.registers().read(spec::SWERR);
    expect(left & spec::SWERR_VALID == 0, "the error is not acknowledged");
    vf.dsa.registers().write(spec::GENCTRL, 0);
}

/// Vector 0 is not the device's, and neither is what lies beyond the table.
fn handles_of_its_own_only(vf: &mut Vf) {
    for index in [0, vf.vectors, vf.vectors + 1] {
        expect(vf.dsa.request_msix_handle(index).is_err(), "a handle for a vector that the device cannot raise");
    }
    let first = vf.handle(1);
    vf.submit(1, first - 1);
    let status = vf.status(1);
    let came = vf.take_signals();
    expect(status == spec::STATUS_SUCCESS && came == 0, "a descriptor raised vector 0");
}
