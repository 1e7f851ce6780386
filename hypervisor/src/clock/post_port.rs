//! The clock of last resort: reads of the POST port.

use x86::io;

use super::Clock;

/// Where the firmware's power-on self-test shows how far it is.
const POST: u16 = 0x80;

/// Counts its own reads of the POST port, each of which takes about a microsecond on the ISA bus and its successors. No manual promises
/// that, and in a virtual machine each read is an exit.
#[derive(Clone, Copy, Debug)]
pub struct PostPort;

impl Clock for PostPort {
    fn advance(&self, _: &mut u64) -> u64 {
        // SAFETY: nothing is at this port that a read could change.
        unsafe { io::inb(POST) };
        1
    }

    fn hertz(&self) -> u64 {
        1_000_000
    }
}
