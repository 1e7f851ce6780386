//! The instruction decoder against a second one, which another person wrote.

use imsvisor::exits::{
    decode::{Truncated, decode},
    instruction::{Decoded, MAX_LENGTH, Mode, Operation},
    width::Width,
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
                && !is_known_fault(code, mode, &operation, &theirs)
            {
                compare(code, mode, length, operation, &theirs);
            }
        }
        Err(Truncated) => assert!(code.len() < MAX_LENGTH),
    }
}

fn compare(code: &[u8], mode: Mode, length: u8, operation: Operation, theirs: &Second) {
    if let Some(why) = disagreement(length, operation, theirs) {
        panic!("{why}: {mode:?} {code:02x?}: {length} bytes, {operation:?}; {} bytes, {}", theirs.length, theirs.text);
    }
}

/// In what the decoders disagree.
fn disagreement(length: u8, operation: Operation, theirs: &Second) -> Option<&'static str> {
    if length != theirs.length {
        return Some("length");
    }
    match bytes(&operation) {
        Some(_) if !theirs.has_memory => Some("memory"),
        Some(bytes) if theirs.bytes.is_some_and(|theirs| theirs != bytes) => Some("width"),
        None if operation == Operation::NoAccess && theirs.has_memory && !names_only(&theirs.text) => Some("no memory"),
        _ => None,
    }
}

/// Where the second decoder is wrong by the manual, each found by this comparison:
///
/// - a REX prefix counts that is not the last prefix (SDM vol. 2, 2.2.1);
/// - MOVSXD with 16-bit operands reads 32 bits (SDM vol. 2, MOVSXD);
/// - MOVD to an XMM register reads 64 bits (SDM vol. 2, MOVD);
/// - the operand-size prefix does not change the displacement of relative jumps (SDM vol. 2, Jcc). They access no memory.
fn is_known_fault(code: &[u8], mode: Mode, operation: &Operation, theirs: &Second) -> bool {
    let is_jump = |text: &str| {
        text.split(' ')
            .any(|word| word.starts_with('j') || word.starts_with("loop") || word == "xbegin" || word == "call")
    };
    match operation {
        _ if mode == Mode::Bits64 && has_ignored_rex(code) => true,
        Operation::Load { width: Width::Word, .. } => theirs.text.contains("movsxd"),
        Operation::VectorLoad { to, .. } => to.bytes == 4 && theirs.text.contains("movq"),
        Operation::NoAccess => is_jump(&theirs.text),
        _ => false,
    }
}

/// Whether a prefix follows a REX prefix.
fn has_ignored_rex(code: &[u8]) -> bool {
    let is_rex = |byte: u8| byte & 0xf0 == 0x40;
    let is_prefix = |byte: u8| {
        matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x66 | 0x67 | 0xf0 | 0xf2 | 0xf3) || is_rex(byte)
    };
    let prefixes = code.iter().take_while(|byte| is_prefix(**byte)).count();
    code[..prefixes].iter().rev().skip(1).any(|byte| is_rex(*byte))
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
