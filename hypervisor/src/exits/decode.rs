//! Decodes an instruction that accessed a trapped page.
//!
//! Understood:
//!
//! - MOV in every form with general registers, immediates and absolute offsets, MOVNTI, MOVDIRI, MOVBE, MOVZX, MOVSX, MOVSXD;
//! - XCHG, XADD, CMPXCHG, CMPXCHG8B, CMPXCHG16B, ADD, OR, ADC, SBB, AND, SUB, XOR, INC, DEC, NEG, NOT, CMP, TEST, BT, BTS, BTR, BTC;
//! - MOVS, STOS and LODS;
//! - moves between memory and XMM or YMM registers: MOVUPS, MOVAPS, MOVUPD, MOVAPD, MOVDQU, MOVDQA, LDDQU, MOVNTPS, MOVNTPD, MOVNTDQ,
//!   MOVNTDQA, MOVD, MOVQ, MOVSS, MOVSD, MOVLPS, MOVLPD, MOVHPS, MOVHPD, with VEX as well (but for the last four's loads);
//! - MOVDIR64B; CLFLUSH, CLFLUSHOPT, CLWB and CLDEMOTE.
//!
//! Everything else that accesses memory (vector arithmetic, MMX, shifts, SETcc, the stack, far pointers, ENQCMD) is
//! [`Operation::Unsupported`].
//!
//! The bytes are the guest's and may be anything.
#![forbid(unsafe_code)]

use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction, MemorySize, Mnemonic, OpKind};

use super::{
    alu::Alu,
    fast,
    instruction::{
        Address, BitKind, Decoded, MAX_LENGTH, Mode, Operation, Register, Segment, Source, StringKind, StringOperation,
    },
    operand::{address, register, segment},
    vector_moves,
    width::Width,
};

/// The bytes end before the instruction does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncated;

/// Builds the decoder's tables: about 100 KiB of heap and a million instructions. Bring-up calls this, so that no guest's instruction needs
/// heap for it.
pub fn prepare() {
    const NOP: [u8; 1] = [0x90];
    let decoded = decode_any(&NOP, 0, Mode::Bits64);
    debug_assert!(decoded.is_ok_and(|decoded| decoded.operation == Operation::NoAccess));
}

/// Decodes the instruction at `rip`, the offset in the code segment. Only the first 15 bytes count.
pub fn decode(bytes: &[u8], rip: u64, mode: Mode) -> Result<Decoded, Truncated> {
    if mode == Mode::Bits64
        && let Some(decoded) = fast::decode(bytes, rip)
    {
        return Ok(decoded);
    }
    decode_any(bytes, rip, mode)
}

/// [`decode`] without the fast decoder for common forms.
#[inline(never)]
pub(super) fn decode_any(bytes: &[u8], rip: u64, mode: Mode) -> Result<Decoded, Truncated> {
    let bytes = bytes.get(..MAX_LENGTH).unwrap_or(bytes);
    let bitness = mode.address_width().bits();
    let Ok(mut decoder) = Decoder::try_with_ip(bitness, bytes, rip, DecoderOptions::NONE) else {
        return Ok(Decoded { length: 1, operation: Operation::Unsupported });
    };
    let instruction = decoder.decode();
    let length = instruction.len().clamp(1, MAX_LENGTH) as u8;
    let operation = match decoder.last_error() {
        DecoderError::None => operation(&instruction).unwrap_or(Operation::Unsupported),
        DecoderError::NoMoreBytes if bytes.len() < MAX_LENGTH => return Err(Truncated),
        _ => Operation::Unsupported,
    };
    Ok(Decoded { length, operation })
}

