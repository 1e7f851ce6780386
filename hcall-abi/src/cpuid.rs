//! CPUID leaves, relative to the base at which [`SIGNATURE`] is found.
//!
//! The base is a multiple of [`BASE_STEP`] from [`FIRST_BASE`] to [`LAST_BASE`]; a guest looks at each of them, as Linux's
//! `hypervisor_cpuid_base` does, because other interfaces may stand at lower ones.

/// Where a scan begins.
pub const FIRST_BASE: u32 = 0x4000_0000;
/// Where a scan ends, inclusive.
pub const LAST_BASE: u32 = 0x4000_ff00;
/// Distance of two possible bases.
pub const BASE_STEP: u32 = 0x100;
/// The base imsvisor uses.
pub const IMSVISOR_BASE: u32 = 0x4000_0100;

/// EBX, ECX, EDX of leaf base + 0. EAX holds the highest leaf.
pub const SIGNATURE: [u8; 12] = *b"imsvisor-IMS";

/// Leaf base + 0: highest leaf and signature.
pub const LEAF_SIGNATURE: u32 = 0;
/// Leaf base + 1: EAX = major 31:16, minor 15:0; EBX = number of call 0.
pub const LEAF_VERSION: u32 = 1;
/// Leaf base + 2: EAX = [`Features`].
pub const LEAF_FEATURES: u32 = 2;
/// Leaf base + 3: EAX = most slots of a device, EBX = most items in a batch, ECX = number of groups.
pub const LEAF_LIMITS: u32 = 3;
/// Highest leaf of this version.
pub const LEAF_MAX: u32 = LEAF_LIMITS;

/// The number that imsvisor gives to call 0. Guests take it from [`LEAF_VERSION`].
pub const CALL_BASE: u32 = 0x494d_5300;

/// The signature as EBX, ECX, EDX.
pub const fn signature_registers() -> [u32; 3] {
    let s = SIGNATURE;
    [
        u32::from_le_bytes([s[0], s[1], s[2], s[3]]),
        u32::from_le_bytes([s[4], s[5], s[6], s[7]]),
        u32::from_le_bytes([s[8], s[9], s[10], s[11]]),
    ]
}

/// What the platform offers: EAX of [`LEAF_FEATURES`]. Bits not named here are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(pub u32);

macro_rules! features {
    ($($(#[doc = $doc:literal])+ $name:ident = $bit:literal,)+) => {
        impl Features {
            $($(#[doc = $doc])+ pub const $name: Self = Self(1 << $bit);)+

            /// Every feature there is, with its name.
            pub const ALL: &'static [(&'static str, Self)] = &[$((stringify!($name), Self::$name),)+];
        }
    };
}

features! {
    /// Array stores in device memory.
    ARRAY_STORE = 0,
    /// Queue stores in system memory.
    QUEUE_STORE = 1,
    /// Interrupts can be posted to a running virtual processor without a VM exit.
    POSTED = 2,
    /// [`Call::Map`](crate::Call::Map) takes more than one item.
    BATCH = 3,
    /// [`Call::AllocMany`](crate::Call::AllocMany) and [`Call::FreeMany`](crate::Call::FreeMany) work: fewer may be granted than asked
    /// for.
    FEWER_GRANT = 4,
    /// Slots can be freed by group: [`Call::FreeGroup`](crate::Call::FreeGroup).
    GROUP = 5,
    /// Auxiliary data (a PASID) can be set: [`Call::SetAux`](crate::Call::SetAux).
    AUX_PASID = 6,
    /// [`Call::SetAffinity`](crate::Call::SetAffinity) works.
    RETARGET = 7,
    /// A guest can read the faults of its own slots: [`Call::ReadFaults`](crate::Call::ReadFaults).
    FAULT_LOG = 8,
    /// [`Call::Enable`](crate::Call::Enable) is there, and needed: devices show their stores after it only.
    ENABLE = 9,
    /// [`Call::QuerySlot`](crate::Call::QuerySlot) works.
    QUERY_SLOT = 10,
    /// A slot that fires faster than its limit is masked, and a fault record says so.
    STORM_LIMIT = 11,
    /// An interrupt can be ended without an exit: [`Call::SetPvEoi`](crate::Call::SetPvEoi).
    PV_EOI = 12,
    /// The guest can be asked to stop: [`LifeCall::SetStopRequest`](crate::LifeCall::SetStopRequest).
    STOP_REQUEST = 13,
    /// The guest manages all guests: the other calls of [`LifeCall`](crate::LifeCall) work.
    MANAGE = 14,
    /// The platform forbids this guest to use an interrupt message store without the hypercall domain.
    IMS_FORBIDDEN = 31,
}

impl Features {
    /// Whether all bits of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets together.
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What the platform's tables hold: [`LEAF_LIMITS`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Most slots that a device can have.
    pub slots_per_device: u32,
    /// Most items in one batch.
    pub batch: u32,
    /// Number of groups; a group ID is below it.
    pub groups: u32,
}
