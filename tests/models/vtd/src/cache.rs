//! The unit's caches (VT-d 6.2): interrupt entry cache, context cache, IOTLB, paging-structure caches.
//!
//! An entry enters a cache when it is used, never if it is absent or wrong (CAP.CM = 0), and stays, however the tables
//! change, until an invalidation covers it.

use crate::spec::irte::Irte;
use crate::spec::tables::{
    ContextEntry, PGTT_FIRST_STAGE, PGTT_PASS_THROUGH, PasidEntry, ScalableContext, TT_PASS_THROUGH, level_shift,
};
use std::collections::HashMap;

/// Entries that a cache holds at most; then it starts anew, as hardware may at any time.
const LIMIT: usize = 1 << 20;

/// A place in the IOTLB or a paging-structure cache: domain, level of the entry (1: a 4 KiB page), address bits above what
/// the entry covers.
type Key = (u16, u32, u64);

/// What an entry of the IOTLB or a paging-structure cache says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Translation {
    /// Of the page, or of the next table.
    pub(crate) address: u64,
    /// SS_READ and SS_WRITE, combined over all levels so far.
    pub(crate) permissions: u64,
}

/// Which context-cache entries to drop (VT-d 6.5.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContextScope {
    Global,
    Domain(u16),
    /// Domain, requester, and the bits of the requester that do not count.
    Device(u16, u16, u16),
}

/// Which PASID-cache entries to drop (VT-d 6.5.2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PasidScope {
    Global,
    Domain(u16),
    Pasid(u16, u32),
}

/// Which IOTLB entries to drop (VT-d 6.5.2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IotlbScope {
    Global,
    Domain(u16),
    Pages {
        domain: u16,
        first: u64,
        last: u64,
        /// IH: paging-structure caches may stay.
        leaves_only: bool,
    },
}

/// All caches.
#[derive(Debug, Default)]
pub(crate) struct Caches {
    interrupts: HashMap<u32, Irte>,
    contexts: HashMap<u16, ContextEntry>,
    scalable_contexts: HashMap<u16, ScalableContext>,
    /// By requester and PASID; the domain is in the entry.
    pasids: HashMap<(u16, u32), PasidEntry>,
    pages: HashMap<Key, Translation>,
    tables: HashMap<Key, Translation>,
    /// Pages of first-stage tables: tagged by PASID as well.
    first_stage: HashMap<(u32, Key), Translation>,
}

fn insert<K: Eq + std::hash::Hash, V>(cache: &mut HashMap<K, V>, key: K, value: V) {
    if cache.len() >= LIMIT {
        cache.clear();
    }
    cache.insert(key, value);
}

fn key(domain: u16, level: u32, address: u64) -> Key {
    (domain, level, address >> level_shift(level))
}

/// Whether the range that an entry covers meets `first..=last`.
fn covers((_, level, prefix): &Key, first: u64, last: u64) -> bool {
    let shift = level_shift(*level);
    (first >> shift..=last >> shift).contains(prefix)
}

impl Caches {
    pub(crate) fn interrupt(&self, index: u32) -> Option<Irte> {
        self.interrupts.get(&index).copied()
    }

    pub(crate) fn holds_interrupt(&self, index: u32) -> bool {
        self.interrupts.contains_key(&index)
    }

    pub(crate) fn keep_interrupt(&mut self, index: u32, entry: Irte) {
        insert(&mut self.interrupts, index, entry);
    }

    /// Drops all entries, or the 2^`mask` ones around `index` (VT-d 6.5.2.7).
    pub(crate) fn flush_interrupts(&mut self, selected: Option<(u32, u32)>) {
        match selected {
            None => self.interrupts.clear(),
            Some((index, mask)) => self.interrupts.retain(|at, _| at >> mask != index >> mask),
        }
    }

    pub(crate) fn context(&self, source_id: u16) -> Option<ContextEntry> {
        self.contexts.get(&source_id).copied()
    }

    pub(crate) fn keep_context(&mut self, source_id: u16, entry: ContextEntry) {
        insert(&mut self.contexts, source_id, entry);
    }

    /// Whether a cached context entry of the same domain has other tables (VT-d 6.2.1 forbids it).
    pub(crate) fn domain_differs(&self, entry: ContextEntry) -> bool {
        let tables = |entry: ContextEntry| {
            let translated = entry.translation_type() != TT_PASS_THROUGH;
            translated.then_some((entry.table(), entry.address_width()))
        };
        let same_domain = |other: &&ContextEntry| other.domain_id() == entry.domain_id();
        let mut others = self.contexts.values().filter(same_domain);
        others.any(|other| tables(*other) != tables(entry))
    }

    pub(crate) fn scalable_context(&self, source_id: u16) -> Option<ScalableContext> {
        self.scalable_contexts.get(&source_id).copied()
    }

    pub(crate) fn keep_scalable_context(&mut self, source_id: u16, entry: ScalableContext) {
        insert(&mut self.scalable_contexts, source_id, entry);
    }

