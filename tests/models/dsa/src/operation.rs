//! The operations of engines on memory: move, fill, compare, CRC.

use crate::Fault;
use crate::descriptor::Seed;
use crate::spec::status;
use crc::{Algorithm, Crc};

/// Memory as a descriptor reaches it. Pieces never cross a 4 KiB page.
pub(crate) trait DmaMemory {
    /// Fills `buf` from `address`.
    fn load(&mut self, address: u64, buf: &mut [u8]) -> Result<(), Fault>;
    /// Writes `data` to `address`.
    fn store(&mut self, address: u64, data: &[u8]) -> Result<(), Fault>;
}

const PAGE: u64 = 4096;

/// How an operation ended: the fields of its completion record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Completion {
    pub(crate) status: u8,
    pub(crate) result: u8,
    pub(crate) bytes: u32,
    pub(crate) fault: u64,
    /// The record's bytes 16 to 23: the CRC, or the flags that were refused.
    pub(crate) value: u64,
}

impl Completion {
    pub(crate) fn new(status: u8, bytes: u32) -> Self {
        Self { status, result: 0, bytes, fault: 0, value: 0 }
    }

    pub(crate) fn succeeded(&self) -> bool {
        matches!(self.status, status::SUCCESS | status::SUCCESS_PRED)
    }

    /// The record as it is in memory (`struct dsa_completion_record`).
    pub(crate) fn bytes(&self) -> [u8; 32] {
        let mut record = [0; 32];
        record[0] = self.status;
        record[1] = self.result;
        record[4..8].copy_from_slice(&self.bytes.to_le_bytes());
        record[8..16].copy_from_slice(&self.fault.to_le_bytes());
        record[16..24].copy_from_slice(&self.value.to_le_bytes());
        record
    }
}

/// A refused access: where, and whether it was a write.
struct PageFault {
    address: u64,
    write: bool,
}

type Step<T> = Result<T, PageFault>;

fn read(up: &mut dyn DmaMemory, address: u64, buf: &mut [u8]) -> Step<()> {
    up.load(address, buf).map_err(|Fault| PageFault { address, write: false })
}

fn write(up: &mut dyn DmaMemory, address: u64, data: &[u8]) -> Step<()> {
    up.store(address, data).map_err(|Fault| PageFault { address, write: true })
}

/// How many of `left` bytes lie in the same page as `address`.
fn in_page(address: u64, left: u32) -> u32 {
    left.min((PAGE - address % PAGE) as u32)
}

/// How many of the `left` bytes that end before `end` lie in one page.
fn in_page_before(end: u64, left: u32) -> u32 {
    left.min((end.wrapping_sub(1) % PAGE) as u32 + 1)
}

/// Ends an operation: success with everything done, or a page fault with what was done before it.
fn finish(step: Step<()>, done: u32) -> Completion {
    match step {
        Ok(()) => Completion::new(status::SUCCESS, done),
        Err(fault) => {
            let direction = if fault.write { status::WRITE } else { 0 };
            Completion { fault: fault.address, ..Completion::new(status::PAGE_FAULT_NOBOF | direction, done) }
        }
    }
}

/// Memory move. An overlap that a forward copy would spoil is copied from the end (result 1).
pub(crate) fn memmove(source: u64, destination: u64, size: u32, up: &mut dyn DmaMemory) -> Completion {
    let backward = destination > source && destination - source < u64::from(size);
    let mut done = 0;
    let mut buf = [0; PAGE as usize];
    let step = loop {
        let left = size - done;
        if left == 0 {
            break Ok(());
        }
        let (from, to, len) = if backward {
            let (source_end, end) = (source.wrapping_add(left.into()), destination.wrapping_add(left.into()));
            let len = in_page_before(source_end, left).min(in_page_before(end, left));
            (source_end.wrapping_sub(len.into()), end.wrapping_sub(len.into()), len)
        } else {
            let (from, to) = (source.wrapping_add(done.into()), destination.wrapping_add(done.into()));
            (from, to, in_page(from, left).min(in_page(to, left)))
        };
        let piece = &mut buf[..len as usize];
        if let Err(fault) = read(up, from, piece).and_then(|()| write(up, to, piece)) {
            break Err(fault);
        }
        done += len;
    };
    Completion { result: backward.into(), ..finish(step, done) }
}

