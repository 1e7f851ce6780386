//! A unit's registers: switching its functions on and off, and its fault records.
//!
//! Each wait is bounded, and returns whether it succeeded.

use core::time::Duration;

use super::{
    capabilities::Capabilities,
    error::UnitError,
    fault::Fault,
    spec::registers::{
        FEADDR, FECTL, FECTL_IM, FEDATA, FEUADDR, FRCD_CLEAR, FSTS, Frcd, Fsts, GCMD, GSTS, IQA, IQERCD, IQH, IQT,
        IRTA, Iqa, Irta, PMEN, PMEN_PRS, RTADDR, Rtaddr, global,
    },
};
use crate::{
    addr::{Hpa, PAGE_SIZE},
    clock::{Clock, poll},
    memory::Registers,
};

/// What the unit gets for a command, or for a submission to its queue. The manual sets no limit; Xen waits as long.
pub(super) const COMMAND: Duration = Duration::from_secs(1);
/// How often all fault records are read before a device that goes on is left to whoever masks the events.
const ROUNDS: usize = 4;

/// A unit.
pub struct Unit<R: Registers> {
    registers: R,
    capabilities: Capabilities,
    clock: &'static dyn Clock,
}

/// Whether a unit translates DMA (GSTS.TES), whoever has set it up.
pub fn is_translating(registers: &impl Registers) -> bool {
    registers.read32(GSTS) & global::TE != 0
}

impl<R: Registers> Unit<R> {
    /// The unit behind `registers`, if it can do what is needed: [`Capabilities::read`]. Waits for it go by `clock`.
    pub fn new(registers: R, register_bytes: u64, wide: bool, clock: &'static dyn Clock) -> Result<Self, UnitError> {
        let capabilities = Capabilities::read(&registers, register_bytes, wide)?;
        Ok(Self { registers, capabilities, clock })
    }

