//! DMA: a device reaches mapped memory, and nothing else.

use alloc::{format, string::String};

use imsvisor::{
    addr::{Gpa, PAGE_SIZE},
    machine::memory::FRAMES,
    memory::FrameSource,
    vtd::{Error, Request},
};

use super::{Case, Found, Verdict, only_fault};
use crate::bed::{Bed, Seen};
use crate::window::{HOLE, READ_ONLY, SMALL, WINDOW, WINDOW_BYTES};

pub const CASES: &[Case] = &[
    ("dma-of-nobodys-function-is-refused", unattached),
    ("dma-reaches-what-is-mapped", mapped),
    ("dma-write-to-the-hypervisors-memory-is-refused", stray_write),
    ("dma-read-of-the-hypervisors-memory-is-refused", stray_read),
    ("dma-into-a-hole-is-refused", hole),
    ("dma-write-to-a-read-only-page-is-refused", read_only),
    ("dma-of-a-detached-function-is-refused", detached),
    ("dma-of-another-function-works-meanwhile", another),
];

/// Fault reasons: appendix A of the VT-d manual.
const ROOT_NOT_PRESENT: u8 = 0x01;
const CONTEXT_NOT_PRESENT: u8 = 0x02;
/// In scalable mode the PASID entry is what is not present (0x59). QEMU looks at its type first, and finds it wrong (0x5b).
const PASID_NOT_PRESENT: u8 = 0x59;
const PASID_INVALID: u8 = 0x5b;
const WRITE: u8 = 0x05;
const READ: u8 = 0x06;

const BYTES: u64 = 64;
/// Where cases put data into the device's buffer: behind the messages.
const DATA: u64 = 2048;
/// Where cases have data in the window.
const HERE: u64 = 0x2000;
const THERE: u64 = 0x1f_e040;

fn pattern(seed: u8) -> [u8; BYTES as usize] {
    core::array::from_fn(|i| seed.wrapping_mul(31).wrapping_add(i as u8))
}

fn put(bed: &Bed, at: u64, bytes: &[u8]) -> Result<(), String> {
    bed.ram.write(Gpa::new(at), bytes).map_err(|_| "no such memory".into())
}

fn holds(bed: &Bed, at: u64, bytes: &[u8; BYTES as usize]) -> Result<(), String> {
    let mut found = [0; BYTES as usize];
    bed.ram.read(Gpa::new(at), &mut found).map_err(|_| "no such memory")?;
    if found == *bytes { Ok(()) } else { Err(format!("wrong data at {at:#x}")) }
}

fn failed(error: Error) -> String {
    format!("{error:?}")
}

/// A request of a function that is attached to nothing was refused.
fn blocked(bed: &Bed, seen: &Seen, request: Request) -> Verdict {
    let fault = |reason| only_fault(seen, Some(bed.edu.bdf), reason, request);
    if bed.unit.is_scalable() {
        return fault(PASID_NOT_PRESENT).or_else(|_| fault(PASID_INVALID));
    }
    fault(CONTEXT_NOT_PRESENT)
}

/// Both functions are attached to nothing at first: their bus has no context table, then one without an entry for them.
fn unattached(bed: &mut Bed) -> Verdict {
    bed.edu.load(WINDOW, DATA, BYTES)?;
    only_fault(&bed.seen(), Some(bed.edu.bdf), ROOT_NOT_PRESENT, Request::Read(WINDOW))?;
    bed.unit.prepare(bed.edu.bdf).map_err(failed)?;
    bed.edu.load(WINDOW, DATA, BYTES)?;
    blocked(bed, &bed.seen(), Request::Read(WINDOW))
}

fn mapped(bed: &mut Bed) -> Verdict {
    bed.unit.attach(bed.edu.bdf, &mut bed.domain).map_err(failed)?;
    bed.unit.attach(bed.nvme.bdf, &mut bed.domain).map_err(failed)?;
    put(bed, HERE, &pattern(1))?;
    bed.edu.load(WINDOW + HERE, DATA, BYTES)?;
    // Within the large page, and to the small one: addresses are not the memory's own.
    bed.edu.store(DATA, WINDOW + THERE, BYTES)?;
    bed.edu.store(DATA, SMALL + 0x100, BYTES)?;
    holds(bed, THERE, &pattern(1))?;
    holds(bed, WINDOW_BYTES + 0x100, &pattern(1))?;
    let seen = bed.seen();
    if seen.faults.is_empty() { Ok(Found::Right) } else { Err(super::told(&seen)) }
}

