//! As much of an NVMe controller's driver as makes it interrupt (NVM Express Base Specification 2.0): the admin queues, and one
//! pair of I/O queues whose completions go to another entry of the MSI-X table.

use core::time::Duration;

use imsvisor::{
    addr::{Bdf, Gpa},
    clock::{self, poll},
    machine::discovery::Machine,
    memory::{Mmio, Ram, Registers},
    pci::{self, ConfigSpace, Function},
};

use crate::{edu::registers, window::WINDOW};

/// Controller configuration: enable, 64-byte submissions, 16-byte completions. Status: ready.
const CC: usize = 0x14;
const CC_ENABLE: u32 = 4 << 20 | 6 << 16 | 1;
const CSTS: usize = 0x1c;
const CSTS_READY: u32 = 1;
const AQA: usize = 0x24;
const ASQ: usize = 0x28;
const ACQ: usize = 0x30;
const DOORBELLS: usize = 0x1000;

/// Opcodes.
const CREATE_SUBMISSION_QUEUE: u32 = 0x01;
const CREATE_COMPLETION_QUEUE: u32 = 0x05;
const IDENTIFY: u32 = 0x06;
/// Of an I/O queue; there is no namespace, so it completes with an error, which is as good.
const FLUSH: u32 = 0x00;

/// Entries of each queue.
const SLOTS: u32 = 16;
/// Where the queues lie in the window: submissions and completions of the admin queue, the same of the I/O queue, data.
const PLACE: u64 = 0x10_0000;
const DATA: u64 = PLACE + 0x8000;

/// What the controller gets before it counts as stuck. It works in a thread of its own, on the host's time.
const LIMIT: Duration = Duration::from_secs(5);

/// MSI-X (PCIe 7.7.2): enable bit of the capability, bytes of a table entry.
const MSIX_ENABLE: u32 = 1 << 31;
const MSIX_ENTRY: usize = 16;

/// The I/O queue's entry of the MSI-X table.
pub const IO_VECTOR: u16 = 5;

/// One queue pair.
#[derive(Clone, Copy, Default)]
struct Queue {
    number: u32,
    /// Commands ever submitted.
    submitted: u32,
}

impl Queue {
    fn submissions(self) -> u64 {
        PLACE + u64::from(self.number) * 0x2000
    }

    fn completions(self) -> u64 {
        self.submissions() + 0x1000
    }
}

/// The controller.
pub struct Nvme {
    /// Its requester ID.
    pub bdf: Bdf,
    registers: Mmio,
    table: usize,
    capability: u16,
    config: &'static dyn ConfigSpace,
    function: Function,
    admin: Queue,
    io: Queue,
}

impl Nvme {
    /// Lets it decode and send; it stays disabled.
    pub fn new(machine: &'static Machine, function: &Function) -> Result<Self, &'static str> {
        let msix = function.msix.ok_or("nvme has no MSI-X")?;
        if msix.table.bar != 0 || msix.entries <= IO_VECTOR {
            return Err("nvme's MSI-X table is not where it is expected");
        }
        pci::function::enable(machine.config(), function.bdf);
        Ok(Self {
            bdf: function.bdf,
            registers: registers(function)?,
            table: msix.table.offset as usize,
            capability: msix.capability,
            config: machine.config(),
            function: function.clone(),
            admin: Queue::default(),
            io: Queue { number: 1, submitted: 0 },
        })
    }

    /// The function.
    pub fn function(&self) -> &Function {
        &self.function
    }

    /// Whether it says that it works.
    pub fn is_started(&self) -> bool {
        self.registers.read32(CSTS) & CSTS_READY != 0
    }

    /// Puts a message into the MSI-X table.
    pub fn set_message(&self, entry: u16, (address, data): (u64, u32)) {
        let at = self.table + usize::from(entry) * MSIX_ENTRY;
        self.registers.write32(at, address as u32);
        self.registers.write32(at + 4, (address >> 32) as u32);
        self.registers.write32(at + 8, data);
        self.registers.write32(at + 12, 0);
        let control = self.config.read(self.bdf, self.capability);
        self.config.write(self.bdf, self.capability, control | MSIX_ENABLE);
    }

    /// Starts the controller with empty admin queues.
    pub fn start(&mut self, ram: &Ram) -> Result<(), &'static str> {
        self.stop()?;
        for queue in [self.admin, self.io] {
            for page in [queue.submissions(), queue.completions()] {
                ram.write(Gpa::new(page), &[0; 4096]).map_err(|_| "no room for queues")?;
            }
        }
        (self.admin.submitted, self.io.submitted) = (0, 0);
        self.registers.write32(AQA, (SLOTS - 1) << 16 | (SLOTS - 1));
        self.registers.write64(ASQ, WINDOW + self.admin.submissions());
        self.registers.write64(ACQ, WINDOW + self.admin.completions());
        self.registers.write32(CC, CC_ENABLE);
        self.wait(CSTS_READY)
    }

