//! Interrupts: by a device's own write (as from an interrupt message store), by MSI, by MSI-X.

use alloc::{format, string::String, vec::Vec};

use imsvisor::{
    addr::{Bdf, Gpa, Hpa, PAGE_SIZE},
    vtd::{Error, Request, Route, message, spec::irte::Irte},
};

use super::{Case, Found, Verdict, only_fault, only_vector};
use crate::{bed::Bed, nvme::IO_VECTOR, other, window::WINDOW};

pub const CASES: &[Case] = &[
    ("store-message-arrives-at-its-vector", store),
    ("store-message-to-an-absent-entry-is-refused", store_absent),
    ("store-message-beyond-the-table-is-refused", store_beyond),
    ("store-message-to-reserved-bits-is-refused", store_reserved),
    ("store-message-follows-a-retarget", store_retarget),
    ("store-message-from-another-source", store_source),
    ("msi-arrives-at-its-vector", msi),
    ("msi-to-an-absent-entry-is-refused", msi_absent),
    ("msi-beyond-the-table-is-refused", msi_beyond),
    ("msi-to-reserved-bits-is-refused", msi_reserved),
    ("msi-from-another-source-is-refused", msi_source),
    ("msi-follows-a-retarget", msi_retarget),
    ("msi-follows-a-retarget-to-another-processor", msi_affinity),
    ("msi-to-a-retired-entry-is-refused", msi_retired),
    ("each-index-leads-to-its-own-vector", indexes),
    ("msix-arrives-at-its-vector", msix),
    ("msix-of-two-queues-arrives-at-two-vectors", msix_two),
    ("msix-from-another-source-is-refused", msix_source),
    ("msix-follows-a-retarget", msix_retarget),
    ("a-posting-entry-is-not-made-where-the-unit-cannot-post", posting),
    ("a-message-in-the-compatibility-format", compatibility),
    ("an-entry-that-was-not-flushed", unflushed),
];

/// Fault reasons: appendix A of the VT-d manual.
pub(super) const BEYOND: u8 = 0x21;
pub(super) const NOT_PRESENT: u8 = 0x22;
pub(super) const RESERVED: u8 = 0x24;
pub(super) const SOURCE: u8 = 0x26;

const ONE: u8 = 0x51;
const OTHER: u8 = 0x92;

/// An index behind the table's 256 entries.
pub(super) const BEHIND: u16 = 300;
/// A bit that no entry may have: 12 of a remapped one.
pub(super) const RESERVED_BIT: u128 = 1 << 12;
/// Another function than the one that sends.
const STRANGER: Bdf = Bdf::new(0, 9, 1);

/// How many entries are tried in a row.
const INDEXES: u16 = 128;

fn failed(error: impl core::fmt::Debug) -> String {
    format!("{error:?}")
}

/// Has the DMA engine write the message of entry `index`.
fn send(bed: &Bed, index: u16) -> Result<(), String> {
    let (address, data) = message(index);
    write(bed, address, data)
}

fn write(bed: &Bed, address: u64, data: u32) -> Result<(), String> {
    bed.ram.write(Gpa::new(0), &data.to_le_bytes()).map_err(failed)?;
    bed.edu.load(WINDOW, 0, 4)?;
    Ok(bed.edu.store(0, address, 4)?)
}

/// Has MSI send the message of entry `index`.
fn send_msi(bed: &Bed, index: u16) -> Result<(), String> {
    bed.edu.set_msi(message(index));
    bed.edu.interrupt();
    Ok(())
}

type Send = fn(&Bed, u16) -> Result<(), String>;

fn arrives(bed: &Bed, source: Bdf, send: Send) -> Verdict {
    let index = bed.bind(source, ONE)?;
    send(bed, index)?;
    let seen = bed.seen();
    bed.retire(index)?;
    only_vector(&seen, ONE)
}

fn absent(bed: &Bed, source: Option<Bdf>, send: Send) -> Verdict {
    let index = bed.unit.reserve(bed.edu.bdf).map_err(failed)?;
    send(bed, index)?;
    let seen = bed.seen();
    bed.retire(index)?;
    only_fault(&seen, source, NOT_PRESENT, Request::Interrupt(index))
}

fn beyond(bed: &Bed, source: Option<Bdf>, send: Send) -> Verdict {
    send(bed, BEHIND)?;
    only_fault(&bed.seen(), source, BEYOND, Request::Interrupt(BEHIND))
}

