//! The hypervisor's own command line: words `name=value`, as the boot loader hands them over.
#![forbid(unsafe_code)]

use core::fmt;

/// Bits per second of a serial port without another rate.
pub const BAUD: u32 = 115_200;

/// Ports of the board itself, as first and last port: timers, interrupt and DMA controllers, CMOS; disks; VGA; floppy disks; the chipset's
/// watchdog (Intel's TCOBASE); levels of interrupts; PCI's configuration space.
const BOARD: [(u16, u16); 9] = [
    (0, 0xff),
    (0x170, 0x177),
    (0x1f0, 0x1f7),
    (0x370, 0x377),
    (0x3b0, 0x3df),
    (0x3f0, 0x3f7),
    (0x400, 0x41f),
    (0x4d0, 0x4d7),
    (0xcf8, 0xcff),
];

/// The eight I/O ports of a 16550.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SerialPort(u16);

impl SerialPort {
    /// I/O ports that a 16550 has.
    const COUNT: u16 = 8;

    /// COM1 to COM4, as PCs have them.
    pub const COM: [Self; 4] = [Self(0x3f8), Self(0x2f8), Self(0x3e8), Self(0x2e8)];

    /// The port at `base`; none where no serial port can be: at a base that is no multiple of 8, beyond the I/O ports, or where every PC has
    /// something else.
    pub fn new(base: u64) -> Option<Self> {
        let base = u16::try_from(base).ok()?;
        let is_boards = BOARD.iter().any(|&(first, last)| (first..=last).contains(&base));
        let possible = base.is_multiple_of(Self::COUNT) && !is_boards;
        possible.then_some(Self(base))
    }

    /// Its first I/O port.
    pub const fn base(self) -> u16 {
        self.0
    }

    /// Its number among COM1 to COM4, from 1 on.
    pub fn number(self) -> Option<usize> {
        Self::COM.iter().position(|&com| com == self).map(|index| index + 1)
    }

    /// The port of the terminal of a guest, where the console has this one: COM2, or COM1 beside a console on COM2.
    pub fn terminal_beside(self) -> Self {
        let [com1, com2, ..] = Self::COM;
        if self == com2 { com1 } else { com2 }
    }

    /// From `com1` to `com4`, or a hexadecimal base, `0x2f8`.
    fn parse(text: &str) -> Option<Self> {
        if let Some(base) = text.strip_prefix("0x") {
            // Unlike `from_str_radix`, no sign.
            let digits = base.bytes().all(|byte| byte.is_ascii_hexdigit());
            return Self::new(u64::from_str_radix(base, 16).ok().filter(|_| digits)?);
        }
        let number: usize = text.strip_prefix("com").filter(|number| number.len() == 1)?.parse().ok()?;
        Self::COM.get(number.checked_sub(1)?).copied()
    }
}

impl fmt::Display for SerialPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number() {
            Some(number) => write!(f, "COM{number}"),
            None => write!(f, "the serial port {:#x}", self.0),
        }
    }
}

impl fmt::LowerHex for SerialPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which port the console is on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Console {
    /// The one that the firmware's table SPCR names, else COM1.
    #[default]
    Auto,
    /// This one.
    At(SerialPort),
}

/// Whether guests may share a core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Smt {
    /// Two guests never run on hyperthreads of one core at a time.
    #[default]
    Core,
    /// Each hyperthread is a processor like others.
    Shared,
}

/// What the command line asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// `console=`: `auto`, `com1` to `com4`, or a base.
    pub console: Console,
    /// `screen=`: whether the screen shows the console's lines as well.
    pub screen: bool,
    /// `smt=`: `core`, or `shared`.
    pub smt: Smt,
    /// `mitigations=`: whether the processor's speculation is kept from carrying data between guests, or everything that costs is off.
    pub mitigations: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { console: Console::Auto, screen: true, smt: Smt::Core, mitigations: true }
    }
}