/// The device is given the very address of memory that is not its own.
fn stray_write(bed: &mut Bed) -> Verdict {
    let victim = FRAMES.alloc_zeroed(1, PAGE_SIZE).ok_or("no memory")?;
    bed.edu.store(DATA, victim.as_u64(), BYTES)?;
    // SAFETY: the frame is this case's own; the device may write it, which is the question.
    let untouched = (0..PAGE_SIZE).all(|i| unsafe { FRAMES.pointer(victim).add(i as usize).read_volatile() } == 0);
    if !untouched {
        return Err("memory that was not mapped was written".into());
    }
    only_fault(&bed.seen(), Some(bed.edu.bdf), WRITE, Request::Write(victim.as_u64()))
}

fn stray_read(bed: &mut Bed) -> Verdict {
    let secret = FRAMES.alloc_zeroed(1, PAGE_SIZE).ok_or("no memory")?;
    let bytes = pattern(7);
    // SAFETY: the frame is this case's own.
    unsafe { FRAMES.pointer(secret).as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    put(bed, HERE, &pattern(2))?;
    bed.edu.load(WINDOW + HERE, DATA, BYTES)?;
    bed.edu.load(secret.as_u64(), DATA, BYTES)?;
    let seen = bed.seen();
    bed.edu.store(DATA, WINDOW + THERE, BYTES)?;
    if holds(bed, THERE, &pattern(7)).is_ok() {
        return Err("memory that was not mapped was read".into());
    }
    only_fault(&seen, Some(bed.edu.bdf), READ, Request::Read(secret.as_u64()))
}

fn hole(bed: &mut Bed) -> Verdict {
    bed.edu.store(DATA, HOLE + 0x80, BYTES)?;
    only_fault(&bed.seen(), Some(bed.edu.bdf), WRITE, Request::Write(HOLE))
}

/// The write comes first: QEMU records no fault where it remembers a translation that permits less, though it refuses the write.
fn read_only(bed: &mut Bed) -> Verdict {
    let behind = WINDOW_BYTES + PAGE_SIZE;
    put(bed, behind, &pattern(3))?;
    put(bed, HERE, &pattern(4))?;
    bed.edu.load(WINDOW + HERE, DATA, BYTES)?;
    bed.edu.store(DATA, READ_ONLY, BYTES)?;
    let seen = bed.seen();
    bed.edu.load(READ_ONLY, DATA, BYTES)?;
    bed.edu.store(DATA, WINDOW + THERE, BYTES)?;
    holds(bed, THERE, &pattern(3))?;
    bed.edu.load(WINDOW + HERE, DATA, BYTES)?;
    bed.edu.store(DATA, READ_ONLY, BYTES)?;
    holds(bed, behind, &pattern(3))?;
    only_fault(&seen, Some(bed.edu.bdf), WRITE, Request::Write(READ_ONLY))
}

/// The unit has the translation in its caches when the function is detached.
fn detached(bed: &mut Bed) -> Verdict {
    put(bed, THERE, &pattern(5))?;
    bed.edu.load(WINDOW + HERE, DATA, BYTES)?;
    bed.unit.detach(bed.edu.bdf, &mut bed.domain).map_err(failed)?;
    bed.edu.store(DATA, WINDOW + THERE, BYTES)?;
    let seen = bed.seen();
    bed.unit.attach(bed.edu.bdf, &mut bed.domain).map_err(failed)?;
    holds(bed, THERE, &pattern(5))?;
    blocked(bed, &seen, Request::Write(Gpa::new(WINDOW + THERE).page().as_u64()))
}

fn another(bed: &mut Bed) -> Verdict {
    bed.unit.detach(bed.edu.bdf, &mut bed.domain).map_err(failed)?;
    let came = bed.nvme.start(&bed.ram).and_then(|()| bed.nvme.identify(&bed.ram));
    bed.unit.attach(bed.edu.bdf, &mut bed.domain).map_err(failed)?;
    came?;
    let seen = bed.seen();
    if seen.faults.is_empty() { Ok(Found::Right) } else { Err(super::told(&seen)) }
}
