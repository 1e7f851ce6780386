//! The instruction decoder against a second one, which another person wrote.

use imsvisor::exits::{
    decode::{Truncated, decode},
    instruction::{Decoded, MAX_LENGTH, Mode, Operation},
};
use yaxpeax_arch::{Decoder, LengthedInstruction, U8Reader};

/// An instruction as the second decoder has it.
struct Second {
    length: u8,
    /// It names memory.
    has_memory: bool,
    /// Bytes of memory that it accesses, if it says so.
    bytes: Option<u8>,
    text: String,
}

macro_rules! second {
    ($mode:ident, $bytes:expr) => {{
        use yaxpeax_x86::$mode::InstDecoder;
        let found = InstDecoder::default().decode(&mut U8Reader::new($bytes)).ok();
        found.map(|instruction| Second {
            length: instruction.len().to_const() as u8,
            has_memory: (0..instruction.operand_count()).any(|n| instruction.operand(n).is_memory()),
            bytes: instruction.mem_size().and_then(|size| size.bytes_size()),
            text: instruction.to_string(),
        })
    }};
}

/// The first byte selects the mode; the rest is code.
pub fn decoder(data: &[u8]) {
    let Some((&mode, code)) = data.split_first() else { return };
    let mode = [Mode::Bits64, Mode::Bits32, Mode::Bits16][usize::from(mode % 3)];
    let ours = decode(code, 0x1_0000, mode);
    let code = &code[..code.len().min(MAX_LENGTH)];
    let theirs = match mode {
        Mode::Bits64 => second!(long_mode, code),
        Mode::Bits32 => second!(protected_mode, code),
        Mode::Bits16 => second!(real_mode, code),
    };
    match ours {
        Ok(Decoded { length, operation }) => {
            assert!((1..=MAX_LENGTH as u8).contains(&length), "{length}");
            if let Some(theirs) = theirs
                && operation != Operation::Unsupported
            {
                compare(code, mode, length, operation, &theirs);
            }
        }
        Err(Truncated) => assert!(code.len() < MAX_LENGTH),
    }
}

fn compare(code: &[u8], mode: Mode, length: u8, operation: Operation, theirs: &Second) {
    let what = || format!("{mode:?} {code:02x?}: {operation:?}, {}", theirs.text);
    assert_eq!(length, theirs.length, "{}", what());
    match bytes(&operation) {
        Some(bytes) => {
            assert!(theirs.has_memory, "{}", what());
            assert!(theirs.bytes.is_none_or(|theirs| theirs == bytes), "{} has {:?} bytes", what(), theirs.bytes);
        }
        None if operation == Operation::NoAccess => {
            assert!(!theirs.has_memory || names_only(&theirs.text), "{}", what());
        }
        None => {}
    }
}

/// Bytes of the memory operand.
fn bytes(operation: &Operation) -> Option<u8> {
    Some(match operation {
        Operation::Store { width, .. } | Operation::Load { width, .. } | Operation::Modify { width, .. } => {
            width.bytes() as u8
        }
        Operation::Exchange { with, .. }
        | Operation::CompareExchange { with, .. }
        | Operation::ExchangeAdd { with, .. } => with.width.bytes() as u8,
        Operation::Combine { to, .. } => to.width.bytes() as u8,
        Operation::CompareExchangePair { half, .. } => 2 * half.bytes() as u8,
        Operation::VectorStore { from, .. } => from.bytes,
        Operation::VectorLoad { to, .. } => to.bytes,
        _ => return None,
    })
}

/// Instructions that name memory and access none.
fn names_only(text: &str) -> bool {
    ["lea", "nop", "prefetch"].iter().any(|name| text.split([' ', '.']).any(|word| word.starts_with(name)))
}
