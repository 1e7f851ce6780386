//! Emulates a guest's instruction that accessed a trapped page.
//!
//! An EPT violation tells the address, and whether the access was a write; only the instruction tells the written value. Its bytes, and the
//! page tables that lead to them, may change between the exit and the emulation, so nothing here trusts them. An instruction that does not
//! access the faulting address in the faulting way runs again in the guest ([`Emulated::Again`]); the caller limits how often. An
//! instruction that cannot be emulated ([`super::decode`] has the list) is #UD in the guest, and so is a read-modify-write that reaches
//! beyond one trapped page, which could not be atomic. Reads and writes happen in one step, with LOCK or without.
//!
//! The whole access is translated and checked before its first byte has an effect. If it crosses a page, each part goes to the address that
//! its own translation gives.
#![forbid(unsafe_code)]

mod access;
mod modify;
pub mod pieces;
mod port;
mod quick;
mod vector;

pub use port::{Emulated, Exception, Fault, Machine, Region, SegmentState};
pub use quick::store_known;

use self::access::Span;
use super::{
    decode,
    instruction::{
        Address, Decoded, MAX_LENGTH, Mode, Operation, Register, Segment, Source, StringKind, StringOperation,
    },
    walk::{Access, OutsideMemory, Paging, WalkError, walk},
    width::Width,
};
use crate::{
    addr::{Gpa, Gva, PAGE_SIZE},
    cpu::bits::rflags,
};

/// Elements of a repeated string instruction per exit. The limit bounds the delay of interrupts.
pub const MAX_ELEMENTS: u32 = 64;

const RAX: u8 = 0;
const RCX: u8 = 1;
const RDX: u8 = 2;
const RSI: u8 = 6;
const RDI: u8 = 7;

const SS: u8 = 12;
const GP: u8 = 13;
const PF: u8 = 14;

/// Why an emulation ends early.
#[derive(PartialEq, Eq)]
enum Stop {
    Emulated(Emulated),
    Outside(OutsideMemory),
}

impl From<OutsideMemory> for Stop {
    fn from(outside: OutsideMemory) -> Self {
        Self::Outside(outside)
    }
}

impl Stop {
    const AGAIN: Self = Self::Emulated(Emulated::Again);
    const UNSUPPORTED: Self = Self::Emulated(Emulated::Inject(Exception::INVALID_OPCODE));

    /// #SS for the stack's segment, #GP for the others.
    const fn segment_violation(segment: Segment) -> Self {
        let vector = if matches!(segment, Segment::Ss) { SS } else { GP };
        Self::Emulated(Emulated::Inject(Exception { vector, error_code: Some(0), cr2: None }))
    }

    const fn walk(error: WalkError, linear: u64) -> Self {
        match error {
            WalkError::PageFault(code) => {
                Self::Emulated(Emulated::Inject(Exception { vector: PF, error_code: Some(code), cr2: Some(linear) }))
            }
            WalkError::Outside(outside) => Self::Outside(outside),
            WalkError::Changed => Self::AGAIN,
        }
    }
}

/// Emulates the instruction at RIP, which caused this fault. The caller advances RIP. The caller has tried [`store_known`] before.
///
/// # Errors
/// The instruction, its paging structures or its other operand lie outside the guest's memory; only what was complete before
/// (elements of a string) took effect.
pub fn emulate<M: Machine>(machine: &mut M, fault: Fault) -> Result<Emulated, OutsideMemory> {
    let (mode, paging) = (machine.mode(), machine.paging());
    let mut emulation = Emulation { machine, fault, mode, paging };
    let result = emulation.fetch().and_then(|decoded| emulation.execute(decoded));
    match result {
        Ok(emulated) | Err(Stop::Emulated(emulated)) => Ok(emulated),
        Err(Stop::Outside(outside)) => Err(outside),
    }
}

struct Emulation<'a, M> {
    machine: &'a mut M,
    fault: Fault,
    mode: Mode,
    paging: Paging,
}

