//! Ends in the way that `way=` names, as an operating system finds it in the firmware's tables. Before that it tells the date.
//!
//! | `way=` | how | the guest then ends |
//! |---|---|---|
//! | `off` | `\_S5` and the FADT's sleep control register | with exit code 0 |
//! | `register` | the FADT's reset register | by a reset |
//! | `keyboard` | the keyboard controller's reset line | by a reset |
//! | `vector` | a jump to F000:FFF0 in real mode, by its second processor | by a reset |
#![no_std]
#![no_main]

use guests::acpi;
use guests::bare::{Guest, apic, idle, physical::PhysicalMemory, port};
use guests::command_line;
use guests::memory::Memory;
use guests::println;

guests::guest!(main);

/// Offsets in the FADT (ACPI 6.5, table 5.9): generic address structures, whose address begins at 4, and values.
const RESET_REG: u64 = 116;
const RESET_VALUE: u64 = 128;
const X_DSDT: u64 = 140;
const SLEEP_CONTROL_REG: u64 = 244;
const SLEEP_STATUS_REG: u64 = 256;
const SYSTEM_IO: u8 = 1;

/// Sleep status: the wake-up that is cleared before a sleep. Sleep control: SLP_TYP's place, SLP_EN.
const WAKE_STATUS: u8 = 1 << 7;
const SLEEP_TYPE_SHIFT: u32 = 2;
const SLEEP_ENABLE: u8 = 1 << 5;

/// A page below 1 MiB that nobody uses, and what the processor finds there: `ljmp 0xf000, 0xfff0`.
const PAGE: u64 = 0x2_0000;
const JUMP: [u8; 5] = [0xea, 0xf0, 0xff, 0x00, 0xf0];

/// Ticks in which a guest that resets itself is gone.
const LIMIT: u64 = 50_000_000;

fn main(guest: &Guest) -> Result<(), &'static str> {
    let day = date().ok_or("no clock")?;
    println!("@result errors=0 day={day}");
    match command_line::option(guest.command_line, "way").unwrap_or_default() {
        "off" => off(guest)?,
        "register" => register(guest)?,
        // SAFETY: ends the guest.
        "keyboard" => unsafe { port::write_u8(0x64, 0xfe) },
        "vector" => vector(),
        _ => return Err("way= names no way"),
    }
    idle::poll_until(LIMIT, || false);
    Err("still here")
}

/// The day by the CMOS clock, as a number of eight digits.
fn date() -> Option<u32> {
    let read = |index| {
        // SAFETY: the clock's ports, which nobody else uses.
        unsafe {
            port::write_u8(0x70, index);
            u32::from(port::read_u8(0x71))
        }
    };
    if !idle::poll_until(LIMIT, || read(0x0a) & 0x80 == 0) || read(0x0b) != 0x02 {
        return None;
    }
    // BCD.
    let two = |index| (read(index) >> 4) * 10 + (read(index) & 0xf);
    Some(two(0x32) * 1_000_000 + two(9) * 10_000 + two(8) * 100 + two(7))
}

fn fadt(guest: &Guest) -> Result<u64, &'static str> {
    let rsdp = guest.boot.rsdp().ok_or("no RSDP")?;
    acpi::table(&PhysicalMemory, rsdp, *b"FACP").ok_or("no FADT")
}

/// The port of a register that the FADT names.
fn named(fadt: u64, offset: u64) -> Option<u16> {
    let structure = fadt + offset;
    let port = PhysicalMemory.u64(structure + 4)?;
    u16::try_from(port).ok().filter(|_| PhysicalMemory.u8(structure) == Some(SYSTEM_IO))
}

fn register(guest: &Guest) -> Result<(), &'static str> {
    let fadt = fadt(guest)?;
    let port = named(fadt, RESET_REG).ok_or("no reset register")?;
    let value = PhysicalMemory.u8(fadt + RESET_VALUE).ok_or("no value for it")?;
    // SAFETY: resets the machine.
    unsafe { port::write_u8(port, value) };
    Ok(())
}

fn off(guest: &Guest) -> Result<(), &'static str> {
    let fadt = fadt(guest)?;
    let control = named(fadt, SLEEP_CONTROL_REG).ok_or("no sleep control register")?;
    let status = named(fadt, SLEEP_STATUS_REG).ok_or("no sleep status register")?;
    let dsdt = PhysicalMemory.u64(fadt + X_DSDT).ok_or("no DSDT")?;
    let sleep_type = sleep_type(dsdt).ok_or("no S5")?;
    // SAFETY: turns the machine off.
    unsafe {
        port::write_u8(status, WAKE_STATUS);
        port::write_u8(control, sleep_type << SLEEP_TYPE_SHIFT | SLEEP_ENABLE);
    }
    Ok(())
}

/// SLP_TYP of `\_S5`: name, package, its length, elements, byte prefix, the first element.
fn sleep_type(dsdt: u64) -> Option<u8> {
    let length = PhysicalMemory.u32(dsdt + 4)?;
    (dsdt..dsdt + u64::from(length)).find_map(|at| match PhysicalMemory.bytes(at)? {
        [b'_', b'S', b'5', b'_', 0x12, _, _, 0x0a, value] => Some(value),
        _ => None,
    })
}

/// The second processor begins in real mode, and resets the machine.
fn vector() {
    for (n, byte) in JUMP.into_iter().enumerate() {
        // SAFETY: nobody uses the page.
        unsafe { (PAGE as *mut u8).add(n).write_volatile(byte) };
    }
    apic::send(1, apic::INIT);
    idle::linger(10_000);
    apic::send(1, apic::START_UP | PAGE >> 12);
}
