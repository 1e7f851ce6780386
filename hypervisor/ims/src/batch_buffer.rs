//! Room for a batch of the map call.

use alloc::vec::Vec;
use core::num::NonZeroU16;

use hcall_abi::{MapRequest, SlotHandle, Target};

use super::ports::BindRequest;
use crate::addr::PAGE_SIZE;

/// Most items in a batch: a page of them.
pub const BATCH_LIMIT: usize = PAGE_SIZE as usize / MapRequest::SIZE;

/// Room for a batch.
pub struct Batch {
    /// Requests, then replies.
    pub(super) items: [[u8; MapRequest::SIZE]; BATCH_LIMIT],
    /// The slots that this batch maps are those of the first so many.
    pub(super) fresh: [Fresh; BATCH_LIMIT],
    pub(super) number: usize,
    /// The items whose slots were mapped that way already, perhaps by this batch. There is room for all.
    pub(super) repeated: Vec<Repeated>,
}

/// A slot that the batch maps.
#[derive(Clone, Copy)]
pub(super) struct Fresh {
    pub(super) request: BindRequest,
    pub(super) handle: SlotHandle,
    /// Whether it stays masked.
    pub(super) masked: bool,
    /// Of the first of a run: how many there are, all for one processor.
    pub(super) run: u16,
}

impl Fresh {
    /// Nothing.
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

/// Slots that a batch maps, run by run.
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

/// An item for a slot that is mapped so.
#[derive(Clone, Copy)]
pub(super) struct Repeated {
    pub(super) handle: SlotHandle,
    pub(super) unmask: bool,
}

impl Batch {
    /// Bytes of memory that a room takes in all.
    pub const BYTES: u64 = (size_of::<Self>() + BATCH_LIMIT * size_of::<Repeated>()) as u64;

    /// Room, empty.
    pub fn new() -> Self {
        Self {
            items: [[0; MapRequest::SIZE]; BATCH_LIMIT],
            fresh: [Fresh::NONE; BATCH_LIMIT],
            number: 0,
            repeated: Vec::with_capacity(BATCH_LIMIT),
        }
    }

    /// Room for a page of handles instead of items.
    pub fn handles(&mut self) -> &mut [[u8; 4]] {
        self.items.as_flattened_mut().as_chunks_mut().0
    }

    /// The slots that this batch maps.
    pub(super) fn fresh(&self) -> &[Fresh] {
        self.fresh.get(..self.number).unwrap_or_default()
    }
}
