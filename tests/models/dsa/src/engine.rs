//! Engines: they take descriptors from the queues of their group, carry them out, and report the outcome.

use crate::descriptor::{Descriptor, Limits, Operation, Origin, Refusal};
use crate::operation::{self, Completion, CrcMode, DmaMemory};
use crate::paging::Blocked;
use crate::portal::Submission;
use crate::spec::{self, GENCTRL_SOFTWARE_ERROR_INTERRUPT, flag, intcause, slot, status};
use crate::swerr::Record;
use crate::{Dsa, Fault, Table, Upstream};

/// Bytes of a descriptor in a batch's list.
const DESCRIPTOR: u64 = 64;

/// Upstream as a descriptor sees it: nothing passes while the function is no bus master, nor with a PASID while it may not send
/// requests with one.
struct Bus<'a> {
    up: &'a mut dyn Upstream,
    open: bool,
    pasid: Option<u32>,
    /// Requests with the PASID ask for a translation first.
    asks: bool,
    faults: u64,
}

impl Bus<'_> {
    /// The way is open, and upstream grants the page where it is asked.
    fn granted(&mut self, address: u64, write: bool) -> bool {
        let asked = self.pasid.filter(|_| self.asks && self.open);
        self.open && asked.is_none_or(|pasid| self.up.translation(pasid, address, write) == Ok(true))
    }

    fn note(&mut self, outcome: Result<(), Fault>) -> Result<(), Fault> {
        self.faults += u64::from(outcome.is_err());
        outcome
    }
}

impl DmaMemory for Bus<'_> {
    fn load(&mut self, address: u64, buf: &mut [u8]) -> Result<(), Fault> {
        let granted = self.granted(address, false);
        let outcome = if granted { self.up.read(self.pasid, address, buf) } else { Err(Fault) };
        self.note(outcome)
    }

    fn store(&mut self, address: u64, data: &[u8]) -> Result<(), Fault> {
        let granted = self.granted(address, true);
        let outcome = if granted { self.up.write(self.pasid, address, data) } else { Err(Fault) };
        self.note(outcome)
    }
}

impl Dsa {
    /// Goes on with the command that is under way, then works one round. Says whether more is waiting.
    pub fn work(&mut self, up: &mut dyn Upstream) -> bool {
        self.advance_command(up);
        self.round(up);
        self.waiting()
    }

    /// Whether there is something to do for [`Dsa::work`]: a command that is under way, or descriptors that an engine serves. One that waits
    /// for a page, and a drain that waits for it, have nothing to do.
    pub fn waiting(&self) -> bool {
        self.registers.under_way.is_some() && !self.waits_for_pages() || self.registers.enabled() && self.queued()
    }

    /// One round: every engine takes at most one descriptor from its group's queues, which are served in turn. Says whether
    /// more is waiting.
    pub(crate) fn round(&mut self, up: &mut dyn Upstream) -> bool {
        if !self.registers.enabled() {
            return false;
        }
        self.resume(up);
        for group in 0..spec::GROUPS {
            for _ in 0..self.free_engines(group) {
                let Some(submission) = self.take(group) else { break };
                self.carry_out(submission, group, up);
            }
        }
        self.next_queue = (self.next_queue + 1) % spec::WQS;
        self.queued()
    }

    /// Engines of a group without those whose descriptors wait for a page.
    fn free_engines(&self, group: usize) -> usize {
        let engines = self.groups.get(group).map_or(0, |group| group.engines().count_ones() as usize);
        engines.saturating_sub(self.blocked.iter().filter(|one| one.engine_group() == group).count())
    }

    /// Whether a queue that a free engine serves has descriptors, or a page has come.
    fn queued(&self) -> bool {
        if self.blocked.iter().any(Blocked::answered) {
            return true;
        }
        let free = self.groups.iter().enumerate().filter(|(n, _)| self.free_engines(*n) != 0);
        let served = free.fold(0, |all, (_, group)| all | group.queues());
        self.queues.iter().enumerate().any(|(n, queue)| served >> n & 1 != 0 && !queue.is_empty())
    }

    fn take(&mut self, group: usize) -> Option<Submission> {
        let queues = self.groups.get(group)?.queues();
        let order = (0..spec::WQS).map(|n| (self.next_queue + n) % spec::WQS);
        let found =
            order.filter(|n| queues >> n & 1 != 0).find(|n| self.queues.get(*n).is_some_and(|q| !q.is_empty()))?;
        self.queues.get_mut(found)?.next()
    }

