//! The unit as a whole.

use crate::{Config, Memory, Stats};

/// Something that the manual forbids to software or leaves undefined. The unit refuses it and notes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The register's offset, or 0 where none is concerned.
    pub offset: u64,
    /// The value written, or another number that helps to find it.
    pub value: u64,
    /// The rule, with the manual's section.
    pub rule: &'static str,
}

/// One remapping unit.
#[derive(Debug)]
pub struct Unit {
    #[expect(dead_code)]
    config: Config,
    stats: Stats,
    violations: Vec<Violation>,
}

impl Unit {
    /// A unit with these capabilities, after reset.
    pub fn new(config: Config) -> Self {
        Unit { config, stats: Stats::default(), violations: Vec::new() }
    }

    /// Back to the state after a platform reset: registers and caches; the counters stay.
    pub fn reset(&mut self) {}

    /// Bytes of register space: 4 KiB.
    pub const REGISTER_SPACE: u64 = 4096;

    /// Reads a register of 4 or 8 bytes; 0 for other widths, unaligned or unknown offsets.
    pub fn read(&mut self, _offset: u64, _len: usize) -> u64 {
        0
    }

    /// Writes a register of 4 or 8 bytes; other widths, unaligned and unknown offsets are ignored. Commands (the
    /// invalidation queue too) are carried out before this returns.
    pub fn write(&mut self, _offset: u64, _len: usize, _value: u64, _mem: &mut dyn Memory) {}

    /// The next message of the unit's own: a fault event or an invalidation completion event, as (address, data). It is
    /// not subject to remapping (VT-d 7.3).
    pub fn take_fault_event(&mut self) -> Option<(u64, u32)> {
        None
    }

    /// What the unit has done so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// What software did against the manual so far.
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// While `true` the unit takes commands and descriptors but completes none: software must time out.
    pub fn hang(&mut self, _hung: bool) {}

    /// While `true`, device-TLB invalidations are never answered: the next wait ends in an invalidation time-out error.
    pub fn lose_device_tlb_answers(&mut self, _lost: bool) {}
}
