//! The ticket lock, without a value. `tests/concurrency` compiles this file with other atomics: it checks all orders of a few threads.

use crate::{
    atomic::{AtomicU16, Ordering},
    wait,
};

/// The state of a [`Mutex`]: a ticket lock of 4 bytes, so that a message store's slot with its lock fits into a cache line.
///
/// The owner alone changes `serving`, so it unlocks by a plain store: a lock costs one locked instruction, not two.
#[derive(Debug)]
pub struct Tickets {
    /// The next ticket that is handed out.
    pub(crate) next: AtomicU16,
    /// The ticket of the processor that has the lock; equal to `next` if no processor has the lock.
    pub(crate) serving: AtomicU16,
}

impl Tickets {
    /// Waits until `ticket` is served.
    #[cold]
    #[inline(never)]
    fn wait_for(&self, ticket: u16) {
        while self.serving.load(Ordering::Acquire) != ticket {
            wait();
        }
    }

    /// Has the lock as soon as `ticket`, which is the caller's, is served.
    #[inline]
    fn served(&self, ticket: u16) {
        if self.serving.load(Ordering::Acquire) != ticket {
            self.wait_for(ticket);
        }
    }

    /// Takes `ticket`, and waits until it is served, if it is the next one.
    ///
    /// The caller has seen `ticket` served. If it is handed out next, then either no other processor has taken a ticket since, and the lock is
    /// the caller's at once; or others have taken a multiple of 65,536 of them, and the caller's turn comes after those that are still waiting.
    #[inline]
    pub(crate) fn take_if_next(&self, ticket: u16) -> bool {
        let taken =
            self.next.compare_exchange(ticket, ticket.wrapping_add(1), Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if taken {
            self.served(ticket);
        }
        taken
    }

    /// Waits for the caller's turn.
    #[inline]
    pub(crate) fn take(&self) {
        self.served(self.next.fetch_add(1, Ordering::Relaxed));
    }

    /// Takes the lock if no processor has it or waits for it.
    #[inline]
    pub(crate) fn try_take(&self) -> bool {
        self.take_if_next(self.serving.load(Ordering::Relaxed))
    }

    /// Serves the next ticket. Only the owner calls this.
    #[inline]
    pub(crate) fn serve_next(&self) {
        // A plain load and store: only the owner, which is the caller, changes the ticket that is served.
        self.serving.store(self.serving.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
    }
}
