//! A virtual function of a DSA: one work queue of the parent function, with registers of its own ([`spec`] has them).
//!
//! It is what Linux calls a device that is not configurable (GENCAP.config_en = 0): one group with one engine and one dedicated work
//! queue, whose configuration can be read and not changed. It says nothing of an interrupt message store. Its MSI-X vectors have to be
//! asked for by "request interrupt handle"; vector 0 is not among them: it is for command completions and errors.
//!
//! The registers are a page that always holds what a read must return, to be mapped read-only into the guest; writes come through
//! [`VirtualDsa::write`].

pub mod spec;

use alloc::{boxed::Box, vec, vec::Vec};

use bit_field::BitField;

use self::spec::{
    CMD, CMD_INTERRUPT, CMD_MASK, CMD_OPERAND, CMD_RESERVED, CMD_SHIFT, CMDCAP, CMDSTS, CMDSTS_RESULT_SHIFT, ENGCAP,
    GENCAP, GENCAP_BATCH, GENCAP_COMMANDS, GENCAP_TRANSFER, GENCTRL, GENCTRL_ERROR, GENCTRL_HALT, GENSTS,
    GROUP_ENGINES, GRPCAP, INTCAUSE, INTCAUSE_COMMAND, INTCAUSE_ERROR, INTCAUSE_HANDLES_REVOKED, OFFSET_GROUPS,
    OFFSET_PERMISSIONS, OFFSET_QUEUES, OFFSET_UNIT, OPCAP, QUEUE_DEDICATED, QUEUE_ENABLED, QUEUE_LIMITS, QUEUE_MODE,
    QUEUE_STATE, SWERR, SWERR_OVERFLOW, SWERR_PASID, SWERR_QUEUE, SWERR_VALID, TABLE_OFFSETS, VERSION, WQCAP, command,
    error,
};

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
/// Bytes of BAR 2: the portals of a work queue, of which the first two, those for MSI-X, are there.
pub const BAR2_SIZE: u64 = 0x4000;

/// Tables behind the registers, in the page that the guest reads.
const GROUPS: usize = 0x400;
const QUEUES: usize = 0x500;

/// GENCAP: overlapping copies, cache control for memory and for flushes, largest transfer, largest batch are the parent's. What is not
/// here is not offered: blocking on page faults, configuration, a message store.
const GENCAP_PARENTS: u64 = 0b1110 | 0x1f << 16 | 0xf << 21;
/// GENCAP: a vector's handle is a slot of the parent's and hardly ever the vector's own number. So it has to be asked for, whether the
/// parent has handles or not.
const GENCAP_OWN: u64 = 1 << GENCAP_COMMANDS;
/// WQCAP: one queue whose configuration has 64 bytes, dedicated.
const WQCAP_ONE: u64 = 1 << 16 | 1 << 24 | 1 << 49;
const GENCTRL_WRITABLE: u32 = GENCTRL_ERROR | GENCTRL_HALT;
/// CMDCAP: not the commands that name PASIDs, which are the hypervisor's.
const COMMANDS: u32 = 0x7fe | 1 << command::REQUEST_INT_HANDLE | 1 << command::RELEASE_INT_HANDLE;

/// The work queue that the parent function has dedicated to the virtual function. An error is what the parent's command ended with.
pub trait WorkQueue {
    /// Enables it.
    fn enable(&mut self) -> Result<(), u8>;
    /// Waits until what is in it is done.
    fn drain(&mut self) -> Result<(), u8>;
    /// Gives up what is in it.
    fn abort(&mut self) -> Result<(), u8>;
    /// Disables it, when what is in it is done.
    fn disable(&mut self) -> Result<(), u8>;
    /// What a descriptor says to raise a vector's slot.
    fn request_handle(&mut self, vector: u16) -> Result<u16, u8>;
    /// Gives that back.
    fn release_handle(&mut self, handle: u16) -> Result<(), u8>;
}

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

/// What a write leaves to be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// The function was reset: what is pending has to be dropped. The MSI-X table stays, since it is the PCI function's.
    pub reset: bool,
    /// Vector 0 is to be signalled.
    pub signal: bool,
}

/// A virtual function.
pub struct VirtualDsa {
    page: Box<RegisterPage>,
    shape: Shape,
    bus_master: bool,
    enabled: bool,
    queue_enabled: bool,
    genctrl: u32,
    intcause: u32,
    command: u32,
    command_status: u32,
    errors: [u64; 4],
    /// The handles that are out, by their vectors.
    handles: Vec<Option<u16>>,
}

/// What a command gives back: the result, or the error.
type Outcome = Result<u16, u8>;

impl VirtualDsa {
    /// As after reset.
    pub fn new(shape: Shape) -> Self {
        let mut new = Self {
            page: Box::new(RegisterPage([0; 1024])),
            shape,
            bus_master: false,
            enabled: false,
            queue_enabled: false,
            genctrl: 0,
            intcause: 0,
            command: 0,
            command_status: 0,
            errors: [0; 4],
            handles: vec![None; shape.vectors.into()],
        };
        new.show_capabilities();
        new.show();
        new
    }