/// Fill with a pattern of 8 bytes.
pub(crate) fn fill(pattern: u64, destination: u64, size: u32, up: &mut dyn DmaMemory) -> Completion {
    let mut done = 0;
    let mut buf = [0; PAGE as usize];
    while done < size {
        let at = destination.wrapping_add(done.into());
        let len = in_page(at, size - done);
        let piece = &mut buf[..len as usize];
        let bytes = pattern.to_le_bytes().into_iter().cycle().skip((done % 8) as usize);
        piece.iter_mut().zip(bytes).for_each(|(place, byte)| *place = byte);
        if let Err(fault) = write(up, at, piece) {
            return finish(Err(fault), done);
        }
        done += len;
    }
    finish(Ok(()), done)
}

/// Compare: result 0 if equal, 1 if not; then bytes completed is the offset of the first difference. With an expected
/// result, another result is "success with false predicate".
pub(crate) fn compare(first: u64, second: u64, size: u32, expected: Option<u8>, up: &mut dyn DmaMemory) -> Completion {
    let mut done = 0;
    let (mut one, mut other) = ([0; PAGE as usize], [0; PAGE as usize]);
    let mut different = false;
    while done < size && !different {
        let (at, against) = (first.wrapping_add(done.into()), second.wrapping_add(done.into()));
        let len = in_page(at, size - done).min(in_page(against, size - done));
        let (one, other) = (&mut one[..len as usize], &mut other[..len as usize]);
        if let Err(fault) = read(up, at, one).and_then(|()| read(up, against, other)) {
            return finish(Err(fault), done);
        }
        let equal = one.iter().zip(other.iter()).take_while(|(a, b)| a == b).count() as u32;
        different = equal < len;
        done += equal;
    }
    let result = u8::from(different);
    let missed = expected.is_some_and(|expected| expected != result);
    let status = if missed { status::SUCCESS_PRED } else { status::SUCCESS };
    Completion { result, ..Completion::new(status, done) }
}

/// The polynomial of CRC-32C, most significant bit first; inversion and reflection are done here, where they can be left out.
const PLAIN: Algorithm<u32> =
    Algorithm { width: 32, poly: 0x1edc_6f41, init: 0, refin: false, refout: false, xorout: 0, check: 0, residue: 0 };
static CRC: Crc<u32> = Crc::<u32>::new(&PLAIN);

/// How a CRC is made.
#[derive(Clone, Copy)]
pub(crate) struct CrcMode {
    /// Seed and result are neither inverted nor reflected.
    pub(crate) bypass_reflection: bool,
    /// Bit 7 of each byte is the most significant one.
    pub(crate) bypass_data_reflection: bool,
}

impl CrcMode {
    /// Seeds are inverted and reflected on the way in as results are on the way out.
    fn turn(self, value: u32) -> u32 {
        if self.bypass_reflection { value } else { (!value).reverse_bits() }
    }
}

/// CRC generation: with seed 0 and no bypass, the well-known CRC-32C.
pub(crate) fn crc(source: u64, size: u32, seed: Seed, mode: CrcMode, up: &mut dyn DmaMemory) -> Completion {
    let mut done = 0;
    let value = crc_value(source, size, seed, mode, &mut done, up);
    let crc = value.as_ref().ok().map_or(0, |value| u64::from(*value));
    Completion { value: crc, ..finish(value.map(|_| ()), done) }
}

