//! A virtual processor's mailbox, which other processors may access: interrupts for it, and its counters.

use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::AtomicU64 as Counter;

use crate::{
    addr::Gpa,
    apic, cpu,
    sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    vmx::posted::{Descriptor, RunState},
};

/// Exit reasons that are counted. The basic reason has 16 bits, but the processor's numbers end far below this. A power of two.
const REASONS: usize = 128;

/// The value for no address.
const NOWHERE: u64 = u64::MAX;

/// A virtual processor's counters. Only the processor that runs it writes them; others may read.
pub struct Counts {
    exits: [Counter; REASONS],
    /// Devices' interrupts that its local APIC accepted.
    pub delivered: Counter,
    /// Devices' interrupts that merged with a pending one of the same vector.
    pub merged: Counter,
    /// Devices' interrupts that its local APIC refused.
    pub dropped: Counter,
    /// The number of all these that the hypervisor took from a posted-interrupt descriptor.
    pub from_descriptors: Counter,
}

impl Default for Counts {
    fn default() -> Self {
        let [delivered, merged, dropped, from_descriptors] = [const { Counter::new(0) }; 4];
        Self { exits: [const { Counter::new(0) }; REASONS], delivered, merged, dropped, from_descriptors }
    }
}

/// Adds one. Only one processor writes the counter, so no locked instruction is needed.
pub fn count(counter: &Counter) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

impl Counts {
    /// Counts an exit by its basic reason's number.
    pub fn exit(&self, number: u16) {
        count(&self.exits[usize::from(number) % REASONS]);
    }

    /// Exits so far, by their reasons' numbers.
    pub fn exits(&self) -> impl Iterator<Item = u64> {
        self.exits.iter().map(|exits| exits.load(Ordering::Relaxed))
    }
}

/// What others send to a virtual processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Signal {
    /// An interrupt.
    Vector = 1 << 0,
    /// A non-maskable interrupt.
    Nmi = 1 << 1,
    /// INIT.
    Init = 1 << 2,
    /// A start-up command.
    StartUp = 1 << 3,
}

/// The signals for which the processor of a virtual processor is interrupted. Others wait in the mailbox until the scheduler looks: a guest
/// cannot take time of others by signals that change nothing for the virtual processor that they are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotifyMask(u8);

impl NotifyMask {
    /// Those for a virtual processor that runs: all.
    pub const ALL: Self = Self(u8::MAX);
    /// Those for one that waits for its turn, and takes what there is then: none.
    pub const NONE: Self = Self(0);
    /// Those for one that has halted.
    pub const HALTED: Self = Self(Signal::Vector as u8 | Signal::Nmi as u8 | Signal::Init as u8);
    /// Those for one that has halted with interrupts off.
    pub const STOPPED: Self = Self(Signal::Nmi as u8 | Signal::Init as u8);
    /// Those for one that waits for a start-up command.
    pub const WAIT_FOR_SIPI: Self = Self(Signal::StartUp as u8);

    const fn has(self, signal: Signal) -> bool {
        self.0 & signal as u8 != 0
    }
}

/// A signal that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The processor has been interrupted for it.
    pub interrupted: bool,
}

/// A virtual processor's mailbox.
pub struct Mailbox {
    /// Number and APIC ID of the processor that runs the virtual processor.
    processor: usize,
    host_apic_id: u32,
    /// Vectors that other virtual processors have sent, if the hypervisor emulates the local APIC.
    requests: [AtomicU64; 4],
    /// The descriptor, if the processor virtualises the local APIC: senders post into it, as devices do.
    descriptor: Option<Arc<Descriptor>>,
    /// The descriptor into which units post devices' interrupts that the hypervisor injects.
    inbox: Option<Arc<Descriptor>>,
    /// The address for paravirtual EOI: guest-physical, or [`NOWHERE`].
    pv_eoi: AtomicU64,
    /// There is something to take.
    signalled: AtomicBool,
    /// The processor has been interrupted for that.
    notified: AtomicBool,
    /// An [`NotifyMask`].
    attention: AtomicU8,
    /// What happened to it.
    pub counts: Counts,
}

impl Mailbox {
    /// A mailbox on the processor with this number and APIC ID. With a descriptor, interrupts are posted into it; with an inbox, devices'
    /// interrupts are posted there for the hypervisor.
    pub fn new(
        processor: usize,
        host_apic_id: u32,
        descriptor: Option<Arc<Descriptor>>,
        inbox: Option<Arc<Descriptor>>,
    ) -> Self {
        Self {
            processor,
            host_apic_id,
            requests: core::array::from_fn(|_| AtomicU64::new(0)),
            descriptor,
            inbox,
            pv_eoi: AtomicU64::new(NOWHERE),
            signalled: AtomicBool::new(false),
            notified: AtomicBool::new(false),
            attention: AtomicU8::new(NotifyMask::NONE.0),
            counts: Counts::default(),
        }
    }

    /// The number of the processor that runs the virtual processor.
    pub fn processor(&self) -> usize {
        self.processor
    }

    /// Sets the address for paravirtual EOI: 4 bytes of the guest's memory, or none. Returns false if the processor virtualises the local
    /// APIC.
    pub fn set_pv_eoi(&self, at: Option<Gpa>) -> bool {
        let taken = self.descriptor.is_none();
        if taken {
            self.pv_eoi.store(at.map_or(NOWHERE, Gpa::as_u64), Ordering::Relaxed);
        }
        taken
    }

    /// The address for paravirtual EOI.
    pub fn pv_eoi(&self) -> Option<Gpa> {
        let at = self.pv_eoi.load(Ordering::Relaxed);
        (at != NOWHERE).then_some(Gpa::new(at))
    }

