//! The fast path of nearly every exit: 64-bit code stores a register or a constant, by an instruction that was decoded before, to a trapped
//! page where the processor has just faulted.
//!
//! If this path does not take an exit, it leaves everything unchanged for the full emulation. So each of its checks may be conservative. It
//! checks the same conditions as the full emulation; a check that is missing here follows from another one.
#![forbid(unsafe_code)]

use super::port::{Fault, Machine, Region};
use crate::{
    addr::{Gpa, PAGE_SIZE},
    exits::{
        instruction::{Address, Decoded, Mode, Operation, Segment, Source},
        walk::{Access, walk_quickly},
        width::Width,
    },
};

/// Carries out the store if this path supports it, and returns the instruction's length.
#[inline(always)]
pub fn store_known<M: Machine>(machine: &mut M, fault: Fault) -> Option<u8> {
    if !fault.write || machine.mode() != Mode::Bits64 || machine.is_watching() {
        return None;
    }
    let rip = machine.rip();
    let code = code_address(machine, rip)?;
    let decoded = known_instruction(machine, rip, code)?;
    let Operation::Store { ref to, width, value, swap: false } = decoded.operation else { return None };
    let gpa = destination(machine, fault, to, width)?;
    let value = match value {
        Source::Register(register) if register.high => return None,
        Source::Register(register) => machine.general(register.number) & width.mask(),
        Source::Immediate(value) => value & width.mask(),
    };
    let length = decoded.length;
    machine.mmio_write(gpa, width, value);
    Some(length)
}

/// The cached instruction at `rip`, which has the address `gpa`, if its bytes, which are read anew, are the same as before.
#[inline(always)]
fn known_instruction<M: Machine>(machine: &M, rip: u64, gpa: Gpa) -> Option<&Decoded> {
    let low = machine.read_u64(gpa).ok()?;
    let high = machine.read_u64(Gpa::new(gpa.as_u64() + 8)).ok()?;
    machine.decode_cache().find(rip, Mode::Bits64, [low, high & (u64::MAX >> 8)])
}

/// The address of the code at `rip`, through the guest's present page tables.
#[inline(always)]
fn code_address<M: Machine>(machine: &mut M, rip: u64) -> Option<Gpa> {
    // Bytes that are not the instruction's do no harm, but they have to be there.
    if rip % PAGE_SIZE > PAGE_SIZE - 16 || ((rip << 16) as i64 >> 16) as u64 != rip {
        return None;
    }
    let paging = machine.code_paging();
    match machine.decode_cache().walked(rip).and_then(|walked| walked.again(machine, &paging, rip)) {
        None => walk_anew(machine, rip),
        found => found,
    }
}

#[cold]
#[inline(never)]
fn walk_anew<M: Machine>(machine: &mut M, rip: u64) -> Option<Gpa> {
    let walked = walk_quickly(machine, &machine.code_paging(), rip, Access::Execute)?;
    machine.decode_cache_mut().keep_walked(rip, walked);
    Some(walked.gpa(rip))
}

/// The address of a store that begins at the faulting address, if it stays in that page. The processor has translated the address, and
/// checked that it may be written. An address that it translates is canonical, and segments other than FS and GS have no effect (SDM volume
/// 1, 3.4.2.1).
#[inline(always)]
fn destination<M: Machine>(machine: &M, fault: Fault, to: &Address, width: Width) -> Option<Gpa> {
    let offset = to.offset(|number| machine.general(number));
    let same = offset == fault.gva.as_u64() && fault.gva.page_offset() == fault.gpa.page_offset();
    let within = fault.gpa.page_offset() + width.bytes() as u64 <= PAGE_SIZE;
    let flat = !matches!(to.segment, Segment::Fs | Segment::Gs);
    (same && within && flat && machine.region(fault.gpa) == Region::Mmio).then_some(fault.gpa)
}
