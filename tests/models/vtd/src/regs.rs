//! Register accesses (VT-d 11.2 "Software Access to Registers": aligned doublewords or quadwords; a quadword only where a
//! 64-bit register is).

use crate::spec::regs::{self, ICS_IWC, MAX_FAULT_RECORDS, RTADDR_RESERVED, iqa, irta};
use crate::unit::event::Kind;
use crate::{Config, Memory, Unit};

/// An access to one register: `half` tells which doubleword of a 64-bit register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Low,
    High,
    Whole,
}

impl Part {
    /// What a read of this part of a register with `value` gives.
    fn of(self, value: u64) -> u64 {
        match self {
            Part::Low => value & 0xffff_ffff,
            Part::High => value >> 32,
            Part::Whole => value,
        }
    }

    /// The register's new value when `written` goes to this part of `old`.
    fn merge(self, old: u64, written: u64) -> u64 {
        match self {
            Part::Low => old & !0xffff_ffff | written & 0xffff_ffff,
            Part::High => old & 0xffff_ffff | written << 32,
            Part::Whole => written,
        }
    }

    fn has_high(self) -> bool {
        self != Part::Low
    }

    fn has_low(self) -> bool {
        self != Part::High
    }
}

/// Whether a 64-bit register is at this offset.
fn is_wide(base: u64) -> bool {
    use regs::*;
    matches!(base, CAP | ECAP | RTADDR | CCMD | IVA | IOTLB | IQH | IQT | IQA | IQERCD | IRTA | PQH | PQT | PQA)
        || fault_record(base).is_some()
}

/// The fault record and its half at this offset.
fn fault_record(base: u64) -> Option<(usize, usize)> {
    let index = base.checked_sub(regs::FRCD)? / 8;
    let record = index as usize / 2;
    (record < MAX_FAULT_RECORDS).then_some((record, index as usize % 2))
}

/// The 64-bit register, and the part of it, that an access means.
fn wide(offset: u64, len: usize) -> Option<(u64, Part)> {
    let base = offset & !7;
    let part = match (offset & 7, len) {
        (0, 8) => Part::Whole,
        (0, 4) => Part::Low,
        (4, 4) => Part::High,
        _ => return None,
    };
    is_wide(base).then_some((base, part))
}

/// The 32-bit register that an access means.
fn narrow(offset: u64, len: usize) -> Option<u64> {
    (len == 4 && offset.is_multiple_of(4) && !is_wide(offset & !7)).then_some(offset)
}

impl Unit {
    /// Reads a register of 4 or 8 bytes; 0 for other widths, unaligned or unknown offsets.
    pub fn read(&mut self, offset: u64, len: usize) -> u64 {
        if let Some((base, part)) = wide(offset, len) {
            return part.of(self.read_wide(base));
        }
        if let Some(offset) = narrow(offset, len) {
            return u64::from(self.read_narrow(offset));
        }
        self.violation(offset, len as u64, ACCESS_RULE);
        0
    }

    /// Writes a register of 4 or 8 bytes; other widths, unaligned and unknown offsets are ignored. Commands (the
    /// invalidation queue too) are carried out before this returns.
    pub fn write(&mut self, offset: u64, len: usize, value: u64, mem: &mut dyn Memory) {
        if let Some((base, part)) = wide(offset, len) {
            self.write_wide(base, part, value, mem);
        } else if let Some(offset) = narrow(offset, len) {
            self.write_narrow(offset, value as u32, mem);
        } else {
            self.violation(offset, value, ACCESS_RULE);
        }
    }

    fn read_wide(&self, base: u64) -> u64 {
        match base {
            regs::CAP => self.config.cap(),
            regs::ECAP => self.config.ecap(),
            regs::RTADDR => self.regs.rtaddr,
            regs::CCMD => self.regs.ccmd,
            regs::IOTLB => self.regs.iotlb,
            regs::IQH => self.queue.head,
            regs::IQT => self.queue.tail,
            regs::IQA => self.queue.address,
            regs::IQERCD => self.queue.error,
            regs::IRTA => self.regs.irta,
            regs::PQH | regs::PQT | regs::PQA => self.page_requests.read(base),
            // IVA is write-only.
            _ => fault_record(base).map_or(0, |(record, half)| self.faults.read(record, half)),
        }
    }

