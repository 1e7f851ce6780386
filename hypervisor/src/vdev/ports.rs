//! The guest's I/O ports.
//!
//! | port | what |
//! |---|---|
//! | 0x70, 0x71 | the clock with its battery, and its memory |
//! | 0x3F8 to 0x3FF | the serial port |
//! | 0x600, 0x601 | ACPI's sleep control and status: powering off ends the guest with exit code 0 |
//! | 0xCF8 to 0xCFF | PCI configuration mechanism 1 |
//! | 0xF4 | ends the guest; the byte is its exit code |
//! | 0x64 (0xFE), 0xCF9 (bit 2) | reset |
//! | all others | nothing is there: reads are all ones, writes are ignored, as on an empty bus |
//!
//! PIT, PIC and the POST port are among the others. The caller refuses string instructions (INS, OUTS).

use core::time::Duration;

use super::{
    all_ones,
    pci::{self, VirtualBus},
    rtc::{self, Rtc},
    uart::{self, Uart},
};
use crate::addr::Bdf;

/// A guest ends itself here.
pub const EXIT: u16 = 0xf4;

const KEYBOARD_COMMAND: u16 = 0x64;
const KEYBOARD_RESET: u8 = 0xfe;
/// The reset control register; the FADT names it.
pub const RESET_CONTROL: u16 = 0xcf9;
const RESET_CPU: u8 = 1 << 2;
/// The sleep control register (ACPI 6.5, 4.8.3.7); the FADT names it.
pub const SLEEP_CONTROL: u16 = 0x600;
/// The sleep status register: nothing has ever woken the guest.
pub const SLEEP_STATUS: u16 = 0x601;
/// SLP_TYP of the state S5, as the object `\_S5` reports it.
pub const SLEEP_TYPE_S5: u8 = 5;
const SLEEP_ENABLE: u8 = 1 << 5;
const PCI_FIRST: u16 = 0xcf8;
const PCI_LAST: u16 = 0xcff;

/// What an OUT makes necessary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// The guest ends, with this code.
    Exit(u8),
    /// The guest asks for a reset.
    Reset,
    /// A function's configuration was written.
    Pci(Bdf, pci::Effect),
}

/// The devices behind a guest's ports.
pub struct Ports<'a> {
    /// The serial port.
    pub uart: &'a mut Uart,
    /// The PCI bus.
    pub bus: &'a mut VirtualBus,
    /// The clock.
    pub rtc: &'a mut Rtc,
    /// The time since the beginning of 1970.
    pub now: &'a dyn Fn() -> Duration,
}

