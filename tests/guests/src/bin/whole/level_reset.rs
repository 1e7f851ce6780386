//! A function level reset (PCIe 6.6.2), and the function's work after it.

use core::arch::x86_64::__cpuid;

use guests::bare::{config, idle};
use guests::pci::{self, ConfigSpace, Function};

use crate::table::Table;
use crate::{FIRST, Work, fires};

const BAR0: u16 = 0x10;
const BARS: usize = 6;

/// The time in which the function must not be touched, 100 ms, at any frequency of the TSC.
const TICKS: u64 = 500_000_000;
/// The vector that is raised after the reset.
const VECTOR: u16 = 1;

/// When a driver sets its function up again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// When the time is over, as it has to.
    Patient,
    /// At once: on the machine itself that would be lost. The hypervisor keeps it until the function can be touched.
    Eager,
}

/// Resets the function and works again. What went wrong.
pub fn try_out<W: Work>(function: Function, driver: Driver) -> Result<u32, &'static str> {
    let config = config::Ports;
    let (at, control) = pci::device_control(&config, function).ok_or("no function level reset")?;
    let bars: [u32; BARS] = core::array::from_fn(|n| config.read(function, BAR0 + 4 * n as u16));
    pci::initiate_reset(&config, function);
    if driver == Driver::Patient {
        wait();
    }
    let is_reset = pci::is_as_after_reset(&config, function);
    (0..).zip(bars).for_each(|(n, bar)| config.write(function, BAR0 + 4 * n, bar));
    config.write(function, at, control);
    let mut table = Table::enable(function)?;
    let place = FIRST + VECTOR as u8;
    table.program(VECTOR, place);
    if driver == Driver::Eager {
        wait();
    }
    let mut work = W::start(function)?;
    let works = fires(&mut work, VECTOR, place)?;
    Ok(u32::from(!is_reset) + u32::from(!works))
}

/// Sleeps where the local APIC can wake by the TSC: QEMU's without KVM cannot.
fn wait() {
    const TSC_DEADLINE: u32 = 1 << 24;
    if __cpuid(1).ecx & TSC_DEADLINE != 0 {
        idle::wait_until(TICKS, || false);
    } else {
        idle::linger(TICKS);
    }
}
