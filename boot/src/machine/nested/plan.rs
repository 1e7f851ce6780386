//! The first process's orders: a file on the CD.

use serde::{Deserialize, Serialize};

use crate::machine::Config;

/// The machines, in their order.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// One each.
    pub turns: Vec<Turn>,
}

/// One machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Turn {
    /// The machine's memory, processors, devices and limits.
    pub config: Config,
    /// Whether KVM gives VMX to its guests.
    pub nesting: bool,
    /// Whether every device of its guests counts what it sends.
    pub counts_all: bool,
}

/// Its name on the CD.
pub const FILE: &str = "plan.json";

/// The name of a machine's image, in the run's directory and on the CD.
pub fn image(index: usize) -> String {
    format!("image-{index}.iso")
}