    fn read_narrow(&self, offset: u64) -> u32 {
        match offset {
            regs::VER => Config::VERSION,
            regs::GSTS => self.regs.gsts,
            regs::FSTS => self.fault_status(),
            regs::FECTL..=regs::FEUADDR => self.fault_event.read((offset - regs::FECTL) / 4),
            regs::ICS => self.regs.ics,
            regs::IECTL..=regs::IEUADDR => self.completion_event.read((offset - regs::IECTL) / 4),
            regs::PRS => self.page_requests.status(),
            regs::PECTL..=regs::PEUADDR => self.page_request_event.read((offset - regs::PECTL) / 4),
            // GCMD is write-only; PMEN is absent, as CAP says.
            _ => 0,
        }
    }

    fn write_wide(&mut self, base: u64, part: Part, value: u64, mem: &mut dyn Memory) {
        match base {
            regs::RTADDR => {
                let value = part.merge(self.regs.rtaddr, value);
                self.regs.rtaddr = self.without(base, value, RTADDR_RESERVED);
            }
            regs::IRTA => {
                let value = part.merge(self.regs.irta, value);
                let eime = u64::from(!self.config.extended_interrupt_mode) << irta::EIME;
                self.regs.irta = self.without(base, value, irta::RESERVED | eime);
            }
            regs::CCMD => {
                self.regs.ccmd = part.merge(self.regs.ccmd, value);
                if part.has_high() {
                    self.invalidate_contexts_by_register();
                }
            }
            regs::IVA => self.regs.iva = part.merge(self.regs.iva, value),
            regs::IOTLB => {
                self.regs.iotlb = part.merge(self.regs.iotlb, value);
                if part.has_high() {
                    self.invalidate_pages_by_register();
                }
            }
            regs::IQT if part.has_low() => self.write_queue_tail(part.merge(0, value), mem),
            regs::IQA => self.write_queue_address(part.merge(self.queue.address, value)),
            regs::PQH | regs::PQT | regs::PQA if self.config.has_page_requests() => {
                let value = part.merge(self.page_requests.read(base), value);
                self.write_page_request_queue(base, value);
            }
            _ => self.write_record_or_nothing(base, part, value),
        }
    }

    fn write_record_or_nothing(&mut self, base: u64, part: Part, value: u64) {
        match fault_record(base) {
            Some((record, 1)) if part.has_high() => {
                let value = part.merge(0, value);
                self.write_fault_record(record, (value >> 32) as u32);
            }
            Some(_) => {}
            None if base == regs::IQT && value == 0 => {}
            None => self.violation(base, value, "a read-only register is not written"),
        }
    }

    fn write_queue_address(&mut self, value: u64) {
        if self.status(regs::global::QIE) {
            let rule = "IQA is not changed while the queue is enabled (VT-d 6.5.2)";
            return self.violation(regs::IQA, value, rule);
        }
        self.queue.address = self.without(regs::IQA, value, iqa::RESERVED);
    }

    fn write_narrow(&mut self, offset: u64, value: u32, mem: &mut dyn Memory) {
        match offset {
            regs::GCMD => self.command(value, mem),
            regs::FSTS => {
                self.write_fault_status(value);
                self.restart_queue(mem);
            }
            regs::FECTL..=regs::FEUADDR => {
                self.write_event(Kind::Fault, (offset - regs::FECTL) / 4, value);
            }
            regs::ICS => {
                self.regs.ics &= !(value & ICS_IWC);
                if self.regs.ics == 0 {
                    self.withdraw_event(Kind::Completion);
                }
            }
            regs::IECTL..=regs::IEUADDR => {
                self.write_event(Kind::Completion, (offset - regs::IECTL) / 4, value);
            }
            regs::PRS if self.config.has_page_requests() => self.write_page_request_status(value),
            regs::PECTL..=regs::PEUADDR if self.config.has_page_requests() => {
                self.write_event(Kind::PageRequest, (offset - regs::PECTL) / 4, value);
            }
            regs::PMEN if value == 0 => {}
            _ => self.violation(offset, u64::from(value), "no such register to write"),
        }
    }

    /// `value` without reserved bits, which are noted.
    fn without(&mut self, offset: u64, value: u64, reserved: u64) -> u64 {
        if value & reserved != 0 {
            self.violation(offset, value, "reserved bits of a register are zero");
        }
        value & !reserved
    }
}

const ACCESS_RULE: &str = "registers are accessed as aligned doublewords, 64-bit ones as quadwords too (VT-d 11.2)";
