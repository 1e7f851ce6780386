//! A guest's options, which the command line of its boot module holds: `name mem=64M device=6a:01.0 cmdline="…"`.
//!
//! Words are separated by blanks. Quotes join the characters that they enclose, wherever they begin, and a backslash quotes the next
//! character. So both `cmdline="a b"` and GRUB's own form, `"cmdline=a b"`, mean the same.

use alloc::{string::String, vec::Vec};
use core::fmt;

use hcall_abi::Pasid;

use super::{
    image::INITRD,
    memory_map::{CMDLINE_SIZE, RAM_GRANULE, RAM_MAX, RAM_MIN, is_ram_size},
    processor_set::ProcessorSet,
    shares::{DEFAULT_WEIGHT, MAX_WEIGHT, Shares},
};
use crate::{
    addr::Bdf,
    quirks::{self, Erratum},
};

/// Longest name.
pub const NAME_MAX: usize = 16;
/// Most devices of one guest.
pub const DEVICES_MAX: usize = 8;
/// Fewest vectors of a virtual function: the one that the hypervisor signals, and one of the device's.
pub const VECTORS_MIN: u16 = 2;
/// Most vectors of a virtual function: what an MSI-X table can have.
pub const VECTORS_MAX: u16 = 2048;
#[cfg(feature = "machine")]
const _: () = assert!(VECTORS_MAX == crate::vdev::pci::MOST_MSIX);
/// Vectors of a virtual function without `vectors=`.
pub const DEFAULT_VECTORS: u16 = 64;
/// Most virtual processors of one guest.
pub const CPUS_MAX: u32 = 64;
/// Memory without `mem=`.
pub const DEFAULT_MEMORY: u64 = 64 << 20;
/// The highest limit of interrupts in a million ticks, which no device reaches.
pub const STORM_MAX: u32 = 100_000;
/// Longest module command line, in bytes.
const COMMAND_LINE_MAX: usize = 4096;

/// A function to assign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The function at this place of the host.
    At(Bdf),
    /// The first DSA that is found.
    FirstDsa,
    /// A virtual function of a DSA: of the function at this place, or of the first that has room.
    Virtual {
        /// Whose.
        parent: Option<Bdf>,
        /// Its vectors.
        vectors: u16,
    },
}

/// Which operating system a guest is, as far as the platform makes a difference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Os {
    /// One that needs nothing that others do not have.
    #[default]
    Other,
    /// Linux. It finds KVM's signature, and the features of KVM that this hypervisor serves.
    Linux,
}

/// After which ends a guest is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Restart {
    /// After none.
    #[default]
    Never,
    /// After all but an exit with code 0.
    OnFailure,
    /// After all.
    Always,
}

/// A guest as asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Its name: `[a-z0-9-]`, 1 to 16 characters.
    pub name: String,
    /// Bytes of memory.
    pub memory: u64,
    /// Its virtual processors.
    pub cpus: u32,
    /// Functions to assign.
    pub devices: Vec<Device>,
    /// Its command line, printable ASCII.
    pub cmdline: String,
    /// The guest's operating system.
    pub os: Os,
    /// Whether the processor keeps its local APIC, if it said so.
    pub apicv: Option<bool>,
    /// Whether its devices' interrupts are posted, if it said so.
    pub posting: Option<bool>,
    /// `ims=forbidden`: the platform says that interrupt message stores must not be used without the hypercall domain.
    pub ims_forbidden: bool,
    /// `hypercalls=off`: there is no hypercall domain.
    pub hypercalls: bool,
    /// Interrupts that a slot may raise in a million ticks of the TSC.
    pub storm: Option<u32>,
    /// How much of the processors' time it may have.
    pub shares: Shares,
    /// The processors that may run its virtual processors, if it said so.
    pub pin: Option<ProcessorSet>,
    /// PASIDs that it owns for the functions that it has as a whole: the first and the last.
    pub pasids: Option<(Pasid, Pasid)>,
    /// `console=on`: its serial port is the machine's terminal, on COM2.
    pub console: bool,
    /// `exits=marks`: report its VM exits so far after each mark on its console.
    pub marks: bool,
    /// `restart=`: after which ends it is started again.
    pub restart: Restart,
    /// `autostart=off`: only a manager starts it.
    pub autostart: bool,
    /// `manage=on`: it manages all guests.
    pub manages: bool,
    /// `unsafe=`: errata in spite of which it gets functions that have them.
    pub accepted: Vec<&'static Erratum>,
}

