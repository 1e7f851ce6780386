//! An operand in memory: segment and canonical checks, translation page by page, and access to the bytes.
#![forbid(unsafe_code)]

use super::{
    Emulation, Stop,
    pieces::{piece_of, pieces, put_piece},
    port::{Fault, Machine, Region, SegmentState},
};
use crate::{
    addr::{Gpa, Gva, PAGE_SIZE},
    cpu::bits::cr4,
    exits::{
        instruction::{Mode, Segment},
        walk::{Access, OutsideMemory, walk},
    },
};

/// The part of an access in one page.
#[derive(Clone, Copy)]
pub(super) struct Part {
    gpa: Gpa,
    bytes: u64,
    pub(super) region: Region,
}

/// A checked and translated access.
#[derive(Clone, Copy)]
pub(super) struct Span {
    linear: u64,
    bytes: u64,
    access: Access,
    first: Part,
    second: Option<Part>,
}

impl Span {
    pub(super) fn parts(&self) -> impl Iterator<Item = Part> {
        core::iter::once(self.first).chain(self.second)
    }

    /// The address, if the access is in one trapped page.
    pub(super) fn trapped(&self) -> Option<Gpa> {
        (self.second.is_none() && self.first.region == Region::Mmio).then_some(self.first.gpa)
    }
}

