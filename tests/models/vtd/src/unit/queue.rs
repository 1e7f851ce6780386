//! The invalidation queue (VT-d 6.5.2) with descriptors of 128 bits, or of 256 where there is scalable mode.

use crate::cache::{ContextScope, IotlbScope, PasidScope};
use crate::memory::{read_pair, read_quads};
use crate::spec::regs::{self, ICS_IWC, fsts, global, iqa, queue_error};
use crate::spec::{bit, bits, descriptor as desc, mask};
use crate::unit::event::Kind;
use crate::{Memory, Unit};

/// The queue's registers.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    /// IQH: the byte offset of the next descriptor.
    pub(crate) head: u64,
    /// IQT: the byte offset behind the last descriptor.
    pub(crate) tail: u64,
    /// IQA.
    pub(crate) address: u64,
    /// IQERCD: why IQE was set.
    pub(crate) error: u64,
    /// A device-TLB invalidation is outstanding that nobody will answer.
    unanswered: bool,
}

/// The bits that IQT has.
const TAIL: u64 = mask(18, 0);

impl Queue {
    /// Bytes of the queue.
    fn size(&self) -> u64 {
        4096 << bits(self.address, iqa::SIZE.0, iqa::SIZE.1)
    }

    fn base(&self) -> u64 {
        self.address & !0xfff
    }

    /// Bytes of a descriptor.
    fn descriptor_size(&self) -> u64 {
        if bit(self.address, iqa::DW) { 32 } else { 16 }
    }

    fn tail_is_valid(&self) -> bool {
        self.tail < self.size() && self.tail.is_multiple_of(self.descriptor_size())
    }
}

impl Unit {
    /// A write of IQT: new descriptors.
    pub(crate) fn write_queue_tail(&mut self, value: u64, mem: &mut dyn Memory) {
        if value & !TAIL != 0 {
            self.violation(regs::IQT, value, "IQT: reserved bits are zero (they were dropped)");
        }
        self.queue.tail = value & TAIL;
        self.run_queue(mem);
    }

    /// Goes on after software has cleared IQE or ITE.
    pub(crate) fn restart_queue(&mut self, mem: &mut dyn Memory) {
        if self.regs.queue_status & fsts::IQE == 0 {
            self.queue.error = 0;
        }
        self.run_queue(mem);
    }

    fn queue_runs(&self) -> bool {
        let halted = self.regs.queue_status & (fsts::IQE | fsts::ITE) != 0;
        self.status(global::QIE) && !self.hung && !halted && self.queue.head != self.queue.tail
    }

    /// Carries out descriptors until the queue is empty or an error halts it. Each step moves the head, so there are at
    /// most as many steps as the queue has places.
    pub(crate) fn run_queue(&mut self, mem: &mut dyn Memory) {
        while self.queue_runs() {
            if let Err(error) = self.next_descriptor(mem) {
                self.stats.queue_errors += 1;
                self.queue.error = error;
                self.set_queue_status(fsts::IQE);
            } else {
                let next = self.queue.head + self.queue.descriptor_size();
                self.queue.head = next % self.queue.size();
            }
        }
    }

    fn next_descriptor(&mut self, mem: &mut dyn Memory) -> Result<(), u64> {
        let wide = bit(self.queue.address, iqa::DW);
        if wide && !self.config.scalable_mode || !wide && self.scalable() {
            return Err(queue_error::INVALID_WIDTH);
        }
        if !self.queue.tail_is_valid() {
            return Err(queue_error::INVALID_TAIL);
        }
        let at = self.queue.base() + self.queue.head;
        let words = read_pair(mem, at).ok_or(queue_error::FETCH)?;
        let upper = if wide { read_quads(mem, at + 16).ok_or(queue_error::FETCH)? } else { [0; 2] };
        self.stats.descriptors += 1;
        if upper != [0; 2] {
            return Err(queue_error::RESERVED_FIELD);
        }
        self.carry_out(words, mem)
    }

