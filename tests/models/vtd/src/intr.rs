//! Interrupt requests: remapping (VT-d 5.1) and posting (VT-d 5.2).

use crate::memory::read_pair;
use crate::spec::irte::{self, Irte, request};
use crate::spec::regs::{global, irta};
use crate::spec::{bit, bits, mask, reason};
use crate::unit::fault::{Fault, Request};
use crate::{Memory, Unit};

/// What becomes of an interrupt request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InterruptResult {
    /// Deliver this interrupt to the local APICs.
    Remapped(Remapped),
    /// Recorded in a posted-interrupt descriptor.
    Posted {
        /// The notification event to send, if one is due: the vector and the destination's APIC ID; physical destination
        /// mode, fixed delivery, edge.
        notify: Option<(u8, u32)>,
    },
    /// Deliver as the message itself says: remapping is off, or compatibility format is allowed.
    Compatibility(Compatibility),
    /// Nothing is delivered.
    Blocked {
        /// VT-d appendix A's fault reason (0x20 to 0x28), or `None` for a request that is no interrupt request at all.
        reason: Option<u8>,
    },
}

/// An interrupt as a remapped-format entry describes it (VT-d 9.10).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remapped {
    /// The vector.
    pub vector: u8,
    /// The destination's APIC ID (or logical ID): 32 bits in extended interrupt mode, else 8.
    pub dest: u32,
    /// DM: the destination is logical.
    pub dest_mode_logical: bool,
    /// RH: redirection hint.
    pub redirection_hint: bool,
    /// DLM: 0 fixed, 1 lowest priority, 2 SMI, 4 NMI, 5 INIT, 7 ExtINT.
    pub delivery_mode: u8,
    /// TM: level triggered.
    pub trigger_level: bool,
    /// The entry's index in the interrupt-remapping table.
    pub index: u32,
}

/// An interrupt as a compatibility-format message describes it (VT-d 5.1.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compatibility {
    /// The vector.
    pub vector: u8,
    /// The destination: address bits 19:12.
    pub dest: u8,
    /// DM: the destination is logical.
    pub dest_mode_logical: bool,
    /// RH: redirection hint.
    pub redirection_hint: bool,
    /// The delivery mode, coded as in [`Remapped::delivery_mode`].
    pub delivery_mode: u8,
    /// Level triggered.
    pub trigger_level: bool,
    /// The level of a level-triggered interrupt: asserted.
    pub asserted: bool,
}

/// The interrupt address range (VT-d 3.15): address bits 63:20.
const INTERRUPT_RANGE: u64 = 0xfee;

impl Unit {
    /// Handles a DWORD write of `data` to `address` (0xFEEx_xxxx, DWORD-aligned) by the requester `source_id`.
    pub fn interrupt_request(
        &mut self,
        source_id: u16,
        address: u64,
        data: u32,
        mem: &mut dyn Memory,
    ) -> InterruptResult {
        let outcome = if address >> 20 == INTERRUPT_RANGE && address & 3 == 0 {
            self.remap_or_report(source_id, address, data, mem)
        } else {
            InterruptResult::Blocked { reason: None }
        };
        self.count(outcome);
        outcome
    }

    fn count(&mut self, outcome: InterruptResult) {
        let stats = &mut self.stats;
        match outcome {
            InterruptResult::Remapped(_) => stats.remapped += 1,
            InterruptResult::Posted { notify } => {
                stats.posted += 1;
                stats.notifications += u64::from(notify.is_some());
            }
            InterruptResult::Compatibility(_) => stats.compatibility += 1,
            InterruptResult::Blocked { reason } => {
                stats.blocked += 1;
                stats.interrupt_faults += u64::from(reason.is_some());
            }
        }
    }

    fn remap_or_report(&mut self, source_id: u16, address: u64, data: u32, mem: &mut dyn Memory) -> InterruptResult {
        if !self.status(global::IRE) {
            return InterruptResult::Compatibility(Compatibility::decode(address, data));
        }
        let (index, result) = if request::is_remappable(address) {
            match index_of(address, data) {
                Ok(index) => (index, self.remap(source_id, index, mem)),
                Err(fault) => (0, Err(fault)),
            }
        } else {
            (0, self.pass_compatibility(address, data))
        };
        result.unwrap_or_else(|fault| {
            self.report(fault, source_id, Request::Interrupt { index });
            InterruptResult::Blocked { reason: Some(fault.reason) }
        })
    }

    /// VT-d 5.1.2.1: compatibility format needs CFI, and is never allowed in extended interrupt mode.
    fn pass_compatibility(&self, address: u64, data: u32) -> Result<InterruptResult, Fault> {
        if self.extended_interrupt_mode() || !self.status(global::CFI) {
            return Err(Fault::new(reason::COMPATIBILITY_BLOCKED));
        }
        Ok(InterruptResult::Compatibility(Compatibility::decode(address, data)))
    }

