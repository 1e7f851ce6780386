//! The device object that Bochs sees: a `bx_pci_device_c` made by hand.
//!
//! Its vtable pointer comes first, then the fields of the C++ class, whose layout is Bochs' own affair: they get more room
//! than any version needs. The vtable is that of the Itanium C++ ABI.

use super::symbols::Symbols;
use super::{PLUGIN, Vtable, handlers, install, objects, timers};
use crate::layout::Bar;
use crate::options::Options;
use dsa_model::spec;
use std::ffi::{c_char, c_int, c_void};
use std::ptr;

/// More than `sizeof(bx_pci_device_c)` of any version (2.7: below 600 bytes).
const ROOM: usize = 2048;

#[repr(C, align(16))]
struct Device {
    vtable: *const c_void,
    fields: [u8; ROOM],
}

/// The virtual functions of `bx_pci_device_c`, in the order of its declaration (iodev.h).
#[repr(C)]
struct Methods {
    complete_destructor: extern "C" fn(*mut Device),
    deleting_destructor: extern "C" fn(*mut Device),
    init: extern "C" fn(*mut Device),
    reset: extern "C" fn(*mut Device, u32),
    register_state: extern "C" fn(*mut Device),
    after_restore_state: extern "C" fn(*mut Device),
    debug_dump: extern "C" fn(*mut Device, c_int, *mut *mut c_char),
    pci_read: extern "C" fn(*mut Device, u8, u32) -> u32,
    pci_write: extern "C" fn(*mut Device, u8, u32, u32),
    bar_change_notify: extern "C" fn(*mut Device),
}

static VTABLE: Vtable<Methods> = Vtable::new(Methods {
    complete_destructor: nothing,
    deleting_destructor: nothing,
    init,
    reset,
    register_state: nothing,
    after_restore_state: nothing,
    debug_dump,
    pci_read,
    pci_write,
    bar_change_notify: nothing,
});

/// Registers the device with Bochs.
///
/// # Safety
///
/// `plugin` and `kind` are those that Bochs passed to INIT, and it happens once.
pub(super) unsafe fn register(symbols: &Symbols, plugin: *mut c_void, kind: u16) {
    let object = make(symbols, 0);
    // SAFETY: the caller's promise; the object stays, and so does the name.
    unsafe { (symbols.register_device)(plugin, kind, object.cast(), c"ims".as_ptr()) };
}

/// An object for PCI function `number`. Bochs keeps pointers to it until the process ends.
fn make(symbols: &Symbols, number: usize) -> *mut Device {
    let device: &'static mut Device = Box::leak(Box::new(Device { vtable: ptr::null(), fields: [0; ROOM] }));
    let object: *mut Device = device;
    let vtable = (&raw const VTABLE.methods).cast();
    // SAFETY: the object has room for `logfunctions`, the class's base, and is zeroed. The constructor sets the vtable pointer
    // to its own, so ours follows. The names are C strings that stay.
    unsafe {
        (symbols.construct_log)(object.cast());
        (*object).vtable = vtable;
        (symbols.name_log)(object.cast(), c"ims".as_ptr(), c"IMS".as_ptr());
    }
    objects::keep(number, object.cast());
    object
}

extern "C" fn nothing(_: *mut Device) {}

extern "C" fn debug_dump(_: *mut Device, _: c_int, _: *mut *mut c_char) {}

/// The first moment at which memory, timers and PCI functions may be registered.
extern "C" fn init(device: *mut Device) {
    let Some(plugin) = PLUGIN.get() else { return };
    let installed = install::install(plugin).and_then(|()| install_functions(&plugin.symbols, device, &plugin.options));
    if let Err(error) = installed {
        // There is nobody to return an error to, and the machine is not what was asked for.
        eprintln!("libbx_ims: {error}");
        std::process::exit(1);
    }
}

/// The DSAs on bus 0, which Bochs has to know. The first one's object is the one that Bochs initialises.
fn install_functions(symbols: &Symbols, first: *mut Device, options: &Options) -> Result<(), String> {
    let all = options.layout().dsas.into_iter().take(options.dsas()).enumerate();
    let on_bus_0 = all.filter_map(|(n, source)| Some((n, u8::try_from(source).ok()?)));
    on_bus_0.into_iter().try_for_each(|(n, place)| {
        let device = if n == 0 { first } else { make(symbols, n) };
        install_function(symbols, device, place, options)
    })
}

/// A PCI function with its two BARs.
fn install_function(symbols: &Symbols, device: *mut Device, place: u8, options: &Options) -> Result<(), String> {
    let mut function = place;
    let device: *mut c_void = device.cast();
    // SAFETY: `device` is our object, which Bochs passed to its init; the strings stay; the handlers are of this library.
    let registered = unsafe {
        (symbols.register_pci)(symbols.devices.0, device, &mut function, c"ims".as_ptr(), c"DSA model".as_ptr(), 0)
    };
    if !registered || function != place {
        return Err(format!("PCI function 00:{:02x}.0 is taken", place >> 3));
    }
    let [registers, portals] = [Bar::Registers, Bar::Portals].map(|bar| options.bar_bytes(bar) as u32);
    // SAFETY: `device` was registered just now as the function's object; the handlers are of this library, which stays loaded.
    unsafe {
        (symbols.init_config)(device, spec::VENDOR_ID, spec::DEVICE_ID, 0, spec::CLASS, 0, 0);
        (symbols.init_bar)(device, 0, registers, handlers::bar0_read, handlers::bar0_write);
        (symbols.init_bar)(device, 2, portals, handlers::portal_read, handlers::portal_write);
    }
    Ok(())
}

extern "C" fn reset(_: *mut Device, _: u32) {
    if let Some(plugin) = PLUGIN.get() {
        timers::reset(plugin);
    }
}

/// Registers that Bochs keeps itself: the BARs, the ROM's address, the interrupt line.
fn kept_by_bochs(register: u8) -> bool {
    matches!(register, 0x10..=0x27 | 0x30..=0x33 | 0x3c..=0x3f)
}

extern "C" fn pci_read(device: *mut Device, register: u8, len: u32) -> u32 {
    let Some(plugin) = PLUGIN.get() else { return u32::MAX };
    if kept_by_bochs(register) {
        // SAFETY: `device` is our object, which Bochs passed; the registers lie within its 256 bytes.
        return unsafe { (plugin.symbols.read_config)(device.cast(), register, len) };
    }
    let number = objects::number(device.cast());
    plugin.with(|machine, _| machine.config_read(number, register.into(), len as usize)).unwrap_or(u32::MAX)
}

extern "C" fn pci_write(device: *mut Device, register: u8, value: u32, len: u32) {
    if let Some(plugin) = PLUGIN.get() {
        let number = objects::number(device.cast());
        plugin.with(|machine, host| machine.config_write(number, register.into(), len as usize, value, host));
    }
}
