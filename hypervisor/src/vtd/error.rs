//! Errors of a remapping unit.

use core::fmt;

/// Why a unit cannot be used: a missing feature, or a failed operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnitError {
    /// No unit answers at the registers.
    Absent,
    /// The processor has no CMPXCHG16B (CPUID.1:ECX bit 13), which changes an entry at once.
    NoCompareExchange,
    /// ECAP.QI: no queued invalidation.
    NoQueuedInvalidation,
    /// ECAP.IR: no interrupt remapping.
    NoInterruptRemapping,
    /// ECAP.EIM: no 32-bit APIC IDs, which the machine needs.
    NoExtendedInterruptMode,
    /// CAP.SAGAW: neither 3-level nor 4-level second-stage tables.
    NoSecondStage,
    /// CAP.RWBF: it needs explicit flushes of write buffers, as only the first units did.
    WriteBuffers,
    /// CAP.FRO, CAP.NFR: its fault records lie outside of its registers.
    FaultRecords,
    /// No memory for its tables.
    NoMemory,
    /// The unit did not complete this in time.
    Timeout(&'static str),
    /// The invalidation queue did not work.
    Queue(QueueError),
    /// Compatibility-format interrupts still pass.
    CompatibilityFormat,
}

/// The error of a queued invalidation. The caches' contents are unknown then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueError {
    /// The unit did not complete it in time.
    TimedOut,
    /// IQE: the unit refused a descriptor; IQERCD.IQEI.
    Refused(u8),
    /// ITE: a device-TLB did not answer.
    DeviceTlb,
}

/// Why an operation on a unit failed. It has changed nothing, unless its description says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// No memory for a table.
    NoMemory,
    /// Every entry of the interrupt remapping table is reserved.
    NoFreeEntry,
    /// No domain id is free.
    NoFreeDomain,
    /// The entry is not reserved.
    NotReserved,
    /// The entry is present, or was so after its last flush.
    NotFlushed,
    /// A vector below 16.
    BadVector,
    /// A destination that the unit's mode cannot name.
    BadDestination,
    /// A descriptor's address that is not aligned or too large; an address range that cannot be mapped.
    BadAddress,
    /// The unit has no scalable mode, no PASIDs in it (ECAP.PASID), or not so many.
    NoPasid,
    /// CAP.PI: the unit does not post.
    NoPosting,
    /// The range, or a part of it, is mapped already.
    Mapped,
    /// The function, or its PASID, is attached already.
    Attached,
    /// The function, or its PASID, is not attached to this domain.
    NotAttached,
    /// The domain is another unit's, or functions are attached to it.
    Domain,
    /// An entry was changed by other code.
    Torn,
    /// The flush failed. The entries are cleared.
    Queue(QueueError),
}

impl From<QueueError> for Error {
    fn from(error: QueueError) -> Self {
        Self::Queue(error)
    }
}

impl From<QueueError> for UnitError {
    fn from(error: QueueError) -> Self {
        Self::Queue(error)
    }
}

impl fmt::Display for QueueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimedOut => f.write_str("the remapping unit did not complete an invalidation in time"),
            Self::Refused(why) => write!(f, "the remapping unit refused an invalidation (IQERCD.IQEI {why:#x})"),
            Self::DeviceTlb => f.write_str("a function did not answer an invalidation of its device-TLB (FSTS.ITE)"),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoMemory => "no memory for a table of the remapping unit",
            Self::NoFreeEntry => "no entry of the interrupt remapping table is free",
            Self::NoFreeDomain => "the remapping unit has no domain id that is free",
            Self::NotReserved => "the interrupt remapping entry is not reserved",
            Self::NotFlushed => "the interrupt remapping entry is present, or not flushed yet",
            Self::BadVector => "vector below 16",
            Self::BadDestination => "no destination that the remapping unit can name",
            Self::BadAddress => "no address that the remapping unit can translate or post to",
            Self::NoPasid => "the remapping unit has no scalable mode, no PASIDs, or not so many",
            Self::NoPosting => "the remapping unit does not post interrupts (CAP.PI)",
            Self::Mapped => "a part of the range is mapped already",
            Self::Attached => "it is attached to a domain already",
            Self::NotAttached => "it is not attached to the domain",
            Self::Domain => "the domain is another remapping unit's, or has functions still",
            Self::Torn => "an interrupt remapping entry was changed by somebody else",
            Self::Queue(error) => return error.fmt(f),
        })
    }
}

impl fmt::Display for UnitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Absent => "no remapping unit answers",
            Self::NoCompareExchange => "the processor has no CMPXCHG16B",
            Self::NoQueuedInvalidation => "no queued invalidation (ECAP.QI)",
            Self::NoInterruptRemapping => "no interrupt remapping (ECAP.IR)",
            Self::NoExtendedInterruptMode => "no 32-bit APIC IDs (ECAP.EIM)",
            Self::NoSecondStage => "no 3-level or 4-level second-stage tables (CAP.SAGAW)",
            Self::WriteBuffers => "write buffers need flushing (CAP.RWBF)",
            Self::FaultRecords => "fault records outside of the registers (CAP.FRO)",
            Self::NoMemory => "no memory for tables",
            Self::Timeout(what) => return write!(f, "time-out: {what}"),
            Self::Queue(error) => return write!(f, "invalidation queue: {error}"),
            Self::CompatibilityFormat => "compatibility-format interrupts still pass (GSTS.CFIS)",
        };
        f.write_str(text)
    }
}
