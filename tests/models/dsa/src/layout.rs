//! The places of tables in BAR0. Software finds them by the TABLE OFFSETS register and the MSI-X capability.

use crate::queue_store;
use crate::slow;
use crate::spec::{GROUPS, WQS, register, slot};

/// Bytes of an entry of the group and of the work queue configuration.
const CONFIGURATION: u64 = 64;
/// Bytes of an MSI-X permission.
const PERMISSION: u64 = 8;

/// Offsets in BAR0: multiples of 256, but for the pending bits, which need a multiple of 8 (PCIe 7.7.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of BAR0, a power of two.
    pub bytes: u32,
    /// MSI-X permissions, 8 bytes each.
    pub msix_permissions: u64,
    /// Group configuration, 64 bytes each.
    pub groups: u64,
    /// Work queue configuration, 64 bytes each.
    pub queues: u64,
    /// Performance monitor: absent, all its capabilities read 0.
    pub perfmon: u64,
    /// The MSI-X table, 16 bytes each.
    pub msix: u64,
    /// The MSI-X pending bits.
    pub pending_bits: u64,
    /// The interrupt message store, 16 bytes each.
    pub ims: u64,
    /// Not Intel's: the way to a store that is slow.
    pub slow_store: Option<u64>,
    /// Not Intel's: where work queues have stores in system memory.
    pub queue_stores: Option<u64>,
}

/// What an offset of BAR0 belongs to, and the offset there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Register(u64),
    Permission(u64),
    Group(u64),
    Queue(u64),
    Msix(u64),
    PendingBits(u64),
    Ims(u64),
    SlowStore(u64),
    QueueStore(u64),
    Nothing,
}

/// Where a table begins, its bytes, and what is there.
type Table = (Option<u64>, u64, fn(u64) -> Place);

impl Layout {
    /// A page for every table, and room for as many slots as GENCAP can tell of.
    pub const GENEROUS: Self = Self {
        bytes: 512 * 1024,
        groups: 0x1000,
        queues: 0x2000,
        msix_permissions: 0x3000,
        perfmon: 0x3800,
        msix: 0x4000,
        pending_bits: 0x5000,
        slow_store: Some(0x6000),
        queue_stores: Some(0x7000),
        ims: 0x4_0000,
    };

    /// As Sapphire Rapids has it: `idxd`'s messages of 8086:0b25 in the kernel log, and `lspci`.
    pub const SAPPHIRE_RAPIDS: Self = Self {
        bytes: 64 * 1024,
        msix_permissions: 0x200,
        groups: 0x300,
        queues: 0x400,
        perfmon: 0x1000,
        msix: 0x2000,
        pending_bits: 0x3000,
        ims: 0x4000,
        slow_store: None,
        queue_stores: None,
    };

    /// The same, but with pending bits and group configuration in the page of the MSI-X table. PCIe advises against that (7.7.2.2), and
    /// devices of other makers do it.
    pub const CRAMPED: Self = Self { groups: 0x2300, pending_bits: 0x2098, ..Self::SAPPHIRE_RAPIDS };

    /// What is at `offset` of a device with so many MSI-X entries and slots.
    pub(crate) fn place(&self, offset: u64, msix_entries: usize, slots: usize) -> Place {
        let (entries, slots, queues) = (msix_entries as u64, slots as u64, WQS as u64);
        let tables: [Table; 9] = [
            (Some(0), register::END, Place::Register),
            (Some(self.msix_permissions), entries * PERMISSION, Place::Permission),
            (Some(self.groups), GROUPS as u64 * CONFIGURATION, Place::Group),
            (Some(self.queues), queues * CONFIGURATION, Place::Queue),
            (Some(self.msix), entries * slot::SIZE, Place::Msix),
            (Some(self.pending_bits), entries.div_ceil(64) * 8, Place::PendingBits),
            (Some(self.ims), slots * slot::SIZE, Place::Ims),
            (self.slow_store, slow::SIZE, Place::SlowStore),
            (self.queue_stores, queues * queue_store::STRIDE, Place::QueueStore),
        ];
        let found = tables.into_iter().find_map(|(start, len, place)| {
            let within = offset.checked_sub(start?)?;
            (within < len).then(|| place(within))
        });
        found.unwrap_or(Place::Nothing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_table_of_sapphire_rapids_is_where_idxd_finds_it() {
        let place = |offset| Layout::SAPPHIRE_RAPIDS.place(offset, 9, 2048);
        assert_eq!((place(0xff), place(0x100)), (Place::Register(0xff), Place::Nothing));
        assert_eq!((place(0x240), place(0x248)), (Place::Permission(0x40), Place::Nothing));
        assert_eq!((place(0x300), place(0x3fc), place(0x400)), (Place::Group(0), Place::Group(0xfc), Place::Queue(0)));
        assert_eq!((place(0x5fc), place(0x600), place(0x1000)), (Place::Queue(0x1fc), Place::Nothing, Place::Nothing));
        assert_eq!((place(0x2080), place(0x2090)), (Place::Msix(0x80), Place::Nothing));
        assert_eq!((place(0x3004), place(0x3008)), (Place::PendingBits(4), Place::Nothing));
        assert_eq!((place(0xbffc), place(0xc000)), (Place::Ims(0x7ffc), Place::Nothing));
        assert_eq!(place(u64::MAX), Place::Nothing);
    }

    #[test]
    fn tables_do_not_overlap_and_lie_in_the_bar() {
        let all = [Layout::SAPPHIRE_RAPIDS, Layout::CRAMPED].map(|layout| (layout, 9, 2048));
        for (layout, entries, slots) in all.into_iter().chain([(Layout::GENEROUS, 64, 63 * 256)]) {
            let starts = (0..u64::from(layout.bytes)).step_by(4).filter(|offset| {
                use Place::*;
                let place = layout.place(*offset, entries, slots);
                matches!(place, Register(0) | Permission(0) | Group(0) | Queue(0) | Msix(0) | PendingBits(0) | Ims(0))
                    || matches!(place, SlowStore(0) | QueueStore(0))
            });
            let not_intels = usize::from(layout.slow_store.is_some()) + usize::from(layout.queue_stores.is_some());
            assert_eq!(starts.count(), 7 + not_intels);
            let end = layout.ims + slots as u64 * 16;
            assert!(
                end <= layout.bytes.into() && layout.place(end - 4, entries, slots) == Place::Ims(end - 4 - layout.ims)
            );
        }
    }
}
