//! The hypervisor's knowledge of Intel DSA beyond PCI: the place of the interrupt message store, the reset, and the division of work
//! queues.

mod resetting;

use core::{hint::spin_loop, ops::Range, time::Duration};

use bit_field::BitField;

use crate::{
    addr::{Hpa, PAGE_SIZE},
    clock::{Clock, poll},
    memory::Registers,
    pci::{Function, TableLocation, reset::Progress},
    vdev::vdsa::{
        CommandResult, Step, queue_limits,
        spec::{
            CMD, CMD_MASK, CMD_SHIFT, CMDCAP, CMDSTS, CMDSTS_ACTIVE, CMDSTS_RESULT_SHIFT, ENGCAP, GENCAP,
            GENCAP_COMMANDS, GENCAP_IMS_SIZE, GENCTRL, GENCTRL_ERROR, GENCTRL_HALT, GENSTS, GENSTS_HALTED,
            GENSTS_RESET, GENSTS_STATE, GROUP_ENGINES, GRPCAP, GRPCAP_GROUPS, IMS_UNIT, INTCAUSE,
            INTCAUSE_HANDLES_REVOKED, OFFSET_GROUPS, OFFSET_IMS, OFFSET_PERFMON, OFFSET_PERMISSIONS, OFFSET_QUEUES,
            OFFSET_UNIT, OPCAP, QUEUE_DEDICATED, QUEUE_LIMITS, QUEUE_MODE, QUEUE_PASID_ENABLE, SWERR, SWERR_OVERFLOW,
            SWERR_QUEUE, SWERR_QUEUE_VALID, SWERR_VALID, TABLE_OFFSETS, WQCAP, WQCAP_CONFIG_SIZE, WQCAP_QUEUES,
            WQCAP_SIZE, command, error::NO_ANSWER,
        },
    },
};

pub use self::resetting::Resetting;

/// PCI vendor ID.
const VENDOR: u16 = 0x8086;
/// PCI device IDs: of Sapphire Rapids, Emerald Rapids and Granite Rapids; of Granite Rapids D; of Diamond Rapids (Linux
/// `include/linux/pci_ids.h` and `idxd_pci_tbl`).
const DEVICES: [u16; 3] = [0x0b25, 0x11fb, 0x1212];

/// BAR with registers and tables.
pub const REGISTERS_BAR: u8 = 0;

/// BAR with the portals: four pages for each work queue, of which the third and the fourth take handles of the message store
/// (`idxd_get_wq_portal_full_offset`).
const PORTALS_BAR: u8 = 2;
/// Pages of a work queue there.
const PORTALS_OF_QUEUE: u32 = 4;
/// The first that takes handles of the message store, and how many do.
const STORE_PORTAL: u32 = 2;
const STORE_PORTALS: u32 = 2;

/// A slot's control dword: masked, for work of one PASID.
const SLOT_CTRL: usize = 12;
const SLOT_CLOSED: u32 = 1 | 1 << 3 | NOBODYS_PASID << 12;
/// A PASID that no work queue has.
const NOBODYS_PASID: u32 = 0xf_ffff;

/// The time limit of a command that waits for nothing. The specification sets none. Commands of guests, which may wait for descriptors, are
/// not waited for ([`super::command_arbiter`]).
pub const COMMAND: Duration = Duration::from_millis(100);
/// The time limit of a reset, which also waits for work under way. There is no other means after it.
pub const RESET: Duration = Duration::from_secs(1);

/// Where a store is in [`REGISTERS_BAR`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageStore {
    /// Offset of the first slot.
    pub offset: u32,
    /// Slots of 16 bytes.
    pub slots: u32,
}

/// The machine address of the portals for descriptors with handles of the message store, which reach this work queue only and which its
/// guest may access; and their bytes. `None` if the device's BAR does not hold them, or is not page-aligned.
pub fn portals_of_queue(function: &Function, queue: u8) -> Option<(Hpa, u64)> {
    let Range { start, end } = store_portals(queue);
    let bytes = u64::from(end - start);
    let at = function.locate(TableLocation { bar: PORTALS_BAR, offset: start }, bytes)?;
    at.is_aligned(PAGE_SIZE).then_some((at, bytes))
}

/// The bytes of those portals in [`PORTALS_BAR`].
fn store_portals(queue: u8) -> Range<u32> {
    const PAGE: u32 = PAGE_SIZE as u32;
    let first = u32::from(queue) * PORTALS_OF_QUEUE + STORE_PORTAL;
    first * PAGE..(first + STORE_PORTALS) * PAGE
}

/// Whether a function is a DSA.
pub fn is_one(function: &Function) -> bool {
    function.vendor == VENDOR && DEVICES.contains(&function.device)
}

