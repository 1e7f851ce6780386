//! The date. It is read once from the machine's CMOS clock, and then follows the TSC.
//!
//! The CMOS clock may show universal or local time, and nothing says which. Guests' clocks show the same as the machine's.

use core::{fmt, time::Duration};

use crate::{
    clock::{self, Clock},
    vdev::rtc::{A_UPDATE, B_SET, D_VALID, Date, Registers, register, value},
};

/// An update takes 2,228 µs with its warning (MC146818A data sheet, "Update cycle").
const UPDATE_LIMIT: Duration = Duration::from_millis(20);

/// Attempts to read the time twice with the same result. Only the change of a second, or SMM, makes one fail.
const ATTEMPTS: u32 = 4;

/// Plausible years of a machine's clock. A clock that lost its battery starts before them.
const YEARS: core::ops::RangeInclusive<u16> = 2020..=2199;

/// The date where the machine's clock shows none: 1 January 2026, in seconds since the beginning of 1970.
pub const FALLBACK: u64 = 1_767_225_600;

/// Why the machine's clock is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RtcError {
    /// The firmware reports none.
    Absent,
    /// Register D: the battery was empty.
    NoBattery,
    /// It is being set (register B), or an update does not come to its end. Ports without a device read so as well.
    Busy,
    /// No two readings are the same.
    Unsteady,
    /// The registers hold no valid date.
    NoDate(Registers),
    /// The year is not plausible.
    Year(u16),
}

impl fmt::Display for RtcError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("the machine has no CMOS clock"),
            Self::NoBattery => f.write_str("the CMOS clock's battery was empty"),
            Self::Busy => f.write_str("the CMOS clock is busy without end"),
            Self::Unsteady => f.write_str("the CMOS clock shows another time at each look"),
            Self::NoDate(registers) => write!(f, "the CMOS clock shows no date ({registers:x?})"),
            Self::Year(year) => write!(f, "the CMOS clock shows the year {year}"),
        }
    }
}

/// Seconds since the beginning of 1970 by an MC146818. `read` reads the register with an index; `century` is the index of the century's
/// byte, if the firmware names one: without it years are those from 1970 to 2069. The wait for the end of an update goes by `clock`.
pub fn read(clock: &dyn Clock, century: Option<u8>, read: &mut dyn FnMut(u8) -> u8) -> Result<u64, RtcError> {
    let mut last = None;
    for _ in 0..ATTEMPTS {
        if !clock::poll(clock, UPDATE_LIMIT, || read(register::A) & A_UPDATE == 0) || read(register::B) & B_SET != 0 {
            return Err(RtcError::Busy);
        }
        if read(register::D) & D_VALID == 0 {
            return Err(RtcError::NoBattery);
        }
        let b = read(register::B);
        let now = registers(century, b, read);
        if last.replace(now) == Some(now) {
            return seconds(now, b);
        }
    }
    Err(RtcError::Unsteady)
}

fn registers(century: Option<u8>, b: u8, read: &mut dyn FnMut(u8) -> u8) -> Registers {
    let year = read(register::YEAR);
    Registers {
        second: read(register::SECOND),
        minute: read(register::MINUTE),
        hour: read(register::HOUR),
        day: read(register::DAY),
        month: read(register::MONTH),
        year,
        century: match century {
            Some(index) => read(index),
            None => Registers::of_century(if value(year, b).is_some_and(|year| year < 70) { 20 } else { 19 }, b),
        },
    }
}

fn seconds(registers: Registers, b: u8) -> Result<u64, RtcError> {
    let date = registers.date(b).ok_or(RtcError::NoDate(registers))?;
    let seconds = date.seconds().ok_or(RtcError::NoDate(registers))?;
    if !YEARS.contains(&date.year) {
        return Err(RtcError::Year(date.year));
    }
    u64::try_from(seconds).map_err(|_| RtcError::Year(date.year))
}

/// A clock that shows the date.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WallClock {
    /// Since the beginning of 1970, when the TSC was `tsc`.
    seconds: u64,
    tsc: u64,
    hertz: Option<u64>,
}

impl WallClock {
    /// One that shows `seconds` since the beginning of 1970 when the TSC, of this frequency, is `tsc`. Where the frequency is not known, it
    /// stands still.
    pub const fn new(seconds: u64, tsc: u64, hertz: Option<u64>) -> Self {
        Self { seconds, tsc, hertz }
    }

    /// The time since the beginning of 1970 when the TSC is `tsc`.
    pub fn at(&self, tsc: u64) -> Duration {
        const NANOSECONDS: u128 = 1_000_000_000;
        // A processor whose TSC is a little behind does not go back behind the beginning.
        let ticks = u128::from(tsc.saturating_sub(self.tsc));
        let passed = self.hertz.filter(|&hertz| hertz != 0).map_or(0, |hertz| ticks * NANOSECONDS / u128::from(hertz));
        Duration::from_secs(self.seconds)
            .saturating_add(Duration::from_nanos(u64::try_from(passed).unwrap_or(u64::MAX)))
    }
}

