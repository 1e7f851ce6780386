//! An operand in memory: segment and canonical checks, translation page by page, and the bytes themselves.
#![forbid(unsafe_code)]

use super::{
    Emulation, Stop,
    port::{Fault, Machine, Region, SegmentState},
};
use crate::{
    addr::{Gpa, Gva, PAGE_SIZE},
    cpu::bits::cr4,
    exits::{
        instruction::{Mode, Segment},
        walk::{Access, OutsideMemory, walk},
        width::Width,
    },
};

/// The piece of an access that lies in one page.
#[derive(Clone, Copy)]
pub(super) struct Part {
    gpa: Gpa,
    bytes: u64,
    pub(super) region: Region,
}

/// An access that was checked and translated.
#[derive(Clone, Copy)]
pub(super) struct Span {
    linear: u64,
    width: Width,
    access: Access,
    first: Part,
    second: Option<Part>,
}

impl Span {
    pub(super) fn parts(&self) -> impl Iterator<Item = Part> {
        core::iter::once(self.first).chain(self.second)
    }
}

impl<M: Machine> Emulation<'_, M> {
    pub(super) fn is_canonical(&self, linear: u64) -> bool {
        let unused = if self.paging.cr4 & cr4::LA57 != 0 { 7 } else { 16 };
        self.mode != Mode::Bits64 || ((linear << unused) as i64 >> unused) as u64 == linear
    }

    /// The linear address of `width` bytes at `offset`, if the segment allows the access. `None` unless it is `wanted`.
    pub(super) fn linear(
        &self,
        segment: Segment,
        offset: u64,
        width: Width,
        access: Access,
        wanted: bool,
    ) -> Result<Option<u64>, Stop> {
        if !wanted {
            return Ok(None);
        }
        let last = width.bytes() as u64 - 1;
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
            return Ok(Some(linear));
        }
        Err(Stop::segment_violation(segment))
    }

    /// Translates each page of an access and checks that it leads somewhere.
    pub(super) fn span(&mut self, linear: u64, width: Width, access: Access) -> Result<Span, Stop> {
        let bytes = width.bytes() as u64;
        let here = bytes.min(PAGE_SIZE - linear % PAGE_SIZE);
        let first = self.part(linear, here, access)?;
        let second = match bytes - here {
            0 => None,
            rest => Some(self.part(self.linear_of(linear.wrapping_add(here)), rest, access)?),
        };
        Ok(Span { linear, width, access, first, second })
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

    /// The processor has walked and checked the page that faulted, for this kind of access (what may be written may be read);
    /// its answer is the one that counts, and costs nothing.
    fn translated_by_processor(&self, linear: u64, access: Access) -> Option<Gpa> {
        let Fault { gpa, gva, write } = self.fault;
        let same_page = Gva::new(linear).page() == gva.page() && gpa.page_offset() == gva.page_offset();
        let checked = write || access == Access::Read;
        (same_page && checked).then(|| Gpa::new(gpa.page().as_u64() + linear % PAGE_SIZE))
    }

    pub(super) fn load(&mut self, span: &Span) -> Result<u64, Stop> {
        if span.second.is_none() && span.first.region == Region::Mmio {
            return Ok(self.machine.mmio_read(span.first.gpa, span.width) & span.width.mask());
        }
        let (mut value, mut shift) = (0, 0);
        for part in span.parts() {
            value |= self.load_part(part)? << shift;
            shift += 8 * part.bytes;
        }
        Ok(value)
    }

    fn load_part(&mut self, part: Part) -> Result<u64, Stop> {
        let mut bytes = [0; 8];
        if part.region == Region::Memory {
            self.machine.read(part.gpa, bytes.get_mut(..part.bytes as usize).unwrap_or_default())?;
            return Ok(u64::from_le_bytes(bytes));
        }
        let mut value = 0;
        for (gpa, width, shift) in chunks(part) {
            value |= (self.machine.mmio_read(gpa, width) & width.mask()) << shift;
        }
        Ok(value)
    }

    pub(super) fn store(&mut self, span: &Span, value: u64) -> Result<(), Stop> {
        debug_assert!(span.access == Access::Write, "{:#x} was checked for reading only", span.linear);
        if span.second.is_none() && span.first.region == Region::Mmio {
            self.machine.mmio_write(span.first.gpa, span.width, value & span.width.mask());
            return Ok(());
        }
        let mut value = value;
        for part in span.parts() {
            self.store_part(part, value)?;
            value = value.checked_shr(8 * part.bytes as u32).unwrap_or(0);
        }
        Ok(())
    }

    fn store_part(&mut self, part: Part, value: u64) -> Result<(), Stop> {
        if part.region == Region::Memory {
            let bytes = value.to_le_bytes();
            return Ok(self.machine.write(part.gpa, bytes.get(..part.bytes as usize).unwrap_or_default())?);
        }
        for (gpa, width, shift) in chunks(part) {
            self.machine.mmio_write(gpa, width, value >> shift & width.mask());
        }
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

/// A part in naturally aligned pieces, each with its place (in bits) in the part's value.
fn chunks(part: Part) -> impl Iterator<Item = (Gpa, Width, u32)> {
    let mut done = 0;
    core::iter::from_fn(move || {
        let left = part.bytes.checked_sub(done).filter(|&left| left > 0)?;
        let gpa = part.gpa.checked_add(done)?;
        let alignment = 1u64 << gpa.as_u64().trailing_zeros().min(3);
        let width = Width::at_most(left.min(alignment));
        let shift = 8 * done as u32;
        done += width.bytes() as u64;
        Some((gpa, width, shift))
    })
}
