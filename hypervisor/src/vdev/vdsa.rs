//! A virtual function of a DSA: one work queue of the parent function, with emulated registers ([`spec`] has them).
//!
//! It is a device that Linux calls not configurable (GENCAP.config_en = 0): one group with one engine and one dedicated work queue, whose
//! configuration can be read and not changed. It reports no interrupt message store. The guest gets handles for its MSI-X vectors by
//! "request interrupt handle", except for vector 0, which is for command completions and errors.
//!
//! The registers are a page that always holds the values that reads must return, to be mapped read-only into the guest. Writes come through
//! [`VirtualDsa::write`].

mod commands;
pub mod spec;

use alloc::{boxed::Box, vec, vec::Vec};

use bit_field::BitField;

use self::{
    commands::{COMMANDS, CommandProgress},
    spec::{
        CMD, CMDCAP, CMDSTS, ENGCAP, GENCAP, GENCAP_BATCH, GENCAP_COMMANDS, GENCAP_TRANSFER, GENCTRL, GENCTRL_ERROR,
        GENCTRL_HALT, GENSTS, GROUP_ENGINES, GRPCAP, INTCAUSE, INTCAUSE_ERROR, INTCAUSE_HANDLES_REVOKED, OFFSET_GROUPS,
        OFFSET_PERMISSIONS, OFFSET_QUEUES, OFFSET_UNIT, OPCAP, QUEUE_DEDICATED, QUEUE_ENABLED, QUEUE_LIMITS,
        QUEUE_MODE, QUEUE_STATE, SWERR, SWERR_OVERFLOW, SWERR_PASID, SWERR_QUEUE, SWERR_VALID, TABLE_OFFSETS, VERSION,
        WQCAP,
    },
};
pub use commands::{CommandResult, Step};

/// Where things lie in BAR 0: registers with the configuration of groups and work queues, pending bits, MSI-X permissions, MSI-X table.
/// Each has pages of its own.
pub const REGISTERS: u32 = 0;
/// Pending bits.
pub const PENDING_BITS: u32 = 0x1000;
/// MSI-X permissions: of PASIDs, which the guest has none of. They read as zero.
pub const PERMISSIONS: u32 = 0x4000;
/// The MSI-X table.
pub const TABLE: u32 = 0x8000;
/// Bytes of BAR 0.
pub const BAR0_SIZE: u64 = 0x1_0000;
/// Bytes of BAR 2: a work queue's portals. Only the first two, those for MSI-X, exist.
pub const BAR2_SIZE: u64 = 0x4000;

/// Tables behind the registers, in the page that the guest reads.
const GROUPS: usize = 0x400;
const QUEUES: usize = 0x500;

/// GENCAP: overlapping copies, cache control for memory and for flushes are as in the parent. CMDCAP always exists, because a vector's
/// handle is a slot of the parent and hardly ever the vector's own number: the guest has to request it, whether the parent has handles or
/// not. Blocking on page faults, configuration and a message store are not offered.
const GENCAP_PARENTS: u64 = 0b1110;
/// The largest transfer and the largest batch, as powers of two: the defaults of Linux's driver (`WQ_DEFAULT_MAX_XFER`,
/// `WQ_DEFAULT_MAX_BATCH`). The parent carries out one command for all functions at a time, and draining a queue takes as long as its
/// descriptors, so this bounds the wait of other functions' commands.
const MOST: (u64, u64) = (21, 5);
/// WQCAP: one queue whose configuration has 64 bytes, dedicated.
const WQCAP_ONE: u64 = 1 << 16 | 1 << 24 | 1 << 49;
const GENCTRL_WRITABLE: u32 = GENCTRL_ERROR | GENCTRL_HALT;
/// What is fixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The parent's GENCAP.
    pub gencap: u64,
    /// The parent's OPCAP.
    pub opcap: [u64; 4],
    /// Descriptors that the work queue holds.
    pub queue_size: u16,
    /// Vectors, 1 to [`MOST_MSIX`](super::pci::MOST_MSIX).
    pub vectors: u16,
}

