//! A model of a subset of Intel DSA: a PCI function with registers, work queues, portals, engines, an MSI-X table and an
//! interrupt message store (IMS).
//!
//! Registers and structures are those of Linux's `idxd` driver (`drivers/dma/idxd/registers.h`, `include/uapi/linux/idxd.h`).
//! The model owns no memory: what it reads and writes, and the messages it sends (dword writes), go through an [`Upstream`].
//!
//! Where it differs from a real DSA: there is no event log; a shared work queue may be used without PASIDs, and takes posted writes (a
//! real one takes ENQCMD and ENQCMDS alone, which no emulated processor has).

#![forbid(unsafe_code)]

mod command;
mod config;
mod config_space;
mod descriptor;
mod engine;
mod groups;
mod layout;
mod messages;
mod operation;
mod paging;
mod portal;
mod queue_store;
mod registers;
mod report;
mod slow;
pub mod spec;
mod swerr;
#[cfg(test)]
mod testing;
mod work_queue;

use std::collections::BTreeSet;

use config_space::ConfigSpace;
use groups::Group;
use messages::{Message, MessageTable, Raised};
use paging::Blocked;
use portal::{Portals, Submission};
use queue_store::QueueStore;
use registers::Registers;
use slow::SlowStore;
use swerr::SoftwareError;
use work_queue::WorkQueue;

pub use config::Config;
pub use layout::Layout;
pub use portal::PortalWrite;
pub use report::report;

/// A request of the device that was refused on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault;

/// What lies upstream of the device: the bus, the remapping unit, memory.
pub trait Upstream {
    /// Fills `buf` from `address`. Pieces never cross a 4 KiB page. What a work queue with PASIDs does has one.
    fn read(&mut self, pasid: Option<u32>, address: u64, buf: &mut [u8]) -> Result<(), Fault>;
    /// Writes `data` to `address`. A message is a write of 4 bytes, and never has a PASID. Pieces never cross a 4 KiB page.
    fn write(&mut self, pasid: Option<u32>, address: u64, data: &[u8]) -> Result<(), Fault>;

    /// Whether a request with the PASID may access the page at `address`: ATS' translation request. `Ok(false)`: the page or a right is
    /// missing, and may be asked for. Only a device with [`Config::page_requests`] asks.
    fn translation(&mut self, _pasid: u32, _address: u64, _write: bool) -> Result<bool, Fault> {
        Err(Fault)
    }

    /// Asks for the page at `address`: PRI's page request, in a group of one. The answer comes by [`Dsa::page_response`], never before
    /// this returns.
    fn page_request(&mut self, _pasid: u32, _address: u64, _write: bool, _group: u16) {}
}

/// Counters since the device was made; a reset keeps them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Descriptors that completed, rightly or not.
    pub descriptors: u64,
    /// Bytes that operations processed.
    pub bytes: u64,
    /// Messages that left the device.
    pub messages: u64,
    /// Interrupts that found their entry masked and were held.
    pub pending: u64,
    /// Submissions that were not accepted: work queue disabled or full, or portal misused.
    pub refused: u64,
    /// Writes to portals that are no descriptor and were dropped, where the device does not take pieces.
    pub partial_writes: u64,
    /// Pages that descriptors have waited for.
    pub page_requests: u64,
    /// Answers to that.
    pub page_responses: u64,
    /// Descriptors of work queues with PASIDs that completed.
    pub with_pasid: u64,
    /// Memory requests that were refused upstream.
    pub faults: u64,
    /// Commands of a slow store.
    pub store_commands: u64,
    /// Commands that were written while another one was under way.
    pub commands_lost: u64,
}

/// Which table an interrupt handle names an entry of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    Msix,
    Ims,
}

/// The device.
pub struct Dsa {
    setup: Config,
    space: ConfigSpace,
    registers: Registers,
    groups: [Group; spec::GROUPS],
    queues: [WorkQueue; spec::WQS],
    msix: MessageTable,
    msix_permissions: Vec<u32>,
    ims: MessageTable,
    slow: Option<SlowStore>,
    /// Of each work queue.
    queue_stores: [QueueStore; spec::WQS],
    /// Handles that are out: MSI-X entries first, then IMS slots.
    handles: Vec<bool>,
    /// Those that were taken away.
    revoked: BTreeSet<usize>,
    portals: Portals,
    swerr: SoftwareError,
    /// Descriptors that wait for a page: each keeps an engine.
    blocked: Vec<Blocked>,
    /// The group of the next page request.
    next_group: u16,
    /// The work queue that is served first in the next round.
    next_queue: usize,
    /// It has halted before, and does so once.
    has_halted: bool,
    stats: Stats,
}

impl Dsa {
    /// A device as it is after a cold reset.
    pub fn new(setup: Config) -> Self {
        let (entries, slots) = (usize::from(setup.msix_entries.clamp(1, 2048)), setup.slots());
        Self {
            setup,
            space: ConfigSpace::new(&setup),
            registers: Registers::default(),
            groups: [Group::default(); spec::GROUPS],
            queues: std::array::from_fn(|_| WorkQueue::default()),
            msix: MessageTable::msix(entries),
            msix_permissions: vec![0; entries],
            ims: MessageTable::ims(slots),
            slow: setup.slow_store.then(SlowStore::default),
            queue_stores: [QueueStore::default(); spec::WQS],
            handles: vec![false; entries + slots],
            revoked: BTreeSet::new(),
            portals: Portals::new(setup.takes_pieces()),
            swerr: SoftwareError::default(),
            blocked: Vec::new(),
            next_group: 0,
            next_queue: 0,
            has_halted: false,
            stats: Stats::default(),
        }
    }

