//! Moves of vector registers, and of blocks.
//!
//! The processor has made the checks that come before address translation (CR0.EM and TS, CR4.OSFXSR, XCR0, alignment) before the exit. If
//! another processor replaces the instruction after that, the new one runs without these checks; it moves only the guest's own bytes.
#![forbid(unsafe_code)]

use super::{Emulation, Machine, Stop};
use crate::exits::{
    instruction::{Address, Lane, Rest},
    walk::Access,
};

/// Bytes of MOVDIR64B.
const BLOCK: usize = 64;

impl<M: Machine> Emulation<'_, M> {
    pub(super) fn vector_store(&mut self, to: Address, from: Lane) -> Result<(), Stop> {
        let span = self.faulting_span(to, from.bytes.into(), Access::Write)?;
        let value = self.machine.vector(from.register);
        self.store_bytes(&span, &value[from.range()])
    }

    pub(super) fn vector_load(&mut self, to: Lane, from: Address, rest: Rest) -> Result<(), Stop> {
        let span = self.faulting_span(from, to.bytes.into(), Access::Read)?;
        let mut value = self.machine.vector(to.register);
        match rest {
            Rest::Kept => {}
            Rest::ClearedInXmm => value[..16].fill(0),
            Rest::Cleared => value.fill(0),
        }
        self.load_bytes(&span, &mut value[to.range()])?;
        self.machine.set_vector(to.register, &value);
        Ok(())
    }

    /// MOVDIR64B. Either operand may have faulted.
    pub(super) fn block(&mut self, to: Address, from: Address) -> Result<(), Stop> {
        let destination = self.operand(to, BLOCK as u64, Access::Write)?;
        let source = self.operand(from, BLOCK as u64, Access::Read)?;
        if !self.is_fault(if self.fault.write { destination } else { source }, BLOCK as u64) {
            return Err(Stop::AGAIN);
        }
        // The processor demands it; one write to one page is what comes of it.
        if !destination.is_multiple_of(BLOCK as u64) {
            return Err(Stop::AGAIN);
        }
        let source = self.span(source, BLOCK as u64, Access::Read)?;
        let destination = self.span(destination, BLOCK as u64, Access::Write)?;
        let mut bytes = [0; BLOCK];
        self.load_bytes(&source, &mut bytes)?;
        self.store_bytes(&destination, &bytes)
    }
}

impl Lane {
    fn range(self) -> core::ops::Range<usize> {
        let first = usize::from(self.first.min(16));
        first..first + usize::from(self.bytes.min(16 + (16 - self.first.min(16))))
    }
}
