//! Dates of the Gregorian calendar, and their form in an MC146818's registers.

/// Seconds in a day.
const DAY: i64 = 86_400;

/// Days from 1 March of year 0 to 1 January 1970.
const DAYS_TO_1970: i64 = 719_468;

/// Days in 400, in 100, and in 4 years. The first of four centuries is a day longer than 100 years are, and the last year of four can be.
const DAYS_400: i64 = 146_097;
const DAYS_100: i64 = 36_524;
const DAYS_4: i64 = 1_461;

/// First days of the months from March on, counted from 1 March; the last is January's and February's year's end.
const MONTHS: [i64; 12] = [0, 31, 61, 92, 122, 153, 184, 214, 245, 275, 306, 337];

/// Register B of an MC146818, data sheet "Registers": the time's registers are binary instead of BCD.
pub const BINARY: u8 = 1 << 2;
/// Register B: hours from 0 to 23, instead of 1 to 12 with [`PM`].
pub const HOURS_24: u8 = 1 << 1;
/// Of the register of hours: after noon.
const PM: u8 = 1 << 7;

/// A date with its time of day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date {
    /// 0 to 9999.
    pub year: u16,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 59.
    pub second: u8,
}

impl Date {
    /// The date `seconds` seconds after the beginning of 1970. The year is shown modulo 10,000.
    pub fn from_seconds(seconds: i64) -> Self {
        let (day, second) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
        let day = day.saturating_add(DAYS_TO_1970);
        let (era, day) = (day.div_euclid(DAYS_400), day.rem_euclid(DAYS_400));
        let century = (day / DAYS_100).min(3);
        let day = day - century * DAYS_100;
        let (four, day) = (day / DAYS_4, day % DAYS_4);
        let one = (day / 365).min(3);
        let day = day - one * 365;
        let month = MONTHS.iter().rposition(|&first| first <= day).unwrap_or(0);
        let day = day - MONTHS[month];
        // January and February belong to the next year.
        let year = era * 400 + century * 100 + four * 4 + one + i64::from(month >= 10);
        Self {
            year: year.rem_euclid(10_000) as u16,
            month: (month + 2) as u8 % 12 + 1,
            day: (day + 1) as u8,
            hour: (second / 3600) as u8,
            minute: (second / 60 % 60) as u8,
            second: (second % 60) as u8,
        }
    }

    /// Seconds since the beginning of 1970. `None` if the date does not exist.
    pub fn seconds(&self) -> Option<i64> {
        if self.year > 9999 || self.hour > 23 || self.minute > 59 || self.second > 59 {
            return None;
        }
        // As in `from_seconds`: a year begins in March.
        let month = (usize::from(self.month).checked_sub(1)? + 10) % 12;
        let year = i64::from(self.year) - i64::from(month >= 10);
        let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let first = MONTHS.get(month)?;
        let days = era * DAYS_400 + of_era * 365 + of_era / 4 - of_era / 100 + first + i64::from(self.day) - 1;
        let time = i64::from(self.hour) * 3600 + i64::from(self.minute) * 60 + i64::from(self.second);
        let seconds = (days - DAYS_TO_1970) * DAY + time;
        // 30 February would be 1 or 2 March.
        (Self::from_seconds(seconds) == *self).then_some(seconds)
    }

    /// The day of the week: 1 is Sunday.
    pub fn weekday(seconds: i64) -> u8 {
        // 1 January 1970 was a Thursday.
        (seconds.div_euclid(DAY) + 4).rem_euclid(7) as u8 + 1
    }
}

/// The registers of a time as a chip holds them, in the format that its register B says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// Register 0.
    pub second: u8,
    /// Register 2.
    pub minute: u8,
    /// Register 4.
    pub hour: u8,
    /// Register 7.
    pub day: u8,
    /// Register 8.
    pub month: u8,
    /// Register 9: the year's last two digits.
    pub year: u8,
    /// The first two digits. No register of the MC146818's own: a byte of its memory that firmware names (ACPI 6.5, FADT, CENTURY).
    pub century: u8,
}

impl Registers {
    /// As a chip with this register B shows a date.
    pub fn of(date: &Date, b: u8) -> Self {
        let show = |value| show(value, b);
        Self {
            second: show(date.second),
            minute: show(date.minute),
            hour: if b & HOURS_24 != 0 {
                show(date.hour)
            } else {
                show((date.hour + 11) % 12 + 1) | if date.hour >= 12 { PM } else { 0 }
            },
            day: show(date.day),
            month: show(date.month),
            year: show((date.year % 100) as u8),
            century: show((date.year / 100) as u8),
        }
    }

    /// The register of the century in a chip with this register B.
    pub fn of_century(century: u8, b: u8) -> u8 {
        show(century, b)
    }

    /// The date that a chip with this register B means by them. `None` where a digit is none; whether there is such a date is
    /// [`Date::seconds`]'s to say.
    pub fn date(&self, b: u8) -> Option<Date> {
        let value = |register| value(register, b);
        let (century, year) = (value(self.century)?, value(self.year)?);
        if year > 99 {
            return None;
        }
        Some(Date {
            year: u16::from(century) * 100 + u16::from(year),
            month: value(self.month)?,
            day: value(self.day)?,
            hour: hour(self.hour, b)?,
            minute: value(self.minute)?,
            second: value(self.second)?,
        })
    }
}