/// Why a module command line describes no guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// Longer than 4,096 bytes.
    TooLong,
    /// A character outside of printable ASCII, at this byte.
    Character(usize),
    /// A quote is not closed, or a backslash ends the command line.
    Unfinished,
    /// The name is missing, or is not `[a-z0-9-]{1,16}`.
    Name(String),
    /// An initrd without a guest before it, or with one that has an initrd already.
    Initrd,
    /// A word that is no option.
    Unknown(String),
    /// This option is there twice.
    Repeated(&'static str),
    /// No number with M or G, or no size that a guest can have.
    Memory(String),
    /// No number of processors that a guest can have.
    Cpus(String),
    /// Neither `on` nor `off`.
    Switch(String),
    /// Neither `[segment:]bus:device.function` in hexadecimal nor `dsa` nor `vdsa`.
    Device(String),
    /// No number of vectors that a virtual function can have.
    Vectors(String),
    /// `vectors=` does not follow a virtual function.
    WhoseVectors,
    /// More than eight devices.
    TooManyDevices,
    /// Something else than `exits=marks`.
    Exits(String),
    /// Something else than `os=linux`.
    Os(String),
    /// No names of known errata.
    Unsafe(String),
    /// Neither `ims=allowed` nor `ims=forbidden`.
    Ims(String),
    /// No number of interrupts that a limit can be.
    Storm(String),
    /// No weight that a guest can have.
    Weight(String),
    /// No percentage that a cap can be.
    Cap(String),
    /// No list of processors.
    Pin(String),
    /// None of `restart=never`, `restart=on-failure`, `restart=always`.
    Restart(String),
    /// `manage=on` and `hypercalls=off`.
    ManageByCalls,
    /// No range of PASIDs.
    Pasids(String),
    /// The command line does not fit.
    CmdlineTooLong(usize),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong => write!(f, "the module command line is longer than {COMMAND_LINE_MAX} bytes"),
            Self::Character(at) => write!(f, "byte {at} is not printable ASCII"),
            Self::Unfinished => write!(f, "a quote is not closed, or a backslash stands at the end"),
            Self::Name(name) => write!(f, "'{name}' is no name: 1 to {NAME_MAX} of a-z, 0-9 and -"),
            Self::Initrd => {
                write!(f, "a module with the command line '{INITRD}' has its place right behind its guest, once")
            }
            Self::Unknown(word) => {
                write!(
                    f,
                    "'{word}' is not mem=, cpus=, device=, vectors=, os=, apicv=, posting=, ims=, hypercalls=, storm=, \
                     weight=, cap=, pin=, pasids=, restart=, autostart=, manage=, unsafe=, console=, exits= or cmdline="
                )
            }
            Self::Repeated(option) => write!(f, "{option}= is there twice"),
            Self::Memory(value) => write!(
                f,
                "mem={value}: a number with M or G, from {}M to {}M in steps of {}M",
                RAM_MIN >> 20,
                RAM_MAX >> 20,
                RAM_GRANULE >> 20
            ),
            Self::Device(value) => {
                write!(
                    f,
                    "device={value}: bus:device.function, as in 6a:01.0 or 0001:6a:01.0, dsa, vdsa, or vdsa:6a:01.0"
                )
            }
            Self::Vectors(value) => write!(f, "vectors={value}: {VECTORS_MIN} to {VECTORS_MAX}"),
            Self::WhoseVectors => write!(f, "vectors= belongs behind the device=vdsa that it is for, once"),
            Self::Cpus(value) => write!(f, "cpus={value}: 1 to {CPUS_MAX}"),
            Self::Switch(word) => write!(f, "{word}: on or off"),
            Self::TooManyDevices => write!(f, "more than {DEVICES_MAX} devices"),
            Self::Os(value) => write!(f, "os={value}: only os=linux is known"),
            Self::Ims(value) => write!(f, "ims={value}: allowed or forbidden"),
            Self::Storm(value) => write!(f, "storm={value}: 1 to {STORM_MAX} interrupts in a million ticks"),
            Self::Weight(value) => write!(f, "weight={value}: 1 to {MAX_WEIGHT}"),
            Self::Cap(value) => write!(f, "cap={value}: 1 to 100 percent of each processor"),
            Self::Pin(value) => write!(f, "pin={value}: up to eight numbers or ranges of processors, as in 0,2-3"),
            Self::Pasids(value) => write!(f, "pasids={value}: two hexadecimal numbers from 1 to fffff, as in 100-1ff"),
            Self::Restart(value) => write!(f, "restart={value}: never, on-failure or always"),
            Self::ManageByCalls => write!(f, "manage=on: needs hypercalls=on"),
            Self::Unsafe(value) => {
                write!(f, "unsafe={value}: names of errata with commas between them, of these:")?;
                quirks::names().try_for_each(|name| write!(f, " {name}"))
            }
            Self::Exits(value) => write!(f, "exits={value}: only exits=marks is known"),
            Self::CmdlineTooLong(len) => write!(f, "the command line has {len} bytes, {} fit", CMDLINE_SIZE - 1),
        }
    }
}

