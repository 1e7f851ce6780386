//! Why a call failed.

use core::fmt;

macro_rules! statuses {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal,)+) => {
        /// Why a call failed. Minus its code is what the call returns in RAX, and what a batch's item holds.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum Status { $($(#[doc = $doc])+ $name = $code,)+ }

        impl Status {
            /// Every status there is.
            pub const ALL: &'static [Status] = &[$(Status::$name,)+];

            /// The status with this code; a code that is none means that nobody understood the call.
            pub const fn from_code(code: u64) -> Self {
                match code { $($code => Status::$name,)+ _ => Status::UnknownCall }
            }
        }
    };
}

statuses! {
    /// An argument or field is out of its range, or a reserved bit or field is not zero.
    InvalidArgument = 1,
    /// The guest has no such device with an interrupt message store.
    NoSuchDevice = 2,
    /// The device's store has no such slot.
    NoSuchSlot = 3,
    /// The slot was freed since the handle was given out.
    StaleHandle = 4,
    /// The slot is mapped already, in another way than asked for; or the queue store is open already.
    Exists = 5,
    /// All slots of the device are taken.
    NoFreeSlot = 6,
    /// The remapping unit has no free table entry.
    NoFreeEntry = 7,
    /// The processor has no free interrupt vector.
    NoFreeVector = 8,
    /// A guest's interrupt vector is 16 to 255.
    BadVector = 9,
    /// The guest has no virtual processor with this x2APIC ID.
    BadTarget = 10,
    /// A guest-physical address outside the guest's memory, or not aligned.
    BadAddress = 11,
    /// A structure or item has a size or version that this hypervisor does not know.
    BadLayout = 12,
    /// A structure or batch crosses a page.
    CrossesPage = 13,
    /// The slot is not mapped.
    NotMapped = 14,
    /// The calling code is not 64-bit code at CPL 0.
    NotPrivileged = 15,
    /// The hardware did not do what it was told, in the time it had.
    HardwareError = 16,
    /// The platform forbids this to this guest.
    Forbidden = 17,
    /// The device or platform cannot do this.
    Unsupported = 18,
    /// The guest has not made [`Call::Enable`](crate::Call::Enable).
    NotEnabled = 19,
    /// Others share the device's requester ID, so the guest cannot have a store that nobody watches.
    NotIsolated = 20,
    /// The guest does not own this PASID.
    BadPasid = 21,
    /// No such call. The code is KVM's, so that a call that reaches another hypervisor looks the same.
    UnknownCall = 1000,
}

impl Status {
    /// The positive number that stands for the status.
    pub const fn code(self) -> u64 {
        self as u16 as u64
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InvalidArgument => "invalid argument or reserved bit",
            Self::NoSuchDevice => "no such device",
            Self::NoSuchSlot => "no such slot",
            Self::StaleHandle => "stale handle",
            Self::Exists => "mapped already in another way",
            Self::NoFreeSlot => "no free slot",
            Self::NoFreeEntry => "no free remapping entry",
            Self::NoFreeVector => "no free vector",
            Self::BadVector => "vector below 16",
            Self::BadTarget => "no such virtual processor",
            Self::BadAddress => "bad guest-physical address",
            Self::BadLayout => "unknown size or version",
            Self::CrossesPage => "crosses a page",
            Self::NotMapped => "not mapped",
            Self::NotPrivileged => "not 64-bit code at CPL 0",
            Self::HardwareError => "hardware error",
            Self::Forbidden => "forbidden by the platform",
            Self::Unsupported => "not supported",
            Self::NotEnabled => "the interface is not enabled",
            Self::NotIsolated => "the requester ID is shared",
            Self::BadPasid => "not the guest's PASID",
            Self::UnknownCall => "unknown call",
        })
    }
}
