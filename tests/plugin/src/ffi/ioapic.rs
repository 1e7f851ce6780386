//! Our I/O APIC in the place of Bochs' own.
//!
//! Devices and local APICs reach the I/O APIC by a pointer in `bx_devices` (`pluginIOAPIC`), and only by its virtual functions; software
//! reaches it by a memory handler. Both are Bochs' own at first, and ours from then on.

use super::symbols::{self, Symbols};
use super::{PLUGIN, Vtable, handlers};
use crate::ioapic::REGISTERS;
use std::ffi::{c_char, c_int, c_void};
use std::ptr;

/// What `bx_devices` points to.
#[repr(C)]
struct Object {
    vtable: *const c_void,
    /// Room for the fields of the C++ class, which nobody uses.
    fields: [u64; 64],
}

// SAFETY: nothing changes the object, and what it points to is static.
unsafe impl Sync for Object {}

/// The virtual functions of `bx_ioapic_stub_c`, in the order of its declaration (iodev.h).
#[repr(C)]
struct Methods {
    complete_destructor: extern "C" fn(*mut Object),
    deleting_destructor: extern "C" fn(*mut Object),
    init: extern "C" fn(*mut Object),
    reset: extern "C" fn(*mut Object, u32),
    register_state: extern "C" fn(*mut Object),
    after_restore_state: extern "C" fn(*mut Object),
    debug_dump: extern "C" fn(*mut Object, c_int, *mut *mut c_char),
    set_enabled: extern "C" fn(*mut Object, bool, u16),
    receive_eoi: extern "C" fn(*mut Object, u8),
    set_irq_level: extern "C" fn(*mut Object, u8, bool),
}

static VTABLE: Vtable<Methods> = Vtable::new(Methods {
    complete_destructor: nothing,
    deleting_destructor: nothing,
    init: nothing,
    reset,
    register_state: nothing,
    after_restore_state: nothing,
    debug_dump,
    set_enabled,
    receive_eoi,
    set_irq_level,
});

static OBJECT: Object = Object { vtable: (&raw const VTABLE.methods).cast(), fields: [0; 64] };

extern "C" fn nothing(_: *mut Object) {}

/// The plugin resets the model together with the others.
extern "C" fn reset(_: *mut Object, _: u32) {}

extern "C" fn debug_dump(_: *mut Object, _: c_int, _: *mut *mut c_char) {}

/// The south bridge can move the registers or hide them (XBCS, APICBASE). Nobody does, so they stay where they are.
extern "C" fn set_enabled(_: *mut Object, _: bool, _: u16) {}

extern "C" fn receive_eoi(_: *mut Object, vector: u8) {
    if let Some(plugin) = PLUGIN.get() {
        plugin.with(|machine, host| machine.ioapic_eoi(vector, host));
    }
}

extern "C" fn set_irq_level(_: *mut Object, pin: u8, asserted: bool) {
    /// The 8254's line is at pin 2 (ICH10 datasheet, 13.5, and the MADT's override).
    const TIMER: usize = 2;
    let pin = if pin == 0 { TIMER } else { pin.into() };
    if let Some(plugin) = PLUGIN.get() {
        plugin.with(|machine, host| machine.ioapic_line(pin, asserted, host));
    }
}

/// Puts ours in the place of Bochs'. To be called when Bochs initialises devices, after its I/O APIC.
pub(super) fn replace(symbols: &Symbols) -> Result<(), String> {
    let own = symbols::ioapic()?;
    let devices = symbols::words(symbols.devices.0)?;
    let place = devices.filter(|place| {
        // SAFETY: the place is a word of the object `bx_devices`.
        unsafe { place.read() == own }
    });
    let [place] = place.collect::<Vec<_>>()[..] else {
        return Err("bx_devices does not point to Bochs' I/O APIC".to_string());
    };
    let (first, last) = (*REGISTERS.start(), *REGISTERS.end());
    // SAFETY: the registers are those that the object registered, with itself as the parameter.
    if !unsafe { (symbols.unregister_memory)(own, first, last) } {
        return Err("Bochs' I/O APIC has no registers".to_string());
    }
    let (read, write) = (handlers::ioapic_read, handlers::ioapic_write);
    // SAFETY: the handlers are functions of this library, which stays loaded; there is no direct access.
    if !unsafe { (symbols.register_memory)(ptr::null_mut(), read, write, ptr::null_mut(), first, last) } {
        return Err(format!("{first:#x} to {last:#x} are taken"));
    }
    // SAFETY: the place holds a pointer to an object of the class whose virtual functions ours has; ours is never written.
    unsafe { place.write((&raw const OBJECT).cast_mut().cast()) };
    Ok(())
}