impl Ports<'_> {
    /// IN of `width` (1, 2 or 4) bytes.
    pub fn read(&mut self, port: u16, width: u8) -> u32 {
        match port {
            uart::BASE..=uart::LAST => self.read_uart(port, width),
            rtc::INDEX..=rtc::DATA => self.read_rtc(port, width),
            RESET_CONTROL | SLEEP_CONTROL | SLEEP_STATUS if width == 1 => 0,
            PCI_FIRST..=PCI_LAST => self.bus.io_read(port - PCI_FIRST, width),
            _ => all_ones(width),
        }
    }

    /// OUT of `width` (1, 2 or 4) bytes. Lines of the console go to `sink`.
    pub fn write(&mut self, port: u16, width: u8, value: u32, sink: &mut dyn FnMut(&str)) -> Effect {
        match port {
            uart::BASE..=uart::LAST => self.write_uart(port, width, value, sink),
            rtc::INDEX..=rtc::DATA => self.write_rtc(port, width, value),
            EXIT => return Effect::Exit(value as u8),
            KEYBOARD_COMMAND if value as u8 == KEYBOARD_RESET => return Effect::Reset,
            SLEEP_CONTROL if width == 1 => return sleep(value as u8),
            RESET_CONTROL if width == 1 => {
                return if value as u8 & RESET_CPU != 0 { Effect::Reset } else { Effect::None };
            }
            PCI_FIRST..=PCI_LAST => {
                let done = self.bus.io_write(port - PCI_FIRST, width, value);
                return done.map_or(Effect::None, |(bdf, effect)| Effect::Pci(bdf, effect));
            }
            _ => {}
        }
        Effect::None
    }

    /// The port is eight bits wide: a wider access is one for each byte, as on the ISA bus.
    fn read_uart(&mut self, port: u16, width: u8) -> u32 {
        let first = port - uart::BASE;
        (0..width.min(4)).fold(0, |value, at| {
            let byte = self.uart.read(first + at as u16);
            value | (byte as u32) << (at * 8)
        })
    }

    /// As for the serial port; nothing is behind the data.
    fn read_rtc(&mut self, port: u16, width: u8) -> u32 {
        let now = (self.now)();
        (0..width.min(4)).fold(0, |value, at| {
            let port = port + at as u16;
            let byte = if port <= rtc::DATA { self.rtc.read(port, now) } else { 0xff };
            value | (byte as u32) << (at * 8)
        })
    }

    fn write_rtc(&mut self, port: u16, width: u8, value: u32) {
        let now = (self.now)();
        for (port, byte) in (port..=rtc::DATA).zip(value.to_le_bytes().into_iter().take(width as usize)) {
            self.rtc.write(port, byte, now);
        }
    }

    fn write_uart(&mut self, port: u16, width: u8, value: u32, sink: &mut dyn FnMut(&str)) {
        let first = port - uart::BASE;
        for (at, byte) in value.to_le_bytes().into_iter().take(width as usize).enumerate() {
            self.uart.write(first + at as u16, byte, sink);
        }
    }
}

