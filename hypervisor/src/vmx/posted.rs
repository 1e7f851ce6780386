//! Posted-interrupt descriptors: SDM vol. 3, 31.6; VT-d specification, 5.2.3 and 9.11.
//!
//! Hardware sets a bit for each interrupt and, if it may, notifies the processor. The virtual processor's run state decides whether and
//! where it notifies:
//!
//! | virtual processor | NV | SN |
//! |---|---|---|
//! | runs | the vector at which the processor delivers the interrupts to the guest | 0 |
//! | is preempted | | 1: no notification is needed before it runs again |
//! | has halted in the hypervisor | a vector that wakes the hypervisor | 0 |
//!
//! A virtual processor whose local APIC the hypervisor emulates can have a descriptor as well ([`Descriptor::for_hypervisor`]): hardware
//! notifies the hypervisor, which takes the requests and injects them. Its NV is always that of the hypervisor.
//!
//! The scheduler suppresses notifications also for a virtual processor that has halted, if its guest has interrupted others too often.

use crate::{
    addr::Hpa,
    apic::{INJECT_VECTOR, NOTIFICATION_VECTOR, WAKE_UP_VECTOR},
    memory::{FrameSource, Table},
    sync::atomic::{Ordering, fence},
};

/// The descriptor's quadwords: four of requests, one of control.
const REQUESTS: u64 = 4;
const CONTROL: u64 = 4;

/// Control: outstanding notification, suppress notification; notification vector 23:16, destination 63:32.
const ON: u64 = 1 << 0;
const SN: u64 = 1 << 1;
const NV_SHIFT: u32 = 16;
const NDST_SHIFT: u32 = 32;

/// A virtual processor's run state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// It runs.
    Running,
    /// It could run, but another one does.
    Preempted,
    /// It waits for an interrupt.
    Halted,
}

/// A descriptor, alone in its frame: some machines want it aligned to a page (Bochs 3.0; 64 bytes are the rule).
pub struct Descriptor {
    table: Table,
    destination: u64,
    /// The vectors that notify: while the virtual processor runs, and while it waits.
    vectors: [u8; 2],
}

impl Descriptor {
    /// An empty descriptor that notifies `destination`: an x2APIC ID if the remapping units are in extended interrupt mode, else an xAPIC
    /// ID in bits 15:8 (VT-d specification, 9.11, NDST). It suppresses notifications until [`Descriptor::set_run_state`].
    pub fn new(frames: &impl FrameSource, destination: u32) -> Option<Self> {
        Self::with(frames, destination, [NOTIFICATION_VECTOR, WAKE_UP_VECTOR], RunState::Preempted)
    }

    /// An empty one that notifies the hypervisor on `destination`, at [`INJECT_VECTOR`], unless another virtual processor runs.
    pub fn for_hypervisor(frames: &impl FrameSource, destination: u32) -> Option<Self> {
        Self::with(frames, destination, [INJECT_VECTOR; 2], RunState::Halted)
    }

    fn with(frames: &impl FrameSource, destination: u32, vectors: [u8; 2], state: RunState) -> Option<Self> {
        let destination = u64::from(destination) << NDST_SHIFT;
        let descriptor = Self { table: Table::new(frames)?, destination, vectors };
        descriptor.table.set(CONTROL, descriptor.control(state));
        Some(descriptor)
    }

    /// The control quadword, but for ON.
    fn control(&self, state: RunState) -> u64 {
        let [running, waiting] = self.vectors;
        let (vector, suppressed) = match state {
            RunState::Running => (running, 0),
            RunState::Preempted => (running, SN),
            RunState::Halted => (waiting, 0),
        };
        u64::from(vector) << NV_SHIFT | self.destination | suppressed
    }

    /// The descriptor's address.
    pub fn address(&self) -> Hpa {
        self.table.address()
    }

    /// Sets the run state. After `Running` or `Halted`, [`Descriptor::take`] finds requests that came while notifications were suppressed,
    /// because SN is clear before that.
    pub fn set_run_state(&self, state: RunState) {
        let value = self.control(state);
        let control = self.table.entry(CONTROL);
        // Hardware may set ON at any time, and must not lose it.
        let _ = control.fetch_update(Ordering::SeqCst, Ordering::Relaxed, |old| Some(old & ON | value));
        fence(Ordering::SeqCst);
    }

    /// Requests an interrupt as hardware does (VT-d specification, 5.2.5). Returns the vector at which the caller has to notify the
    /// processor, unless a notification is pending or suppressed.
    pub fn post(&self, vector: u8) -> Option<u8> {
        self.table.entry(u64::from(vector / 64)).fetch_or(1 << (vector % 64), Ordering::SeqCst);
        let notify = |old: u64| (old & (ON | SN) == 0).then_some(old | ON);
        // No look is relaxed: one that finds ON must not come before the request.
        let old = self.table.entry(CONTROL).fetch_update(Ordering::SeqCst, Ordering::SeqCst, notify).ok()?;
        Some((old >> NV_SHIFT) as u8)
    }

