//! Frames for tables that a guest's execution may need later.

use crate::{
    addr::Hpa,
    cpu::fiber,
    memory::{FrameSource, Table},
};

/// Frames that nobody uses yet. The first entry of each holds the address of the next one, 0 in the last, so that the list needs no other memory.
#[derive(Default)]
pub(super) struct Reserve(Option<Table>);

impl Reserve {
    /// Adds a frame. `None` if there is none.
    pub(super) fn add(&mut self, frames: &impl FrameSource) -> Option<()> {
        let table = Table::new(frames)?;
        table.set(0, self.0.map_or(0, |next| next.address().as_u64()));
        self.0 = Some(table);
        Some(())
    }

    /// Takes a frame, full of zeros.
    pub(super) fn take(&mut self, frames: &impl FrameSource) -> Option<Table> {
        let table = self.0.take()?;
        let next = table.get(0);
        // SAFETY: `add` has written the address of a frame that is its own.
        self.0 = (next != 0).then(|| unsafe { Table::at(frames, Hpa::new(next)) });
        table.set(0, 0);
        Some(table)
    }

    /// Gives all frames back.
    pub(super) fn free(mut self, frames: &impl FrameSource) {
        while let Some(table) = self.take(frames) {
            // SAFETY: it was the list's alone, and is in it no longer.
            unsafe { frames.free(table.address(), 1) };
            fiber::cond_resched();
        }
    }
}