    /// Back to the state after a cold reset, configuration space included; a function level reset (PCIe 6.6.2) does the same.
    pub fn reset(&mut self) {
        let (stats, has_halted) = (self.stats, self.has_halted);
        *self = Self::new(self.setup);
        (self.stats, self.has_halted) = (stats, has_halted);
    }

    /// How it was made.
    pub fn config(&self) -> &Config {
        &self.setup
    }

    /// Whether there are interrupt handles, and the register that tells of their commands.
    pub(crate) fn has_handles(&self) -> bool {
        self.setup.interrupt_handles.is_some()
    }

    /// What the device did so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Whether the device is enabled (GENSTS).
    pub fn enabled(&self) -> bool {
        self.registers.enabled()
    }

    /// Whether the function answers memory accesses (the command register's memory space bit).
    pub fn memory_enabled(&self) -> bool {
        self.space.memory_enabled()
    }

    /// Reads `len` bytes (1, 2 or 4) of configuration space at `offset`, 0 to 4095.
    pub fn config_read(&self, offset: u16, len: usize) -> u32 {
        self.space.read(offset, len)
    }

    /// Writes `len` bytes (1, 2 or 4) of configuration space. MSI-X messages that this unmasks go out.
    pub fn config_write(&mut self, offset: u16, len: usize, value: u32, up: &mut dyn Upstream) {
        self.space.write(offset, len, value);
        if self.space.reset_initiated() {
            return self.reset();
        }
        self.space.note_outstanding(!self.blocked.is_empty());
        for entry in 0..self.msix.len() {
            self.release(Table::Msix, entry, up);
        }
    }

    /// Software's write to the portal region, BAR2: 64 bytes at once, or, where the device takes pieces, part of a series that ends at
    /// offset 56.
    pub fn portal_write(&mut self, offset: u64, data: &[u8]) -> PortalWrite {
        if !self.memory_enabled() {
            return PortalWrite::Partial;
        }
        let Some(submission) = self.portals.write(offset, data) else {
            self.stats.partial_writes += u64::from(!self.setup.takes_pieces());
            return PortalWrite::Partial;
        };
        let outcome = self.submit(submission);
        if outcome != PortalWrite::Queued {
            self.stats.refused += 1;
        }
        outcome
    }

    fn submit(&mut self, submission: Submission) -> PortalWrite {
        let enabled = self.registers.enabled();
        match self.queues.get_mut(submission.queue) {
            Some(queue) if enabled => queue.submit(submission),
            _ => PortalWrite::Dropped,
        }
    }

    /// Whether interrupts of `table` are held back as a whole, or `None` if they are switched off.
    fn held(&self, table: Table) -> Option<bool> {
        match table {
            Table::Ims => Some(false),
            Table::Msix if self.space.msix_enabled() => Some(self.space.msix_function_mask()),
            Table::Msix => None,
        }
    }

    fn table(&mut self, table: Table) -> &mut MessageTable {
        match table {
            Table::Msix => &mut self.msix,
            Table::Ims => &mut self.ims,
        }
    }

    /// Raises the interrupt of an entry. MSI-X entries give nothing while MSI-X is disabled.
    fn raise(&mut self, table: Table, index: usize, up: &mut dyn Upstream) {
        let Some(hold) = self.held(table) else { return };
        match self.table(table).raise(index, hold) {
            Some(Raised::Send(message)) => self.send(message, up),
            Some(Raised::Pending) => self.stats.pending += 1,
            None => {}
        }
    }

    /// Raises the interrupt of a slot in system memory, or looks whether one is pending there.
    fn raise_in_memory(&mut self, queue: usize, slot: u32, again: bool, up: &mut dyn Upstream) {
        let Some(store) = self.queue_stores.get(queue).copied().filter(|_| self.space.bus_master()) else { return };
        match store.raise(slot, again, up) {
            Ok(Some(message)) => self.send(message, up),
            Ok(None) if again => {}
            Ok(None) => self.stats.pending += 1,
            Err(Fault) => self.stats.faults += 1,
        }
    }

    /// Sends what an entry held back, if nothing holds it any longer.
    fn release(&mut self, table: Table, index: usize, up: &mut dyn Upstream) {
        if self.held(table) != Some(false) {
            return;
        }
        if let Some(message) = self.table(table).take_pending(index) {
            self.send(message, up);
        }
    }

    fn send(&mut self, message: Message, up: &mut dyn Upstream) {
        // A function that is no bus master sends nothing, messages included (PCIe 7.5.1.1.3).
        if !self.space.bus_master() {
            return;
        }
        match up.write(None, message.address, &message.data.to_le_bytes()) {
            Ok(()) => self.stats.messages += 1,
            Err(Fault) => self.stats.faults += 1,
        }
    }
}
