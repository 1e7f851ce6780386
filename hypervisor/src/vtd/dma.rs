//! Root and context tables, which attach functions to domains: section 3.4. A function that is attached to no domain is blocked. This file
//! has legacy mode; `scalable` has scalable mode.

use alloc::vec::Vec;
use core::ptr::NonNull;

use super::{
    capabilities::{Capabilities, Scalable},
    coherence::Coherence,
    domain::{Domain, new_table},
    error::{Error, UnitError},
    spec::tables::{ContextEntry, RID_PASID, RootEntry},
};
use crate::{
    addr::{Bdf, Hpa, PAGE_SIZE},
    memory::{FrameSource, Table},
};

/// Root and context tables of a unit, and its domain ids.
pub struct ContextTables {
    pub(super) root: Table,
    pub(super) coherence: Coherence,
    /// The properties of scalable mode; `None` in legacy mode.
    pub(super) scalable: Option<Scalable>,
    /// Ids given back.
    free_ids: Vec<u16>,
    next_id: u32,
    domains: u32,
}

impl ContextTables {
    /// Tables without an attached function. Domain id 0 is not used (6.1: with caching mode it is the unit's).
    pub fn new(frames: &impl FrameSource, can: &Capabilities) -> Result<Self, UnitError> {
        let coherence = can.coherence();
        let root = new_table(frames, coherence).map_err(|_| UnitError::NoMemory)?;
        let (scalable, domains) = (can.scalable(), can.domains());
        Ok(Self { root, coherence, scalable, free_ids: Vec::new(), next_id: 1, domains })
    }

    /// Where the root table is.
    pub fn root(&self) -> Hpa {
        self.root.address()
    }

    /// Takes a domain id.
    pub fn take_id(&mut self) -> Result<u16, Error> {
        if let Some(id) = self.free_ids.pop() {
            return Ok(id);
        }
        let id = u16::try_from(self.next_id).ok().filter(|_| self.next_id < self.domains).ok_or(Error::NoFreeDomain)?;
        self.next_id += 1;
        Ok(id)
    }

    /// Releases a domain id, which no cache holds any more.
    pub fn give_id(&mut self, id: u16) {
        self.free_ids.push(id);
    }

    /// Allocates the tables that attaching the function needs.
    pub fn prepare(&mut self, frames: &impl FrameSource, bdf: Bdf) -> Result<(), Error> {
        if self.scalable.is_some() {
            return self.pasid_table(frames, bdf, 0, true).map(|_| ());
        }
        match self.context_table(frames, bdf) {
            Some(_) => Ok(()),
            None => self.add_context_table(frames, bdf).map(|_| ()),
        }
    }

    /// Writes the function's context entry. It was not present, so no cache holds it (unless CAP.CM). In scalable mode, writes the PASID
    /// entry of its requests without a PASID.
    pub fn attach(&mut self, frames: &impl FrameSource, bdf: Bdf, domain: &Domain) -> Result<(), Error> {
        if self.scalable.is_some() {
            return self.attach_pasid(frames, bdf, RID_PASID, domain);
        }
        let table = match self.context_table(frames, bdf) {
            Some(table) => table,
            None => self.add_context_table(frames, bdf)?,
        };
        if table.get(slot(bdf)) != 0 {
            return Err(Error::Attached);
        }
        let page = u128::from(domain.root().as_u64() / PAGE_SIZE);
        let entry = ContextEntry(0).with_p(1).with_ssptptr(page);
        self.write(&table, slot(bdf), entry.with_aw(domain.address_width().into()).with_did(domain.id().into()).0);
        Ok(())
    }

    /// Clears the function's context entry if it is in `domain`, or its PASID entry. Caches still hold it.
    pub fn detach(&mut self, frames: &impl FrameSource, bdf: Bdf, domain: &Domain) -> Result<(), Error> {
        if self.scalable.is_some() {
            return self.detach_pasid(frames, bdf, RID_PASID, domain);
        }
        let table = self.context_table(frames, bdf).ok_or(Error::NotAttached)?;
        let entry = ContextEntry(read(&table, slot(bdf)));
        if entry.p() == 0 || entry.did() != u128::from(domain.id()) {
            return Err(Error::NotAttached);
        }
        self.write(&table, slot(bdf), 0);
        Ok(())
    }

    fn context_table(&self, frames: &impl FrameSource, bdf: Bdf) -> Option<Table> {
        let entry = RootEntry(self.root.get(2 * u64::from(bdf.bus())).into());
        // SAFETY: a present entry was made below, from a table of the same frames; none is ever freed.
        (entry.p() != 0).then(|| unsafe { Table::at(frames, Hpa::new(entry.ctp() as u64 * PAGE_SIZE)) })
    }

    fn add_context_table(&self, frames: &impl FrameSource, bdf: Bdf) -> Result<Table, Error> {
        let table = new_table(frames, self.coherence)?;
        let page = u128::from(table.address().as_u64() / PAGE_SIZE);
        self.write(&self.root, 2 * u64::from(bdf.bus()), RootEntry(0).with_p(1).with_ctp(page).0);
        Ok(table)
    }

    /// Writes a 16-byte entry, the half with the present bit last when it is set, first when it is cleared.
    pub(super) fn write(&self, table: &Table, at: u64, entry: u128) {
        let halves = [(at + 1, (entry >> 64) as u64), (at, entry as u64)];
        let ordered = if entry & 1 == 0 { [halves[1], halves[0]] } else { halves };
        ordered.into_iter().for_each(|(index, value)| self.write_quadword(table, index, value));
    }

    pub(super) fn write_quadword(&self, table: &Table, index: u64, value: u64) {
        table.set(index, value);
        // SAFETY: the table's frame is ours.
        unsafe { self.coherence.publish(NonNull::from(table.entry(index)).cast(), size_of::<u64>()) };
    }
}

/// A 16-byte entry, by the index of its first quadword.
pub(super) fn read(table: &Table, at: u64) -> u128 {
    u128::from(table.get(at + 1)) << 64 | u128::from(table.get(at))
}

/// The index of the first quadword of a function's context entry.
const fn slot(bdf: Bdf) -> u64 {
    2 * bdf.devfn() as u64
}
