//! Faults that a unit has recorded: sections 7.2 and 9.9; appendix A lists the reasons.

use core::fmt;

use super::spec::registers::Frcd;
use crate::addr::Bdf;

/// A request that the unit refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The requester.
    pub source: Bdf,
    /// The PASID of a DMA request that had one.
    pub pasid: Option<u32>,
    /// The reason.
    pub reason: Reason,
    /// The request.
    pub request: Request,
}

/// A refused request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// DMA from the page at this address.
    Read(u64),
    /// DMA to the page at this address.
    Write(u64),
    /// An interrupt, with its index if it named one.
    Interrupt(u16),
}

/// A fault reason's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason(pub u8);

impl Reason {
    /// Whether it is one of interrupt remapping: 20H to 2FH.
    pub fn is_interrupt(self) -> bool {
        self.0 & 0xf0 == 0x20
    }

    /// The manual's description, in short.
    pub fn text(self) -> &'static str {
        match self.0 {
            0x01 => "root entry not present",
            0x02 => "context entry not present",
            0x03 => "context entry invalid",
            0x04 => "address beyond width",
            0x05 => "write not permitted",
            0x06 => "read not permitted",
            0x07 => "paging entry inaccessible",
            0x08 => "root table inaccessible",
            0x09 => "context table inaccessible",
            0x0a => "reserved bits in root entry",
            0x0b => "reserved bits in context entry",
            0x0c => "reserved bits in paging entry",
            0x0e => "translated into the interrupt range",
            0x20 => "reserved bits in interrupt request",
            0x21 => "interrupt index beyond table",
            0x22 => "interrupt entry not present",
            0x23 => "interrupt table inaccessible",
            0x24 => "reserved bits in interrupt entry",
            0x25 => "compatibility-format interrupt blocked",
            0x26 => "interrupt from another source",
            0x27 => "posted descriptor inaccessible",
            0x28 => "reserved bits in posted descriptor",
            0x31 => "request with PASID in legacy mode",
            0x38 => "root table inaccessible",
            0x39 => "root entry not present",
            0x3a => "reserved bits in root entry",
            0x40 => "context table inaccessible",
            0x41 => "context entry not present",
            0x42 => "reserved bits in context entry",
            0x43 => "context entry invalid",
            0x45 => "PASIDs not enabled in context entry",
            0x46 => "PASID beyond directory",
            0x50 => "PASID directory inaccessible",
            0x51 => "PASID directory entry not present",
            0x52 => "reserved bits in PASID directory entry",
            0x58 => "PASID table inaccessible",
            0x59 => "PASID entry not present",
            0x5a => "reserved bits in PASID entry",
            0x5b => "PASID entry invalid",
            0x78 => "paging entry inaccessible",
            0x79 => "paging entry not present",
            0x7a => "reserved bits in paging entry",
            0x83 | 0x84 => "address beyond width",
            0x85 => "write not permitted",
            0x86 => "read not permitted",
            0x87 => "translated into the interrupt range",
            _ => "other",
        }
    }
}

impl Fault {
    /// The fault in the record, if it holds one.
    pub fn decode(record: Frcd) -> Option<Self> {
        let reason = Reason(record.fr() as u8);
        let page = (record.fi() as u64) << 12;
        let request = match (reason.is_interrupt(), record.t1() != 0) {
            (true, _) => Request::Interrupt(record.index() as u16),
            (false, true) => Request::Read(page),
            (false, false) => Request::Write(page),
        };
        let pasid = (record.pp() != 0 && !reason.is_interrupt()).then_some(record.pv() as u32);
        (record.f() != 0).then_some(Self { source: Bdf(record.sid() as u32), pasid, reason, request })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (source, reason, text) = (self.source, self.reason.0, self.reason.text());
        if let Some(pasid) = self.pasid {
            write!(f, "PASID {pasid:#x} of ")?;
        }
        match self.request {
            Request::Read(address) => write!(f, "{source} read {address:#x}: {text} ({reason:#x})"),
            Request::Write(address) => write!(f, "{source} write {address:#x}: {text} ({reason:#x})"),
            Request::Interrupt(index) => write!(f, "{source} interrupt {index}: {text} ({reason:#x})"),
        }
    }
}
