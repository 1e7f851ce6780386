//! What the plugin sets up when Bochs initialises its device: memory windows, the I/O APIC, the data port, timers.

use super::handlers::UNIT_WINDOW;
use super::symbols::MemoryHandler;
use super::{Plugin, config_space, handlers, ioapic, progress, timers};
use crate::machine::{MESSAGES, UNIT_BASES};

/// Memory windows and timers, when Bochs initialises the device.
pub(super) fn install(plugin: &Plugin) -> Result<(), String> {
    let mut windows = vec![
        (handlers::message_read as MemoryHandler, handlers::message_write as MemoryHandler, MESSAGES),
        (handlers::ecam_read, handlers::ecam_write, plugin.options.layout().ecam()),
    ];
    windows.extend(plugin.options.layout().roots.iter().map(|root| {
        (handlers::root_read as MemoryHandler, handlers::root_write as MemoryHandler, root.memory.clone())
    }));
    for base in UNIT_BASES.into_iter().take(plugin.options.units()) {
        windows.push((handlers::unit_read, handlers::unit_write, base..=base + (UNIT_WINDOW - 1)));
    }
    for (read, write, window) in windows {
        let (first, last) = (*window.start(), *window.end());
        let none = std::ptr::null_mut();
        // SAFETY: the handlers are functions of this library, which stays loaded; there is no direct access.
        if !unsafe { (plugin.symbols.register_memory)(none, read, write, none, first, last) } {
            return Err(format!("{first:#x} to {last:#x} are taken (is the VGA extension off?)"));
        }
    }
    ioapic::replace(&plugin.symbols)?;
    if !plugin.options.layout().roots.is_empty() {
        config_space::take_data_port(plugin)?;
    }
    timers::install(plugin)?;
    progress::install(plugin)
}
