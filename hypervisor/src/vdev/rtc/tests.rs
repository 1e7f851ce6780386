use proptest::prelude::*;

use super::*;

/// 14 November 2023, 22:13:20.
const NOW: Duration = Duration::from_secs(1_700_000_000);

fn get(rtc: &mut Rtc, index: u8, now: Duration) -> u8 {
    rtc.write(INDEX, index, now);
    rtc.read(DATA, now)
}

fn put(rtc: &mut Rtc, index: u8, byte: u8, now: Duration) {
    rtc.write(INDEX, index, now);
    rtc.write(DATA, byte, now);
}

/// Seconds to years, and the century.
fn time(rtc: &mut Rtc, now: Duration) -> [u8; 7] {
    [reg::SECOND, reg::MINUTE, reg::HOUR, reg::DAY, reg::MONTH, reg::YEAR, reg::CENTURY].map(|at| get(rtc, at, now))
}

/// As Linux sets a clock (`mc146818_set_time`): the divider is held meanwhile.
fn set(rtc: &mut Rtc, bytes: [u8; 7], now: Duration) {
    let (a, b) = (get(rtc, reg::A, now), get(rtc, reg::B, now));
    put(rtc, reg::B, b | B_SET, now);
    put(rtc, reg::A, a | A_DIVIDER_RESET, now);
    let places = [reg::SECOND, reg::MINUTE, reg::HOUR, reg::DAY, reg::MONTH, reg::YEAR, reg::CENTURY];
    places.into_iter().zip(bytes).for_each(|(at, byte)| put(rtc, at, byte, now));
    put(rtc, reg::B, b, now);
    put(rtc, reg::A, a, now);
}

#[test]
fn it_shows_the_date_as_pcs_do() {
    let mut rtc = Rtc::new();
    assert_eq!(time(&mut rtc, NOW), [0x20, 0x13, 0x22, 0x14, 0x11, 0x23, 0x20]);
    assert_eq!(get(&mut rtc, reg::WEEKDAY, NOW), 3);
    assert_eq!((get(&mut rtc, reg::A, NOW), get(&mut rtc, reg::B, NOW)), (0x26, 0x02));
    assert_eq!((get(&mut rtc, reg::C, NOW), get(&mut rtc, reg::D, NOW)), (0, 0x80));
    assert_eq!(rtc.read(INDEX, NOW), 0xff);
}

#[test]
fn the_bit_of_the_index_that_masks_nmis_selects_nothing() {
    let mut rtc = Rtc::new();
    assert_eq!(get(&mut rtc, 0x80 | reg::YEAR, NOW), 0x23);
    put(&mut rtc, 0x80 | 0x40, 7, NOW);
    assert_eq!(get(&mut rtc, 0x40, NOW), 7);
}

#[test]
fn the_format_is_what_register_b_says() {
    let mut rtc = Rtc::new();
    put(&mut rtc, reg::B, 0x06, NOW);
    assert_eq!(time(&mut rtc, NOW), [20, 13, 22, 14, 11, 23, 20]);
    put(&mut rtc, reg::B, 0x00, NOW);
    assert_eq!(get(&mut rtc, reg::HOUR, NOW), 0x90, "10 p.m.");
    assert_eq!(get(&mut rtc, reg::B, NOW), 0);
}

#[test]
fn an_update_is_announced_before_the_second_ends_and_over_when_it_has() {
    let mut rtc = Rtc::new();
    for (micros, updates) in [(0, false), (997_771, false), (997_772, true), (999_999, true), (1_000_000, false)] {
        let now = NOW + Duration::from_micros(micros);
        assert_eq!(get(&mut rtc, reg::A, now) & A_UPDATE != 0, updates, "{micros}");
    }
    put(&mut rtc, reg::B, B_SET | 2, NOW);
    assert_eq!(get(&mut rtc, reg::A, NOW + Duration::from_micros(999_999)), 0x26, "no update while time stands still");
}

