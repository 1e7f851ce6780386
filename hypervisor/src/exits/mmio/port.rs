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

/// What lies at a guest-physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Region {
    /// The guest's memory.
    Memory,
    /// A trapped page.
    Mmio,
    /// Nothing.
    Outside,
}

/// The virtual processor that had the exit, and its memory.
pub trait Machine: GuestMemory {
    /// General register `number`, 0 (RAX) to 15, RSP among them.
    fn general(&self, number: u8) -> u64;
    /// Sets general register `number`.
    fn set_general(&mut self, number: u8, value: u64);
    /// RIP: the offset of the instruction that had the exit.
    fn rip(&self) -> u64;
    /// RFLAGS.
    fn rflags(&self) -> u64;
    /// Sets RFLAGS; only arithmetic flags differ from before.
    fn set_rflags(&mut self, rflags: u64);
    /// A segment register. In 64-bit code only the bases of FS and GS are asked for.
    fn segment(&self, segment: Segment) -> SegmentState;
    /// What code runs.
    fn mode(&self) -> Mode;
    /// The registers that decide on translations of data.
    fn paging(&self) -> Paging;
    /// Those that decide on translations of code: the same but for RFLAGS.AC, which has no say there and is false.
    fn code_paging(&self) -> Paging;
    /// Instructions that this processor has executed here before.
    fn decode_cache(&self) -> &DecodeCache;
    /// The same, to add one.
    fn decode_cache_mut(&mut self) -> &mut DecodeCache;
    /// What lies in the page of `gpa`.
    fn region(&self, gpa: Gpa) -> Region;
    /// A guest's read from a trapped page: anywhere in it, but not beyond its end.
    fn mmio_read(&mut self, gpa: Gpa, width: Width) -> u64;
    /// A guest's write to a trapped page: anywhere in it, but not beyond its end. Bits above `width` are 0.
    fn mmio_write(&mut self, gpa: Gpa, width: Width, value: u64);
    /// A guest's write of 9 to 64 bytes by one instruction, likewise.
    fn mmio_write_bytes(&mut self, gpa: Gpa, bytes: &[u8]);
    /// A guest's read and write of 1 to 16 bytes, likewise: what is there becomes what `modify` makes of it, and no write of another
    /// virtual processor comes in between. `modify` is called once at most.
    fn mmio_modify(&mut self, gpa: Gpa, bytes: u8, modify: &mut dyn FnMut(u128) -> u128);
    /// Vector register `number`, 0 to 15.
    fn vector(&self, number: u8) -> VectorRegister;
    /// Sets vector register `number`.
    fn set_vector(&mut self, number: u8, value: &VectorRegister);
    /// An instruction accesses `bytes` bytes of linear addresses from `linear` on, which may have a breakpoint.
    fn accessed(&mut self, linear: u64, bytes: u64, access: Access);
    /// Whether a trap is due behind this instruction, or behind this element of a string: by RFLAGS.TF, or a breakpoint that was hit.
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
    /// What CR2 must hold first (page faults).
    pub cr2: Option<u64>,
}

impl Exception {
    pub(super) const INVALID_OPCODE: Self = Self { vector: UD, error_code: None, cr2: None };
}

/// What is to happen to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emulated {
    /// The instruction is done: RIP moves by its length, blocking by STI or MOV SS ends.
    Advance(u8),
    /// Elements of a string are done, and others are left: the guest goes on at the same RIP, after the trap that is due, if one is.
    Part,
    /// Nothing is done: the guest executes what is at the same RIP now.
    Again,
    /// The instruction faults.
    Inject(Exception),
}
