//! Scalable mode, section 3.4.3: a function's requests are translated by PASID; requests without a PASID count as PASID 0 (RID_PASID).
//!
//! A function gets its context entry, with a PASID directory, when it is prepared, and keeps both. Without a present PASID entry its
//! requests are blocked, so attaching and detaching change PASID entries only.

use super::{
    dma::{ContextTables, read},
    domain::{Domain, new_table},
    error::Error,
    spec::tables::{PGTT_SECOND_STAGE, PasidDirectoryEntry, PasidEntry, ScalableContextEntry, ScalableRootHalf},
};
use crate::{
    addr::{Bdf, Hpa, PAGE_SIZE},
    memory::{FrameSource, Table},
};

/// PASIDs of a PASID table.
const TABLE_PASIDS: u32 = 64;
/// Quadwords of a context entry and of a PASID entry.
const CONTEXT_QUADWORDS: u64 = 4;
const ENTRY_QUADWORDS: u64 = 8;

impl ContextTables {
    /// Has requests of a function with a PASID go through the domain. The entry was not present, so no cache holds it (unless CAP.CM).
    pub(super) fn attach_pasid(
        &mut self,
        frames: &impl FrameSource,
        bdf: Bdf,
        pasid: u32,
        domain: &Domain,
    ) -> Result<(), Error> {
        let table = self.pasid_table(frames, bdf, pasid, true)?.ok_or(Error::NoMemory)?;
        if PasidEntry(read(&table, slot(pasid))).p() != 0 {
            return Err(Error::Attached);
        }
        let snoop = self.scalable.is_some_and(|scalable| scalable.walks_snoop);
        let entry = PasidEntry(0).with_p(1).with_pgtt(PGTT_SECOND_STAGE).with_pwsnp(snoop.into());
        let entry = entry.with_ssptptr(u128::from(domain.root().as_u64() / PAGE_SIZE)).with_did(domain.id().into());
        self.write(&table, slot(pasid), entry.with_aw(domain.address_width().into()).0);
        Ok(())
    }

    /// Blocks requests of a function with a PASID, if it is in `domain`. Caches still hold the entry.
    pub(super) fn detach_pasid(
        &mut self,
        frames: &impl FrameSource,
        bdf: Bdf,
        pasid: u32,
        domain: &Domain,
    ) -> Result<(), Error> {
        let table = self.pasid_table(frames, bdf, pasid, false)?.ok_or(Error::NotAttached)?;
        let entry = PasidEntry(read(&table, slot(pasid)));
        if entry.p() == 0 || entry.did() != u128::from(domain.id()) {
            return Err(Error::NotAttached);
        }
        self.write(&table, slot(pasid), 0);
        Ok(())
    }

    /// The table that a PASID of a function is in, if there is one. Missing tables are added if `add`.
    pub(super) fn pasid_table(
        &mut self,
        frames: &impl FrameSource,
        bdf: Bdf,
        pasid: u32,
        add: bool,
    ) -> Result<Option<Table>, Error> {
        if self.scalable.is_none_or(|scalable| pasid >= scalable.pasids) {
            return Err(Error::NoPasid);
        }
        let half = 2 * u64::from(bdf.bus()) + u64::from(bdf.devfn() >> 7);
        let context = ScalableRootHalf(0).with_p(1);
        let Some(contexts) = self.below(frames, &self.root, half, add, |page| context.with_ctp(page).0)? else {
            return Ok(None);
        };
        let at = CONTEXT_QUADWORDS * u64::from(bdf.devfn() & 0x7f);
        // PASIDE is reserved where the unit does not support PASIDs: Linux sets it by ECAP.PASID (`context_entry_set_pasid_table`).
        let has_pasids = self.scalable.is_some_and(|scalable| scalable.has_pasids());
        let directory = ScalableContextEntry(0).with_p(1).with_paside(has_pasids.into());
        let Some(directory) = self.below(frames, &contexts, at, add, |page| directory.with_directory(page).0)? else {
            return Ok(None);
        };
        let table = PasidDirectoryEntry(0).with_p(1);
        self.below(frames, &directory, (pasid / TABLE_PASIDS).into(), add, |page| table.with_table(page).0)
    }

    /// The table that a quadword with the present bit and a page number leads to; made if there is none and `add` is said. `entry` is
    /// what leads to a table in this page. None is ever freed.
    fn below(
        &self,
        frames: &impl FrameSource,
        table: &Table,
        at: u64,
        add: bool,
        entry: impl Fn(u64) -> u64,
    ) -> Result<Option<Table>, Error> {
        let present = ScalableRootHalf(table.get(at));
        if present.p() != 0 {
            // SAFETY: a present entry was made below, from a table of the same frames; none is ever freed.
            return Ok(Some(unsafe { Table::at(frames, Hpa::new(present.ctp() * PAGE_SIZE)) }));
        }
        if !add {
            return Ok(None);
        }
        let below = new_table(frames, self.coherence)?;
        self.write_quadword(table, at, entry(below.address().as_u64() / PAGE_SIZE));
        Ok(Some(below))
    }
}

/// The index of the first quadword of a PASID's entry in its table.
const fn slot(pasid: u32) -> u64 {
    ENTRY_QUADWORDS * (pasid % TABLE_PASIDS) as u64
}