impl<M: Machine> Emulation<'_, M> {
    pub(super) fn is_canonical(&self, linear: u64) -> bool {
        let unused = if self.paging.cr4 & cr4::LA57 != 0 { 7 } else { 16 };
        self.mode != Mode::Bits64 || ((linear << unused) as i64 >> unused) as u64 == linear
    }

    /// The linear address of `bytes` bytes, 1 to 64, at `offset`, if the segment allows the access.
    pub(super) fn linear(&self, segment: Segment, offset: u64, bytes: u64, access: Access) -> Result<u64, Stop> {
        let last = bytes - 1;
        let (linear, allowed) = match (self.mode, segment) {
            (Mode::Bits64, Segment::Fs | Segment::Gs) => {
                (self.machine.segment(segment).base.wrapping_add(offset), true)
            }
            (Mode::Bits64, _) => (offset, true),
            _ => {
                let state = self.machine.segment(segment);
                (self.linear_of(state.base.wrapping_add(offset)), state.allows(offset, last, access))
            }
        };
        if allowed && self.is_canonical(linear) && self.is_canonical(linear.wrapping_add(last)) {
            return Ok(linear);
        }
        Err(Stop::segment_violation(segment))
    }

    /// Translates each page of an access and checks its region.
    pub(super) fn span(&mut self, linear: u64, bytes: u64, access: Access) -> Result<Span, Stop> {
        let here = bytes.min(PAGE_SIZE - linear % PAGE_SIZE);
        let first = self.part(linear, here, access)?;
        let second = match bytes - here {
            0 => None,
            rest => Some(self.part(self.linear_of(linear.wrapping_add(here)), rest, access)?),
        };
        Ok(Span { linear, bytes, access, first, second })
    }

    fn part(&mut self, linear: u64, bytes: u64, access: Access) -> Result<Part, Stop> {
        let gpa = match self.translated_by_processor(linear, access) {
            Some(gpa) => gpa,
            None => {
                walk(self.machine, &self.paging, Gva::new(linear), access).map_err(|error| Stop::walk(error, linear))?
            }
        };
        match self.machine.region(gpa) {
            Region::Outside => Err(Stop::Outside(OutsideMemory(gpa))),
            region => Ok(Part { gpa, bytes, region }),
        }
    }

    /// The processor's translation of the faulting page, which it has walked and checked for this kind of access (a page that may be
    /// written may be read). It takes precedence, and costs nothing.
    fn translated_by_processor(&self, linear: u64, access: Access) -> Option<Gpa> {
        let Fault { gpa, gva, write } = self.fault;
        let same_page = Gva::new(linear).page() == gva.page() && gpa.page_offset() == gva.page_offset();
        let checked = write || access == Access::Read;
        (same_page && checked).then(|| Gpa::new(gpa.page().as_u64() + linear % PAGE_SIZE))
    }

    /// Loads at most 8 bytes.
    pub(super) fn load(&mut self, span: &Span) -> Result<u64, Stop> {
        let mut bytes = [0; 8];
        self.load_bytes(span, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Loads the span's bytes into the first bytes of `into`, which is long enough.
    pub(super) fn load_bytes(&mut self, span: &Span, into: &mut [u8]) -> Result<(), Stop> {
        self.machine.accessed(span.linear, span.bytes, Access::Read);
        let mut rest = into;
        for part in span.parts() {
            let (here, behind) = rest.split_at_mut((part.bytes as usize).min(rest.len()));
            self.load_part(part, here)?;
            rest = behind;
        }
        Ok(())
    }

    fn load_part(&mut self, part: Part, into: &mut [u8]) -> Result<(), Stop> {
        if part.region == Region::Memory {
            return Ok(self.machine.read(part.gpa, into)?);
        }
        for (gpa, width, at) in pieces(part.gpa, part.bytes as usize) {
            put_piece(into, width, at, self.machine.mmio_read(gpa, width));
        }
        Ok(())
    }

    /// Stores at most 8 bytes.
    pub(super) fn store(&mut self, span: &Span, value: u64) -> Result<(), Stop> {
        self.store_bytes(span, &value.to_le_bytes())
    }

    /// Stores the first bytes of `from`, which is long enough.
    pub(super) fn store_bytes(&mut self, span: &Span, from: &[u8]) -> Result<(), Stop> {
        debug_assert!(span.access == Access::Write, "{:#x} was checked for reading only", span.linear);
        self.machine.accessed(span.linear, span.bytes, Access::Write);
        let mut rest = from;
        for part in span.parts() {
            let (here, behind) = rest.split_at((part.bytes as usize).min(rest.len()));
            self.store_part(part, here)?;
            rest = behind;
        }
        Ok(())
    }

    /// Stores a part. An access to a trapped page that is as wide as a general register, or wider than one, is passed on whole; others are
    /// divided into naturally aligned pieces.
    fn store_part(&mut self, part: Part, from: &[u8]) -> Result<(), Stop> {
        if part.region == Region::Memory {
            return Ok(self.machine.write(part.gpa, from)?);
        }
        if part.bytes > 8 {
            self.machine.mmio_write_bytes(part.gpa, from);
            return Ok(());
        }
        for (gpa, width, at) in pieces(part.gpa, part.bytes as usize) {
            self.machine.mmio_write(gpa, width, piece_of(from, width, at));
        }
        Ok(())
    }

    /// Reads a span of 1 to 16 bytes in one trapped page, and writes the result of `modify`. No other write comes in between.
    pub(super) fn modify_span(&mut self, span: &Span, mut modify: impl FnMut(u128) -> u128) -> Result<(), Stop> {
        let gpa = span.trapped().ok_or(Stop::UNSUPPORTED)?;
        self.machine.accessed(span.linear, span.bytes, Access::Read);
        self.machine.accessed(span.linear, span.bytes, Access::Write);
        self.machine.mmio_modify(gpa, span.bytes as u8, &mut modify);
        Ok(())
    }
}

impl SegmentState {
    const READABLE_CODE_OR_WRITABLE_DATA: u32 = 1 << 1;
    const EXPAND_DOWN_OR_CONFORMING: u32 = 1 << 2;
    const CODE: u32 = 1 << 3;
    const BIG: u32 = 1 << 14;
    const UNUSABLE: u32 = 1 << 16;

    /// Limit and type checks (SDM volume 3, 6.3 and 6.5) for bytes `offset` to `offset + last`.
    fn allows(&self, offset: u64, last: u64, access: Access) -> bool {
        let has = |bit| self.rights & bit != 0;
        let typed = match (has(Self::CODE), access) {
            (false, Access::Read) => true,
            (false, _) | (true, Access::Read) => has(Self::READABLE_CODE_OR_WRITABLE_DATA),
            (true, _) => false,
        };
        let (end, limit) = (offset.saturating_add(last), u64::from(self.limit));
        let within = if !has(Self::CODE) && has(Self::EXPAND_DOWN_OR_CONFORMING) {
            offset > limit && end <= if has(Self::BIG) { 0xffff_ffff } else { 0xffff }
        } else {
            end <= limit
        };
        !has(Self::UNUSABLE) && typed && within
    }
}
