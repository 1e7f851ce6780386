//! Ends the run of the machine.

use x86::io;

use crate::{console, cpu, event};

/// Port that ends Bochs when it reads [`BOCHS_SHUTDOWN`], byte for byte (Bochs' `iodev/unmapped.cc`).
const BOCHS_PORT: u16 = 0x8900;
const BOCHS_SHUTDOWN: &[u8] = b"Shutdown";

/// QEMU's `isa-debug-exit` at its usual place: exit code 2 × value + 1.
const QEMU_PORT: u16 = 0xf4;
const QEMU_OK: u32 = 0x10;
const QEMU_FAILED: u32 = 0x11;

/// Writes the run's last line and ends the machine, where the machine is one that software can end. Otherwise the processor stops.
pub fn end(ok: bool) -> ! {
    event!("done status={}", if ok { "ok" } else { "failed" });
    console::note(format_args!("This was the last line: the machine can be switched off."));
    console::drain();
    // SAFETY: the two ports exist on the emulators only, where they do what their documentation says, and nothing is at them on a PC.
    unsafe {
        for &byte in BOCHS_SHUTDOWN {
            io::outb(BOCHS_PORT, byte);
        }
        io::outl(QEMU_PORT, if ok { QEMU_OK } else { QEMU_FAILED });
    }
    cpu::stop()
}