fn reserved(bed: &Bed, source: Option<Bdf>, send: Send) -> Verdict {
    let index = bed.bind(bed.edu.bdf, ONE)?;
    let entry = bed.raw.entry(index);
    bed.raw.set_entry(index, Irte(entry.0 | RESERVED_BIT));
    bed.flush(index)?;
    send(bed, index)?;
    let seen = bed.seen();
    bed.raw.set_entry(index, entry);
    bed.retire(index)?;
    only_fault(&seen, source, RESERVED, Request::Interrupt(index))
}

/// The message stays the same, the entry changes: a device that is not told of it follows.
fn retarget(bed: &Bed, source: Bdf, send: Send) -> Verdict {
    let index = bed.bind(source, ONE)?;
    send(bed, index)?;
    let before = bed.seen();
    bed.unit.program(index, bed.route(OTHER)).map_err(failed)?;
    bed.flush(index)?;
    send(bed, index)?;
    let after = bed.seen();
    bed.retire(index)?;
    only_vector(&before, ONE)?;
    only_vector(&after, OTHER)
}

fn store(bed: &mut Bed) -> Verdict {
    arrives(bed, bed.edu.bdf, send)
}

// The unit is not told who sends a write, so its records name nobody.

fn store_absent(bed: &mut Bed) -> Verdict {
    absent(bed, None, send)
}

fn store_beyond(bed: &mut Bed) -> Verdict {
    beyond(bed, None, send)
}

fn store_reserved(bed: &mut Bed) -> Verdict {
    reserved(bed, None, send)
}

fn store_retarget(bed: &mut Bed) -> Verdict {
    retarget(bed, bed.edu.bdf, send)
}

fn store_source(bed: &mut Bed) -> Verdict {
    let index = bed.bind(STRANGER, ONE)?;
    send(bed, index)?;
    let seen = bed.seen();
    bed.retire(index)?;
    if only_vector(&seen, ONE).is_ok() {
        return Ok(Found::Unchecked("delivered: QEMU does not know who sends a write"));
    }
    only_fault(&seen, Some(bed.edu.bdf), SOURCE, Request::Interrupt(index))
}

fn msi(bed: &mut Bed) -> Verdict {
    arrives(bed, bed.edu.bdf, send_msi)
}

fn msi_absent(bed: &mut Bed) -> Verdict {
    absent(bed, Some(bed.edu.bdf), send_msi)
}

fn msi_beyond(bed: &mut Bed) -> Verdict {
    beyond(bed, Some(bed.edu.bdf), send_msi)
}

fn msi_reserved(bed: &mut Bed) -> Verdict {
    reserved(bed, Some(bed.edu.bdf), send_msi)
}

fn msi_source(bed: &mut Bed) -> Verdict {
    let index = bed.bind(STRANGER, ONE)?;
    send_msi(bed, index)?;
    let seen = bed.seen();
    bed.retire(index)?;
    only_fault(&seen, Some(bed.edu.bdf), SOURCE, Request::Interrupt(index))
}

fn msi_retarget(bed: &mut Bed) -> Verdict {
    retarget(bed, bed.edu.bdf, send_msi)
}

fn msi_affinity(bed: &mut Bed) -> Verdict {
    let index = bed.bind(bed.edu.bdf, ONE)?;
    send_msi(bed, index)?;
    only_vector(&bed.seen(), ONE)?;
    bed.unit.program(index, Route::Remapped { vector: OTHER, destination: bed.other }).map_err(failed)?;
    bed.flush(index)?;
    bed.edu.interrupt();
    let (there, here) = (other::seen(), bed.seen());
    bed.retire(index)?;
    let right = there == [OTHER] && here.vectors.is_empty() && here.faults.is_empty();
    if right { Ok(Found::Right) } else { Err(format!("there {there:x?}, here {}", super::told(&here))) }
}

fn msi_retired(bed: &mut Bed) -> Verdict {
    let index = bed.bind(bed.edu.bdf, ONE)?;
    send_msi(bed, index)?;
    only_vector(&bed.seen(), ONE)?;
    bed.retire(index)?;
    send_msi(bed, index)?;
    only_fault(&bed.seen(), Some(bed.edu.bdf), NOT_PRESENT, Request::Interrupt(index))
}

fn indexes(bed: &mut Bed) -> Verdict {
    let vector = |i: u16| 0x40 + i as u8;
    let bound: Result<Vec<u16>, _> = (0..INDEXES).map(|i| bed.bind(bed.edu.bdf, vector(i))).collect();
    let bound = bound?;
    for (i, &index) in (0..).zip(&bound) {
        send_msi(bed, index)?;
        only_vector(&bed.seen(), vector(i))?;
    }
    retire_all(bed, &bound)?;
    for &index in &bound {
        send_msi(bed, index)?;
        only_fault(&bed.seen(), Some(bed.edu.bdf), NOT_PRESENT, Request::Interrupt(index))?;
    }
    Ok(Found::Right)
}

