//! DMA requests, with and without PASID (VT-d 3.4, 3.7).

use crate::spec::reason::{self, is_recoverable};
use crate::spec::regs::global;
use crate::unit::fault::{Fault, Request};
use crate::{Memory, Unit};

/// The direction of a DMA request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The device reads memory.
    Read,
    /// The device writes memory.
    Write,
}

/// Who sends a DMA request: a function, as a whole or with a PASID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Requester {
    /// Bus, device and function.
    pub source_id: u16,
    /// The PASID of a request with one (its PASID TLP prefix).
    pub pasid: Option<u32>,
}

impl From<u16> for Requester {
    fn from(source_id: u16) -> Self {
        Self { source_id, pasid: None }
    }
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

const PAGE: u64 = 4096;

/// Whether an address lies in the interrupt address range (VT-d 3.15).
pub(crate) fn in_interrupt_range(address: u64) -> bool {
    address >> 20 == 0xfee
}

impl Unit {
    /// Translates a piece of at most one 4 KiB page. `Ok` is the host-physical address.
    pub fn dma(
        &mut self,
        requester: impl Into<Requester>,
        address: u64,
        len: usize,
        access: Access,
        mem: &mut dyn Memory,
    ) -> Result<u64, DmaFault> {
        let result = self.check_and_translate(requester.into(), address, len, access, mem);
        match result {
            Ok(_) => self.stats.dma_translated += 1,
            Err(_) => self.stats.dma_faults += 1,
        }
        result
    }

    fn check_and_translate(
        &mut self,
        requester: Requester,
        address: u64,
        len: usize,
        access: Access,
        mem: &mut dyn Memory,
    ) -> Result<u64, DmaFault> {
        if (address % PAGE).saturating_add(len as u64) > PAGE {
            return Err(DmaFault::CrossesPage);
        }
        // A request with PASID is never an interrupt; where it leads is looked at behind the translation.
        if in_interrupt_range(address) && requester.pasid.is_none() {
            return Err(DmaFault::InterruptRange);
        }
        if !self.status(global::TE) {
            return Ok(address);
        }
        self.translate(requester, address, access, mem).map_err(|fault| self.refuse(fault, requester, address, access))
    }

    /// A device with a device-TLB asks whether it may access the page at `address` (VT-d 4.2). `false`: the page or a right is missing,
    /// which is not recorded. Such a device then sends a page request, or gives up.
    pub fn translation_request(
        &mut self,
        requester: impl Into<Requester>,
        address: u64,
        access: Access,
        mem: &mut dyn Memory,
    ) -> Result<bool, DmaFault> {
        let requester = requester.into();
        let result = self.device_tlb_allowed(requester.source_id, mem);
        let result = result.and_then(|()| self.translate(requester, address, access, mem));
        match result {
            Ok(_) => self.stats.translations_granted += 1,
            Err(_) => self.stats.translations_denied += 1,
        }
        match result {
            Ok(_) => Ok(true),
            Err(fault) if is_recoverable(fault.reason) => Ok(false),
            Err(fault) => Err(self.refuse(fault, requester, address, access)),
        }
    }

    /// Without translation such requests are not supported either; the model has them in scalable mode only.
    fn device_tlb_allowed(&mut self, source_id: u16, mem: &mut dyn Memory) -> Result<(), Fault> {
        if !self.status(global::TE) || !self.scalable() {
            return Err(Fault::new(reason::SM_PASID_IN_LEGACY_MODE));
        }
        let context = self.scalable_context(source_id, mem)?;
        let fault = Fault::with_fpd(reason::SM_DEVICE_TLB_DISABLED, context.fault_processing_disabled());
        if context.device_tlb_enabled() { Ok(()) } else { Err(fault) }
    }

    /// Records a fault.
    fn refuse(&mut self, fault: Fault, requester: Requester, address: u64, access: Access) -> DmaFault {
        let read = access == Access::Read;
        self.report(fault, requester.source_id, Request::Dma { address, read, pasid: requester.pasid });
        DmaFault::Blocked(fault.reason)
    }

    /// Reads `buf.len()` bytes at the device's address `address`, page by page. On a fault the pages before it have been
    /// read.
    pub fn dma_read(
        &mut self,
        requester: impl Into<Requester>,
        address: u64,
        buf: &mut [u8],
        mem: &mut dyn Memory,
    ) -> Result<(), DmaFault> {
        let requester = requester.into();
        for (at, piece) in pieces(address, buf.len()) {
            let len = piece.len();
            let hpa = self.dma(requester, at, len, Access::Read, mem)?;
            let Some(part) = buf.get_mut(piece) else { break };
            if !mem.read(hpa, part) {
                return Err(DmaFault::NoMemory(hpa));
            }
        }
        Ok(())
    }

    /// Writes `data` to the device's address `address`, page by page. On a fault the pages before it have been written.
    pub fn dma_write(
        &mut self,
        requester: impl Into<Requester>,
        address: u64,
        data: &[u8],
        mem: &mut dyn Memory,
    ) -> Result<(), DmaFault> {
        let requester = requester.into();
        for (at, piece) in pieces(address, data.len()) {
            let len = piece.len();
            let hpa = self.dma(requester, at, len, Access::Write, mem)?;
            let Some(part) = data.get(piece) else { break };
            if !mem.write(hpa, part) {
                return Err(DmaFault::NoMemory(hpa));
            }
        }
        Ok(())
    }
}

/// Splits a transfer at page borders: the address of each piece and its place in the buffer. Addresses wrap at 2^64.
fn pieces(address: u64, len: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = address.wrapping_add(done as u64);
        let room = (PAGE - at % PAGE) as usize;
        let next = (done + room).min(len);
        let piece = done..next;
        done = next;
        (!piece.is_empty()).then_some((at, piece))
    })
}
