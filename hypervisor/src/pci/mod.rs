//! PCI functions: where their configuration space is, what they are, where their registers and message stores lie.

pub mod bar;
pub mod capability;
pub mod config;
pub mod function;
mod ports;
pub mod reset;
pub mod scan;
#[cfg(test)]
pub mod testing;

pub use bar::Bar;
pub use capability::{Express, MsiX, Siov, TableLocation};
pub use config::{Buses, ConfigSpace, Ecam};
pub use function::{Bridge, Function};
pub use ports::ConfigPorts;
pub use scan::scan;
