//! What Bochs calls: memory accesses and timers.

use super::{PLUGIN, Plugin};
use crate::acpi;
use crate::ioapic::REGISTERS;
use crate::machine::{DSA_FUNCTIONS, ECAM, MESSAGES, UNIT_BASES};
use crate::odd;
use dsa_model::spec::BAR2_SIZE;
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// The widest access that Bochs passes on: MOVDIR64B and AVX-512 stores.
const WIDEST: u32 = 64;
/// How long an engine takes to begin with a descriptor, and the device to carry out a command.
const ENGINE_MICROSECONDS: u32 = 1;
const BIOS_POLL_MICROSECONDS: u32 = 1000;

static ENGINE_TIMER: AtomicU32 = AtomicU32::new(0);
static ENGINE_ARMED: AtomicBool = AtomicBool::new(false);
static BIOS_TIMER: AtomicU32 = AtomicU32::new(0);
/// Where the patched RSDP is; 0 while there is none.
static RSDP: AtomicU32 = AtomicU32::new(0);

/// A read: a function fills the answer, which is all ones before. Always handled.
///
/// # Safety
///
/// `data` has room for `len` bytes and nothing else refers to it.
unsafe fn read(len: u32, data: *mut c_void, answer: impl FnOnce(&Plugin, &mut [u8])) -> bool {
    if data.is_null() || len > WIDEST {
        return false;
    }
    // SAFETY: the caller's promise.
    let bytes = unsafe { std::slice::from_raw_parts_mut(data.cast::<u8>(), len as usize) };
    bytes.fill(0xff);
    if let Some(plugin) = PLUGIN.get() {
        answer(plugin, bytes);
    }
    true
}

/// A write: a function takes the bytes. Always handled.
///
/// # Safety
///
/// `data` has `len` bytes.
unsafe fn write(len: u32, data: *mut c_void, take: impl FnOnce(&Plugin, &[u8])) -> bool {
    if data.is_null() || len > WIDEST {
        return false;
    }
    // SAFETY: the caller's promise.
    let bytes = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), len as usize) };
    if let Some(plugin) = PLUGIN.get() {
        take(plugin, bytes);
    }
    true
}

/// Fills `bytes` by reads of at most 8 bytes at rising offsets.
fn fill(bytes: &mut [u8], offset: u64, mut read: impl FnMut(u64, usize) -> u64) {
    for (n, chunk) in (0..).step_by(8).zip(bytes.chunks_mut(8)) {
        let value = read(offset + n, chunk.len()).to_le_bytes();
        chunk.iter_mut().zip(value).for_each(|(place, byte)| *place = byte);
    }
}

/// Hands `bytes` on in writes of at most 8 bytes at rising offsets.
fn pour(bytes: &[u8], offset: u64, mut write: impl FnMut(u64, usize, u64)) {
    for (n, chunk) in (0..).step_by(8).zip(bytes.chunks(8)) {
        let value = chunk.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        write(offset + n, chunk.len(), value);
    }
}

