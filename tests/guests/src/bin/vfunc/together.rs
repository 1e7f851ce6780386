//! Two functions of one parent: neither can raise the other's vectors, and one goes on when the other is reset.

use guests::bare::config;
use guests::dsa::spec;
use guests::pci;

use crate::function::{Vf, error, expect};

pub fn all(first: &mut Vf, second: &mut Vf) {
    name_each_others(first, second);
    name_each_others(second, first);
    reset(first, second);
    reset(second, first);
    without_bus_mastering(first, second);
}

fn name_each_others(vf: &mut Vf, other: &mut Vf) {
    for entry in [1, 2, other.vectors - 1] {
        let handle = other.handle(entry);
        vf.submit(3, handle);
        if vf.status(3) == spec::STATUS_INT_HANDLE_INVAL {
            vf.refused += 1;
        } else {
            error("a descriptor that names another function's vector is not refused");
        }
        expect(!other.is_pending(entry), "another function's vector is pending");
    }
    // Masked, so that one that came through would be seen.
    other.set_mask(1, true);
    let handle = other.handle(1);
    vf.submit(3, handle);
    expect(vf.status(3) == spec::STATUS_INT_HANDLE_INVAL, "not refused where it is masked");
    expect(!other.is_pending(1), "another function's masked vector is pending");
    other.set_mask(1, false);
    vf.fire(3..4);
}

fn reset(vf: &mut Vf, other: &mut Vf) {
    // Both have an interrupt that waits.
    for one in [&mut *vf, &mut *other] {
        one.set_mask(4, true);
        one.raise_held(4);
    }
    let before = [3, 4].map(|entry| vf.read(entry));
    let reset = vf.dsa.command(spec::COMMAND_RESET_DEVICE, 0);
    expect(reset.is_ok(), "a reset failed");
    expect([3, 4].map(|entry| vf.read(entry)) == before, "the device's reset changed the function's table");
    expect(!vf.is_pending(4), "what was pending is so after a reset");
    other.fire(5..9);
    expect(other.is_pending(4), "the other function's reset took a pending interrupt away");
    other.expect_from(&[4], |vf| vf.set_mask(4, false));
    // Nothing is taken until it is enabled again, and nothing comes of what waited before the reset.
    vf.set_mask(4, false);
    let handle = vf.handle(5);
    vf.submit(5, handle);
    other.fire(9..10);
    expect(!vf.is_complete(5), "work was taken while the device was disabled");
    expect(vf.restart().is_ok(), "it does not start again");
    vf.fire(1..9);
    expect(vf.take_signals() == 0, "vector 0 came");
}

/// A function that is no bus master sends nothing and does nothing; the other one is not touched.
fn without_bus_mastering(vf: &mut Vf, other: &mut Vf) {
    pci::disable_bus_master(&config::Ports, vf.function);
    let handle = other.handle(1);
    vf.submit(1, handle);
    other.fire(1..5);
    expect(!vf.is_complete(1), "work was taken without bus mastering");
    expect(vf.dsa.command(spec::COMMAND_ENABLE_DEVICE, 0).is_err(), "it starts without bus mastering");
    pci::enable(&config::Ports, vf.function);
    expect(vf.restart().is_ok(), "it does not start again");
    vf.fire(1..5);
}