    fn carry_out(&mut self, submission: Submission, group: usize, up: &mut dyn Upstream) {
        let Some((descriptor, origin)) = self.begin(&submission) else { return };
        if !self.block(Blocked::new(submission, group), &descriptor, &origin, up) {
            self.run(&descriptor, &origin, up);
        }
    }

    /// A submission's descriptor, and where it came from.
    pub(crate) fn begin(&self, submission: &Submission) -> Option<(Descriptor, Origin)> {
        let queue = self.queues.get(submission.queue)?;
        let descriptor = Descriptor::new(&submission.bytes);
        let limits = Limits {
            max_transfer: queue.max_transfer(),
            max_batch: queue.max_batch(),
            in_batch: false,
            block: queue.blocks_on_fault(),
        };
        let pasid = queue.pasid(descriptor.pasid());
        Some((descriptor, Origin { queue: submission.queue, table: submission.table, pasid, limits }))
    }

    /// Carries out a descriptor and tells its outcome, which is also returned.
    pub(crate) fn run(&mut self, descriptor: &Descriptor, origin: &Origin, up: &mut dyn Upstream) -> Completion {
        let completion = match self.check(descriptor, origin) {
            Ok(operation) => self.execute(operation, origin, up),
            Err(refusal) => Completion { value: refusal.invalid_flags.into(), ..Completion::new(refusal.status, 0) },
        };
        self.end(descriptor, origin, completion, up);
        completion
    }

    /// Counts a descriptor and tells its outcome.
    pub(crate) fn end(&mut self, descriptor: &Descriptor, origin: &Origin, done: Completion, up: &mut dyn Upstream) {
        self.stats.descriptors += 1;
        self.stats.with_pasid += u64::from(origin.pasid.is_some());
        self.complete(descriptor, origin, done, up);
    }

    pub(crate) fn check(&self, descriptor: &Descriptor, origin: &Origin) -> Result<Operation, Refusal> {
        let refuse = |status| Refusal { status, invalid_flags: 0 };
        let operation = descriptor.check(&origin.limits)?;
        if descriptor.has(flag::CRAV) && !descriptor.completion().is_multiple_of(32) {
            return Err(refuse(status::CRA_ALIGN));
        }
        if descriptor.has(flag::RCI) && !self.handle_valid(descriptor.handle(), origin) {
            return Err(refuse(status::INT_HANDLE_INVAL));
        }
        Ok(operation)
    }

    /// The handle names an entry, and one of the descriptor's own PASID if the entry is bound to one.
    fn handle_valid(&self, handle: u16, origin: &Origin) -> bool {
        let index = usize::from(handle);
        if let (Table::Ims, Some(slots)) = (origin.table, self.slots_in_memory(origin.queue)) {
            return index < slots;
        }
        let (first, len, bound) = match origin.table {
            Table::Msix => (0, self.msix.len(), self.msix_permissions.get(index).copied().and_then(permitted_pasid)),
            Table::Ims => (self.msix.len(), self.ims.len(), self.ims.pasid(index)),
        };
        index < len && !self.revoked.contains(&(first + index)) && (bound.is_none() || bound == origin.pasid)
    }

