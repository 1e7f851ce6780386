//! Interrupt requests: remapping (VT-d 5.1) and posting (VT-d 5.2).

use crate::{Memory, Unit};

/// What becomes of an interrupt request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Deliver this interrupt to the local APICs.
    Remapped(Remapped),
    /// Recorded in a posted-interrupt descriptor.
    Posted {
        /// The notification event to send, if one is due: the vector and the destination's APIC ID; physical destination
        /// mode, fixed delivery, edge.
        notify: Option<(u8, u32)>,
    },
    /// Deliver as the message itself says: remapping is off, or compatibility format is allowed.
    Compatibility(Compatibility),
    /// Nothing is delivered.
    Blocked {
        /// VT-d appendix A's fault reason (0x20 to 0x28), or `None` for a request that is no interrupt request at all.
        reason: Option<u8>,
    },
}

/// An interrupt as a remapped-format entry describes it (VT-d 9.10).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remapped {
    /// The vector.
    pub vector: u8,
    /// The destination's APIC ID (or logical ID): 32 bits in extended interrupt mode, else 8.
    pub dest: u32,
    /// DM: the destination is logical.
    pub dest_mode_logical: bool,
    /// RH: redirection hint.
    pub redirection_hint: bool,
    /// DLM: 0 fixed, 1 lowest priority, 2 SMI, 4 NMI, 5 INIT, 7 ExtINT.
    pub delivery_mode: u8,
    /// TM: level triggered.
    pub trigger_level: bool,
    /// The entry's index in the interrupt-remapping table.
    pub index: u32,
}

/// An interrupt as a compatibility-format message describes it (VT-d 5.1.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compatibility {
    /// The vector.
    pub vector: u8,
    /// The destination: address bits 19:12.
    pub dest: u8,
    /// DM: the destination is logical.
    pub dest_mode_logical: bool,
    /// RH: redirection hint.
    pub redirection_hint: bool,
    /// The delivery mode, coded as in [`Remapped::delivery_mode`].
    pub delivery_mode: u8,
    /// Level triggered.
    pub trigger_level: bool,
    /// The level of a level-triggered interrupt: asserted.
    pub asserted: bool,
}

impl Unit {
    /// Handles a DWORD write of `data` to `address` (0xFEEx_xxxx, DWORD-aligned) by the requester `source_id`.
    pub fn interrupt_request(&mut self, _source_id: u16, _address: u64, _data: u32, _mem: &mut dyn Memory) -> Outcome {
        Outcome::Blocked { reason: None }
    }
}
