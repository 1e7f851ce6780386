//! VMX: the processor's virtual-machine extensions. SDM vol. 3, chapters 25 to 32.

pub mod bitmap;
pub mod caps;
pub mod controls;
pub mod entry;
pub mod exit;
pub mod fields;
pub mod instr;
pub mod posted;
pub mod reason;
pub mod root;
mod setup;
mod spec_ctrl;
mod start;
pub mod vcpu;
pub mod virtual_apic;

pub use caps::{Capabilities, Unsupported};
pub use entry::Registers;
pub use exit::{Event, EventKind, Exit};
pub use root::Host;
pub use start::{Frames, LocalApic, Start};
pub use vcpu::Vcpu;
pub use virtual_apic::VirtualApic;
