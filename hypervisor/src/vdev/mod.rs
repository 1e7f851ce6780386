//! The guest's virtual devices, in place of the machine's own local APIC, serial port, CMOS clock, PCI bus, CPUID leaves, model-specific
//! registers and I/O ports.
//!
//! All of it is logic on values: nothing here touches hardware, so host tests cover it. An operation that needs the hardware returns an
//! effect, which the platform carries out.
#![forbid(unsafe_code)]

pub mod cpuid;
pub mod lines;
pub mod msr;
pub mod mtrr;
pub mod pci;
pub mod ports;
pub mod quota;
pub mod receiver;
pub mod rtc;
pub mod uart;
pub mod vdsa;
pub mod vectors;
pub mod x2apic;

/// The access is refused: the guest gets a general-protection exception with error code 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gp;

/// What a guest reads where nothing answers: all ones in the low `bytes` bytes.
pub const fn all_ones(bytes: u8) -> u32 {
    match bytes {
        1 => 0xff,
        2 => 0xffff,
        _ => u32::MAX,
    }
}
