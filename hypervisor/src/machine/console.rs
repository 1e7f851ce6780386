//! Selects the console: from command line, firmware and boot loader.

use crate::{
    acpi::{ChipsetPorts, FirmwareConsole, Tables, firmware_console},
    addr::Hpa,
    console::{self, Speed, screen::Framebuffer},
    machine::{
        boot_info::BootInfo,
        memory::{Firmware, find_rsdp},
    },
    memory::PhysRange,
    options::{BAUD, Console, Options, SerialPort},
};

/// End of what the entry code has mapped.
const MAPPED_AT_ENTRY: u64 = 1 << 32;

/// The log's reason for the command line's port.
const ASKED: &str = "as the command line says";

/// A console with its screen, and with its port if the command line says COM1 to COM4. The rest needs the final page tables.
#[must_use]
pub struct Begun {
    /// The port that the command line names, unless the console has it.
    asked: Option<SerialPort>,
    framebuffer: Option<Framebuffer>,
}

/// Reads the command line, and opens what needs nothing else: the port, if it is one of a PC's standard ports, and the screen, which can be
/// painted at once if the entry code has mapped it.
pub fn begin(boot_info: &BootInfo) -> Begun {
    let (options, wrong) = Options::parse(boot_info.command_line());
    let framebuffer = if options.screen { take_screen(boot_info) } else { None };
    if let Some(wrong) = wrong {
        log::warn!("{wrong}. This word is passed over");
    }
    let asked = match options.console {
        Console::At(port) if port.number().is_some() => {
            open(port, Speed::Baud(BAUD), ASKED);
            None
        }
        Console::At(port) => Some(port),
        Console::Auto => None,
    };
    Begun { asked, framebuffer }
}

impl Begun {
    /// The memory of the screen, which has to be mapped by the final page tables.
    pub fn screen(&self) -> Option<PhysRange> {
        self.framebuffer.map(|framebuffer| PhysRange::new(framebuffer.base, framebuffer.bytes() as u64))
    }

    /// Opens the rest.
    ///
    /// # Safety
    /// The final page tables are in force, and map [`Self::screen`] for good.
    pub unsafe fn settle(self, boot_info: &BootInfo) {
        if self.framebuffer.is_some() {
            // SAFETY: the caller vouches for it.
            unsafe { console::screen_is_mapped() };
        }
        // Also where nothing answers at the port that the command line names: a console elsewhere is better than none.
        if !console::is_open() {
            choose(boot_info, self.asked);
        }
    }
}

/// Opens the port of the command line, unless it belongs to the chipset; else the firmware's port, else COM1.
fn choose(boot_info: &BootInfo, asked: Option<SerialPort>) {
    let firmware = Firmware::new(boot_info);
    let tables = find_rsdp(&firmware, boot_info).and_then(|rsdp| Tables::new(&firmware, rsdp));
    let find = |signature| tables.as_ref()?.find(signature).ok().map(|table| table.bytes);
    let chipset = find(b"FACP").map(ChipsetPorts::parse);
    match asked {
        Some(port) if chipset.as_ref().is_some_and(|chipset| chipset.contains(port)) => {
            log::warn!("console={port:#x}: the chipset's own ports are there (FADT)");
        }
        Some(port) => open(port, Speed::Baud(BAUD), ASKED),
        None => {}
    }
    if console::is_open() {
        return;
    }
    match find(b"SPCR").map(|table| firmware_console(table, chipset.as_ref())) {
        Some(Ok(FirmwareConsole { port, baud })) => {
            open(port, baud.map_or(Speed::Kept, Speed::Baud), "as the firmware's table SPCR says");
        }
        Some(Err(why)) => log::warn!("{why}: the console is COM1"),
        None => {}
    }
    if !console::is_open() {
        open(SerialPort::COM[0], Speed::Baud(BAUD), "the usual one");
    }
}

/// Opens a port and logs it: on the serial line only if a person would look for it elsewhere.
fn open(port: SerialPort, speed: Speed, why: &str) {
    // SAFETY: the person at the machine, its firmware or the PC's tradition says that a serial port is there, and nobody else uses it.
    match unsafe { console::open(port, speed) } {
        Some(baud) if port == SerialPort::COM[0] => console::note(format_args!("console: {port}, {baud} baud, {why}")),
        Some(baud) => log::info!("{port}, {baud} baud, {why}"),
        None => log::warn!("nothing answers at {port} ({why})"),
    }
}

/// Takes the screen that the boot loader has set up, if it can be used.
fn take_screen(boot_info: &BootInfo) -> Option<Framebuffer> {
    let tag = boot_info.framebuffer()?;
    let is_ram = |base: Hpa, len: u64| {
        let screen = PhysRange::new(base, len);
        boot_info.memory(true).any(|ram| ram.start < screen.end() && screen.start < ram.end())
    };
    let framebuffer =
        Framebuffer::new(tag, is_ram).inspect_err(|why| log::warn!("the screen is not used: {why}")).ok()?;
    // SAFETY: the boot loader says that a screen is there, and no usable memory is. It is painted only while it is mapped: by the entry
    // code's tables, or the final ones.
    if !unsafe { console::open_screen(framebuffer) } {
        log::warn!("the screen is not used: it holds no character");
        return None;
    }
    console::note(format_args!("imsvisor {}", env!("CARGO_PKG_VERSION")));
    if framebuffer.base.as_u64() + framebuffer.bytes() as u64 <= MAPPED_AT_ENTRY {
        // SAFETY: the entry code has mapped the first 4 GiB.
        unsafe { console::screen_is_mapped() };
    }
    Some(framebuffer)
}
