//! Tells the launcher how far the emulator has come, so that a busy host is no hang.

use super::Plugin;
use super::host::Bochs;
use std::ffi::c_void;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// The variable that names the file: it holds the machine's time in milliseconds, as a decimal number, and is written again and again.
const VARIABLE: &str = "IMSVISOR_PLUGIN_PROGRESS";

/// How often, in the machine's time: 10 million ticks at the launcher's 200 million a second, which are some ten writes a second.
const PERIOD_MILLISECONDS: u32 = 50;

static FILE: OnceLock<File> = OnceLock::new();
static PERIODS: AtomicU64 = AtomicU64::new(0);

/// Starts the timer, if the environment names a file. Without one nobody wants to know.
pub(super) fn install(plugin: &Plugin) -> Result<(), String> {
    let Some(path) = std::env::var_os(VARIABLE) else { return Ok(()) };
    let file = File::create(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    if FILE.set(file).is_ok() {
        let microseconds = PERIOD_MILLISECONDS * 1000;
        let host = Bochs::new(&plugin.symbols);
        host.start_timer(host.new_timer(period, microseconds)?, microseconds, true);
    }
    Ok(())
}

/// A period is over.
extern "C" fn period(_: *mut c_void) {
    let milliseconds = (PERIODS.fetch_add(1, Ordering::Relaxed) + 1) * u64::from(PERIOD_MILLISECONDS);
    if let Some(file) = FILE.get() {
        // The number only grows longer, so one write replaces the one before. A failure leaves the launcher with the older number.
        let _ = file.write_all_at(format!("{milliseconds}\n").as_bytes(), 0);
    }
}
