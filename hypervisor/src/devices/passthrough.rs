//! A PCI function assigned to a guest as a whole: its view in the guest, and its setup and reset on the machine.

mod assignment;

use hcall_abi::DeviceId;

use crate::{
    addr::Bdf,
    devices::{
        dsa, patience,
        reset::{Begun, ResetMethod},
    },
    ims::{Domain, GuestId},
    irq::ports::{MachinePorts, MachineService},
    machine::discovery::Machine,
    pci::{
        self, Function,
        reset::{Progress, Resetting},
    },
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
    /// The guest has reset the function, which must not be accessed.
    Resetting(Resetting<'static>),
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

    fn apply_bus_master(&self) {
        let (config, bdf) = (self.machine.config(), self.function.bdf);
        match self.state {
            State::Ready if self.settings.bus_master => pci::function::enable(config, bdf),
            State::Ready => pci::function::disable_bus_master(config, bdf),
            State::Resetting(_) | State::Lost => {}
        }
    }

    fn apply_msix(&self) {
        let GuestSettings { msix_enable, msix_mask, .. } = self.settings;
        if matches!(self.state, State::Ready) {
            pci::function::set_msix(self.machine.config(), &self.function, msix_enable, msix_mask);
        }
    }

    /// Handles a reset of the function by the guest (PCIe 6.6.2). The service resets the slots first, while the tables can be written.
    fn reset(&mut self, service: &MachineService, domain: &Domain) {
        self.settings = GuestSettings::default();
        // An error leaves an interrupt pending, which comes when the guest unmasks it: one too many.
        let _ = service.function_reset(domain, self.id);
        if !matches!(self.state, State::Ready) {
            return;
        }
        match self.reset_method.begin(self.machine, &self.function) {
            Begun::Over(true) => service.ports().mend_slow_store(self.function.bdf),
            Begun::Over(false) => self.log_reset(),
            Begun::UnderWay(resetting) => self.state = State::Resetting(resetting),
        }
        self.apply_bus_master();
        self.apply_msix();
    }

    /// Polls a reset that the guest asked for. Returns whether the reset is still under way.
    pub fn look(&mut self, service: &MachineService, domain: &Domain) -> bool {
        let State::Resetting(resetting) = &mut self.state else { return false };
        match resetting.look(self.machine.config(), &self.function) {
            Progress::UnderWay => return true,
            Progress::Done => {
                self.come_back();
                // The function has not seen what the guest has written into its table meanwhile. An error means that the device is not in the
                // domain any more.
                let _ = service.function_ready(domain, self.id);
            }
            Progress::Failed => {
                self.state = State::Lost;
                self.log_reset();
            }
        }
        false
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

    /// Whether a DSA has ended its last command. Also true if the device must not be asked, because another processor of the guest has
    /// begun a reset of the function.
    pub fn is_idle(&self) -> bool {
        !matches!(self.state, State::Ready)
            || self.reset_method.registers().is_none_or(|registers| dsa::command_result(registers).is_some())
    }

    /// Handles a reset of the device by its command register. `answered` is set if the device ended the command in time. If a reset of the
    /// function has begun meanwhile, its end does the rest.
    pub fn was_reset(&mut self, answered: bool, service: &MachineService, domain: &Domain) {
        if !matches!(self.state, State::Ready) {
            return;
        }
        if answered {
            service.ports().mend_slow_store(self.function.bdf);
        } else {
            self.log_reset();
        }
        // The device has masked all slots of its store by itself; the service forgets what they held.
        let _ = service.device_reset(domain, self.id);
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

    /// Waits for a reset that is under way, for 1.1 seconds at most, while others run. Returns whether the function can be accessed.
    fn is_back(&mut self) -> bool {
        while let State::Resetting(resetting) = &mut self.state {
            match resetting.look(self.machine.config(), &self.function) {
                Progress::UnderWay => patience::others(),
                Progress::Done => self.come_back(),
                Progress::Failed => self.state = State::Lost,
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
