//! Translates a guest-linear to a guest-physical address through the guest's page tables.
//!
//! It supports all paging modes of SDM vol. 3, chapter 5 (32-bit with PSE and PSE-36, PAE, 4-level, 5-level), access rights of 5.6, error
//! codes of 5.7, accessed and dirty flags of 5.8. Protection keys are ignored, because guests are not offered them. PAE's four top entries
//! are read from memory, where the processor uses those that it loaded with CR3. A guest that changes them without loading CR3 can mislead
//! only itself.
#![forbid(unsafe_code)]

use crate::{
    addr::{Gpa, Gva, PAGE_SIZE},
    cpu::bits::{cr0, cr4, efer},
};

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;

/// Bits of a page fault's error code (SDM vol. 3, 5.7): the entry is present; a write; user mode; a reserved bit is set in an entry; an
/// instruction fetch.
const PF_PRESENT: u32 = 1 << 0;
const PF_WRITE: u32 = 1 << 1;
const PF_USER: u32 = 1 << 2;
const PF_RESERVED: u32 = 1 << 3;
const PF_FETCH: u32 = 1 << 4;

/// An address outside of the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutsideMemory(pub Gpa);

/// The guest's memory, by guest-physical address. An access may begin anywhere in a page, and never crosses the page's end.
pub trait GuestMemory {
    /// Fills `buffer` from `gpa`.
    fn read(&self, gpa: Gpa, buffer: &mut [u8]) -> Result<(), OutsideMemory>;

    /// The 8 bytes at `gpa`.
    fn read_u64(&self, gpa: Gpa) -> Result<u64, OutsideMemory> {
        let mut bytes = [0; 8];
        self.read(gpa, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Writes `bytes` to `gpa`.
    fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), OutsideMemory>;

    /// Writes `new` if memory holds `old`, atomically against other processors. Returns `false` if memory held another value. For accessed
    /// and dirty flags; `bytes` is 4 or 8 and `gpa` a multiple of it.
    fn compare_exchange(&mut self, gpa: Gpa, bytes: usize, old: u64, new: u64) -> Result<bool, OutsideMemory>;
}

/// The kind of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read data.
    Read,
    /// Write data, or read and write it.
    Write,
    /// Fetch instructions.
    Execute,
}

/// The registers that determine a translation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paging {
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// Current privilege level.
    pub cpl: u8,
    /// RFLAGS.AC: lets the supervisor access user pages in spite of SMAP.
    pub ac: bool,
    /// Bits of a physical address (CPUID 0x8000_0008), 32 to 52.
    pub physical_bits: u8,
}

/// Why an address has no translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkError {
    /// The guest gets a page fault with this error code.
    PageFault(u32),
    /// A paging structure is outside of the guest's memory.
    Outside(OutsideMemory),
    /// Another processor changed an entry during the walk, so the guest's instruction has to run again.
    Changed,
}

impl From<OutsideMemory> for WalkError {
    fn from(outside: OutsideMemory) -> Self {
        Self::Outside(outside)
    }
}

/// A paging mode's format.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    /// 32-bit paging: two levels of 4-byte entries.
    Legacy,
    /// PAE paging: three levels, four entries at the top.
    Pae,
    /// 4-level or 5-level paging.
    Long(u8),
}

impl Format {
    fn of(paging: &Paging) -> Self {
        match (paging.cr4 & cr4::PAE != 0, paging.efer & efer::LMA != 0) {
            (false, _) => Self::Legacy,
            (true, false) => Self::Pae,
            (true, true) if paging.cr4 & cr4::LA57 != 0 => Self::Long(5),
            (true, true) => Self::Long(4),
        }
    }

    const fn levels(self) -> u8 {
        match self {
            Self::Legacy => 2,
            Self::Pae => 3,
            Self::Long(levels) => levels,
        }
    }

    const fn entry_bytes(self) -> usize {
        if matches!(self, Self::Legacy) { 4 } else { 8 }
    }

    /// The lowest bit of the linear address that `level` translates.
    const fn shift(self, level: u8) -> u32 {
        let bits = if matches!(self, Self::Legacy) { 10 } else { 9 };
        12 + bits * (level as u32 - 1)
    }

    const fn index(self, level: u8, gva: u64) -> u64 {
        let mask = match self {
            Self::Legacy => 0x3ff,
            Self::Pae if level == 3 => 3,
            _ => 0x1ff,
        };
        gva >> self.shift(level) & mask
    }

    /// Whether bit 7 of an entry of this level makes it map a page.
    const fn can_be_large(self, level: u8, paging: &Paging) -> bool {
        match self {
            Self::Legacy => level == 2 && paging.cr4 & cr4::PSE != 0,
            Self::Pae => level == 2,
            Self::Long(_) => level == 2 || level == 3,
        }
    }

    /// Whether the entry has neither rights nor flags, as in PAE's top level.
    const fn is_bare(self, level: u8) -> bool {
        matches!(self, Self::Pae) && level == 3
    }
}