/// A page of registers.
#[repr(C, align(4096))]
struct RegisterPage([u32; 1024]);

/// The effect of a write that the caller has to carry out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// The function was reset, so its pending interrupts have to be dropped. The MSI-X table stays, because it belongs to the PCI function.
    pub reset: bool,
    /// Vector 0 has to be signalled.
    pub signal: bool,
    /// The queue had to stop, and the parent has not stopped it.
    pub is_stuck: bool,
}

impl Effect {
    /// Both.
    const fn and(self, other: Self) -> Self {
        Self {
            reset: self.reset || other.reset,
            signal: self.signal || other.signal,
            is_stuck: self.is_stuck || other.is_stuck,
        }
    }
}

/// The handle by which a descriptor raises a vector's slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Handle {
    number: u16,
    /// Whether the guest has the handle. A handle that the guest does not have any more is kept, and need not be requested again.
    is_out: bool,
}

/// The state of the function's work queue in the parent, as far as the parent has reported it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum QueueState {
    /// It takes no descriptors.
    Disabled,
    /// It takes descriptors.
    Enabled,
    /// The parent has not finished a command to enable or disable the queue in time, and may still carry that command out. The queue counts as
    /// enabled, and is disabled before it is enabled again.
    Unknown,
}

/// A virtual function.
pub struct VirtualDsa {
    page: Box<RegisterPage>,
    shape: Shape,
    bus_master: bool,
    enabled: bool,
    queue: QueueState,
    genctrl: u32,
    intcause: u32,
    command: u32,
    command_status: u32,
    errors: [u64; 4],
    /// The handles that the parent has said, by their vectors.
    handles: Vec<Option<Handle>>,
    progress: CommandProgress,
}

impl VirtualDsa {
    /// As after reset.
    pub fn new(shape: Shape) -> Self {
        let mut new = Self {
            page: Box::new(RegisterPage([0; 1024])),
            shape,
            bus_master: false,
            enabled: false,
            queue: QueueState::Disabled,
            genctrl: 0,
            intcause: 0,
            command: 0,
            command_status: 0,
            errors: [0; 4],
            handles: vec![None; shape.vectors.into()],
            progress: CommandProgress::default(),
        };
        new.show_capabilities();
        new.show();
        new
    }

    /// The bytes of the page to map read-only at [`REGISTERS`].
    pub fn page(&self) -> &[u32; 1024] {
        &self.page.0
    }

    /// Whether the parent may take descriptors for the function: always, unless its queue is known to be disabled.
    pub const fn may_take_work(&self) -> bool {
        self.queue.may_take_work()
    }

    fn put(&mut self, offset: usize, value: u64) {
        self.put32(offset, value as u32);
        self.put32(offset + 4, (value >> 32) as u32);
    }

    fn put32(&mut self, offset: usize, value: u32) {
        if let Some(place) = self.page.0.get_mut(offset / 4) {
            *place = value;
        }
    }

    fn show_capabilities(&mut self) {
        let Shape { gencap, opcap, queue_size, .. } = self.shape;
        self.put(VERSION, 0x100);
        let (transfer, batch) = largest(gencap);
        let mut own = gencap & GENCAP_PARENTS | 1 << GENCAP_COMMANDS;
        own.set_bits(GENCAP_TRANSFER, transfer).set_bits(GENCAP_BATCH, batch);
        self.put(GENCAP, own);
        self.put(WQCAP, WQCAP_ONE | u64::from(queue_size));
        self.put(GRPCAP, 1);
        self.put(ENGCAP, 1);
        for (at, word) in (OPCAP..).step_by(8).zip(opcap) {
            self.put(at, word);
        }
        let units = |offset: u64| offset / u64::from(OFFSET_UNIT);
        let mut offsets = 0;
        offsets.set_bits(OFFSET_GROUPS, units(GROUPS as u64));
        offsets.set_bits(OFFSET_QUEUES, units(QUEUES as u64));
        offsets.set_bits(OFFSET_PERMISSIONS, units(PERMISSIONS.into()));
        self.put(TABLE_OFFSETS, offsets);
        self.put(CMDCAP, COMMANDS.into());
        self.put(GROUPS, 1);
        self.put(GROUPS + GROUP_ENGINES, 1);
        self.put32(QUEUES, queue_size.into());
        self.put32(QUEUES + QUEUE_MODE, QUEUE_DEDICATED);
        self.put32(QUEUES + QUEUE_LIMITS, queue_limits(gencap));
    }

