//! Where the devices see memory.

use imsvisor::addr::PAGE_SIZE;

/// Where the devices see their memory: not where it is.
pub const WINDOW: u64 = 0x4000_0000;
/// Bytes of it, in one large page.
pub const WINDOW_BYTES: u64 = 2 << 20;
/// A small page behind it.
pub const SMALL: u64 = WINDOW + WINDOW_BYTES;
/// A page that may only be read; between the two nothing is mapped.
pub const READ_ONLY: u64 = SMALL + 2 * PAGE_SIZE;
/// Nothing is mapped here.
pub const HOLE: u64 = SMALL + PAGE_SIZE;
