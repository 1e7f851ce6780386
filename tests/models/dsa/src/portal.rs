//! Portals: they assemble descriptors from stores.
//!
//! A descriptor is one write of 64 bytes, as MOVDIR64B and ENQCMD make it (Linux: `iosubmit_cmds512`, "atomically submit 64-byte work
//! descriptors"). Where a processor or a virtual machine monitor cannot make such writes, a device can be made that takes pieces.

use crate::Table;
use crate::spec::{PORTAL_SIZE, PORTALS_PER_WQ, WQS};

/// What became of a write to a portal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortalWrite {
    /// Not a whole descriptor yet, or not a valid part of one.
    Partial,
    /// The descriptor is in the work queue.
    Queued,
    /// A shared work queue is at its threshold: hardware would answer ENQCMD with "retry".
    Retry,
    /// The work queue is disabled, or a dedicated one is full.
    Dropped,
}

/// A descriptor on its way into a work queue.
#[derive(Clone, Copy)]
pub(crate) struct Submission {
    pub(crate) queue: usize,
    /// Where its interrupt handle points.
    pub(crate) table: Table,
    /// It came through a limited portal: the threshold applies.
    pub(crate) limited: bool,
    pub(crate) bytes: [u8; 64],
}

#[derive(Clone, Copy)]
struct Collector {
    bytes: [u8; 64],
    /// The offset that the next store must have.
    next: usize,
}

/// The portal region. Where pieces are taken, each page collects them on its own.
pub(crate) struct Portals {
    pages: [Collector; WQS * PORTALS_PER_WQ as usize],
    pieces: bool,
}

impl Collector {
    /// Takes a store at `at` (0 to 63); true when the descriptor is whole. A store at 0 begins anew; one out of turn loses all.
    fn store(&mut self, at: usize, data: &[u8]) -> bool {
        let expected = at == 0 || at == self.next;
        let end = at + data.len();
        let whole_quadwords = !data.is_empty() && data.len().is_multiple_of(8) && at.is_multiple_of(8);
        match self.bytes.get_mut(at..end) {
            Some(place) if expected && whole_quadwords => place.copy_from_slice(data),
            _ => {
                self.next = 0;
                return false;
            }
        }
        self.next = end % 64;
        end == 64
    }
}

impl Portals {
    /// Portals that nothing was written to; whether they take pieces.
    pub(crate) fn new(pieces: bool) -> Self {
        Self { pages: [Collector { bytes: [0; 64], next: 0 }; WQS * PORTALS_PER_WQ as usize], pieces }
    }

    /// A store at `offset` of the region: the descriptor that it completes.
    ///
    /// MOVDIR64B and ENQCMD write 64 bytes, at any 64-byte boundary of the page; pieces must lie at the page's begin.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> Option<Submission> {
        let page = usize::try_from(offset / PORTAL_SIZE).ok()?;
        let collector = self.pages.get_mut(page)?;
        let within = (offset % PORTAL_SIZE) as usize;
        let is_whole = data.len() == 64 && within.is_multiple_of(64);
        if !is_whole && !self.pieces || !collector.store(if is_whole { 0 } else { within }, data) {
            return None;
        }
        let kind = page % PORTALS_PER_WQ as usize;
        Some(Submission {
            queue: page / PORTALS_PER_WQ as usize,
            table: if kind < 2 { Table::Msix } else { Table::Ims },
            limited: kind % 2 == 1,
            bytes: collector.bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_stores_in_order_make_a_descriptor() {
        let mut portals = Portals::new(true);
        let offset = 3 * 0x4000 + 0x3000;
        for n in 0..7u64 {
            assert!(portals.write(offset + n * 8, &(n + 1).to_le_bytes()).is_none());
        }
        let made = portals.write(offset + 56, &8u64.to_le_bytes()).unwrap();
        assert_eq!((made.queue, made.table, made.limited), (3, Table::Ims, true));
        assert_eq!((made.bytes[0], made.bytes[56]), (1, 8));
        assert!(portals.write(offset + 56, &[0; 8]).is_none(), "the next one begins at 0");
    }

    #[test]
    fn a_real_portal_takes_one_write_of_64_bytes_and_nothing_else() {
        let mut portals = Portals::new(false);
        for width in [1, 2, 4, 8, 16, 32] {
            for at in (0..64).step_by(width) {
                assert!(portals.write(at, &vec![1; width]).is_none(), "{width} bytes at {at}");
            }
        }
        assert!(portals.write(32, &[1; 64]).is_none(), "across a boundary");
        assert!(portals.write(0, &[1; 128]).is_none());
        assert_eq!(portals.write(64, &[2; 64]).map(|made| made.bytes), Some([2; 64]));
    }

    #[test]
    fn a_whole_write_works_anywhere_in_the_page_and_names_its_table() {
        let mut portals = Portals::new(false);
        let made = portals.write(0x4000 + 0x1040, &[7; 64]).unwrap();
        assert_eq!((made.queue, made.table, made.limited), (1, Table::Msix, true));
        let made = portals.write(0x2fc0, &[7; 64]).unwrap();
        assert_eq!((made.queue, made.table, made.limited), (0, Table::Ims, false));
    }

    #[test]
    fn stores_out_of_turn_make_nothing() {
        let mut portals = Portals::new(true);
        for at in [0, 8, 24, 32, 40, 48, 56] {
            assert!(portals.write(at, &[0; 8]).is_none());
        }
        for at in (0..64).step_by(4) {
            assert!(portals.write(at, &[0; 4]).is_none());
        }
        assert!(portals.write(4, &[0; 64]).is_none());
        assert!(portals.write(0, &[]).is_none());
        assert!(portals.write(0, &[0; 128]).is_none());
        assert!(portals.write(0x2_0000, &[0; 64]).is_none());
    }

    #[test]
    fn two_pages_do_not_disturb_each_other() {
        let mut portals = Portals::new(true);
        for at in (0..56).step_by(8) {
            assert!(portals.write(at, &[1; 8]).is_none());
            assert!(portals.write(0x4000 + at, &[2; 8]).is_none());
        }
        assert_eq!(portals.write(56, &[1; 8]).map(|made| made.bytes), Some([1; 64]));
        assert_eq!(portals.write(0x4000 + 56, &[2; 8]).map(|made| made.bytes), Some([2; 64]));
    }
}
