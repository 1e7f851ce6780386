//! A unit's capabilities, and whether they suffice.

use super::{
    coherence::Coherence,
    error::UnitError,
    spec::registers::{CAP, Cap, ECAP, Ecap, VER},
};
use crate::memory::Registers;

/// PASIDs of a directory with 128 entries (PDTS = 0).
const PASIDS: u32 = 128 * 64;

/// A unit's scalable mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scalable {
    /// Whether walks of second-stage tables can snoop (ECAP.SMPWCS).
    pub walks_snoop: bool,
    /// The number of PASIDs, including 0; 1 if requests with PASIDs are not supported.
    pub pasids: u32,
}

impl Scalable {
    /// Whether requests with PASIDs are supported (ECAP.PASID).
    pub const fn has_pasids(&self) -> bool {
        self.pasids > 1
    }
}

/// CAP_REG and ECAP_REG.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    cap: Cap,
    ecap: Ecap,
}

impl Capabilities {
    /// Reads the registers and refuses a unit that lacks a required feature. `register_bytes` is the size of its register block; `wide`
    /// requires 32-bit APIC IDs.
    pub fn read(registers: &impl Registers, register_bytes: u64, wide: bool) -> Result<Self, UnitError> {
        let version = registers.read32(VER);
        if version == 0 || version == u32::MAX {
            return Err(UnitError::Absent);
        }
        let this = Self { cap: Cap(registers.read64(CAP)), ecap: Ecap(registers.read64(ECAP)) };
        this.check(register_bytes, wide).map_or(Ok(this), Err)
    }

    /// The first missing feature.
    fn check(&self, register_bytes: u64, wide: bool) -> Option<UnitError> {
        let records_end = (self.cap.fro() + self.cap.nfr() + 1) * 16;
        let missing = [
            (self.ecap.qi() == 0, UnitError::NoQueuedInvalidation),
            (self.ecap.ir() == 0, UnitError::NoInterruptRemapping),
            (wide && self.ecap.eim() == 0, UnitError::NoExtendedInterruptMode),
            (self.cap.sagaw() & 0b110 == 0, UnitError::NoSecondStage),
            (self.cap.rwbf() != 0, UnitError::WriteBuffers),
            (records_end > register_bytes, UnitError::FaultRecords),
        ];
        missing.into_iter().find(|(is_missing, _)| *is_missing).map(|(_, refusal)| refusal)
    }

    /// CAP.PI: the unit posts interrupts.
    pub fn posts(&self) -> bool {
        self.cap.pi() != 0
    }

    /// ECAP.C.
    pub fn coherence(&self) -> Coherence {
        Coherence(self.ecap.c() != 0)
    }

    /// Scalable mode with second-stage tables, if the unit has it. It is used in that case.
    pub fn scalable(&self) -> Option<Scalable> {
        let bits = if self.ecap.pasid() != 0 { self.ecap.pss() as u32 + 1 } else { 0 };
        let scalable = Scalable { walks_snoop: self.ecap.smpwcs() != 0, pasids: PASIDS.min(1 << bits.min(20)) };
        (self.ecap.smts() != 0 && self.ecap.ssts() != 0).then_some(scalable)
    }

    /// Whether walks of second-stage tables snoop. In scalable mode each PASID table entry selects it.
    pub fn walk_coherence(&self) -> Coherence {
        self.scalable().map_or(self.coherence(), |scalable| Coherence(scalable.walks_snoop))
    }

    /// CAP.CM: entries that become present must be flushed. Only emulated units have this.
    pub fn caches_absent_entries(&self) -> bool {
        self.cap.cm() != 0
    }

    /// CAP.ESIRTPS.
    pub fn flushes_on_sirtp(&self) -> bool {
        self.cap.esirtps() != 0
    }

    /// ECAP.MHMV.
    pub fn max_handle_mask(&self) -> u32 {
        self.ecap.mhmv() as u32
    }

    /// Whether there is a protected memory region that PMEN switches.
    pub fn protects_memory(&self) -> bool {
        self.cap.plmr() | self.cap.phmr() != 0
    }

    /// Levels of second-stage tables: 4 where the unit can, else 3.
    pub fn levels(&self) -> u32 {
        if self.cap.sagaw() & 0b100 != 0 { 4 } else { 3 }
    }

    /// Bits of a device's address: what the tables and the unit can translate.
    pub fn address_bits(&self) -> u32 {
        (12 + 9 * self.levels()).min(self.cap.mgaw() as u32 + 1)
    }

    /// The highest level that may hold a page: 1 for 4 KiB only, 2 for 2 MiB, 3 for 1 GiB.
    pub fn page_level(&self) -> u32 {
        match self.cap.sslps() & 0b11 {
            0b11 => 3,
            0b01 => 2,
            _ => 1,
        }
    }

    /// How many domain ids there are.
    pub fn domains(&self) -> u32 {
        1 << (4 + 2 * self.cap.nd().min(6))
    }

    /// CAP.DWD and CAP.DRD: whether an invalidation can drain writes, reads.
    pub fn drains(&self) -> (bool, bool) {
        (self.cap.dwd() != 0, self.cap.drd() != 0)
    }

    /// Offset and number of the fault recording registers.
    pub fn fault_records(&self) -> (usize, usize) {
        (self.cap.fro() as usize * 16, self.cap.nfr() as usize + 1)
    }
}