impl Options {
    /// Reads a module's command line.
    pub fn parse(command_line: &str) -> Result<Self, Error> {
        if command_line.len() > COMMAND_LINE_MAX {
            return Err(Error::TooLong);
        }
        if let Some(at) = command_line.bytes().position(|byte| !(0x20..0x7f).contains(&byte)) {
            return Err(Error::Character(at));
        }
        let mut words = words(command_line)?.into_iter();
        let name = words.next().unwrap_or_default();
        if name == INITRD {
            return Err(Error::Initrd);
        }
        if !is_name(&name) {
            return Err(Error::Name(name));
        }
        let (mut memory, mut cmdline, mut devices) = (None, None, Vec::new());
        let (mut cpus, mut os, mut apicv, mut posting, mut marks) = (None, None, None, None, None);
        let (mut forbidden, mut hypercalls, mut storm, mut pasids) = (None, None, None, None);
        let (mut console, mut accepted, mut weight, mut cap, mut pin) = (None, None, None, None, None);
        let (mut restart, mut autostart, mut manage) = (None, None, None);
        let mut counted = 0;
        for word in words {
            match word.split_once('=') {
                Some(("mem", value)) => set(&mut memory, parse_memory(value)?, "mem")?,
                Some(("cpus", value)) => set(&mut cpus, parse_cpus(value)?, "cpus")?,
                Some(("cmdline", value)) => set(&mut cmdline, parse_cmdline(value)?, "cmdline")?,
                Some(("os", "linux")) => set(&mut os, Os::Linux, "os")?,
                Some(("os", value)) => return Err(Error::Os(value.into())),
                Some(("apicv", value)) => set(&mut apicv, parse_switch(value, &word)?, "apicv")?,
                Some(("posting", value)) => set(&mut posting, parse_switch(value, &word)?, "posting")?,
                Some(("ims", value)) => set(&mut forbidden, parse_ims(value)?, "ims")?,
                Some(("hypercalls", value)) => set(&mut hypercalls, parse_switch(value, &word)?, "hypercalls")?,
                Some(("storm", value)) => set(&mut storm, parse_storm(value)?, "storm")?,
                Some(("weight", value)) => set(&mut weight, parse_weight(value)?, "weight")?,
                Some(("cap", value)) => set(&mut cap, parse_cap(value)?, "cap")?,
                Some(("pin", value)) => set(&mut pin, parse_pin(value)?, "pin")?,
                Some(("pasids", value)) => set(&mut pasids, parse_pasids(value)?, "pasids")?,
                Some(("console", value)) => set(&mut console, parse_switch(value, &word)?, "console")?,
                Some(("restart", value)) => set(&mut restart, parse_restart(value)?, "restart")?,
                Some(("autostart", value)) => set(&mut autostart, parse_switch(value, &word)?, "autostart")?,
                Some(("manage", value)) => set(&mut manage, parse_switch(value, &word)?, "manage")?,
                Some(("unsafe", value)) => set(&mut accepted, parse_errata(value)?, "unsafe")?,
                Some(("exits", "marks")) => set(&mut marks, true, "exits")?,
                Some(("exits", value)) => return Err(Error::Exits(value.into())),
                Some(("device", _)) if devices.len() == DEVICES_MAX => return Err(Error::TooManyDevices),
                Some(("device", value)) => devices.push(parse_device(value)?),
                Some(("vectors", value)) => set_vectors(&mut devices, &mut counted, value)?,
                _ => return Err(Error::Unknown(word)),
            }
        }
        let whole = |device: &&Device| !matches!(device, Device::Virtual { .. });
        let doubled = |(n, device)| devices.iter().take(n).any(|other| other == device);
        if devices.iter().enumerate().filter(|(_, device)| whole(device)).any(doubled) {
            return Err(Error::Repeated("device"));
        }
        let manages = manage.unwrap_or(false);
        if manages && hypercalls == Some(false) {
            return Err(Error::ManageByCalls);
        }
        Ok(Self {
            name,
            memory: memory.unwrap_or(DEFAULT_MEMORY),
            cpus: cpus.unwrap_or(1),
            devices,
            cmdline: cmdline.unwrap_or_default(),
            os: os.unwrap_or_default(),
            apicv,
            posting,
            ims_forbidden: forbidden.unwrap_or(false),
            hypercalls: hypercalls.unwrap_or(true),
            storm,
            shares: Shares::new(weight.unwrap_or(DEFAULT_WEIGHT), cap).unwrap_or_default(),
            pin,
            pasids,
            console: console.unwrap_or(false),
            marks: marks.unwrap_or(false),
            restart: restart.unwrap_or_default(),
            autostart: autostart.unwrap_or(true),
            manages,
            accepted: accepted.unwrap_or_default(),
        })
    }
}

