//! The unit as a whole: its state, its reset, and the questions that tests may ask.

pub(crate) mod event;
pub(crate) mod fault;
pub(crate) mod page_request;
pub(crate) mod queue;

use self::event::Event;
use self::fault::FaultLog;
use self::page_request::PageRequests;
use self::queue::Queue;
use crate::cache::Caches;
use crate::spec::regs::MAX_FAULT_RECORDS;
use crate::{Config, Stats};
use std::collections::VecDeque;

/// Something that the manual forbids to software or leaves undefined. The unit refuses it, or goes on where `rule` says so,
/// and notes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The register's offset, or 0 where none is concerned.
    pub offset: u64,
    /// The value written, or another number that helps to find it.
    pub value: u64,
    /// The rule, with the manual's section.
    pub rule: &'static str,
}

/// How many violations are kept; further ones only count.
const VIOLATIONS_KEPT: usize = 64;

/// Registers that hold what software wrote, and what commands have latched from them.
#[derive(Debug, Default)]
pub(crate) struct Registers {
    pub(crate) gsts: u32,
    pub(crate) rtaddr: u64,
    pub(crate) ccmd: u64,
    pub(crate) iva: u64,
    pub(crate) iotlb: u64,
    pub(crate) irta: u64,
    /// RTADDR as SRTP latched it.
    pub(crate) root: u64,
    /// IRTA as SIRTP latched it.
    pub(crate) table: u64,
    pub(crate) ics: u32,
    /// IQE, ICE and ITE of FSTS.
    pub(crate) queue_status: u32,
}

/// Global invalidations that a new table pointer calls for (VT-d 11.4, GCMD_REG, SRTP and SIRTP).
#[derive(Debug, Default)]
pub(crate) struct Due {
    pub(crate) context_cache: bool,
    /// In scalable mode only.
    pub(crate) pasid_cache: bool,
    pub(crate) iotlb: bool,
    pub(crate) interrupt_entry_cache: bool,
}

/// One remapping unit.
#[derive(Debug)]
pub struct Unit {
    pub(crate) config: Config,
    pub(crate) regs: Registers,
    pub(crate) queue: Queue,
    pub(crate) faults: FaultLog,
    pub(crate) fault_event: Event,
    pub(crate) completion_event: Event,
    pub(crate) page_request_event: Event,
    pub(crate) page_requests: PageRequests,
    pub(crate) messages: VecDeque<(u64, u32)>,
    pub(crate) caches: Caches,
    pub(crate) due: Due,
    pub(crate) hung: bool,
    pub(crate) answers_lost: bool,
    pub(crate) stats: Stats,
    violations: Vec<Violation>,
}

impl Unit {
    /// Bytes of register space: 4 KiB.
    pub const REGISTER_SPACE: u64 = 4096;

    /// A unit with these capabilities, after reset.
    pub fn new(mut config: Config) -> Self {
        config.fault_records = config.fault_records.clamp(1, MAX_FAULT_RECORDS);
        Unit {
            regs: Registers::default(),
            queue: Queue::default(),
            faults: FaultLog::new(config.fault_records),
            fault_event: Event::default(),
            completion_event: Event::default(),
            page_request_event: Event::default(),
            page_requests: PageRequests::default(),
            messages: VecDeque::new(),
            caches: Caches::default(),
            due: Due::default(),
            hung: false,
            answers_lost: false,
            stats: Stats::default(),
            violations: Vec::new(),
            config,
        }
    }

    /// Back to the state after a platform reset: registers, caches, messages not taken. The counters, the violations, and
    /// what the test chose ([`Unit::hang`], [`Unit::lose_device_tlb_answers`]) stay.
    pub fn reset(&mut self) {
        let fresh = Unit::new(self.config.clone());
        let old = std::mem::replace(self, fresh);
        self.stats = old.stats;
        self.violations = old.violations;
        self.hung = old.hung;
        self.answers_lost = old.answers_lost;
    }

    /// The next message of the unit's own: a fault, completion or page request event, as (address, data). It is
    /// not subject to remapping (VT-d 7.3).
    pub fn take_fault_event(&mut self) -> Option<(u64, u32)> {
        self.messages.pop_front()
    }

    /// The unit's capabilities.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What the unit has done so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// What software did against the manual so far (the first 64).
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// Whether the interrupt entry cache holds the entry `index`: whether its old meaning can still take effect.
    pub fn caches_interrupt_entry(&self, index: u32) -> bool {
        self.caches.holds_interrupt(index)
    }

    /// While `true` the unit takes commands and descriptors but completes none: software must time out. Commands given
    /// meanwhile are lost; the queue goes on at the next write of IQT.
    pub fn hang(&mut self, hung: bool) {
        self.hung = hung;
    }

    /// While `true`, device-TLB invalidations are never answered: the next wait ends in an invalidation time-out error.
    pub fn lose_device_tlb_answers(&mut self, lost: bool) {
        self.answers_lost = lost;
    }

    pub(crate) fn violation(&mut self, offset: u64, value: u64, rule: &'static str) {
        self.stats.violations += 1;
        if self.violations.len() < VIOLATIONS_KEPT {
            self.violations.push(Violation { offset, value, rule });
        }
    }

    /// Whether a switch or command's status bit is on.
    pub(crate) fn status(&self, bit: u32) -> bool {
        self.regs.gsts & bit != 0
    }

    /// The bits of an address field above the host address width: reserved (VT-d chapter 9, "HAW").
    pub(crate) fn beyond_host_width(&self) -> u64 {
        u64::MAX.checked_shl(self.config.host_address_width).unwrap_or(0)
    }
}
