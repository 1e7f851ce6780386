//! Physical memory as the unit sees it.

use std::collections::HashMap;

/// Physical memory as the unit sees it. `false` means that the access failed (no such memory): the unit then reports the
/// access-error fault that the manual names for the structure.
pub trait Memory {
    /// Reads `buf.len()` bytes from the host-physical address `hpa`.
    fn read(&mut self, hpa: u64, buf: &mut [u8]) -> bool;
    /// Writes `data` to the host-physical address `hpa`.
    fn write(&mut self, hpa: u64, data: &[u8]) -> bool;
}

/// Reads a little-endian quadword.
pub(crate) fn read_u64(mem: &mut dyn Memory, hpa: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    mem.read(hpa, &mut bytes).then(|| u64::from_le_bytes(bytes))
}

/// Reads 16 bytes as two little-endian quadwords, low one first.
pub(crate) fn read_pair(mem: &mut dyn Memory, hpa: u64) -> Option<[u64; 2]> {
    let mut bytes = [0; 16];
    mem.read(hpa, &mut bytes).then(|| u128::from_le_bytes(bytes)).map(|value| [value as u64, (value >> 64) as u64])
}

/// Reads little-endian quadwords.
pub(crate) fn read_quads<const N: usize>(mem: &mut dyn Memory, hpa: u64) -> Option<[u64; N]> {
    let mut words = [0; N];
    for (at, word) in (hpa..).step_by(8).zip(&mut words) {
        *word = read_u64(mem, at)?;
    }
    Some(words)
}

const PAGE: u64 = 4096;

/// A sparse memory of 4 KiB pages for tests: zero until written, absent from `limit` on.
#[derive(Debug, Clone)]
pub struct Ram {
    pages: HashMap<u64, Box<[u8; PAGE as usize]>>,
    limit: u64,
}

impl Ram {
    /// Memory from 0 to `limit`, zeroed.
    pub fn new(limit: u64) -> Self {
        Ram { pages: HashMap::new(), limit }
    }

    /// The quadword at `hpa`; zero outside the memory.
    pub fn u64(&mut self, hpa: u64) -> u64 {
        read_u64(self, hpa).unwrap_or(0)
    }

    /// Writes a quadword; `false` outside the memory.
    pub fn set_u64(&mut self, hpa: u64, value: u64) -> bool {
        self.write(hpa, &value.to_le_bytes())
    }

    fn holds(&self, hpa: u64, len: usize) -> bool {
        hpa.checked_add(len as u64).is_some_and(|end| end <= self.limit)
    }
}

impl Memory for Ram {
    fn read(&mut self, hpa: u64, buf: &mut [u8]) -> bool {
        if !self.holds(hpa, buf.len()) {
            return false;
        }
        for (at, byte) in (hpa..).zip(buf) {
            let page = self.pages.get(&(at / PAGE));
            *byte = page.map_or(0, |page| page[(at % PAGE) as usize]);
        }
        true
    }

    fn write(&mut self, hpa: u64, data: &[u8]) -> bool {
        if !self.holds(hpa, data.len()) {
            return false;
        }
        for (at, byte) in (hpa..).zip(data) {
            let page = self.pages.entry(at / PAGE);
            page.or_insert_with(|| Box::new([0; PAGE as usize]))[(at % PAGE) as usize] = *byte;
        }
        true
    }
}
