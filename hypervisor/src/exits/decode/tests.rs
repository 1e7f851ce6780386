//! Forms by their bytes, and agreement: of the short way with the decoder's tables, and of addresses with the decoder's own sums.

use proptest::prelude::*;

use super::*;

const RIP: u64 = 0x1_0000;

fn at(segment: Segment, base: Option<u8>, index: Option<u8>, scale: u8, displacement: u64) -> Address {
    Address { segment, base, index, scale, displacement, width: Width::Qword }
}

const fn reg(number: u8, width: Width) -> Register {
    Register { number, width, high: false }
}

fn store(to: Address, width: Width, value: Source) -> Operation {
    Operation::Store { to, width, value, swap: false }
}

fn load(to: Register, from: Address, width: Width, signed: bool) -> Operation {
    Operation::Load { to, from, width, signed, swap: false }
}

fn decode64(bytes: &[u8]) -> Decoded {
    decode(bytes, RIP, Mode::Bits64).expect("complete")
}

#[test]
fn every_form_of_store_and_load_is_read_right() {
    use Width::{Byte, Dword, Qword, Word};
    let rdi = at(Segment::Ds, Some(7), None, 1, 0);
    let from = |number, width| Source::Register(reg(number, width));
    let ah = Register { number: 0, width: Byte, high: true };
    let cases: &[(&[u8], Operation)] = &[
        (&[0x88, 0x07], store(rdi, Byte, from(0, Byte))),
        (&[0x88, 0x27], store(rdi, Byte, Source::Register(ah))),
        (&[0x40, 0x88, 0x27], store(rdi, Byte, from(4, Byte))),
        (&[0x66, 0x89, 0x0f], store(rdi, Word, from(1, Word))),
        (&[0x89, 0x47, 0x10], store(at(Segment::Ds, Some(7), None, 1, 0x10), Dword, from(0, Dword))),
        (&[0x4c, 0x89, 0x3f], store(rdi, Qword, from(15, Qword))),
        (&[0x89, 0x44, 0xb5, 0xf0], store(at(Segment::Ss, Some(5), Some(6), 4, -16i64 as u64), Dword, from(0, Dword))),
        (&[0x43, 0x89, 0x04, 0xe4], store(at(Segment::Ds, Some(12), Some(12), 8, 0), Dword, from(0, Dword))),
        (&[0x89, 0x05, 4, 0, 0, 0], store(at(Segment::Ds, None, None, 1, RIP + 10), Dword, from(0, Dword))),
        (
            &[0x89, 0x04, 0x25, 0, 0, 0, 0x80],
            store(at(Segment::Ds, None, None, 1, -0x8000_0000i64 as u64), Dword, from(0, Dword)),
        ),
        (&[0xc6, 0x07, 0xff], store(rdi, Byte, Source::Immediate(0xff))),
        (&[0x66, 0xc7, 0x07, 0x34, 0x12], store(rdi, Word, Source::Immediate(0x1234))),
        (
            &[0xc7, 0x05, 2, 0, 0, 0, 1, 0, 0, 0],
            store(at(Segment::Ds, None, None, 1, RIP + 12), Dword, Source::Immediate(1)),
        ),
        (&[0x48, 0xc7, 0x07, 0xfe, 0xff, 0xff, 0xff], store(rdi, Qword, Source::Immediate(-2i64 as u64))),
        (&[0x65, 0x89, 0x07], store(Address { segment: Segment::Gs, ..rdi }, Dword, from(0, Dword))),
        (&[0x67, 0x89, 0x07], store(Address { width: Dword, ..rdi }, Dword, from(0, Dword))),
        (
            &[0xa3, 1, 2, 3, 4, 5, 6, 7, 8],
            store(at(Segment::Ds, None, None, 1, 0x0807_0605_0403_0201), Dword, from(0, Dword)),
        ),
        (&[0x48, 0x0f, 0xc3, 0x0f], store(rdi, Qword, from(1, Qword))),
        (&[0x0f, 0x38, 0xf9, 0x0f], store(rdi, Dword, from(1, Dword))),
        (&[0x0f, 0x38, 0xf1, 0x0f], Operation::Store { to: rdi, width: Dword, value: from(1, Dword), swap: true }),
        (&[0x8a, 0x27], load(ah, rdi, Byte, false)),
        (&[0x8b, 0x07], load(reg(0, Dword), rdi, Dword, false)),
        (&[0x48, 0x8b, 0x07], load(reg(0, Qword), rdi, Qword, false)),
        (&[0x0f, 0xb6, 0x07], load(reg(0, Dword), rdi, Byte, false)),
        (&[0x66, 0x0f, 0xbe, 0x07], load(reg(0, Word), rdi, Byte, true)),
        (&[0x48, 0x63, 0x07], load(reg(0, Qword), rdi, Dword, true)),
        (
            &[0x0f, 0x38, 0xf0, 0x0f],
            Operation::Load { to: reg(1, Dword), from: rdi, width: Dword, signed: false, swap: true },
        ),
        (&[0x87, 0x07], Operation::Exchange { at: rdi, with: reg(0, Dword) }),
        (
            &[0xf0, 0x83, 0x0f, 0xff],
            Operation::Modify { at: rdi, width: Dword, alu: Alu::Or, value: Source::Immediate(0xffff_ffff) },
        ),
        (&[0xff, 0x07], Operation::Modify { at: rdi, width: Dword, alu: Alu::Inc, value: Source::Immediate(0) }),
        (&[0x85, 0x07], Operation::Modify { at: rdi, width: Dword, alu: Alu::Test, value: from(0, Dword) }),
        (&[0x23, 0x07], Operation::Combine { to: reg(0, Dword), alu: Alu::And, from: rdi }),
    ];
    for (bytes, operation) in cases {
        assert_eq!(decode64(bytes), Decoded { length: bytes.len() as u8, operation: *operation }, "{bytes:02x?}");
    }
}

