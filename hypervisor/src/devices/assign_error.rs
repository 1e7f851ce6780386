//! Why a function cannot be assigned to a guest.
#![forbid(unsafe_code)]

use core::fmt;

use crate::{quirks::Erratum, vtd::Error};

/// Why a function cannot be assigned to a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AssignError {
    /// The machine has no such function.
    NoSuchFunction,
    /// No working remapping unit serves the function.
    NoRemapping,
    /// Another guest has the function.
    Taken,
    /// The firmware has reserved memory for the function's DMA (RMRR).
    ReservedMemory,
    /// The function has no message store that the hypervisor knows.
    NoStore,
    /// The function has neither a message store nor MSI-X.
    NoMessages,
    /// The function has no known reset method.
    NoReset,
    /// Other functions share the function's path to the remapping unit.
    NotAlone,
    /// The hardware has this erratum, which the guest does not accept.
    Unsafe(&'static Erratum),
    /// The function has no PASIDs, which separate virtual functions.
    NoPasid,
    /// The function's remapping unit has no scalable mode, or does not support these PASIDs.
    NoPasidRemapping,
    /// The work queues or the store's slots do not suffice for one more virtual function.
    NoRoom,
    /// The firmware has not placed this BAR, or the BAR is too small to be mapped.
    Bar(usize),
    /// A table is not inside the BAR that the function names.
    Table,
    /// Memory for tables or shadows ran out, or address space in the guest.
    OutOfMemory,
    /// The remapping unit, or the device, does not answer.
    Hardware,
}

impl fmt::Display for AssignError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSuchFunction => "the machine has no such function",
            Self::NoRemapping => {
                "no remapping unit (IOMMU) that can be used covers it: without VT-d interrupt remapping its interrupts and DMA \
                 cannot be confined (what=vtd says why)"
            }
            Self::Taken => "another guest has it",
            Self::ReservedMemory => "the firmware keeps memory of its own with it (RMRR)",
            Self::NoStore => "it has no interrupt message store that the hypervisor knows",
            Self::NoMessages => "it has neither an interrupt message store nor MSI-X",
            Self::NoReset => "it cannot be reset by itself (function level reset), so that what one guest leaves in it would be the next one's",
            Self::NotAlone => {
                "it shares its device, its bus or a switch with other functions, which it could reach past the remapping unit"
            }
            Self::Unsafe(Erratum { name, what, .. }) => {
                return write!(f, "its hardware has an erratum ({name}): {what}. A guest that is trusted with that gets it by unsafe={name}");
            }
            Self::NoPasid => "it has no PASIDs",
            Self::NoPasidRemapping => "its remapping unit (IOMMU) does not tell these PASIDs apart: that takes scalable mode, and they end at 0x1fff",
            Self::NoRoom => "it has no work queue left for a virtual function, or not so many slots in its message store",
            Self::Bar(index) => return write!(f, "BAR {index} has no place, or is smaller than a page"),
            Self::Table => "a table does not lie in its BAR",
            Self::OutOfMemory => "memory or address space ran out",
            Self::Hardware => "the remapping unit or the device does not answer",
        })
    }
}

impl From<Error> for AssignError {
    fn from(error: Error) -> Self {
        match error {
            Error::NoPasid => Self::NoPasidRemapping,
            Error::NoMemory | Error::NoFreeDomain => Self::OutOfMemory,
            _ => Self::Hardware,
        }
    }
}