    /// What it can do.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// What waits for it go by.
    pub(super) fn clock(&self) -> &'static dyn Clock {
        self.clock
    }

    /// Switches off whatever firmware or a loader left on, and forgets old faults.
    pub fn quiesce(&self) -> Result<(), UnitError> {
        self.switch(global::TE, false, "switch DMA remapping off")?;
        self.switch(global::IRE, false, "switch interrupt remapping off")?;
        self.disable_queue()?;
        if self.capabilities.protects_memory() {
            self.registers.write32(PMEN, 0);
            self.wait("unprotect memory", || self.registers.read32(PMEN) & PMEN_PRS == 0)?;
        }
        self.registers.write32(FECTL, FECTL_IM);
        self.take_faults(|_| {});
        self.clear_queue_errors();
        Ok(())
    }

    /// Switches off the queue of the last owner, which has to be empty then (6.5.2; Linux `dmar_disable_qi`). One that an error has
    /// halted never becomes empty: what is left in it is dropped. Its memory is not touched, because it can be anybody's by now.
    fn disable_queue(&self) -> Result<(), UnitError> {
        if self.status() & global::QIE == 0 {
            return Ok(());
        }
        // A time-out of a device-TLB is over: the queue goes on.
        self.registers.write32(FSTS, Fsts(0).with_ice(1).with_ite(1).0);
        let is_halted = || self.fault_status().iqe() != 0;
        let is_empty = || self.queue_head() == self.registers.read64(IQT) as usize;
        self.wait("empty the old invalidation queue", || is_halted() || is_empty())?;
        if is_halted() {
            // While IQE is set nothing is fetched, so the tail can go back; and then there is nothing to fetch.
            self.set_queue_tail(self.queue_head());
            self.clear_queue_errors();
        }
        self.switch(global::QIE, false, "switch the old invalidation queue off")
    }

    /// Sections 6.5.2 and 11.4 (GCMD.QIE): the queue of 2^`order` pages at `base`, empty, with descriptors of 256 bits if `wide`.
    pub fn enable_queue(&self, base: Hpa, order: u32, wide: bool) -> Result<(), UnitError> {
        self.registers.write64(IQT, 0);
        self.registers
            .write64(IQA, Iqa(0).with_page(base.as_u64() / PAGE_SIZE).with_qs(order.into()).with_dw(wide.into()).0);
        self.switch(global::QIE, true, "switch the invalidation queue on")
    }

    /// GCMD.SIRTP: the table of 2^`order` entries at `base`, with 32-bit destinations if `wide`. The interrupt entry cache is
    /// to be flushed before remapping is switched on.
    pub fn set_interrupt_table(&self, base: Hpa, order: u32, wide: bool) -> Result<(), UnitError> {
        let size = u64::from(order.saturating_sub(1));
        let value = Irta(0).with_page(base.as_u64() / PAGE_SIZE).with_s(size).with_eime(wide.into());
        self.registers.write64(IRTA, value.0);
        self.command(global::SIRTP, "set the interrupt remapping table")
    }

    /// GCMD.IRE, then compatibility format off, and that read back (CVE-2011-1898).
    pub fn enable_interrupt_remapping(&self) -> Result<(), UnitError> {
        self.switch(global::IRE, true, "switch interrupt remapping on")?;
        self.switch(global::CFI, false, "block compatibility format")?;
        let status = self.status();
        if status & (global::IRE | global::CFI) == global::IRE { Ok(()) } else { Err(UnitError::CompatibilityFormat) }
    }

    /// GCMD.SRTP, in scalable mode if the unit has it. Context cache, PASID cache, IOTLB are to be flushed, one after another, before
    /// translation is switched on.
    pub fn set_root_table(&self, base: Hpa) -> Result<(), UnitError> {
        let mode = u64::from(self.capabilities.scalable().is_some());
        self.registers.write64(RTADDR, Rtaddr(0).with_page(base.as_u64() / PAGE_SIZE).with_ttm(mode).0);
        self.command(global::SRTP, "set the root table")
    }

    /// GCMD.TE.
    pub fn enable_dma_remapping(&self) -> Result<(), UnitError> {
        self.switch(global::TE, true, "switch DMA remapping on")
    }

    /// GSTS.
    pub fn status(&self) -> u32 {
        self.registers.read32(GSTS)
    }

    /// Byte offset of the descriptor that the unit does next.
    pub fn queue_head(&self) -> usize {
        self.registers.read64(IQH) as usize
    }

    /// Tells the unit of descriptors up to byte offset `tail`.
    pub fn set_queue_tail(&self, tail: usize) {
        self.registers.write64(IQT, tail as u64);
    }

    /// FSTS.
    pub fn fault_status(&self) -> Fsts {
        Fsts(self.registers.read32(FSTS))
    }

    /// IQERCD.IQEI: why IQE was set; bits 3:0.
    pub fn queue_error_code(&self) -> u8 {
        self.registers.read64(IQERCD) as u8 & 0xf
    }

    /// Clears IQE, ICE, ITE: the queue goes on.
    pub fn clear_queue_errors(&self) {
        self.registers.write32(FSTS, Fsts(0).with_iqe(1).with_ice(1).with_ite(1).0);
    }

    /// Gives each recorded fault to `report` and clears its record, until there is none; at most a few times as many as there
    /// are records. Returns how many there were, and whether others were lost. While a record or the overflow is pending the unit
    /// sends no further event (7.3), so what came behind the reader's back has to be taken as well.
    pub fn take_faults(&self, mut report: impl FnMut(Fault)) -> (usize, bool) {
        let (mut taken, mut lost) = (0, false);
        for _ in 0..ROUNDS {
            let status = self.fault_status();
            if !has_faults(status) {
                break;
            }
            taken += self.take_records(status.fri() as usize, &mut report);
            if status.pfo() != 0 {
                self.registers.write32(FSTS, Fsts(0).with_pfo(1).0);
                lost = true;
            }
        }
        (taken, lost)
    }

    /// Whether a fault is recorded, or was lost: no event comes until that has been taken.
    pub fn has_faults(&self) -> bool {
        has_faults(self.fault_status())
    }

    /// Looks once at each record, from the first pending one on.
    fn take_records(&self, first: usize, report: &mut impl FnMut(Fault)) -> usize {
        let (offset, records) = self.capabilities.fault_records();
        let mut taken = 0;
        for i in 0..records {
            let at = offset + (first + i) % records * 16;
            let high = u128::from(self.registers.read64(at + 8)) << 64;
            if Frcd(high).f() == 0 {
                continue;
            }
            let record = Frcd(high | u128::from(self.registers.read64(at)));
            self.registers.write32(at + 12, FRCD_CLEAR);
            Fault::decode(record).into_iter().for_each(&mut *report);
            taken += 1;
        }
        taken
    }

    /// Has the unit send this message when it records a fault (not remapped: 7.3).
    pub fn set_fault_event(&self, address: u64, data: u32) {
        self.registers.write32(FEDATA, data);
        self.registers.write32(FEADDR, address as u32);
        self.registers.write32(FEUADDR, (address >> 32) as u32);
        self.registers.write32(FECTL, 0);
    }

    /// Holds fault events back, or lets them go (FECTL.IM). One that came meanwhile is sent then, if its fault is still recorded.
    pub fn mask_fault_event(&self, masked: bool) {
        self.registers.write32(FECTL, if masked { FECTL_IM } else { 0 });
    }

    /// Switches a part on or off: what GSTS shows stays as it is, one-shot bits are not repeated (11.4, GCMD_REG).
    fn switch(&self, bit: u32, on: bool, what: &'static str) -> Result<(), UnitError> {
        let status = self.status();
        if (status & bit != 0) == on {
            return Ok(());
        }
        let rest = status & !global::ONE_SHOT & !bit;
        self.registers.write32(GCMD, if on { rest | bit } else { rest });
        self.wait(what, || (self.status() & bit != 0) == on)
    }

    /// Gives a one-shot command.
    fn command(&self, bit: u32, what: &'static str) -> Result<(), UnitError> {
        self.registers.write32(GCMD, self.status() & !global::ONE_SHOT | bit);
        self.wait(what, || self.status() & bit != 0)
    }

    fn wait(&self, what: &'static str, done: impl Fn() -> bool) -> Result<(), UnitError> {
        if poll(self.clock, COMMAND, done) { Ok(()) } else { Err(UnitError::Timeout(what)) }
    }
}

/// PPF or PFO. A register that reads as all ones is no unit's any more.
fn has_faults(status: Fsts) -> bool {
    status.0 != u32::MAX && (status.ppf() != 0 || status.pfo() != 0)
}