/// Subsystem of a device whose store is behind a command interface: only our model of one.
const SLOW_STORE_SUBSYSTEM: (u16, u16) = (VENDOR, 0x510e);
/// The command interface's offset in [`REGISTERS_BAR`], in a page of its own.
pub const SLOW_STORE: u32 = 0x6000;

/// Whether a device's store is behind a command interface.
pub fn has_slow_store(function: &Function) -> bool {
    is_one(function) && function.subsystem == SLOW_STORE_SUBSYSTEM
}

/// Bytes of the general registers, including those of later versions; of an entry of the groups' configuration; of an MSI-X permission.
const GENERAL_BYTES: u64 = 0x200;
const GROUP_BYTES: u64 = 64;
const PERMISSION_BYTES: u64 = 8;

/// The offsets in TABLE OFFSETS, relative to the BAR of the device's registers.
struct TableOffsets {
    groups: u32,
    queues: u32,
    permissions: u32,
    store: u32,
    perfmon: u32,
}

impl TableOffsets {
    fn read(registers: &impl Registers) -> Self {
        let [low, high] = [TABLE_OFFSETS, TABLE_OFFSETS + 8].map(|at| registers.read64(at));
        let offset = |word: u64, bits| word.get_bits(bits) as u32 * OFFSET_UNIT;
        Self {
            groups: offset(low, OFFSET_GROUPS),
            queues: offset(low, OFFSET_QUEUES),
            permissions: offset(low, OFFSET_PERMISSIONS),
            store: offset(low, OFFSET_IMS),
            perfmon: offset(high, OFFSET_PERFMON),
        }
    }
}

/// Reads the place of the interrupt message store; `None` if the device reports none.
pub fn message_store(registers: &impl Registers) -> Option<MessageStore> {
    let slots = registers.read64(GENCAP).get_bits(GENCAP_IMS_SIZE) as u32 * IMS_UNIT;
    let offset = TableOffsets::read(registers).store;
    (slots != 0 && offset != 0).then_some(MessageStore { offset, slots })
}

/// The general registers and the tables that TABLE OFFSETS names, as bytes of the BAR of the device's registers.
pub type Tables = [Range<u64>; 6];

/// The place of each table of a device whose MSI-X table has `msix_entries` entries. The length of the performance monitoring registers is
/// not reported: they end at the next table or at the next of `others`, the other known ranges in the BAR, and after a page at most.
pub fn tables_in_bar(registers: &impl Registers, msix_entries: u16, others: &[Range<u64>]) -> Tables {
    let TableOffsets { groups, queues, permissions, store, perfmon } = TableOffsets::read(registers);
    let queue_bytes = |count: u64| count * (32 << registers.read64(WQCAP).get_bits(WQCAP_CONFIG_SIZE));
    let slots = registers.read64(GENCAP).get_bits(GENCAP_IMS_SIZE) * u64::from(IMS_UNIT);
    let table = |start: u32, bytes: u64| u64::from(start)..u64::from(start) + bytes;
    let mut tables = [
        0..GENERAL_BYTES,
        table(groups, registers.read64(GRPCAP).get_bits(GRPCAP_GROUPS) * GROUP_BYTES),
        table(queues, queue_bytes(registers.read64(WQCAP).get_bits(WQCAP_QUEUES))),
        table(permissions, u64::from(msix_entries) * PERMISSION_BYTES),
        table(store, slots * 16),
        table(perfmon, PAGE_SIZE),
    ];
    let next = tables.iter().chain(others).map(|other| other.start).filter(|&start| start > u64::from(perfmon)).min();
    tables[5].end = tables[5].end.min(next.unwrap_or(u64::MAX));
    tables
}

/// Whether a write of `bytes` bytes at `offset` of the registers starts a reset of the device.
pub fn is_reset(offset: u64, bytes: u8, value: u64) -> bool {
    // The register takes effect when its command bits are written: an access that covers bytes 2 and 3 of it.
    let Some(at) = (CMD as u64 + 2).checked_sub(offset) else { return false };
    at + 2 <= u64::from(bytes) && (value >> (8 * at)) as u32 >> (CMD_SHIFT - 16) & CMD_MASK == command::RESET_DEVICE
}

/// Waits until the device has completed its last command, for `limit` at most. Returns whether it has.
#[must_use]
pub fn wait_command(registers: &impl Registers, clock: &dyn Clock, limit: Duration) -> bool {
    poll(clock, limit, || !is_active(registers))
}

/// Whether a command is under way. A device that does not answer reads as ones, so it has one for ever.
fn is_active(registers: &impl Registers) -> bool {
    registers.read32(CMDSTS) & CMDSTS_ACTIVE != 0
}