impl fmt::Display for WallClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Date { year, month, day, hour, minute, second } =
            Date::from_seconds(i64::try_from(self.seconds).unwrap_or(i64::MAX));
        write!(f, "{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{clock::testing::MILLISECONDS, vdev::rtc};

    /// 14 November 2023, 22:13:20.
    const SECONDS: u64 = 1_700_000_000;

    /// A chip as a guest's, with register B as it is; each read takes `micros`.
    struct Chip {
        chip: rtc::Rtc,
        now: Duration,
        micros: u64,
    }

    impl Chip {
        fn new(seconds: u64, b: u8) -> Self {
            let mut chip = Self { chip: rtc::Rtc::new(), now: Duration::from_secs(seconds), micros: 1 };
            chip.put(register::B, b);
            chip
        }

        fn put(&mut self, index: u8, byte: u8) {
            self.chip.write(rtc::INDEX, index, self.now);
            self.chip.write(rtc::DATA, byte, self.now);
        }

        fn get(&mut self, index: u8) -> u8 {
            self.now += Duration::from_micros(self.micros);
            self.chip.write(rtc::INDEX, index, self.now);
            self.chip.read(rtc::DATA, self.now)
        }

        fn read(&mut self, century: Option<u8>) -> Result<u64, RtcError> {
            read(&MILLISECONDS, century, &mut |index| self.get(index))
        }
    }

    #[test]
    fn a_chip_of_any_format_is_read() {
        for b in [0, 2, 4, 6, 0x72] {
            for century in [Some(register::CENTURY), None] {
                assert_eq!(Chip::new(SECONDS, b).read(century), Ok(SECONDS), "{b:#x}");
            }
        }
    }

    #[test]
    fn an_update_is_waited_for_and_no_time_is_half_of_one_and_half_of_the_next() {
        // The last second of 2023: all registers change. Each read takes longer than the warning.
        let last = Date { year: 2023, month: 12, day: 31, hour: 23, minute: 59, second: 59 };
        let last = last.seconds().unwrap() as u64;
        for micros in (0..980_000).step_by(9_973).chain((980_000..1_000_000).step_by(97)) {
            let mut chip = Chip::new(last, 2);
            (chip.now, chip.micros) = (chip.now + Duration::from_micros(micros), 300);
            let read = chip.read(Some(register::CENTURY)).unwrap();
            let now = chip.now.as_secs();
            assert!(read == now || read + 1 == now, "{micros}: {read} at {now}");
        }
    }

    #[test]
    fn nonsense_is_refused_and_no_wait_is_endless() {
        assert_eq!(read(&MILLISECONDS, None, &mut |_| 0xff), Err(RtcError::Busy), "no device");
        assert_eq!(read(&MILLISECONDS, None, &mut |_| 0), Err(RtcError::NoBattery));
        let mut chip = Chip::new(SECONDS, 2);
        chip.put(register::B, B_SET | 2);
        assert_eq!(chip.read(None), Err(RtcError::Busy));
        chip.put(register::MONTH, 0x13);
        let broken = |chip: &mut Chip, index| if index == register::B { 2 } else { chip.get(index) };
        assert!(matches!(read(&MILLISECONDS, None, &mut |index| broken(&mut chip, index)), Err(RtcError::NoDate(_))));
        chip.put(register::MONTH, 0x1a);
        assert!(matches!(read(&MILLISECONDS, None, &mut |index| broken(&mut chip, index)), Err(RtcError::NoDate(_))));
        let mut count = 0;
        let restless = |index| match index {
            register::A => 0x26,
            register::B => 2,
            register::D => D_VALID,
            _ => {
                count += 1;
                count
            }
        };
        assert_eq!(read(&MILLISECONDS, None, &mut { restless }), Err(RtcError::Unsteady));
    }

    #[test]
    fn a_year_that_cannot_be_is_refused() {
        assert_eq!(Chip::new(0, 2).read(Some(register::CENTURY)), Err(RtcError::Year(1970)));
        assert_eq!(Chip::new(1_000_000_000, 2).read(None), Err(RtcError::Year(2001)));
        // The firmware names a byte that has no century.
        assert_eq!(Chip::new(SECONDS, 2).read(Some(0x48)), Err(RtcError::Year(23)));
    }

    #[test]
    fn the_date_goes_on_by_the_tsc() {
        let clock = WallClock::new(SECONDS, 5_000, Some(2_000_000_000));
        assert_eq!(clock.at(5_000), Duration::from_secs(SECONDS));
        assert_eq!(clock.at(4_000), Duration::from_secs(SECONDS));
        assert_eq!(clock.at(5_000 + 3_000_000_000), Duration::from_millis(SECONDS * 1000 + 1500));
        assert_eq!(WallClock::new(SECONDS, 0, None).at(u64::MAX), Duration::from_secs(SECONDS));
        assert_eq!(clock.to_string(), "2023-11-14 22:13:20");
    }

    proptest! {
        #[test]
        fn registers_that_show_anything_are_survived(
            bytes in prop::collection::vec(any::<u8>(), 1..50),
            century in prop::option::of(0u8..128),
        ) {
            let mut next = bytes.iter().copied().cycle();
            if let Ok(seconds) = read(&MILLISECONDS, century, &mut |_| next.next().unwrap_or(0)) {
                prop_assert!(YEARS.contains(&Date::from_seconds(seconds as i64).year));
            }
        }

        #[test]
        fn no_time_panics(seconds: u64, tsc: u64, hertz: Option<u64>, now: u64) {
            let clock = WallClock::new(seconds, tsc, hertz);
            prop_assert!(clock.at(now) >= Duration::from_secs(seconds));
            let _ = clock.to_string();
        }
    }
}
