//! Base address registers: PCI Local Bus Specification 3.0, section 6.2.5.1.

use crate::addr::{Bdf, Hpa};

use super::config::{COMMAND, COMMAND_DECODE, ConfigSpace, set_command};

/// BARs of a function that is no bridge.
pub const BARS: usize = 6;
const FIRST: u16 = 0x10;

/// A decoded range of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bar {
    /// Memory.
    Memory {
        /// Where it is: 0 if nobody placed it.
        base: Hpa,
        /// Bytes, a power of two.
        size: u64,
        /// Reads have no side effects.
        prefetchable: bool,
        /// It takes two registers.
        wide: bool,
    },
    /// I/O ports.
    Io {
        /// The first port.
        port: u16,
        /// How many, a power of two.
        size: u32,
    },
}

impl Bar {
    /// Base and size of a memory BAR that has been placed.
    pub fn memory(&self) -> Option<(Hpa, u64)> {
        match *self {
            Self::Memory { base, size, .. } if base != Hpa::new(0) => Some((base, size)),
            _ => None,
        }
    }
}

/// What the dword at `offset` of the header is for these BARs; `None` for one that is no BAR's.
pub(super) fn dword(bars: &[Option<Bar>; BARS], offset: u16) -> Option<u32> {
    let index = usize::from(offset.checked_sub(FIRST)? / 4);
    match (*bars.get(index)?, index.checked_sub(1).and_then(|before| bars[before])) {
        (Some(Bar::Memory { base, prefetchable, wide, .. }), _) => {
            Some(base.as_u64() as u32 | u32::from(wide) << 2 | u32::from(prefetchable) << 3)
        }
        (Some(Bar::Io { port, .. }), _) => Some(u32::from(port) | 1),
        (None, Some(Bar::Memory { base, wide: true, .. })) => Some((base.as_u64() >> 32) as u32),
        (None, _) => None,
    }
}

/// Reads all BARs, with their sizes. The function decodes nothing meanwhile, so that the trial values claim no one else's
/// addresses.
pub(super) fn probe(config: &(impl ConfigSpace + ?Sized), bdf: Bdf) -> [Option<Bar>; BARS] {
    let command = config.read(bdf, COMMAND) as u16;
    set_command(config, bdf, command & !COMMAND_DECODE);
    let mut bars = [None; BARS];
    let mut next = 0;
    for (i, slot) in bars.iter_mut().enumerate() {
        if i == next {
            *slot = probe_one(config, bdf, i);
            next += if matches!(slot, Some(Bar::Memory { wide: true, .. })) { 2 } else { 1 };
        }
    }
    set_command(config, bdf, command);
    bars
}

fn probe_one(config: &(impl ConfigSpace + ?Sized), bdf: Bdf, index: usize) -> Option<Bar> {
    let offset = FIRST + 4 * index as u16;
    let low = config.read(bdf, offset);
    if low & 1 != 0 {
        let size = trial(config, bdf, offset, low) & 0xfffc;
        return (size != 0).then(|| Bar::Io { port: low as u16 & !3, size: 1 << size.trailing_zeros() });
    }
    let wide = low >> 1 & 3 == 2 && index + 1 < BARS;
    let high = if wide { config.read(bdf, offset + 4) } else { 0 };
    let mut mask = u64::from(trial(config, bdf, offset, low) & !0xf);
    if wide {
        mask |= u64::from(trial(config, bdf, offset + 4, high)) << 32;
    }
    let base = u64::from(high) << 32 | u64::from(low & !0xf);
    let memory = |mask: u64| {
        let size = 1 << mask.trailing_zeros();
        // A base that its size does not divide is one that no device can have.
        Bar::Memory { base: Hpa::new(base & !(size - 1)), size, prefetchable: low & 8 != 0, wide }
    };
    (mask != 0).then(|| memory(mask))
}

/// Writes all ones, reads what stuck, puts the old value back.
fn trial(config: &(impl ConfigSpace + ?Sized), bdf: Bdf, offset: u16, old: u32) -> u32 {
    config.write(bdf, offset, u32::MAX);
    let stuck = config.read(bdf, offset);
    config.write(bdf, offset, old);
    stuck
}