#[test]
fn strings_know_their_widths_and_prefixes() {
    let string =
        |kind, width, rep, address, segment| Operation::String(StringOperation { kind, width, rep, address, segment });
    use StringKind::{Lods, Movs, Stos};
    assert_eq!(decode64(&[0xf3, 0xab]).operation, string(Stos, Width::Dword, true, Width::Qword, Segment::Es));
    assert_eq!(decode64(&[0x67, 0xaa]).operation, string(Stos, Width::Byte, false, Width::Dword, Segment::Es));
    assert_eq!(
        decode64(&[0x65, 0xf2, 0x48, 0xa5]).operation,
        string(Movs, Width::Qword, true, Width::Qword, Segment::Gs)
    );
    assert_eq!(decode64(&[0x66, 0xad]).operation, string(Lods, Width::Word, false, Width::Qword, Segment::Ds));
    let in_16_bit_code = decode(&[0xf3, 0xab], 0, Mode::Bits16).map(|decoded| decoded.operation);
    assert_eq!(in_16_bit_code, Ok(string(Stos, Width::Word, true, Width::Word, Segment::Es)));
}

#[test]
fn sixteen_and_thirty_two_bit_code_have_their_own_defaults() {
    let bx_si = Address {
        segment: Segment::Ds,
        base: Some(3),
        index: Some(6),
        scale: 1,
        displacement: 0xfffe,
        width: Width::Word,
    };
    let from = |width| Source::Register(reg(0, width));
    let decoded = decode(&[0x89, 0x40, 0xfe], 0, Mode::Bits16);
    assert_eq!(decoded, Ok(Decoded { length: 3, operation: store(bx_si, Width::Word, from(Width::Word)) }));
    let absolute = Address {
        segment: Segment::Ds,
        base: None,
        index: None,
        scale: 1,
        displacement: 0xfee0_0000,
        width: Width::Dword,
    };
    let decoded = decode(&[0xa3, 0, 0, 0xe0, 0xfe], 0, Mode::Bits32);
    assert_eq!(decoded, Ok(Decoded { length: 5, operation: store(absolute, Width::Dword, from(Width::Dword)) }));
}

