//! Arithmetic of instructions with an operand in trapped memory: results and flags (SDM vol. 1, appendix A).
#![forbid(unsafe_code)]

use super::width::Width;

const CF: u64 = 1;
const PF: u64 = 1 << 2;
const AF: u64 = 1 << 4;
const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
const OF: u64 = 1 << 11;
const ALL: u64 = CF | PF | AF | ZF | SF | OF;

/// An arithmetic instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the instructions'")]
pub enum Alu {
    Add,
    Or,
    Adc,
    Sbb,
    And,
    Sub,
    Xor,
    Cmp,
    Test,
    Inc,
    Dec,
    Neg,
    Not,
}

impl Alu {
    /// Whether there is a result to write; CMP and TEST set flags only.
    pub const fn writes(self) -> bool {
        !matches!(self, Self::Cmp | Self::Test)
    }

    /// The result for the first operand `a` and the second `b`, and RFLAGS after it. INC, DEC, NEG and NOT look at `a` only.
    pub fn apply(self, width: Width, a: u64, b: u64, rflags: u64) -> (u64, u64) {
        let (a, b, carry) = (a & width.mask(), b & width.mask(), rflags & CF);
        match self {
            Self::Add => add(width, a, b, 0, rflags),
            Self::Adc => add(width, a, b, carry, rflags),
            Self::Sub | Self::Cmp => subtract(width, a, b, 0, rflags),
            Self::Sbb => subtract(width, a, b, carry, rflags),
            Self::Neg => subtract(width, 0, a, 0, rflags),
            Self::Inc => keep_carry(add(width, a, 1, 0, rflags), carry),
            Self::Dec => keep_carry(subtract(width, a, 1, 0, rflags), carry),
            Self::And | Self::Test => logic(width, a & b, rflags),
            Self::Or => logic(width, a | b, rflags),
            Self::Xor => logic(width, a ^ b, rflags),
            Self::Not => (!a & width.mask(), rflags),
        }
    }
}

/// RFLAGS with another CF.
pub const fn with_carry(rflags: u64, carry: bool) -> u64 {
    rflags & !CF | flag(carry, CF)
}

/// RFLAGS with another ZF.
pub const fn with_zero(rflags: u64, zero: bool) -> u64 {
    rflags & !ZF | flag(zero, ZF)
}

fn add(width: Width, a: u64, b: u64, carry: u64, rflags: u64) -> (u64, u64) {
    let sum = u128::from(a) + u128::from(b) + u128::from(carry);
    let result = sum as u64 & width.mask();
    let carried = sum >> width.bits() != 0;
    let overflowed = is_negative(width, (a ^ result) & (b ^ result));
    (result, rflags & !ALL | flags(carried, overflowed, a ^ b ^ result) | of_result(width, result))
}

fn subtract(width: Width, a: u64, b: u64, borrow: u64, rflags: u64) -> (u64, u64) {
    let result = a.wrapping_sub(b).wrapping_sub(borrow) & width.mask();
    let borrowed = u128::from(a) < u128::from(b) + u128::from(borrow);
    let overflowed = is_negative(width, (a ^ b) & (a ^ result));
    (result, rflags & !ALL | flags(borrowed, overflowed, a ^ b ^ result) | of_result(width, result))
}

/// CF and OF become 0; AF is undefined, and 0 here.
fn logic(width: Width, result: u64, rflags: u64) -> (u64, u64) {
    (result, rflags & !ALL | of_result(width, result))
}

fn keep_carry((result, rflags): (u64, u64), carry: u64) -> (u64, u64) {
    (result, rflags & !CF | carry)
}

fn of_result(width: Width, result: u64) -> u64 {
    let even = (result as u8).count_ones().is_multiple_of(2);
    flag(result == 0, ZF) | flag(is_negative(width, result), SF) | flag(even, PF)
}

/// CF, OF and AF; the carries into each bit are in `carries`.
fn flags(carried: bool, overflowed: bool, carries: u64) -> u64 {
    flag(carried, CF) | flag(overflowed, OF) | (carries & AF)
}

const fn flag(set: bool, bit: u64) -> u64 {
    if set { bit } else { 0 }
}

fn is_negative(width: Width, value: u64) -> bool {
    value >> (width.bits() - 1) & 1 != 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SET: u64 = ALL | 1 << 1 | 1 << 9;

    #[test]
    fn inc_and_dec_leave_the_carry_and_not_leaves_every_flag() {
        assert_eq!(Alu::Inc.apply(Width::Byte, 0xff, 0, CF), (0, CF | ZF | AF | PF));
        assert_eq!(Alu::Inc.apply(Width::Byte, 0xff, 0, 0), (0, ZF | AF | PF));
        assert_eq!(Alu::Dec.apply(Width::Word, 0x8000, 0, CF), (0x7fff, CF | OF | AF | PF));
        assert_eq!(Alu::Not.apply(Width::Dword, 0, 0, SET), (0xffff_ffff, SET));
    }

    #[test]
    fn neg_carries_unless_zero() {
        assert_eq!(Alu::Neg.apply(Width::Byte, 1, 0, 0), (0xff, CF | SF | AF | PF));
        assert_eq!(Alu::Neg.apply(Width::Byte, 0, 0, SET), (0, SET & !ALL | ZF | PF));
    }

    proptest! {
        #[test]
        fn sums_and_differences_of_bytes_have_the_flags_of_signed_and_unsigned_arithmetic(a: u8, b: u8, carry: bool) {
            let flags = u64::from(carry);
            let (sum, after) = Alu::Adc.apply(Width::Byte, a.into(), b.into(), flags);
            let (unsigned, signed) = (
                u16::from(a) + u16::from(b) + u16::from(carry),
                i16::from(a as i8) + i16::from(b as i8) + i16::from(carry),
            );
            prop_assert_eq!(sum, u64::from(unsigned as u8));
            prop_assert_eq!(after & CF != 0, unsigned > 0xff);
            prop_assert_eq!(after & OF != 0, i8::try_from(signed).is_err());
            prop_assert_eq!(after & AF != 0, (a & 15) + (b & 15) + u8::from(carry) > 15);

            let (difference, after) = Alu::Sbb.apply(Width::Byte, a.into(), b.into(), flags);
            let (unsigned, signed) = (
                i16::from(a) - i16::from(b) - i16::from(carry),
                i16::from(a as i8) - i16::from(b as i8) - i16::from(carry),
            );
            prop_assert_eq!(difference, u64::from(unsigned as u8));
            prop_assert_eq!(after & CF != 0, unsigned < 0);
            prop_assert_eq!(after & OF != 0, i8::try_from(signed).is_err());
            prop_assert_eq!(after & ZF != 0, difference == 0);
            prop_assert_eq!(after & SF != 0, (difference as u8 as i8) < 0);
        }

        #[test]
        fn qwords_carry_out_of_bit_63(a: u64, b: u64) {
            let (sum, after) = Alu::Add.apply(Width::Qword, a, b, 0);
            prop_assert_eq!((sum, after & CF != 0), a.overflowing_add(b));
            let (difference, after) = Alu::Sub.apply(Width::Qword, a, b, SET);
            prop_assert_eq!((difference, after & CF != 0), a.overflowing_sub(b));
            prop_assert_eq!(after & OF != 0, (a as i64).overflowing_sub(b as i64).1);
            prop_assert_eq!(after & (1 << 9), 1 << 9);
        }
    }
}
