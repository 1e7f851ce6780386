//! Guest I/O: accesses of a guest's exits to its console, its devices and the service.

use core::ptr::{read_volatile, write_volatile};

use hcall_abi::{DeviceId, Status};

use crate::{
    addr::{Bdf, Gpa, Hpa},
    devices::{
        dsa,
        mmio_regions::{RegionKind, RegisterKind, Registers},
    },
    exits::{
        Platform, PortWrite,
        mmio::pieces::{piece_of, pieces, put_piece},
    },
    ims::{CallingGuest, Domain, StoreName},
    irq::ports::MachineService,
    machine::memory::FRAMES,
    memory::Ram,
    vdev::{
        pci::{Effect, VirtualBus},
        x2apic::Ipi,
    },
    vm::{instance::Vm, resources::Resources},
};

/// The guest I/O of one virtual processor.
pub struct GuestIo<'a> {
    /// The guest.
    pub vm: &'a Vm,
    /// The virtual processor's number.
    pub number: usize,
    /// The guest's interrupt domain.
    pub domain: &'a Domain,
    /// The service of the domain.
    pub service: &'static MachineService,
    /// The guest's memory.
    pub ram: &'a Ram,
}

impl GuestIo<'_> {
    /// Carries out the effect of a configuration write.
    fn configure(&self, function: Bdf, effect: Effect) {
        if effect == Effect::None {
            return;
        }
        let id = DeviceId(function.requester_id());
        if self.vm.resources.configure(self.number, id, effect, self.domain) {
            self.wait();
        }
    }

    /// The virtual processor waits before it goes on, and others run.
    fn wait(&self) {
        self.vm.mailbox(self.number).signal_self();
    }

    /// Reads 1 to 16 bytes outside of the guest's memory, in one page.
    fn read_bytes(&mut self, gpa: Gpa, bytes: u8) -> u128 {
        let mut value = [0; 16];
        for (gpa, width, at) in pieces(gpa, bytes.min(16).into()) {
            put_piece(&mut value, width, at, self.mmio_read(gpa, width.bytes() as u8));
        }
        u128::from_le_bytes(value)
    }

    /// The store at an address, and the offset in it.
    #[inline(never)]
    fn store_at(&self, gpa: Gpa) -> Option<(DeviceId, StoreName, u64)> {
        match self.vm.mmio_regions.find(gpa)? {
            (RegionKind::Store { device, name, .. }, offset) => Some((device, name, offset)),
            _ => None,
        }
    }

    /// Reads from a virtual function.
    fn read_virtual(&self, id: DeviceId, offset: u64, bytes: u8) -> u64 {
        let (name, Resources { parents, service, .. }) = ((self.vm.id, id), &self.vm.resources);
        parents.iter().find_map(|parent| parent.read(name, offset, bytes, service)).unwrap_or(u64::MAX)
    }

    /// Writes to a virtual function.
    fn write_virtual(&self, id: DeviceId, offset: u64, bytes: u8, value: u64) {
        let (name, Resources { parents, service, .. }) = ((self.vm.id, id), &self.vm.resources);
        parents.iter().find_map(|parent| parent.write(name, offset, bytes, value, service));
    }

    /// Passes a register write to the device. If the write begins a reset that takes longer, the virtual processor waits.
    fn write_register(&self, registers: Registers, offset: u64, bytes: u8, value: u64) {
        if registers.kind == RegisterKind::PendingBits {
            return;
        }
        // SAFETY: `MmioRegions::add` was promised the registers, and `find` gave an offset in them. What the device is told, its DMA
        // included, stays within the guest: its requester ID has the guest's second-level tables.
        unsafe { write_device(registers.base, offset, bytes, value) };
        let is_reset = registers.kind == RegisterKind::Commands && dsa::is_reset(offset, bytes, value);
        if is_reset && self.vm.resources.reset_written(self.number, registers.device, self.domain) {
            self.wait();
        }
    }

    /// Handles a write outside of stores.
    #[inline(never)]
    fn mmio_write_elsewhere(&self, gpa: Gpa, bytes: u8, value: u64) {
        match self.vm.mmio_regions.find(gpa) {
            None | Some((RegionKind::Store { .. }, _)) => {}
            Some((RegionKind::Registers(registers), offset)) => self.write_register(registers, offset, bytes, value),
            Some((RegionKind::Virtual { device }, offset)) => self.write_virtual(device, offset, bytes, value),
            Some((RegionKind::Ecam, offset)) => {
                let (function, register) = VirtualBus::ecam(offset);
                let effect = self.vm.chipset.lock().bus.write(function, register, bytes, value as u32);
                self.configure(function, effect);
            }
        }
    }
}

