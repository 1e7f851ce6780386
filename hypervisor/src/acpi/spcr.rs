//! SPCR, the Serial Port Console Redirection table: the serial port that the firmware uses for its own console. Microsoft's specification
//! of the table, version 1.10.

use core::fmt;

use super::{
    bytes::{u8_at, u32_at},
    chipset_ports::ChipsetPorts,
    generic_address::{GenericAddress, IO},
};
use crate::options::{BAUD as USUAL_BAUD, SerialPort};

/// Fields, by their offsets.
const INTERFACE: usize = 36;
const BASE_ADDRESS: usize = 40;
const BAUD: usize = 58;
/// The rate itself, from version 4 of the table on.
const PRECISE_BAUD: usize = 80;
const VERSION: usize = 8;
const WITH_PRECISE_BAUD: u8 = 4;

/// Kinds of port that a driver of the 16550 can use (table DBG2, subtypes of type 0x8000): 16550, 16550 without features of newer chips,
/// and 16550 whose address structure is complete.
const DRIVEN: [u8; 3] = [0, 1, 0x12];
/// Old devices, those of the ISA bus, have their ports below.
const FIRST_FREE: u16 = 0x400;

/// The port of the firmware's console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirmwareConsole {
    /// Where it is.
    pub port: SerialPort,
    /// Bits per second; none where the firmware leaves the port as it has set it.
    pub baud: Option<u32>,
}

/// Why the firmware's console is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoConsole {
    /// The table says that there is none, or is too short to say anything.
    None,
    /// No 16550: the kind of the port.
    Kind(u8),
    /// Its registers are not I/O ports: the address space.
    Space(u8),
    /// No serial port can be there: the address.
    Address(u64),
    /// The chipset's own ports are there. The command line does not get the port either.
    Chipset(SerialPort),
    /// Something else can be there: an old device, or a register of a chipset of which nothing is known.
    Doubtful(SerialPort),
}

impl fmt::Display for NoConsole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("the firmware's table SPCR names no port"),
            Self::Kind(kind) => write!(f, "the firmware's console is no 16550 (SPCR: interface type {kind:#x})"),
            Self::Space(space) => write!(f, "the firmware's console is not at I/O ports (SPCR: address space {space})"),
            Self::Address(address) => write!(f, "no serial port can be at {address:#x} (SPCR)"),
            Self::Chipset(port) => write!(f, "the chipset's own ports are at {port:#x} (SPCR, FADT)"),
            Self::Doubtful(port) => {
                write!(f, "{port:#x} could be another device's (SPCR); a word console={port:#x} has the last say")
            }
        }
    }
}

/// Reads the table, header included. A port is accepted if only a serial port can be there by the FADT: COM1 to COM4, or one beyond the
/// ports of old devices and outside the chipset's, which have to be known.
pub fn firmware_console(table: &[u8], chipset: Option<&ChipsetPorts>) -> Result<FirmwareConsole, NoConsole> {
    let kind = u8_at(table, INTERFACE).ok_or(NoConsole::None)?;
    let base = GenericAddress::parse(table, BASE_ADDRESS).filter(|base| base.address != 0);
    let GenericAddress { space, address, .. } = base.ok_or(NoConsole::None)?;
    if !DRIVEN.contains(&kind) {
        return Err(NoConsole::Kind(kind));
    }
    if space != IO {
        return Err(NoConsole::Space(space));
    }
    let port = SerialPort::new(address).ok_or(NoConsole::Address(address))?;
    match chipset {
        _ if port.number().is_some() => {}
        Some(chipset) if chipset.contains(port) => return Err(NoConsole::Chipset(port)),
        Some(_) if port.base() >= FIRST_FREE => {}
        _ => return Err(NoConsole::Doubtful(port)),
    }
    Ok(FirmwareConsole { port, baud: baud(table) })
}