    /// Updates the registers in the page that can change.
    fn show(&mut self) {
        self.put32(GENCTRL, self.genctrl);
        self.put32(GENSTS, self.enabled.into());
        self.put32(INTCAUSE, self.intcause);
        self.put32(CMD, self.command);
        self.put32(CMDSTS, self.command_status);
        for (at, word) in (SWERR..).step_by(8).zip(self.errors) {
            self.put(at, word);
        }
        self.put32(QUEUES + QUEUE_STATE, if self.queue.may_take_work() { QUEUE_ENABLED } else { 0 });
    }

    /// The guest wrote `bytes` bytes at `offset` of the page. Only aligned writes of 4 and 8 bytes do anything, as in the device.
    pub fn write(&mut self, offset: u64, bytes: u8, value: u64) -> Effect {
        let mut effect = Effect::default();
        if matches!(bytes, 4 | 8) && offset.is_multiple_of(bytes.into()) {
            let offset = offset as usize;
            effect = self.write32(offset, value as u32);
            if bytes == 8 {
                effect = effect.and(self.write32(offset + 4, (value >> 32) as u32));
            }
            self.show();
        }
        effect
    }

    fn write32(&mut self, offset: usize, value: u32) -> Effect {
        match offset {
            GENCTRL => self.genctrl = value & GENCTRL_WRITABLE,
            INTCAUSE => self.intcause &= !value,
            SWERR => self.errors[0] &= !(u64::from(value) & (SWERR_VALID | SWERR_OVERFLOW)),
            CMD => return self.take_command(value),
            _ => {}
        }
        Effect::default()
    }

    /// Notes that the parent has revoked interrupt handles, so the guest has to request its handles again.
    pub fn revoke_handles(&mut self) {
        self.handles.fill(None);
        self.intcause |= INTCAUSE_HANDLES_REVOKED;
        self.show();
    }

    /// The parent has recorded an error of the function's work queue (SWERR). Returns whether vector 0 is to be signalled.
    pub fn record_error(&mut self, record: [u64; 4]) -> bool {
        if self.errors[0] & SWERR_VALID != 0 {
            self.errors[0] |= SWERR_OVERFLOW;
        } else {
            self.errors = record;
            // These are the parent's names for them.
            self.errors[0].set_bits(SWERR_QUEUE, 0).set_bits(SWERR_PASID, 0);
            self.errors[0] |= SWERR_VALID;
        }
        self.intcause |= INTCAUSE_ERROR;
        self.show();
        self.genctrl & GENCTRL_ERROR != 0
    }
}

/// The largest transfer and the largest batch of a function whose parent has this GENCAP, as powers of two.
fn largest(gencap: u64) -> (u64, u64) {
    (gencap.get_bits(GENCAP_TRANSFER).min(MOST.0), gencap.get_bits(GENCAP_BATCH).min(MOST.1))
}

/// [`spec::QUEUE_LIMITS`] of a function's queue: the largest transfer and the largest batch that it offers.
pub fn queue_limits(gencap: u64) -> u32 {
    let (transfer, batch) = largest(gencap);
    transfer as u32 | (batch as u32) << 5
}

#[cfg(test)]
mod tests;