    /// The bytes of the page to map read-only at [`REGISTERS`].
    pub fn page(&self) -> &[u32; 1024] {
        &self.page.0
    }

    /// Whether descriptors are taken.
    pub const fn takes_work(&self) -> bool {
        self.queue_enabled
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
        self.put(GENCAP, gencap & GENCAP_PARENTS | GENCAP_OWN);
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

    /// Puts what can change into the page.
    fn show(&mut self) {
        self.put32(GENCTRL, self.genctrl);
        self.put32(GENSTS, self.enabled.into());
        self.put32(INTCAUSE, self.intcause);
        self.put32(CMD, self.command);
        self.put32(CMDSTS, self.command_status);
        for (at, word) in (SWERR..).step_by(8).zip(self.errors) {
            self.put(at, word);
        }
        self.put32(QUEUES + QUEUE_STATE, if self.queue_enabled { QUEUE_ENABLED } else { 0 });
    }

    /// The guest wrote `bytes` bytes at `offset` of the page. Only aligned writes of 4 and 8 bytes do anything, as in the device.
    pub fn write(&mut self, offset: u64, bytes: u8, value: u64, queue: &mut impl WorkQueue) -> Effect {
        let mut effect = Effect::default();
        if matches!(bytes, 4 | 8) && offset.is_multiple_of(bytes.into()) {
            let offset = offset as usize;
            effect = self.write32(offset, value as u32, queue);
            if bytes == 8 {
                let upper = self.write32(offset + 4, (value >> 32) as u32, queue);
                effect = Effect { reset: effect.reset || upper.reset, signal: effect.signal || upper.signal };
            }
            self.show();
        }
        effect
    }

    fn write32(&mut self, offset: usize, value: u32, queue: &mut impl WorkQueue) -> Effect {
        match offset {
            GENCTRL => self.genctrl = value & GENCTRL_WRITABLE,
            INTCAUSE => self.intcause &= !value,
            SWERR => self.errors[0] &= !(u64::from(value) & (SWERR_VALID | SWERR_OVERFLOW)),
            CMD => return self.command(value, queue),
            _ => {}
        }
        Effect::default()
    }

    fn command(&mut self, value: u32, queue: &mut impl WorkQueue) -> Effect {
        let number = value >> CMD_SHIFT & CMD_MASK;
        let known = value & CMD_RESERVED == 0 && COMMANDS >> number & 1 != 0;
        let outcome = if known { self.carry_out(number, value & CMD_OPERAND, queue) } else { Err(error::INVAL_CMD) };
        self.command = value;
        self.command_status = match outcome {
            Ok(result) => u32::from(result) << CMDSTS_RESULT_SHIFT,
            Err(error) => error.into(),
        };
        let signal = value & CMD_INTERRUPT != 0;
        if signal {
            self.intcause |= INTCAUSE_COMMAND;
        }
        Effect { reset: number == command::RESET_DEVICE && outcome.is_ok(), signal }
    }

    fn carry_out(&mut self, number: u32, operand: u32, queue: &mut impl WorkQueue) -> Outcome {
        match number {
            command::ENABLE_DEVICE => self.enable_device(),
            command::RESET_DEVICE => self.reset(queue),
            command::DISABLE_DEVICE | command::DRAIN_ALL | command::ABORT_ALL if !self.enabled => {
                Err(error::DIS_DEV_EN)
            }
            command::DISABLE_DEVICE => {
                self.disable_queue(queue)?;
                self.enabled = false;
                Ok(0)
            }
            command::DRAIN_ALL => self.if_queue_enabled(|| queue.drain()),
            command::ABORT_ALL => self.if_queue_enabled(|| queue.abort()),
            command::ENABLE_WQ => self.enable_queue(operand, queue),
            command::REQUEST_INT_HANDLE => self.request_handle(operand, queue),
            command::RELEASE_INT_HANDLE => self.release_handle(operand, queue),
            _ => self.selected_queue(number, operand, queue),
        }
    }

    fn enable_device(&mut self) -> Outcome {
        if self.enabled {
            return Err(error::DEV_ENABLED);
        }
        if !self.bus_master {
            return Err(error::BUSMASTER_EN);
        }
        self.enabled = true;
        Ok(0)
    }

    fn enable_queue(&mut self, operand: u32, queue: &mut impl WorkQueue) -> Outcome {
        if !self.enabled {
            return Err(error::DEV_NOTEN);
        }
        if operand != 0 {
            return Err(error::INVAL_WQIDX);
        }
        if self.queue_enabled {
            return Err(error::WQ_ENABLED);
        }
        queue.enable()?;
        self.queue_enabled = true;
        Ok(0)
    }

    /// Disable, drain, abort or reset the queues in the operand: a mask in 15:0 of the sixteen that 19:16 selects. There is one.
    fn selected_queue(&mut self, number: u32, operand: u32, queue: &mut impl WorkQueue) -> Outcome {
        if operand != 1 {
            return Err(error::INVAL_WQIDX);
        }
        if !self.queue_enabled {
            return Err(error::DEV_NOT_EN);
        }
        match number {
            command::DRAIN_WQ => queue.drain()?,
            command::ABORT_WQ => queue.abort()?,
            command::RESET_WQ => {
                unless_so(queue.abort(), error::DEV_NOT_EN)?;
                self.disable_queue(queue)?;
            }
            command::DISABLE_WQ => self.disable_queue(queue)?,
            _ => return Err(error::INVAL_CMD),
        }
        Ok(0)
    }

    fn if_queue_enabled(&self, what: impl FnOnce() -> Result<(), u8>) -> Outcome {
        if self.queue_enabled {
            what()?;
        }
        Ok(0)
    }

    fn disable_queue(&mut self, queue: &mut impl WorkQueue) -> Result<(), u8> {
        if self.queue_enabled {
            unless_so(queue.disable(), error::DEV_NOT_EN)?;
            self.queue_enabled = false;
        }
        Ok(())
    }

    /// Everything but the bus master bit, which is not the device's.
    fn reset(&mut self, queue: &mut impl WorkQueue) -> Outcome {
        self.stop(queue)?;
        (self.genctrl, self.intcause, self.errors) = (0, 0, [0; 4]);
        for handle in self.handles.iter_mut().filter_map(Option::take) {
            unless_so(queue.release_handle(handle), error::INVAL_INT_IDX)?;
        }
        Ok(0)
    }

    /// A function level reset: nothing is left of what the guest has done with the function. Returns whether its queue has stopped.
    pub fn reset_function(&mut self, queue: &mut impl WorkQueue) -> bool {
        self.bus_master = false;
        let stopped = self.stop(queue).is_ok();
        (self.genctrl, self.intcause, self.errors) = (0, 0, [0; 4]);
        (self.command, self.command_status) = (0, 0);
        // One that the device does not take back can be had again all the same. A device that does not answer is not asked for each of
        // them: that would take minutes.
        let _ = self
            .handles
            .iter()
            .flatten()
            .try_for_each(|handle| unless_so(queue.release_handle(*handle), error::INVAL_INT_IDX));
        self.handles.fill(None);
        self.show();
        stopped
    }

    fn stop(&mut self, queue: &mut impl WorkQueue) -> Result<(), u8> {
        if self.queue_enabled {
            unless_so(queue.abort(), error::DEV_NOT_EN)?;
        }
        self.disable_queue(queue)?;
        self.enabled = false;
        Ok(())
    }

    /// The guest has set or cleared the function's bus master bit. Without it the function sends no requests (PCIe 7.5.1.1.3), which its
    /// parent cannot know: so it stops. Returns whether it is as the guest wants it.
    pub fn set_bus_master(&mut self, on: bool, queue: &mut impl WorkQueue) -> bool {
        self.bus_master = on;
        let stopped = on || self.stop(queue).is_ok();
        self.show();
        stopped
    }

    /// The handle of the vector's slot in the parent, which takes it from this function alone. Vector 0 has none.
    fn request_handle(&mut self, operand: u32, queue: &mut impl WorkQueue) -> Outcome {
        let vector = u16::try_from(operand).ok().filter(|vector| *vector != 0).ok_or(error::INVAL_INT_IDX)?;
        let place = self.handles.get_mut(usize::from(vector)).ok_or(error::INVAL_INT_IDX)?;
        let handle = queue.request_handle(vector)?;
        *place = Some(handle);
        Ok(handle)
    }

    fn release_handle(&mut self, operand: u32, queue: &mut impl WorkQueue) -> Outcome {
        let handle = u16::try_from(operand).map_err(|_| error::INVAL_INT_IDX)?;
        let place = self.handles.iter_mut().find(|place| **place == Some(handle)).ok_or(error::INVAL_INT_IDX)?;
        queue.release_handle(handle)?;
        *place = None;
        Ok(0)
    }

    /// The parent has revoked interrupt handles: the guest has to ask again for those it has.
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

/// [`spec::QUEUE_LIMITS`] of a queue with the largest transfer and the largest batch that a device with this GENCAP has.
pub fn queue_limits(gencap: u64) -> u32 {
    gencap.get_bits(GENCAP_TRANSFER) as u32 | (gencap.get_bits(GENCAP_BATCH) as u32) << 5
}

/// What is undone already, as this error says, need not be undone: the parent may have finished late, when it was not waited for any more.
fn unless_so(result: Result<(), u8>, error: u8) -> Result<(), u8> {
    if result == Err(error) { Ok(()) } else { result }
}

#[cfg(test)]
mod tests;
