//! The fast decoder for loads and stores of compilers: MOV between memory and a register or an immediate, in 64-bit code, with no prefix
//! but operand size and REX. A table-driven decoder takes several times as long.
#![forbid(unsafe_code)]

use super::{
    instruction::{Address, Decoded, MAX_LENGTH, Operation, Register, Segment, Source},
    width::Width,
};

const REX_B: u8 = 1;
const REX_X: u8 = 2;
const REX_R: u8 = 4;
const REX_W: u8 = 8;

/// The remaining bytes.
struct Bytes<'a> {
    rest: &'a [u8],
    taken: u8,
}

impl Bytes<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        self.taken += N as u8;
        Some(*first)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| byte)
    }

    /// A displacement or immediate of 1, 2 or 4 bytes, its sign extended.
    fn signed(&mut self, width: Width) -> Option<u64> {
        Some(match width {
            Width::Byte => i8::from_le_bytes(self.take()?) as u64,
            Width::Word => i16::from_le_bytes(self.take()?) as u64,
            _ => i32::from_le_bytes(self.take()?) as u64,
        })
    }
}

/// Decodes an instruction. `None` for other forms, and if the bytes end too early.
pub(super) fn decode(bytes: &[u8], rip: u64) -> Option<Decoded> {
    let mut bytes = Bytes { rest: bytes.get(..MAX_LENGTH).unwrap_or(bytes), taken: 0 };
    let mut opcode = bytes.byte()?;
    let word = opcode == 0x66;
    if word {
        opcode = bytes.byte()?;
    }
    let rex = if opcode & 0xf0 == 0x40 { opcode } else { 0 };
    if rex != 0 {
        opcode = bytes.byte()?;
    }
    if !matches!(opcode, 0x88..=0x8b | 0xc6 | 0xc7) {
        return None;
    }
    let width = match (opcode & 1, rex & REX_W, word) {
        (0, _, _) => Width::Byte,
        (_, REX_W, _) => Width::Qword,
        (_, _, true) => Width::Word,
        _ => Width::Dword,
    };
    let modrm = bytes.byte()?;
    let (mut memory, relative) = address(&mut bytes, modrm, rex)?;
    let reg = modrm >> 3 & 7;
    let operation = match opcode {
        0xc6 | 0xc7 if reg != 0 => return None,
        0xc6 | 0xc7 => {
            let value = Source::Immediate(bytes.signed(width)? & width.mask());
            complete(&mut memory, relative, &bytes, rip);
            Operation::Store { to: memory, width, value, swap: false }
        }
        _ => {
            complete(&mut memory, relative, &bytes, rip);
            let register = register(reg, width, rex);
            if opcode & 2 == 0 {
                Operation::Store { to: memory, width, value: Source::Register(register), swap: false }
            } else {
                Operation::Load { to: register, from: memory, width, signed: false, swap: false }
            }
        }
    };
    Some(Decoded { length: bytes.taken, operation })
}

/// Without REX the byte registers 4 to 7 are AH, CH, DH, BH.
fn register(reg: u8, width: Width, rex: u8) -> Register {
    if width == Width::Byte && rex == 0 && reg >= 4 {
        return Register { number: reg - 4, width, high: true };
    }
    Register { number: reg | if rex & REX_R != 0 { 8 } else { 0 }, width, high: false }
}

/// Completes an address relative to RIP, which is the next instruction's.
fn complete(memory: &mut Address, relative: bool, bytes: &Bytes<'_>, rip: u64) {
    if relative {
        memory.displacement = memory.displacement.wrapping_add(rip).wrapping_add(u64::from(bytes.taken));
    }
}

/// The memory operand of ModRM, SIB and displacement, and whether it is relative to RIP (SDM vol. 2, tables 2-2 and 2-3).
fn address(bytes: &mut Bytes<'_>, modrm: u8, rex: u8) -> Option<(Address, bool)> {
    let (mode, rm) = (modrm >> 6, modrm & 7);
    let extension = |bit| if rex & bit != 0 { 8 } else { 0 };
    let (mut base, mut index, mut scale) = (Some(rm | extension(REX_B)), None, 1);
    let mut low_base = rm;
    match (mode, rm) {
        (3, _) => return None,
        (_, 4) => {
            let sib = bytes.byte()?;
            low_base = sib & 7;
            base = Some(low_base | extension(REX_B));
            // Index 4 is none; 12 is R12.
            index = Some(sib >> 3 & 7 | extension(REX_X)).filter(|&index| index != 4);
            scale = if index.is_some() { 1 << (sib >> 6) } else { 1 };
        }
        _ => {}
    }
    let absolute = mode == 0 && low_base == 5;
    if absolute {
        base = None;
    }
    let displacement = match mode {
        0 if !absolute => 0,
        1 => bytes.signed(Width::Byte)?,
        _ => bytes.signed(Width::Dword)?,
    };
    let segment = if matches!(base, Some(4 | 5)) { Segment::Ss } else { Segment::Ds };
    let address = Address { segment, base, index, scale, displacement, width: Width::Qword };
    Some((address, absolute && rm == 5))
}
