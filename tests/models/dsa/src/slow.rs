//! A store with slow access: its slots are not in BAR0, but behind a few registers there. It is not Intel's: it is an example for Linux's
//! `irq_bus_lock`.
//!
//! | offset | register |
//! |---|---|
//! | 0x00 | slot |
//! | 0x04 | which dwords of the slot are written (bit 0 address low, 1 address high, 2 data, 3 control); none: the slot is read |
//! | 0x08 | writing 1 starts the command; bit 0 reads as 1 while it is under way, bit 1 as 1 when there was no such slot |
//! | 0x0c | 1: there is such a store; without it all of this reads as 0 |
//! | 0x10 to 0x1c | the dwords |

/// Reads of the status register for which a command is under way.
const BUSY_READS: u32 = 3;

const SLOT: u64 = 0x00;
const MASK: u64 = 0x04;
const COMMAND: u64 = 0x08;
const PRESENT: u64 = 0x0c;
const DWORDS: u64 = 0x10;
/// Bytes of the registers.
pub(crate) const SIZE: u64 = 0x20;

/// What software wants of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// The slot's dwords are to be put into the registers.
    Read(u64),
    /// These dwords of the slot are to be written.
    Write(u64, [Option<u32>; 4]),
}

/// The registers.
#[derive(Default)]
pub(crate) struct SlowStore {
    slot: u32,
    mask: u32,
    dwords: [u32; 4],
    busy: std::cell::Cell<u32>,
    failed: bool,
}

impl SlowStore {
    pub(crate) fn read(&self, offset: u64) -> u32 {
        match offset {
            SLOT => self.slot,
            MASK => self.mask,
            COMMAND => {
                let busy = self.busy.get();
                self.busy.set(busy.saturating_sub(1));
                u32::from(busy != 0) | u32::from(self.failed) << 1
            }
            PRESENT => 1,
            DWORDS..SIZE => self.dwords[((offset - DWORDS) / 4) as usize],
            _ => 0,
        }
    }

    /// Software's write. While a command is under way nothing is taken.
    pub(crate) fn write(&mut self, offset: u64, value: u32) -> Option<Request> {
        if self.busy.get() != 0 {
            return None;
        }
        match offset {
            SLOT => self.slot = value,
            MASK => self.mask = value & 0xf,
            DWORDS..SIZE => self.dwords[((offset - DWORDS) / 4) as usize] = value,
            COMMAND if value == 1 => {
                self.busy.set(BUSY_READS);
                return Some(self.request());
            }
            _ => {}
        }
        None
    }

    fn request(&self) -> Request {
        let slot = self.slot.into();
        if self.mask == 0 {
            return Request::Read(slot);
        }
        let dword = |n: usize| (self.mask >> n & 1 != 0).then_some(self.dwords[n]);
        Request::Write(slot, std::array::from_fn(dword))
    }

    /// A read is done; `None` if there is no such slot.
    pub(crate) fn done(&mut self, dwords: Option<[u32; 4]>) {
        self.failed = dwords.is_none();
        if let Some(dwords) = dwords {
            self.dwords = dwords;
        }
    }
}