/// The operation. `None` if it is unsupported.
fn operation(instruction: &Instruction) -> Option<Operation> {
    match instruction.mnemonic() {
        Mnemonic::Mov | Mnemonic::Movnti | Mnemonic::Movdiri => mov(instruction, false),
        Mnemonic::Movbe => mov(instruction, true),
        Mnemonic::Movzx => load(instruction, false, false),
        Mnemonic::Movsx | Mnemonic::Movsxd => load(instruction, true, false),
        Mnemonic::Xchg => exchange(instruction),
        Mnemonic::Cmpxchg => with_register(instruction, |at, with| Operation::CompareExchange { at, with }),
        Mnemonic::Xadd => with_register(instruction, |at, with| Operation::ExchangeAdd { at, with }),
        Mnemonic::Cmpxchg8b => pair(instruction, Width::Dword),
        Mnemonic::Cmpxchg16b => pair(instruction, Width::Qword),
        Mnemonic::Bt => bit(instruction, BitKind::Test),
        Mnemonic::Bts => bit(instruction, BitKind::Set),
        Mnemonic::Btr => bit(instruction, BitKind::Reset),
        Mnemonic::Btc => bit(instruction, BitKind::Complement),
        Mnemonic::Movdir64b => block(instruction),
        Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Clwb | Mnemonic::Cldemote => {
            address(instruction).map(Operation::Flush)
        }
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => {
            string(instruction, StringKind::Stos, instruction.op0_kind())
        }
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq
            if !vector_moves::is_vector_move(instruction) =>
        {
            string(instruction, StringKind::Movs, instruction.op0_kind())
        }
        Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => {
            string(instruction, StringKind::Lods, instruction.op1_kind())
        }
        mnemonic => match alu(mnemonic) {
            Some(alu) => arithmetic(instruction, alu),
            None if vector_moves::is_vector_move(instruction) => vector_moves::decode(instruction),
            None => accesses_nothing(instruction).then_some(Operation::NoAccess),
        },
    }
}

fn alu(mnemonic: Mnemonic) -> Option<Alu> {
    Some(match mnemonic {
        Mnemonic::Add => Alu::Add,
        Mnemonic::Or => Alu::Or,
        Mnemonic::Adc => Alu::Adc,
        Mnemonic::Sbb => Alu::Sbb,
        Mnemonic::And => Alu::And,
        Mnemonic::Sub => Alu::Sub,
        Mnemonic::Xor => Alu::Xor,
        Mnemonic::Cmp => Alu::Cmp,
        Mnemonic::Test => Alu::Test,
        Mnemonic::Inc => Alu::Inc,
        Mnemonic::Dec => Alu::Dec,
        Mnemonic::Neg => Alu::Neg,
        Mnemonic::Not => Alu::Not,
        _ => return None,
    })
}

/// Whether the instruction has neither an explicit memory operand nor a stack access. The decoder reports other implicit accesses as memory
/// operands.
fn accesses_nothing(instruction: &Instruction) -> bool {
    let explicit = instruction.op_kinds().any(|kind| kind as u32 >= OpKind::MemorySegSI as u32);
    let stack = matches!(
        instruction.mnemonic(),
        Mnemonic::Push
            | Mnemonic::Pop
            | Mnemonic::Pusha
            | Mnemonic::Pushad
            | Mnemonic::Popa
            | Mnemonic::Popad
            | Mnemonic::Pushf
            | Mnemonic::Pushfd
            | Mnemonic::Pushfq
            | Mnemonic::Popf
            | Mnemonic::Popfd
            | Mnemonic::Popfq
            | Mnemonic::Call
            | Mnemonic::Ret
            | Mnemonic::Retf
            | Mnemonic::Enter
            | Mnemonic::Leave
            | Mnemonic::Iret
            | Mnemonic::Iretd
            | Mnemonic::Iretq
    );
    // These compute with an address, and access nothing there.
    let address_only = matches!(instruction.mnemonic(), Mnemonic::Lea | Mnemonic::Nop);
    address_only || !explicit && !stack
}

fn mov(instruction: &Instruction, swap: bool) -> Option<Operation> {
    match (instruction.op0_kind(), instruction.op1_kind()) {
        (OpKind::Memory, _) => {
            let width = memory_width(instruction)?;
            let value = source(instruction, 1, width)?;
            Some(Operation::Store { to: address(instruction)?, width, value, swap })
        }
        (_, OpKind::Memory) => load(instruction, false, swap),
        _ => Some(Operation::NoAccess),
    }
}

fn load(instruction: &Instruction, signed: bool, swap: bool) -> Option<Operation> {
    if instruction.op1_kind() != OpKind::Memory {
        return Some(Operation::NoAccess);
    }
    let (to, width) = (register(instruction.op0_register())?, memory_width(instruction)?);
    Some(Operation::Load { to, from: address(instruction)?, width, signed, swap })
}

