//! The emulator as the models' host: guest memory, the local APICs, timers, ports.

use super::symbols::{self, Object, Symbols};
use crate::machine::{Host, Interrupt};
use std::ffi::c_void;
use std::ops::Range;
use std::ptr;
use std::sync::OnceLock;
use vtd_model::Memory;

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
/// Below this, the legacy holes: the VGA window and the ROMs.
const LOW_MEMORY: u64 = 0xa_0000;
/// RAM never reaches the window of memory-mapped devices.
const RAM_LIMIT: u64 = 0xc000_0000;

static RAM_END: OnceLock<u64> = OnceLock::new();
static LOCAL_APICS: OnceLock<Vec<Object>> = OnceLock::new();

/// What the emulator does for the models.
pub(super) struct Bochs<'a> {
    symbols: &'a Symbols,
}

impl<'a> Bochs<'a> {
    pub(super) fn new(symbols: &'a Symbols) -> Self {
        Self { symbols }
    }

    /// The end of the guest's RAM, found by asking for it a mebibyte at a time.
    pub(super) fn ram_end(&self) -> u64 {
        *RAM_END.get_or_init(|| {
            let mut end = MIB;
            // SAFETY: no processor, a plain address, 1 for writing; the answer is null where there is no RAM.
            while end < RAM_LIMIT && !unsafe { (self.symbols.host_address)(ptr::null_mut(), end, 1) }.is_null() {
                end += MIB;
            }
            end
        })
    }

    /// Whether a piece is RAM. Devices' registers are not: a device that reaches one would enter this plugin again.
    fn is_ram(&self, address: u64, len: usize) -> bool {
        let Some(end) = address.checked_add(len as u64) else { return false };
        end <= LOW_MEMORY || address >= MIB && end <= self.ram_end()
    }

    /// Reads any physical memory, ROM included, page by page.
    fn copy_out(&self, address: u64, buf: &mut [u8]) {
        for (at, piece) in pages(address, buf.len()) {
            let Some(part) = buf.get_mut(piece) else { return };
            // SAFETY: no processor, a piece within one page, and a buffer of its length.
            unsafe { (self.symbols.read_physical)(ptr::null_mut(), at, part.len() as u32, part.as_mut_ptr().cast()) };
        }
    }

    /// The content of the BIOS area.
    pub(super) fn bios(&self, area: &Range<u64>) -> Vec<u8> {
        let mut bytes = vec![0; (area.end - area.start) as usize];
        self.copy_out(area.start, &mut bytes);
        bytes
    }

    /// Writes where ordinary writes are ignored: into the copy of the BIOS area that the guest sees. `address` is 16-aligned
    /// there, and `bytes` are at most 32.
    pub(super) fn patch_bios(&self, address: u64, bytes: &[u8]) {
        let inside = crate::acpi::BIOS.contains(&address) && crate::acpi::BIOS.contains(&(address + 31));
        if !inside || bytes.len() > 32 || !address.is_multiple_of(16) {
            return;
        }
        // SAFETY: no processor, a plain address, 0 for reading.
        let place = unsafe { (self.symbols.host_address)(ptr::null_mut(), address, 0) };
        if !place.is_null() {
            // SAFETY: the emulator keeps guest memory in blocks of at least 128 KiB and the ROM in one piece, so 32 bytes
            // within the BIOS area follow one another; nothing in Rust refers to them.
            unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len()) };
        }
    }

    /// A new timer, which does not run yet. The error: Bochs has none left.
    pub(super) fn new_timer(&self, handler: extern "C" fn(*mut c_void), microseconds: u32) -> Result<u32, String> {
        // Bochs wants a parameter that is not null; it is not used.
        let parameter = self.symbols.devices.0;
        // SAFETY: the object is `bx_pc_system`; the handler stays loaded; the name is a C string.
        let timer = unsafe {
            let register = self.symbols.register_timer;
            register(self.symbols.pc_system.0, parameter, handler, microseconds, false, false, c"ims".as_ptr())
        };
        u32::try_from(timer).map_err(|_| "no timer left".to_string())
    }

    /// Starts a timer: it fires once, after `microseconds`, or again and again.
    pub(super) fn start_timer(&self, timer: u32, microseconds: u32, continuous: bool) {
        // SAFETY: the object is `bx_pc_system`, and the timer is one that it gave.
        unsafe { (self.symbols.activate_timer)(self.symbols.pc_system.0, timer, microseconds, continuous) };
    }

    /// Stops a timer.
    pub(super) fn stop_timer(&self, timer: u32) {
        // SAFETY: as in `start_timer`.
        unsafe { (self.symbols.deactivate_timer)(self.symbols.pc_system.0, timer) };
    }

    /// How many processors there are: each has a local APIC.
    pub(super) fn processors(&self) -> u32 {
        self.local_apics().len() as u32
    }

    /// Reads a port, as an IN instruction would.
    pub(super) fn port_in(&self, port: u16, len: u32) -> u32 {
        // SAFETY: the object is `bx_devices`; any port may be read with 1, 2 or 4 bytes.
        unsafe { (self.symbols.port_in)(self.symbols.devices.0, port, len) }
    }

    /// Writes a port, as an OUT instruction would.
    pub(super) fn port_out(&self, port: u16, value: u32, len: u32) {
        // SAFETY: as in `port_in`.
        unsafe { (self.symbols.port_out)(self.symbols.devices.0, port, value, len) }
    }
}