fn crc_value(source: u64, size: u32, seed: Seed, mode: CrcMode, done: &mut u32, up: &mut dyn DmaMemory) -> Step<u32> {
    let mut digest = CRC.digest_with_initial(mode.turn(seed_value(seed, up)?));
    let mut buf = [0; PAGE as usize];
    while *done < size {
        let at = source.wrapping_add((*done).into());
        let len = in_page(at, size - *done);
        let piece = &mut buf[..len as usize];
        read(up, at, piece)?;
        if !mode.bypass_data_reflection {
            piece.iter_mut().for_each(|byte| *byte = byte.reverse_bits());
        }
        digest.update(piece);
        *done += len;
    }
    let value = digest.finalize();
    Ok(if mode.bypass_reflection { value } else { !value.reverse_bits() })
}

fn seed_value(seed: Seed, up: &mut dyn DmaMemory) -> Step<u32> {
    match seed {
        Seed::Value(value) => Ok(value),
        Seed::At(address) => {
            let mut bytes = [0; 4];
            // Byte by byte: software may put it across a page's end.
            for (n, byte) in (0..).zip(&mut bytes) {
                read(up, address.wrapping_add(n), std::slice::from_mut(byte))?;
            }
            Ok(u32::from_le_bytes(bytes))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Machine;

    const PLAIN_MODE: CrcMode = CrcMode { bypass_reflection: false, bypass_data_reflection: false };

    fn memory() -> Machine {
        let mut machine = Machine::default();
        let bytes: Vec<u8> = (0..0x8000u32).map(|n| (n * 7 + n / 251) as u8).collect();
        machine.put(0x1_0000, &bytes);
        machine
    }

    #[test]
    fn a_move_copies_across_pages_and_any_alignment() {
        for (source, destination, size) in
            [(0x1_0000, 0x2_0000, 1), (0x1_0ffd, 0x2_0123, 0x3001), (0x1_0001, 0x2_0fff, 2)]
        {
            let mut machine = memory();
            let expected = machine.get(source, size as usize);
            let done = memmove(source, destination, size, &mut machine);
            assert_eq!(done, Completion::new(status::SUCCESS, size));
            assert_eq!(machine.get(destination, size as usize), expected);
            assert_eq!(machine.get(destination + u64::from(size), 1), [0]);
        }
    }

    #[test]
    fn overlapping_moves_are_right_in_both_directions() {
        for (source, destination, result) in [(0x1_0100, 0x1_0223, 1), (0x1_0223, 0x1_0100, 0), (0x1_0100, 0x1_0100, 0)]
        {
            let mut machine = memory();
            let expected = machine.get(source, 0x2801);
            let done = memmove(source, destination, 0x2801, &mut machine);
            assert_eq!((done.status, done.result, done.bytes), (status::SUCCESS, result, 0x2801));
            assert_eq!(machine.get(destination, 0x2801), expected);
        }
    }

    #[test]
    fn a_fault_tells_address_direction_and_what_was_done() {
        let mut machine = memory();
        machine.refuse_page(0x1_2000);
        let done = memmove(0x1_0800, 0x2_0000, 0x3000, &mut machine);
        assert_eq!((done.status, done.fault, done.bytes), (0x03, 0x1_2000, 0x1800));
        let done = memmove(0x1_4000, 0x1_1f00, 0x200, &mut machine);
        assert_eq!((done.status, done.fault, done.bytes), (0x83, 0x1_2000, 0x100));
        let done = fill(0, 0x1_1ffc, 8, &mut machine);
        assert_eq!((done.status, done.fault, done.bytes), (0x83, 0x1_2000, 4));
        let done = crc(0x1_2001, 4, Seed::Value(0), PLAIN_MODE, &mut machine);
        assert_eq!((done.status, done.fault, done.bytes), (0x03, 0x1_2001, 0));
        let done = compare(0x1_1000, 0x1_2000, 4, None, &mut machine);
        assert_eq!((done.status, done.fault, done.bytes), (0x03, 0x1_2000, 0));
    }

    #[test]
    fn a_fill_keeps_the_patterns_phase_over_pages() {
        let mut machine = Machine::default();
        let pattern = 0x0807_0605_0403_0201;
        assert_eq!(fill(pattern, 0x1_0ffb, 20, &mut machine), Completion::new(status::SUCCESS, 20));
        let expected: Vec<u8> = (0..20).map(|n| n % 8 + 1).collect();
        assert_eq!(machine.get(0x1_0ffb, 20), expected);
        assert_eq!(machine.get(0x1_0ffb + 20, 1), [0]);
    }

    #[test]
    fn compare_finds_the_first_difference() {
        let mut machine = memory();
        let bytes = machine.get(0x1_0000, 0x2000);
        machine.put(0x2_0010, &bytes);
        assert_eq!(compare(0x1_0000, 0x2_0010, 0x2000, None, &mut machine), Completion::new(status::SUCCESS, 0x2000));
        machine.put(0x2_0010 + 0x1234, &[bytes[0x1234] ^ 1]);
        let done = compare(0x1_0000, 0x2_0010, 0x2000, None, &mut machine);
        assert_eq!((done.status, done.result, done.bytes), (status::SUCCESS, 1, 0x1234));
        let done = compare(0x1_0000, 0x2_0010, 0x2000, Some(0), &mut machine);
        assert_eq!((done.status, done.result), (status::SUCCESS_PRED, 1));
        let done = compare(0x1_0000, 0x2_0010, 0x2000, Some(1), &mut machine);
        assert_eq!((done.status, done.result), (status::SUCCESS, 1));
    }

    #[test]
    fn the_crc_is_crc_32c_and_chains_by_its_seed() {
        let mut machine = Machine::default();
        machine.put(0x1_0ffc, b"123456789");
        let whole = crc(0x1_0ffc, 9, Seed::Value(0), PLAIN_MODE, &mut machine);
        assert_eq!((whole.status, whole.bytes, whole.value), (status::SUCCESS, 9, 0xe306_9283));
        let first = crc(0x1_0ffc, 4, Seed::Value(0), PLAIN_MODE, &mut machine);
        let second = crc(0x1_1000, 5, Seed::Value(first.value as u32), PLAIN_MODE, &mut machine);
        assert_eq!(second.value, whole.value);
        machine.put(0x2_0ffe, &(first.value as u32).to_le_bytes());
        let second = crc(0x1_1000, 5, Seed::At(0x2_0ffe), PLAIN_MODE, &mut machine);
        assert_eq!(second.value, whole.value);
    }

    #[test]
    fn the_crc_without_reflection_is_the_plain_polynomial() {
        let mut machine = Machine::default();
        machine.put(0x1_0000, &[0x80]);
        let mode = CrcMode { bypass_reflection: true, bypass_data_reflection: true };
        // x^39 mod the polynomial, by eight shifts of 0x8000_0000.
        let expected = (0..8).fold(0x8000_0000u32, |crc, _| crc << 1 ^ if crc >> 31 == 1 { 0x1edc_6f41 } else { 0 });
        assert_eq!(crc(0x1_0000, 1, Seed::Value(0), mode, &mut machine).value, u64::from(expected));
        machine.put(0x1_0000, &[0x01]);
        let mode = CrcMode { bypass_data_reflection: false, ..mode };
        assert_eq!(crc(0x1_0000, 1, Seed::Value(0), mode, &mut machine).value, u64::from(expected));
    }

    #[test]
    fn a_record_has_its_fields_where_linux_reads_them() {
        let record = Completion { status: 1, result: 2, bytes: 3, fault: 4, value: 5 }.bytes();
        assert_eq!((record[0], record[1], record[4], record[8], record[16]), (1, 2, 3, 4, 5));
        assert_eq!(record.iter().filter(|byte| **byte != 0).count(), 5);
    }
}
