//! A DSA that another process serves to QEMU: its messages come from slots of a real message store, through QEMU's unit.

use alloc::{format, string::String, vec::Vec};

use guests::dsa::Descriptor;
use imsvisor::{
    addr::{Bdf, Gpa, PAGE_SIZE},
    machine::memory::FRAMES,
    memory::FrameSource,
    vtd::{Request, Route, spec::irte::Irte},
};

use super::{Found, Verdict, interrupts as shared, only_fault, only_vector, told};
use crate::{
    bed::Bed,
    dsa::{Dsa, QUEUE},
    other,
    window::{READ_ONLY, SMALL, WINDOW, WINDOW_BYTES},
};

pub type Case = (&'static str, fn(&mut Bed, &mut Dsa) -> Verdict);

/// The first ones attach the function.
pub const CASES: &[Case] = &[
    ("served-dma-of-nobodys-function-is-refused", unattached),
    ("served-dma-reaches-what-is-mapped", mapped),
    ("served-dma-to-the-hypervisors-memory-is-refused", stray),
    ("served-dma-to-a-read-only-page-is-refused", read_only),
    ("served-dma-of-a-detached-function-is-refused", detached),
    ("slot-arrives-at-its-vector", arrives),
    ("slot-to-an-absent-entry-is-refused", absent),
    ("slot-beyond-the-table-is-refused", beyond),
    ("slot-to-reserved-bits-is-refused", reserved),
    ("slot-follows-a-retarget", retarget),
    ("slot-follows-a-retarget-to-another-processor", affinity),
    ("slots-are-retargeted-under-fire", under_fire),
    ("slot-to-a-retired-entry-is-refused", retired),
    ("slot-that-is-masked-holds-its-interrupt", masked),
    ("slot-and-msix-entry-of-one-function-are-apart", coexist),
    ("slot-to-an-entry-of-another-source", source),
    ("slot-in-the-compatibility-format", compatibility),
];

const ONE: u8 = 0x51;
const OTHER: u8 = 0x92;
const SLOT: u16 = 7;
/// Another slot's number, and an MSI-X entry's.
const NUMBER: u16 = 3;
/// Where cases have data in the window.
const HERE: u64 = 0x2000;
const THERE: u64 = 0x1f_e040;
const BYTES: u32 = 64;
const WRITE: u8 = 0x05;
const READ: u8 = 0x06;
const ROOT_NOT_PRESENT: u8 = 0x01;
const CONTEXT_NOT_PRESENT: u8 = 0x02;
const COMPATIBILITY: u8 = 0x25;

fn failed(error: impl core::fmt::Debug) -> String {
    format!("{error:?}")
}

fn right_if(right: bool, otherwise: impl FnOnce() -> String) -> Verdict {
    if right { Ok(Found::Right) } else { Err(otherwise()) }
}

/// The bus has no context table at first, then one without an entry for the function.
fn unattached(bed: &mut Bed, dsa: &mut Dsa) -> Verdict {
    let read = |dsa: &Dsa| dsa.submit_silently(Descriptor::crc(WINDOW, BYTES, 0, 0));
    read(dsa);
    only_fault(&dsa.seen(bed)?, Some(dsa.bdf), ROOT_NOT_PRESENT, Request::Read(WINDOW))?;
    bed.unit.prepare(dsa.bdf).map_err(failed)?;
    read(dsa);
    only_fault(&dsa.seen(bed)?, Some(dsa.bdf), CONTEXT_NOT_PRESENT, Request::Read(WINDOW))
}

fn pattern(seed: u8) -> [u8; BYTES as usize] {
    core::array::from_fn(|i| seed.wrapping_mul(31).wrapping_add(i as u8))
}

fn holds(bed: &Bed, at: u64, bytes: &[u8; BYTES as usize]) -> Result<(), String> {
    let mut found = [0; BYTES as usize];
    bed.ram.read(Gpa::new(at), &mut found).map_err(failed)?;
    if found == *bytes { Ok(()) } else { Err(format!("wrong data at {at:#x}")) }
}

fn copy(bed: &Bed, dsa: &Dsa, from: u64, to: u64) -> Result<(), String> {
    let done = dsa.complete(&bed.ram, Descriptor::memmove(from, to, BYTES, 0, 0))?;
    if done.succeeded() { Ok(()) } else { Err(format!("{from:#x} to {to:#x}: {done:?}")) }
}

fn mapped(bed: &mut Bed, dsa: &mut Dsa) -> Verdict {
    bed.unit.attach(dsa.bdf, &mut bed.domain).map_err(failed)?;
    bed.ram.write(Gpa::new(HERE), &pattern(1)).map_err(failed)?;
    copy(bed, dsa, WINDOW + HERE, WINDOW + THERE)?;
    copy(bed, dsa, WINDOW + HERE, SMALL + 0x100)?;
    holds(bed, THERE, &pattern(1))?;
    holds(bed, WINDOW_BYTES + 0x100, &pattern(1))?;
    let seen = dsa.seen(bed)?;
    right_if(seen.faults.is_empty(), || told(&seen))
}

/// The device is given the very address of memory that is not its own, to read and to write.
fn stray(bed: &mut Bed, dsa: &mut Dsa) -> Verdict {
    let victim = FRAMES.alloc_zeroed(1, PAGE_SIZE).ok_or("no memory")?;
    let read = dsa.complete(&bed.ram, Descriptor::crc(victim.as_u64(), BYTES, 0, 0))?;
    only_fault(&dsa.seen(bed)?, Some(dsa.bdf), READ, Request::Read(victim.as_u64()))?;
    let write = dsa.complete(&bed.ram, Descriptor::fill(!0, victim.as_u64(), BYTES, 0, 0))?;
    only_fault(&dsa.seen(bed)?, Some(dsa.bdf), WRITE, Request::Write(victim.as_u64()))?;
    // SAFETY: the frame is this case's own; the device may write it, which is the question.
    let untouched = (0..PAGE_SIZE).all(|i| unsafe { FRAMES.pointer(victim).add(i as usize).read_volatile() } == 0);
    let told = read.page_fault() && write.page_fault() && write.fault_address == victim.as_u64();
    right_if(untouched && told, || format!("untouched {untouched}: {read:?}, {write:?}"))
}

fn read_only(bed: &mut Bed, dsa: &mut Dsa) -> Verdict {
    bed.ram.write(Gpa::new(WINDOW_BYTES + PAGE_SIZE), &pattern(3)).map_err(failed)?;
    let done = dsa.complete(&bed.ram, Descriptor::fill(!0, READ_ONLY, BYTES, 0, 0))?;
    only_fault(&dsa.seen(bed)?, Some(dsa.bdf), WRITE, Request::Write(READ_ONLY))?;
    copy(bed, dsa, READ_ONLY, WINDOW + THERE)?;
    holds(bed, THERE, &pattern(3))?;
    right_if(done.page_fault(), || format!("{done:?}"))
}

fn detached(bed: &mut Bed, dsa: &mut Dsa) -> Verdict {
    bed.ram.write(Gpa::new(THERE), &pattern(5)).map_err(failed)?;
    copy(bed, dsa, WINDOW + HERE, SMALL)?;
    bed.unit.detach(dsa.bdf, &mut bed.domain).map_err(failed)?;
    dsa.submit_silently(Descriptor::fill(!0, WINDOW + THERE, BYTES, 0, 0));
    let seen = dsa.seen(bed);
    bed.unit.attach(dsa.bdf, &mut bed.domain).map_err(failed)?;
    holds(bed, THERE, &pattern(5))?;
    let page = Gpa::new(WINDOW + THERE).page().as_u64();
    only_fault(&seen?, Some(dsa.bdf), CONTEXT_NOT_PRESENT, Request::Write(page))
}

/// Has the slot raised with the message of entry `index`, and tells what came.
fn raised(bed: &Bed, dsa: &Dsa, index: u16) -> Result<crate::bed::Seen, String> {
    dsa.set_slot(SLOT, index);
    dsa.fire(SLOT);
    Ok(dsa.seen(bed)?)
}

fn arrives(bed: &mut Bed, dsa: &mut Dsa) -> Verdict {
    let index = bed.bind(dsa.bdf, ONE)?;
    let seen = raised(bed, dsa, index)?;
    bed.retire(index)?;
    only_vector(&seen, ONE)
}

// The unit is not told who sends a write, so its records name nobody.

fn absent(bed: &mut Bed, dsa: &mut Dsa) -> Verdict {
    let index = bed.unit.reserve(dsa.bdf).map_err(failed)?;
    let seen = raised(bed, dsa, index)?;
    bed.retire(index)?;
    only_fault(&seen, None, shared::NOT_PRESENT, Request::Interrupt(index))
}

fn beyond(bed: &mut Bed, dsa: &mut Dsa) -> Verdict {
    let seen = raised(bed, dsa, shared::BEHIND)?;
    only_fault(&seen, None, shared::BEYOND, Request::Interrupt(shared::BEHIND))
}

fn reserved(bed: &mut Bed, dsa: &mut Dsa) -> Verdict {
    let index = bed.bind(dsa.bdf, ONE)?;
    let entry = bed.raw.entry(index);
    bed.raw.set_entry(index, Irte(entry.0 | shared::RESERVED_BIT));
    bed.flush(index)?;
    let seen = raised(bed, dsa, index)?;
    bed.raw.set_entry(index, entry);
    bed.retire(index)?;
    only_fault(&seen, None, shared::RESERVED, Request::Interrupt(index))
}

/// The slot stays as it is, the entry changes.
fn retarget(bed: &mut Bed, dsa: &mut Dsa) -> Verdict {
    let index = bed.bind(dsa.bdf, ONE)?;
    let before = raised(bed, dsa, index)?;
    bed.unit.program(index, bed.route(OTHER)).map_err(failed)?;
    bed.flush(index)?;
    dsa.fire(SLOT);
    let after = dsa.seen(bed)?;
    bed.retire(index)?;
    only_vector(&before, ONE)?;
    only_vector(&after, OTHER)
}

fn affinity(bed: &mut Bed, dsa: &mut Dsa) -> Verdict {
    let index = bed.bind(dsa.bdf, ONE)?;
    only_vector(&raised(bed, dsa, index)?, ONE)?;
    bed.unit.program(index, Route::Remapped { vector: OTHER, destination: bed.other }).map_err(failed)?;
    bed.flush(index)?;
    dsa.fire(SLOT);
    let here = dsa.seen(bed)?;
    let there = other::seen();
    bed.retire(index)?;
    let right = there == [OTHER] && here.vectors.is_empty() && here.faults.is_empty();
    right_if(right, || format!("there {there:x?}, here {}", told(&here)))
}

/// As many slots as the queue holds descriptors fire while their entries move: each interrupt comes once, at its old vector or at its new
/// one, and from then on at the new one only.
fn under_fire(bed: &mut Bed, dsa: &mut Dsa) -> Verdict {
    let slots = 0..QUEUE - 1;
    let (old, new) = (|slot: u16| 0x40 + slot as u8, |slot: u16| 0x80 + slot as u8);
    let bound: Result<Vec<u16>, _> = slots.clone().map(|slot| bed.bind(dsa.bdf, old(slot))).collect();
    let bound = bound?;
    for (slot, &index) in (0..).zip(&bound) {
        dsa.set_slot(slot, index);
    }
    for (slot, &index) in (0..).zip(&bound) {
        dsa.fire(slot);
        // The one that moves fires about now.
        bed.unit.program(index, bed.route(new(slot))).map_err(failed)?;
        bed.flush(index)?;
    }
    let moving = dsa.seen(bed)?;
    slots.clone().for_each(|slot| dsa.fire(slot));
    let moved = dsa.seen(bed)?;
    bound.iter().try_for_each(|&index| bed.retire(index))?;
    let times = |vectors: &[u8], vector: u8| vectors.iter().filter(|other| **other == vector).count();
    let once = |slot: u16| times(&moving.vectors, old(slot)) + times(&moving.vectors, new(slot)) == 1;
    let at_new = |slot: u16| times(&moved.vectors, new(slot)) == 1;
    let none_besides = moving.vectors.len() == slots.len() && moved.vectors.len() == slots.len();
    let right = slots.clone().all(once) && slots.clone().all(at_new) && none_besides;
    let quiet = moving.faults.is_empty() && moved.faults.is_empty();
    right_if(right && quiet, || format!("while they moved {}, then {}", told(&moving), told(&moved)))
}

fn retired(bed: &mut Bed, dsa: &mut Dsa) -> Verdict {
    let index = bed.bind(dsa.bdf, ONE)?;
    only_vector(&raised(bed, dsa, index)?, ONE)?;
    bed.retire(index)?;
    dsa.fire(SLOT);
    only_fault(&dsa.seen(bed)?, None, shared::NOT_PRESENT, Request::Interrupt(index))
}

fn masked(bed: &mut Bed, dsa: &mut Dsa) -> Verdict {
    let index = bed.bind(dsa.bdf, ONE)?;
    only_vector(&raised(bed, dsa, index)?, ONE)?;
    dsa.mask(SLOT, true);
    // Two that wait are one.
    dsa.fire(SLOT);
    dsa.fire(SLOT);
    let held = dsa.seen(bed)?;
    let pending = dsa.pending(SLOT);
    dsa.mask(SLOT, false);
    let released = dsa.seen(bed)?;
    let left = dsa.pending(SLOT);
    bed.retire(index)?;
    only_vector(&released, ONE)?;
    let right = held.vectors.is_empty() && held.faults.is_empty() && pending && !left;
    right_if(right, || format!("held {}, pending {pending}, later {left}", told(&held)))
}

/// Slot and entry have one number.
fn coexist(bed: &mut Bed, dsa: &mut Dsa) -> Verdict {
    let (slot, entry) = (bed.bind(dsa.bdf, ONE)?, bed.bind(dsa.bdf, OTHER)?);
    dsa.set_slot(NUMBER, slot);
    dsa.set_msix(NUMBER, entry);
    dsa.fire(NUMBER);
    let by_slot = dsa.seen(bed)?;
    dsa.fire_msix(NUMBER);
    let by_entry = dsa.seen(bed)?;
    bed.retire(slot)?;
    bed.retire(entry)?;
    only_vector(&by_slot, ONE)?;
    only_vector(&by_entry, OTHER)
}

fn source(bed: &mut Bed, dsa: &mut Dsa) -> Verdict {
    const STRANGER: Bdf = Bdf::new(0, 9, 1);
    let index = bed.bind(STRANGER, ONE)?;
    let seen = raised(bed, dsa, index)?;
    bed.retire(index)?;
    if only_vector(&seen, ONE).is_ok() {
        return Ok(Found::Unchecked("delivered: QEMU does not know who sends a write"));
    }
    only_fault(&seen, Some(dsa.bdf), shared::SOURCE, Request::Interrupt(index))
}

fn compatibility(bed: &mut Bed, dsa: &mut Dsa) -> Verdict {
    dsa.write_slot(SLOT, (0xfee0_0000 | u64::from(bed.apic_id & 0xff) << 12, ONE.into()));
    dsa.fire(SLOT);
    let seen = dsa.seen(bed)?;
    if only_vector(&seen, ONE).is_ok() {
        return Ok(Found::Unchecked("delivered: QEMU lets the compatibility format pass although GSTS.CFIS is 0"));
    }
    only_fault(&seen, None, COMPATIBILITY, Request::Interrupt(0))
}
