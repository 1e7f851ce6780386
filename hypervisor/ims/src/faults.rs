//! Faults of a guest's slots. They are kept until the guest reads them.

use hcall_abi::{DeviceId, FaultKind, FaultRecord};

use super::spec::{GuestId, StoreName};
use crate::{addr::Bdf, sync::Mutex};

/// Faults that are kept for a guest. The oldest are dropped when more come.
const KEPT: usize = 64;

/// The owner of an entry, for reports of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attribution {
    /// The guest.
    pub guest: GuestId,
    /// The device, as the guest names it.
    pub device: DeviceId,
    /// The source that the entry accepts.
    pub requester: Bdf,
    /// The store.
    pub store: StoreName,
    /// The slot in it.
    pub slot: u16,
    /// The guest's cookie for the interrupt, if the guest mapped the slot by a call.
    pub cookie: Option<u64>,
}

/// A guest's faults, oldest first.
pub struct FaultRing(Mutex<Ring>);

struct Ring {
    records: [Option<FaultRecord>; KEPT],
    /// The place of the oldest fault, and the number of faults.
    first: usize,
    count: usize,
    /// The number of faults that were dropped since the guest last read one.
    lost: u32,
}

impl Default for FaultRing {
    fn default() -> Self {
        Self(Mutex::new(Ring { records: [None; KEPT], first: 0, count: 0, lost: 0 }))
    }
}

impl FaultRing {
    /// Adds a fault of a slot. `foreign` is set if the message came from another function than the slot's.
    pub fn add(&self, slot: &Attribution, kind: FaultKind, foreign: bool) {
        let Attribution { device, store, slot, cookie, .. } = *slot;
        let (cookie, store) = (cookie.unwrap_or(0), store.into());
        self.push(FaultRecord { cookie, device, slot, store, kind, foreign, lost: 0 });
    }

    /// Adds a fault. If the ring is full, the oldest one is dropped.
    fn push(&self, record: FaultRecord) {
        let mut ring = self.0.lock();
        if ring.count == KEPT {
            ring.drop_first(1);
            ring.lost = ring.lost.saturating_add(1);
        }
        let place = (ring.first + ring.count) % KEPT;
        ring.records[place] = Some(record);
        ring.count += 1;
    }

    /// Passes up to `most` of the oldest faults to `take`, and removes them if `take` succeeds. Returns how many there were.
    pub fn take<E>(
        &self,
        most: usize,
        take: impl FnOnce(&mut dyn Iterator<Item = FaultRecord>) -> Result<(), E>,
    ) -> Result<usize, E> {
        let mut ring = self.0.lock();
        let (count, lost) = (ring.count.min(most), ring.lost);
        let mut records = (0..count).filter_map(|n| {
            let record = ring.records[(ring.first + n) % KEPT]?;
            Some(FaultRecord { lost: if n == 0 { lost } else { 0 }, ..record })
        });
        take(&mut records)?;
        ring.drop_first(count);
        if count != 0 {
            ring.lost = 0;
        }
        Ok(count)
    }
}

impl Ring {
    fn drop_first(&mut self, count: usize) {
        self.first = (self.first + count) % KEPT;
        self.count -= count;
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use hcall_abi::{DeviceId, FaultStore};

    use super::*;

    fn fault(slot: u16) -> FaultRecord {
        FaultRecord {
            cookie: 0,
            device: DeviceId(0),
            slot,
            store: FaultStore::Array,
            kind: FaultKind::Storm,
            foreign: false,
            lost: 0,
        }
    }

    fn read(ring: &FaultRing, most: usize) -> Vec<(u16, u32)> {
        let mut seen = Vec::new();
        let all = |records: &mut dyn Iterator<Item = FaultRecord>| {
            seen.extend(records.map(|record| (record.slot, record.lost)));
            Ok::<_, ()>(())
        };
        let count = ring.take(most, all).unwrap();
        assert_eq!(count, seen.len());
        seen
    }

    #[test]
    fn the_oldest_come_first_and_what_was_lost_is_told_once() {
        let ring = FaultRing::default();
        (0..70).for_each(|slot| ring.push(fault(slot)));
        assert_eq!(read(&ring, 2), [(6, 6), (7, 0)]);
        assert_eq!(read(&ring, 0), []);
        let rest = read(&ring, 100);
        assert_eq!((rest.len(), rest[0], rest[61]), (62, (8, 0), (69, 0)));
        assert_eq!(read(&ring, 100), []);
    }

    #[test]
    fn what_could_not_be_given_is_kept() {
        let ring = FaultRing::default();
        ring.push(fault(3));
        assert_eq!(ring.take(5, |_| Err("no memory")), Err("no memory"));
        assert_eq!(read(&ring, 5), [(3, 0)]);
    }
}
