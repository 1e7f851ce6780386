//! BAR0: the registers, and the access to the tables.

use crate::layout::Place;
use crate::queue_store;
use crate::slow::Request;
use crate::spec::{self, gencap, register, slot};
use crate::{Dsa, Table, Upstream, command, groups, work_queue};

/// The work queue whose store's register is at an offset of theirs, and which.
fn queue_store(offset: u64) -> (usize, u64) {
    ((offset / queue_store::STRIDE) as usize, offset % queue_store::STRIDE)
}

/// The registers that hold something.
#[derive(Default)]
pub(crate) struct Registers {
    pub(crate) gencfg: u32,
    pub(crate) genctrl: u32,
    pub(crate) intcause: u32,
    pub(crate) command: u32,
    pub(crate) command_status: u32,
    /// The command that was written and is not carried out yet.
    pub(crate) under_way: Option<command::UnderWay>,
    enabled: bool,
}

impl Registers {
    /// GENSTS says "enabled".
    pub(crate) fn enabled(&self) -> bool {
        self.enabled
    }

    pub(crate) fn set_enabled(&mut self, enabled: bool) {
        self.enabled = enabled;
    }
}

/// The low or the high half of a 64-bit register.
fn half(value: u64, offset: u64) -> u32 {
    (value >> (offset % 8 * 8)) as u32
}

/// The dword of a table's entry, and the entry: tables with entries of 64 bytes.
fn entry(offset: u64) -> (usize, usize) {
    ((offset / 64) as usize, (offset % 64 / 4) as usize)
}

impl Dsa {
    /// Reads `len` bytes (1, 2, 4 or 8, aligned) at `offset` of BAR0; all ones while memory accesses are disabled.
    pub fn bar0_read(&self, offset: u64, len: usize) -> u64 {
        let ones = if len >= 8 { u64::MAX } else { (1 << (8 * len)) - 1 };
        if !self.memory_enabled() || !matches!(len, 1 | 2 | 4 | 8) || !offset.is_multiple_of(len as u64) {
            return ones;
        }
        let low = u64::from(self.read32(offset & !3));
        match len {
            8 => low | u64::from(self.read32(offset + 4)) << 32,
            _ => low >> (offset % 4 * 8) & ones,
        }
    }

    /// Writes `len` bytes (4 or 8, aligned; others are ignored) at `offset` of BAR0.
    pub fn bar0_write(&mut self, offset: u64, len: usize, value: u64, up: &mut dyn Upstream) {
        if !self.memory_enabled() || !matches!(len, 4 | 8) || !offset.is_multiple_of(len as u64) {
            return;
        }
        self.write32(offset, value as u32, up);
        if len == 8 {
            self.write32(offset + 4, (value >> 32) as u32, up);
        }
    }

    fn place(&self, offset: u64) -> Place {
        self.setup.layout.place(offset, self.msix.len(), self.ims.len())
    }

    fn read32(&self, offset: u64) -> u32 {
        match self.place(offset) {
            Place::Register(offset) => self.read_register(offset),
            Place::Group(offset) => {
                let (group, dword) = entry(offset);
                self.groups.get(group).map_or(0, |group| group.read(dword))
            }
            Place::Queue(offset) => {
                let (queue, dword) = entry(offset);
                self.queues.get(queue).map_or(0, |queue| queue.read(dword))
            }
            Place::Permission(offset) => self.permission(offset),
            Place::Msix(offset) => self.msix.read(offset).unwrap_or(0),
            Place::PendingBits(offset) => self.msix.pending_bits((offset * 8) as usize),
            Place::Ims(offset) if self.slow.is_none() => self.ims.read(offset).unwrap_or(0),
            Place::SlowStore(offset) => self.slow.as_ref().map_or(0, |slow| slow.read(offset)),
            Place::QueueStore(offset) => {
                let (queue, offset) = queue_store(offset);
                self.queue_stores.get(queue).map_or(0, |store| store.read(offset))
            }
            Place::Ims(_) | Place::Nothing => 0,
        }
    }

    fn permission(&self, offset: u64) -> u32 {
        let entry = self.msix_permissions.get((offset / 8) as usize);
        entry.filter(|_| offset % 8 < 4).copied().unwrap_or(0)
    }

