//! What no driver does: nothing of it changes what must not change, and nothing answers where nothing is.

use guests::bare::device::DeviceMemory;
use guests::bare::{config, poke};
use guests::dsa::{Registers, spec};
use guests::pci::{self, ConfigSpace};

use crate::function::{Vf, expect};

/// Registers that only read: capabilities, table offsets, the group's and the work queue's configuration.
const FIXED: [u64; 8] = [0, spec::GENCAP, spec::WQCAP, spec::TABLE_OFFSETS, spec::CMDCAP, 0x400, 0x500, 0x508];
/// Beyond the registers: pending bits, where nothing is, MSI-X permissions.
const BEYOND: [u64; 4] = [0x1000, 0x1ff8, 0x2000, 0x4000];
const WIDTHS: [usize; 4] = [1, 2, 4, 8];

pub fn all(vf: &mut Vf) {
    read_only(vf);
    narrow_writes_to_the_table(vf);
    portals(vf);
    places_stay(vf);
    vf.fire(1..5);
}

fn read_only(vf: &mut Vf) {
    for at in FIXED.into_iter().chain(BEYOND) {
        let before = vf.dsa.registers().read(at);
        for width in WIDTHS {
            // SAFETY: a virtual function's registers, none of which is told a memory address here.
            let fault = unsafe { poke::store(vf.bar0_address + at, width, u64::MAX) };
            expect(fault.is_none(), "a write to a register faulted");
        }
        expect(vf.dsa.registers().read(at) == before, "a register that only reads has changed");
    }
    expect(BEYOND.iter().all(|&at| vf.dsa.registers().read(at) == 0), "something is where nothing is");
    // Half of a command is none.
    let ended = vf.dsa.registers().read(spec::CMDSTS);
    for width in [1, 2] {
        // SAFETY: as above.
        unsafe { poke::store(vf.bar0_address + spec::CMD, width, u64::MAX) };
    }
    expect(vf.dsa.registers().read(spec::CMDSTS) == ended, "half of a command was carried out");
}

/// Bytes land where they are written, and of vector control the mask bit alone is there.
fn narrow_writes_to_the_table(vf: &mut Vf) {
    let entry = 7;
    let [low, high, data, _] = vf.read(entry);
    let at = vf.entry_address(entry);
    vf.set_mask(entry, true);
    // SAFETY: the entry's message, which is masked, and its control.
    unsafe {
        poke::store(at + 8, 1, 0xab);
        poke::store(at + 9, 2, 0xfedc);
        poke::store(at + 13, 2, 0xffff);
        poke::store(at + 6, 4, 0x7777_6666);
    }
    expect(
        vf.read(entry) == [low, 0x6666_0000 | high & 0xffff, 0x00fe_7777, 1],
        "bytes are not where they were written",
    );
    vf.program(entry);
    expect(vf.read(entry) == [low, high, data, 1], "the entry is not as it was");
    vf.set_mask(entry, false);
    vf.fire(entry..entry + 1);
}

/// Of the four portals that a work queue has in BAR 2 there are two: the others are for message stores.
fn portals(vf: &mut Vf) {
    let Some(bar2) = pci::bar(&config::Ports, vf.function, 2) else { return expect(false, "no BAR 2") };
    // SAFETY: the other two portals; what is written is no whole descriptor.
    let Some(mut others) = (unsafe { DeviceMemory::new(bar2 + 2 * spec::PORTAL_SIZE, 2 * spec::PORTAL_SIZE) }) else {
        return expect(false, "BAR 2 is too short");
    };
    others.write(0, 0);
    expect(others.read(0) == u32::MAX && others.read(spec::PORTAL_SIZE) == u32::MAX, "portals for a message store");
}

/// BARs do not move, and MSI-X's size and place cannot be written.
fn places_stay(vf: &mut Vf) {
    let registers = [0x10, 0x14, 0x18, vf.msix + pci::MSIX_TABLE, vf.msix + pci::MSIX_PENDING_BITS];
    let before = registers.map(|at| config::Ports.read(vf.function, at));
    let control = config::Ports.read(vf.function, vf.msix);
    for at in registers {
        config::Ports.write(vf.function, at, 0xd000_0000);
    }
    config::Ports.write(vf.function, vf.msix, control ^ 0x3fff_ffff);
    expect(registers.map(|at| config::Ports.read(vf.function, at)) == before, "a BAR or a table has moved");
    expect(config::Ports.read(vf.function, vf.msix) == control, "the table has another size");
}
