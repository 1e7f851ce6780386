//! The boundary to Bochs, and all of the crate's unsafe code.
//!
//! Bochs is a C++ program that offers no C interface; what is used of it are symbols of its binary, found at run time
//! ([`symbols`]), and the layout of its device classes ([`device`]).

mod config_space;
mod device;
mod handlers;
mod host;
mod install;
mod ioapic;
mod objects;
mod progress;
mod symbols;
mod timers;

use crate::machine::Machine;
use crate::options::Options;
use std::ffi::{c_int, c_void};
use std::sync::{Mutex, OnceLock};
use symbols::Symbols;

/// A vtable as the Itanium C++ ABI lays it out: offset to top and type information (none) lie before the address point, where the
/// methods begin.
#[repr(C)]
struct Vtable<Methods> {
    offset_to_top: isize,
    type_information: usize,
    methods: Methods,
}

impl<Methods> Vtable<Methods> {
    const fn new(methods: Methods) -> Self {
        Self { offset_to_top: 0, type_information: 0, methods }
    }
}

/// What INIT set up.
struct Plugin {
    symbols: Symbols,
    options: Options,
    machine: Mutex<Machine>,
}

static PLUGIN: OnceLock<Plugin> = OnceLock::new();

impl Plugin {
    /// Uses the machine, unless it is in use: then the access comes from the machine itself, and it is refused. (Bochs runs
    /// devices and processors in one thread.)
    fn with<R>(&self, action: impl FnOnce(&mut Machine, &mut host::Bochs<'_>) -> R) -> Option<R> {
        let mut machine = self.machine.try_lock().ok()?;
        Some(action(&mut machine, &mut host::Bochs::new(&self.symbols)))
    }
}

/// The variable that names the file for the counters.
const REPORT: &str = "IMSVISOR_PLUGIN_REPORT";

/// Writes the counters.
extern "C" fn write_report() {
    let (Some(path), Some(plugin)) = (std::env::var_os(REPORT), PLUGIN.get()) else { return };
    if let Some(text) = plugin.with(|machine, _| machine.report())
        && let Err(error) = std::fs::write(&path, text)
    {
        eprintln!("libbx_ims: {}: {error}", path.display());
    }
}

unsafe extern "C" {
    fn atexit(function: extern "C" fn()) -> c_int;
}

/// Sets everything up that does not need Bochs' device to exist.
fn set_up() -> Result<(), String> {
    let options = Options::parse(&std::env::var(Options::VARIABLE).unwrap_or_default())?;
    let machine = Mutex::new(Machine::new(&options));
    let plugin = Plugin { symbols: Symbols::find()?, options, machine };
    PLUGIN.set(plugin).map_err(|_| "initialised twice".to_string())?;
    // SAFETY: the function takes nothing and may run at any time; glibc runs it at exit or when this library is closed.
    if unsafe { atexit(write_report) } != 0 {
        return Err("atexit failed".to_string());
    }
    Ok(())
}

// Bochs' PLUGIN_FINI, PLUGIN_INIT, PLUGIN_PROBE and PLUGIN_FLAGS, and PLUGTYPE_OPTIONAL (its plugin.h).
const FINI: u8 = 0;
const INIT: u8 = 1;
const PROBE: u8 = 2;
const OPTIONAL: c_int = 4;

/// The plugin's one entry, which Bochs calls with what it wants.
///
/// # Safety
///
/// `plugin` is what Bochs passes: the handle that it wants back at registration.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn libims_plugin_entry(plugin: *mut c_void, kind: u16, mode: u8) -> c_int {
    match mode {
        PROBE => OPTIONAL,
        INIT => match set_up() {
            Ok(()) => {
                let Some(ready) = PLUGIN.get() else { return 1 };
                // SAFETY: `plugin` and `kind` are what Bochs passed to INIT, which comes once.
                unsafe { device::register(&ready.symbols, plugin, kind) };
                0
            }
            Err(error) => {
                eprintln!("libbx_ims: {error}");
                1
            }
        },
        FINI => {
            write_report();
            0
        }
        _ => 0,
    }
}