    fn read_register(&self, offset: u64) -> u32 {
        match offset & !7 {
            register::VERSION => half(0x100, offset),
            register::GENCAP => half(self.gencap(), offset),
            register::WQCAP => half(wqcap(), offset),
            register::GRPCAP => half(grpcap(), offset),
            register::ENGCAP => half(spec::ENGINES as u64, offset),
            register::OPCAP => half(spec::opcode::ALL, offset),
            register::TABLE_OFFSETS => half(self.table_offsets(), offset),
            0x68 => half(self.setup.layout.perfmon / 0x100, offset),
            register::GENCFG => half(u64::from(self.registers.gencfg), offset),
            register::GENCTRL => half(u64::from(self.registers.genctrl), offset),
            register::GENSTS => half(u64::from(self.registers.enabled()), offset),
            register::INTCAUSE => half(u64::from(self.registers.intcause), offset),
            register::CMD => half(u64::from(self.registers.command), offset),
            register::CMDSTS => half(u64::from(self.registers.command_status), offset),
            register::CMDCAP if self.has_handles() => half(command::CAPABILITIES, offset),
            at @ register::SWERR..0xe0 => self.swerr.read(((at - register::SWERR + offset % 8) / 4) as usize),
            _ => 0,
        }
    }

    fn gencap(&self) -> u64 {
        let multiplier = self.ims.len() as u64 / u64::from(gencap::IMS_UNIT);
        let block = if self.setup.page_requests { gencap::BLOCK_ON_FAULT } else { 0 };
        let commands = if self.has_handles() { gencap::COMMAND_CAPABILITIES } else { 0 };
        block
            | commands
            | self.setup.gencap_reserved
            | gencap::OVERLAP_COPY
            | gencap::CACHE_CONTROL_MEMORY
            | gencap::CACHE_CONTROL_CACHE
            | u64::from(self.setup.max_transfer_shift) << gencap::MAX_TRANSFER_SHIFT
            | u64::from(self.setup.max_batch_shift) << gencap::MAX_BATCH_SHIFT
            | multiplier << gencap::MAX_IMS_MULTIPLIER
            | gencap::CONFIG_ENABLE
    }

    fn table_offsets(&self) -> u64 {
        let layout = &self.setup.layout;
        [layout.groups, layout.queues, layout.msix_permissions, layout.ims]
            .into_iter()
            .rev()
            .fold(0, |all, offset| (all << 16) | (offset / 0x100))
    }

    fn write32(&mut self, offset: u64, value: u32, up: &mut dyn Upstream) {
        let device_enabled = self.registers.enabled();
        match self.place(offset) {
            Place::Register(offset) => self.write_register(offset, value),
            Place::Group(offset) if !device_enabled => {
                let (group, dword) = entry(offset);
                if let Some(group) = self.groups.get_mut(group) {
                    group.write(dword, value);
                }
            }
            Place::Queue(offset) => {
                let (queue, dword) = entry(offset);
                if let Some(queue) = self.queues.get_mut(queue) {
                    queue.write(dword, value, device_enabled);
                }
            }
            Place::Permission(offset) => self.write_permission(offset, value),
            Place::Msix(offset) => self.write_slot(Table::Msix, offset, value, up),
            Place::Ims(offset) if self.slow.is_none() => self.write_slot(Table::Ims, offset, value, up),
            Place::SlowStore(offset) => self.write_slow(offset, value, up),
            Place::QueueStore(offset) => {
                let (queue, offset) = queue_store(offset);
                let again = self.queue_stores.get_mut(queue).and_then(|store| store.write(offset, value));
                again.into_iter().for_each(|slot| self.raise_in_memory(queue, slot, true, up));
            }
            Place::Group(_) | Place::Ims(_) | Place::PendingBits(_) | Place::Nothing => {}
        }
    }

    fn write_permission(&mut self, offset: u64, value: u32) {
        if let Some(entry) = self.msix_permissions.get_mut((offset / 8) as usize)
            && offset % 8 < 4
        {
            *entry = value & (slot::PASID | slot::PASID_ENABLE);
        }
    }

