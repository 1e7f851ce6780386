//! Tells the launcher how far the emulator has come, so that a busy host is no hang, and where its processors are, so that a hang can be
//! looked into.

use super::host::Bochs;
use super::symbols::Debugger;
use super::{PLUGIN, Plugin};
use std::ffi::c_void;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// The variable that names the file. It holds one line, which is written again and again: the machine's time in milliseconds, as a decimal
/// number; then, where the emulator has a debugger, the RIP of each processor, as 16 hexadecimal digits.
const VARIABLE: &str = "IMSVISOR_PLUGIN_PROGRESS";

/// How often, in the machine's time: 10 million ticks at the launcher's 200 million a second, which are some ten writes a second.
const PERIOD_MILLISECONDS: u32 = 50;

static FILE: OnceLock<File> = OnceLock::new();
static DEBUGGER: OnceLock<Option<Debugger>> = OnceLock::new();
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
    let Some(plugin) = PLUGIN.get() else { return };
    let milliseconds = (PERIODS.fetch_add(1, Ordering::Relaxed) + 1) * u64::from(PERIOD_MILLISECONDS);
    if let Some(file) = FILE.get() {
        // The line only grows longer, so one write replaces the one before. A failure leaves the launcher with the older line.
        let _ = file.write_all_at(line(milliseconds, &rips(&Bochs::new(&plugin.symbols))).as_bytes(), 0);
    }
}

/// Where each processor is; nothing where the emulator does not say.
fn rips(host: &Bochs<'_>) -> Vec<u64> {
    let debugger = DEBUGGER.get_or_init(Debugger::find);
    // SAFETY: there are so many processors, and this is called by a timer of Bochs'.
    let rip = |debugger: &Debugger, processor| unsafe { debugger.rip(processor) };
    debugger.iter().flat_map(|debugger| (0..host.processors()).map(|processor| rip(debugger, processor))).collect()
}

fn line(milliseconds: u64, rips: &[u64]) -> String {
    let rips: String = rips.iter().map(|rip| format!(" {rip:016x}")).collect();
    format!("{milliseconds}{rips}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_the_time_and_the_processors() {
        assert_eq!(line(50, &[]), "50\n");
        assert_eq!(line(100, &[0xfff0, 1 << 63]), "100 000000000000fff0 8000000000000000\n");
    }
}