macro_rules! handlers {
    ($($(#[$doc:meta])* $name:ident, $access:ident: |$address:ident, $object:ident, $plugin:ident, $bytes:ident| $body:expr;)*) => {
        $($(#[$doc])*
        ///
        /// # Safety
        ///
        /// Bochs calls it with `data` of `len` bytes, and the object that it was registered with.
        pub(super) unsafe extern "C" fn $name(
            $address: u64,
            len: u32,
            data: *mut c_void,
            $object: *mut c_void,
        ) -> bool {
            // SAFETY: the caller's promise, passed on.
            unsafe { $access(len, data, |$plugin, $bytes| $body) }
        })*
    };
}

/// Bytes that Bochs hands out for a unit's registers.
const UNIT_WINDOW: u64 = 0x1_0000;

/// Which unit an address belongs to, and the offset there.
fn unit_at(address: u64) -> (usize, u64) {
    let n =
        UNIT_BASES.iter().position(|base| (*base..base + UNIT_WINDOW).contains(&address)).unwrap_or(UNIT_BASES.len());
    (n, address % UNIT_WINDOW)
}

handlers! {
    /// A read of the remapping unit's registers; only the first page of the 64 KiB that Bochs hands out is theirs.
    unit_read, read: |address, _object, plugin, bytes| {
        let (n, offset) = unit_at(address);
        if offset < vtd_model::Unit::REGISTER_SPACE {
            plugin.with(|machine, _| fill(bytes, offset, |at, len| machine.unit_read(n, at, len)));
        }
    };
    /// A write of the remapping unit's registers.
    unit_write, write: |address, _object, plugin, bytes| {
        let (n, offset) = unit_at(address);
        let mut work = false;
        if offset < vtd_model::Unit::REGISTER_SPACE {
            plugin.with(|machine, host| {
                pour(bytes, offset, |at, len, value| work |= machine.unit_write(n, at, len, value, host));
            });
        }
        if work {
            start_engines(plugin);
        }
    };
    /// A read of the message window: nothing answers.
    message_read, read: |_address, _object, _plugin, _bytes| ();
    /// A write to the message window: another device's message.
    message_write, write: |address, _object, plugin, bytes| {
        plugin.with(|machine, host| machine.other_message(address, bytes, host));
    };
    /// A read of the DSA's BAR0. BARs are naturally aligned, so the address has the offset.
    bar0_read, read: |address, object, plugin, bytes| {
        let dsa = super::device::number(object);
        let offset = address % u64::from(plugin.options.dsa(dsa).layout.bytes);
        plugin.with(|machine, _| fill(bytes, offset, |at, len| machine.bar0_read(dsa, at, len)));
    };
    /// A write of the DSA's BAR0.
    bar0_write, write: |address, object, plugin, bytes| {
        let dsa = super::device::number(object);
        let offset = address % u64::from(plugin.options.dsa(dsa).layout.bytes);
        let mut work = false;
        plugin.with(|machine, host| {
            pour(bytes, offset, |at, len, value| work = machine.bar0_write(dsa, at, len, value, host));
        });
        if work {
            start_engines(plugin);
        }
    };
    /// A read of a portal: they are write-only.
    portal_read, read: |_address, _object, _plugin, _bytes| ();
    /// A write to a portal.
    portal_write, write: |address, object, plugin, bytes| {
        let dsa = super::device::number(object);
        let offset = address % u64::from(BAR2_SIZE);
        if plugin.with(|machine, _| machine.portal_write(dsa, offset, bytes)) == Some(true) {
            start_engines(plugin);
        }
    };
    /// A read of the I/O APIC's registers, which are dwords 16 bytes apart. Narrower reads take their bytes.
    ioapic_read, read: |address, _object, plugin, bytes| {
        let value = plugin.with(|machine, _| machine.ioapic_read((address - REGISTERS.start()) & !3));
        let value = value.unwrap_or(u32::MAX).to_le_bytes();
        let from = (address % 4) as usize;
        bytes.iter_mut().zip(&value[from..]).for_each(|(place, byte)| *place = *byte);
    };
    /// A write of the I/O APIC's registers: aligned, of at most a dword.
    ioapic_write, write: |address, _object, plugin, bytes| {
        if address.is_multiple_of(4) && bytes.len() <= 4 {
            let value = bytes.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte));
            plugin.with(|machine, host| machine.ioapic_write(address - REGISTERS.start(), value, host));
        }
    };
    /// A read of the ECAM window.
    ecam_read, read: |address, _object, plugin, bytes| {
        for (n, chunk) in (0..).step_by(4).zip(bytes.chunks_mut(4)) {
            let value = ecam_read_dword(plugin, address - ECAM.start() + n, chunk.len()).to_le_bytes();
            chunk.iter_mut().zip(value).for_each(|(place, byte)| *place = byte);
        }
    };
    /// A write to the ECAM window.
    ecam_write, write: |address, _object, plugin, bytes| {
        for (n, chunk) in (0..).step_by(4).zip(bytes.chunks(4)) {
            let value = chunk.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte));
            ecam_write_dword(plugin, address - ECAM.start() + n, chunk.len(), value);
        }
    };
}

/// An ECAM offset's device and function, and register.
fn ecam_place(offset: u64) -> (u8, u16) {
    ((offset >> 12) as u8, (offset & 0xfff) as u16)
}

const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;