fn exchange(instruction: &Instruction) -> Option<Operation> {
    let with = match (instruction.op0_kind(), instruction.op1_kind()) {
        (OpKind::Memory, _) => instruction.op1_register(),
        (_, OpKind::Memory) => instruction.op0_register(),
        _ => return Some(Operation::NoAccess),
    };
    Some(Operation::Exchange { at: address(instruction)?, with: register(with)? })
}

/// An operation on memory and a register, both of which are read and written.
fn with_register(instruction: &Instruction, made: impl FnOnce(Address, Register) -> Operation) -> Option<Operation> {
    if instruction.op0_kind() != OpKind::Memory {
        return Some(Operation::NoAccess);
    }
    Some(made(address(instruction)?, register(instruction.op1_register())?))
}

fn pair(instruction: &Instruction, half: Width) -> Option<Operation> {
    Some(Operation::CompareExchangePair { at: address(instruction)?, half })
}

fn bit(instruction: &Instruction, kind: BitKind) -> Option<Operation> {
    if instruction.op0_kind() != OpKind::Memory {
        return Some(Operation::NoAccess);
    }
    let width = memory_width(instruction)?;
    Some(Operation::Bit { at: address(instruction)?, width, kind, bit: source(instruction, 1, width)? })
}

/// MOVDIR64B: the destination is a register that holds an offset in ES (SDM vol. 2, MOVDIR64B).
fn block(instruction: &Instruction) -> Option<Operation> {
    let base = register(instruction.op0_register())?;
    let to = Address {
        segment: Segment::Es,
        base: Some(base.number),
        index: None,
        scale: 1,
        displacement: 0,
        width: base.width,
    };
    Some(Operation::Block { to, from: address(instruction)? })
}

fn arithmetic(instruction: &Instruction, alu: Alu) -> Option<Operation> {
    let one_operand = instruction.op_count() == 1;
    match (instruction.op0_kind(), instruction.op1_kind()) {
        (OpKind::Memory, _) => {
            let width = memory_width(instruction)?;
            let value = if one_operand { Source::Immediate(0) } else { source(instruction, 1, width)? };
            Some(Operation::Modify { at: address(instruction)?, width, alu, value })
        }
        (_, OpKind::Memory) if !one_operand => {
            Some(Operation::Combine { to: register(instruction.op0_register())?, alu, from: address(instruction)? })
        }
        _ => Some(Operation::NoAccess),
    }
}

fn string(instruction: &Instruction, kind: StringKind, operand: OpKind) -> Option<Operation> {
    let address = match operand {
        OpKind::MemoryESDI | OpKind::MemorySegSI => Width::Word,
        OpKind::MemoryESEDI | OpKind::MemorySegESI => Width::Dword,
        OpKind::MemoryESRDI | OpKind::MemorySegRSI => Width::Qword,
        // MOVSD of SSE has the same mnemonic.
        _ => return None,
    };
    // STOS has no source, so nothing to override.
    let segment = if kind == StringKind::Stos { Segment::Es } else { segment(instruction.memory_segment())? };
    // REPNE repeats as REP does where nothing is compared.
    let rep = instruction.has_rep_prefix() || instruction.has_repne_prefix();
    Some(Operation::String(StringOperation { kind, width: memory_width(instruction)?, rep, address, segment }))
}

fn source(instruction: &Instruction, operand: u32, width: Width) -> Option<Source> {
    match instruction.try_op_kind(operand).ok()? {
        OpKind::Register => register(instruction.try_op_register(operand).ok()?).map(Source::Register),
        _ => instruction.try_immediate(operand).ok().map(|value| Source::Immediate(value & width.mask())),
    }
}

fn memory_width(instruction: &Instruction) -> Option<Width> {
    Some(match instruction.memory_size() {
        MemorySize::UInt8 | MemorySize::Int8 => Width::Byte,
        MemorySize::UInt16 | MemorySize::Int16 => Width::Word,
        MemorySize::UInt32 | MemorySize::Int32 => Width::Dword,
        MemorySize::UInt64 | MemorySize::Int64 => Width::Qword,
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
