//! `struct dsa_hw_desc` and `struct dsa_completion_record`.

use super::spec;

/// A descriptor, 64 bytes as eight little-endian quadwords.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// What to do.
    pub opcode: u8,
    /// Flags, 24 bits.
    pub flags: u32,
    /// Where the completion record goes.
    pub completion: u64,
    /// Source address, or the pattern of a fill.
    pub source: u64,
    /// Destination address; for a CRC, nothing.
    pub destination: u64,
    /// Bytes.
    pub size: u32,
    /// Which interrupt completion raises.
    pub handle: u16,
    /// Whose work it is, in a queue whose users have PASIDs. ENQCMD puts it there by itself.
    pub pasid: u32,
}

/// Write a completion record, and raise an interrupt.
const FLAGS: u32 = spec::FLAG_CRAV | spec::FLAG_RCR | spec::FLAG_RCI;

impl Descriptor {
    const fn new(opcode: u8, completion: u64, handle: u16) -> Self {
        Self { opcode, flags: FLAGS, completion, source: 0, destination: 0, size: 0, handle, pasid: 0 }
    }

    /// Does nothing, with a completion record and an interrupt.
    pub const fn noop(completion: u64, handle: u16) -> Self {
        Self::new(spec::OPCODE_NOOP, completion, handle)
    }

    /// Copies `size` bytes.
    pub const fn memmove(source: u64, destination: u64, size: u32, completion: u64, handle: u16) -> Self {
        Self { source, destination, size, ..Self::new(spec::OPCODE_MEMMOVE, completion, handle) }
    }

    /// Fills `size` bytes with a pattern of eight.
    pub const fn fill(pattern: u64, destination: u64, size: u32, completion: u64, handle: u16) -> Self {
        Self { source: pattern, destination, size, ..Self::new(spec::OPCODE_MEMFILL, completion, handle) }
    }

    /// Computes the CRC-32C of `size` bytes, from seed 0.
    pub const fn crc(source: u64, size: u32, completion: u64, handle: u16) -> Self {
        Self { source, size, ..Self::new(spec::OPCODE_CRCGEN, completion, handle) }
    }

    /// The same without an interrupt.
    pub const fn without_interrupt(self) -> Self {
        Self { flags: self.flags & !spec::FLAG_RCI, ..self }
    }

    /// As it is written to a portal.
    pub const fn words(&self) -> [u64; 8] {
        [
            (self.opcode as u64) << 56 | (self.flags as u64 & 0xff_ffff) << 32 | self.pasid as u64,
            self.completion,
            self.source,
            self.destination,
            (self.handle as u64) << 32 | self.size as u64,
            0,
            0,
            0,
        ]
    }
}

/// A completion record: 32 bytes, 32-byte aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// 0 while there is none.
    pub status: u8,
    /// Bytes done.
    pub bytes: u32,
    /// Where a page fault was.
    pub fault_address: u64,
    /// The checksum of a CRC.
    pub crc: u64,
}

impl Completion {
    /// Bytes of a record.
    pub const SIZE: u64 = 32;

    /// From the record's first three quadwords.
    pub const fn from_words([first, fault_address, crc]: [u64; 3]) -> Self {
        Self { status: first as u8, bytes: (first >> 32) as u32, fault_address, crc }
    }

    /// Whether the descriptor did what it was for.
    pub const fn succeeded(&self) -> bool {
        self.status == spec::STATUS_SUCCESS
    }

    /// Whether it failed at an address that is not there.
    pub const fn page_fault(&self) -> bool {
        self.status & spec::STATUS_MASK == spec::STATUS_PAGE_FAULT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_idxd_h_has_them() {
        let descriptor = Descriptor::memmove(0x1111, 0x2222, 0x3333, 0x4440, 0x5555);
        let bytes: Vec<u8> = descriptor.words().into_iter().flat_map(u64::to_le_bytes).collect();
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        assert_eq!(bytes.len(), 64);
        assert_eq!(bytes[0..4], [0; 4], "PASID and privilege");
        assert_eq!(bytes[4..8], [0x1c, 0, 0, 3], "flags and opcode");
        assert_eq!([u64_at(8), u64_at(16), u64_at(24)], [0x4440, 0x1111, 0x2222]);
        assert_eq!(bytes[32..40], [0x33, 0x33, 0, 0, 0x55, 0x55, 0, 0], "size and handle");
        assert!(bytes[40..].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn only_the_interrupt_is_taken_away() {
        let descriptor = Descriptor::fill(!0, 0x1000, 8, 0x20, 1);
        assert_eq!(descriptor.flags & !descriptor.without_interrupt().flags, spec::FLAG_RCI);
        assert_eq!(descriptor.words()[2], !0);
    }

    #[test]
    fn a_record_reads_as_it_lies_in_memory() {
        let record = Completion::from_words([0x1234_5678_0000_0083, 0xdead_b000, 0xe306_9283]);
        assert_eq!((record.bytes, record.fault_address, record.crc), (0x1234_5678, 0xdead_b000, 0xe306_9283));
        assert!(record.page_fault() && !record.succeeded());
        assert!(Completion::from_words([1, 0, 0]).succeeded());
    }
}
