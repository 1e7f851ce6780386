//! The fault log: it reads the faults that remapping units have recorded, logs them with the guest that they concern, and limits their
//! number.

use alloc::{string::String, vec::Vec};
use core::{
    fmt::Write,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use hcall_abi::Pasid;

use crate::{
    addr::Bdf,
    cpu, event,
    ims::{Attribution, GuestId, StoreName},
    irq::{ports::MachineService, rate_limit::RateLimit},
    machine::discovery::Unit,
    sync::Mutex,
    vtd::{Fault, Request},
};

/// Faults of one function and kind, DMA or interrupt, that are logged. More are only counted, so no guest's device can bury the faults of
/// others.
const TOLD: u32 = 32;
/// Functions whose faults are logged.
const FUNCTIONS: usize = 64;

/// Is told for which guest a processor has worked, and for how many ticks. They are charged to the guest, not to who runs.
pub type Bill<'a> = dyn FnMut(GuestId, u64) + 'a;

/// The source of faults: a function, the guest that its work belonged to, and whether the fault is an interrupt's.
type FaultSource = (Bdf, Option<GuestId>, bool);

/// The state of the fault log. Its locks are taken before any of the service's, never after.
pub struct FaultLog {
    /// The rate limit of each unit, by its number.
    units: Vec<Mutex<RateLimit>>,
    /// The number of units whose events are masked.
    masked: AtomicUsize,
    /// The number of faults of each source so far.
    told: Mutex<Vec<(FaultSource, u32)>>,
    lost_told: AtomicBool,
    burst_told: AtomicBool,
}

impl FaultLog {
    /// A log for `units` units.
    pub fn new(units: usize) -> Self {
        Self {
            units: (0..units).map(|_| Mutex::new(RateLimit::default())).collect(),
            masked: AtomicUsize::new(0),
            told: Mutex::new(Vec::new()),
            lost_told: AtomicBool::new(false),
            burst_told: AtomicBool::new(false),
        }
    }

    /// Handles a fault event: reads the units' fault records. Each fault that has a guest is on the `bill`, with the ticks that it took.
    pub fn event(&self, service: &MachineService, bill: &mut Bill<'_>) {
        for (number, unit) in service.ports().numbered_units() {
            let mut rate_limit = self.units[number].lock();
            let found = self.take(service, number, unit, bill);
            if found && rate_limit.event(cpu::tsc(), unit.unit().has_faults()) {
                unit.unit().mask_fault_event(true);
                self.masked.fetch_add(1, Ordering::Relaxed);
                self.once(
                    &self.burst_told,
                    "a remapping unit has faults without end; its events are masked until it is quiet",
                );
            }
        }
    }

    /// Polls units whose events are masked, when a poll is due. The scheduler calls this all the time. `bill`: see [`Self::event`].
    pub fn poll(&self, service: &MachineService, bill: &mut Bill<'_>) {
        if self.masked.load(Ordering::Relaxed) == 0 {
            return;
        }
        let now = cpu::tsc();
        for (number, unit) in service.ports().numbered_units() {
            // Whoever has it looks already.
            let Some(mut rate_limit) = self.units[number].try_lock() else { continue };
            if rate_limit.is_due(now) && rate_limit.looked(now, self.take(service, number, unit, bill)) {
                self.masked.fetch_sub(1, Ordering::Relaxed);
                unit.unit().mask_fault_event(false);
            }
        }
    }

    /// Reads all remaining records.
    pub fn finish(&self, service: &MachineService) {
        for (number, unit) in service.ports().numbered_units() {
            let _burst = self.units[number].lock();
            self.take(service, number, unit, &mut |_, _| ());
        }
    }

    /// Reads a unit's records. Returns whether there were any. The caller holds the unit's lock.
    fn take(&self, service: &MachineService, number: usize, unit: &Unit, bill: &mut Bill<'_>) -> bool {
        let (mut found, mut began) = (false, cpu::tsc());
        // The unit's records have no segment: all that it serves is in its own.
        let segment = service.ports().segment_of(number);
        let lost = unit.take_faults(|fault| {
            found = true;
            let guest = self.tell(service, number, &Fault { source: fault.source.in_segment(segment), ..fault });
            let now = cpu::tsc();
            guest.into_iter().for_each(|guest| bill(guest, now.saturating_sub(began)));
            began = now;
        });
        if lost {
            self.once(&self.lost_told, "a remapping unit had more faults than it has records");
        }
        found || lost
    }

    /// Logs `what` once, because a guest's device can cause it at any rate.
    fn once(&self, told: &AtomicBool, what: &str) {
        if !told.swap(true, Ordering::Relaxed) {
            log::warn!("{what}; this is told of once");
        }
    }

    /// Logs a fault. Returns the guest that has caused it.
    fn tell(&self, service: &MachineService, unit: usize, fault: &Fault) -> Option<GuestId> {
        let whose = match fault.request {
            Request::Interrupt(index) => {
                service.refused_message(super::entry_index(unit, index), fault.source, fault.reason.0)
            }
            _ => None,
        };
        let of_source = || service.ports().guest_of((fault.source, fault.pasid.and_then(Pasid::new)));
        let guest = whose.map_or_else(of_source, |owner| Some(owner.guest));
        let culprit = culprit(fault.source, whose, of_source);
        if !self.may_tell((fault.source, guest, fault.reason.is_interrupt())) {
            return culprit;
        }
        let (sid, reason, text) = (fault.source, fault.reason.0, fault.reason.text());
        match fault.request {
            Request::Read(address) | Request::Write(address) => {
                let mut whose = String::new();
                if let Some(pasid) = fault.pasid {
                    let _ = write!(whose, " pasid={pasid:#x}");
                }
                if let Some(guest) = guest {
                    let _ = write!(whose, " guest={}", guest.0);
                }
                event!("fault kind=dma sid={sid} reason={reason:#x} why=\"{text}\" address={address:#x}{whose}");
            }
            Request::Interrupt(index) => {
                let whose = whose.map(attributed).unwrap_or_default();
                event!("fault kind=interrupt sid={sid} reason={reason:#x} why=\"{text}\" index={index}{whose}");
            }
        }
        culprit
    }

    /// Counts a fault. Returns whether it is to be logged. Faults after a guest has gone are counted with the guest's.
    fn may_tell(&self, key: FaultSource) -> bool {
        let (mut told, (source, guest, interrupt)) = (self.told.lock(), key);
        let same =
            |other: FaultSource| (other.0, other.2) == (source, interrupt) && (guest.is_none() || other.1 == guest);
        if let Some((_, count)) = told.iter_mut().find(|(other, _)| same(*other)) {
            *count = count.saturating_add(1);
            if *count == TOLD + 1 {
                let kind = if interrupt { "interrupt" } else { "DMA" };
                log::warn!("{source}: {TOLD} {kind} faults have been told of; more are counted only");
            }
            return *count <= TOLD;
        }
        let room = told.len() < FUNCTIONS;
        if room {
            told.push((key, 1));
        }
        room
    }
}

/// The guest that has caused a fault: the owner of the entry if the message came from the owner's own source, else who has the source. A message
/// can name anybody's entry.
fn culprit(source: Bdf, owner: Option<Attribution>, of_source: impl FnOnce() -> Option<GuestId>) -> Option<GuestId> {
    let own = owner.filter(|owner| owner.requester == source);
    own.map(|owner| owner.guest).or_else(of_source)
}

/// The entry's owner, as keys of an event.
pub fn attributed(owner: Attribution) -> String {
    let store = match owner.store {
        StoreName::Ims => "ims",
        StoreName::Msix => "msix",
        StoreName::Queue => "queue",
    };
    let mut text = String::new();
    let _ = write!(
        text,
        " guest={} device={} store={store} slot={}",
        owner.guest.0,
        Bdf(owner.device.0.into()),
        owner.slot
    );
    if let Some(cookie) = owner.cookie {
        let _ = write!(text, " cookie={cookie:#x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use hcall_abi::DeviceId;

    use super::*;

    #[test]
    fn a_forged_message_is_charged_to_who_sends_it_and_not_to_whose_entry_it_names() {
        let (own, foreign) = (Bdf::new(1, 0, 0), Bdf::new(2, 0, 0));
        let owner = Attribution {
            guest: GuestId(7),
            device: DeviceId(8),
            requester: own,
            store: StoreName::Ims,
            slot: 3,
            cookie: None,
        };
        assert_eq!(culprit(foreign, Some(owner), || Some(GuestId(1))), Some(GuestId(1)));
        assert_eq!(culprit(foreign, Some(owner), || None), None);
        assert_eq!(culprit(own, Some(owner), || None), Some(GuestId(7)), "one of several with this requester");
        assert_eq!(culprit(foreign, None, || Some(GuestId(1))), Some(GuestId(1)));
    }
}