fn baud(table: &[u8]) -> Option<u32> {
    let precise =
        u8_at(table, VERSION).filter(|&version| version >= WITH_PRECISE_BAUD).and_then(|_| u32_at(table, PRECISE_BAUD));
    precise.filter(|&baud| baud != 0).or_else(|| match u8_at(table, BAUD)? {
        3 => Some(9_600),
        4 => Some(19_200),
        6 => Some(57_600),
        7 => Some(USUAL_BAUD),
        // 0: as it is. Others are reserved.
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::{chipset_ports::tests::with_pm1a, tables::tests::make},
        *,
    };

    /// A table of version 2: 80 bytes.
    fn table(kind: u8, space: u8, address: u64, baud: u8) -> Vec<u8> {
        let mut body = vec![0; 44];
        body[0] = kind;
        body[4..8].copy_from_slice(&[space, 8, 0, 1]);
        body[8..16].copy_from_slice(&address.to_le_bytes());
        body[22] = baud;
        let mut table = make(b"SPCR", &body);
        table[VERSION] = 2;
        table
    }

    fn read(table: &[u8]) -> Result<FirmwareConsole, NoConsole> {
        firmware_console(table, Some(&ChipsetPorts::parse(&with_pm1a(0x1800))))
    }

    fn console(port: usize, baud: Option<u32>) -> Result<FirmwareConsole, NoConsole> {
        Ok(FirmwareConsole { port: SerialPort::COM[port - 1], baud })
    }

    #[test]
    fn a_server_has_its_console_on_com2_at_the_rate_that_it_says() {
        assert_eq!(read(&table(0, 1, 0x2f8, 7)), console(2, Some(115_200)));
        for (code, baud) in [(0, None), (1, None), (3, Some(9_600)), (4, Some(19_200)), (6, Some(57_600)), (8, None)] {
            assert_eq!(read(&table(0x12, 1, 0x3f8, code)), console(1, baud), "{code}");
        }
    }

    #[test]
    fn the_precise_rate_counts_from_version_4_on() {
        let mut table = table(1, 1, 0x3e8, 3);
        table.extend(230_400u32.to_le_bytes());
        assert_eq!(read(&table), console(3, Some(9_600)));
        table[VERSION] = 4;
        assert_eq!(read(&table), console(3, Some(230_400)));
        table[PRECISE_BAUD..].fill(0);
        assert_eq!(read(&table), console(3, Some(9_600)));
    }

    #[test]
    fn ports_that_are_no_16550_at_io_ports_are_refused_in_words() {
        for (table, why, words) in [
            (table(0, 0, 0xfe03_0000, 7), NoConsole::Space(0), "not at I/O ports"),
            (table(3, 0, 0x900_0000, 7), NoConsole::Kind(3), "no 16550"),
            (table(0, 1, 0, 7), NoConsole::None, "names no port"),
            (table(0, 1, 0x60, 7), NoConsole::Address(0x60), "at 0x60"),
            (table(0, 1, 0x1_0000_02f8, 7), NoConsole::Address(0x1_0000_02f8), "no serial port"),
            (make(b"SPCR", &[0; 10]), NoConsole::None, "names no port"),
        ] {
            assert_eq!(read(&table), Err(why));
            assert!(why.to_string().contains(words), "{why}");
        }
    }

    #[test]
    fn the_command_line_is_advised_only_where_it_gets_the_port() {
        for base in [0x1800, 0x1808, 0x1830, 0x18f8] {
            let why = read(&table(0, 1, base, 7)).unwrap_err();
            assert_eq!(why, NoConsole::Chipset(SerialPort::new(base).unwrap()));
            assert!(why.to_string().contains("the chipset's own") && !why.to_string().contains("console="), "{why}");
        }
        for base in [0x238, 0x2f0, 0x3e0] {
            let why = read(&table(0, 1, base, 7)).unwrap_err();
            assert_eq!(why, NoConsole::Doubtful(SerialPort::new(base).unwrap()));
            assert!(why.to_string().contains(&std::format!("console={base:#x}")), "{why}");
        }
        for base in [0x17f8, 0x1900, 0xc000] {
            let console = FirmwareConsole { port: SerialPort::new(base).unwrap(), baud: Some(115_200) };
            let table = table(0, 1, base, 7);
            assert_eq!(read(&table), Ok(console));
            assert_eq!(firmware_console(&table, None), Err(NoConsole::Doubtful(console.port)), "nothing is known");
        }
        assert_eq!(firmware_console(&table(0, 1, 0x2e8, 7), None), console(4, Some(115_200)));
    }

    proptest! {
        #[test]
        fn any_table_is_survived(body in prop::collection::vec(any::<u8>(), 0..60)) {
            // Whatever it says, the port is one where a serial port can be.
            if let Ok(console) = read(&make(b"SPCR", &body)) {
                prop_assert_eq!(SerialPort::new(console.port.base().into()), Some(console.port));
            }
        }
    }
}
