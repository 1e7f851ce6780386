//! Descriptors: their fields, and the checks that the device makes before it does anything.

use crate::Table;
use crate::spec::{flag, opcode, status};

/// A descriptor's fields (`struct dsa_hw_desc`).
#[derive(Clone, Copy)]
pub(crate) struct Descriptor {
    words: [u64; 8],
}

/// What a queue and its place allow to a descriptor.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) max_transfer: u32,
    pub(crate) max_batch: u32,
    pub(crate) in_batch: bool,
    /// Descriptors may ask to wait for pages.
    pub(crate) block: bool,
}

/// Where a descriptor came from.
#[derive(Clone, Copy)]
pub(crate) struct Origin {
    pub(crate) queue: usize,
    pub(crate) table: Table,
    pub(crate) pasid: Option<u32>,
    pub(crate) limits: Limits,
}

/// What a descriptor asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Nop,
    Drain,
    Batch { list: u64, count: u32 },
    Move { source: u64, destination: u64, size: u32 },
    Fill { pattern: u64, destination: u64, size: u32 },
    Compare { first: u64, second: u64, size: u32, expected: Option<u8> },
    Crc { source: u64, size: u32, seed: Seed, bypass_reflection: bool, bypass_data_reflection: bool },
}

/// Where a CRC's seed comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seed {
    Value(u32),
    At(u64),
}

/// Why a descriptor was not begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: u8,
    pub(crate) invalid_flags: u32,
}

impl Refusal {
    fn new(status: u8) -> Self {
        Self { status, invalid_flags: 0 }
    }
}

/// Flags that every operation takes.
const COMMON_FLAGS: u32 = flag::CRAV | flag::RCR | flag::RCI | flag::CR_TCS;

/// The PASID that ENQCMD put into a descriptor.
pub(crate) fn submitted_pasid(bytes: &[u8; 64]) -> u32 {
    Descriptor::new(bytes).pasid()
}

