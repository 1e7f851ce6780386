//! Registers, configuration and commands.

use super::spec;

/// The device's registers: BAR0.
pub trait Registers {
    /// Reads a dword.
    fn read(&self, offset: u64) -> u32;
    /// Writes a dword.
    fn write(&mut self, offset: u64, value: u32);

    /// Reads two dwords, the low one first.
    fn read_u64(&self, offset: u64) -> u64 {
        u64::from(self.read(offset)) | u64::from(self.read(offset + 4)) << 32
    }
}

/// Why the device does not do what it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// This command ended with this error code (`enum idxd_cmdsts_err`).
    Command(u32, u8),
    /// This command did not end.
    TimeOut(u32),
    /// The device has no such work queue.
    NoSuchQueue(u8),
    /// The command succeeded, but the device is not in the state it stands for.
    NotEnabled,
}

/// How a work queue is set up, in group 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkQueue {
    /// Which.
    pub index: u8,
    /// Descriptors that it holds.
    pub size: u16,
    /// Whether it is shared by users who each have a PASID, which their descriptors carry; else it is dedicated, and knows none.
    pub pasids: bool,
}

/// Reads of CMDSTS before a command is given up: it takes as long as the descriptors that it waits for, and another one may be before it.
const COMMAND_POLLS: usize = 5_000_000;
/// A queue must have a priority, 1 to 15.
const PRIORITY: u32 = 8;

/// A DSA.
#[derive(Clone, Copy, Debug)]
pub struct Dsa<R> {
    registers: R,
    groups: u64,
    queues: u64,
    ims: u64,
}

impl<R: Registers> Dsa<R> {
    /// The device behind `registers`; finds its tables.
    pub fn new(registers: R) -> Self {
        let low = registers.read_u64(spec::TABLE_OFFSETS);
        let table = |n: u32| (low >> (16 * n) & 0xffff) * spec::TABLE_UNIT;
        let (groups, queues, ims) = (table(0), table(1), table(3));
        Self { registers, groups, queues, ims }
    }

    /// The registers.
    pub const fn registers(&mut self) -> &mut R {
        &mut self.registers
    }

    /// Where the interrupt message store begins in BAR0.
    pub const fn ims_offset(&self) -> u64 {
        self.ims
    }

    /// Slots of the store.
    pub fn ims_slots(&self) -> u32 {
        (self.registers.read(spec::GENCAP) >> 25 & 0x3f) * spec::IMS_UNIT
    }

    /// The largest transfer, as a power of two.
    fn max_transfer_shift(&self) -> u32 {
        self.registers.read(spec::GENCAP) >> 16 & 0x1f
    }

    fn max_batch_shift(&self) -> u32 {
        self.registers.read(spec::GENCAP) >> 21 & 0xf
    }

    /// Resets the device and puts `queues` with all its engines into group 0; then enables the device and the queues.
    pub fn start(&mut self, queues: &[WorkQueue]) -> Result<(), Error> {
        self.command(spec::COMMAND_RESET_DEVICE, 0)?;
        let mask = queues.iter().fold(0u32, |mask, queue| mask | 1 << queue.index);
        for &queue in queues {
            self.configure(queue)?;
        }
        self.registers.write(self.groups, mask);
        self.registers.write(self.groups + spec::GROUP_ENGINES, 1);
        self.registers.write(self.groups + spec::GROUP_FLAGS, 0);
        self.command(spec::COMMAND_ENABLE_DEVICE, 0)?;
        if self.registers.read(spec::GENSTS) & spec::GENSTS_STATE != spec::GENSTS_ENABLED {
            return Err(Error::NotEnabled);
        }
        for queue in queues {
            self.command(spec::COMMAND_ENABLE_WQ, queue.index.into())?;
        }
        Ok(())
    }

