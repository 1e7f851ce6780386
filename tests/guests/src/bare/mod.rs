//! The run-time of a guest without an operating system: entry, interrupts, console, exit.
//!
//! Everything here assumes what imsvisor gives to a guest: 64-bit mode on the first processor, the low 4 GiB mapped to themselves, an
//! x2APIC that is enabled, a 16550 at port 0x3F8, and the exit port 0xF4. The same image also boots from GRUB on the machine itself:
//! `native` makes it so.

pub mod apic;
pub mod assigned;
pub mod config;
pub mod console;
pub mod device;
pub mod dma;
mod entry;
pub mod facts;
pub mod faults;
pub mod idle;
pub mod interrupts;
pub mod lock;
mod msr;
mod native;
pub mod physical;
pub mod poke;
pub mod port;
pub mod portal;
pub mod profile;
pub mod smp;
pub mod take_once;
mod this;
pub mod vector;

use crate::boot_params::BootParams;
use physical::PhysicalMemory;

/// What a guest knows when it starts.
#[derive(Debug)]
pub struct Guest {
    /// What the hypervisor handed over.
    pub boot: BootParams<PhysicalMemory>,
    /// The command line.
    pub command_line: &'static str,
}

/// What a guest's program returns.
pub trait Ending {
    /// The exit code. An error is told on the console, in the name of the guest.
    fn exit_code(self, guest: &str) -> u8;
}

impl Ending for u8 {
    fn exit_code(self, _: &str) -> u8 {
        self
    }
}

impl Ending for Result<(), &str> {
    fn exit_code(self, guest: &str) -> u8 {
        match self {
            Ok(()) => 0,
            Err(why) => {
                crate::println!("{guest}: {why}");
                1
            }
        }
    }
}

/// Makes a function `fn(&Guest) -> impl Ending` the guest's program.
#[macro_export]
macro_rules! guest {
    ($main:path) => {
        // SAFETY: the only definition in the image; its signature is checked here, and `bare::entry` declares the same.
        #[unsafe(no_mangle)]
        fn guest_main(guest: &$crate::bare::Guest) -> u8 {
            $crate::bare::Ending::exit_code($main(guest), env!("CARGO_BIN_NAME"))
        }
    };
}

/// The port whose written byte ends the guest.
const EXIT_PORT: u16 = 0xf4;

/// Ends the guest with an exit code.
pub fn exit(code: u8) -> ! {
    // SAFETY: ends the guest; nothing runs after it.
    unsafe { port::write_u8(EXIT_PORT, code) };
    // Nobody answers where there is no hypervisor.
    native::end(code);
    loop {
        // SAFETY: only if the port is not answered; nothing is left to wake up for.
        unsafe { core::arch::asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

/// Exit code of a guest that panicked.
pub const EXIT_PANIC: u8 = 99;
/// Exit code of a guest that met an exception nobody expected: this plus the exception's vector.
pub const EXIT_EXCEPTION: u8 = 100;

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    crate::println!("panic: {info}");
    exit(EXIT_PANIC)
}