impl Descriptor {
    pub(crate) fn new(bytes: &[u8; 64]) -> Self {
        let mut words = [0; 8];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = chunk.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        }
        Self { words }
    }

    pub(crate) fn pasid(&self) -> u32 {
        self.words[0] as u32 & 0xf_ffff
    }

    pub(crate) fn flags(&self) -> u32 {
        (self.words[0] >> 32) as u32 & 0xff_ffff
    }

    pub(crate) fn has(&self, flag: u32) -> bool {
        self.flags() & flag != 0
    }

    pub(crate) fn opcode(&self) -> u8 {
        (self.words[0] >> 56) as u8
    }

    pub(crate) fn completion(&self) -> u64 {
        self.words[1]
    }

    fn size(&self) -> u32 {
        self.words[4] as u32
    }

    pub(crate) fn handle(&self) -> u16 {
        (self.words[4] >> 32) as u16
    }

    /// The operation, if opcode, flags, reserved fields and sizes are right.
    pub(crate) fn check(&self, limits: &Limits) -> Result<Operation, Refusal> {
        let operation = self.operation(limits)?;
        self.check_flags(limits)?;
        if self.reserved_used() {
            return Err(Refusal::new(status::NOZERO_RESERVE));
        }
        self.check_size(&operation, limits)?;
        Ok(operation)
    }

    fn operation(&self, limits: &Limits) -> Result<Operation, Refusal> {
        let [_, _, third, fourth, _, sixth, seventh, _] = self.words;
        let size = self.size();
        Ok(match self.opcode() {
            opcode::NOOP => Operation::Nop,
            opcode::BATCH if !limits.in_batch => Operation::Batch { list: third, count: size },
            opcode::DRAIN if !limits.in_batch => Operation::Drain,
            opcode::MEMMOVE => Operation::Move { source: third, destination: fourth, size },
            opcode::MEMFILL => Operation::Fill { pattern: third, destination: fourth, size },
            opcode::COMPARE => {
                let expected = self.has(flag::CR).then_some(sixth as u8);
                Operation::Compare { first: third, second: fourth, size, expected }
            }
            opcode::CRCGEN => Operation::Crc {
                source: third,
                size,
                seed: if self.has(flag::READ_CRC_SEED) { Seed::At(seventh) } else { Seed::Value(sixth as u32) },
                bypass_reflection: self.has(flag::BYPASS_REFLECTION),
                bypass_data_reflection: self.has(flag::BYPASS_DATA_REFLECTION),
            },
            _ => return Err(Refusal::new(status::BAD_OPCODE)),
        })
    }

    fn check_flags(&self, limits: &Limits) -> Result<(), Refusal> {
        let addresses = flag::ADDR1_TCS | flag::ADDR2_TCS;
        let own = match self.opcode() {
            opcode::BATCH => flag::ADDR1_TCS,
            opcode::MEMMOVE | opcode::MEMFILL => addresses | flag::CC | flag::STORD,
            opcode::COMPARE => addresses | flag::CR,
            opcode::CRCGEN => {
                flag::ADDR1_TCS | flag::READ_CRC_SEED | flag::BYPASS_REFLECTION | flag::BYPASS_DATA_REFLECTION
            }
            _ => 0,
        };
        let waits = limits.block && !matches!(self.opcode(), opcode::NOOP | opcode::DRAIN);
        let own = own | if waits { flag::BOF } else { 0 };
        let fence = if limits.in_batch { flag::FENCE } else { 0 };
        let mut invalid_flags = self.flags() & !(COMMON_FLAGS | own | fence);
        if self.has(flag::RCR) && !self.has(flag::CRAV) {
            invalid_flags |= flag::RCR;
        }
        if invalid_flags != 0 {
            return Err(Refusal { status: status::INVALID_FLAGS, invalid_flags });
        }
        Ok(())
    }

    /// A reserved field is not zero. Which fields are reserved depends on the operation.
    fn reserved_used(&self) -> bool {
        let [first, completion, third, fourth, fifth, sixth, seventh, eighth] = self.words;
        let general = first as u32 & 0x7ff0_0000 != 0 || fifth >> 48 != 0 || eighth != 0;
        let no_record = !self.has(flag::CRAV) && completion != 0;
        let no_interrupt = !self.has(flag::RCI) && self.handle() != 0;
        let own = match self.opcode() {
            opcode::NOOP | opcode::DRAIN => third | fourth | u64::from(self.size()) | sixth | seventh,
            opcode::BATCH => fourth | sixth | seventh,
            opcode::COMPARE => sixth & if self.has(flag::CR) { !0xff } else { !0 } | seventh,
            opcode::CRCGEN => {
                let seed = if self.has(flag::READ_CRC_SEED) { sixth } else { sixth >> 32 | seventh };
                fourth | seed
            }
            _ => sixth | seventh,
        };
        general || no_record || no_interrupt || own != 0
    }

    fn check_size(&self, operation: &Operation, limits: &Limits) -> Result<(), Refusal> {
        let size = self.size();
        match operation {
            Operation::Nop | Operation::Drain => Ok(()),
            Operation::Batch { list, .. } if !list.is_multiple_of(64) => Err(Refusal::new(status::DESCLIST_ALIGN)),
            Operation::Batch { count, .. } if *count < 2 || *count > limits.max_batch => {
                Err(Refusal::new(status::DESC_CNT_ERANGE))
            }
            Operation::Batch { .. } => Ok(()),
            _ if size == 0 || size > limits.max_transfer => Err(Refusal::new(status::XFER_ERANGE)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Build;

    const LIMITS: Limits = Limits { max_transfer: 4096, max_batch: 8, in_batch: false, block: false };

    fn refusal(build: &Build) -> (u8, u32) {
        let refusal = Descriptor::new(&build.bytes()).check(&LIMITS).unwrap_err();
        (refusal.status, refusal.invalid_flags)
    }

    fn build(opcode: u8) -> Build {
        Build { opcode, size: if opcode == 0 || opcode == 2 { 0 } else { 4 }, ..Build::default() }
    }

    #[test]
    fn opcodes_outside_the_subset_are_refused() {
        for number in (0..=255u8).filter(|number| *number > 63 || opcode::ALL >> number & 1 == 0) {
            assert_eq!(refusal(&build(number)).0, status::BAD_OPCODE);
        }
        for number in [0, 1, 2, 3, 4, 5, 0x10] {
            assert!(Descriptor::new(&build(number).bytes()).check(&LIMITS).is_ok());
        }
        let inside = Limits { in_batch: true, ..LIMITS };
        for number in [opcode::BATCH, opcode::DRAIN] {
            let refused = Descriptor::new(&build(number).bytes()).check(&inside).unwrap_err();
            assert_eq!(refused.status, status::BAD_OPCODE);
        }
    }

    #[test]
    fn flags_are_refused_by_name() {
        assert_eq!(refusal(&Build { flags: flag::FENCE, ..build(0) }), (status::INVALID_FLAGS, flag::FENCE));
        assert_eq!(refusal(&Build { flags: flag::BOF, ..build(3) }), (status::INVALID_FLAGS, flag::BOF));
        assert_eq!(refusal(&Build { flags: flag::RCR, ..build(3) }), (status::INVALID_FLAGS, flag::RCR));
        assert_eq!(refusal(&Build { flags: flag::CR, ..build(3) }), (status::INVALID_FLAGS, flag::CR));
        assert_eq!(refusal(&Build { flags: 1 << 20, ..build(0x10) }), (status::INVALID_FLAGS, 1 << 20));
    }

    #[test]
    fn every_reserved_bit_of_a_nop_is_refused() {
        let fine = build(0).bytes();
        assert!(Descriptor::new(&fine).check(&LIMITS).is_ok());
        // Flags and opcode have their own checks, PASID and privilege belong to the submission.
        for bit in (0..512).filter(|bit| !(32..64).contains(bit) && *bit >= 20 && *bit != 31) {
            let mut bytes = fine;
            bytes[bit / 8] |= 1 << (bit % 8);
            let refused = Descriptor::new(&bytes).check(&LIMITS).unwrap_err();
            assert_eq!(refused.status, status::NOZERO_RESERVE, "bit {bit}");
        }
    }

    #[test]
    fn sizes_out_of_range_are_refused() {
        for number in [3, 4, 5, 0x10] {
            assert_eq!(refusal(&Build { size: 0, ..build(number) }).0, status::XFER_ERANGE);
            assert_eq!(refusal(&Build { size: 4097, ..build(number) }).0, status::XFER_ERANGE);
            assert!(Descriptor::new(&Build { size: 4096, ..build(number) }.bytes()).check(&LIMITS).is_ok());
        }
        assert_eq!(refusal(&Build { size: 1, ..build(1) }).0, status::DESC_CNT_ERANGE);
        assert_eq!(refusal(&Build { size: 9, ..build(1) }).0, status::DESC_CNT_ERANGE);
        assert_eq!(refusal(&Build { source: 32, ..build(1) }).0, status::DESCLIST_ALIGN);
    }
}