/// Splits a transfer at page borders.
fn pages(address: u64, len: usize) -> impl Iterator<Item = (u64, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = address.wrapping_add(done as u64);
        let next = len.min(done + (PAGE - at % PAGE) as usize);
        let piece = done..next;
        done = next;
        (!piece.is_empty()).then_some((at, piece))
    })
}

impl Memory for Bochs<'_> {
    fn read(&mut self, hpa: u64, buf: &mut [u8]) -> bool {
        let ram = self.is_ram(hpa, buf.len());
        if ram {
            self.copy_out(hpa, buf);
        }
        ram
    }

    fn write(&mut self, hpa: u64, data: &[u8]) -> bool {
        if !self.is_ram(hpa, data.len()) {
            return false;
        }
        for (at, piece) in pages(hpa, data.len()) {
            let Some(part) = data.get(piece) else { break };
            // SAFETY: no processor, a piece within one page, and a buffer of its length, which is only read.
            unsafe {
                (self.symbols.write_physical)(ptr::null_mut(), at, part.len() as u32, part.as_ptr().cast_mut().cast())
            };
        }
        true
    }
}

impl Bochs<'_> {
    /// The local APICs. Each has a timer of Bochs', and `bx_pc_system` keeps a timer's object behind its handler.
    fn local_apics(&self) -> &'static [Object] {
        LOCAL_APICS.get_or_init(|| {
            let words = symbols::words(self.symbols.pc_system.0).into_iter().flatten();
            // SAFETY: the places are words of the object `bx_pc_system`.
            let words: Vec<_> = words.map(|place| unsafe { place.read() }).collect();
            let timers = words.windows(2).filter(|pair| pair[0] == self.symbols.local_apic_timer.0);
            timers.map(|pair| Object(pair[1])).collect()
        })
    }

    /// How many local APICs have a request of this vector (IRR).
    fn requested(&self, vector: u8) -> usize {
        /// The first of the eight IRR registers.
        const IRR: u32 = 0x820;
        let register = IRR + u32::from(vector / 32);
        let is_set = |apic: &&Object| {
            let mut value = 0;
            // SAFETY: the object is a local APIC of Bochs', and reading its IRR changes nothing.
            unsafe { (self.symbols.read_local_apic)(apic.0, register, &mut value) && value >> (vector % 32) & 1 != 0 }
        };
        self.local_apics().iter().filter(is_set).count()
    }
}

impl Host for Bochs<'_> {
    fn deliver(&mut self, interrupt: Interrupt) -> bool {
        const LOWEST_PRIORITY: u8 = 1;
        // Bochs loses a lowest-priority interrupt with a physical destination; there it means the one destination.
        let lowest = interrupt.delivery_mode == LOWEST_PRIORITY;
        let mode = if lowest && !interrupt.logical { 0 } else { interrupt.delivery_mode };
        let Interrupt { vector, dest, logical, level, .. } = interrupt;
        let before = self.requested(vector);
        // SAFETY: plain values; the emulator ignores destinations that do not exist.
        let taken = unsafe { (self.symbols.deliver)(vector, dest, mode, logical, level, level) } as u8 != 0;
        // Other delivery modes have no request of a vector.
        taken && mode <= LOWEST_PRIORITY && before != 0 && self.requested(vector) == before
    }
}
