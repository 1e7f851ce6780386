//! The rules, one by one, seen from software's side. Layouts are written out here once more, on purpose: a wrong one in
//! `spec` shows.

mod dma;
mod fault;
mod first_stage;
mod intr;
mod page_request;
mod queue;
mod regs;
mod scalable;

use crate::{Access, Config, DmaFault, InterruptResult, Ram, Remapped, Unit};

const GCMD: u64 = 0x18;
const GSTS: u64 = 0x1c;
const FSTS: u64 = 0x34;
const FECTL: u64 = 0x38;
const IQT: u64 = 0x88;

const TE: u32 = 1 << 31;
const SRTP: u32 = 1 << 30;
const QIE: u32 = 1 << 26;
const IRE: u32 = 1 << 25;
const SIRTP: u32 = 1 << 24;
const CFI: u32 = 1 << 23;
const ONE_SHOT: u32 = 0x6900_0000;

/// Where the tests put things in memory.
const QUEUE: u64 = 0x1_0000;
const STATUS: u64 = 0x2_0000;
const TABLE: u64 = 0x3_0000;
const PID: u64 = 0x4_0040;
const ROOT: u64 = 0x5_0000;
const CONTEXTS: u64 = 0x5_1000;
const SS_TOP: u64 = 0x6_0000;
const LIMIT: u64 = 0x1000_0000;

/// Descriptors: the context cache, or the IOTLB, is flushed as a whole.
const FLUSH_CONTEXTS: u64 = 1 | 1 << 4;
const FLUSH_IOTLB: u64 = 2 | 1 << 4;

/// The requester that the tests use: 00:1e.0.
const SID: u16 = 0x00f0;

/// A unit, its memory, and software's ways with it.
struct Rig {
    unit: Unit,
    ram: Ram,
    tail: u64,
}

impl Rig {
    fn new(config: Config) -> Self {
        Rig { unit: Unit::new(config), ram: Ram::new(LIMIT), tail: 0 }
    }

    /// A unit with its queue on.
    fn with_queue(config: Config) -> Self {
        let mut rig = Rig::new(config);
        rig.write64(0x90, QUEUE);
        rig.command(QIE);
        rig
    }

    /// A unit that remaps interrupts: 256 entries, extended interrupt mode as `eime` says.
    fn remapping(config: Config, eime: bool) -> Self {
        let mut rig = Rig::with_queue(config);
        rig.write64(0xb8, TABLE | u64::from(eime) << 11 | 7);
        rig.command(SIRTP);
        rig.submit([4, 0]);
        rig.command(IRE);
        rig
    }

    /// Legacy mode: names the root table, flushes in this order, and translates.
    fn translate(&mut self, flushes: [u64; 2]) {
        self.write64(0x20, ROOT);
        self.command(SRTP);
        flushes.into_iter().for_each(|flush| self.submit([flush, 0]));
        self.command(TE);
    }

    fn read32(&mut self, offset: u64) -> u32 {
        self.unit.read(offset, 4) as u32
    }

    fn read64(&mut self, offset: u64) -> u64 {
        self.unit.read(offset, 8)
    }

    fn write32(&mut self, offset: u64, value: u32) {
        self.unit.write(offset, 4, u64::from(value), &mut self.ram);
    }

    fn write64(&mut self, offset: u64, value: u64) {
        self.unit.write(offset, 8, value, &mut self.ram);
    }

    /// Gives a global command on top of what is on.
    fn command(&mut self, bit: u32) {
        let on = self.read32(GSTS) & !ONE_SHOT;
        self.write32(GCMD, on | bit);
    }

    /// Switches something off.
    fn command_off(&mut self, bit: u32) {
        let on = self.read32(GSTS) & !ONE_SHOT;
        self.write32(GCMD, on & !bit);
    }

    /// Puts a descriptor into the queue without telling the unit.
    fn enqueue(&mut self, words: [u64; 2]) {
        self.ram.set_u64(QUEUE + self.tail, words[0]);
        self.ram.set_u64(QUEUE + self.tail + 8, words[1]);
        self.tail = (self.tail + 16) % 4096;
    }

    fn submit(&mut self, words: [u64; 2]) {
        self.enqueue(words);
        self.write64(IQT, self.tail);
    }

    fn queue_error(&mut self) -> bool {
        self.read32(FSTS) & 1 << 4 != 0
    }

    fn set_entry(&mut self, index: u64, words: [u64; 2]) {
        self.ram.set_u64(TABLE + 16 * index, words[0]);
        self.ram.set_u64(TABLE + 16 * index + 8, words[1]);
    }

    /// Sends the remappable message for `index` as [`SID`].
    fn interrupt(&mut self, index: u32) -> InterruptResult {
        self.interrupt_from(SID, index)
    }

    fn interrupt_from(&mut self, source_id: u16, index: u32) -> InterruptResult {
        let (address, data) = message(index);
        self.unit.interrupt_request(source_id, address, data, &mut self.ram)
    }

    fn vector(&mut self, index: u32) -> Option<u8> {
        match self.interrupt(index) {
            InterruptResult::Remapped(Remapped { vector, .. }) => Some(vector),
            _ => None,
        }
    }

    fn reason(&mut self, index: u32) -> Option<u8> {
        blocked(self.interrupt(index))
    }

    fn dma(&mut self, address: u64, access: Access) -> Result<u64, DmaFault> {
        self.unit.dma(SID, address, 4, access, &mut self.ram)
    }

    /// The fault record `index`: [low, high].
    fn record(&mut self, index: u64) -> [u64; 2] {
        let base = (self.read64(0x08) >> 24 & 0x3ff) * 16 + 16 * index;
        [self.read64(base), self.read64(base + 8)]
    }

    fn clear_record(&mut self, index: u64) {
        let base = (self.read64(0x08) >> 24 & 0x3ff) * 16 + 16 * index;
        self.write32(base + 12, 1 << 31);
    }

    fn rules_kept(&self) {
        assert_eq!(self.unit.violations(), []);
    }
}

/// The message for an index: handle only.
fn message(index: u32) -> (u64, u32) {
    let index = u64::from(index);
    let address = 0xfee0_0010 | (index & 0x7fff) << 5 | (index >> 15 & 1) << 2;
    (address, 0)
}

fn blocked(outcome: InterruptResult) -> Option<u8> {
    match outcome {
        InterruptResult::Blocked { reason } => reason,
        _ => None,
    }
}

/// A remapped-format entry: fixed, edge, physical, checked against the whole [`SID`].
fn entry(vector: u8, dest: u32) -> [u64; 2] {
    let low = 1 | u64::from(vector) << 16 | u64::from(dest) << 32;
    [low, u64::from(SID) | 1 << 18]
}

/// A posted-format entry for [`PID`].
fn posted(vector: u8) -> [u64; 2] {
    let low = 1 | 1 << 15 | u64::from(vector) << 16 | (PID & 0xffff_ffff) >> 6 << 38;
    [low, u64::from(SID) | 1 << 18 | PID >> 32 << 32]
}

/// An index-selective interrupt entry cache invalidation.
fn iec(index: u64, mask: u64) -> [u64; 2] {
    [4 | 1 << 4 | mask << 27 | index << 32, 0]
}

/// A wait that writes `value` to [`STATUS`].
fn wait(value: u32) -> [u64; 2] {
    [5 | 1 << 5 | u64::from(value) << 32, STATUS]
}
