//! The guest's virtual devices: what a guest finds instead of the machine's own local APIC, serial port, CMOS clock, PCI bus, CPUID
//! leaves, model-specific registers and I/O ports.
//!
//! Pure logic on values: nothing here touches hardware, so all of it runs under the host's tests. What has to happen on the
//! hardware comes back as an effect that the platform carries out.
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
