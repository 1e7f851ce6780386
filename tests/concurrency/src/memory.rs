//! The room `memory`, as far as descriptors need it: a table of quadwords.

use std::sync::Arc;

use crate::{
    addr::Hpa,
    atomic::{AtomicU64, Ordering},
};

/// Where tables come from.
pub trait FrameSource {
    fn table(&self) -> Table;
}

/// A source of one table, which hardware reads and writes as well.
#[derive(Default)]
pub struct Frames(Table);

impl FrameSource for Frames {
    fn table(&self) -> Table {
        self.0.clone()
    }
}

/// The quadwords of a posted-interrupt descriptor that mean something.
const ENTRIES: usize = 5;

/// A table in memory that hardware may read and write.
#[derive(Clone, Default)]
pub struct Table(Arc<[AtomicU64; ENTRIES]>);

impl Table {
    pub fn new(frames: &impl FrameSource) -> Option<Self> {
        Some(frames.table())
    }

    pub fn address(&self) -> Hpa {
        Hpa::new(0)
    }

    pub fn entry(&self, index: u64) -> &AtomicU64 {
        &self.0[index as usize]
    }

    #[track_caller]
    pub fn get(&self, index: u64) -> u64 {
        self.entry(index).load(Ordering::Relaxed)
    }

    #[track_caller]
    pub fn set(&self, index: u64, value: u64) {
        self.entry(index).store(value, Ordering::Release);
    }
}
