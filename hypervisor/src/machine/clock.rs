//! The machine's counters, the selection of its clock, and the date.

use alloc::boxed::Box;

use x86::io;

use crate::{
    acpi::{CmosClock, PmTimer, fadt},
    addr::{Hpa, PAGE_SIZE},
    clock::{self, Choice, Clock, Rate, Unusable, elapsed, measure},
    cpu,
    machine::{
        memory::map_device,
        wall_clock::{self, FALLBACK, RtcError, WallClock},
    },
    memory::{Mmio, PhysRange, Registers},
    vdev::rtc,
};

/// ACPI 6.5, section 4.8.3.3.
const PM_TIMER_HERTZ: u64 = 3_579_545;

/// The 8254: counter 2, the control word, and the port with counter 2's gate and the speaker.
const COUNTER_2: u16 = 0x42;
const CONTROL: u16 = 0x43;
const GATES: u16 = 0x61;
/// Counter 2, both bytes, mode 2 (it counts down by one and begins anew), binary; and its latch command.
const COUNTER_2_MODE_2: u8 = 0b1011_0100;
const COUNTER_2_LATCH: u8 = 0b1000_0000;
const GATE_2: u8 = 1 << 0;
const SPEAKER: u8 = 1 << 1;
/// Bits of [`GATES`] that software writes.
const GATES_WRITABLE: u8 = 0x0f;
const PIT_HERTZ: u64 = 1_193_182;

/// The TSC at a frequency that is known.
#[derive(Debug)]
struct Tsc {
    hertz: u64,
}

impl Clock for Tsc {
    fn advance(&self, last: &mut u64) -> u64 {
        let now = cpu::tsc();
        // One that was set back has not moved.
        now.saturating_sub(core::mem::replace(last, now))
    }

    fn hertz(&self) -> u64 {
        self.hertz
    }
}

/// The ACPI PM timer.
#[derive(Debug)]
struct PmCounter {
    place: Place,
    bits: u32,
}

#[derive(Debug)]
enum Place {
    Port(u16),
    /// In this page, at this offset.
    Memory(Mmio, usize),
}

impl PmCounter {
    /// The timer that the firmware reports, if it can be reached. `is_memory` says whether a range is memory: no timer is there.
    fn new(timer: PmTimer, is_memory: impl Fn(PhysRange) -> bool) -> Option<Self> {
        let place = match timer.register {
            fadt::Register::Port(port) => Place::Port(port),
            fadt::Register::Memory(address) => {
                let offset = address.as_u64() % PAGE_SIZE;
                let page = Hpa::new(address.as_u64() - offset);
                if is_memory(PhysRange::new(page, PAGE_SIZE)) {
                    return None;
                }
                map_device(page, PAGE_SIZE).ok()?;
                // SAFETY: the page was mapped just now, uncached. The firmware's map does not say that it is memory, and it is only read.
                Place::Memory(unsafe { Mmio::new(page, PAGE_SIZE as usize) }?, offset as usize)
            }
        };
        Some(Self { place, bits: timer.bits })
    }

    fn read(&self) -> u32 {
        match &self.place {
            // SAFETY: the firmware says that the timer is at this port; reading a port changes no memory.
            Place::Port(port) => unsafe { io::inl(*port) },
            Place::Memory(page, offset) => page.read32(*offset),
        }
    }
}

impl Clock for PmCounter {
    fn advance(&self, last: &mut u64) -> u64 {
        elapsed(last, self.read().into(), self.bits)
    }

    fn hertz(&self) -> u64 {
        PM_TIMER_HERTZ
    }
}

/// Counter 2 of the 8254, which has no other user, while it runs. Without an 8254 it always shows the same value.
#[derive(Debug)]
struct Pit {
    /// What was in [`GATES`].
    gates: u8,
}