/// The bits from `low` up to `high` - 1.
const fn bits(low: u32, high: u32) -> u64 {
    if low >= high { 0 } else { (u64::MAX >> (64 - (high - low))) << low }
}

/// An entry that a walk read.
#[derive(Clone, Copy)]
struct Step {
    at: Gpa,
    value: u64,
    flags: u64,
}

/// The rights that all entries of a walk allow.
struct Rights {
    writable: bool,
    user: bool,
    no_execute: bool,
}

impl Paging {
    fn physical_bits(&self) -> u32 {
        u32::from(self.physical_bits).clamp(32, 52)
    }

    /// The bits of an entry that must be 0 (SDM vol. 3, tables 5-4 to 5-20).
    fn reserved(&self, format: Format, level: u8, large: bool) -> u64 {
        let high = self.physical_bits();
        if format == Format::Legacy {
            return if large { bits(high.min(40) - 19, 22) } else { 0 };
        }
        let no_execute = if self.efer & efer::NXE == 0 { NO_EXECUTE } else { 0 };
        let common = match format {
            Format::Pae if level == 3 => return bits(high, 64) | bits(5, 9) | bits(1, 3),
            Format::Pae => bits(high, 63) | no_execute,
            _ => bits(high, 52) | no_execute,
        };
        match (level, large) {
            (1, _) | (2 | 3, false) => common,
            (_, true) => common | bits(13, format.shift(level)),
            _ => common | LARGE,
        }
    }

    /// The error code of a page fault (SDM vol. 3, 5.7).
    fn fault(&self, access: Access, cause: u32) -> WalkError {
        let execute_known = self.cr4 & cr4::SMEP != 0 || self.cr4 & cr4::PAE != 0 && self.efer & efer::NXE != 0;
        let code = cause
            | (u32::from(access == Access::Write) * PF_WRITE)
            | (u32::from(self.cpl == 3) * PF_USER)
            | (u32::from(access == Access::Execute && execute_known) * PF_FETCH);
        WalkError::PageFault(code)
    }

    /// Whether the rights allow the access: SDM vol. 3, 5.6.1.
    fn allows(&self, rights: &Rights, access: Access) -> bool {
        let supervisor = self.cpl < 3;
        if !supervisor && !rights.user {
            return false;
        }
        match access {
            Access::Execute => !(rights.no_execute || supervisor && rights.user && self.cr4 & cr4::SMEP != 0),
            _ if supervisor && rights.user && self.cr4 & cr4::SMAP != 0 && !self.ac => false,
            Access::Read => true,
            Access::Write => rights.writable || supervisor && self.cr0 & cr0::WP == 0,
        }
    }

    fn root(&self, format: Format) -> u64 {
        match format {
            Format::Legacy => self.cr3 & bits(12, 32),
            Format::Pae => self.cr3 & bits(5, 32),
            Format::Long(_) => self.cr3 & bits(12, self.physical_bits()),
        }
    }

    /// The address of the page that `entry` maps, or of the table it points to.
    fn frame(&self, format: Format, level: u8, entry: u64, large: bool) -> u64 {
        match (format, large) {
            (Format::Legacy, true) => entry & bits(22, 32) | (entry & bits(13, 21)) << 19,
            (_, true) => entry & bits(format.shift(level), self.physical_bits()),
            _ => entry & bits(12, self.physical_bits()),
        }
    }
}

/// Translates `gva` and, if the access is allowed, sets the accessed and dirty flags as the processor would. The address must be canonical,
/// which the caller checks.
pub fn walk<M: GuestMemory + ?Sized>(
    memory: &mut M,
    paging: &Paging,
    gva: Gva,
    access: Access,
) -> Result<Gpa, WalkError> {
    if paging.cr0 & cr0::PG == 0 {
        return Ok(Gpa::new(gva.as_u64() & bits(0, 32)));
    }
    if let Some(walked) = walk_quickly(memory, paging, gva.as_u64(), access) {
        return Ok(walked.gpa(gva.as_u64()));
    }
    walk_any(memory, paging, Format::of(paging), gva, access)
}

/// A walk through four levels: the registers and entries that determined it, and its result. While all of them are the same, the walk need
/// not be repeated.
#[derive(Clone, Copy, Debug)]
pub struct Walked {
    paging: Paging,
    page: u64,
    /// The entries. If a large page ends the walk, its entry fills the rest.
    entries: [(Gpa, u64); 4],
    frame: u64,
}

impl Walked {
    /// The translation of an address in the same page.
    pub fn gpa(&self, gva: u64) -> Gpa {
        Gpa::new(self.frame | gva & (PAGE_SIZE - 1))
    }

