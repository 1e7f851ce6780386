//! The slots of a store in memory.

use core::ptr::NonNull;

pub use hcall_abi::slot::{CONTROL_MASK, CONTROL_PASID_ENABLE, CONTROL_PASID_SHIFT, CONTROL_PENDING};

/// The dwords of a slot, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// Message address 31:0.
    AddressLo = 0,
    /// Message address 63:32.
    AddressHi = 1,
    /// Message data.
    Data = 2,
    /// Control: bit 0 mask, bit 1 pending (read-only), bit 3 PASID enable, bits 31:12 PASID.
    Control = 3,
}

impl Field {
    /// All of them, in their order.
    pub const ALL: [Self; 4] = [Self::AddressLo, Self::AddressHi, Self::Data, Self::Control];
}

/// A store of 16-byte slots.
pub trait Store {
    /// How many slots it has.
    fn slots(&self) -> u32;
    /// Reads a dword. All ones from a slot that is not there.
    fn read(&self, slot: u16, field: Field) -> u32;
    /// Writes a dword. A slot that is not there is left alone.
    fn write(&mut self, slot: u16, field: Field, value: u32);
}

/// A store in device memory.
#[derive(Debug)]
pub struct MmioStore {
    base: NonNull<[u32; 4]>,
    slots: u32,
}

// SAFETY: the store owns its memory (`new`), and device memory is the same from every processor.
unsafe impl Send for MmioStore {}

impl MmioStore {
    /// The store of `slots` slots at `base`.
    ///
    /// # Safety
    /// `base` points to `slots` slots of device memory, mapped uncached and aligned to a dword, for as long as the store is
    /// used; nobody else writes the slots that this store's user owns.
    pub const unsafe fn new(base: NonNull<[u32; 4]>, slots: u32) -> Self {
        Self { base, slots }
    }

    fn dword(&self, slot: u16, field: Field) -> Option<NonNull<u32>> {
        if u32::from(slot) >= self.slots {
            return None;
        }
        // SAFETY: the slot lies in the store (checked above), which lies in one mapping (`new`).
        Some(unsafe { self.base.add(usize::from(slot)).cast::<u32>().add(field as usize) })
    }
}

impl Store for MmioStore {
    fn slots(&self) -> u32 {
        self.slots
    }

    fn read(&self, slot: u16, field: Field) -> u32 {
        // SAFETY: `dword` gives addresses in the mapped store only.
        self.dword(slot, field).map_or(!0, |dword| unsafe { dword.read_volatile() })
    }

    fn write(&mut self, slot: u16, field: Field, value: u32) {
        if let Some(dword) = self.dword(slot, field) {
            // SAFETY: `dword` gives addresses in the mapped store only.
            unsafe { dword.write_volatile(value) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dwords_lie_in_their_places_and_not_beyond_the_end() {
        let mut memory = [[0u32; 4]; 3];
        // SAFETY: two slots of an array of three, used by nobody else meanwhile.
        let mut store = unsafe { MmioStore::new(NonNull::from(&mut memory).cast(), 2) };
        for (n, field) in [Field::AddressLo, Field::AddressHi, Field::Data, Field::Control].into_iter().enumerate() {
            store.write(1, field, 10 + n as u32);
            assert_eq!(store.read(1, field), 10 + n as u32);
        }
        store.write(2, Field::Data, 99);
        assert_eq!(store.read(2, Field::Data), !0);
        assert_eq!(memory, [[0; 4], [10, 11, 12, 13], [0; 4]]);
    }
}