    fn carry_out(&mut self, words: [u64; 2], mem: &mut dyn Memory) -> Result<(), u64> {
        let low = words[0];
        let kind = bits(low, desc::TYPE_LOW.0, desc::TYPE_LOW.1) | bits(low, desc::TYPE_HIGH.0, desc::TYPE_HIGH.1) << 4;
        let reserved = desc::reserved(kind).ok_or(queue_error::INVALID_TYPE)?;
        if !self.has_descriptor(kind) {
            return Err(queue_error::INVALID_TYPE);
        }
        let draining = kind == desc::WAIT && bit(low, desc::wait::PD) && !self.config.has_page_requests();
        if draining || low & reserved[0] != 0 || words[1] & reserved[1] != 0 {
            return Err(queue_error::RESERVED_FIELD);
        }
        match kind {
            desc::CONTEXT_CACHE => self.queued_context(low),
            desc::IOTLB => self.queued_iotlb(words),
            desc::DEVICE_TLB | desc::PASID_DEVICE_TLB => self.queued_device_tlb(),
            desc::PAGE_GROUP_RESPONSE => self.queued_page_response(words),
            desc::INTERRUPT_ENTRY_CACHE => self.queued_interrupt_entry(low),
            desc::PASID_CACHE => self.queued_pasid_cache(low),
            desc::PASID_IOTLB => self.queued_pasid_iotlb(words),
            _ => self.queued_wait(words, mem),
        }
    }

    fn has_descriptor(&self, kind: u64) -> bool {
        match kind {
            desc::DEVICE_TLB => self.config.device_tlb,
            desc::PASID_DEVICE_TLB => self.config.device_tlb && self.config.scalable_mode,
            desc::PAGE_GROUP_RESPONSE => self.config.has_page_requests(),
            desc::INTERRUPT_ENTRY_CACHE => self.config.interrupt_remapping,
            desc::PASID_CACHE | desc::PASID_IOTLB => self.config.scalable_mode,
            _ => true,
        }
    }

    /// The domain id of a descriptor; bits that CAP.ND does not cover are reserved.
    fn queued_domain(&self, low: u64) -> Result<u16, u64> {
        let domain = bits(low, desc::DID.0, desc::DID.1) as u16;
        if domain & self.config.domain_id_reserved() != 0 {
            return Err(queue_error::RESERVED_FIELD);
        }
        Ok(domain)
    }

    fn queued_context(&mut self, low: u64) -> Result<(), u64> {
        let domain = self.queued_domain(low)?;
        let source_id = bits(low, desc::context::SID.0, desc::context::SID.1) as u16;
        let function_mask = bits(low, desc::context::FM.0, desc::context::FM.1);
        let scope = match bits(low, desc::GRANULARITY.0, desc::GRANULARITY.1) {
            1 => ContextScope::Global,
            2 => ContextScope::Domain(domain),
            3 => ContextScope::Device(domain, source_id, ignored_functions(function_mask)),
            _ => return Err(queue_error::RESERVED_FIELD),
        };
        self.flush_contexts(scope);
        Ok(())
    }

    fn queued_iotlb(&mut self, words: [u64; 2]) -> Result<(), u64> {
        let domain = self.queued_domain(words[0])?;
        let scope = match bits(words[0], desc::GRANULARITY.0, desc::GRANULARITY.1) {
            1 => IotlbScope::Global,
            2 => IotlbScope::Domain(domain),
            3 => {
                let mask = bits(words[1], desc::iotlb::AM.0, desc::iotlb::AM.1) as u32;
                let leaves_only = bit(words[1], desc::iotlb::IH);
                self.page_scope(domain, words[1], mask, leaves_only).ok_or(queue_error::RESERVED_FIELD)?
            }
            _ => return Err(queue_error::RESERVED_FIELD),
        };
        self.flush_pages(scope);
        Ok(())
    }