    /// Whether there may be requests.
    pub fn has_requests(&self) -> bool {
        self.table.get(CONTROL) & ON != 0 || (0..REQUESTS).any(|n| self.table.get(n) != 0)
    }

    /// Whether hardware has notified, or is about to, since the requests were taken. No request comes unnoticed but while notifications are
    /// suppressed.
    pub fn has_notified(&self) -> bool {
        self.table.get(CONTROL) & ON != 0
    }

    /// Takes all requests. ON is cleared first, so a sender that sets a bit after that notifies again.
    pub fn take(&self) -> [u64; 4] {
        self.table.entry(CONTROL).fetch_and(!ON, Ordering::SeqCst);
        // A word that is empty now gets its bit after ON went, and notifies for that.
        [0, 1, 2, 3].map(|n| match self.table.entry(n) {
            word if word.load(Ordering::SeqCst) == 0 => 0,
            word => word.swap(0, Ordering::SeqCst),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::testing::TestFrames;

    fn control(descriptor: &Descriptor) -> u64 {
        descriptor.table.get(CONTROL)
    }

    #[test]
    fn each_turn_says_whom_to_notify() {
        let frames = TestFrames::default();
        let descriptor = Descriptor::new(&frames, 3 << 8).unwrap();
        assert_eq!(control(&descriptor) & SN, SN, "nobody is notified before it runs");
        for (state, vector, suppressed) in [
            (RunState::Running, NOTIFICATION_VECTOR, 0),
            (RunState::Preempted, NOTIFICATION_VECTOR, SN),
            (RunState::Halted, WAKE_UP_VECTOR, 0),
        ] {
            descriptor.set_run_state(state);
            assert_eq!(control(&descriptor) >> 32, 3 << 8);
            assert_eq!(control(&descriptor) >> 16 & 0xff, u64::from(vector));
            assert_eq!(control(&descriptor) & SN, suppressed);
        }
    }

    #[test]
    fn the_hypervisors_own_notifies_from_the_beginning() {
        let frames = TestFrames::default();
        let descriptor = Descriptor::for_hypervisor(&frames, 5).unwrap();
        assert_eq!((control(&descriptor) & SN, control(&descriptor) >> 32), (0, 5));
        assert!(!descriptor.has_notified());
        assert_eq!(descriptor.post(0x10), Some(INJECT_VECTOR));
        assert_eq!(descriptor.post(0xff), None, "one notification is enough");
        assert!(descriptor.has_notified());
        assert_eq!(descriptor.take(), [1 << 0x10, 0, 0, 1 << 63]);
        assert!(!descriptor.has_notified());
        descriptor.set_run_state(RunState::Preempted);
        assert_eq!(descriptor.post(0x20), None, "another one runs");
        assert!(!descriptor.has_notified() && descriptor.has_requests());
        descriptor.set_run_state(RunState::Running);
        assert_eq!(descriptor.post(0x21), Some(INJECT_VECTOR));
        assert_eq!(descriptor.take(), [0b11 << 0x20, 0, 0, 0]);
    }

    #[test]
    fn a_request_is_taken_once_and_survives_every_turn() {
        let frames = TestFrames::default();
        let descriptor = Descriptor::new(&frames, 0).unwrap();
        descriptor.table.set(1, 1 << 5);
        descriptor.table.set(CONTROL, control(&descriptor) | ON);
        descriptor.set_run_state(RunState::Halted);
        assert!(descriptor.has_requests());
        assert_eq!(descriptor.take(), [0, 1 << 5, 0, 0]);
        assert!(!descriptor.has_requests());
        assert_eq!(descriptor.take(), [0; 4]);
    }

    #[test]
    fn a_post_notifies_once_and_whom_the_turn_says() {
        let frames = TestFrames::default();
        let descriptor = Descriptor::new(&frames, 0).unwrap();
        assert_eq!(descriptor.post(0x41), None, "nobody is notified before it runs");
        descriptor.set_run_state(RunState::Halted);
        assert_eq!(descriptor.post(0xff), Some(WAKE_UP_VECTOR));
        assert_eq!(descriptor.post(0x42), None, "one notification is enough");
        assert_eq!(descriptor.take(), [0, 0b110, 0, 1 << 63]);
        descriptor.set_run_state(RunState::Running);
        assert_eq!(descriptor.post(0x41), Some(NOTIFICATION_VECTOR));
    }

    #[test]
    fn requests_without_a_notification_are_seen() {
        let frames = TestFrames::default();
        let descriptor = Descriptor::new(&frames, 0).unwrap();
        descriptor.table.set(3, 1 << 63);
        assert!(descriptor.has_requests());
    }
}