    /// The way of a descriptor's requests.
    fn bus<'a>(&self, origin: &Origin, up: &'a mut dyn Upstream) -> Bus<'a> {
        let open = self.space.bus_master() && (origin.pasid.is_none() || self.space.pasid_enabled());
        Bus { up, open, pasid: origin.pasid, asks: self.space.ats_enabled(), faults: 0 }
    }

    fn execute(&mut self, operation: Operation, origin: &Origin, up: &mut dyn Upstream) -> Completion {
        if let Operation::Batch { list, count } = operation {
            return self.batch(list, count, origin, up);
        }
        let mut bus = self.bus(origin, up);
        let completion = single(operation, &mut bus);
        self.stats.faults += bus.faults;
        self.stats.bytes += u64::from(completion.bytes);
        completion
    }

    /// A batch: each descriptor of the list in turn. The record's "bytes completed" counts descriptors.
    fn batch(&mut self, list: u64, count: u32, origin: &Origin, up: &mut dyn Upstream) -> Completion {
        let limits = Limits { in_batch: true, ..origin.limits };
        let inner = Origin { limits, ..*origin };
        let mut failed = false;
        for n in 0..count {
            let address = list.wrapping_add(u64::from(n) * DESCRIPTOR);
            let mut bytes = [0; DESCRIPTOR as usize];
            if self.bus(origin, up).load(address, &mut bytes).is_err() {
                self.stats.faults += 1;
                return Completion { fault: address, ..Completion::new(status::BATCH_PAGE_FAULT, n) };
            }
            let descriptor = Descriptor::new(&bytes);
            // A fence after a failure gives up the rest.
            if failed && descriptor.has(flag::FENCE) {
                return Completion::new(status::BATCH_FAIL, n);
            }
            failed |= !self.run(&descriptor, &inner, up).succeeded();
        }
        Completion::new(if failed { status::BATCH_FAIL } else { status::SUCCESS }, count)
    }

    /// Writes the completion record where one is wanted or an error needs one, then raises the interrupt.
    fn complete(&mut self, descriptor: &Descriptor, origin: &Origin, done: Completion, up: &mut dyn Upstream) {
        let place = descriptor.has(flag::CRAV) && descriptor.completion().is_multiple_of(32);
        if place && (descriptor.has(flag::RCR) || done.status != status::SUCCESS) {
            if self.bus(origin, up).store(descriptor.completion(), &done.bytes()).is_err() {
                self.stats.faults += 1;
                let lost = Completion { fault: descriptor.completion(), ..Completion::new(status::CRA_XLAT, 0) };
                self.software_error(descriptor, origin, &lost, true, up);
            }
        } else if !place && !done.succeeded() {
            let write = done.status & status::WRITE != 0;
            self.software_error(descriptor, origin, &done, write, up);
        }
        if descriptor.has(flag::RCI) && self.handle_valid(descriptor.handle(), origin) {
            match origin.table {
                Table::Ims if self.slots_in_memory(origin.queue).is_some() => {
                    self.raise_in_memory(origin.queue, descriptor.handle().into(), false, up);
                }
                table => self.raise(table, descriptor.handle().into(), up),
            }
        }
    }

    /// Slots of a work queue's store in system memory, if it has one.
    fn slots_in_memory(&self, queue: usize) -> Option<usize> {
        self.queue_stores.get(queue)?.slots()
    }

    fn software_error(
        &mut self,
        descriptor: &Descriptor,
        origin: &Origin,
        done: &Completion,
        fault_write: bool,
        up: &mut dyn Upstream,
    ) {
        self.swerr.record(&Record {
            status: done.status & !status::WRITE,
            queue: origin.queue,
            opcode: descriptor.opcode(),
            pasid: origin.pasid.unwrap_or(0),
            invalid_flags: if done.status == status::INVALID_FLAGS { done.value as u32 } else { 0 },
            fault: done.fault,
            fault_write,
        });
        self.registers.intcause |= intcause::ERROR;
        if self.registers.genctrl & GENCTRL_SOFTWARE_ERROR_INTERRUPT != 0 {
            self.raise(Table::Msix, 0, up);
        }
    }
}

/// The PASID that an MSI-X entry's permission binds it to.
fn permitted_pasid(permission: u32) -> Option<u32> {
    (permission & slot::PASID_ENABLE != 0).then_some(permission >> slot::PASID_SHIFT)
}

/// Operations of one descriptor.
fn single(operation: Operation, up: &mut dyn DmaMemory) -> Completion {
    match operation {
        // Descriptors complete in order, so a drain finds nothing before it.
        Operation::Nop | Operation::Drain | Operation::Batch { .. } => Completion::new(status::SUCCESS, 0),
        Operation::Move { source, destination, size } => operation::memmove(source, destination, size, up),
        Operation::Fill { pattern, destination, size } => operation::fill(pattern, destination, size, up),
        Operation::Compare { first, second, size, expected } => operation::compare(first, second, size, expected, up),
        Operation::Crc { source, size, seed, bypass_reflection, bypass_data_reflection } => {
            operation::crc(source, size, seed, CrcMode { bypass_reflection, bypass_data_reflection }, up)
        }
    }
}

#[cfg(test)]
mod tests;