    fn queued_pasid_cache(&mut self, low: u64) -> Result<(), u64> {
        let domain = self.queued_domain(low)?;
        let pasid = bits(low, desc::PASID.0, desc::PASID.1) as u32;
        let scope = match bits(low, desc::GRANULARITY.0, desc::GRANULARITY.1) {
            0 => PasidScope::Domain(domain),
            1 => PasidScope::Pasid(domain, pasid),
            3 => PasidScope::Global,
            _ => return Err(queue_error::RESERVED_FIELD),
        };
        self.flush_pasids(scope);
        Ok(())
    }

    /// For translations by first-stage tables, which are tagged by PASID. Those by second-stage tables alone are their domain's, and
    /// stay (VT-d 6.5.2.4). CAP.MAMV does not bound their address masks: Linux 7 drops the kernel's half of the addresses by one.
    fn queued_pasid_iotlb(&mut self, words: [u64; 2]) -> Result<(), u64> {
        let domain = self.queued_domain(words[0])?;
        let pasid = bits(words[0], desc::PASID.0, desc::PASID.1) as u32;
        let selected = bits(words[0], desc::GRANULARITY.0, desc::GRANULARITY.1);
        let mask = bits(words[1], desc::iotlb::AM.0, desc::iotlb::AM.1) as u32;
        if !matches!(selected, 2 | 3) {
            return Err(queue_error::RESERVED_FIELD);
        }
        self.stats.pasid_iotlb_flushes += 1;
        let within = crate::spec::mask(11 + mask.min(52), 0);
        let range = (selected == 3).then_some((words[1] & !within, words[1] | within));
        self.caches.flush_first_stage(domain, pasid, range);
        Ok(())
    }

    fn queued_device_tlb(&mut self) -> Result<(), u64> {
        self.stats.device_tlb_flushes += 1;
        self.queue.unanswered |= self.answers_lost;
        Ok(())
    }

    fn queued_interrupt_entry(&mut self, low: u64) -> Result<(), u64> {
        if !bit(low, desc::iec::G) {
            self.due.interrupt_entry_cache = false;
            self.flush_interrupts(None);
            return Ok(());
        }
        let mask = bits(low, desc::iec::IM.0, desc::iec::IM.1) as u32;
        if mask > self.config.max_handle_mask {
            return Err(queue_error::RESERVED_FIELD);
        }
        let index = bits(low, desc::iec::IIDX.0, desc::iec::IIDX.1) as u32;
        self.flush_interrupts(Some((index, mask)));
        Ok(())
    }

    fn flush_interrupts(&mut self, selected: Option<(u32, u32)>) {
        self.stats.iec_flushes += 1;
        self.caches.flush_interrupts(selected);
    }

    /// An invalidation wait: everything before it is done already. After a time-out waits are aborted and the queue halts
    /// (FSTS_REG, ITE).
    fn queued_wait(&mut self, words: [u64; 2], mem: &mut dyn Memory) -> Result<(), u64> {
        if self.queue.unanswered {
            self.queue.unanswered = false;
            self.set_queue_status(fsts::ITE);
            return Ok(());
        }
        if bit(words[0], desc::wait::SW) {
            let status = bits(words[0], desc::wait::STATUS.0, desc::wait::STATUS.1) as u32;
            if !mem.write(words[1], &status.to_le_bytes()) {
                self.violation(0, words[1], "a wait's status address is memory (VT-d 6.5.2.8)");
            }
        }
        self.stats.waits += 1;
        if bit(words[0], desc::wait::IF) && self.regs.ics & ICS_IWC == 0 {
            self.regs.ics |= ICS_IWC;
            self.raise_event(Kind::Completion);
        }
        Ok(())
    }
}

/// The function bits of a requester that a function mask leaves out (VT-d 6.5.1.1, FM).
pub(crate) fn ignored_functions(function_mask: u64) -> u16 {
    match function_mask {
        0 => 0,
        1 => 0b100,
        2 => 0b110,
        _ => 0b111,
    }
}