/// A word that is not understood, and is passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong<'a> {
    /// No option has this name.
    Unknown(&'a str),
    /// A value that `console=` does not take.
    Console(&'a str),
    /// A value that `screen=` does not take.
    Screen(&'a str),
    /// A value that `smt=` does not take.
    Smt(&'a str),
    /// A value that `mitigations=` does not take.
    Mitigations(&'a str),
}

impl fmt::Display for Wrong<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(word) => {
                write!(f, "{word}: the hypervisor's options are console=, screen=, smt= and mitigations=")
            }
            Self::Console(value) => write!(
                f,
                "console={value}: auto, com1 to com4, or the base of a serial port, like 0x2f8 (a multiple of 8, and no port of the board itself)"
            ),
            Self::Screen(value) => write!(f, "screen={value}: on or off"),
            Self::Smt(value) => write!(f, "smt={value}: core or shared"),
            Self::Mitigations(value) => write!(f, "mitigations={value}: auto or off"),
        }
    }
}

impl Options {
    /// Reads a command line. Of an option that comes twice the last one counts. Returns the first word that is wrong as well.
    pub fn parse(line: &str) -> (Self, Option<Wrong<'_>>) {
        let mut options = Self::default();
        let mut wrong = None;
        for word in line.split_ascii_whitespace() {
            if let Err(this) = options.take(word) {
                wrong = wrong.or(Some(this));
            }
        }
        (options, wrong)
    }

    fn take<'a>(&mut self, word: &'a str) -> Result<(), Wrong<'a>> {
        match word.split_once('=') {
            Some(("console", "auto")) => self.console = Console::Auto,
            Some(("console", value)) => {
                self.console = Console::At(SerialPort::parse(value).ok_or(Wrong::Console(value))?);
            }
            Some(("screen", "on")) => self.screen = true,
            Some(("screen", "off")) => self.screen = false,
            Some(("screen", value)) => return Err(Wrong::Screen(value)),
            Some(("smt", "core")) => self.smt = Smt::Core,
            Some(("smt", "shared")) => self.smt = Smt::Shared,
            Some(("smt", value)) => return Err(Wrong::Smt(value)),
            Some(("mitigations", "auto")) => self.mitigations = true,
            Some(("mitigations", "off")) => self.mitigations = false,
            Some(("mitigations", value)) => return Err(Wrong::Mitigations(value)),
            _ => return Err(Wrong::Unknown(word)),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use proptest::prelude::*;

    use super::*;

    fn console(line: &str) -> Console {
        let (options, wrong) = Options::parse(line);
        assert_eq!(wrong, None, "{line}");
        options.console
    }

    #[test]
    fn without_words_the_firmware_says_which_port_and_the_screen_is_on() {
        assert_eq!(
            Options::parse(""),
            (Options { console: Console::Auto, screen: true, smt: Smt::Core, mitigations: true }, None)
        );
        assert_eq!(console("console=com2 console=auto"), Console::Auto, "the last one counts");
    }

    #[test]
    fn a_port_is_a_name_or_a_base() {
        for (text, base) in
            [("com1", 0x3f8), ("com2", 0x2f8), ("com3", 0x3e8), ("com4", 0x2e8), ("0x2F8", 0x2f8), ("0xc000", 0xc000)]
        {
            let Console::At(port) = console(&std::format!("console={text}")) else { panic!("{text}") };
            assert_eq!(port.base(), base, "{text}");
        }
        let names: Vec<_> = SerialPort::COM.iter().map(SerialPort::to_string).collect();
        assert_eq!(names, ["COM1", "COM2", "COM3", "COM4"]);
        assert_eq!(SerialPort(0xc000).to_string(), "the serial port 0xc000");
    }

    #[test]
    fn a_base_where_no_serial_port_can_be_is_wrong() {
        let boards =
            [0, 0x20, 0x60, 0x70, 0xf8, 0x170, 0x1f0, 0x370, 0x3b0, 0x3c0, 0x3d8, 0x3f0, 0x400, 0x418, 0x4d0, 0xcf8];
        for base in boards.into_iter().chain([0x3f9, 0x1_03f8, u64::MAX]) {
            assert_eq!(SerialPort::new(base), None, "{base:#x}");
        }
        assert_eq!(SerialPort::new(0xfff8).map(SerialPort::base), Some(0xfff8));
    }

    #[test]
    fn console_and_terminal_never_share_a_port() {
        let [com1, com2, com3, com4] = SerialPort::COM;
        assert_eq!([com1, com2, com3, com4].map(SerialPort::terminal_beside), [com2, com1, com2, com2]);
        assert_eq!(SerialPort(0xc000).terminal_beside(), com2);
    }

    #[test]
    fn what_is_wrong_is_said_and_passed_over() {
        for value in [
            "",
            "com0",
            "com5",
            "com",
            "com+1",
            "com11",
            "COM1",
            "2f8",
            "0x",
            "0x+2f8",
            "0x2f9",
            "0x10000000000000000",
            "ttyS0",
        ] {
            let line = std::format!("console={value} screen=off");
            let (options, wrong) = Options::parse(&line);
            assert_eq!(
                (options, wrong),
                (Options { screen: false, ..Options::default() }, Some(Wrong::Console(value)))
            );
        }
        let (options, wrong) = Options::parse("screen=of quiet console=com2");
        assert_eq!((options.console, wrong), (Console::At(SerialPort(0x2f8)), Some(Wrong::Screen("of"))));
        assert_eq!(wrong.map(|wrong| wrong.to_string()), Some("screen=of: on or off".to_string()));
        assert_eq!(Options::parse("quiet").1, Some(Wrong::Unknown("quiet")));
    }

    #[test]
    fn guests_do_not_share_a_core_unless_the_line_says_so() {
        assert_eq!(
            [Options::default(), Options::parse("smt=shared").0].map(|options| options.smt),
            [Smt::Core, Smt::Shared]
        );
        assert_eq!(Options::parse("smt=off"), (Options::default(), Some(Wrong::Smt("off"))));
    }

    #[test]
    fn mitigations_are_on_unless_the_line_says_off() {
        assert!(Options::default().mitigations && Options::parse("mitigations=off mitigations=auto").0.mitigations);
        assert!(!Options::parse("mitigations=off").0.mitigations);
        for value in ["", "on", "Off", "auto,nosmt"] {
            let line = std::format!("mitigations={value}");
            let (options, wrong) = Options::parse(&line);
            assert!(options.mitigations, "a word that is not understood takes nothing away");
            assert_eq!(wrong, Some(Wrong::Mitigations(value)));
        }
    }

    proptest! {
        #[test]
        fn any_line_is_survived(line in ".{0,40}") {
            Options::parse(&line);
        }
    }
}
