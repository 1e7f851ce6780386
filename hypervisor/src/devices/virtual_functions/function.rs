//! One guest's function: its registers, its part of the device, and what it signals.

use alloc::sync::Arc;

use hcall_abi::{DeviceId, Pasid};

use crate::{
    addr::PAGE_SIZE,
    devices::{command_arbiter::CommandClient, dsa::Queue},
    ims::{Domain, GuestId},
    irq::ports::MachineService,
    memory::Registers,
    vdev::vdsa::{self, VirtualDsa},
};

/// The only vector that the hypervisor signals: command completions and errors.
pub(super) const SIGNALLED: u16 = 0;

/// A guest's function, by its guest and its name there.
pub(super) type Name = (GuestId, DeviceId);

/// A function of a guest.
pub(super) struct Virtual {
    pub(super) name: Name,
    /// Its guest's, once the service has taken the guest in.
    pub(super) domain: Option<Arc<Domain>>,
    pub(super) queue: u8,
    pub(super) first_slot: u16,
    pub(super) vectors: u16,
    pub(super) pasid: Pasid,
    pub(super) registers: VirtualDsa,
    pub(super) bus_master: bool,
    pub(super) msix_enabled: bool,
    pub(super) function_masked: bool,
    /// It has been told of as one whose queue does not stop: its guest can bring that about again and again.
    pub(super) told: bool,
}

impl Virtual {
    /// Whether its configuration space lets it send interrupts.
    pub(super) const fn sends(&self) -> bool {
        self.msix_enabled && !self.function_masked && self.bus_master
    }

    /// Signals the vector that is not the device's.
    pub(super) fn signal(&self, service: &MachineService) {
        if let Some(domain) = &self.domain {
            // A vector without a message that the guest may send waits for one; nobody is told, as for the write itself.
            let _ = service.signal(domain, self.name.1, SIGNALLED);
        }
    }
}

impl CommandClient for Virtual {
    fn queue(&self) -> u8 {
        self.queue
    }

    fn registers(&mut self) -> &mut VirtualDsa {
        &mut self.registers
    }

    fn work_queue<'a, R: Registers>(&self, registers: &'a R) -> Queue<'a, R> {
        Queue { registers, number: self.queue, pasid: self.pasid.value(), first_slot: self.first_slot }
    }
}

impl Virtual {
    /// The quadword at `at` of what a guest reads outside of the MSI-X table.
    pub(super) fn quadword(&self, at: u64, service: &MachineService) -> u64 {
        const PENDING_BITS: u64 = vdsa::PENDING_BITS as u64;
        match at {
            0..PAGE_SIZE => {
                let dword = |n: usize| u64::from(self.registers.page().get(n).copied().unwrap_or(0));
                let n = (at / 4) as usize;
                dword(n) | dword(n + 1) << 32
            }
            PENDING_BITS.. if at < PENDING_BITS + PAGE_SIZE => {
                let word = ((at - PENDING_BITS) / 8) as u32;
                // Words beyond the last slot are refused, and read as nothing pending.
                self.domain.as_ref().and_then(|domain| service.pending(domain, self.name.1, word).ok()).unwrap_or(0)
            }
            _ => 0,
        }
    }
}
