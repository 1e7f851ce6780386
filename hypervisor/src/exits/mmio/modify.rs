//! Instructions that read and write their operand in memory. Each does both in one step.
#![forbid(unsafe_code)]

use super::{Emulation, Machine, RAX, RCX, RDX, Stop};
use crate::exits::{
    alu::{self, Alu},
    instruction::{Address, BitKind, Register, Source},
    walk::Access,
    width::Width,
};

/// RBX.
const RBX: u8 = 3;

impl<M: Machine> Emulation<'_, M> {
    /// XCHG.
    pub(super) fn exchange(&mut self, at: Address, with: Register) -> Result<(), Stop> {
        let new = self.register(with);
        let old = self.replace(at, with.width, |_| new)?;
        self.set_register(with, old);
        Ok(())
    }

    /// XADD. If the register is part of the address, its old value counts.
    pub(super) fn exchange_add(&mut self, at: Address, with: Register) -> Result<(), Stop> {
        let (added, flags) = (self.register(with), self.machine.rflags());
        let old = self.replace(at, with.width, |old| Alu::Add.apply(with.width, old, added, flags).0)?;
        self.set_register(with, old);
        self.machine.set_rflags(Alu::Add.apply(with.width, old, added, flags).1);
        Ok(())
    }

    /// CMPXCHG. If memory differs from the accumulator, its value is written back, as the processor does (SDM vol. 2, CMPXCHG).
    pub(super) fn compare_exchange(&mut self, at: Address, with: Register) -> Result<(), Stop> {
        let accumulator = Register { number: RAX, width: with.width, high: false };
        let (expected, new) = (self.register(accumulator), self.register(with));
        let old = self.replace(at, with.width, |old| if old == expected { new } else { old })?;
        let (_, flags) = Alu::Cmp.apply(with.width, expected, old, self.machine.rflags());
        if old != expected {
            self.set_register(accumulator, old);
        }
        self.machine.set_rflags(flags);
        Ok(())
    }

    /// CMPXCHG8B and CMPXCHG16B. Of the flags only ZF changes.
    pub(super) fn compare_exchange_pair(&mut self, at: Address, half: Width) -> Result<(), Stop> {
        let part = |number| Register { number, width: half, high: false };
        let pair =
            |high, low| u128::from(self.register(part(high))) << half.bits() | u128::from(self.register(part(low)));
        let (expected, new) = (pair(RDX, RAX), pair(RCX, RBX));
        let span = self.modified_span(at, 2 * half.bytes() as u64)?;
        let mut old = 0;
        self.modify_span(&span, |value| {
            old = value;
            if value == expected { new } else { value }
        })?;
        if old != expected {
            self.set_register(part(RAX), old as u64 & half.mask());
            self.set_register(part(RDX), (old >> half.bits()) as u64 & half.mask());
        }
        self.machine.set_rflags(alu::with_zero(self.machine.rflags(), old == expected));
        Ok(())
    }

    /// BT, BTS, BTR and BTC. A bit offset in a register may be outside of the operand: multiples of the width are added to the address.
    pub(super) fn bit(&mut self, at: Address, width: Width, kind: BitKind, bit: Source) -> Result<(), Stop> {
        let number = self.source(bit);
        let at = match bit {
            Source::Immediate(_) => at,
            Source::Register(_) => {
                let words = (width.sign_extend(number) as i64).div_euclid(i64::from(width.bits()));
                let bytes = words.wrapping_mul(width.bytes() as i64) as u64;
                Address { displacement: at.displacement.wrapping_add(bytes), ..at }
            }
        };
        let mask = 1 << (number & u64::from(width.bits() - 1));
        let old = if kind == BitKind::Test {
            let span = self.faulting_span(at, width.bytes() as u64, Access::Read)?;
            self.load(&span)?
        } else {
            self.replace(at, width, |old| kind.apply(old, mask))?
        };
        self.machine.set_rflags(alu::with_carry(self.machine.rflags(), old & mask != 0));
        Ok(())
    }

    /// ADD to TEST, and the operations with one operand.
    pub(super) fn modify(&mut self, at: Address, width: Width, alu: Alu, value: Source) -> Result<(), Stop> {
        let (value, flags) = (self.source(value), self.machine.rflags());
        let old = if alu.writes() {
            self.replace(at, width, |old| alu.apply(width, old, value, flags).0)?
        } else {
            let span = self.faulting_span(at, width.bytes() as u64, Access::Read)?;
            self.load(&span)?
        };
        self.machine.set_rflags(alu.apply(width, old, value, flags).1);
        Ok(())
    }

    /// Replaces the operand by the result of `new`, and returns the old value.
    fn replace(&mut self, at: Address, width: Width, new: impl Fn(u64) -> u64) -> Result<u64, Stop> {
        let span = self.modified_span(at, width.bytes() as u64)?;
        let mut old = 0;
        self.modify_span(&span, |value| {
            old = value as u64 & width.mask();
            u128::from(new(old) & width.mask())
        })?;
        Ok(old)
    }
}
