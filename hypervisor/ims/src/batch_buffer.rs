//! The buffer for a batch of the map call.

use alloc::vec::Vec;
use core::num::NonZeroU16;

use hcall_abi::{MapRequest, SlotHandle, Target};

use super::ports::BindRequest;
use crate::addr::PAGE_SIZE;

/// Most items in a batch: a page of them.
pub const BATCH_LIMIT: usize = PAGE_SIZE as usize / MapRequest::SIZE;

/// The buffer for a batch.
pub struct Batch {
    /// The requests, which the replies replace.
    pub(super) items: [[u8; MapRequest::SIZE]; BATCH_LIMIT],
    /// The slots that this batch maps: the first `number` elements.
    pub(super) fresh: [Fresh; BATCH_LIMIT],
    pub(super) number: usize,
    /// The items whose slots were mapped to the same target before, perhaps by this batch. The capacity suffices for all items.
    pub(super) repeated: Vec<Repeated>,
}

/// A slot that the batch maps.
#[derive(Clone, Copy)]
pub(super) struct Fresh {
    pub(super) request: BindRequest,
    pub(super) handle: SlotHandle,
    /// Whether the slot stays masked.
    pub(super) masked: bool,
    /// For the first slot of a run: the number of slots in the run. All are for one processor.
    pub(super) run: u16,
}

impl Fresh {
    /// An empty element.
    pub(super) const NONE: Self = Self {
        request: BindRequest::new(Target { apic_id: 0, vector: 0 }),
        handle: SlotHandle::new(0, NonZeroU16::MIN),
        masked: true,
        run: 0,
    };
}

impl AsMut<BindRequest> for Fresh {
    fn as_mut(&mut self) -> &mut BindRequest {
        &mut self.request
    }
}

/// The runs of slots that a batch maps.
pub(super) struct FreshRuns<'a>(pub(super) &'a mut [Fresh]);

impl<'a> Iterator for FreshRuns<'a> {
    type Item = &'a mut [Fresh];

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(self.0.first()?.run).max(1);
        let (run, rest) = core::mem::take(&mut self.0).split_at_mut_checked(length)?;
        self.0 = rest;
        Some(run)
    }
}

/// An item whose slot was mapped to the same target before.
#[derive(Clone, Copy)]
pub(super) struct Repeated {
    pub(super) handle: SlotHandle,
    pub(super) unmask: bool,
}

impl Batch {
    /// Bytes of memory that a buffer takes.
    pub const BYTES: u64 = (size_of::<Self>() + BATCH_LIMIT * size_of::<Repeated>()) as u64;

    /// An empty buffer.
    pub fn new() -> Self {
        Self {
            items: [[0; MapRequest::SIZE]; BATCH_LIMIT],
            fresh: [Fresh::NONE; BATCH_LIMIT],
            number: 0,
            repeated: Vec::with_capacity(BATCH_LIMIT),
        }
    }

    /// The buffer for a page of handles instead of items.
    pub fn handles(&mut self) -> &mut [[u8; 4]] {
        self.items.as_flattened_mut().as_chunks_mut().0
    }

    /// The slots that this batch maps.
    pub(super) fn fresh(&self) -> &[Fresh] {
        self.fresh.get(..self.number).unwrap_or_default()
    }
}
