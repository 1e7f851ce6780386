//! The unit is taken over from a former owner who has left everything on, and brought up with 32-bit destinations. The last cases: what
//! belonged to the old unit is of no use afterwards.

use alloc::{format, string::ToString};

use imsvisor::{
    apic::FAULT_VECTOR,
    clock,
    machine::memory::FRAMES,
    vtd::{Config, Error, Remapper, Request, Route, message},
};

use super::{Case, Found, Verdict, only_fault, only_vector, told};
use crate::{bed::Bed, other, raw::REGISTERS, window::WINDOW};

pub const CASES: &[Case] = &[
    ("a-unit-in-use-is-taken-over-with-32-bit-destinations", taken_over),
    ("destinations-of-32-bits-are-reached", wide),
    ("the-new-table-is-the-one-in-use", new_table),
    ("a-domain-of-the-old-unit-is-refused", old_domain),
];

/// More than the table before had.
const ENTRIES: u32 = 512;
/// Behind the old table, not behind the new one; behind both.
const WITHIN: u16 = 300;
const BEHIND: u16 = 600;
const VECTOR: u8 = 0x77;

fn taken_over(bed: &mut Bed) -> Verdict {
    let config =
        Config { entries: ENTRIES, wide_destinations: true, register_bytes: REGISTERS as u64, clock: clock::current() };
    let unit = Remapper::new(bed.raw.registers()?, &FRAMES, config).map_err(|refusal| format!("{refusal}"))?;
    unit.unit().set_fault_event(0xfee0_0000 | u64::from(bed.apic_id & 0xff) << 12, FAULT_VECTOR.into());
    unit.enable_dma_remapping().map_err(|refusal| format!("{refusal}"))?;
    bed.unit = unit;
    let seen = bed.seen();
    if seen.vectors.is_empty() && seen.faults.is_empty() { Ok(Found::Right) } else { Err(told(&seen)) }
}

fn wide(bed: &mut Bed) -> Verdict {
    let index = bed.bind(bed.edu.bdf, VECTOR)?;
    bed.edu.set_msi(message(index));
    bed.edu.interrupt();
    only_vector(&bed.seen(), VECTOR)?;
    let there = Route::Remapped { vector: VECTOR, destination: bed.other };
    bed.unit.program(index, there).map_err(|error| error.to_string())?;
    bed.flush(index)?;
    bed.edu.interrupt();
    let (there, here) = (other::seen(), bed.seen());
    bed.retire(index)?;
    if there == [VECTOR] && here.vectors.is_empty() {
        Ok(Found::Right)
    } else {
        Err(format!("{there:x?}, {}", told(&here)))
    }
}

fn new_table(bed: &mut Bed) -> Verdict {
    for (index, reason) in [(WITHIN, 0x22), (BEHIND, 0x21)] {
        bed.edu.set_msi(message(index));
        bed.edu.interrupt();
        only_fault(&bed.seen(), Some(bed.edu.bdf), reason, Request::Interrupt(index))?;
    }
    Ok(Found::Right)
}

fn old_domain(bed: &mut Bed) -> Verdict {
    match bed.unit.attach(bed.edu.bdf, &mut bed.domain) {
        Err(Error::Domain) => {}
        other => return Err(format!("attached: {other:?}")),
    }
    // The old unit's context tables are not in use any more.
    bed.edu.load(WINDOW, 0, 4)?;
    only_fault(&bed.seen(), Some(bed.edu.bdf), 0x01, Request::Read(WINDOW))
}