/// Resets the device, which takes 1.2 seconds at most. Returns whether the device has carried out the reset.
pub fn reset(registers: &impl Registers, clock: &dyn Clock) -> bool {
    let mut resetting = Resetting::begin(clock);
    loop {
        match resetting.look(registers) {
            Progress::UnderWay => spin_loop(),
            end => return end == Progress::Done,
        }
    }
}

/// A device's work queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queues {
    /// How many.
    pub count: u8,
    /// Descriptors of each queue if all get the same number.
    pub size: u16,
}

/// Reads the device's work queues. `None` if they cannot be divided among functions: there are none, more than one group's configuration
/// can name, or too few descriptors.
pub fn queues(registers: &impl Registers) -> Option<Queues> {
    let capabilities = registers.read64(WQCAP);
    let (total, count) = (capabilities.get_bits(WQCAP_SIZE) as u16, capabilities.get_bits(WQCAP_QUEUES) as u8);
    let size = total.checked_div(count.into())?;
    (size != 0 && count <= 32).then_some(Queues { count, size })
}

/// GENCAP and OPCAP.
pub fn capabilities(registers: &impl Registers) -> (u64, [u64; 4]) {
    (registers.read64(GENCAP), core::array::from_fn(|n| registers.read64(OPCAP + 8 * n)))
}

/// The place of the configuration of groups and work queues, and the bytes of a work queue's entry.
fn queue_layout(registers: &impl Registers) -> (usize, usize, usize) {
    let TableOffsets { groups, queues, .. } = TableOffsets::read(registers);
    (groups as usize, queues as usize, 32 << registers.read64(WQCAP).get_bits(WQCAP_CONFIG_SIZE))
}

/// Configures a device after its reset, as [`configure`] does, and enables it. The error is the code of the device's command; 0xff if it does
/// not answer.
pub fn share_out(registers: &impl Registers, clock: &dyn Clock) -> Result<(), u8> {
    configure(registers)?;
    command(registers, clock, command::ENABLE_DEVICE, 0)
}

/// Begins to reset the device, whose last command has ended. [`command_result`] tells when it is done.
pub fn begin_reset(registers: &impl Registers) {
    registers.write32(CMD, command::RESET_DEVICE << CMD_SHIFT);
}

/// Configures a device after its reset, and begins to enable it. [`command_result`] tells when that is done.
pub fn begin_sharing_out(registers: &impl Registers) -> Result<(), u8> {
    configure(registers)?;
    registers.write32(CMD, command::ENABLE_DEVICE << CMD_SHIFT);
    Ok(())
}

/// What ends the halt of a device that has halted: 0, the command to reset; others, resets of the function or of more
/// (`enum idxd_device_reset_type`). `None` if it has not halted.
pub fn halted(registers: &impl Registers) -> Option<u32> {
    let status = registers.read32(GENSTS);
    // A device that does not answer reads as ones.
    (status & GENSTS_STATE == GENSTS_HALTED && status != u32::MAX).then(|| status.get_bits(GENSTS_RESET))
}

/// All work queues have the same size and no work, and all engines serve all of them. No work can raise a slot of the store.
fn configure(registers: &impl Registers) -> Result<(), u8> {
    let (Some(Queues { count, size }), Some(store)) = (queues(registers), message_store(registers)) else {
        return Err(NO_ANSWER);
    };
    let engines = registers.read64(ENGCAP).get_bits(0..8) as u32;
    let (gencap, _) = capabilities(registers);
    let (groups, table, stride) = queue_layout(registers);
    for queue in 0..usize::from(count) {
        registers.write32(table + queue * stride, size.into());
        registers.write32(table + queue * stride + QUEUE_LIMITS, queue_limits(gencap));
    }
    let low_bits = |count: u32| u32::MAX >> (32 - count.clamp(1, 32));
    registers.write32(groups, low_bits(count.into()));
    registers.write32(groups + GROUP_ENGINES, low_bits(engines));
    close(registers, store, 0..store.slots as usize);
    Ok(())
}

/// Closes `count` slots from `first` on, so that no work queue can raise them.
pub fn close_slots(registers: &impl Registers, first: u16, count: u16) {
    if let Some(store) = message_store(registers) {
        let first = usize::from(first);
        close(registers, store, first..first + usize::from(count));
    }
}

fn close(registers: &impl Registers, store: MessageStore, slots: Range<usize>) {
    for slot in slots {
        registers.write32(store.offset as usize + 16 * slot + SLOT_CTRL, SLOT_CLOSED);
    }
}

/// Executes a command that waits for nothing. The error is the device's code.
fn command(registers: &impl Registers, clock: &dyn Clock, number: u32, operand: u32) -> Result<(), u8> {
    if !wait_command(registers, clock, COMMAND) {
        return Err(NO_ANSWER);
    }
    registers.write32(CMD, number << CMD_SHIFT | operand);
    let _ = wait_command(registers, clock, COMMAND);
    command_result(registers).unwrap_or(Err(NO_ANSWER)).map(drop)
}

