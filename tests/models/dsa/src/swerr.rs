//! The software error register (SWERR): errors of descriptors that no completion record can report.

use crate::spec::swerr;

/// What is recorded of one error.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    /// The completion status that the descriptor would have had.
    pub(crate) status: u8,
    pub(crate) queue: usize,
    pub(crate) opcode: u8,
    pub(crate) pasid: u32,
    pub(crate) invalid_flags: u32,
    pub(crate) fault: u64,
    pub(crate) fault_write: bool,
}

/// The register, four quadwords.
#[derive(Clone, Copy, Default)]
pub(crate) struct SoftwareError {
    words: [u64; 4],
}

impl SoftwareError {
    pub(crate) fn read(&self, dword: usize) -> u32 {
        self.words.get(dword / 2).map_or(0, |word| (word >> (dword % 2 * 32)) as u32)
    }

    /// Records an error, or that there was one more.
    pub(crate) fn record(&mut self, error: &Record) {
        if self.words[0] & swerr::VALID != 0 {
            self.words[0] |= swerr::OVERFLOW;
            return;
        }
        let direction = if error.fault_write { swerr::FAULT_WRITE } else { 0 };
        let first = swerr::VALID | swerr::DESCRIPTOR_VALID | swerr::WQ_INDEX_VALID | direction;
        self.words = [
            first
                | u64::from(error.status) << swerr::ERROR
                | (error.queue as u64) << swerr::WQ_INDEX
                | u64::from(error.opcode) << swerr::OPERATION
                | u64::from(error.pasid) << swerr::PASID,
            u64::from(error.invalid_flags) << 32,
            error.fault,
            0,
        ];
    }

    /// Software's write to the first dword: ones clear the valid and overflow bits.
    pub(crate) fn acknowledge(&mut self, value: u32) {
        self.words[0] &= !(u64::from(value) & (swerr::VALID | swerr::OVERFLOW));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ERROR: Record = Record {
        status: 0x1b,
        queue: 3,
        opcode: 5,
        pasid: 0xabcde,
        invalid_flags: 0x11,
        fault: 0x1234,
        fault_write: true,
    };

    #[test]
    fn the_fields_lie_where_linux_reads_them() {
        let mut register = SoftwareError::default();
        register.record(&ERROR);
        assert_eq!(register.read(0), 1 | 1 << 2 | 1 << 3 | 1 << 5 | 0x1b << 8 | 3 << 16);
        assert_eq!(register.read(1), 5 | 0xabcde << 8);
        assert_eq!((register.read(3), register.read(4)), (0x11, 0x1234));
    }

    #[test]
    fn the_first_error_stays_until_acknowledged() {
        let mut register = SoftwareError::default();
        register.record(&ERROR);
        register.record(&Record { status: 0x10, ..ERROR });
        assert_eq!(register.read(0) & 0xff03, 0x1b03);
        register.acknowledge(3);
        assert_eq!(register.read(0) & 3, 0);
        register.record(&Record { status: 0x10, ..ERROR });
        assert_eq!(register.read(0) & 0xff03, 0x1001);
    }
}