    /// IRTA.EIME as latched.
    pub(crate) fn extended_interrupt_mode(&self) -> bool {
        bit(self.regs.table, irta::EIME)
    }

    fn remap(&mut self, source_id: u16, index: u32, mem: &mut dyn Memory) -> Result<InterruptResult, Fault> {
        let entry = self.interrupt_entry(index, mem)?;
        if !source_id_matches(entry, source_id) {
            let fpd = entry.fault_processing_disabled();
            return Err(Fault::with_fpd(reason::SOURCE_ID, fpd));
        }
        if entry.posted() {
            return self.post(entry, mem);
        }
        Ok(InterruptResult::Remapped(self.remapped(entry, index)))
    }

    /// The entry, from the interrupt entry cache or from memory. Only a good one is cached.
    fn interrupt_entry(&mut self, index: u32, mem: &mut dyn Memory) -> Result<Irte, Fault> {
        let entries = 2u32 << bits(self.regs.table, irta::SIZE.0, irta::SIZE.1);
        if index >= entries {
            return Err(Fault::new(reason::INDEX_BEYOND_TABLE));
        }
        if let Some(entry) = self.caches.interrupt(index) {
            self.stats.cache_hits += 1;
            return Ok(entry);
        }
        self.stats.cache_misses += 1;
        let at = (self.regs.table & !0xfff) + u64::from(index) * irte::SIZE;
        let words = read_pair(mem, at).ok_or(Fault::new(reason::TABLE_ACCESS))?;
        let entry = self.check_entry(Irte(words))?;
        self.caches.keep_interrupt(index, entry);
        Ok(entry)
    }

    fn check_entry(&self, entry: Irte) -> Result<Irte, Fault> {
        let fault = |reason| Fault::with_fpd(reason, entry.fault_processing_disabled());
        if !entry.present() {
            return Err(fault(reason::ENTRY_NOT_PRESENT));
        }
        let wrong = if entry.posted() { self.posted_format_wrong(entry) } else { self.remapped_format_wrong(entry) };
        if wrong || entry.source_validation_type() == 3 {
            return Err(fault(reason::ENTRY_RESERVED));
        }
        Ok(entry)
    }

    fn remapped_format_wrong(&self, entry: Irte) -> bool {
        let xapic = !self.extended_interrupt_mode();
        has(entry, irte::REMAPPED_RESERVED)
            || xapic && entry.0[0] & irte::XAPIC_DESTINATION_RESERVED != 0
            || matches!(entry.delivery_mode(), 3 | 6)
    }

    fn posted_format_wrong(&self, entry: Irte) -> bool {
        !self.config.posted_interrupts
            || has(entry, irte::POSTED_RESERVED)
            || entry.descriptor() & self.beyond_host_width() != 0
    }

    fn remapped(&self, entry: Irte, index: u32) -> Remapped {
        let dest = entry.destination();
        let extended = self.extended_interrupt_mode();
        Remapped {
            vector: entry.vector(),
            dest: if extended { dest } else { dest >> 8 & 0xff },
            dest_mode_logical: entry.logical(),
            redirection_hint: entry.redirection_hint(),
            delivery_mode: entry.delivery_mode(),
            trigger_level: entry.level_triggered(),
            index,
        }
    }
}

fn has(entry: Irte, reserved: [u64; 2]) -> bool {
    entry.0[0] & reserved[0] != 0 || entry.0[1] & reserved[1] != 0
}

/// The interrupt index of a remappable-format request (VT-d 5.1.3). Data bits that are no subhandle are reserved.
fn index_of(address: u64, data: u32) -> Result<u32, Fault> {
    let valid = request::subhandle_valid(address);
    let subhandle = if valid { data & 0xffff } else { 0 };
    if data != subhandle {
        return Err(Fault::new(reason::REQUEST_RESERVED));
    }
    Ok(request::handle(address) + subhandle)
}

/// Source-id verification (VT-d chapter 9, SVT and SQ).
fn source_id_matches(entry: Irte, source_id: u16) -> bool {
    let expected = entry.source_id();
    match entry.source_validation_type() {
        0 => true,
        1 => {
            let ignored = [0, 0b100, 0b110, 0b111][entry.source_id_qualifier() as usize & 3];
            (expected ^ source_id) & !ignored == 0
        }
        _ => (expected >> 8..=expected & 0xff).contains(&(source_id >> 8)),
    }
}

impl Compatibility {
    fn decode(address: u64, data: u32) -> Self {
        let data = u64::from(data);
        Compatibility {
            vector: (data & mask(7, 0)) as u8,
            dest: bits(address, 19, 12) as u8,
            dest_mode_logical: bit(address, 2),
            redirection_hint: bit(address, 3),
            delivery_mode: bits(data, 10, 8) as u8,
            trigger_level: bit(data, 15),
            asserted: bit(data, 14),
        }
    }
}