/// Does something to the data port with the address port set to `register` of `function`, and sets it back.
fn through_ports<R>(
    plugin: &Plugin,
    function: u8,
    register: u16,
    action: impl FnOnce(&super::host::Bochs<'_>, u16) -> R,
) -> R {
    let host = super::host::Bochs::new(&plugin.symbols);
    let before = host.port_in(CONFIG_ADDRESS, 4);
    let address = 1 << 31 | u32::from(function) << 8 | u32::from(register & 0xfc);
    host.port_out(CONFIG_ADDRESS, address, 4);
    let result = action(&host, CONFIG_DATA + (register & 3));
    host.port_out(CONFIG_ADDRESS, before, 4);
    result
}

/// Which DSA a function is.
fn dsa_at(function: u8) -> Option<usize> {
    DSA_FUNCTIONS.iter().position(|place| *place == function)
}

/// The first 256 bytes of every function come by the ports, so that both ways always agree. Beyond them only DSAs have
/// anything.
fn ecam_read_dword(plugin: &Plugin, offset: u64, len: usize) -> u32 {
    let (function, register) = ecam_place(offset);
    if !matches!(len, 1 | 2 | 4) || !offset.is_multiple_of(len as u64) {
        return u32::MAX;
    }
    if register < 0x100 {
        return through_ports(plugin, function, register, |host, port| host.port_in(port, len as u32));
    }
    let Some(dsa) = dsa_at(function) else { return u32::MAX };
    plugin.with(|machine, _| machine.config_read(dsa, register, len)).unwrap_or(u32::MAX)
}

fn ecam_write_dword(plugin: &Plugin, offset: u64, len: usize, value: u32) {
    let (function, register) = ecam_place(offset);
    if !matches!(len, 1 | 2 | 4) || !offset.is_multiple_of(len as u64) {
        return;
    }
    if register < 0x100 {
        through_ports(plugin, function, register, |host, port| host.port_out(port, value, len as u32));
    } else if let Some(dsa) = dsa_at(function) {
        plugin.with(|machine, host| machine.config_write(dsa, register, len, value, host));
    }
}

/// Lets the engines begin a little later: completions are asynchronous, as on hardware.
fn start_engines(plugin: &Plugin) {
    if !ENGINE_ARMED.swap(true, Ordering::Relaxed) {
        let timer = ENGINE_TIMER.load(Ordering::Relaxed);
        super::host::Bochs::new(&plugin.symbols).start_timer(timer, ENGINE_MICROSECONDS, false);
    }
}

/// The engines' turn.
extern "C" fn engine_timer(_: *mut c_void) {
    let Some(plugin) = PLUGIN.get() else { return };
    ENGINE_ARMED.store(false, Ordering::Relaxed);
    if plugin.with(|machine, host| machine.work(host)) == Some(true) {
        start_engines(plugin);
    }
}

/// Looks whether the BIOS has finished its tables, and adds ours.
extern "C" fn bios_timer(_: *mut c_void) {
    let Some(plugin) = PLUGIN.get() else { return };
    let patch = plugin.with(|machine, host| {
        let tables = |ioapic| machine.tables(&plugin.options, ioapic);
        let bios = host.bios(&acpi::BIOS);
        let patch = acpi::extend(&bios, tables, host.ram_end(), host)?;
        host.patch_bios(patch.address, &patch.bytes);
        if plugin.options.odd_firmware {
            odd::spoil_madt(patch.rsdt(), host);
        }
        Some(patch)
    });
    if let Some(patch) = patch.flatten() {
        RSDP.store(patch.address as u32, Ordering::Relaxed);
        super::host::Bochs::new(&plugin.symbols).stop_timer(BIOS_TIMER.load(Ordering::Relaxed));
    }
}

/// Memory windows and timers, when Bochs initialises the device.
pub(super) fn install(plugin: &Plugin) -> Result<(), String> {
    let mut windows = vec![
        (message_read as super::symbols::MemoryHandler, message_write as super::symbols::MemoryHandler, MESSAGES),
        (ecam_read, ecam_write, ECAM),
    ];
    for base in UNIT_BASES.into_iter().take(plugin.options.units()) {
        windows.push((unit_read, unit_write, base..=base + (UNIT_WINDOW - 1)));
    }
    for (read, write, window) in windows {
        let (first, last) = (*window.start(), *window.end());
        let none = std::ptr::null_mut();
        // SAFETY: the handlers are functions of this library, which stays loaded; there is no direct access.
        if !unsafe { (plugin.symbols.register_memory)(none, read, write, none, first, last) } {
            return Err(format!("{first:#x} to {last:#x} are taken (is the VGA extension off?)"));
        }
    }
    super::ioapic::replace(&plugin.symbols)?;
    ENGINE_TIMER.store(timer(plugin, engine_timer, ENGINE_MICROSECONDS)?, Ordering::Relaxed);
    BIOS_TIMER.store(timer(plugin, bios_timer, BIOS_POLL_MICROSECONDS)?, Ordering::Relaxed);
    super::progress::install(plugin)
}

/// A new timer, not running.
pub(super) fn timer(plugin: &Plugin, handler: extern "C" fn(*mut c_void), microseconds: u32) -> Result<u32, String> {
    // Bochs wants a parameter that is not null; it is not used.
    let parameter = plugin.symbols.devices.0;
    // SAFETY: the object is `bx_pc_system`; the handler stays loaded; the name is a C string.
    let timer = unsafe {
        let register = plugin.symbols.register_timer;
        register(plugin.symbols.pc_system.0, parameter, handler, microseconds, false, false, c"ims".as_ptr())
    };
    u32::try_from(timer).map_err(|_| "no timer left".to_string())
}

/// The platform's reset: the models start anew, and the BIOS will build its tables again.
pub(super) fn reset(plugin: &Plugin) {
    plugin.with(|machine, host| {
        machine.reset();
        let rsdp = RSDP.swap(0, Ordering::Relaxed);
        if rsdp != 0 {
            // The RSDP from before the reset must not be taken for a new one.
            host.patch_bios(rsdp.into(), &[0; 20]);
        }
        host.start_timer(BIOS_TIMER.load(Ordering::Relaxed), BIOS_POLL_MICROSECONDS, true);
    });
}