    pub(crate) fn pasid(&self, source_id: u16, pasid: u32) -> Option<PasidEntry> {
        self.pasids.get(&(source_id, pasid)).copied()
    }

    pub(crate) fn keep_pasid(&mut self, source_id: u16, pasid: u32, entry: PasidEntry) {
        insert(&mut self.pasids, (source_id, pasid), entry);
    }

    /// Whether a cached PASID entry of the same domain has other tables (VT-d 6.2.1 forbids it).
    pub(crate) fn pasid_domain_differs(&self, entry: PasidEntry) -> bool {
        let tables = |entry: PasidEntry| {
            // Those of the first stage are their PASID's.
            let shared = ![PGTT_PASS_THROUGH, PGTT_FIRST_STAGE].contains(&entry.translation_type());
            shared.then_some((entry.table(), entry.address_width()))
        };
        let mut others = self.pasids.values().filter(|other| other.domain_id() == entry.domain_id());
        others.any(|other| tables(*other) != tables(entry))
    }

    pub(crate) fn flush_pasids(&mut self, scope: PasidScope) {
        self.pasids.retain(|(_, pasid), entry| match scope {
            PasidScope::Global => false,
            PasidScope::Domain(domain) => entry.domain_id() != domain,
            PasidScope::Pasid(domain, selected) => entry.domain_id() != domain || *pasid != selected,
        });
    }

    pub(crate) fn flush_contexts(&mut self, scope: ContextScope) {
        // Entries of scalable mode are tagged by the requester alone: domains do not select them, and do not count.
        self.scalable_contexts.retain(|source_id, _| match scope {
            ContextScope::Global => false,
            ContextScope::Domain(_) => true,
            ContextScope::Device(_, device, ignored) => (source_id ^ device) & !ignored != 0,
        });
        self.contexts.retain(|source_id, entry| match scope {
            ContextScope::Global => false,
            ContextScope::Domain(domain) => entry.domain_id() != domain,
            ContextScope::Device(domain, device, ignored) => {
                entry.domain_id() != domain || (source_id ^ device) & !ignored != 0
            }
        });
    }

    /// The page that holds `address`, and its level.
    pub(crate) fn page(&self, domain: u16, address: u64) -> Option<(Translation, u32)> {
        let at = |level| self.pages.get(&key(domain, level, address)).copied();
        (1..=3).find_map(|level| at(level).map(|page| (page, level)))
    }

    pub(crate) fn keep_page(&mut self, domain: u16, level: u32, address: u64, page: Translation) {
        insert(&mut self.pages, key(domain, level, address), page);
    }

    /// The lowest table known on the way to `address`, below `root_level`, and the level of that table.
    pub(crate) fn table(&self, domain: u16, address: u64, root_level: u32) -> Option<(Translation, u32)> {
        let at = |level| self.tables.get(&key(domain, level + 1, address)).copied();
        (1..root_level).find_map(|level| at(level).map(|table| (table, level)))
    }

    /// Keeps the table of `level` on the way to `address`: the entry that points to it is one level up.
    pub(crate) fn keep_table(&mut self, domain: u16, level: u32, address: u64, table: Translation) {
        insert(&mut self.tables, key(domain, level + 1, address), table);
    }

    /// The page of first-stage tables that holds `address`, and its level. `tag` is the domain and the PASID.
    pub(crate) fn first_stage_page(&self, tag: (u16, u32), address: u64) -> Option<(Translation, u32)> {
        let at = |level| self.first_stage.get(&(tag.1, key(tag.0, level, address))).copied();
        (1..=3).find_map(|level| at(level).map(|page| (page, level)))
    }

    pub(crate) fn keep_first_stage_page(&mut self, tag: (u16, u32), level: u32, address: u64, page: Translation) {
        insert(&mut self.first_stage, (tag.1, key(tag.0, level, address)), page);
    }

    /// Drops pages of first-stage tables: all of a domain's PASID, or those that meet a range (VT-d 6.5.2.4).
    pub(crate) fn flush_first_stage(&mut self, domain: u16, pasid: u32, range: Option<(u64, u64)>) {
        self.first_stage.retain(|(of, key), _| {
            let meets = range.is_none_or(|(first, last)| covers(key, first, last));
            *of != pasid || key.0 != domain || !meets
        });
    }

    pub(crate) fn flush_pages(&mut self, scope: IotlbScope) {
        let stays = |key: &Key| match scope {
            IotlbScope::Global => false,
            IotlbScope::Domain(domain) => key.0 != domain,
            IotlbScope::Pages { domain, first, last, .. } => key.0 != domain || !covers(key, first, last),
        };
        self.pages.retain(|key, _| stays(key));
        // A page-selective one is for second-stage tables.
        let selective = matches!(scope, IotlbScope::Pages { .. });
        self.first_stage.retain(|(_, key), _| selective || stays(key));
        let leaves_only = matches!(scope, IotlbScope::Pages { leaves_only: true, .. });
        if !leaves_only {
            self.tables.retain(|key, _| stays(key));
        }
    }
}