fn set<T>(place: &mut Option<T>, value: T, option: &'static str) -> Result<(), Error> {
    match place.replace(value) {
        Some(_) => Err(Error::Repeated(option)),
        None => Ok(()),
    }
}

fn parse_switch(value: &str, word: &str) -> Result<bool, Error> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(Error::Switch(word.into())),
    }
}

fn is_name(name: &str) -> bool {
    let legal = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
    (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(legal)
}

fn words(command_line: &str) -> Result<Vec<String>, Error> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut characters = command_line.chars();
    while let Some(character) = characters.next() {
        match (character, quote) {
            (' ', None) => words.extend(word.take()),
            ('"' | '\'', None) => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (_, Some(open)) if character == open => quote = None,
            ('\\', _) => word.get_or_insert_default().push(characters.next().ok_or(Error::Unfinished)?),
            _ => word.get_or_insert_default().push(character),
        }
    }
    words.extend(word);
    if quote.is_some() { Err(Error::Unfinished) } else { Ok(words) }
}

fn parse_cpus(value: &str) -> Result<u32, Error> {
    parse_number(value, CPUS_MAX).ok_or_else(|| Error::Cpus(value.into()))
}

fn parse_restart(value: &str) -> Result<Restart, Error> {
    match value {
        "never" => Ok(Restart::Never),
        "on-failure" => Ok(Restart::OnFailure),
        "always" => Ok(Restart::Always),
        _ => Err(Error::Restart(value.into())),
    }
}

fn parse_ims(value: &str) -> Result<bool, Error> {
    match value {
        "allowed" => Ok(false),
        "forbidden" => Ok(true),
        _ => Err(Error::Ims(value.into())),
    }
}

fn parse_storm(value: &str) -> Result<u32, Error> {
    parse_number(value, STORM_MAX).ok_or_else(|| Error::Storm(value.into()))
}

fn parse_weight(value: &str) -> Result<u16, Error> {
    let weight = parse_number(value, MAX_WEIGHT.into()).and_then(|weight| u16::try_from(weight).ok());
    weight.ok_or_else(|| Error::Weight(value.into()))
}

fn parse_cap(value: &str) -> Result<u8, Error> {
    let cap = parse_number(value, 100).and_then(|cap| u8::try_from(cap).ok());
    cap.ok_or_else(|| Error::Cap(value.into()))
}

fn parse_pin(value: &str) -> Result<ProcessorSet, Error> {
    ProcessorSet::parse(value).ok_or_else(|| Error::Pin(value.into()))
}

fn parse_errata(value: &str) -> Result<Vec<&'static Erratum>, Error> {
    value.split(',').map(|name| quirks::named(name).ok_or_else(|| Error::Unsafe(value.into()))).collect()
}

fn parse_pasids(value: &str) -> Result<(Pasid, Pasid), Error> {
    let number = |text: &str| {
        let hexadecimal = (1..=5).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        u32::from_str_radix(text, 16).ok().filter(|_| hexadecimal).and_then(Pasid::new)
    };
    let range = value.split_once('-').and_then(|(first, last)| number(first).zip(number(last)));
    range.filter(|(first, last)| first <= last && first.value() != 0).ok_or_else(|| Error::Pasids(value.into()))
}

