//! Tables of interrupt messages: the MSI-X table and the interrupt message store (IMS).
//!
//! Both have entries of four little-endian dwords, address low, address high, data and control; they differ in the control
//! dword's bits.

use crate::spec::slot;

/// A message: a dword written to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) address: u64,
    pub(crate) data: u32,
}

/// What became of an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Raised {
    /// It goes out now.
    Send(Message),
    /// The entry is masked; it goes out when it is unmasked.
    Pending,
}

#[derive(Clone, Copy)]
struct Slot {
    address_lo: u32,
    address_hi: u32,
    data: u32,
    ctrl: u32,
    pending: bool,
}

/// A slot after reset: zeros with the mask set.
const RESET: Slot = Slot { address_lo: 0, address_hi: 0, data: 0, ctrl: slot::MASK, pending: false };

impl Slot {
    fn message(&self) -> Message {
        // The two low bits of a message address are zero: it is a dword write (PCIe 6.1.4.3).
        let address = u64::from(self.address_hi) << 32 | u64::from(self.address_lo & !0b11);
        Message { address, data: self.data }
    }

    fn masked(&self) -> bool {
        self.ctrl & slot::MASK != 0
    }
}

/// A table of messages.
pub(crate) struct MessageTable {
    slots: Vec<Slot>,
    ctrl_writable: u32,
    pending_in_ctrl: bool,
}

impl MessageTable {
    /// An MSI-X table: only the mask bit of vector control is writable, pending bits are in an array of their own.
    pub(crate) fn msix(entries: usize) -> Self {
        Self { slots: vec![RESET; entries], ctrl_writable: slot::MASK, pending_in_ctrl: false }
    }

    /// An interrupt message store: control also has the pending bit and the PASID.
    pub(crate) fn ims(slots: usize) -> Self {
        let ctrl_writable = slot::MASK | slot::PASID_ENABLE | slot::PASID;
        Self { slots: vec![RESET; slots], ctrl_writable, pending_in_ctrl: true }
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn reset(&mut self) {
        self.slots.fill(RESET);
    }

    /// The dword at `offset` from the table's begin; `None` beyond its end.
    pub(crate) fn read(&self, offset: u64) -> Option<u32> {
        let entry = self.slots.get(usize::try_from(offset / slot::SIZE).ok()?)?;
        Some(match offset % slot::SIZE / 4 {
            0 => entry.address_lo,
            1 => entry.address_hi,
            2 => entry.data,
            _ if self.pending_in_ctrl && entry.pending => entry.ctrl | slot::PENDING,
            _ => entry.ctrl,
        })
    }

    /// Writes the dword at `offset`, and says which entry it belongs to: it may be ready to send now.
    pub(crate) fn write(&mut self, offset: u64, value: u32) -> Option<usize> {
        let index = usize::try_from(offset / slot::SIZE).ok()?;
        let entry = self.slots.get_mut(index)?;
        match offset % slot::SIZE / 4 {
            0 => entry.address_lo = value,
            1 => entry.address_hi = value,
            2 => entry.data = value,
            _ => entry.ctrl = value & self.ctrl_writable,
        }
        Some(index)
    }

    /// The PASID that entry `index` is bound to.
    pub(crate) fn pasid(&self, index: usize) -> Option<u32> {
        let ctrl = self.slots.get(index)?.ctrl;
        (ctrl & slot::PASID_ENABLE != 0).then_some(ctrl >> slot::PASID_SHIFT)
    }

    /// An interrupt for entry `index`; `hold` masks the whole table. `None` if there is no such entry.
    pub(crate) fn raise(&mut self, index: usize, hold: bool) -> Option<Raised> {
        let entry = self.slots.get_mut(index)?;
        if hold || entry.masked() {
            entry.pending = true;
            return Some(Raised::Pending);
        }
        Some(Raised::Send(entry.message()))
    }

    /// The message that entry `index` held back, if it is no longer masked.
    pub(crate) fn take_pending(&mut self, index: usize) -> Option<Message> {
        let entry = self.slots.get_mut(index)?;
        if !entry.pending || entry.masked() {
            return None;
        }
        entry.pending = false;
        Some(entry.message())
    }

    /// The pending bits of entries `first` to `first + 31`.
    pub(crate) fn pending_bits(&self, first: usize) -> u32 {
        let entries = self.slots.iter().skip(first).take(32);
        entries.enumerate().fold(0, |bits, (n, entry)| bits | u32::from(entry.pending) << n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_masked_after_reset() {
        let mut table = MessageTable::ims(2);
        assert_eq!(table.read(12), Some(1));
        table.write(12, 0);
        table.reset();
        assert_eq!(table.read(12), Some(1));
    }

    #[test]
    fn a_masked_interrupt_is_pending_until_unmask_and_then_sent_once() {
        let mut table = MessageTable::ims(2);
        table.write(0x10, 0xfee0_1004);
        table.write(0x18, 0x55);
        assert_eq!(table.raise(1, false), Some(Raised::Pending));
        assert_eq!(table.read(0x1c), Some(slot::MASK | slot::PENDING));
        assert_eq!(table.take_pending(1), None);
        table.write(0x1c, 0);
        assert_eq!(table.take_pending(1), Some(Message { address: 0xfee0_1004, data: 0x55 }));
        assert_eq!(table.take_pending(1), None);
        assert_eq!(table.read(0x1c), Some(0));
    }

    #[test]
    fn software_writes_neither_pending_nor_reserved_control_bits() {
        let mut table = MessageTable::ims(1);
        table.write(12, !0);
        assert_eq!(table.read(12), Some(0xffff_f009));
        let mut msix = MessageTable::msix(1);
        msix.write(12, !0);
        assert_eq!(msix.read(12), Some(1));
    }

    #[test]
    fn a_held_table_keeps_the_interrupt() {
        let mut table = MessageTable::msix(33);
        table.write(32 * 16 + 12, 0);
        assert_eq!(table.raise(32, true), Some(Raised::Pending));
        assert_eq!((table.pending_bits(0), table.pending_bits(32)), (0, 1));
        assert!(table.take_pending(32).is_some());
        assert_eq!(table.pending_bits(32), 0);
    }

    #[test]
    fn beyond_the_end_there_is_nothing() {
        let mut table = MessageTable::ims(1);
        assert_eq!(table.read(16), None);
        assert_eq!(table.write(16, 0), None);
        assert_eq!(table.raise(1, false), None);
    }
}