impl CallingGuest for GuestIo<'_> {
    fn read(&self, from: Gpa, into: &mut [u8]) -> Result<(), Status> {
        self.ram.read(from, into).map_err(|_| Status::BadAddress)
    }

    fn write(&self, to: Gpa, bytes: &[u8]) -> Result<(), Status> {
        self.ram.write(to, bytes).map_err(|_| Status::BadAddress)
    }

    fn reveal_stores(&self) {
        self.vm.chipset.lock().bus.reveal_stores();
    }

    fn set_pv_eoi(&self, at: Option<Gpa>) -> Result<(), Status> {
        let mailbox = self.vm.mailbox(self.number);
        if !mailbox.set_pv_eoi(at) {
            return Err(Status::Unsupported);
        }
        // What is offered elsewhere is taken back before the guest goes on.
        mailbox.signal_self();
        Ok(())
    }
}

impl Platform for GuestIo<'_> {
    fn port_read(&mut self, port: u16, width: u8) -> u32 {
        self.vm.chipset.lock().read(port, width)
    }

    fn port_write(&mut self, port: u16, width: u8, value: u32) -> PortWrite {
        let written = self.vm.chipset.lock().write(&self.vm.name, port, width, value);
        if let Some((function, effect)) = written.pci {
            self.configure(function, effect);
        }
        if written.mark {
            self.vm.report_mark();
        }
        written.outcome
    }

    fn mmio_read(&mut self, gpa: Gpa, bytes: u8) -> u64 {
        match self.vm.mmio_regions.find(gpa) {
            Some((RegionKind::Store { shadow, .. }, offset)) => {
                // SAFETY: `MmioRegions::add` was promised the shadow, and `find` gave an offset in it.
                unsafe { read_shadow(shadow, offset, bytes) }
            }
            Some((RegionKind::Registers(Registers { base, .. }), offset)) => {
                // SAFETY: `MmioRegions::add` was promised the registers, and `find` gave an offset in them.
                unsafe { read_device(base, offset, bytes) }
            }
            Some((RegionKind::Virtual { device }, offset)) => self.read_virtual(device, offset, bytes),
            Some((RegionKind::Ecam, offset)) => {
                let (function, register) = VirtualBus::ecam(offset);
                self.vm.chipset.lock().bus.read(function, register, bytes).into()
            }
            None => u64::MAX,
        }
    }

    /// A function of its own, which holds the whole path of a store write and nothing else.
    #[inline(never)]
    fn mmio_write(&mut self, gpa: Gpa, bytes: u8, value: u64) {
        match self.vm.mmio_regions.find(gpa) {
            Some((RegionKind::Store { device, name, .. }, offset)) => {
                // The service counts what it refuses. A guest is not told, as hardware would not.
                let _ = self.service.store_write(self.domain, device, name, offset, bytes, value);
            }
            Some(_) => self.mmio_write_elsewhere(gpa, bytes, value),
            None => {}
        }
    }

    fn mmio_write_bytes(&mut self, gpa: Gpa, bytes: &[u8]) {
        if let Some((device, name, offset)) = self.store_at(gpa) {
            // As in `mmio_write`.
            let _ = self.service.store_write_bytes(self.domain, device, name, offset, bytes);
            return;
        }
        for (gpa, width, at) in pieces(gpa, bytes.len()) {
            self.mmio_write(gpa, width.bytes() as u8, piece_of(bytes, width, at));
        }
    }

    fn mmio_modify(&mut self, gpa: Gpa, bytes: u8, modify: &mut dyn FnMut(u128) -> u128) {
        if let Some((device, name, offset)) = self.store_at(gpa) {
            let mut done = false;
            let mut once = |old| {
                done = true;
                modify(old)
            };
            // As in `mmio_write`.
            let _ = self.service.store_modify(self.domain, device, name, offset, bytes, &mut once);
            if !done {
                // What is refused is read nevertheless.
                modify(self.read_bytes(gpa, bytes));
            }
            return;
        }
        // Other regions have no lock of their own, so `modifying` orders read-modify-write accesses among themselves. The lock is first come,
        // first served: a processor waits for one access of each other virtual processor of the guest. An access to a virtual function's
        // command takes four times `command_arbiter::QUICK` and waits for the parent's lock. An access that resets a DSA takes `QUICK`.
        // No other access waits for a device.
        let _modifying = self.vm.modifying.lock();
        let new = modify(self.read_bytes(gpa, bytes)).to_le_bytes();
        for (gpa, width, at) in pieces(gpa, bytes.min(16).into()) {
            self.mmio_write_elsewhere(gpa, width.bytes() as u8, piece_of(&new, width, at));
        }
    }

    #[inline(always)]
    fn hypercall(&mut self, number: u64, arguments: [u64; 4]) -> u64 {
        if let Some(result) = self.life_call(number, arguments) {
            return result;
        }
        self.service.hypercall(self.domain, number, arguments, self)
    }

    fn set_pv_eoi(&mut self, at: Option<Gpa>) {
        // It fails only where the processor ends interrupts, and there the guest has no such register.
        let _ = CallingGuest::set_pv_eoi(self, at);
    }

    fn bus_lock(&mut self, now: u64) -> Option<u64> {
        self.vm.bus_locks.lock().count(now)
    }

    fn make_executable(&mut self, gpa: Gpa) -> Result<bool, &'static str> {
        let Some(ept) = &self.vm.resources.ept else { return Ok(false) };
        ept.make_executable(&FRAMES, gpa).map_err(|_| "memory ran out for pages that it executes")
    }

    fn ipi(&mut self, ipi: Ipi) {
        self.vm.send(self.number, ipi);
    }
}

