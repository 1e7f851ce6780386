//! Queued invalidation: section 6.5.2.
//!
//! A submission is some descriptors and one wait descriptor, whose status the unit writes to a frame that is never freed. The submission is
//! complete, or has failed, when `submit` returns. So the queue is empty between submissions, and there is always space for [`CAPACITY`]
//! descriptors.

use core::{
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use super::{
    coherence::Coherence,
    error::{QueueError, UnitError},
    spec::descriptor::Wait,
    unit::{COMMAND, Unit},
};
use crate::{
    addr::{Hpa, PAGE_SIZE},
    clock::{Timeout, poll},
    memory::{FrameSource, Registers},
};

/// Descriptors that the queue has room for.
const SLOTS: usize = 512;
/// Bytes of a descriptor of 128 bits. Wide ones have twice as many.
const NARROW: usize = 16;
/// Descriptors in one submission: one slot is the wait's, one tells a full queue from an empty one.
pub const CAPACITY: usize = SLOTS - 2;
/// The number of reads of the status between two reads of the fault status, which is a slow register.
const STATUS_POLLS: u32 = 256;

/// The doubleword of the status frame for unused status values.
const UNREAD: u64 = 1;

/// The queue of a unit.
pub struct Queue {
    base: Hpa,
    slots: NonNull<[AtomicU64]>,
    /// Bytes of a descriptor.
    slot: usize,
    status: NonNull<AtomicU32>,
    status_address: Hpa,
    coherence: Coherence,
    /// Slot of the next descriptor.
    tail: usize,
    /// Descriptors written since the last submission.
    pending: usize,
    sequence: u32,
    /// Whether the last submission timed out, so that the unit may still work on it.
    stuck: bool,
}

// SAFETY: the frames are the queue's own, and are accessed atomically.
unsafe impl Send for Queue {}

impl Queue {
    /// An empty queue in frames that are never given back, because the unit may write to them at any time. Its descriptors have 256
    /// bits if they are `wide`, as scalable mode demands.
    pub fn new(frames: &impl FrameSource, coherence: Coherence, wide: bool) -> Result<Self, UnitError> {
        let slot = if wide { 2 * NARROW } else { NARROW };
        let bytes = (SLOTS * slot) as u64;
        let base = frames.alloc_zeroed(bytes / PAGE_SIZE, bytes).ok_or(UnitError::NoMemory)?;
        let status_address = frames.alloc_zeroed(1, PAGE_SIZE).ok_or(UnitError::NoMemory)?;
        let slots = NonNull::slice_from_raw_parts(frames.pointer(base).cast(), SLOTS * slot / size_of::<u64>());
        let status = frames.pointer(status_address).cast();
        Ok(Self {
            base,
            slots,
            slot,
            status,
            status_address,
            coherence,
            tail: 0,
            pending: 0,
            sequence: 0,
            stuck: false,
        })
    }

    /// Enables the queue in the unit.
    pub fn enable<R: Registers>(&self, unit: &Unit<R>) -> Result<(), UnitError> {
        let pages = (SLOTS * self.slot) as u64 / PAGE_SIZE;
        unit.enable_queue(self.base, pages.ilog2(), self.slot != NARROW)
    }

    /// Whether no more descriptors fit in this submission.
    pub fn is_full(&self) -> bool {
        self.pending >= CAPACITY
    }

    /// Whether nothing is to be submitted.
    pub fn is_empty(&self) -> bool {
        self.pending == 0
    }

    /// Adds a descriptor to the next submission; no effect if there is no space ([`Queue::is_full`]). Descriptors that the unit still works
    /// on are not overwritten.
    pub fn push(&mut self, descriptor: u128) {
        if self.is_full() {
            return;
        }
        self.pending += 1;
        if !self.stuck {
            self.write(descriptor);
        }
    }

    /// Submits the pushed descriptors and waits until the unit has completed them. After a time-out, submissions fail until the unit has
    /// caught up.
    pub fn submit<R: Registers>(&mut self, unit: &Unit<R>) -> Result<(), QueueError> {
        self.pending = 0;
        if self.stuck {
            self.stuck = unit.queue_head() != self.tail * self.slot;
            return Err(QueueError::TimedOut);
        }
        self.sequence = self.sequence.wrapping_add(1);
        self.write(self.status_wait(0, self.sequence));
        unit.set_queue_tail(self.tail * self.slot);
        self.wait(unit).inspect_err(|_| self.recover(unit))
    }

    /// A wait that writes `status` to doubleword `word` of the status frame. QEMU's unit refuses one that does nothing.
    fn status_wait(&self, word: u64, status: u32) -> u128 {
        let address = (self.status_address.as_u64() >> 2) + word;
        Wait::NEW.with_sw(1).with_status(status.into()).with_address(address.into()).0
    }

    fn write(&mut self, descriptor: u128) {
        // SAFETY: the frames are the queue's own.
        let slots = unsafe { self.slots.as_ref() };
        let first = self.tail * self.slot / size_of::<u64>();
        let Some(slot @ [low, high]) = slots.get(first..first + 2) else { return };
        // The upper half of a wide one has been zero from the start.
        low.store(descriptor as u64, Ordering::Relaxed);
        high.store((descriptor >> 64) as u64, Ordering::Relaxed);
        // SAFETY: the slot lies in the queue's own frames.
        unsafe { self.coherence.publish(NonNull::from(slot).cast(), NARROW) };
        self.tail = (self.tail + 1) % SLOTS;
    }

    /// Waits for the status of the last wait.
    fn wait<R: Registers>(&self, unit: &Unit<R>) -> Result<(), QueueError> {
        // SAFETY: the frame is the queue's own, and the unit writes it as an aligned doubleword.
        let status = unsafe { self.status.as_ref() };
        let is_done = || status.load(Ordering::Acquire) == self.sequence;
        // The usual case costs no look at the clock.
        if is_done() { Ok(()) } else { wait_on(unit, is_done) }
    }

    /// After an error: what has not been done becomes waits whose status nobody reads, and the unit goes on. If it does not reach the
    /// end, the queue is stuck, until it has. The tail is written again, because QEMU's unit looks at the queue only then.
    fn recover<R: Registers>(&mut self, unit: &Unit<R>) {
        let (end, mut at) = (self.tail, unit.queue_head() / self.slot % SLOTS);
        let filler = self.status_wait(UNREAD, 0);
        for _ in 0..SLOTS {
            if at == end {
                break;
            }
            self.tail = at;
            self.write(filler);
            at = self.tail;
        }
        self.tail = end;
        unit.clear_queue_errors();
        unit.set_queue_tail(end * self.slot);
        self.stuck = !poll(unit.clock(), COMMAND, || unit.queue_head() == end * self.slot);
    }
}

/// Waits until something is done, as long as the unit has not halted the queue.
#[cold]
fn wait_on<R: Registers>(unit: &Unit<R>, is_done: impl Fn() -> bool) -> Result<(), QueueError> {
    let (mut timeout, mut over) = (Timeout::new(unit.clock(), COMMAND), false);
    while !over {
        for _ in 0..STATUS_POLLS {
            // A last look comes after the time is over.
            over = timeout.is_over();
            if is_done() {
                return Ok(());
            }
            if over {
                break;
            }
            core::hint::spin_loop();
        }
        check(unit)?;
    }
    Err(QueueError::TimedOut)
}

/// Whether the unit has halted the queue. ICE (an answer that nobody asked for) does not touch our wait.
fn check<R: Registers>(unit: &Unit<R>) -> Result<(), QueueError> {
    let status = unit.fault_status();
    if status.0 == u32::MAX {
        return Err(QueueError::TimedOut);
    }
    if status.iqe() != 0 {
        return Err(QueueError::Refused(unit.queue_error_code()));
    }
    if status.ite() != 0 {
        return Err(QueueError::DeviceTlb);
    }
    Ok(())
}
