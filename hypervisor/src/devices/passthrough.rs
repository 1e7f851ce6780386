//! A PCI function assigned to a guest as a whole: its view in the guest, and its setup and reset on the machine.

mod assignment;

use core::time::Duration;

use hcall_abi::DeviceId;

use crate::{
    addr::Bdf,
    clock,
    devices::{
        command_arbiter::QUICK,
        dsa, patience,
        reset::{ResetMethod, Resetting},
    },
    ims::{Domain, GuestId},
    irq::ports::{MachinePorts, MachineService},
    machine::discovery::Machine,
    pci::{self, Function, reset::Progress},
    vdev::pci::Effect,
};

pub use self::assignment::{Prepared, attach, make_room, prepare, slots};

/// A function in a guest's hands.
pub struct Assigned {
    /// The function's name in the guest.
    pub id: DeviceId,
    machine: &'static Machine,
    function: Function,
    reset_method: ResetMethod,
    /// Whether its requests can have PASIDs.
    pasids: bool,
    state: State,
    settings: GuestSettings,
    /// Whether the log has said that the guest moves the function's BARs.
    moves_told: bool,
    /// Whether the log has said that the device does not finish its reset.
    reset_told: bool,
}

/// Whether the function can be accessed.
enum State {
    /// The function answers.
    Ready,
    /// The guest has reset the function.
    Resetting(Resetting),
    /// The function has not answered since its reset.
    Lost,
}

/// The guest's settings in the function's configuration space. The function gets them when it can be accessed.
#[derive(Clone, Copy, Default)]
struct GuestSettings {
    bus_master: bool,
    msix_enable: bool,
    msix_mask: bool,
}

impl Assigned {
    /// The function's address on the machine.
    pub fn bdf(&self) -> Bdf {
        self.function.bdf
    }

    /// Handles a guest's write to the function's configuration space. Returns whether the function has to be polled from now on
    /// ([`Self::look`]).
    pub fn configure(&mut self, effect: Effect, service: &MachineService, domain: &Domain) -> bool {
        match effect {
            Effect::None => {}
            Effect::Command { bus_master, .. } => {
                self.settings.bus_master = bus_master;
                self.apply_bus_master();
            }
            Effect::BarMoved(bar) if !self.moves_told => {
                self.moves_told = true;
                log::info!("{}: its guest tries to move BAR {bar}, which stays where it is", self.function.bdf);
            }
            Effect::BarMoved(_) => {}
            Effect::Msix { enable, function_mask } => {
                (self.settings.msix_enable, self.settings.msix_mask) = (enable, function_mask);
                self.apply_msix();
            }
            Effect::Reset => self.reset(service, domain),
        }
        matches!(self.state, State::Resetting(_))
    }

    /// Whether the virtual processor that resets the function waits for the end: while a DSA carries out its command. From any other function
    /// the guest itself has to keep away.
    pub fn keeps_its_guest(&self) -> bool {
        matches!(self.state, State::Resetting(Resetting::Command { .. }))
    }

    /// Whether the guest's settings go to the function at once.
    fn takes_settings(&self) -> bool {
        matches!(self.state, State::Ready | State::Resetting(Resetting::Command { is_guests: true, .. }))
    }

    fn apply_bus_master(&self) {
        let (config, bdf) = (self.machine.config(), self.function.bdf);
        match self.takes_settings() {
            true if self.settings.bus_master => pci::function::enable(config, bdf),
            true => pci::function::disable_bus_master(config, bdf),
            false => {}
        }
    }

    fn apply_msix(&self) {
        let GuestSettings { msix_enable, msix_mask, .. } = self.settings;
        if self.takes_settings() {
            pci::function::set_msix(self.machine.config(), &self.function, msix_enable, msix_mask);
        }
    }

    /// Handles a reset of the function by the guest (PCIe 6.6.2). The service resets the slots first, while the tables can be written.
    fn reset(&mut self, service: &MachineService, domain: &Domain) {
        self.settings = GuestSettings::default();
        // An error leaves an interrupt pending, which comes when the guest unmasks it: one too many.
        let _ = service.function_reset(domain, self.id);
        if !self.takes_settings() {
            return;
        }
        match self.reset_method.begin(self.machine, &self.function) {
            // A command that the guest has given by itself may be lost: the device ignores one that comes while another is under way.
            Some(resetting) => self.state = State::Resetting(resetting),
            None => self.log_reset(),
        }
        if self.keeps_its_guest() {
            self.look(service, domain, QUICK);
        }
        self.apply_bus_master();
        self.apply_msix();
    }