    fn write_slot(&mut self, table: Table, offset: u64, value: u32, up: &mut dyn Upstream) {
        if let Some(index) = self.table(table).write(offset, value) {
            self.release(table, index, up);
        }
    }

    fn write_slow(&mut self, offset: u64, value: u32, up: &mut dyn Upstream) {
        let Some(request) = self.slow.as_mut().and_then(|slow| slow.write(offset, value)) else { return };
        self.stats.store_commands += 1;
        let (Request::Read(slot) | Request::Write(slot, _)) = request;
        if let Request::Write(_, dwords) = request {
            for (at, dword) in (slot * slot::SIZE..).step_by(4).zip(dwords) {
                dword.into_iter().for_each(|dword| self.write_slot(Table::Ims, at, dword, up));
            }
        }
        let read = |n: usize| self.ims.read(slot * slot::SIZE + 4 * n as u64);
        let now: [Option<u32>; 4] = std::array::from_fn(read);
        let dwords = now.iter().all(Option::is_some).then(|| now.map(Option::unwrap_or_default));
        self.slow.iter_mut().for_each(|slow| slow.done(dwords));
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match offset {
            register::GENCFG if !self.registers.enabled() => self.registers.gencfg = value & 0xff,
            register::GENCTRL => self.registers.genctrl = value & spec::GENCTRL_WRITABLE,
            register::INTCAUSE => self.registers.intcause &= !value,
            register::CMD => self.command(value),
            register::SWERR => self.swerr.acknowledge(value),
            _ => {}
        }
    }
}

fn wqcap() -> u64 {
    // WQCFG size: 2^(1 + IDXD_WQCFG_MIN) = 64 bytes.
    const { assert!(work_queue::DWORDS * 4 == 64 && groups::DWORDS * 4 == 64) };
    let modes = 1 << 48 | 1 << 49;
    let (priority, occupancy) = (1 << 51, 1 << 52);
    u64::from(spec::TOTAL_WQ_SIZE) | (spec::WQS as u64) << 16 | 1 << 24 | modes | priority | occupancy
}

/// Groups; read buffers in all, with controls and a limit (`union group_cap_reg`).
fn grpcap() -> u64 {
    let (control, limit) = (1 << 16, 1 << 17);
    spec::GROUPS as u64 | u64::from(spec::READ_BUFFERS) << 8 | control | limit
}

#[cfg(test)]
mod tests {
    use crate::testing::{Machine, device, made};
    use crate::{Config, Dsa};

    #[test]
    fn capabilities_read_as_described() {
        let (dsa, _) = device();
        assert_eq!(dsa.bar0_read(0, 4), 0x100);
        let gencap = dsa.bar0_read(0x10, 8);
        assert_eq!((gencap >> 16 & 0x1f, gencap >> 21 & 0xf, gencap >> 25 & 0x3f, gencap >> 31), (21, 5, 16, 1));
        assert_eq!(dsa.bar0_read(0x20, 8), 128 | 8 << 16 | 1 << 24 | 0b11011 << 48);
        assert_eq!((dsa.bar0_read(0x30, 8), dsa.bar0_read(0x38, 8)), (4 | 96 << 8 | 3 << 16, 4));
        assert_eq!(dsa.bar0_read(0x40, 8), 0x1003f);
        assert_eq!(dsa.bar0_read(0x60, 8), 0x10 | 0x20 << 16 | 0x30 << 32 | 0x400 << 48);
        assert_eq!(dsa.bar0_read(0xb0, 4), 0x7ffe);
    }

