//! Moves between memory and XMM or YMM registers, decoded from the decoder's tables.
#![forbid(unsafe_code)]

use iced_x86::{Instruction, Mnemonic, OpKind, Register as Reg};

use super::{
    instruction::{Lane, Operation, Rest},
    operand::address,
};

/// The part of a register that a move accesses.
#[derive(Clone, Copy)]
enum Kind {
    /// All of the register.
    Whole,
    /// Its low bytes. A load clears the rest.
    Low(u8),
    /// One half of an XMM register, beginning at this byte. A load keeps the other half.
    Half(u8),
}

/// The kind of a move, and whether its encoding is VEX.
fn kind(mnemonic: Mnemonic) -> Option<(Kind, bool)> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Movups | M::Movaps | M::Movupd | M::Movapd | M::Movdqu | M::Movdqa | M::Lddqu => (Kind::Whole, false),
        M::Movntps | M::Movntpd | M::Movntdq | M::Movntdqa => (Kind::Whole, false),
        M::Vmovups | M::Vmovaps | M::Vmovupd | M::Vmovapd | M::Vmovdqu | M::Vmovdqa | M::Vlddqu => (Kind::Whole, true),
        M::Vmovntps | M::Vmovntpd | M::Vmovntdq | M::Vmovntdqa => (Kind::Whole, true),
        M::Movd | M::Movss => (Kind::Low(4), false),
        M::Vmovd | M::Vmovss => (Kind::Low(4), true),
        M::Movq | M::Movsd => (Kind::Low(8), false),
        M::Vmovq | M::Vmovsd => (Kind::Low(8), true),
        M::Movlps | M::Movlpd => (Kind::Half(0), false),
        M::Vmovlps | M::Vmovlpd => (Kind::Half(0), true),
        M::Movhps | M::Movhpd => (Kind::Half(8), false),
        M::Vmovhps | M::Vmovhpd => (Kind::Half(8), true),
        _ => return None,
    })
}

/// Whether an instruction is a vector move. MOVSD and the string instruction share a mnemonic.
pub(super) fn is_vector_move(instruction: &Instruction) -> bool {
    let string = instruction.op0_kind() != OpKind::Register && instruction.op0_kind() != OpKind::Memory;
    kind(instruction.mnemonic()).is_some() && !string
}

/// Decodes a move. `None` if it is not supported: MMX registers, registers beyond 15, loads with a third operand.
pub(super) fn decode(instruction: &Instruction) -> Option<Operation> {
    let (kind, vex) = kind(instruction.mnemonic())?;
    match (instruction.op0_kind(), instruction.op1_kind()) {
        (OpKind::Memory, OpKind::Register) => {
            Some(Operation::VectorStore { to: address(instruction)?, from: lane(instruction.op1_register(), kind)? })
        }
        (OpKind::Register, OpKind::Memory) => {
            let rest = match kind {
                _ if vex => Rest::Cleared,
                Kind::Low(_) => Rest::ClearedInXmm,
                Kind::Whole | Kind::Half(_) => Rest::Kept,
            };
            let to = lane(instruction.op0_register(), kind)?;
            Some(Operation::VectorLoad { to, from: address(instruction)?, rest })
        }
        (OpKind::Register, OpKind::Register) if instruction.op_count() == 2 => Some(Operation::NoAccess),
        (OpKind::Register, OpKind::Register) if instruction.op2_kind() == OpKind::Register => Some(Operation::NoAccess),
        _ => None,
    }
}

fn lane(register: Reg, kind: Kind) -> Option<Lane> {
    let number = |first: Reg| (register as u32).checked_sub(first as u32).filter(|&number| number < 16);
    let (register, all) = match (number(Reg::XMM0), number(Reg::YMM0)) {
        (Some(number), _) => (number as u8, 16),
        (_, Some(number)) => (number as u8, 32),
        _ => return None,
    };
    let (first, bytes) = match kind {
        Kind::Whole => (0, all),
        Kind::Low(bytes) => (0, bytes),
        Kind::Half(first) => (first, 8),
    };
    Some(Lane { register, first, bytes })
}