/// A value below 100 as a register shows it.
fn show(value: u8, b: u8) -> u8 {
    if b & BINARY != 0 { value } else { value / 10 % 10 * 16 + value % 10 }
}

/// What a register means.
pub fn value(register: u8, b: u8) -> Option<u8> {
    let (tens, ones) = (register >> 4, register & 0xf);
    match b & BINARY != 0 {
        true => Some(register),
        false => (tens <= 9 && ones <= 9).then_some(tens * 10 + ones),
    }
}

fn hour(register: u8, b: u8) -> Option<u8> {
    if b & HOURS_24 != 0 {
        return value(register, b);
    }
    let hour = value(register & !PM, b).filter(|hour| (1..=12).contains(hour))?;
    Some(hour % 12 + if register & PM != 0 { 12 } else { 0 })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Year, month and day by counting days, one year and one month after another.
    fn counted(mut days: u64) -> (u16, u8, u8) {
        let is_leap = |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
        let mut year = 1970;
        while days >= 365 + u64::from(is_leap(year)) {
            days -= 365 + u64::from(is_leap(year));
            year += 1;
        }
        let february = if is_leap(year) { 29 } else { 28 };
        let mut month = 1;
        for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
            if days < length {
                break;
            }
            days -= length;
            month += 1;
        }
        (year as u16, month, days as u8 + 1)
    }

    #[test]
    fn every_day_of_600_years_is_the_one_that_counting_finds() {
        for day in 0..365 * 600 {
            let date = Date::from_seconds(day as i64 * DAY + 86_399);
            assert_eq!((date.year, date.month, date.day), counted(day), "{day}");
            assert_eq!((date.hour, date.minute, date.second), (23, 59, 59));
            assert_eq!(date.seconds(), Some(day as i64 * DAY + 86_399));
        }
    }

    #[test]
    fn known_dates_are_where_they_are() {
        let date = Date { year: 2023, month: 11, day: 14, hour: 22, minute: 13, second: 20 };
        assert_eq!(Date::from_seconds(1_700_000_000), date);
        assert_eq!(Date::weekday(1_700_000_000), 3, "a Tuesday");
        assert_eq!(Date::weekday(0), 5);
        assert_eq!(Date::weekday(-1), 4);
        let first = Date { year: 0, month: 1, day: 1, hour: 0, minute: 0, second: 0 };
        assert_eq!(first.seconds(), Some(-62_167_219_200));
        assert_eq!(Date::from_seconds(253_402_300_799).year, 9999);
        assert_eq!(Date::from_seconds(253_402_300_800).year, 0);
    }

    #[test]
    fn days_that_the_calendar_lacks_are_refused() {
        let date = |year, month, day| Date { year, month, day, hour: 0, minute: 0, second: 0 };
        for (year, month, day) in
            [(2023, 2, 29), (1900, 2, 29), (2024, 2, 30), (2024, 4, 31), (2024, 0, 1), (2024, 13, 1), (2024, 1, 0)]
        {
            assert_eq!(date(year, month, day).seconds(), None, "{year}-{month}-{day}");
        }
        assert!(date(2000, 2, 29).seconds().is_some());
        assert_eq!(Date { hour: 24, ..date(2024, 1, 1) }.seconds(), None);
        assert_eq!(Date { minute: 60, ..date(2024, 1, 1) }.seconds(), None);
        assert_eq!(Date { second: 60, ..date(2024, 1, 1) }.seconds(), None);
    }

    #[test]
    fn noon_and_midnight_are_twelve_where_hours_are_twelve() {
        for (hour, shown) in [(0, 0x12), (1, 0x01), (11, 0x11), (12, 0x92), (13, 0x81), (23, 0x91)] {
            let date = Date { hour, ..Date::from_seconds(0) };
            assert_eq!(Registers::of(&date, 0).hour, shown);
        }
        for wrong in [0x00, 0x13, 0x80, 0x9a, 0x1f] {
            let registers = Registers { hour: wrong, ..Registers::of(&Date::from_seconds(0), 0) };
            assert_eq!(registers.date(0), None, "{wrong:#x}");
        }
    }

    proptest! {
        #[test]
        fn a_date_comes_back_from_its_registers(seconds in 0i64..253_402_300_800, b: u8) {
            let date = Date::from_seconds(seconds);
            let back = Registers::of(&date, b).date(b);
            prop_assert_eq!(back, Some(date));
            prop_assert_eq!(back.and_then(|date| date.seconds()), Some(seconds));
        }

        #[test]
        fn no_time_and_no_register_panics(seconds: i64, raw: [u8; 7], b: u8) {
            Date::from_seconds(seconds);
            Date::weekday(seconds);
            let [second, minute, hour, day, month, year, century] = raw;
            let registers = Registers { second, minute, hour, day, month, year, century };
            if let Some(seconds) = registers.date(b).and_then(|date| date.seconds()) {
                prop_assert_eq!(Registers::of(&Date::from_seconds(seconds), b), registers);
            }
        }
    }
}