    /// Bit 3 (cache control for flushes) differs between real ones; bit 8 is left out.
    #[test]
    fn sapphire_rapids_reads_as_accel_config_and_lspci_show_it() {
        let (dsa, _) = made(Config::sapphire_rapids());
        assert_eq!(dsa.bar0_read(0x10, 8), 0x40_915f_010f & !(1 << 8));
        assert_eq!(dsa.bar0_read(0x20, 8) & 0xff_ffff, 128 | 8 << 16);
        assert_eq!((dsa.bar0_read(0x30, 8), dsa.bar0_read(0x38, 8)), (4 | 96 << 8 | 3 << 16, 4));
        assert_eq!((dsa.bar0_read(0x60, 8), dsa.bar0_read(0x68, 8)), (3 | 4 << 16 | 2 << 32 | 0x40 << 48, 0x10));
        assert_eq!(dsa.bar0_read(0xb0, 8), 0, "reserved: GENCAP bit 4 is clear");
        assert_eq!([0x80, 0x84, 0x88].map(|at| dsa.config_read(at, 4)), [8 << 16 | 0x11, 0x2000, 0x3000]);
        assert_eq!((dsa.config_read(0x10, 4), dsa.config_read(0x18, 4)), (0xc, 0xc), "64 bits, prefetchable");
    }

    #[test]
    fn capabilities_cannot_be_written() {
        let (mut dsa, mut machine) = device();
        let before: Vec<u64> = (0..0x80).step_by(8).map(|at| dsa.bar0_read(at, 8)).collect();
        for at in (0..0x80).step_by(8) {
            dsa.bar0_write(at, 8, !0, &mut machine);
        }
        dsa.bar0_write(0x90, 8, !0, &mut machine);
        dsa.bar0_write(0xa8, 8, !0, &mut machine);
        let after: Vec<u64> = (0..0x80).step_by(8).map(|at| dsa.bar0_read(at, 8)).collect();
        assert_eq!(before, after);
        assert_eq!((dsa.bar0_read(0x90, 4), dsa.bar0_read(0xa8, 4)), (0, 0));
    }

    #[test]
    fn narrow_reads_take_their_bytes_and_narrow_writes_are_ignored() {
        let (mut dsa, mut machine) = device();
        assert_eq!(dsa.bar0_read(0x21, 1), 0);
        assert_eq!(dsa.bar0_read(0x22, 2), 0x0108);
        assert_eq!(dsa.bar0_read(0x22, 4), 0xffff_ffff, "unaligned");
        assert_eq!(dsa.bar0_read(0x20, 3), 0xff_ffff, "odd width");
        for len in [1, 2, 3] {
            dsa.bar0_write(0x4_0000, len, 0x55, &mut machine);
        }
        dsa.bar0_write(0x4_0002, 4, 0x55, &mut machine);
        assert_eq!(dsa.bar0_read(0x4_0000, 8), 0);
    }

    #[test]
    fn an_eight_byte_write_reaches_data_and_control() {
        let (mut dsa, mut machine) = device();
        dsa.bar0_write(0x4_0018, 8, 0x0012_3008_0000_0055, &mut machine);
        assert_eq!(dsa.bar0_read(0x4_0018, 8), 0x0012_3008_0000_0055);
    }

    #[test]
    fn group_configuration_is_frozen_while_enabled() {
        let (mut dsa, mut machine) = device();
        machine.enable_device(&mut dsa);
        let before = dsa.bar0_read(0x1000, 8);
        dsa.bar0_write(0x1000, 8, 0, &mut machine);
        assert_eq!(dsa.bar0_read(0x1000, 8), before);
        assert_ne!(before, 0);
    }

    #[test]
    fn without_memory_enable_there_is_no_answer() {
        let mut machine = Machine::default();
        let mut dsa = Dsa::new(Config::default());
        dsa.bar0_write(0x4_0000, 4, 5, &mut machine);
        assert_eq!(dsa.bar0_read(0, 8), u64::MAX);
        assert_eq!(dsa.bar0_read(0, 2), 0xffff);
        dsa.config_write(4, 2, 2, &mut machine);
        assert_eq!(dsa.bar0_read(0x4_0000, 4), 0);
    }

    #[test]
    fn any_access_anywhere_is_survived() {
        let (mut dsa, mut machine) = device();
        for at in (0..0x8_0010).step_by(4) {
            dsa.bar0_write(at, 4, 0xffff_ffff, &mut machine);
            dsa.bar0_read(at, 8);
        }
        dsa.bar0_write(u64::MAX - 7, 8, 0, &mut machine);
        assert_eq!(dsa.bar0_read(u64::MAX - 7, 8), 0);
    }
}