    /// The guest has reset its DSA by the device's command register. Returns whether the function has to be polled from now on
    /// ([`Self::look`]), because the device takes longer than [`QUICK`].
    pub fn command_written(&mut self, service: &MachineService, domain: &Domain) -> bool {
        if matches!(self.state, State::Ready) {
            let command = dsa::Resetting::written(clock::current());
            self.state = State::Resetting(Resetting::Command { command, is_guests: true });
        }
        self.look(service, domain, QUICK)
    }

    /// Polls a reset that the guest asked for, a DSA's for `limit` at most. Returns whether the reset is still under way.
    pub fn look(&mut self, service: &MachineService, domain: &Domain, limit: Duration) -> bool {
        let State::Resetting(resetting) = &mut self.state else { return false };
        let progress = self.reset_method.look(resetting, self.machine, &self.function, limit);
        if progress == Progress::UnderWay {
            return true;
        }
        let (is_done, is_command) = (progress == Progress::Done, self.keeps_its_guest());
        if is_done && is_command {
            service.ports().mend_slow_store(self.function.bdf);
        }
        self.end_reset(is_done);
        // An error means that the device is not in the domain any more.
        let _ = match (is_command, is_done) {
            // The device has masked all slots of its store by itself; the service forgets what they held.
            (true, _) => service.device_reset(domain, self.id),
            // The function has not seen what the guest has written into its table meanwhile.
            (false, true) => service.function_ready(domain, self.id),
            (false, false) => Ok(()),
        };
        false
    }

    /// The reset that was under way is over.
    fn end_reset(&mut self, is_done: bool) {
        if !is_done {
            self.log_reset();
        }
        match core::mem::replace(&mut self.state, State::Ready) {
            State::Resetting(Resetting::Command { is_guests: true, .. }) => {}
            // A DSA that does not finish its reset may still take the next one.
            State::Resetting(Resetting::Command { is_guests: false, .. }) => self.come_back(),
            _ if is_done => self.come_back(),
            _ => self.state = State::Lost,
        }
    }

    /// Writes the guest's settings to the function, which answers again after its reset.
    fn come_back(&mut self) {
        self.state = State::Ready;
        let config = self.machine.config();
        if let Some(capability) = self.function.pasid.filter(|_| self.pasids) {
            pci::function::set_pasid_enable(config, self.function.bdf, capability, true);
        }
        pci::function::enable_memory(config, self.function.bdf);
        self.apply_msix();
        self.apply_bus_master();
    }

    /// Logs once that the device does not come back.
    fn log_reset(&mut self) {
        if !core::mem::replace(&mut self.reset_told, true) {
            log::warn!("{}: does not finish its reset", self.function.bdf);
        }
    }

    /// Stops the function's work, before its interrupts and its memory are taken away.
    pub fn quiesce(&mut self) {
        if !self.is_back() {
            log::error!("{}: does not answer to a reset", self.function.bdf);
            return;
        }
        self.reset_method.stop(self.machine, &self.function);
        if let Some(capability) = self.function.pasid {
            pci::function::set_pasid_enable(self.machine.config(), self.function.bdf, capability, false);
        }
        pci::function::set_msix(self.machine.config(), &self.function, false, true);
    }

    /// Waits for a reset that is under way, for 1.2 seconds at most, while others run. Returns whether the function can be accessed.
    fn is_back(&mut self) -> bool {
        while let State::Resetting(resetting) = &mut self.state {
            match self.reset_method.look(resetting, self.machine, &self.function, Duration::ZERO) {
                Progress::UnderWay => patience::others(),
                end => self.end_reset(end == Progress::Done),
            }
        }
        matches!(self.state, State::Ready)
    }

    /// Closes the function's path to memory. Returns whether it is closed for sure.
    pub fn release(self, guest: GuestId, ports: &MachinePorts) -> bool {
        ports.detach(guest, self.function.bdf)
    }
}

/// The assigned function with this name in the guest.
pub fn by_id(functions: &mut [Assigned], id: DeviceId) -> Option<&mut Assigned> {
    functions.iter_mut().find(|assigned| assigned.id == id)
}
