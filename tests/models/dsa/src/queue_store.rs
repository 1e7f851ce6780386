//! Messages in system memory: a work queue may be given a store there, and its descriptors' handles name slots of it. Not Intel's: an
//! example of what the kernel's discussion of 2020 calls "queue memory".
//!
//! A slot is as in the device: `address_lo, address_hi, data, ctrl`, 16 bytes; ctrl bit 0 masks, bit 1 is set by the device when an
//! interrupt came meanwhile. The device reads a slot whenever it has something to send, with its own requester ID. Each work queue has
//! four registers:
//!
//! | offset | register |
//! |---|---|
//! | 0x00, 0x04 | address of the first slot, aligned to 16 |
//! | 0x08 | number of slots; 0: the queue uses the store in the device |
//! | 0x0c | writing a slot's number has the device look at it again: what was pending and is not masked any more is sent |

/// Bytes of a work queue's registers.
pub(crate) const STRIDE: u64 = 0x10;
const BYTES: u64 = 16;

/// ctrl: no message is sent.
const MASK: u32 = 1 << 0;
/// ctrl: an interrupt came while the slot was masked.
const PENDING: u32 = 1 << 1;
/// Where ctrl is in a slot.
const CTRL: u64 = 12;

use crate::messages::Message;
use crate::{Fault, Upstream};

/// A work queue's store.
#[derive(Clone, Copy, Default)]
pub(crate) struct QueueStore {
    base: u64,
    slots: u32,
}

impl QueueStore {
    /// How many slots there are; none if the queue uses the store in the device.
    pub(crate) fn slots(&self) -> Option<usize> {
        (self.slots != 0).then_some(self.slots as usize)
    }

    pub(crate) fn read(&self, offset: u64) -> u32 {
        match offset {
            0 => self.base as u32,
            4 => (self.base >> 32) as u32,
            8 => self.slots,
            _ => 0,
        }
    }

    /// Software's write. Which slot is to be looked at again.
    pub(crate) fn write(&mut self, offset: u64, value: u32) -> Option<u32> {
        match offset {
            0 => self.base = self.base & !0xffff_ffff | u64::from(value & !0xf),
            4 => self.base = self.base & 0xffff_ffff | u64::from(value) << 32,
            8 => self.slots = value & 0xffff,
            _ => return Some(value),
        }
        None
    }

    /// An interrupt for a slot, or only a look at what is pending there. The message to send now, if there is one.
    pub(crate) fn raise(&self, slot: u32, again: bool, up: &mut dyn Upstream) -> Result<Option<Message>, Fault> {
        if slot >= self.slots {
            return Ok(None);
        }
        let at = self.base.wrapping_add(u64::from(slot) * BYTES);
        let mut bytes = [0; BYTES as usize];
        up.read(None, at, &mut bytes)?;
        let [lo, hi, data, ctrl] = [0, 4, 8, 12].map(|at| {
            let dword = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
            u32::from_le_bytes(dword)
        });
        if again && ctrl & PENDING == 0 {
            return Ok(None);
        }
        let pending = if ctrl & MASK != 0 { PENDING } else { 0 };
        if ctrl & PENDING != pending {
            up.write(None, at + CTRL, &(ctrl & !PENDING | pending).to_le_bytes())?;
        }
        let address = u64::from(hi) << 32 | u64::from(lo & !0b11);
        Ok((pending == 0).then_some(Message { address, data }))
    }
}

#[cfg(test)]
mod tests {
    use crate::PortalWrite;
    use crate::testing::{Build, device, nop};

    #[test]
    fn feature_store_queue_a_completion_reads_its_message_in_memory_when_it_is_to_be_sent() {
        let (mut dsa, mut machine) = device();
        machine.ready(&mut dsa);
        for (offset, value) in [(0, 0x9000), (4, 0), (8, 4)] {
            dsa.bar0_write(0x7000 + offset, 4, value, &mut machine);
        }
        let slot = |data: u32, ctrl: u32| -> Vec<u8> {
            [0xfee0_1000, 0, data, ctrl].into_iter().flat_map(u32::to_le_bytes).collect()
        };
        let fire = |dsa: &mut crate::Dsa, machine: &mut crate::testing::Machine, handle| {
            let descriptor = Build { flags: 0x1c, completion: 0x8000, handle, ..nop() };
            assert_eq!(dsa.portal_write(0x2000, &descriptor.bytes()), PortalWrite::Queued);
            while dsa.work(machine) {}
            machine.get(0x8000, 1)[0]
        };
        machine.put(0x9030, &slot(0x41, 0));
        assert_eq!(fire(&mut dsa, &mut machine, 3), 1);
        machine.put(0x9030, &slot(0x42, 1));
        assert_eq!(fire(&mut dsa, &mut machine, 3), 1);
        assert_eq!(machine.messages(), [(0xfee0_1000, 0x41)]);
        assert_eq!(machine.get(0x903c, 1), [3], "it is pending");
        dsa.bar0_write(0x700c, 4, 3, &mut machine);
        assert_eq!(machine.messages().len(), 1, "it is masked still");
        machine.put(0x903c, &[2]);
        dsa.bar0_write(0x700c, 4, 3, &mut machine);
        dsa.bar0_write(0x700c, 4, 3, &mut machine);
        assert_eq!(machine.messages(), [(0xfee0_1000, 0x41), (0xfee0_1000, 0x42)], "once");
        assert_eq!(machine.get(0x903c, 1), [0]);
        assert_eq!(fire(&mut dsa, &mut machine, 4), 0x19, "there are four");
        machine.refuse_page(0x9000);
        assert_eq!((fire(&mut dsa, &mut machine, 3), dsa.stats().faults), (1, 1));
    }
}
