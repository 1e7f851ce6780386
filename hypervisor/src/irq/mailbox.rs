//! A virtual processor's mailbox, which other processors may access: interrupts for it, and its counters.

use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::{addr::Gpa, apic, cpu, vmx::posted::Descriptor};

/// Exit reasons that are counted: all that the processor gives, in 16 bits, end far below this. A power of two.
const REASONS: usize = 128;

/// No address of a guest's.
const NOWHERE: u64 = u64::MAX;

/// What happened to a virtual processor so far. Only the processor that runs it counts; others may look.
pub struct Counts {
    exits: [AtomicU64; REASONS],
    /// Devices' interrupts given to its local APIC.
    pub delivered: AtomicU64,
    /// Those that met one with the same vector there, and became one with it.
    pub merged: AtomicU64,
    /// Those that its local APIC did not take.
    pub dropped: AtomicU64,
    /// How many of all these the hypervisor took from a posted-interrupt descriptor.
    pub from_descriptors: AtomicU64,
}

impl Default for Counts {
    fn default() -> Self {
        let [delivered, merged, dropped, from_descriptors] = [const { AtomicU64::new(0) }; 4];
        Self { exits: [const { AtomicU64::new(0) }; REASONS], delivered, merged, dropped, from_descriptors }
    }
}

/// Counts one more: nobody else writes the counter, so that it needs no locked instruction.
pub fn count(counter: &AtomicU64) {
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

/// A virtual processor's mailbox.
pub struct Mailbox {
    /// Number and APIC ID of the processor that runs it.
    processor: usize,
    host_apic_id: u32,
    /// Vectors that other virtual processors have sent, where the hypervisor keeps its local APIC.
    requests: [AtomicU64; 4],
    /// Where the processor keeps it: senders post, as devices do.
    descriptor: Option<Arc<Descriptor>>,
    /// Where units post the interrupts of its devices that the hypervisor injects.
    inbox: Option<Arc<Descriptor>>,
    /// Where it ends interrupts without an exit: a guest-physical address, or [`NOWHERE`].
    pv_eoi: AtomicU64,
    /// There is something to take, and the processor has been told.
    signalled: AtomicBool,
    /// What happened to it.
    pub counts: Counts,
}

impl Mailbox {
    /// On a processor, whose number and APIC ID these are. With a descriptor, interrupts are posted there; with an inbox, devices'
    /// interrupts for the hypervisor are.
    pub fn new(
        processor: usize,
        host_apic_id: u32,
        descriptor: Option<Arc<Descriptor>>,
        inbox: Option<Arc<Descriptor>>,
    ) -> Self {
        Self {
            processor,
            host_apic_id,
            requests: [const { AtomicU64::new(0) }; 4],
            descriptor,
            inbox,
            pv_eoi: AtomicU64::new(NOWHERE),
            signalled: AtomicBool::new(false),
            counts: Counts::default(),
        }
    }

    /// The number of the processor that runs it.
    pub fn processor(&self) -> usize {
        self.processor
    }

    /// Where it ends interrupts without an exit: 4 bytes of the guest's memory, or nowhere. Returns false where the processor keeps its
    /// local APIC.
    pub fn set_pv_eoi(&self, at: Option<Gpa>) -> bool {
        let taken = self.descriptor.is_none();
        if taken {
            self.pv_eoi.store(at.map_or(NOWHERE, Gpa::as_u64), Ordering::Relaxed);
        }
        taken
    }

    /// Where that is.
    pub fn pv_eoi(&self) -> Option<Gpa> {
        let at = self.pv_eoi.load(Ordering::Relaxed);
        (at != NOWHERE).then_some(Gpa::new(at))
    }

    /// Sends it an interrupt.
    pub fn request(&self, vector: u8) {
        match &self.descriptor {
            Some(descriptor) => {
                if let Some(notification) = descriptor.post(vector) {
                    self.notify(notification);
                }
            }
            None => {
                self.requests[usize::from(vector / 64)].fetch_or(1 << (vector % 64), Ordering::Relaxed);
                self.signal();
            }
        }
    }

    /// Has its processor look at it. One look that is still to come is enough for any number of signals.
    pub fn signal(&self) {
        if !self.signalled.swap(true, Ordering::SeqCst) {
            self.notify(apic::WAKE_UP_VECTOR);
        }
    }

    /// The same by itself, on the processor that runs it: that looks before it goes on, whatever is on its way from others.
    pub fn signal_self(&self) {
        self.signalled.store(true, Ordering::SeqCst);
        cpu::interrupts::raise(apic::WAKE_UP_VECTOR);
    }

    fn notify(&self, vector: u8) {
        if cpu::percpu::this_cpu().number == self.processor {
            cpu::interrupts::raise(vector);
        } else {
            apic::notify(self.host_apic_id, vector);
        }
    }

    /// Whether there has been a signal since this was asked last.
    pub fn take_signal(&self) -> bool {
        self.signalled.load(Ordering::Relaxed) && self.signalled.swap(false, Ordering::SeqCst)
    }

    /// Takes the vectors that were sent.
    pub fn take_requests(&self) -> impl Iterator<Item = u8> {
        Vectors([0, 1, 2, 3].map(|word| self.requests[word].swap(0, Ordering::Relaxed)))
    }

    /// Takes the devices' interrupts that were posted for the hypervisor, if there are any: their vectors.
    #[inline]
    pub fn take_posted(&self) -> Option<Vectors> {
        let inbox = self.inbox.as_ref().filter(|inbox| inbox.has_notified())?;
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
}

/// Exits of all these by reason.
pub fn sum_of_exits<'a>(mailboxes: impl Iterator<Item = &'a Mailbox>) -> Vec<u64> {
    let mut sums = alloc::vec![0; REASONS];
    for mailbox in mailboxes {
        sums.iter_mut().zip(mailbox.counts.exits()).for_each(|(sum, exits)| *sum += exits);
    }
    sums
}
