//! A function level reset (PCIe 6.6.2): nothing is left of what the function did and was told, and then it works again.

use guests::bare::config;
use guests::dsa::{Registers, spec};
use guests::pci::{self, ConfigSpace};

use crate::emulated;
use crate::function::{Vf, expect};

const CAPABILITY_EXPRESS: u8 = 0x10;
/// Device capabilities: function level reset. Device control: initiate it.
const DEVICE_CAPABILITIES: u16 = 4;
const CAN_RESET: u32 = 1 << 28;
const DEVICE_CONTROL: u16 = 8;
const INITIATE: u32 = 1 << 15;

const COMMAND: u16 = 4;
const BAR0: u16 = 0x10;

/// An entry that waits when the function is reset.
const WAITING: u16 = 5;
/// Entries that are used after it.
const AFTER: u16 = 16;

pub fn all(vf: &mut Vf) {
    let Some(express) = pci::capability(&config::Ports, vf.function, CAPABILITY_EXPRESS) else {
        return expect(false, "no PCI Express capability");
    };
    let can_reset = config::Ports.read(vf.function, express + DEVICE_CAPABILITIES) & CAN_RESET != 0;
    expect(can_reset, "it says that it cannot be reset");
    vf.take_signals();
    for entry in [0, WAITING] {
        vf.set_mask(entry, true);
    }
    vf.raise_held(WAITING);
    emulated::command(vf);
    expect(vf.is_pending(0) && vf.is_pending(WAITING), "nothing waits");
    let bar = config::Ports.read(vf.function, BAR0);

    config::Ports.write(vf.function, express + DEVICE_CONTROL, INITIATE);

    expect(config::Ports.read(vf.function, express + DEVICE_CONTROL) & INITIATE == 0, "the bit that resets stays");
    expect(config::Ports.read(vf.function, COMMAND) & 0xffff == 0, "the command register is not as after reset");
    expect(config::Ports.read(vf.function, BAR0) == bar, "a BAR has moved");
    let msix = config::Ports.read(vf.function, vf.msix) & (pci::MSIX_ENABLE | pci::MSIX_FUNCTION_MASK);
    expect(msix == 0, "MSI-X is not disabled");
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