#[test]
fn a_guest_sets_a_time_of_its_own_and_it_goes_on_from_there() {
    let mut rtc = Rtc::new();
    set(&mut rtc, [0x59, 0x59, 0x23, 0x28, 0x02, 0x24, 0x20], NOW);
    assert_eq!(time(&mut rtc, NOW), [0x59, 0x59, 0x23, 0x28, 0x02, 0x24, 0x20]);
    // The first update comes half a second after the divider was let go.
    assert_eq!(get(&mut rtc, reg::SECOND, NOW + Duration::from_micros(499_999)), 0x59);
    let later = NOW + Duration::from_micros(500_000);
    assert_eq!(time(&mut rtc, later), [0, 0, 0, 0x29, 0x02, 0x24, 0x20]);
    let day = Duration::from_secs(86_400);
    assert_eq!(time(&mut rtc, later + day), [0, 0, 0, 0x01, 0x03, 0x24, 0x20]);
    assert_eq!(time(&mut Rtc::new(), NOW)[0], 0x20, "another guest's clock");
}

#[test]
fn time_stands_still_while_it_is_set() {
    let mut rtc = Rtc::new();
    put(&mut rtc, reg::B, B_SET | 2, NOW);
    let later = NOW + Duration::from_secs(100);
    assert_eq!(get(&mut rtc, reg::SECOND, later), 0x20);
    put(&mut rtc, reg::MINUTE, 0x30, later);
    put(&mut rtc, reg::B, 2, later);
    assert_eq!(time(&mut rtc, later)[..3], [0x20, 0x30, 0x22]);
    assert_eq!(time(&mut rtc, later + Duration::from_secs(1))[..3], [0x21, 0x30, 0x22]);
}

#[test]
fn a_time_that_is_none_is_not_taken() {
    let mut rtc = Rtc::new();
    for wrong in [[0x60, 0, 0, 1, 1, 0x24, 0x20], [0, 0, 0, 0x30, 2, 0x24, 0x20], [0xff; 7], [0, 0, 0, 0, 0, 0, 0]] {
        set(&mut rtc, wrong, NOW);
        assert_eq!(time(&mut rtc, NOW)[1..], [0x13, 0x22, 0x14, 0x11, 0x23, 0x20]);
    }
}

#[test]
fn one_register_can_be_written_while_time_goes_on() {
    let mut rtc = Rtc::new();
    put(&mut rtc, reg::HOUR, 0x07, NOW);
    put(&mut rtc, reg::DAY, 0x31, NOW);
    assert_eq!(time(&mut rtc, NOW), [0x20, 0x13, 0x07, 0x14, 0x11, 0x23, 0x20], "November has no 31st");
}

#[test]
fn memory_keeps_what_is_written_and_registers_c_and_d_do_not() {
    let mut rtc = Rtc::new();
    for index in (1..6).step_by(2).chain(0x0e..0x32).chain(0x33..0x80) {
        assert_eq!(get(&mut rtc, index, NOW), 0);
        put(&mut rtc, index, index ^ 0x55, NOW);
    }
    for index in (1..6).step_by(2).chain(0x0e..0x32).chain(0x33..0x80) {
        assert_eq!(get(&mut rtc, index, NOW), index ^ 0x55);
    }
    put(&mut rtc, reg::C, 0xff, NOW);
    put(&mut rtc, reg::D, 0, NOW);
    assert_eq!((get(&mut rtc, reg::C, NOW), get(&mut rtc, reg::D, NOW)), (0, 0x80));
}

proptest! {
    #[test]
    fn no_access_panics(accesses: Vec<(bool, bool, u8, u64)>) {
        let mut rtc = Rtc::new();
        for (read, data, byte, micros) in accesses {
            let now = Duration::from_micros(micros);
            let port = if data { DATA } else { INDEX };
            if read {
                rtc.read(port, now);
            } else {
                rtc.write(port, byte, now);
            }
        }
    }

    #[test]
    fn what_is_set_is_read_in_every_format(seconds in 0i64..253_402_300_800, b in 0u8..8, passed in 0u64..500_000) {
        let b = b & 6;
        let wanted = Registers::of(&Date::from_seconds(seconds), b);
        let Registers { second, minute, hour, day, month, year, century } = wanted;
        let bytes = [second, minute, hour, day, month, year, century];
        let mut rtc = Rtc::new();
        put(&mut rtc, reg::B, b, NOW);
        set(&mut rtc, bytes, NOW);
        prop_assert_eq!(time(&mut rtc, NOW + Duration::from_micros(passed)), bytes);
    }
}