    /// Sends an interrupt to the virtual processor.
    pub fn request(&self, vector: u8) {
        match &self.descriptor {
            Some(descriptor) => {
                if let Some(notification) = descriptor.post(vector) {
                    self.notify(notification);
                }
            }
            None => {
                self.requests[usize::from(vector / 64)].fetch_or(1 << (vector % 64), Ordering::Relaxed);
                self.signal(Signal::Vector);
            }
        }
    }

    /// Has its processor look at it, at once if the signal is among those that it pays attention to.
    pub fn signal(&self, signal: Signal) {
        // A swap, not a store: whoever takes the signal sees what each sender wrote before, not only the last one.
        self.signalled.swap(true, Ordering::SeqCst);
        if NotifyMask(self.attention.load(Ordering::SeqCst)).has(signal) {
            self.notify_once();
        }
    }

    /// Has its processor look at it at once, whatever the virtual processor does.
    pub fn kick(&self) {
        self.signalled.swap(true, Ordering::SeqCst);
        self.notify_once();
    }

    /// Says for which signals the processor is to be interrupted. What came before that without an interrupt is found by
    /// [`Self::take_signal`] after it.
    pub fn set_notify_mask(&self, attention: NotifyMask) {
        if self.attention.load(Ordering::Relaxed) != attention.0 {
            self.attention.store(attention.0, Ordering::SeqCst);
        }
    }

    /// Says to units that post devices' interrupts for the hypervisor who runs. What came while `Preempted` is found by
    /// [`Self::take_suppressed`] after that.
    pub fn set_run_state(&self, state: RunState) {
        if let Some(inbox) = &self.inbox {
            inbox.set_run_state(state);
        }
    }

    /// One look that is still to come is enough for any number of signals.
    fn notify_once(&self) {
        if !self.notified.swap(true, Ordering::SeqCst) {
            self.notify(apic::WAKE_UP_VECTOR);
        }
    }

    /// Signals on the processor that runs the virtual processor. The processor checks the mailbox before it continues, so no notification
    /// is sent.
    pub fn signal_self(&self) {
        self.signalled.swap(true, Ordering::SeqCst);
        cpu::interrupts::raise(apic::WAKE_UP_VECTOR);
    }

    fn notify(&self, vector: u8) {
        if cpu::percpu::this_cpu().number == self.processor {
            cpu::interrupts::raise(vector);
        } else {
            apic::notify(self.host_apic_id, vector);
        }
    }

    /// Takes the signal, if there has been one since this was called last. What was sent is taken after that.
    pub fn take_signal(&self) -> Option<Taken> {
        // First, and whether there is a signal or not: a sender that signals after this notifies again. A notification that is seen here may be
        // of a signal that an earlier call has taken.
        let interrupted = self.notified.load(Ordering::Relaxed) && self.notified.swap(false, Ordering::SeqCst);
        let is_signalled = self.signalled.load(Ordering::SeqCst) && self.signalled.swap(false, Ordering::SeqCst);
        is_signalled.then_some(Taken { interrupted })
    }

    /// Whether [`Self::take_signal`] would find a signal.
    pub fn has_signal(&self) -> bool {
        self.signalled.load(Ordering::SeqCst)
    }

    /// Takes the vectors that were sent.
    pub fn take_requests(&self) -> impl Iterator<Item = u8> {
        Vectors([0, 1, 2, 3].map(|word| self.requests[word].swap(0, Ordering::Relaxed)))
    }

    /// Takes the devices' interrupts that were posted for the hypervisor: their vectors, or `None` if there are none.
    #[inline]
    pub fn take_posted(&self) -> Option<Vectors> {
        let inbox = self.inbox.as_ref().filter(|inbox| inbox.has_notified())?;
        Some(Vectors(inbox.take()))
    }

    /// The same with those that came while notifications were suppressed.
    pub fn take_suppressed(&self) -> Option<Vectors> {
        let inbox = self.inbox.as_ref().filter(|inbox| inbox.has_requests())?;
        Some(Vectors(inbox.take()))
    }
}

/// The vectors whose bits are set, lowest first.
pub struct Vectors([u64; 4]);

impl Iterator for Vectors {
    type Item = u8;

    #[inline]
    fn next(&mut self) -> Option<u8> {
        let [a, b, c, d] = &mut self.0;
        let (word, first) = match (*a, *b, *c, *d) {
            (0, 0, 0, 0) => return None,
            (0, 0, 0, _) => (d, 192),
            (0, 0, ..) => (c, 128),
            (0, ..) => (b, 64),
            _ => (a, 0),
        };
        let bit = word.trailing_zeros() as u8;
        *word &= word.wrapping_sub(1);
        Some(first | bit)
    }

    #[inline]
    fn fold<B, F: FnMut(B, u8) -> B>(self, first: B, mut add: F) -> B {
        let mut sum = first;
        for (number, mut word) in (0..).zip(self.0) {
            while word != 0 {
                sum = add(sum, number * 64 + word.trailing_zeros() as u8);
                word &= word - 1;
            }
        }
        sum
    }
}

/// The exits of all these virtual processors, by reason.
pub fn sum_of_exits<'a>(mailboxes: impl Iterator<Item = &'a Mailbox>) -> Vec<u64> {
    let mut sums = alloc::vec![0; REASONS];
    for mailbox in mailboxes {
        sums.iter_mut().zip(mailbox.counts.exits()).for_each(|(sum, exits)| *sum += exits);
    }
    sums
}