/// The guest goes to sleep: S5 is the only state that it has.
const fn sleep(value: u8) -> Effect {
    if value & SLEEP_ENABLE != 0 && value >> 2 & 7 == SLEEP_TYPE_S5 { Effect::Exit(0) } else { Effect::None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn with<T>(test: impl FnOnce(&mut Ports<'_>) -> T) -> T {
        test(&mut Ports {
            uart: &mut Uart::new(),
            bus: &mut VirtualBus::new(),
            rtc: &mut Rtc::new(),
            now: &|| Duration::from_secs(1_700_000_000),
        })
    }

    fn write(ports: &mut Ports<'_>, port: u16, width: u8, value: u32) -> Effect {
        ports.write(port, width, value, &mut |_| {})
    }

    #[test]
    fn each_device_answers_at_its_ports() {
        with(|ports| {
            assert_eq!(ports.read(0x3fd, 1), 0x60);
            assert_eq!(write(ports, 0xcf8, 4, 0x8000_0000), Effect::None);
            assert_eq!(ports.read(0xcfc, 4), 0x0008_1b36);
            write(ports, 0xcf8, 4, 0x8000_0004);
            let command = pci::Effect::Command { memory: true, bus_master: false };
            assert_eq!(write(ports, 0xcfc, 2, 2), Effect::Pci(Bdf::new(0, 0, 0), command));
            assert_eq!(write(ports, EXIT, 1, 0x107), Effect::Exit(7));
            assert_eq!(write(ports, 0x70, 1, 9), Effect::None);
            assert_eq!(ports.read(0x71, 1), 0x23);
        });
    }

    #[test]
    fn both_ways_to_reset_work_and_nothing_near_them() {
        with(|ports| {
            assert_eq!(write(ports, 0x64, 1, 0xfe), Effect::Reset);
            assert_eq!(write(ports, 0x64, 1, 0xd1), Effect::None);
            assert_eq!(write(ports, 0xcf9, 1, 6), Effect::Reset);
            assert_eq!(write(ports, 0xcf9, 1, 2), Effect::None);
        });
    }

    #[test]
    fn powering_off_ends_the_guest_and_no_other_sleep_does() {
        with(|ports| {
            assert_eq!(write(ports, SLEEP_STATUS, 1, 0x80), Effect::None);
            assert_eq!(ports.read(SLEEP_STATUS, 1), 0, "never woken");
            for value in 0..=0xff {
                let off = value & 0x3c == 0x34;
                let expected = if off { Effect::Exit(0) } else { Effect::None };
                assert_eq!(write(ports, SLEEP_CONTROL, 1, value), expected, "{value:#x}");
            }
            assert_eq!(write(ports, SLEEP_CONTROL, 2, 0x34), Effect::None, "the register is a byte");
        });
    }

    /// The table at the top, by hand: what answers, and what a byte of ones written does.
    #[test]
    fn these_ports_of_all_answer_and_no_others() {
        // By a byte: the address register of PCI configuration takes dwords only.
        let answers = |port: u16| matches!(port, 0x71 | 0x3f8..=0x3fe | 0x600 | 0x601 | 0xcf9 | 0xcfc..=0xcff);
        // The index of the clock cannot be read, and the scratch register of the serial port begins as it likes.
        let either = |port: u16| matches!(port, 0x70 | 0x3ff);
        with(|ports| {
            // The day, and the host bridge's identifiers: neither is all ones.
            write(ports, 0x70, 1, 0x07);
            write(ports, 0xcf8, 4, 0x8000_0000);
            for port in (0..=u16::MAX).filter(|&port| !either(port)) {
                assert_eq!(ports.read(port, 1) != 0xff, answers(port), "{port:#x}");
            }
            assert_eq!(ports.read(0xcf8, 4), 0x8000_0000);
        });
        for port in 0..=u16::MAX {
            let effects = [0xff, 0xfe, 0x34, 6].map(|value| with(|ports| write(ports, port, 1, value)));
            let expected = match port {
                0xf4 => [Effect::Exit(0xff), Effect::Exit(0xfe), Effect::Exit(0x34), Effect::Exit(6)],
                0x64 => [Effect::None, Effect::Reset, Effect::None, Effect::None],
                0xcf9 => [Effect::Reset, Effect::Reset, Effect::Reset, Effect::Reset],
                0x600 => [Effect::None, Effect::None, Effect::Exit(0), Effect::None],
                _ => [Effect::None; 4],
            };
            assert_eq!(effects, expected, "{port:#x}");
        }
    }

    #[test]
    fn an_empty_port_reads_as_ones() {
        with(|ports| {
            for port in [0x20, 0x21, 0x40, 0x61, 0x72, 0x80, 0x2f8, 0xb008, 0xffff] {
                assert_eq!((ports.read(port, 1), ports.read(port, 2), ports.read(port, 4)), (0xff, 0xffff, u32::MAX));
                assert_eq!(write(ports, port, 1, 0), Effect::None);
            }
        });
    }

    #[test]
    fn a_wide_access_to_the_serial_port_is_one_for_each_byte() {
        let mut out = Vec::new();
        with(|ports| {
            ports.write(0x3f8, 2, 0x0061, &mut |_| {});
            ports.write(0x3f8, 1, 0x0a, &mut |line| out.push(line.to_owned()));
            assert_eq!(ports.read(0x3fc, 2), 0x6000);
        });
        assert_eq!(out, ["a"]);
    }

    #[test]
    fn a_wide_access_to_the_clock_is_one_for_each_byte() {
        with(|ports| {
            write(ports, 0x70, 2, 0x5540);
            assert_eq!(ports.read(0x70, 4), 0xffff_55ff);
            write(ports, 0x71, 4, 0x0101_0166);
            assert_eq!(ports.read(0x71, 2), 0xff66);
        });
    }

    proptest! {
        #[test]
        fn no_access_panics(port: u16, width: u8, value: u32) {
            with(|ports| {
                write(ports, port, width, value);
                write(ports, 0xcf8 | port & 7, width, value);
                write(ports, 0x3f8 | port & 7, width, value);
                write(ports, 0x70 | port & 1, width, value);
                ports.read(0x70 | port & 1, width);
                ports.read(port, width);
                ports.read(0x3f8 | port & 7, width);
            });
        }
    }
}
