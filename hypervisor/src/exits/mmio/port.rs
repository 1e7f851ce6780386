//! The interface of the instruction emulation: its input, the machine that it needs, and its result.
#![forbid(unsafe_code)]

use crate::{
    addr::{Gpa, Gva},
    cpu::fpu::VectorRegister,
    exits::{
        decode_cache::DecodeCache,
        instruction::{Mode, Segment},
        walk::{Access, GuestMemory, Paging},
        width::Width,
    },
};

const UD: u8 = 6;

/// A segment register's hidden part, as the VMCS holds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentState {
    /// Base.
    pub base: u64,
    /// Limit, in bytes.
    pub limit: u32,
    /// Access rights in the VMCS's format (SDM volume 3, 26.4.1).
    pub rights: u32,
}

/// What is at a guest-physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Region {
    /// The guest's memory.
    Memory,
    /// A trapped page.
    Mmio,
    /// Nothing.
    Outside,
}

/// The virtual processor that caused the exit, and its memory.
pub trait Machine: GuestMemory {
    /// General register `number`, 0 (RAX) to 15, RSP among them.
    fn general(&self, number: u8) -> u64;
    /// Sets general register `number`.
    fn set_general(&mut self, number: u8, value: u64);
    /// RIP: the offset of the instruction that caused the exit.
    fn rip(&self) -> u64;
    /// RFLAGS.
    fn rflags(&self) -> u64;
    /// Sets RFLAGS; only arithmetic flags differ from before.
    fn set_rflags(&mut self, rflags: u64);
    /// A segment register. For 64-bit code only the bases of FS and GS are needed.
    fn segment(&self, segment: Segment) -> SegmentState;
    /// The mode of the running code.
    fn mode(&self) -> Mode;
    /// The registers that determine translations of data.
    fn paging(&self) -> Paging;
    /// The registers that determine translations of code: the same except for RFLAGS.AC, which has no effect there and is false.
    fn code_paging(&self) -> Paging;
    /// The decode cache.
    fn decode_cache(&self) -> &DecodeCache;
    /// The decode cache, to add an instruction.
    fn decode_cache_mut(&mut self) -> &mut DecodeCache;
    /// The region of the page of `gpa`.
    fn region(&self, gpa: Gpa) -> Region;
    /// Reads from a trapped page, at any offset, but not beyond its end.
    fn mmio_read(&mut self, gpa: Gpa, width: Width) -> u64;
    /// Writes to a trapped page, at any offset, but not beyond its end. Bits above `width` are 0.
    fn mmio_write(&mut self, gpa: Gpa, width: Width, value: u64);
    /// Writes 9 to 64 bytes by one instruction, likewise.
    fn mmio_write_bytes(&mut self, gpa: Gpa, bytes: &[u8]);
    /// Reads 1 to 16 bytes and writes the result of `modify`, likewise. No write of another virtual processor comes in between. `modify` is
    /// called once at most.
    fn mmio_modify(&mut self, gpa: Gpa, bytes: u8, modify: &mut dyn FnMut(u128) -> u128);
    /// Vector register `number`, 0 to 15.
    fn vector(&self, number: u8) -> VectorRegister;
    /// Sets vector register `number`.
    fn set_vector(&mut self, number: u8, value: &VectorRegister);
    /// Notes an instruction's access to `bytes` bytes of linear addresses from `linear` on, which may hit a breakpoint.
    fn accessed(&mut self, linear: u64, bytes: u64, access: Access);
    /// Whether a trap is due after this instruction, or after this element of a string: by RFLAGS.TF, or a breakpoint that was hit.
    fn is_traced(&self) -> bool;
    /// Whether breakpoints on data are armed.
    fn is_watching(&self) -> bool;
}

/// An EPT violation by an access to a linear address's translation (exit qualification bits 7 and 8 set), not by a fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The guest-physical address.
    pub gpa: Gpa,
    /// The guest-linear address.
    pub gva: Gva,
    /// A write, or a read and write.
    pub write: bool,
}

/// An exception for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Its vector.
    pub vector: u8,
    /// Its error code, for the vectors that have one.
    pub error_code: Option<u32>,
    /// The value that CR2 must have first (page faults).
    pub cr2: Option<u64>,
}

impl Exception {
    pub(super) const INVALID_OPCODE: Self = Self { vector: UD, error_code: None, cr2: None };
}

/// How the guest continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emulated {
    /// The instruction is done: RIP advances by its length, and blocking by STI or MOV SS ends.
    Advance(u8),
    /// Some elements of a string are done, and others are left. The guest continues at the same RIP, after a trap if one is due.
    Part,
    /// Nothing is done: the guest executes the instruction at the same RIP.
    Again,
    /// The instruction faults.
    Inject(Exception),
}
