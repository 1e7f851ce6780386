//! PCI functions: configuration space, properties, and the places of their registers and message stores.

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
