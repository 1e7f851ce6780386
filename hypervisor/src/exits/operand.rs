//! Registers and addresses of an instruction, from the decoder's tables.
#![forbid(unsafe_code)]

use iced_x86::{Instruction, Register as Reg};

use super::{
    instruction::{Address, Register, Segment},
    width::Width,
};

/// The address of the memory operand. `None` for a base or index register that the hypervisor does not know.
pub(super) fn address(instruction: &Instruction) -> Option<Address> {
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    let part = |reg| match reg {
        // The decoder's displacement includes them.
        Reg::None | Reg::RIP | Reg::EIP => Some(None),
        reg => register(reg).map(Some),
    };
    let (base_register, index_register) = (part(base)?, part(index)?);
    let width = match (base_register.or(index_register), base) {
        (Some(register), _) => register.width,
        (None, Reg::RIP) => Width::Qword,
        (None, Reg::EIP) => Width::Dword,
        (None, _) => Width::at_most(u64::from(instruction.memory_displ_size())),
    };
    Some(Address {
        segment: segment(instruction.memory_segment())?,
        base: base_register.map(|register| register.number),
        index: index_register.map(|register| register.number),
        scale: if index_register.is_some() { instruction.memory_index_scale() as u8 } else { 1 },
        displacement: instruction.memory_displacement64() & width.mask(),
        width,
    })
}

/// A segment register. `None` for any other register.
pub(super) fn segment(reg: Reg) -> Option<Segment> {
    Some(match reg {
        Reg::ES => Segment::Es,
        Reg::CS => Segment::Cs,
        Reg::SS => Segment::Ss,
        Reg::DS => Segment::Ds,
        Reg::FS => Segment::Fs,
        Reg::GS => Segment::Gs,
        _ => return None,
    })
}

/// A general register. The decoder numbers general registers by width: low bytes with the four high ones in between, words, dwords, qwords.
pub(super) fn register(reg: Reg) -> Option<Register> {
    let number = |first: Reg| reg as u8 - first as u8;
    let low = |first, width| Some(Register { number: number(first), width, high: false });
    match reg as u32 {
        n if n >= Reg::AL as u32 && n <= Reg::BL as u32 => low(Reg::AL, Width::Byte),
        n if n >= Reg::AH as u32 && n <= Reg::BH as u32 => {
            Some(Register { number: number(Reg::AH), width: Width::Byte, high: true })
        }
        n if n >= Reg::SPL as u32 && n <= Reg::R15L as u32 => {
            Some(Register { number: number(Reg::SPL) + 4, width: Width::Byte, high: false })
        }
        n if n >= Reg::AX as u32 && n <= Reg::R15W as u32 => low(Reg::AX, Width::Word),
        n if n >= Reg::EAX as u32 && n <= Reg::R15D as u32 => low(Reg::EAX, Width::Dword),
        n if n >= Reg::RAX as u32 && n <= Reg::R15 as u32 => low(Reg::RAX, Width::Qword),
        _ => None,
    }
}
