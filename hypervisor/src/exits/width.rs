//! Widths of operands and addresses.
#![forbid(unsafe_code)]

/// The width of an access, a register or an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Width {
    /// 8 bits.
    Byte,
    /// 16 bits.
    Word,
    /// 32 bits.
    Dword,
    /// 64 bits.
    Qword,
}

impl Width {
    /// The widest that is at most `bytes` bytes; at least a byte.
    pub const fn at_most(bytes: u64) -> Self {
        match bytes {
            0 | 1 => Self::Byte,
            2 | 3 => Self::Word,
            4..=7 => Self::Dword,
            _ => Self::Qword,
        }
    }

    /// Its bytes.
    pub const fn bytes(self) -> usize {
        1 << self as usize
    }

    /// Its bits.
    pub const fn bits(self) -> u32 {
        8 << self as u32
    }

    /// Ones in all its bits.
    pub const fn mask(self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }

    /// Sign-extends `value` of this width to 64 bits.
    pub const fn sign_extend(self, value: u64) -> u64 {
        let unused = 64 - self.bits();
        ((value << unused) as i64 >> unused) as u64
    }
}
