//! A function level reset, by the code that brings functions back from guests.

use alloc::format;

use imsvisor::{clock, pci};

use super::{Case, Found, Verdict, only_vector};
use crate::bed::Bed;

pub const CASES: &[Case] = &[
    ("a-function-that-is-reset-forgets-its-work", forgets),
    ("a-function-that-is-reset-is-where-it-was", is_there),
    ("a-function-without-the-capability-is-not-reset", without),
];

const VECTOR: u8 = 0x66;
/// The header's command register, and its BARs.
const COMMAND: u16 = 0x04;
const BARS: [u16; 6] = [0x10, 0x14, 0x18, 0x1c, 0x20, 0x24];

fn forgets(bed: &mut Bed) -> Verdict {
    bed.nvme.start(&bed.ram)?;
    let (config, function) = (bed.machine.config(), bed.nvme.function());
    if !pci::reset::reset(config, function, clock::current()) {
        return Err("it does not come back".into());
    }
    let command = config.read(function.bdf, COMMAND) as u16;
    pci::function::enable(config, function.bdf);
    match (command, bed.nvme.is_started()) {
        (0, false) => Ok(Found::Right),
        found => Err(format!("command register and controller {found:?}")),
    }
}

/// It is found at its old addresses, and works once it is set up again.
fn is_there(bed: &mut Bed) -> Verdict {
    let (config, function) = (bed.machine.config(), bed.nvme.function().clone());
    let before = BARS.map(|at| config.read(function.bdf, at));
    if !pci::reset::reset(config, &function, clock::current()) {
        return Err("it does not come back".into());
    }
    pci::function::enable(config, function.bdf);
    let after = BARS.map(|at| config.read(function.bdf, at));
    if before != after {
        return Err(format!("{before:x?}, then {after:x?}"));
    }
    let (_, seen) = bed.raise_msix(bed.nvme.bdf, VECTOR)?;
    only_vector(&seen, VECTOR)
}

fn without(bed: &mut Bed) -> Verdict {
    let edu = bed.machine.functions().iter().find(|function| function.bdf == bed.edu.bdf).ok_or("no edu")?;
    let before = bed.machine.config().read(edu.bdf, COMMAND);
    let reset = edu.resets() || pci::reset::reset(bed.machine.config(), edu, clock::current());
    let after = bed.machine.config().read(edu.bdf, COMMAND);
    if !reset && before == after { Ok(Found::Right) } else { Err(format!("{reset}: {before:#x}, then {after:#x}")) }
}
