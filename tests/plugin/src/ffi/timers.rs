//! The plugin's timers: of the engines, and of the look for the BIOS' tables.

use super::host::Bochs;
use super::{PLUGIN, Plugin};
use crate::{acpi, odd};
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// How long an engine takes to begin with a descriptor, and the device to carry out a command.
const ENGINE_MICROSECONDS: u32 = 1;
const BIOS_POLL_MICROSECONDS: u32 = 1000;

static ENGINE_TIMER: AtomicU32 = AtomicU32::new(0);
static ENGINE_ARMED: AtomicBool = AtomicBool::new(false);
static BIOS_TIMER: AtomicU32 = AtomicU32::new(0);
/// Where the patched RSDP is; 0 while there is none.
static RSDP: AtomicU32 = AtomicU32::new(0);

/// Creates the timers; neither runs yet.
pub(super) fn install(plugin: &Plugin) -> Result<(), String> {
    let host = Bochs::new(&plugin.symbols);
    ENGINE_TIMER.store(host.new_timer(engine_timer, ENGINE_MICROSECONDS)?, Ordering::Relaxed);
    BIOS_TIMER.store(host.new_timer(bios_timer, BIOS_POLL_MICROSECONDS)?, Ordering::Relaxed);
    Ok(())
}

/// Lets the engines begin a little later: completions are asynchronous, as on hardware.
pub(super) fn start_engines(plugin: &Plugin) {
    if !ENGINE_ARMED.swap(true, Ordering::Relaxed) {
        let timer = ENGINE_TIMER.load(Ordering::Relaxed);
        Bochs::new(&plugin.symbols).start_timer(timer, ENGINE_MICROSECONDS, false);
    }
}

/// The engines' turn.
extern "C" fn engine_timer(_: *mut c_void) {
    let Some(plugin) = PLUGIN.get() else { return };
    ENGINE_ARMED.store(false, Ordering::Relaxed);
    if plugin.with(|machine, host| machine.work(host)) == Some(true) {
        start_engines(plugin);
    }
}

/// Looks whether the BIOS has finished its tables, adds ours, and sets up what else firmware does.
extern "C" fn bios_timer(_: *mut c_void) {
    let Some(plugin) = PLUGIN.get() else { return };
    let patch = plugin.with(|machine, host| {
        let tables = |ioapic| machine.tables(ioapic);
        let bios = host.bios(&acpi::BIOS);
        let patch = acpi::extend(&bios, tables, host.ram_end(), host)?;
        host.patch_bios(patch.address, &patch.bytes);
        machine.set_up_functions(host);
        if plugin.options.odd_firmware {
            odd::spoil_madt(patch.rsdt(), host);
        }
        Some(patch)
    });
    if let Some(patch) = patch.flatten() {
        RSDP.store(patch.address as u32, Ordering::Relaxed);
        Bochs::new(&plugin.symbols).stop_timer(BIOS_TIMER.load(Ordering::Relaxed));
    }
}

/// The platform's reset: the models start anew, and the BIOS will build its tables again.
pub(super) fn reset(plugin: &Plugin) {
    plugin.with(|machine, host| {
        machine.reset();
        let rsdp = RSDP.swap(0, Ordering::Relaxed);
        if rsdp != 0 {
            // The RSDP from before the reset must not be taken for a new one.
            host.patch_bios(rsdp.into(), &[0; 20]);
        }
        host.start_timer(BIOS_TIMER.load(Ordering::Relaxed), BIOS_POLL_MICROSECONDS, true);
    });
}
