//! Linux's `struct boot_params` (arch/x86/include/uapi/asm/bootparam.h), whose address a guest gets in RSI.

use crate::memory::Memory;

pub(crate) const EXT_CMD_LINE_PTR: u64 = 0x0c8;
pub(crate) const ACPI_RSDP_ADDR: u64 = 0x070;
pub(crate) const E820_ENTRIES: u64 = 0x1e8;
pub(crate) const CMD_LINE_PTR: u64 = 0x228;
pub(crate) const E820_TABLE: u64 = 0x2d0;
pub(crate) const E820_ENTRY_SIZE: u64 = 20;
/// `E820_MAX_ENTRIES_ZEROPAGE`.
const E820_MAX_ENTRIES: u8 = 128;
/// An entry's type: memory to use.
pub(crate) const E820_RAM: u32 = 1;

/// A range of the memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRange {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// 1 is memory to use.
    pub kind: u32,
}

impl MemoryRange {
    /// Whether it is memory to use.
    pub const fn is_ram(&self) -> bool {
        self.kind == E820_RAM
    }
}

/// The structure at an address of some memory.
#[derive(Clone, Copy, Debug)]
pub struct BootParams<M> {
    memory: M,
    base: u64,
}

impl<M: Memory> BootParams<M> {
    /// The structure at `base`.
    pub const fn new(memory: M, base: u64) -> Self {
        Self { memory, base }
    }

    /// The command line, cut to `buffer` and to what is text.
    pub fn command_line<'b>(&self, buffer: &'b mut [u8]) -> &'b str {
        let length = self.copy_command_line(buffer).unwrap_or(0);
        let line = &buffer[..length];
        match core::str::from_utf8(line) {
            Ok(line) => line,
            Err(error) => core::str::from_utf8(&line[..error.valid_up_to()]).unwrap_or(""),
        }
    }

    fn copy_command_line(&self, buffer: &mut [u8]) -> Option<usize> {
        let low = self.memory.u32(self.base + CMD_LINE_PTR)?;
        let high = self.memory.u32(self.base + EXT_CMD_LINE_PTR)?;
        let start = u64::from(high) << 32 | u64::from(low);
        if start == 0 {
            return None;
        }
        for (n, place) in buffer.iter_mut().enumerate() {
            *place = self.memory.u8(start + n as u64)?;
            if *place == 0 {
                return Some(n);
            }
        }
        Some(buffer.len())
    }

    /// The memory map.
    pub fn memory_map(&self) -> impl Iterator<Item = MemoryRange> + '_ {
        let count = self.memory.u8(self.base + E820_ENTRIES).unwrap_or(0).min(E820_MAX_ENTRIES);
        (0..u64::from(count)).filter_map(|n| {
            let at = self.base + E820_TABLE + n * E820_ENTRY_SIZE;
            Some(MemoryRange {
                start: self.memory.u64(at)?,
                size: self.memory.u64(at + 8)?,
                kind: self.memory.u32(at + 16)?,
            })
        })
    }

    /// Bytes of memory to use.
    pub fn memory_size(&self) -> u64 {
        self.memory_map().filter(MemoryRange::is_ram).fold(0, |sum, range| sum.saturating_add(range.size))
    }

    /// Where ACPI's root pointer is.
    pub fn rsdp(&self) -> Option<u64> {
        self.memory.u64(self.base + ACPI_RSDP_ADDR).filter(|&address| address != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::FakeMemory;

    fn with_line(line: &[u8]) -> BootParams<FakeMemory> {
        let mut memory = FakeMemory::new(0x9_0000, 0x2000);
        memory.put(0x9_0000 + CMD_LINE_PTR, &0x9_1000u32.to_le_bytes());
        memory.put(0x9_1000, line);
        BootParams::new(memory, 0x9_0000)
    }

    #[test]
    fn the_command_line_ends_at_its_zero_or_with_the_buffer() {
        assert_eq!(with_line(b"slots=4 x\0junk").command_line(&mut [0; 64]), "slots=4 x");
        assert_eq!(with_line(b"slots=4 x\0junk").command_line(&mut [0; 5]), "slots");
        assert_eq!(with_line(b"").command_line(&mut [0; 5]), "");
    }

    #[test]
    fn a_command_line_that_is_no_text_or_nowhere_does_no_harm() {
        assert_eq!(with_line(b"ok\xff\xfe\0").command_line(&mut [0; 64]), "ok");
        let nowhere = BootParams::new(FakeMemory::new(0, 0x1000), 0);
        assert_eq!(nowhere.command_line(&mut [0; 64]), "");
        assert_eq!(nowhere.rsdp(), None);
        assert_eq!(BootParams::new(FakeMemory::new(0, 0), 0x5000).memory_size(), 0);
    }

    #[test]
    fn the_memory_map_is_read_and_summed() {
        let mut memory = FakeMemory::new(0, 0x1000);
        memory.put(E820_ENTRIES, &[2]);
        for (n, (start, size, kind)) in
            [(0u64, 0x9_f000u64, 1u32), (0x10_0000, 0x3f0_0000, 1), (9, 9, 2)].into_iter().enumerate()
        {
            let at = E820_TABLE + n as u64 * E820_ENTRY_SIZE;
            memory.put(at, &start.to_le_bytes());
            memory.put(at + 8, &size.to_le_bytes());
            memory.put(at + 16, &kind.to_le_bytes());
        }
        memory.put(ACPI_RSDP_ADDR, &0xe_0000u64.to_le_bytes());
        let params = BootParams::new(memory, 0);
        assert_eq!(params.memory_map().count(), 2);
        assert_eq!(params.memory_size(), 0x3f9_f000);
        assert_eq!(params.rsdp(), Some(0xe_0000));
    }
}