    /// `union wqcfg`: size; threshold; mode and priority; shifts.
    fn configure(&mut self, queue: WorkQueue) -> Result<(), Error> {
        let capabilities = self.registers.read_u64(spec::WQCAP);
        if u64::from(queue.index) >= capabilities >> 16 & 0xff || queue.index >= 32 {
            return Err(Error::NoSuchQueue(queue.index));
        }
        let stride = 32u64 << (capabilities >> 24 & 0xf);
        let at = self.queues + stride * u64::from(queue.index);
        let shifts = self.max_batch_shift() << 5 | self.max_transfer_shift();
        let mode = if queue.pasids { spec::WQCFG_PASID_ENABLE } else { spec::WQCFG_MODE_DEDICATED };
        let threshold = if queue.pasids { queue.size.into() } else { 0 };
        let dwords = [queue.size.into(), threshold, mode | PRIORITY << 4, shifts];
        for (n, dword) in dwords.into_iter().enumerate() {
            self.registers.write(at + 4 * n as u64, dword);
        }
        Ok(())
    }

    /// Carries out a command and returns its result.
    pub fn command(&mut self, command: u32, operand: u32) -> Result<u16, Error> {
        self.registers.write(spec::CMD, command << spec::CMD_SHIFT | operand);
        for _ in 0..COMMAND_POLLS {
            let status = self.registers.read(spec::CMDSTS);
            if status & spec::CMDSTS_ACTIVE == 0 {
                let [error, ..] = status.to_le_bytes();
                return if error == 0 { Ok((status >> 8) as u16) } else { Err(Error::Command(command, error)) };
            }
        }
        Err(Error::TimeOut(command))
    }

    /// Whether the device has a command: CMDCAP says so, where GENCAP says that CMDCAP is there.
    fn has_command(&self, command: u32) -> bool {
        let told = self.registers.read(spec::GENCAP) & spec::GENCAP_COMMANDS != 0;
        told && self.registers.read(spec::CMDCAP) & 1 << command != 0
    }

    /// What a descriptor says to raise IMS slot `index`. A device that has the command wants to be asked (`CMDCAP`).
    pub fn request_ims_handle(&mut self, index: u16) -> Result<u16, Error> {
        if !self.has_command(spec::COMMAND_REQUEST_INT_HANDLE) {
            return Ok(index);
        }
        self.command(spec::COMMAND_REQUEST_INT_HANDLE, spec::HANDLE_IMS | u32::from(index))
    }

    /// What a descriptor says to raise MSI-X vector `index`, where the device does not take the index itself (`CMDCAP`).
    pub fn request_msix_handle(&mut self, index: u16) -> Result<u16, Error> {
        if !self.has_command(spec::COMMAND_REQUEST_INT_HANDLE) {
            return Ok(index);
        }
        self.command(spec::COMMAND_REQUEST_INT_HANDLE, index.into())
    }

