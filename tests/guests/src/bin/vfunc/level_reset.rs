//! A function level reset (PCIe 6.6.2): it removes the function's state and settings, and the function works again after it.

use guests::bare::config;
use guests::dsa::{Registers, spec};
use guests::pci::{self, ConfigSpace};

use crate::emulated;
use crate::function::{Vf, expect};

const BAR0: u16 = 0x10;

/// An entry that waits when the function is reset.
const WAITING: u16 = 5;
/// Entries that are used after it.
const AFTER: u16 = 16;

pub fn all(vf: &mut Vf) {
    vf.take_signals();
    for entry in [0, WAITING] {
        vf.set_mask(entry, true);
    }
    vf.raise_held(WAITING);
    emulated::command(vf);
    expect(vf.is_pending(0) && vf.is_pending(WAITING), "nothing waits");
    let bar = config::Ports.read(vf.function, BAR0);

    expect(pci::initiate_reset(&config::Ports, vf.function).is_some(), "it says that it cannot be reset");

    let is_reset = pci::is_as_after_reset(&config::Ports, vf.function);
    expect(is_reset, "its configuration is not as after reset");
    expect(config::Ports.read(vf.function, BAR0) == bar, "a BAR has moved");
    let fresh = (0..vf.vectors).all(|entry| vf.read(entry) == [0, 0, 0, 1]);
    expect(fresh, "the table is not as after reset");
    expect(!vf.is_pending(0) && !vf.is_pending(WAITING), "something is pending");
    let state = [spec::GENSTS, spec::CMDSTS, spec::INTCAUSE].map(|at| vf.dsa.registers().read(at));
    expect(state == [0; 3], "the device is not as after reset");

    expect(vf.start_some(AFTER).is_ok(), "it does not start again");
    expect(vf.take_signals() == 0, "an interrupt came that was dropped");
    vf.fire(1..AFTER);
    emulated::command(vf);
    expect(vf.take_signals() == 1, "not one interrupt for one command");
}