impl Pit {
    fn start() -> Self {
        // SAFETY: counter 2 and its gate drive the speaker and nothing else; the speaker is off meanwhile.
        let gates = unsafe {
            let gates = io::inb(GATES) & GATES_WRITABLE;
            io::outb(GATES, gates & !SPEAKER | GATE_2);
            io::outb(CONTROL, COUNTER_2_MODE_2);
            // 0 stands for 65,536.
            io::outb(COUNTER_2, 0);
            io::outb(COUNTER_2, 0);
            gates
        };
        let counter = Self { gates };
        // The count is loaded at the counter's next clock, and until then it shows the old one. A read takes longer than that, so the next
        // read is right (Linux, `quick_pit_calibrate`).
        counter.advance(&mut 0);
        counter
    }
}

impl Drop for Pit {
    fn drop(&mut self) {
        // SAFETY: as it was before `start`.
        unsafe { io::outb(GATES, self.gates) }
    }
}

impl Clock for Pit {
    fn advance(&self, last: &mut u64) -> u64 {
        // SAFETY: reads the counter that is `start`'s.
        let now = unsafe {
            io::outb(CONTROL, COUNTER_2_LATCH);
            u16::from_le_bytes([io::inb(COUNTER_2), io::inb(COUNTER_2)])
        };
        // It counts down.
        elapsed(last, now.wrapping_neg().into(), u16::BITS)
    }

    fn hertz(&self) -> u64 {
        PIT_HERTZ
    }
}

/// Chooses the machine's clock, which all waits use from now on. `fadt` is the firmware's table, if there is one; `is_memory` says whether
/// a range is memory.
pub fn start(fadt: Option<&[u8]>, is_memory: impl Fn(PhysRange) -> bool) -> Choice {
    let pm_timer = fadt.and_then(PmTimer::parse).and_then(|timer| PmCounter::new(timer, is_memory));
    let measured = pm_timer.as_ref().map(|timer| measure_tsc(timer));
    let choice = Choice::new(measured, || measure_tsc(&Pit::start()), told_by_cpuid);
    match (choice, pm_timer) {
        (Choice::Tsc(Rate { hertz, error }, _), _) => clock::set(Box::leak(Box::new(Tsc { hertz: hertz + error }))),
        (Choice::PmTimer, Some(timer)) => clock::set(Box::leak(Box::new(timer))),
        _ => {}
    }
    log::info!("{choice}");
    choice
}

/// Reads the date from the machine's CMOS clock; it follows the TSC from now on. `fadt` describes that clock.
pub fn date(fadt: Option<&[u8]>, clock: Choice) -> WallClock {
    let hertz = clock.tsc_hertz();
    let read = match fadt.map_or(CmosClock::default(), CmosClock::parse) {
        CmosClock::Absent => Err(RtcError::Absent),
        CmosClock::Present { century } => wall_clock::read(clock::current(), century, &mut cmos),
    };
    let date = WallClock::new(read.unwrap_or(FALLBACK), cpu::tsc(), hertz);
    match read {
        Ok(_) => log::info!("date: {date}, by the CMOS clock"),
        Err(odd) => log::warn!("date: {date} is assumed: {odd}"),
    }
    if hertz.is_none() {
        log::warn!("date: guests' clocks stand still, because the TSC cannot be used");
    }
    date
}

/// A byte of the machine's CMOS clock, or of its memory.
fn cmos(index: u8) -> u8 {
    // SAFETY: the ports are the CMOS clock's on every PC; where there is none, nothing is there. Choosing a register and reading it changes
    // nothing but the flags of interrupts, which nobody has enabled. NMIs stay enabled (bit 7 of the index is clear).
    unsafe {
        io::outb(rtc::INDEX, index & 0x7f);
        io::inb(rtc::DATA)
    }
}

fn measure_tsc(reference: &dyn Clock) -> Result<Rate, Unusable> {
    measure(&cpu::tsc, reference)
}

/// The TSC's frequency by CPUID leaf 0x15, in Hz (SDM vol. 3, 19.7.3); `None` if the leaf is incomplete.
fn told_by_cpuid() -> Option<u64> {
    raw_cpuid::CpuId::new().get_tsc_info().and_then(|info| info.tsc_frequency())
}