    /// Gives a handle back.
    pub fn release_ims_handle(&mut self, handle: u16) -> Result<(), Error> {
        if !self.has_command(spec::COMMAND_RELEASE_INT_HANDLE) {
            return Ok(());
        }
        self.command(spec::COMMAND_RELEASE_INT_HANDLE, spec::HANDLE_IMS | u32::from(handle)).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    /// Registers that answer commands after a few polls.
    struct Fake {
        registers: HashMap<u64, u32>,
        commands: Vec<u32>,
        busy: core::cell::Cell<u32>,
    }

    impl Fake {
        fn new() -> Self {
            let registers = HashMap::from([
                (spec::GENCAP, 16 << 25 | 5 << 21 | 21 << 16 | spec::GENCAP_COMMANDS),
                (spec::WQCAP, 1 << 24 | 8 << 16 | 128),
                (spec::TABLE_OFFSETS, 0x20_0010),
                (spec::TABLE_OFFSETS + 4, 0x400_0030),
                (spec::CMDCAP, 0x7ffe),
                (spec::GENSTS, 1),
            ]);
            Self { registers, commands: Vec::new(), busy: 0.into() }
        }
    }

    impl Registers for Fake {
        fn read(&self, offset: u64) -> u32 {
            if offset == spec::CMDSTS && self.busy.get() > 0 {
                self.busy.set(self.busy.get() - 1);
                return spec::CMDSTS_ACTIVE;
            }
            self.registers.get(&offset).copied().unwrap_or(0)
        }

        fn write(&mut self, offset: u64, value: u32) {
            self.registers.insert(offset, value);
            if offset == spec::CMD {
                self.commands.push(value);
                self.busy.set(3);
                let handle = if value >> 20 == 13 { (value & 0xffff) << 8 } else { 0 };
                let error = if value >> 20 == 6 && value & 0xff == 7 { 0x21 } else { 0 };
                self.registers.insert(spec::CMDSTS, handle | error);
            }
        }
    }

    #[test]
    fn tables_are_found_where_the_device_says() {
        let dsa = Dsa::new(Fake::new());
        assert_eq!((dsa.groups, dsa.queues, dsa.ims_offset(), dsa.ims_slots()), (0x1000, 0x2000, 0x40000, 4096));
    }

    #[test]
    fn a_start_configures_before_it_enables() {
        let mut dsa = Dsa::new(Fake::new());
        dsa.start(&[WorkQueue { index: 0, size: 64, pasids: false }, WorkQueue { index: 1, size: 32, pasids: false }])
            .unwrap();
        let fake = dsa.registers();
        assert_eq!(fake.commands, [5 << 20, 1 << 20, 6 << 20, 6 << 20 | 1]);
        let dword = |at| fake.registers[&at];
        assert_eq!((dword(0x1000), dword(0x1020)), (0b11, 1));
        assert_eq!([0x2000, 0x2004, 0x2008, 0x200c].map(dword), [64, 0, 8 << 4 | 1, 5 << 5 | 21]);
        assert_eq!([0x2040, 0x2048].map(dword), [32, 8 << 4 | 1]);
    }

    #[test]
    fn errors_of_commands_and_queues_come_back() {
        let mut dsa = Dsa::new(Fake::new());
        assert_eq!(dsa.start(&[WorkQueue { index: 7, size: 1, pasids: false }]), Err(Error::Command(6, 0x21)));
        assert_eq!(dsa.start(&[WorkQueue { index: 8, size: 1, pasids: false }]), Err(Error::NoSuchQueue(8)));
    }

    #[test]
    fn a_command_that_never_ends_is_given_up() {
        let mut fake = Fake::new();
        fake.registers.insert(spec::CMDSTS, spec::CMDSTS_ACTIVE);
        struct Stuck(Fake);
        impl Registers for Stuck {
            fn read(&self, offset: u64) -> u32 {
                self.0.read(offset)
            }
            fn write(&mut self, _: u64, _: u32) {}
        }
        assert_eq!(Dsa::new(Stuck(fake)).command(1, 0), Err(Error::TimeOut(1)));
    }

    #[test]
    fn a_handle_is_asked_for_when_the_device_has_the_command() {
        let mut dsa = Dsa::new(Fake::new());
        assert_eq!(dsa.request_ims_handle(0x123), Ok(0x123));
        assert_eq!(dsa.registers().commands, [13 << 20 | 1 << 16 | 0x123]);
        let mut fake = Fake::new();
        fake.registers.insert(spec::CMDCAP, 0);
        let mut without = Dsa::new(fake);
        assert_eq!((without.request_ims_handle(5), without.release_ims_handle(5)), (Ok(5), Ok(())));
        assert!(without.registers().commands.is_empty());
        let mut fake = Fake::new();
        fake.registers.insert(spec::GENCAP, 8 << 25);
        let mut reserved = Dsa::new(fake);
        assert_eq!((reserved.request_ims_handle(5), reserved.request_msix_handle(6)), (Ok(5), Ok(6)));
        assert!(reserved.registers().commands.is_empty(), "GENCAP says that CMDCAP is not there");
    }
}