/// Reads a store's shadow, at any alignment.
///
/// # Safety
/// The shadow is mapped over the whole page that `offset` leads to.
unsafe fn read_shadow(shadow: Hpa, offset: u64, bytes: u8) -> u64 {
    (0..u64::from(bytes.min(8))).fold(0, |value, at| {
        // SAFETY: the caller vouches for the page, and an access does not leave it.
        let byte = unsafe { read_volatile((shadow.as_u64() + offset + at) as *const u8) };
        value | u64::from(byte) << (8 * at)
    })
}

/// Reads a register with the guest's width. An unaligned read returns ones, as on a bus without such an access.
///
/// # Safety
/// Registers are mapped at `base`, uncached, over the whole page that `offset` leads to.
unsafe fn read_device(base: Hpa, offset: u64, bytes: u8) -> u64 {
    let address = base.as_u64() + offset;
    if !address.is_multiple_of(u64::from(bytes.max(1))) {
        return u64::MAX;
    }
    // SAFETY: the caller vouches for the page, and an aligned access does not leave it.
    unsafe {
        match bytes {
            1 => read_volatile(address as *const u8).into(),
            2 => read_volatile(address as *const u16).into(),
            4 => read_volatile(address as *const u32).into(),
            8 => read_volatile(address as *const u64),
            _ => u64::MAX,
        }
    }
}

/// Writes a register with the guest's width. An unaligned write is dropped.
///
/// # Safety
/// As for [`read_device`]; besides, the device reaches no memory but its guest's.
unsafe fn write_device(base: Hpa, offset: u64, bytes: u8, value: u64) {
    let address = base.as_u64() + offset;
    if !address.is_multiple_of(u64::from(bytes.max(1))) {
        return;
    }
    // SAFETY: the caller vouches for the page and the device, and an aligned access does not leave the page.
    unsafe {
        match bytes {
            1 => write_volatile(address as *mut u8, value as u8),
            2 => write_volatile(address as *mut u16, value as u16),
            4 => write_volatile(address as *mut u32, value as u32),
            8 => write_volatile(address as *mut u64, value),
            _ => {}
        }
    }
}
