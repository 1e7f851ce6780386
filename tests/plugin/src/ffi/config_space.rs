//! Configuration space: the ECAM window, and the data port.
//!
//! Bochs knows buses 0 and 1. So functions on other buses are the plugin's alone, and the data port is the plugin's where there are some.

use super::host::Bochs;
use super::symbols::{PortReader, PortWriter};
use super::{PLUGIN, Plugin};
use std::ffi::c_void;

const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;
/// Lengths for which Bochs asks a port's handler: 1, 2 and 4, as bits.
const ALL_LENGTHS: u8 = 7;

/// A requester ID and a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    source: u16,
    register: u16,
}

impl Place {
    /// As an offset in the ECAM window says.
    fn of_ecam(offset: u64) -> Self {
        Self { source: (offset >> 12) as u16, register: (offset & 0xfff) as u16 }
    }

    /// As the address port and the data port's number say; `None` while the address is not enabled.
    fn of_ports(address: u32, port: u32) -> Option<Self> {
        const ENABLED: u32 = 1 << 31;
        let register = (address & 0xfc | port & 3) as u16;
        (address & ENABLED != 0).then_some(Self { source: (address >> 8) as u16, register })
    }

    fn is_on_bus_0(self) -> bool {
        self.source <= 0xff
    }

    /// Does something to the data port with the address port set to this place on bus 0, and sets it back.
    fn through_ports<R>(self, plugin: &Plugin, action: impl FnOnce(&Bochs<'_>, u16) -> R) -> R {
        let host = Bochs::new(&plugin.symbols);
        let before = host.port_in(CONFIG_ADDRESS, 4);
        let address = 1 << 31 | u32::from(self.source) << 8 | u32::from(self.register & 0xfc);
        host.port_out(CONFIG_ADDRESS, address, 4);
        let result = action(&host, CONFIG_DATA + (self.register & 3));
        host.port_out(CONFIG_ADDRESS, before, 4);
        result
    }

    /// Reads a DSA's register; nobody else is there.
    fn read_ours(self, plugin: &Plugin, len: usize) -> u32 {
        let read = |machine: &mut crate::machine::Machine| {
            machine.dsa_at(self.source).map(|dsa| machine.config_read(dsa, self.register, len))
        };
        plugin.with(|machine, _| read(machine)).flatten().unwrap_or(u32::MAX)
    }

    fn write_ours(self, plugin: &Plugin, len: usize, value: u32) {
        plugin.with(|machine, host| {
            if let Some(dsa) = machine.dsa_at(self.source) {
                machine.config_write(dsa, self.register, len, value, host);
            }
        });
    }
}

/// Accesses within an aligned dword, as on the bus.
fn is_whole(offset: u64, len: usize) -> bool {
    matches!(len, 1 | 2 | 4) && offset.is_multiple_of(len as u64)
}

/// Reads the ECAM window. The first 256 bytes of functions on bus 0 come by the ports, so that both ways always agree.
pub(super) fn ecam_read(plugin: &Plugin, offset: u64, len: usize) -> u32 {
    let place = Place::of_ecam(offset);
    if !is_whole(offset, len) {
        u32::MAX
    } else if place.is_on_bus_0() && place.register < 0x100 {
        place.through_ports(plugin, |host, port| host.port_in(port, len as u32))
    } else {
        place.read_ours(plugin, len)
    }
}

/// Writes the ECAM window.
pub(super) fn ecam_write(plugin: &Plugin, offset: u64, len: usize, value: u32) {
    let place = Place::of_ecam(offset);
    if !is_whole(offset, len) {
    } else if place.is_on_bus_0() && place.register < 0x100 {
        place.through_ports(plugin, |host, port| host.port_out(port, value, len as u32));
    } else {
        place.write_ours(plugin, len, value);
    }
}

/// Which place the address port names, if it is not on bus 0 (which is Bochs').
fn named(plugin: &Plugin, port: u32) -> Option<Place> {
    let address = Bochs::new(&plugin.symbols).port_in(CONFIG_ADDRESS, 4);
    Place::of_ports(address, port).filter(|place| !place.is_on_bus_0())
}

unsafe extern "C" fn data_read(object: *mut c_void, port: u32, len: u32) -> u32 {
    let Some(plugin) = PLUGIN.get() else { return u32::MAX };
    match named(plugin, port) {
        Some(place) => place.read_ours(plugin, len as usize),
        // SAFETY: Bochs' own handler, with the object that it was registered with.
        None => unsafe { (plugin.symbols.read_port)(object, port, len) },
    }
}

unsafe extern "C" fn data_write(object: *mut c_void, port: u32, value: u32, len: u32) {
    let Some(plugin) = PLUGIN.get() else { return };
    match named(plugin, port) {
        Some(place) => place.write_ours(plugin, len as usize, value),
        // SAFETY: as in `data_read`.
        None => unsafe { (plugin.symbols.write_port)(object, port, value, len) },
    }
}

/// Puts our handlers of the data port in the place of Bochs'.
pub(super) fn take_data_port(plugin: &Plugin) -> Result<(), String> {
    let symbols = &plugin.symbols;
    let devices = symbols.devices.0;
    let (read, write): (PortReader, PortWriter) = (symbols.read_port, symbols.write_port);
    (CONFIG_DATA..CONFIG_DATA + 4).map(u32::from).try_for_each(|port| {
        // SAFETY: the object is `bx_devices`, whose own handlers these are; ours are functions of this library, which stays loaded, and
        // call Bochs' with the same object.
        let taken = unsafe {
            (symbols.unregister_port_read)(devices, devices, read, port, ALL_LENGTHS)
                && (symbols.unregister_port_write)(devices, devices, write, port, ALL_LENGTHS)
                && (symbols.register_port_read)(devices, devices, data_read, port, c"IMS".as_ptr(), ALL_LENGTHS)
                && (symbols.register_port_write)(devices, devices, data_write, port, c"IMS".as_ptr(), ALL_LENGTHS)
        };
        if taken { Ok(()) } else { Err(format!("port {port:#x} cannot be taken over")) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_name_the_same_places() {
        let (of_ecam, of_ports) = (Place::of_ecam, Place::of_ports);
        let function = 0x6a << 8 | 1 << 3;
        assert_eq!(of_ecam(u64::from(function) << 12 | 0x142), Place { source: function, register: 0x142 });
        let address = 1 << 31 | u32::from(function) << 8 | 0x40;
        assert_eq!(of_ports(address, 0xcfe), Some(Place { source: function, register: 0x42 }));
        assert_eq!(of_ports(address & !(1 << 31), 0xcfe), None, "the address is not enabled");
        assert!(of_ecam(0xff << 12).is_on_bus_0() && !of_ecam(0x100 << 12).is_on_bus_0());
    }
}
