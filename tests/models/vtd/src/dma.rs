//! DMA requests without PASID: legacy-mode translation (VT-d 3.4, 3.7).

use crate::{Memory, Unit};

/// The direction of a DMA request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The device reads memory.
    Read,
    /// The device writes memory.
    Write,
}

/// Why a DMA request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DmaFault {
    /// The unit refused it for VT-d appendix A's fault reason (recorded unless FPD was set).
    Blocked(u8),
    /// The request is for the interrupt address range 0xFEEx_xxxx (VT-d 3.15) and is not a DWORD write.
    InterruptRange,
    /// The piece crosses a 4 KiB page: the caller's mistake, use [`Unit::dma_read`] or [`Unit::dma_write`].
    CrossesPage,
    /// The translated address has no memory behind it; the piece's host-physical address.
    NoMemory(u64),
}

impl Unit {
    /// Translates a piece of at most one 4 KiB page. `Ok` is the host-physical address.
    pub fn dma(
        &mut self,
        _source_id: u16,
        address: u64,
        _len: usize,
        _access: Access,
        _mem: &mut dyn Memory,
    ) -> Result<u64, DmaFault> {
        Ok(address)
    }

    /// Reads `buf.len()` bytes at the device's address `address`, page by page. On a fault the pages before it have been
    /// read.
    pub fn dma_read(
        &mut self,
        _source_id: u16,
        _address: u64,
        _buf: &mut [u8],
        _mem: &mut dyn Memory,
    ) -> Result<(), DmaFault> {
        Ok(())
    }

    /// Writes `data` to the device's address `address`, page by page. On a fault the pages before it have been written.
    pub fn dma_write(
        &mut self,
        _source_id: u16,
        _address: u64,
        _data: &[u8],
        _mem: &mut dyn Memory,
    ) -> Result<(), DmaFault> {
        Ok(())
    }
}
