//! As much of an NVMe controller's driver as makes it interrupt (NVM Express Base Specification 2.0): a queue pair for each vector.

use guests::bare::config;
use guests::bare::device::DeviceMemory;
use guests::bare::dma::DmaBuffer;
use guests::dsa::Registers;
use guests::pci::{self, Function};

use crate::{VECTORS, Work};

/// Class code: mass storage, non-volatile memory, NVM Express.
pub const CLASS: u32 = 0x01_0802;

/// Controller configuration: 16-byte completions, 64-byte submissions, enable. Status: ready.
const CC: u64 = 0x14;
const CC_ENABLE: u32 = 4 << 20 | 6 << 16 | 1;
const CSTS: u64 = 0x1c;
const CSTS_READY: u32 = 1;
/// Admin queues: their sizes and addresses.
const AQA: u64 = 0x24;
const ASQ: u64 = 0x28;
const ACQ: u64 = 0x30;
const DOORBELLS: u64 = 0x1000;
/// Bytes of the registers, with the doorbells of all queues here.
const REGISTERS: u64 = 0x1000 + 8 * VECTORS as u64;

/// Opcodes: of the admin queue, and of an I/O queue.
const CREATE_SUBMISSION_QUEUE: u32 = 0x01;
const CREATE_COMPLETION_QUEUE: u32 = 0x05;
const IDENTIFY: u32 = 0x06;
/// What the controller is, for Identify.
const CONTROLLER: u32 = 1;
const FLUSH: u32 = 0x00;

/// Entries of each queue.
const SLOTS: u32 = 16;
/// Looks at a register until the controller counts as stuck. It may work in a thread of its own, on its host's time.
const LOOKS: u32 = 3_000_000;

/// A page of submissions and one of completions for each queue, and one for data.
static MEMORY: DmaBuffer<{ 4096 * (2 * VECTORS as usize + 1) }> = DmaBuffer::new();
const DATA: usize = 4096 * 2 * VECTORS as usize;

/// The controller.
pub struct Controller {
    registers: DeviceMemory,
    /// Commands ever submitted to each queue.
    submitted: [u32; VECTORS as usize],
}

/// Where a queue's submissions are in [`MEMORY`]; its completions are a page behind.
const fn submissions(queue: usize) -> usize {
    2 * queue * 4096
}

impl Controller {
    /// A queue pair whose completions raise the vector of the same number.
    fn make_queue(&mut self, queue: u16) -> Result<(), &'static str> {
        let (at, number) = (submissions(queue.into()), u32::from(queue));
        let size = (SLOTS - 1) << 16 | number;
        // In one piece, and interrupts on.
        self.admin(CREATE_COMPLETION_QUEUE, at + 4096, size, number << 16 | 0b11)?;
        self.admin(CREATE_SUBMISSION_QUEUE, at, size, number << 16 | 1)
    }

    fn write_address(&mut self, register: u64, at: usize) {
        let address = MEMORY.address() + at as u64;
        self.registers.write(register, address as u32);
        self.registers.write(register + 4, (address >> 32) as u32);
    }

    fn wait(&self, ready: u32) -> Result<(), &'static str> {
        let is_so = || self.registers.read(CSTS) & CSTS_READY == ready;
        (0..LOOKS).any(|_| is_so()).then_some(()).ok_or("the controller does not start or stop")
    }

    fn admin(&mut self, opcode: u32, at: usize, dw10: u32, dw11: u32) -> Result<(), &'static str> {
        let status = self.command(0, [opcode, dw10, dw11], at)?;
        if status == 0 { Ok(()) } else { Err("the controller refuses a command") }
    }

    /// Submits a command, with dwords 0, 10 and 11, and waits for its completion; returns its status.
    fn command(&mut self, queue: usize, [opcode, dw10, dw11]: [u32; 3], at: usize) -> Result<u32, &'static str> {
        let (slot, round) = (self.submitted[queue] % SLOTS, self.submitted[queue] / SLOTS);
        self.submitted[queue] += 1;
        let place = submissions(queue) + slot as usize * 64;
        // Command 1, for namespace 1.
        let words = [
            1 << 32 | u64::from(opcode | 1 << 16),
            0,
            0,
            MEMORY.address() + at as u64,
            0,
            u64::from(dw11) << 32 | u64::from(dw10),
            0,
            0,
        ];
        (place..).step_by(8).zip(words).for_each(|(at, word)| MEMORY.write(at, word));
        let doorbell = DOORBELLS + 8 * queue as u64;
        self.registers.write(doorbell, (slot + 1) % SLOTS);
        let phase = u64::from(round.is_multiple_of(2));
        let completion = submissions(queue) + 4096 + slot as usize * 16 + 8;
        let status = (0..LOOKS).find_map(|_| self.completed(completion, phase)).ok_or("a command does not complete")?;
        self.registers.write(doorbell + 4, (slot + 1) % SLOTS);
        Ok(status)
    }

    /// The status of a completion, once its phase is that of this round. A look at a register lets the controller work.
    fn completed(&self, at: usize, phase: u64) -> Option<u32> {
        let _ = self.registers.read(CSTS);
        let word = MEMORY.read(at);
        (word >> 48 & 1 == phase).then_some((word >> 49) as u32)
    }
}

impl Work for Controller {
    /// And makes its queues.
    fn start(function: Function) -> Result<Self, &'static str> {
        let bar = pci::bar(&config::Ports, function, 0).ok_or("BAR 0 has no place")?;
        // SAFETY: what a BAR names is the device's; it is given nothing but our own buffer's addresses.
        let registers = unsafe { DeviceMemory::new(bar, REGISTERS) }.ok_or("its registers are not mapped")?;
        let mut this = Self { registers, submitted: [0; VECTORS as usize] };
        this.registers.write(CC, 0);
        this.wait(0)?;
        // Completions of a time before a reset look as new ones.
        (0..DATA).step_by(8).for_each(|at| MEMORY.write(at, 0));
        this.registers.write(AQA, (SLOTS - 1) << 16 | (SLOTS - 1));
        this.write_address(ASQ, submissions(0));
        this.write_address(ACQ, submissions(0) + 4096);
        this.registers.write(CC, CC_ENABLE);
        this.wait(CSTS_READY)?;
        (1..VECTORS).try_for_each(|queue| this.make_queue(queue))?;
        Ok(this)
    }

    fn raise(&mut self, vector: u16) -> Result<(), &'static str> {
        if vector == 0 {
            return self.admin(IDENTIFY, DATA, CONTROLLER, 0);
        }
        // A controller without a medium completes this with an error, which is as good.
        self.command(vector.into(), [FLUSH, 0, 0], DATA).map(drop)
    }
}
