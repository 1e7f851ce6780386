//! What Bochs calls for accesses to memory.

use super::timers::start_engines;
use super::{PLUGIN, Plugin, config_space, objects};
use crate::ioapic::REGISTERS;
use crate::layout::Bar;
use crate::machine::UNIT_BASES;
use std::ffi::c_void;

/// The widest access that Bochs passes on: MOVDIR64B and AVX-512 stores.
const WIDEST: u32 = 64;
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
pub(super) const UNIT_WINDOW: u64 = 0x1_0000;

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
    /// A read of the DSA's BAR0.
    bar0_read, read: |address, object, plugin, bytes| {
        bar_read(plugin, bytes, objects::number(object), Bar::Registers, offset_in(plugin, address, Bar::Registers));
    };
    /// A write of the DSA's BAR0.
    bar0_write, write: |address, object, plugin, bytes| {
        bar_write(plugin, bytes, objects::number(object), Bar::Registers, offset_in(plugin, address, Bar::Registers));
    };
    /// A read of a portal.
    portal_read, read: |_address, _object, _plugin, _bytes| ();
    /// A write to a portal.
    portal_write, write: |address, object, plugin, bytes| {
        bar_write(plugin, bytes, objects::number(object), Bar::Portals, offset_in(plugin, address, Bar::Portals));
    };
    /// A read of a root bus' memory: of what decodes the address.
    root_read, read: |address, _object, plugin, bytes| {
        if let Some((dsa, bar, offset)) = plugin.with(|machine, _| machine.decode(address)).flatten() {
            bar_read(plugin, bytes, dsa, bar, offset);
        }
    };
    /// A write of a root bus' memory.
    root_write, write: |address, _object, plugin, bytes| {
        if let Some((dsa, bar, offset)) = plugin.with(|machine, _| machine.decode(address)).flatten() {
            bar_write(plugin, bytes, dsa, bar, offset);
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
            let value = config_space::ecam_read(plugin, address - plugin.options.layout().ecam + n, chunk.len()).to_le_bytes();
            chunk.iter_mut().zip(value).for_each(|(place, byte)| *place = byte);
        }
    };
    /// A write to the ECAM window.
    ecam_write, write: |address, _object, plugin, bytes| {
        for (n, chunk) in (0..).step_by(4).zip(bytes.chunks(4)) {
            let value = chunk.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte));
            config_space::ecam_write(plugin, address - plugin.options.layout().ecam + n, chunk.len(), value);
        }
    };
}

/// Where an address of a BAR lies in that. BARs are naturally aligned.
fn offset_in(plugin: &Plugin, address: u64, bar: Bar) -> u64 {
    address % plugin.options.bar_bytes(bar)
}

/// Reads a DSA's memory. Portals are write-only.
fn bar_read(plugin: &Plugin, bytes: &mut [u8], dsa: usize, bar: Bar, offset: u64) {
    if bar == Bar::Registers {
        plugin.with(|machine, _| fill(bytes, offset, |at, len| machine.bar0_read(dsa, at, len)));
    }
}

/// Writes a DSA's memory.
fn bar_write(plugin: &Plugin, bytes: &[u8], dsa: usize, bar: Bar, offset: u64) {
    let work = plugin.with(|machine, host| match bar {
        Bar::Registers => {
            let mut work = false;
            pour(bytes, offset, |at, len, value| work = machine.bar0_write(dsa, at, len, value, host));
            work
        }
        Bar::Portals => machine.portal_write(dsa, offset, bytes),
    });
    if work == Some(true) {
        start_engines(plugin);
    }
}
