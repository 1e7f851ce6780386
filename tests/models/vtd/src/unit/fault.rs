//! Recording of faults (VT-d 7.2, "Primary Fault Logging") and the fault status register.

use crate::Unit;
use crate::spec::reason::is_qualified;
use crate::spec::regs::{frcd, fsts};
use crate::unit::event::Kind;
use std::ops::BitOr;

/// A fault that the unit has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) reason: u8,
    /// FPD of the entry that was used, where one was.
    pub(crate) fault_processing_disabled: bool,
}

impl Fault {
    /// A fault found before any entry with FPD was reached.
    pub(crate) const fn new(reason: u8) -> Self {
        Fault { reason, fault_processing_disabled: false }
    }

    /// A fault found while using an entry with this FPD.
    pub(crate) const fn with_fpd(reason: u8, fpd: bool) -> Self {
        Fault { reason, fault_processing_disabled: fpd }
    }

    const fn is_recorded(self) -> bool {
        !(self.fault_processing_disabled && is_qualified(self.reason))
    }
}

/// What a fault record says of the request.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Request {
    /// A DMA request for this address.
    Dma { address: u64, read: bool, pasid: Option<u32> },
    /// An interrupt request with this index, where the request has one.
    Interrupt { index: u32 },
}

impl Request {
    fn info(self) -> u64 {
        match self {
            Request::Dma { address, .. } => address & !0xfff,
            Request::Interrupt { index } => u64::from(index & 0xffff) << frcd::INDEX_SHIFT,
        }
    }

    /// The type, and the PASID (PP, PV) of a request that had one.
    fn high(self) -> u64 {
        let Request::Dma { read, pasid, .. } = self else { return 0 };
        let kind = if read { frcd::T1 } else { 0 };
        kind | pasid.map_or(0, |pasid| frcd::PP | u64::from(pasid) << frcd::PASID_SHIFT)
    }
}

/// The fault recording registers and what FSTS says of them.
#[derive(Debug)]
pub(crate) struct FaultLog {
    records: Vec<[u64; 2]>,
    /// Where the next fault goes.
    next: usize,
    /// FRI.
    first: usize,
    overflow: bool,
}

impl FaultLog {
    pub(crate) fn new(records: usize) -> Self {
        FaultLog { records: vec![[0; 2]; records], next: 0, first: 0, overflow: false }
    }

    /// A record's low (`half` 0) or high quadword; 0 beyond the last record.
    pub(crate) fn read(&self, record: usize, half: usize) -> u64 {
        let record = self.records.get(record);
        record.map_or(0, |record| record[half & 1])
    }

    fn pending(&self) -> bool {
        self.records.iter().any(|record| record[1] & frcd::F != 0)
    }

    fn pending_of(&self, source_id: u16) -> bool {
        let of = |record: &[u64; 2]| record[1] & frcd::F != 0 && record[1] as u16 == source_id;
        self.records.iter().any(of)
    }

    /// Puts a fault into the next register; `false` on overflow.
    fn record(&mut self, record: [u64; 2]) -> bool {
        let none_pending = !self.pending();
        let place = &mut self.records[self.next];
        if place[1] & frcd::F != 0 {
            self.overflow = true;
            return false;
        }
        *place = record;
        if none_pending {
            self.first = self.next;
        }
        self.next = (self.next + 1) % self.records.len();
        true
    }
}

impl Unit {
    /// FSTS.
    pub(crate) fn fault_status(&self) -> u32 {
        let overflow = if self.faults.overflow { fsts::PFO } else { 0 };
        let pending = if self.faults.pending() { fsts::PPF } else { 0 };
        let first = (self.faults.first as u32) << fsts::FRI_SHIFT;
        [self.regs.queue_status, overflow, pending, first].into_iter().fold(0, u32::bitor)
    }

    /// The status fields whose rise calls for a fault event.
    fn fault_conditions(&self) -> u32 {
        self.fault_status() & (fsts::WRITE_1_TO_CLEAR | fsts::PPF)
    }

    /// Records a fault unless its entry has FPD set (VT-d 7.2.1).
    pub(crate) fn report(&mut self, fault: Fault, source_id: u16, request: Request) {
        if !fault.is_recorded() {
            return;
        }
        let compressed = self.config.fault_compression && self.faults.pending_of(source_id);
        if self.faults.overflow || compressed {
            self.stats.faults_lost += 1;
            return;
        }
        let before = self.fault_conditions();
        let reason = u64::from(fault.reason) << frcd::REASON_SHIFT;
        let high = frcd::F | request.high() | reason | u64::from(source_id);
        if self.faults.record([request.info(), high]) {
            self.stats.faults_recorded += 1;
        } else {
            self.stats.faults_lost += 1;
        }
        self.fault_event_if_first(before);
    }

    /// Sets IQE, ICE or ITE.
    pub(crate) fn set_queue_status(&mut self, bit: u32) {
        let before = self.fault_conditions();
        self.regs.queue_status |= bit;
        self.fault_event_if_first(before);
    }

    /// Another condition while one is pending is no new event (FECTL_REG, IP).
    fn fault_event_if_first(&mut self, before: u32) {
        if before == 0 && self.fault_conditions() != 0 {
            self.raise_event(Kind::Fault);
        }
    }

    /// A write of FSTS: 1 clears PFO, IQE, ICE and ITE.
    pub(crate) fn write_fault_status(&mut self, value: u32) {
        if value & fsts::PFO != 0 {
            self.faults.overflow = false;
        }
        self.regs.queue_status &= !(value & fsts::WRITE_1_TO_CLEAR);
        self.withdraw_if_serviced();
    }

    /// A write of a fault record's high doubleword: 1 clears F. Nothing else can be written.
    pub(crate) fn write_fault_record(&mut self, record: usize, high_doubleword: u32) {
        if let Some(record) = self.faults.records.get_mut(record) {
            record[1] &= !(u64::from(high_doubleword) << 32 & frcd::F);
        }
        self.withdraw_if_serviced();
    }

    fn withdraw_if_serviced(&mut self) {
        if self.fault_conditions() == 0 {
            self.withdraw_event(Kind::Fault);
        }
    }
}