    /// The translation of `gva`, if a new walk for the same kind of access would give the same result.
    #[inline]
    pub fn again<M: GuestMemory + ?Sized>(&self, memory: &M, paging: &Paging, gva: u64) -> Option<Gpa> {
        let same = gva & !(PAGE_SIZE - 1) == self.page
            && *paging == self.paging
            && self.entries.iter().all(|&(at, entry)| memory.read_u64(at) == Ok(entry));
        same.then(|| self.gpa(gva))
    }
}

/// The fast path for four levels, if the walk needs neither a fault nor a flag: a third of the instructions of `walk_any`. `None` means
/// that the caller has to walk.
pub fn walk_quickly<M: GuestMemory + ?Sized>(memory: &M, paging: &Paging, gva: u64, access: Access) -> Option<Walked> {
    let four_levels =
        paging.cr0 & cr0::PG != 0 && paging.efer & efer::LMA != 0 && paging.cr4 & (cr4::PAE | cr4::LA57) == cr4::PAE;
    if !four_levels {
        return None;
    }
    let high = paging.physical_bits();
    let refused = bits(high, 52) | if paging.efer & efer::NXE == 0 { NO_EXECUTE } else { 0 };
    let frame = bits(12, high);
    let mut entries = [(Gpa::new(0), 0); 4];
    let (mut table, mut all, mut any) = (paging.cr3 & frame, u64::MAX, 0);
    for (level, shift) in [39, 30, 21, 12].into_iter().enumerate() {
        let at = Gpa::new(table | (gva >> shift & 0x1ff) << 3);
        let entry = memory.read_u64(at).ok()?;
        entries[level..].fill((at, entry));
        (all, any, table) = (all & entry, any | entry, entry & frame);
        if shift == 12 || entry & LARGE != 0 {
            let offset = (1 << shift) - 1;
            let rights =
                Rights { writable: all & WRITABLE != 0, user: all & USER != 0, no_execute: any & NO_EXECUTE != 0 };
            // Bit 12 of a large page is its memory type's.
            let plain = shift != 39 && table & offset & !(1 << 12) == 0 && any & refused == 0;
            let flagged = all & ACCESSED != 0 && (access != Access::Write || entry & DIRTY != 0);
            let good = plain && flagged && all & PRESENT != 0 && paging.allows(&rights, access);
            let page = gva & !(PAGE_SIZE - 1);
            return good.then_some(Walked { paging: *paging, page, entries, frame: table & !offset | page & offset });
        }
        if entry & PRESENT == 0 {
            return None;
        }
    }
    None
}

fn walk_any<M: GuestMemory + ?Sized>(
    memory: &mut M,
    paging: &Paging,
    format: Format,
    gva: Gva,
    access: Access,
) -> Result<Gpa, WalkError> {
    let mut table = paging.root(format);
    let mut rights = Rights { writable: true, user: true, no_execute: false };
    let mut steps = [Step { at: Gpa::new(0), value: 0, flags: 0 }; 5];
    for (level, step) in (1..=format.levels()).rev().zip(&mut steps) {
        let at = Gpa::new(table + format.index(level, gva.as_u64()) * format.entry_bytes() as u64);
        let value = read_entry(memory, at, format.entry_bytes())?;
        let large = value & LARGE != 0 && format.can_be_large(level, paging);
        if value & PRESENT == 0 {
            return Err(paging.fault(access, 0));
        }
        if value & paging.reserved(format, level, large) != 0 {
            return Err(paging.fault(access, PF_PRESENT | PF_RESERVED));
        }
        table = paging.frame(format, level, value, large);
        if format.is_bare(level) {
            continue;
        }
        rights.writable &= value & WRITABLE != 0;
        rights.user &= value & USER != 0;
        rights.no_execute |= value & NO_EXECUTE != 0;
        *step = Step { at, value, flags: ACCESSED };
        if level == 1 || large {
            if !paging.allows(&rights, access) {
                return Err(paging.fault(access, PF_PRESENT));
            }
            if access == Access::Write {
                step.flags |= DIRTY;
            }
            set_flags(memory, &steps, format.entry_bytes())?;
            return Ok(Gpa::new(table | gva.as_u64() & bits(0, format.shift(level))));
        }
    }
    // Level 1 always ends the loop; a guest could not come here.
    Err(paging.fault(access, 0))
}

fn read_entry<M: GuestMemory + ?Sized>(memory: &M, at: Gpa, bytes: usize) -> Result<u64, OutsideMemory> {
    if bytes == 4 {
        let mut entry = [0; 4];
        memory.read(at, &mut entry)?;
        return Ok(u64::from(u32::from_le_bytes(entry)));
    }
    memory.read_u64(at)
}

/// Sets flags in the entries of a walk.
fn set_flags<M: GuestMemory + ?Sized>(memory: &mut M, steps: &[Step], bytes: usize) -> Result<(), WalkError> {
    for step in steps {
        let wanted = step.value | step.flags;
        if wanted != step.value && !memory.compare_exchange(step.at, bytes, step.value, wanted)? {
            return Err(WalkError::Changed);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
