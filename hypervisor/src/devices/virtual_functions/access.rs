//! What guests do to their functions: registers and configuration space.

use alloc::sync::Arc;

use crate::{
    devices::command_arbiter::QUICK,
    ims::{Domain, GuestId},
    irq::ports::MachineService,
    vdev::pci::Effect,
};

use super::{Parent, function::Name};

impl Parent {
    /// The service has taken a guest in: its functions can be signalled from now on.
    pub fn admit(&self, guest: GuestId, domain: &Arc<Domain>) {
        for function in self.state.lock().functions.iter_mut().filter(|function| function.name.0 == guest) {
            function.domain = Some(Arc::clone(domain));
        }
    }

    /// A guest has written outside of its function's MSI-X table. `None` when the function is not one of the parent's.
    pub fn write(&self, name: Name, offset: u64, bytes: u8, value: u64, service: &MachineService) -> Option<()> {
        let mut state = self.state.lock();
        let function = state.function(name)?;
        let effect = function.registers.write(offset, bytes, value);
        self.apply(function, effect, service);
        self.advance(&mut state, QUICK, service);
        if self.interrupt.is_none() && !self.notice_halt(&mut state, service) {
            // Who writes asks for the look.
            self.hand_out_events(service, &mut state.functions, &mut |_, _| ());
        }
        Some(())
    }

    /// What a guest reads outside of its function's MSI-X table. `None` when the function is not one of the parent's.
    pub fn read(&self, name: Name, offset: u64, bytes: u8, service: &MachineService) -> Option<u64> {
        let mut state = self.state.lock();
        let function = state.function(name)?;
        if bytes > 8 || !offset.is_multiple_of(u64::from(bytes.max(1))) {
            return Some(u64::MAX);
        }
        let quadword = function.quadword(offset & !7, service);
        Some(quadword >> (8 * (offset % 8)) & u64::MAX >> (64 - 8 * u32::from(bytes.max(1))))
    }

    /// A guest has written to its function's configuration space. `None` when the function is not one of the parent's.
    pub fn configure(&self, name: Name, effect: Effect, service: &MachineService) -> Option<()> {
        let mut state = self.state.lock();
        let function = state.function(name)?;
        let sent = function.sends();
        match effect {
            Effect::Command { bus_master, .. } => {
                function.bus_master = bus_master;
                let effect = function.registers.set_bus_master(bus_master);
                self.apply(function, effect, service);
            }
            Effect::Msix { enable, function_mask } => {
                (function.msix_enabled, function.function_masked) = (enable, function_mask);
            }
            Effect::Reset => {
                (function.bus_master, function.msix_enabled, function.function_masked) = (false, false, false);
                let effect = function.registers.reset_function();
                if let Some(domain) = &function.domain {
                    // What cannot be dropped comes when the guest unmasks it: one interrupt too many.
                    let _ = service.function_reset(domain, name.1);
                }
                self.apply(function, effect, service);
                self.advance(&mut state, QUICK, service);
                return Some(());
            }
            // BARs stay where they are.
            Effect::None | Effect::BarMoved(_) => {}
        }
        if function.sends() != sent
            && let Some(domain) = &function.domain
        {
            let _ = service.mask_table(domain, name.1, sent);
        }
        self.advance(&mut state, QUICK, service);
        Some(())
    }
}