#[test]
fn attack_18_what_is_not_emulated_is_told_from_what_accesses_nothing() {
    let unsupported: &[&[u8]] = &[
        &[0x0f, 0x58, 0x07],             // ADDPS
        &[0x0f, 0x7f, 0x07],             // MOVQ of MMX
        &[0xf2, 0x0f, 0x38, 0xf8, 0x07], // ENQCMD
        &[0xd1, 0x27],                   // SHL
        &[0x0f, 0x94, 0x07],             // SETZ
        &[0xf0, 0x89, 0x07],             // LOCK MOV is none
        &[0x8c, 0x1f],                   // MOV from DS
        &[0xff, 0x37],                   // PUSH
        &[0x50],                         // PUSH
        &[0xc3],                         // RET
        &[0xa6],                         // CMPS
    ];
    for bytes in unsupported {
        assert_eq!(decode64(bytes).operation, Operation::Unsupported, "{bytes:02x?}");
    }
    // The last: MOVUPS and VMOVSS between registers.
    let nothing: &[&[u8]] = &[&[0x0f, 0x11, 0xc8], &[0xc5, 0xfa, 0x10, 0xc1]];
    for bytes in nothing {
        assert_eq!(decode64(bytes).operation, Operation::NoAccess, "{bytes:02x?}");
    }
    for bytes in [&[0x90][..], &[0x89, 0xc0], &[0x31, 0xc0], &[0x0f, 0x1f, 0x00], &[0xeb, 0xfe], &[0x87, 0xc8]] {
        assert_eq!(decode64(bytes).operation, Operation::NoAccess, "{bytes:02x?}");
    }
}

#[test]
fn a_prefix_of_an_instruction_is_truncated_and_fifteen_prefixes_are_not() {
    let bytes = [0x48, 0xc7, 0x84, 0x8f, 1, 2, 3, 4, 5, 6, 7, 8];
    for end in 0..bytes.len() {
        assert_eq!(decode(&bytes[..end], RIP, Mode::Bits64), Err(Truncated), "{end}");
    }
    assert_eq!(decode64(&bytes).length, 12);
    assert_eq!(decode64(&[0x66; 15]).operation, Operation::Unsupported);
    assert_eq!(decode64(&[0x66; 40]).operation, Operation::Unsupported);
}

/// Opcodes of the short way more often than by chance.
fn likely() -> impl Strategy<Value = Vec<u8>> {
    let prefix =
        prop::collection::vec(prop_oneof![Just(0x66u8), 0x40u8..0x50, Just(0x67), Just(0x65), Just(0xf3)], 0..3);
    let opcode = prop_oneof![0x88u8..0x8c, 0xc6u8..0xc8, any::<u8>()];
    (prefix, opcode, prop::collection::vec(any::<u8>(), 0..14)).prop_map(|(mut bytes, opcode, rest)| {
        bytes.push(opcode);
        bytes.extend(rest);
        bytes
    })
}

fn memory(operation: &Operation) -> Option<Address> {
    match *operation {
        Operation::Store { to: at, .. } | Operation::Load { from: at, .. } | Operation::Combine { from: at, .. } => {
            Some(at)
        }
        Operation::Exchange { at, .. } | Operation::Modify { at, .. } => Some(at),
        _ => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn the_short_way_agrees_with_the_tables(bytes in likely(), rip: u64) {
        if let Some(decoded) = crate::exits::fast::decode(&bytes, rip) {
            prop_assert_eq!(Ok(decoded), decode_any(&bytes, rip, Mode::Bits64));
        }
    }

    #[test]
    fn any_bytes_decode_without_panic_to_at_most_fifteen(bytes in prop::collection::vec(any::<u8>(), 0..20), rip: u64) {
        for mode in [Mode::Bits16, Mode::Bits32, Mode::Bits64] {
            if let Ok(decoded) = decode(&bytes, rip, mode) {
                prop_assert!((1..=15).contains(&decoded.length) && usize::from(decoded.length) <= bytes.len());
            }
        }
    }

    #[test]
    fn addresses_are_the_decoders(bytes in likely(), rip: u64, registers: [u64; 16]) {
        for mode in [Mode::Bits16, Mode::Bits32, Mode::Bits64] {
            let Some(address) = decode(&bytes, rip, mode).ok().and_then(|decoded| memory(&decoded.operation)) else {
                continue;
            };
            let bitness = mode.address_width().bits();
            let instruction = Decoder::with_ip(bitness, &bytes, rip, DecoderOptions::NONE).decode();
            let operand = instruction.op_kinds().position(|kind| kind == OpKind::Memory).unwrap() as u32;
            let expected = instruction.virtual_address(operand, 0, |reg, _, _| match super::register(reg) {
                Some(register) => Some(registers[usize::from(register.number)] & register.width.mask()),
                None => Some(0),
            });
            prop_assert_eq!(Some(address.offset(|number| registers[usize::from(number)])), expected);
        }
    }
}
