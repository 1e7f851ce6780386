//! A function level reset (PCIe 6.6.2), and the function's work after it.

use core::arch::x86_64::__cpuid;

use guests::bare::{config, idle};
use guests::pci::{self, ConfigSpace, Function};

use crate::table::Table;
use crate::{FIRST, Work, fires};

const CAPABILITY_EXPRESS: u8 = 0x10;
const DEVICE_CONTROL: u16 = 8;
const INITIATE: u32 = 1 << 15;
const COMMAND: u16 = 4;
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
    let express = pci::capability(&config, function, CAPABILITY_EXPRESS).ok_or("no PCI Express capability")?;
    let control = config.read(function, express + DEVICE_CONTROL) & 0xffff;
    let bars: [u32; BARS] = core::array::from_fn(|n| config.read(function, BAR0 + 4 * n as u16));
    config.write(function, express + DEVICE_CONTROL, control | INITIATE);
    if driver == Driver::Patient {
        wait();
    }
    let msix = pci::capability(&config, function, pci::CAPABILITY_MSIX).ok_or("no MSI-X")?;
    let is_off = config.read(function, COMMAND) & 7 == 0 && config.read(function, msix) & pci::MSIX_ENABLE == 0;
    let is_clear = config.read(function, express + DEVICE_CONTROL) & INITIATE == 0;
    (0..).zip(bars).for_each(|(n, bar)| config.write(function, BAR0 + 4 * n, bar));
    config.write(function, express + DEVICE_CONTROL, control);
    let mut table = Table::enable(function)?;
    let place = FIRST + VECTOR as u8;
    table.program(VECTOR, place);
    if driver == Driver::Eager {
        wait();
    }
    let mut work = W::start(function)?;
    let works = fires(&mut work, VECTOR, place)?;
    Ok([is_off, is_clear, works].into_iter().map(|right| u32::from(!right)).sum())
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