impl<M: Machine> Emulation<'_, M> {
    /// Reads and decodes the instruction. It accesses the page after RIP's only if the instruction reaches that page.
    fn fetch(&mut self) -> Result<Decoded, Stop> {
        let rip = self.machine.rip();
        let base = if self.mode == Mode::Bits64 { 0 } else { self.machine.segment(Segment::Cs).base };
        let linear = self.linear_of(base.wrapping_add(rip));
        if linear % PAGE_SIZE <= PAGE_SIZE - 16 {
            return self.fetch_within_page(rip, linear);
        }
        let mut bytes = [0; MAX_LENGTH];
        let here = MAX_LENGTH.min((PAGE_SIZE - linear % PAGE_SIZE) as usize);
        let (first, rest) = bytes.split_at_mut(here);
        self.fetch_part(linear, first)?;
        if let Ok(decoded) = decode::decode(first, rip, self.mode) {
            return Ok(decoded);
        }
        self.fetch_part(self.linear_of(linear.wrapping_add(here as u64)), rest)?;
        decode::decode(&bytes, rip, self.mode).map_err(|decode::Truncated| Stop::UNSUPPORTED)
    }

    /// The same for an instruction that ends in its first page, with the decode cache.
    fn fetch_within_page(&mut self, rip: u64, linear: u64) -> Result<Decoded, Stop> {
        let gpa = self.translate_code(linear)?;
        let high = Gpa::new(gpa.as_u64() + 8);
        let words = [self.machine.read_u64(gpa)?, self.machine.read_u64(high)? & (u64::MAX >> 8)];
        if let Some(decoded) = self.machine.decode_cache().find(rip, self.mode, words) {
            return Ok(*decoded);
        }
        let mut bytes = [0; MAX_LENGTH];
        let all = words.into_iter().flat_map(u64::to_le_bytes);
        bytes.iter_mut().zip(all).for_each(|(place, byte)| *place = byte);
        let decoded = decode::decode(&bytes, rip, self.mode).map_err(|decode::Truncated| Stop::UNSUPPORTED)?;
        self.machine.decode_cache_mut().keep(rip, self.mode, words, decoded);
        Ok(decoded)
    }

    fn translate_code(&mut self, linear: u64) -> Result<Gpa, Stop> {
        if !self.is_canonical(linear) {
            return Err(Stop::segment_violation(Segment::Cs));
        }
        walk(self.machine, &self.paging, Gva::new(linear), Access::Execute).map_err(|error| Stop::walk(error, linear))
    }

    fn fetch_part(&mut self, linear: u64, bytes: &mut [u8]) -> Result<(), Stop> {
        let gpa = self.translate_code(linear)?;
        Ok(self.machine.read(gpa, bytes)?)
    }

    fn execute(&mut self, decoded: Decoded) -> Result<Emulated, Stop> {
        match decoded.operation {
            Operation::Store { to, width, value, swap } => {
                let span = self.faulting_span(to, width.bytes() as u64, Access::Write)?;
                let value = self.source(value);
                self.store(&span, swapped(value, width, swap))?;
            }
            Operation::Load { to, from, width, signed, swap } => {
                let span = self.faulting_span(from, width.bytes() as u64, Access::Read)?;
                let value = swapped(self.load(&span)?, width, swap);
                self.set_register(to, if signed { width.sign_extend(value) } else { value });
            }
            Operation::Exchange { at, with } => self.exchange(at, with)?,
            Operation::ExchangeAdd { at, with } => self.exchange_add(at, with)?,
            Operation::CompareExchange { at, with } => self.compare_exchange(at, with)?,
            Operation::CompareExchangePair { at, half } => self.compare_exchange_pair(at, half)?,
            Operation::Bit { at, width, kind, bit } => self.bit(at, width, kind, bit)?,
            Operation::Modify { at, width, alu, value } => self.modify(at, width, alu, value)?,
            Operation::VectorStore { to, from } => self.vector_store(to, from)?,
            Operation::VectorLoad { to, from, rest } => self.vector_load(to, from, rest)?,
            Operation::Block { to, from } => self.block(to, from)?,
            Operation::Flush(at) => {
                self.faulting_span(at, 1, Access::Read)?;
            }
            Operation::Combine { to, alu, from } => {
                let span = self.faulting_span(from, to.width.bytes() as u64, Access::Read)?;
                let memory = self.load(&span)?;
                let (result, rflags) = alu.apply(to.width, self.register(to), memory, self.machine.rflags());
                if alu.writes() {
                    self.set_register(to, result);
                }
                self.machine.set_rflags(rflags);
            }
            Operation::String(string) => return self.string(string, decoded.length),
            Operation::NoAccess => return Ok(Emulated::Again),
            Operation::Unsupported => return Err(Stop::UNSUPPORTED),
        }
        Ok(Emulated::Advance(decoded.length))
    }

    /// Emulates up to [`MAX_ELEMENTS`] elements while they stay in the faulting page and no trap is due. The registers always hold the
    /// progress, as after an interrupt between two elements.
    fn string(&mut self, string: StringOperation, length: u8) -> Result<Emulated, Stop> {
        for done in 0..MAX_ELEMENTS {
            let left = self.machine.general(RCX) & string.address.mask();
            if string.rep && left == 0 {
                return Ok(Emulated::Advance(length));
            }
            match self.element(&string, done == 0) {
                // The next one runs into its own fault.
                Err(Stop::AGAIN) if done != 0 => return Ok(Emulated::Part),
                result => result?,
            }
            if !string.rep {
                return Ok(Emulated::Advance(length));
            }
            self.set_register(index_register(RCX, &string), left - 1);
            if left == 1 {
                return Ok(Emulated::Advance(length));
            }
            if self.machine.is_traced() {
                return Ok(Emulated::Part);
            }
        }
        Ok(Emulated::Part)
    }

    /// Emulates one element. The first element must be the faulting access; a later element outside of that page faults by itself.
    fn element(&mut self, string: &StringOperation, first: bool) -> Result<(), Stop> {
        let bytes = string.width.bytes() as u64;
        let (reads, writes) = (string.kind != StringKind::Stos, string.kind != StringKind::Lods);
        let (source, destination) = (self.index(RSI, string), self.index(RDI, string));
        let linear = |wanted: bool, segment, offset, access| {
            wanted.then(|| self.linear(segment, offset, bytes, access)).transpose()
        };
        let from = linear(reads, string.segment, source, Access::Read)?;
        let to = linear(writes, Segment::Es, destination, Access::Write)?;
        let trapped = if self.fault.write { to } else { from }.ok_or(Stop::AGAIN)?;
        if !(if first { self.is_fault(trapped, bytes) } else { self.is_in_fault_page(trapped, bytes) }) {
            return Err(Stop::AGAIN);
        }
        let from = from.map(|linear| self.span(linear, bytes, Access::Read)).transpose()?;
        let to = to.map(|linear| self.span(linear, bytes, Access::Write)).transpose()?;
        let value = match from {
            Some(from) => self.load(&from)?,
            None => self.machine.general(RAX) & string.width.mask(),
        };
        match to {
            Some(to) => self.store(&to, value)?,
            None => self.set_register(Register { number: RAX, width: string.width, high: false }, value),
        }
        let down = self.machine.rflags() & rflags::DF != 0;
        let step = if down { bytes.wrapping_neg() } else { bytes };
        if reads {
            self.set_register(index_register(RSI, string), source.wrapping_add(step));
        }
        if writes {
            self.set_register(index_register(RDI, string), destination.wrapping_add(step));
        }
        Ok(())
    }

    fn index(&self, number: u8, string: &StringOperation) -> u64 {
        self.machine.general(number) & string.address.mask()
    }

    /// The span of an operand, which must be the faulting one.
    fn faulting_span(&mut self, at: Address, bytes: u64, access: Access) -> Result<Span, Stop> {
        let linear = self.operand(at, bytes, access)?;
        if self.fault.write != (access == Access::Write) || !self.is_fault(linear, bytes) {
            return Err(Stop::AGAIN);
        }
        self.span(linear, bytes, access)
    }

    /// The span of an operand that is read and written, in one trapped page only. The processor may have reported its read.
    fn modified_span(&mut self, at: Address, bytes: u64) -> Result<Span, Stop> {
        let linear = self.operand(at, bytes, Access::Write)?;
        if !self.is_fault(linear, bytes) {
            return Err(Stop::AGAIN);
        }
        let span = self.span(linear, bytes, Access::Write)?;
        if span.trapped().is_none() {
            return Err(Stop::UNSUPPORTED);
        }
        Ok(span)
    }

    /// The linear address of an operand.
    fn operand(&self, at: Address, bytes: u64, access: Access) -> Result<u64, Stop> {
        let offset = at.offset(|number| self.machine.general(number));
        self.linear(at.segment, offset, bytes, access)
    }

    fn is_fault(&self, linear: u64, bytes: u64) -> bool {
        self.linear_of(self.fault.gva.as_u64().wrapping_sub(linear)) < bytes
    }

    fn is_in_fault_page(&self, linear: u64, bytes: u64) -> bool {
        let offset = linear.wrapping_sub(self.fault.gva.page().as_u64());
        offset <= PAGE_SIZE - bytes
    }

    /// An address, cut to 32 bits outside of 64-bit code.
    fn linear_of(&self, address: u64) -> u64 {
        if self.mode == Mode::Bits64 { address } else { address & Width::Dword.mask() }
    }

    fn source(&self, source: Source) -> u64 {
        match source {
            Source::Register(register) => self.register(register),
            Source::Immediate(value) => value,
        }
    }

    fn register(&self, register: Register) -> u64 {
        self.machine.general(register.number) >> high_shift(register) & register.width.mask()
    }

    /// Sets a register. A write of 32 bits clears the upper half; writes of 8 and 16 bits leave the rest unchanged (SDM volume 1, 3.4.1.1).
    fn set_register(&mut self, register: Register, value: u64) {
        let value = value & register.width.mask();
        let value = match register.width {
            Width::Dword | Width::Qword => value,
            width => {
                let shift = high_shift(register);
                self.machine.general(register.number) & !(width.mask() << shift) | value << shift
            }
        };
        self.machine.set_general(register.number, value);
    }
}

const fn high_shift(register: Register) -> u32 {
    if register.high { 8 } else { 0 }
}

/// RCX, RSI or RDI in the string's address width.
const fn index_register(number: u8, string: &StringOperation) -> Register {
    Register { number, width: string.address, high: false }
}

const fn swapped(value: u64, width: Width, swap: bool) -> u64 {
    if swap { value.swap_bytes() >> (64 - width.bits()) } else { value }
}

#[cfg(test)]
pub(crate) mod tests;