/// A decimal number from 1 to `most`.
fn parse_number(value: &str, most: u32) -> Option<u32> {
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    value.parse().ok().filter(|number| digits && (1..=most).contains(number))
}

fn parse_memory(value: &str) -> Result<u64, Error> {
    let bytes = || {
        let (number, shift) = match value.strip_suffix('M') {
            Some(number) => (number, 20),
            None => (value.strip_suffix('G')?, 30),
        };
        let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        let number: u64 = number.parse().ok().filter(|_| digits)?;
        number.checked_mul(1 << shift).filter(|bytes| is_ram_size(*bytes))
    };
    bytes().ok_or_else(|| Error::Memory(value.into()))
}

/// Gives the virtual function that was named last its vectors; `counted` is how many devices there were when that was done before.
fn set_vectors(devices: &mut [Device], counted: &mut usize, value: &str) -> Result<(), Error> {
    let number = parse_vectors(value)?;
    let first = core::mem::replace(counted, devices.len()) != devices.len();
    match devices.last_mut() {
        Some(Device::Virtual { vectors, .. }) if first => *vectors = number,
        _ => return Err(Error::WhoseVectors),
    }
    Ok(())
}

fn parse_vectors(value: &str) -> Result<u16, Error> {
    let number = parse_number(value, VECTORS_MAX.into()).and_then(|number| u16::try_from(number).ok());
    number.filter(|number| *number >= VECTORS_MIN).ok_or_else(|| Error::Vectors(value.into()))
}

fn parse_device(value: &str) -> Result<Device, Error> {
    let of = |parent| Device::Virtual { parent, vectors: DEFAULT_VECTORS };
    let device = match (value, value.strip_prefix("vdsa:")) {
        ("dsa", _) => Some(Device::FirstDsa),
        ("vdsa", _) => Some(of(None)),
        (_, Some(parent)) => parse_bdf(parent).map(|parent| of(Some(parent))),
        _ => parse_bdf(value).map(Device::At),
    };
    device.ok_or_else(|| Error::Device(value.into()))
}

/// `bus:device.function`, with a segment of four digits before it or without one.
fn parse_bdf(value: &str) -> Option<Bdf> {
    let number = |text: &str, digits: usize, most: u16| {
        let hexadecimal = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        u16::from_str_radix(text, 16).ok().filter(|number| hexadecimal && *number <= most)
    };
    let byte = |text: &str, digits: usize, most: u8| Some(number(text, digits, most.into())? as u8);
    let (place, function) = value.split_once('.')?;
    let (place, device) = place.rsplit_once(':')?;
    let (segment, bus) = match place.split_once(':') {
        Some((segment, bus)) => (number(segment, 4, 0xffff)?, bus),
        None => (0, place),
    };
    let bdf = Bdf::new(byte(bus, 2, 0xff)?, byte(device, 2, 0x1f)?, byte(function, 1, 7)?);
    Some(bdf.in_segment(segment))
}

