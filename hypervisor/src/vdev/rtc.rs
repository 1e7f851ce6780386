//! The guest's real-time clock: an MC146818 at ports 0x70 and 0x71, as in PCs, without interrupts.
//!
//! The caller passes the time with each access. If a guest sets its clock, the clock keeps an offset from that time; nothing else changes.
//! The registers follow Motorola's data sheet of the MC146818A; the century byte is at the place that PCs use.

mod date;

use core::time::Duration;

pub use date::{Date, Registers, value};

/// Port of the index. Bit 7 masks NMIs on a PC and does not count here.
pub const INDEX: u16 = 0x70;
/// Port of the byte that the index selects.
pub const DATA: u16 = 0x71;

/// The registers of a time, and the memory's bytes.
pub mod register {
    /// Seconds.
    pub const SECOND: u8 = 0;
    /// Minutes.
    pub const MINUTE: u8 = 2;
    /// Hours.
    pub const HOUR: u8 = 4;
    /// Day of the week, 1 for Sunday.
    pub const WEEKDAY: u8 = 6;
    /// Day of the month.
    pub const DAY: u8 = 7;
    /// Month.
    pub const MONTH: u8 = 8;
    /// Year of the century.
    pub const YEAR: u8 = 9;
    /// Register A.
    pub const A: u8 = 0x0a;
    /// Register B.
    pub const B: u8 = 0x0b;
    /// Register C: flags of interrupts.
    pub const C: u8 = 0x0c;
    /// Register D.
    pub const D: u8 = 0x0d;
    /// First two digits of the year. The FADT names it.
    pub const CENTURY: u8 = 0x32;
}
use register as reg;

/// Register A: an update of the time's registers is under way, or begins in less than 244 µs.
pub const A_UPDATE: u8 = 1 << 7;
/// Register A: the divider. If both upper bits are set, it is held in reset, and the clock stands still.
const A_DIVIDER_RESET: u8 = 0b110 << 4;
/// Register A as PCs' firmware leaves it: 32,768 Hz, 1,024 interrupts a second (if they were enabled).
const A_DEFAULT: u8 = 0x26;
/// Register B: the time stands still, and may be written.
pub const B_SET: u8 = 1 << 7;
/// Register B as PCs' firmware leaves it: BCD, 24 hours.
const B_DEFAULT: u8 = date::HOURS_24;
/// Register D: memory and time are valid.
pub const D_VALID: u8 = 1 << 7;

const SECOND: i64 = 1_000_000;
/// Microseconds before the end of a second from which on [`A_UPDATE`] is set: 244 of warning, and 1,984 that the update takes.
const UPDATE: i64 = 244 + 1_984;
/// Microseconds from the divider's release to the first update.
const AFTER_RELEASE: i64 = 500_000;

/// The chip.
#[derive(Clone, Debug)]
pub struct Rtc {
    index: u8,
    a: u8,
    b: u8,
    /// The memory. While the time stands still, its registers are here as well.
    memory: [u8; 128],
    /// Microseconds that the guest's time is ahead.
    ahead: i64,
}

impl Default for Rtc {
    fn default() -> Self {
        Self { index: 0, a: A_DEFAULT, b: B_DEFAULT, memory: [0; 128], ahead: 0 }
    }
}

impl Rtc {
    /// With the time that comes from outside, and memory of zeros.
    pub fn new() -> Self {
        Self::default()
    }

    /// IN of a byte. `now` is the time outside, since the beginning of 1970.
    pub fn read(&self, port: u16, now: Duration) -> u8 {
        if port != DATA {
            // The index can be written only.
            return 0xff;
        }
        let time = self.time(now);
        match self.index {
            reg::A if self.runs() && time.rem_euclid(SECOND) >= SECOND - UPDATE => self.a | A_UPDATE,
            reg::A => self.a,
            reg::B => self.b,
            // There are no interrupts, so none is flagged.
            reg::C => 0,
            reg::D => D_VALID,
            index if self.runs() => self.shown(index, time).unwrap_or(self.memory(index)),
            index => self.memory(index),
        }
    }

