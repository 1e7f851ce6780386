//! An instruction's effect on memory, in the terms that the emulation of a trapped access needs. [`decode`](super::decode) produces it from
//! bytes.
#![forbid(unsafe_code)]

use super::{alu::Alu, width::Width};

/// The longest instruction (SDM vol. 2, 2.3.11).
pub const MAX_LENGTH: usize = 15;

/// The mode of the running code, which decides on default widths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Real mode, virtual-8086 mode, 16-bit segments.
    Bits16,
    /// 32-bit segments.
    Bits32,
    /// 64-bit code.
    Bits64,
}

impl Mode {
    /// The width of addresses and of the instruction pointer.
    pub const fn address_width(self) -> Width {
        match self {
            Self::Bits16 => Width::Word,
            Self::Bits32 => Width::Dword,
            Self::Bits64 => Width::Qword,
        }
    }
}

/// Segment registers, in the order of their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// ES.
    Es,
    /// CS.
    Cs,
    /// SS.
    Ss,
    /// DS.
    Ds,
    /// FS.
    Fs,
    /// GS.
    Gs,
}

/// A general register, or part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register {
    /// 0 (RAX) to 15.
    pub number: u8,
    /// How much of it.
    pub width: Width,
    /// Bits 15:8: AH, CH, DH or BH.
    pub high: bool,
}

/// A memory operand: an offset in a segment, which is computed from registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The segment.
    pub segment: Segment,
    /// Base register's number.
    pub base: Option<u8>,
    /// Index register's number.
    pub index: Option<u8>,
    /// The index's factor: 1, 2, 4 or 8; 1 without an index.
    pub scale: u8,
    /// The displacement. For an address relative to RIP it holds the whole sum.
    pub displacement: u64,
    /// Offsets wrap at this width.
    pub width: Width,
}

impl Address {
    /// The offset in the segment, computed with the registers' values that `general` returns.
    #[inline(always)]
    pub fn offset(&self, general: impl Fn(u8) -> u64) -> u64 {
        let base = self.base.map_or(0, &general);
        let index = self.index.map_or(0, &general);
        let sum = base.wrapping_add(index.wrapping_mul(u64::from(self.scale))).wrapping_add(self.displacement);
        sum & self.width.mask()
    }
}

/// The source of an operation's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A register.
    Register(Register),
    /// A constant, as wide as the operation.
    Immediate(u64),
}

/// Which string instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StringKind {
    /// RAX to ES:RDI.
    Stos,
    /// DS:RSI to ES:RDI.
    Movs,
    /// DS:RSI to RAX.
    Lods,
}

/// A string instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StringOperation {
    /// Which.
    pub kind: StringKind,
    /// An element's width.
    pub width: Width,
    /// Whether RCX counts it.
    pub rep: bool,
    /// How much of RSI, RDI and RCX is used.
    pub address: Width,
    /// The source's segment.
    pub segment: Segment,
}

/// What a bit instruction does to its bit, which goes to CF first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitKind {
    /// BT.
    Test,
    /// BTS.
    Set,
    /// BTR.
    Reset,
    /// BTC.
    Complement,
}

impl BitKind {
    /// The operand behind it, where it was `old` and the bit is the one in `mask`.
    pub const fn apply(self, old: u64, mask: u64) -> u64 {
        match self {
            Self::Test => old,
            Self::Set => old | mask,
            Self::Reset => old & !mask,
            Self::Complement => old ^ mask,
        }
    }
}

/// Bytes of a vector register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lane {
    /// The register, 0 to 15.
    pub register: u8,
    /// The first byte: 0, or 8 for the upper half of an XMM register.
    pub first: u8,
    /// How many: 4, 8, 16 or 32.
    pub bytes: u8,
}

/// What happens to a vector register's other bytes at a load (SDM vol. 1, 14.1.3 and the instructions' own pages).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// They keep their values.
    Kept,
    /// Those of the XMM register are cleared.
    ClearedInXmm,
    /// All are cleared: VEX.
    Cleared,
}

/// The operation of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Writes a value to memory.
    Store {
        /// The memory.
        to: Address,
        /// How wide.
        width: Width,
        /// The value.
        value: Source,
        /// In reversed byte order (MOVBE).
        swap: bool,
    },
    /// Loads a register from memory.
    Load {
        /// The register.
        to: Register,
        /// The memory.
        from: Address,
        /// How wide the memory is; the rest of the register's width is filled up.
        width: Width,
        /// Whether the value is sign-extended.
        signed: bool,
        /// From reversed byte order (MOVBE).
        swap: bool,
    },
    /// Exchanges a register with memory.
    Exchange {
        /// The memory.
        at: Address,
        /// The register; its width is the memory's.
        with: Register,
    },
    /// Modifies memory by a value, and sets flags.
    Modify {
        /// The memory.
        at: Address,
        /// How wide.
        width: Width,
        /// The operation; CMP and TEST do not write.
        alu: Alu,
        /// The second operand; 0 where there is none.
        value: Source,
    },
    /// Modifies a register by a value in memory, and sets flags.
    Combine {
        /// The register; its width is the memory's.
        to: Register,
        /// What is done.
        alu: Alu,
        /// The memory.
        from: Address,
    },
    /// CMPXCHG: if memory equals the accumulator, memory gets the register's value; if not, the accumulator gets memory's value.
    CompareExchange {
        /// The memory.
        at: Address,
        /// The register; its width is the memory's.
        with: Register,
    },
    /// CMPXCHG8B or CMPXCHG16B: the same with RDX:RAX and RCX:RBX.
    CompareExchangePair {
        /// The memory.
        at: Address,
        /// How wide each half is: a dword or a quadword.
        half: Width,
    },
    /// XADD: memory gets the sum, and the register gets memory's old value.
    ExchangeAdd {
        /// The memory.
        at: Address,
        /// The register; its width is the memory's.
        with: Register,
    },
    /// BT, BTS, BTR or BTC.
    Bit {
        /// The memory, to which a register's multiples of the width are added.
        at: Address,
        /// How wide.
        width: Width,
        /// What is done.
        kind: BitKind,
        /// Which bit: a constant counts within the width.
        bit: Source,
    },
    /// Stores bytes of a vector register to memory.
    VectorStore {
        /// The memory.
        to: Address,
        /// The bytes.
        from: Lane,
    },
    /// Loads bytes of a vector register from memory.
    VectorLoad {
        /// The bytes.
        to: Lane,
        /// The memory.
        from: Address,
        /// The others.
        rest: Rest,
    },
    /// MOVDIR64B: 64 bytes.
    Block {
        /// Where to.
        to: Address,
        /// Where from.
        from: Address,
    },
    /// CLFLUSH and the like: a load of a byte without a result.
    Flush(Address),
    /// MOVS, STOS or LODS.
    String(StringOperation),
    /// Accesses no memory.
    NoAccess,
    /// An instruction that is not supported.
    Unsupported,
}

/// An instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// Its bytes, 1 to 15.
    pub length: u8,
    /// What it does.
    pub operation: Operation,
}