/// The result of the last command, or the device's error code. `None` while it is under way.
pub fn command_result(registers: &impl Registers) -> Option<CommandResult> {
    let status = registers.read32(CMDSTS);
    if status & CMDSTS_ACTIVE != 0 {
        return None;
    }
    match status as u8 {
        0 => Some(Ok((status >> CMDSTS_RESULT_SHIFT) as u16)),
        error => Some(Err(error)),
    }
}

/// A work queue of a configured device.
pub struct Queue<'a, R> {
    /// The device.
    pub registers: &'a R,
    /// Which.
    pub number: u8,
    /// The PASID of the queue's work, with which slots compare.
    pub pasid: u32,
    /// The slot for vector 0; the slots for other vectors follow.
    pub first_slot: u16,
}

impl<R: Registers> Queue<'_, R> {
    /// Begins a step on an idle device. Returns `Some` if the step is complete already. If not, [`command_result`] returns its result
    /// later.
    pub fn begin(&self, step: Step) -> Option<CommandResult> {
        let slot = |vector| self.first_slot.wrapping_add(vector);
        match step {
            Step::Enable => self.enable(),
            Step::Drain => self.for_queue(command::DRAIN_WQ),
            Step::Abort => self.for_queue(command::ABORT_WQ),
            Step::Disable => self.for_queue(command::DISABLE_WQ),
            Step::RequestHandle(vector) if !self.has(command::REQUEST_INT_HANDLE) => return Some(Ok(slot(vector))),
            Step::ReleaseHandle(_) if !self.has(command::RELEASE_INT_HANDLE) => return Some(Ok(0)),
            Step::RequestHandle(vector) => self.for_handle(command::REQUEST_INT_HANDLE, slot(vector)),
            Step::ReleaseHandle(handle) => self.for_handle(command::RELEASE_INT_HANDLE, handle),
        }
        None
    }

    fn enable(&self) {
        let (_, table, stride) = queue_layout(self.registers);
        let mode = QUEUE_DEDICATED | QUEUE_PASID_ENABLE | self.pasid << 8;
        self.registers.write32(table + usize::from(self.number) * stride + QUEUE_MODE, mode);
        self.give(command::ENABLE_WQ, self.number.into());
    }

    fn give(&self, number: u32, operand: u32) {
        self.registers.write32(CMD, number << CMD_SHIFT | operand);
    }

    fn for_handle(&self, number: u32, handle: u16) {
        self.give(number, command::HANDLE_IMS | u32::from(handle));
    }

    /// A command for the queues in the operand: a mask in 15:0 of the sixteen that 19:16 selects.
    fn for_queue(&self, number: u32) {
        self.give(number, u32::from(self.number / 16) << 16 | 1 << (self.number % 16));
    }

    /// Whether the device supports a command. The register that lists them exists only if GENCAP says so, as in Linux (`idxd_read_caps`):
    /// Sapphire Rapids does not have it, and has no handles.
    fn has(&self, number: u32) -> bool {
        self.registers.read64(GENCAP).get_bit(GENCAP_COMMANDS) && self.registers.read32(CMDCAP).get_bit(number as usize)
    }
}

/// Enables or disables MSI-X entry 0 for recorded errors. A halt raises it in any case: there is only one until the device is reset.
pub fn log_errors(registers: &impl Registers, told: bool) {
    registers.write32(GENCTRL, if told { GENCTRL_ERROR | GENCTRL_HALT } else { GENCTRL_HALT });
}

/// Clears the causes of the device's interrupt. Returns whether it has revoked interrupt handles.
pub fn take_causes(registers: &impl Registers) -> bool {
    let causes = registers.read32(INTCAUSE);
    registers.write32(INTCAUSE, causes);
    causes & INTCAUSE_HANDLES_REVOKED != 0
}

/// Takes the error that the device has recorded, if there is one: the work queue that it concerns, and the record.
pub fn take_error(registers: &impl Registers) -> Option<(Option<u8>, [u64; 4])> {
    let record @ [first, ..]: [u64; 4] = core::array::from_fn(|n| registers.read64(SWERR + 8 * n));
    if first & SWERR_VALID == 0 {
        return None;
    }
    registers.write32(SWERR, (SWERR_VALID | SWERR_OVERFLOW) as u32);
    let queue = (first & SWERR_QUEUE_VALID != 0).then(|| first.get_bits(SWERR_QUEUE) as u8);
    Some((queue, record))
}

#[cfg(test)]
pub(super) mod tests;