    /// OUT of a byte.
    pub fn write(&mut self, port: u16, byte: u8, now: Duration) {
        if port != DATA {
            self.index = byte & 0x7f;
            return;
        }
        match self.index {
            reg::A => self.control(now, byte & !A_UPDATE, self.b),
            reg::B => self.control(now, self.a, byte),
            reg::C | reg::D => {}
            index if self.runs() && self.shown(index, 0).is_some() => {
                // Takes effect at once, if it makes a date.
                self.freeze(now);
                self.set_memory(index, byte);
                self.resume(now);
            }
            index => self.set_memory(index, byte),
        }
    }

    const fn runs(&self) -> bool {
        self.b & B_SET == 0 && !self.is_divider_reset()
    }

    const fn is_divider_reset(&self) -> bool {
        self.a & A_DIVIDER_RESET == A_DIVIDER_RESET
    }

    /// The guest's time in microseconds.
    fn time(&self, now: Duration) -> i64 {
        i64::try_from(now.as_micros()).unwrap_or(i64::MAX).saturating_add(self.ahead)
    }

    /// Registers A and B are written.
    fn control(&mut self, now: Duration, a: u8, b: u8) {
        let (ran, was_reset) = (self.runs(), self.is_divider_reset());
        if ran {
            self.freeze(now);
        }
        (self.a, self.b) = (a, b);
        if was_reset && !self.is_divider_reset() {
            let passed = self.time(now).rem_euclid(SECOND);
            self.ahead = self.ahead.saturating_add(SECOND - AFTER_RELEASE - passed);
        }
        if self.runs() && !ran {
            self.resume(now);
        }
    }

    /// Puts the time's registers into the memory.
    fn freeze(&mut self, now: Duration) {
        let time = self.time(now);
        for index in (0..reg::A).chain([reg::CENTURY]) {
            if let Some(byte) = self.shown(index, time) {
                self.set_memory(index, byte);
            }
        }
    }

    /// Continues with the time in the registers. If they hold none, the clock continues as if it had never stood still.
    fn resume(&mut self, now: Duration) {
        let registers = Registers {
            second: self.memory(reg::SECOND),
            minute: self.memory(reg::MINUTE),
            hour: self.memory(reg::HOUR),
            day: self.memory(reg::DAY),
            month: self.memory(reg::MONTH),
            year: self.memory(reg::YEAR),
            century: self.memory(reg::CENTURY),
        };
        let Some(seconds) = registers.date(self.b).and_then(|date| date.seconds()) else { return };
        let time = self.time(now);
        // What has passed of the second is the divider's.
        let distance = seconds.saturating_sub(time.div_euclid(SECOND)).saturating_mul(SECOND);
        self.ahead = self.ahead.saturating_add(distance);
    }

    /// What a register of the time shows at `time`; `None` for others.
    fn shown(&self, index: u8, time: i64) -> Option<u8> {
        let seconds = time.div_euclid(SECOND);
        let registers = Registers::of(&Date::from_seconds(seconds), self.b);
        Some(match index {
            reg::SECOND => registers.second,
            reg::MINUTE => registers.minute,
            reg::HOUR => registers.hour,
            reg::WEEKDAY => Date::weekday(seconds),
            reg::DAY => registers.day,
            reg::MONTH => registers.month,
            reg::YEAR => registers.year,
            reg::CENTURY => registers.century,
            _ => return None,
        })
    }

    fn memory(&self, index: u8) -> u8 {
        self.memory.get(usize::from(index)).copied().unwrap_or(0xff)
    }

    fn set_memory(&mut self, index: u8, byte: u8) {
        if let Some(place) = self.memory.get_mut(usize::from(index)) {
            *place = byte;
        }
    }
}

#[cfg(test)]
mod tests;
