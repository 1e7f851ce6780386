//! Physical memory, as the readers of tables see it.

/// Reads physical memory.
pub trait Memory {
    /// Fills `into` from `address`; `None` where there is nothing to read.
    fn read(&self, address: u64, into: &mut [u8]) -> Option<()>;

    /// A byte.
    fn u8(&self, address: u64) -> Option<u8> {
        self.bytes(address).map(|[byte]| byte)
    }

    /// A little-endian 32-bit number.
    fn u32(&self, address: u64) -> Option<u32> {
        self.bytes(address).map(u32::from_le_bytes)
    }

    /// A little-endian 64-bit number.
    fn u64(&self, address: u64) -> Option<u64> {
        self.bytes(address).map(u64::from_le_bytes)
    }

    /// `N` bytes.
    fn bytes<const N: usize>(&self, address: u64) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.read(address, &mut bytes).map(|()| bytes)
    }
}

#[cfg(test)]
pub(crate) struct FakeMemory {
    pub(crate) base: u64,
    pub(crate) bytes: Vec<u8>,
}

#[cfg(test)]
impl FakeMemory {
    pub(crate) fn new(base: u64, size: usize) -> Self {
        Self { base, bytes: vec![0; size] }
    }

    pub(crate) fn put(&mut self, address: u64, bytes: &[u8]) {
        let at = (address - self.base) as usize;
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

#[cfg(test)]
impl Memory for FakeMemory {
    fn read(&self, address: u64, into: &mut [u8]) -> Option<()> {
        let at = usize::try_from(address.checked_sub(self.base)?).ok()?;
        into.copy_from_slice(self.bytes.get(at..at.checked_add(into.len())?)?);
        Some(())
    }
}
