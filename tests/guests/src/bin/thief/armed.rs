//! The thief's device: slots of its message store that lead to the virtual processors on the victim's processor.

use guests::bare::Guest;
use guests::bare::assigned::{AssignedDsa, Records, batch_page, hypercalls};
use guests::bare::dma::DmaBuffer;
use guests::bare::vector;
use guests::dsa::Descriptor;
use guests::guest_shim::hcall_abi::Target;
use guests::guest_shim::vmcall::Vmcall;
use guests::guest_shim::{Domain, MmioStore, Request};

use crate::victims_side;

/// Vectors of each virtual processor: each of them below any limit that counts by vector.
const VECTORS: usize = 32;
/// Most handles.
const MOST: usize = VECTORS * 4;
/// Remapping entries that messages are forged for: the guest's are among them.
const ENTRIES: u64 = 64;
/// Where there is no memory of the guest.
const NOWHERE: u64 = 1 << 45;

static PAGE: DmaBuffer<4096> = DmaBuffer::new();
static BUFFER: DmaBuffer<4096> = DmaBuffer::new();
static RECORDS: Records<4096> = Records::new();

/// A device that raises interrupts.
pub struct Armed {
    device: AssignedDsa,
    domain: Domain<'static, Vmcall, MmioStore>,
    handles: [u16; MOST],
    count: usize,
    next: usize,
}

impl Armed {
    /// With as many slots as there are virtual processors on the victim's side, times their vectors.
    pub fn new(guest: &Guest, cpus: usize) -> Result<Self, &'static str> {
        let calls = hypercalls().ok_or("no hypercall domain")?;
        let device = AssignedDsa::start(guest).map_err(|_| "no device to attack with")?;
        let domain = Domain::hypercall(calls, device.id(), batch_page(&PAGE));
        let mut armed = Self { device, domain, handles: [0; MOST], count: 0, next: 0 };
        for vector in (0..VECTORS).map(|n| vector::FIRST + n as u8) {
            for number in victims_side(cpus) {
                armed.arm(Target { apic_id: number as u32, vector })?;
            }
        }
        Ok(armed)
    }

    fn arm(&mut self, target: Target) -> Result<(), &'static str> {
        let Some(handle) = self.handles.get_mut(self.count) else { return Ok(()) };
        let mut out = [None];
        let request = Request { target, unmask: true, cookie: 0 };
        self.domain.request(0, &[request], &mut out).map_err(|_| "no slot can be mapped")?;
        let slot = out[0].take().ok_or("no slot")?;
        *handle = self.device.dsa.request_ims_handle(slot.index()).map_err(|_| "no handle")?;
        self.count += 1;
        Ok(())
    }

    /// Raises the next slot.
    pub fn raise(&mut self) {
        self.next = (self.next + 1) % self.count;
        self.device.portals[0].submit(&Descriptor::noop(RECORDS.address(0), self.handles[self.next]));
    }

    /// Has the device write a message by DMA, past the slots and their masks.
    pub fn forge(&mut self) {
        self.next += 1;
        let message = 0xfee0_0010 | (self.next as u64 % ENTRIES) << 5;
        self.copy(message);
    }

    /// Has the device write where the guest has no memory.
    pub fn fault(&mut self) {
        self.copy(NOWHERE);
    }

    fn copy(&self, to: u64) {
        let descriptor = Descriptor::memmove(BUFFER.address(), to, 4, RECORDS.address(1), 0);
        self.device.portals[1].submit(&descriptor.without_interrupt());
    }

    /// Resets the device, and starts it again.
    pub fn reset(&mut self) {
        // A device that does not come back attacks nobody any more, which the number of interrupts tells.
        let _ = self.device.restart();
    }
}