/// With one flush, whose descriptors name blocks of entries.
fn retire_all(bed: &Bed, indexes: &[u16]) -> Result<(), String> {
    indexes.iter().try_for_each(|&index| bed.unit.clear(index)).map_err(failed)?;
    let before = bed.unit.statistics();
    bed.unit.flush_entries(indexes.iter().copied()).map_err(failed)?;
    let after = bed.unit.statistics();
    if after.waits != before.waits + 1 || after.flushes >= before.flushes + indexes.len() as u64 {
        return Err(format!("{before:?}, then {after:?}"));
    }
    indexes.iter().try_for_each(|&index| bed.unit.release(index)).map_err(failed)
}

fn msix(bed: &mut Bed) -> Verdict {
    let (_, seen) = bed.raise_msix(bed.nvme.bdf, ONE)?;
    only_vector(&seen, ONE)
}

fn msix_two(bed: &mut Bed) -> Verdict {
    let admin = bed.bind(bed.nvme.bdf, ONE)?;
    let io = bed.bind(bed.nvme.bdf, OTHER)?;
    bed.nvme.set_message(0, message(admin));
    bed.nvme.set_message(IO_VECTOR, message(io));
    bed.nvme.start(&bed.ram)?;
    bed.nvme.make_io_queues(&bed.ram)?;
    only_vector(&bed.seen(), ONE)?;
    bed.nvme.io(&bed.ram)?;
    let seen = bed.seen();
    bed.nvme.stop()?;
    bed.retire(admin)?;
    bed.retire(io)?;
    only_vector(&seen, OTHER)
}

/// The right message in the wrong function's table: the entry is `edu`'s.
fn msix_source(bed: &mut Bed) -> Verdict {
    let (index, seen) = bed.raise_msix(bed.edu.bdf, ONE)?;
    only_fault(&seen, Some(bed.nvme.bdf), SOURCE, Request::Interrupt(index))
}

fn msix_retarget(bed: &mut Bed) -> Verdict {
    let index = bed.bind(bed.nvme.bdf, ONE)?;
    bed.nvme.set_message(0, message(index));
    bed.nvme.start(&bed.ram)?;
    bed.nvme.identify(&bed.ram)?;
    let before = bed.seen();
    bed.unit.program(index, bed.route(OTHER)).map_err(failed)?;
    bed.flush(index)?;
    bed.nvme.identify(&bed.ram)?;
    let after = bed.seen();
    bed.nvme.stop()?;
    bed.retire(index)?;
    only_vector(&before, ONE)?;
    only_vector(&after, OTHER)
}

/// QEMU's unit has CAP.PI = 0, and would take such an entry for one that leads to a vector.
fn posting(bed: &mut Bed) -> Verdict {
    let route = Route::Posted { descriptor: Hpa::new(PAGE_SIZE), vector: ONE };
    match (bed.unit.unit().capabilities().posts(), bed.unit.bind(bed.edu.bdf, route)) {
        (false, Err(Error::NoPosting)) => Ok(Found::Right),
        (true, _) => Err("this unit posts: it needs cases of its own".into()),
        (false, result) => Err(format!("{result:?}")),
    }
}

/// Section 5.1.4: with CFI off such a message is to be refused (fault 0x25).
fn compatibility(bed: &mut Bed) -> Verdict {
    const REFUSED: u8 = 0x25;
    write(bed, 0xfee0_0000 | u64::from(bed.apic_id & 0xff) << 12, ONE.into())?;
    let seen = bed.seen();
    if only_vector(&seen, ONE).is_ok() {
        return Ok(Found::Unchecked("delivered: QEMU lets the compatibility format pass although GSTS.CFIS is 0"));
    }
    only_fault(&seen, None, REFUSED, Request::Interrupt(0))
}

/// A unit may remember an entry until it is flushed; one that has no cache cannot show that a flush was forgotten.
fn unflushed(bed: &mut Bed) -> Verdict {
    let index = bed.bind(bed.edu.bdf, ONE)?;
    send_msi(bed, index)?;
    only_vector(&bed.seen(), ONE)?;
    bed.unit.program(index, bed.route(OTHER)).map_err(failed)?;
    send_msi(bed, index)?;
    let seen = bed.seen();
    bed.retire(index)?;
    if only_vector(&seen, OTHER).is_ok() {
        return Ok(Found::Unchecked("the new entry was used at once: QEMU has no interrupt entry cache"));
    }
    only_vector(&seen, ONE)
}