    /// Stops the controller.
    pub fn stop(&self) -> Result<(), &'static str> {
        self.registers.write32(CC, 0);
        self.wait(0)
    }

    fn wait(&self, ready: u32) -> Result<(), &'static str> {
        let is_so = || self.registers.read32(CSTS) & CSTS_READY == ready;
        poll(clock::current(), LIMIT, is_so).then_some(()).ok_or("nvme does not start or stop")
    }

    /// Has it complete a command of the admin queue: entry 0 of the table.
    pub fn identify(&mut self, ram: &Ram) -> Result<(), &'static str> {
        self.admin_command(ram, IDENTIFY, WINDOW + DATA, 1, 0)
    }

    /// Makes the I/O queues, whose completions go to entry [`IO_VECTOR`].
    pub fn make_io_queues(&mut self, ram: &Ram) -> Result<(), &'static str> {
        let (io, size) = (self.io, (SLOTS - 1) << 16);
        let completions = u32::from(IO_VECTOR) << 16 | 0b11;
        self.admin_command(ram, CREATE_COMPLETION_QUEUE, WINDOW + io.completions(), size | io.number, completions)?;
        let submissions = io.number << 16 | 1;
        self.admin_command(ram, CREATE_SUBMISSION_QUEUE, WINDOW + io.submissions(), size | io.number, submissions)
    }

    /// Has it complete a command of the I/O queue.
    pub fn io(&mut self, ram: &Ram) -> Result<(), &'static str> {
        let mut queue = self.io;
        let status = self.command(ram, &mut queue, FLUSH, 0, 0, 0);
        self.io = queue;
        status.map(drop)
    }

    fn admin_command(&mut self, ram: &Ram, opcode: u32, page: u64, dw10: u32, dw11: u32) -> Result<(), &'static str> {
        let mut queue = self.admin;
        let status = self.command(ram, &mut queue, opcode, page, dw10, dw11);
        self.admin = queue;
        if status? == 0 { Ok(()) } else { Err("nvme refuses a command") }
    }

    /// Submits a command and waits for its completion; returns its status.
    fn command(
        &self,
        ram: &Ram,
        queue: &mut Queue,
        opcode: u32,
        page: u64,
        dw10: u32,
        dw11: u32,
    ) -> Result<u32, &'static str> {
        let (slot, round) = (queue.submitted % SLOTS, queue.submitted / SLOTS);
        queue.submitted += 1;
        let words = [opcode, 1, 0, 0, 0, 0, page as u32, (page >> 32) as u32, 0, 0, dw10, dw11, 0, 0, 0, 0];
        for (at, word) in (0..).step_by(4).zip(words) {
            let place = Gpa::new(queue.submissions() + u64::from(slot) * 64 + at);
            ram.write(place, &word.to_le_bytes()).map_err(|_| "no room for a command")?;
        }
        self.registers.write32(doorbell(2 * queue.number), (slot + 1) % SLOTS);
        let phase = u32::from(round.is_multiple_of(2));
        let place = Gpa::new(queue.completions() + u64::from(slot) * 16 + 12);
        let mut status = None;
        let _ = poll(clock::current(), LIMIT, || {
            status = self.completed(ram, place, phase);
            status.is_some()
        });
        let status = status.ok_or("nvme completes nothing")?;
        // The register's turn comes after the completion's interrupt has been sent.
        self.registers.write32(doorbell(2 * queue.number + 1), (slot + 1) % SLOTS);
        Ok(status)
    }

    /// The status of a completion, once its phase is that of this round. A look at a register lets the controller work.
    fn completed(&self, ram: &Ram, place: Gpa, phase: u32) -> Option<u32> {
        let _ = self.registers.read32(CSTS);
        let mut bytes = [0; 4];
        ram.read(place, &mut bytes).ok()?;
        let word = u32::from_le_bytes(bytes);
        (word >> 16 & 1 == phase).then_some(word >> 17)
    }
}

fn doorbell(number: u32) -> usize {
    DOORBELLS + number as usize * 4
}