/// Quotes that enclose all of it have come through GRUB's quoting and are dropped.
fn parse_cmdline(value: &str) -> Result<String, Error> {
    let inner = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value);
    if inner.len() >= CMDLINE_SIZE { Err(Error::CmdlineTooLong(inner.len())) } else { Ok(inner.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn error(command_line: &str) -> Error {
        Options::parse(command_line).unwrap_err()
    }

    #[test]
    fn a_device_of_another_segment_is_named_by_four_digits() {
        let device =
            |command_line: &str| Options::parse(&format!("x device={command_line}")).map(|options| options.devices[0]);
        let there = Bdf::new(0x6a, 1, 0).in_segment(1);
        assert_eq!(device("0001:6a:01.0"), Ok(Device::At(there)));
        assert_eq!(device("0000:6a:01.0"), Ok(Device::At(Bdf::new(0x6a, 1, 0))));
        let parent = Device::Virtual { parent: Some(there), vectors: DEFAULT_VECTORS };
        assert_eq!(device("vdsa:0001:6a:01.0"), Ok(parent));
        for bad in ["1:6a:01.0", "00001:6a:01.0", "0001:6a:01", "0001:6a.0", "0001::01.0", ":6a:01.0", "0:0001:6a:01.0"]
        {
            assert_eq!(device(bad), Err(Error::Device(bad.into())));
        }
    }

    #[test]
    fn all_options_are_read() {
        let options = Options::parse(
            r#"demo-1  mem=128M cpus=4 device=00:1e.0 device=dsa exits=marks cmdline="console=ttyS0 a=b""#,
        )
        .unwrap();
        assert_eq!(options.name, "demo-1");
        assert_eq!((options.memory, options.cpus), (128 << 20, 4));
        assert_eq!(options.devices, [Device::At(Bdf::new(0, 0x1e, 0)), Device::FirstDsa]);
        assert_eq!(options.cmdline, "console=ttyS0 a=b");
        assert!(options.marks && !Options::parse("x").unwrap().marks);
        let console = |command_line| Options::parse(command_line).unwrap().console;
        assert!(console("x console=on") && !console("x console=off") && !console("x"));
        let shares = Options::parse("x weight=512 cap=40").unwrap().shares;
        assert_eq!((shares.weight(), shares.cap()), (512, Some(40)));
        assert_eq!(options.shares, Shares::default());
        let strict = Options::parse("x ims=forbidden hypercalls=off storm=5").unwrap();
        assert_eq!((strict.ims_forbidden, strict.hypercalls, strict.storm), (true, false, Some(5)));
        let life = Options::parse("x restart=on-failure autostart=off manage=on").unwrap();
        assert_eq!((life.restart, life.autostart, life.manages), (Restart::OnFailure, false, true));
        assert_eq!((options.restart, options.autostart, options.manages), (Restart::Never, true, false));
        assert_eq!(Options::parse("x restart=always").unwrap().restart, Restart::Always);
        let owner = Options::parse("x pasids=100-fffff").unwrap();
        assert_eq!(owner.pasids, Pasid::new(0x100).zip(Pasid::new(0xf_ffff)));
        assert_eq!((options.ims_forbidden, options.hypercalls, options.storm), (false, true, None));
        let accepted = Options::parse("x unsafe=QATE-39220,INTEL-SA-01084").unwrap().accepted;
        assert_eq!(accepted.iter().map(|erratum| erratum.name).collect::<Vec<_>>(), ["QATE-39220", "INTEL-SA-01084"]);
        assert!(options.accepted.is_empty());
        assert_eq!((options.os, Options::parse("x os=linux").unwrap().os), (Os::Other, Os::Linux));
    }

    #[test]
    fn a_name_is_enough() {
        let options = Options::parse("x").unwrap();
        let Options { memory, cpus, devices, cmdline, .. } = options;
        assert_eq!((memory, cpus, devices.len(), cmdline.as_str()), (DEFAULT_MEMORY, 1, 0, ""));
    }

    #[test]
    fn grub_may_quote_as_it_likes() {
        for command_line in [
            r#"x cmdline="a 'b' c""#,
            r#"x "cmdline=a \'b\' c""#,
            r#"x "cmdline=\"a \'b\' c\"""#,
            r#"x cmdline=a\ \'b\'\ c"#,
        ] {
            assert_eq!(Options::parse(command_line).unwrap().cmdline, "a 'b' c", "{command_line}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(error(""), Error::Name("".into()));
        for name in ["Demo", "a_b", "0123456789abcdefg", "mem=64M", "\u{7f}"] {
            assert!(matches!(error(name), Error::Name(_) | Error::Character(0)), "{name}");
        }
        assert_eq!(error("x\ty"), Error::Character(1));
        assert_eq!(error("x quiet"), Error::Unknown("quiet".into()));
        assert_eq!(error("x mem=4M mem=8M"), Error::Repeated("mem"));
        assert_eq!(error("x device=dsa device=dsa"), Error::Repeated("device"));
        assert_eq!(error("x cmdline=\"a"), Error::Unfinished);
        assert_eq!(error("x cmdline=\\"), Error::Unfinished);
        for value in
            ["", "M", "64", "64K", "+64M", "-1M", "3M", "2M", "4G", "99999999999999999999G", "17179869184G", "0M"]
        {
            assert_eq!(error(&format!("x mem={value}")), Error::Memory(value.into()));
        }
        for value in ["", "0:1e.0", "00:20.0", "00:1e.8", "00:1e", "00:1e.0.0", "000:00:1e.0", "+0:1e.0", "DSA"] {
            assert_eq!(error(&format!("x device={value}")), Error::Device(value.into()));
        }
        for value in ["0", "10001", "", "-1", "1e3"] {
            assert_eq!(error(&format!("x weight={value}")), Error::Weight(value.into()));
        }
        assert_eq!(error("x pin=2-1"), Error::Pin("2-1".into()));
        for value in ["0", "101", "50%"] {
            assert_eq!(error(&format!("x cap={value}")), Error::Cap(value.into()));
        }
        for value in ["", "0", "65", "+1", "4294967297", "x"] {
            assert_eq!(error(&format!("x cpus={value}")), Error::Cpus(value.into()));
        }
        for value in ["", "yes", "Forbidden"] {
            assert_eq!(error(&format!("x ims={value}")), Error::Ims(value.into()));
        }
        for value in ["", "0", "100001", "-1"] {
            assert_eq!(error(&format!("x storm={value}")), Error::Storm(value.into()));
        }
        for value in ["", "Always", "on", "failure"] {
            assert_eq!(error(&format!("x restart={value}")), Error::Restart(value.into()));
        }
        assert_eq!(error("x manage=yes"), Error::Switch("manage=yes".into()));
        assert_eq!(error("x hypercalls=off manage=on"), Error::ManageByCalls);
        for value in ["", "1", "1-", "-1", "2-1", "1-100000", "1-+2", "g-h", "0-5"] {
            assert_eq!(error(&format!("x pasids={value}")), Error::Pasids(value.into()));
        }
        for value in ["", "yes", "INTEL-SA-01084,", "intel-sa-01084"] {
            assert_eq!(error(&format!("x unsafe={value}")), Error::Unsafe(value.into()));
        }
        assert!(error("x unsafe=yes").to_string().ends_with(": INTEL-SA-01084 QATE-39220"));
        for value in ["", "Linux", "windows"] {
            assert_eq!(error(&format!("x os={value}")), Error::Os(value.into()));
        }
        for command_line in ["initrd", "initrd mem=64M"] {
            assert_eq!(error(command_line), Error::Initrd);
        }
        for value in ["", "mark", "MARKS"] {
            assert_eq!(error(&format!("x exits={value}")), Error::Exits(value.into()));
        }
        assert_eq!(error("x exits=marks exits=marks"), Error::Repeated("exits"));
        let many: String = (0..9).map(|n| format!(" device=00:0{n}.0")).collect();
        assert_eq!(error(&format!("x{many}")), Error::TooManyDevices);
        assert_eq!(error(&format!("x cmdline={}", "a".repeat(2048))), Error::CmdlineTooLong(2048));
        assert_eq!(error(&"x".repeat(4097)), Error::TooLong);
        assert!(error("x mem=1").to_string().contains("mem=1: a number with M or G, from 4M to 3072M"));
    }

    #[test]
    fn feature_msix_backed_virtual_functions_have_a_parent_and_vectors_or_the_defaults() {
        let of = |parent, vectors| Device::Virtual { parent, vectors };
        let parent = Some(Bdf::new(0, 0x1f, 0));
        let options = Options::parse("x device=vdsa device=vdsa vectors=2048 device=vdsa:00:1f.0 vectors=2").unwrap();
        assert_eq!(options.devices, [of(None, 64), of(None, 2048), of(parent, 2)]);
        for word in ["vdsa:", "vdsa:00:1f", "vdsa:dsa", "vdsa 00:1f.0", "vdsax"] {
            assert!(matches!(error(&format!("x \"device={word}\"")), Error::Device(_)), "{word}");
        }
        for number in ["", "0", "1", "2049", "65538", "+2", "0x10"] {
            assert_eq!(error(&format!("x device=vdsa vectors={number}")), Error::Vectors(number.into()));
        }
        for command_line in ["x vectors=4", "x device=dsa vectors=4", "x device=vdsa vectors=4 vectors=4"] {
            assert_eq!(error(command_line), Error::WhoseVectors, "{command_line}");
        }
    }

    proptest! {
        #[test]
        fn any_string_is_read_or_refused(command_line in "([a-z]{1,3} )?(mem=|device=|cmdline=|[ \"'\\\\=:.0-9a-fMG]|\\PC){0,60}") {
            if let Ok(options) = Options::parse(&command_line) {
                prop_assert!(is_name(&options.name) && is_ram_size(options.memory));
                prop_assert!(options.cmdline.len() < CMDLINE_SIZE);
            }
        }
    }
}
