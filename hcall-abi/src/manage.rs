//! The life of guests: how a guest is asked to stop, and how one guest manages all of them.
//!
//! Every guest can make [`LifeCall::SetStopRequest`] ([`Features::STOP_REQUEST`](crate::cpuid::Features::STOP_REQUEST)). The other calls are
//! for the one guest whose module has `manage=on` ([`Features::MANAGE`](crate::cpuid::Features::MANAGE)); to all others they are
//! [`Status::UnknownCall`].
//!
//! Guests are numbered from 0, in the order of their modules. A call that asks for what is so already succeeds: to start a guest that runs, to
//! stop one that has stopped.
//!
//! Errors of all of these calls, beside those that each of them names:
//!
//! | status | when |
//! |---|---|
//! | [`Status::NotPrivileged`] | it is not 64-bit code at CPL 0 that calls |
//! | [`Status::UnknownCall`] | the guest does not have the call |
//! | [`Status::InvalidArgument`] | a guest's number that is beyond the last guest, or does not fit into 16 bits; milliseconds beyond [`GRACE_MAX`]; a register of RBX, RCX, RDX and RSI that the call does not use and that is not 0 |
//! | [`Status::CrossesPage`] | a structure that is not in one page |
//! | [`Status::BadAddress`] | a structure outside of the guest's memory |
//! | [`Status::BadLayout`] | a structure of another size or version |
//!
//! A call that fails changes nothing.

use crate::{Status, Target};

/// A call's number, relative to the call base that CPUID gives. The numbers follow those of [`Call`](crate::Call).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum LifeCall {
    /// RBX = target, as [`Target::to_register`] has it, or 0 for none. From then on the guest gets this interrupt when it is asked to stop,
    /// and should end by itself soon. If it has been asked already, the interrupt comes at once. [`BadTarget`] for a virtual processor that
    /// the guest does not have, [`BadVector`] for a vector below 16. Returns 0.
    ///
    /// [`BadTarget`]: crate::Status::BadTarget
    /// [`BadVector`]: crate::Status::BadVector
    SetStopRequest = 19,
    /// RBX = guest, RCX = guest-physical address of a [`GuestInfo`], in one page, whose `size` and `version` are set. Fills it in and returns
    /// 0. A guest that the hypervisor has refused is [`GuestState::Failed`], with no more than that and the number of guests. [`InvalidArgument`] if
    /// another field of the structure is not 0.
    ///
    /// [`InvalidArgument`]: crate::Status::InvalidArgument
    QueryGuest = 20,
    /// RBX = guest. Makes the guest from its module and starts it. One that is being stopped starts after that. [`Unsupported`] for a guest
    /// that the hypervisor has refused. Returns 0 without waiting.
    ///
    /// [`Unsupported`]: crate::Status::Unsupported
    StartGuest = 21,
    /// RBX = guest, RCX = milliseconds, at most [`GRACE_MAX`]. Asks the guest to stop ([`LifeCall::SetStopRequest`]), and ends it if it runs
    /// so many milliseconds later; at once if they are 0. [`Unsupported`] for a guest that the hypervisor has refused. Returns 0 without waiting.
    ///
    /// [`Unsupported`]: crate::Status::Unsupported
    StopGuest = 22,
    /// RBX = guest, RCX = milliseconds. As `StopGuest`, and then `StartGuest`, with their errors. Returns 0 without waiting.
    RestartGuest = 23,
    /// RBX = guest, RCX = guest-physical address of [`GuestCounters`], in one page, whose `size` and `version` are set. Fills them in and
    /// returns 0; all are 0 for a guest that the hypervisor has refused. [`InvalidArgument`] if another field of the structure is not 0.
    ///
    /// [`InvalidArgument`]: crate::Status::InvalidArgument
    ReadCounters = 24,
}

/// `StopGuest` and `RestartGuest`: the most milliseconds that a guest gets to stop: ten minutes.
pub const GRACE_MAX: u64 = 600_000;

impl LifeCall {
    /// Every call there is, in the order of the numbers.
    pub const ALL: [Self; 6] = [
        Self::SetStopRequest,
        Self::QueryGuest,
        Self::StartGuest,
        Self::StopGuest,
        Self::RestartGuest,
        Self::ReadCounters,
    ];

    /// The call with number `base + n`, given that number.
    pub fn from_number(number: u64, base: u32) -> Option<Self> {
        let n = number.checked_sub(Self::ALL[0].number(base))?;
        Self::ALL.get(usize::try_from(n).ok()?).copied()
    }

    /// The number to put into RAX.
    pub const fn number(self, base: u32) -> u64 {
        base as u64 + self as u64
    }

    /// Whether only the guest that manages can make it.
    pub const fn is_managers(self) -> bool {
        !matches!(self, Self::SetStopRequest)
    }
}

/// What `SetStopRequest` names: RBX. 0 is none, which no target is.
pub fn stop_target_from_register(value: u64) -> Result<Option<Target>, Status> {
    if value == 0 { Ok(None) } else { Target::from_register(value).map(Some) }
}

/// A guest's number, 0 to 65,535.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GuestNumber(pub u16);

impl GuestNumber {
    /// From a register; bits 63:16 must be zero.
    pub fn from_register(value: u64) -> Result<Self, Status> {
        u16::try_from(value).map(Self).map_err(|_| Status::InvalidArgument)
    }
}

/// Milliseconds from a register: at most [`GRACE_MAX`].
pub fn grace_from_register(value: u64) -> Result<u64, Status> {
    if value > GRACE_MAX { Err(Status::InvalidArgument) } else { Ok(value) }
}

/// Where a guest is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum GuestState {
    /// It does not run, and has ended as it should, or was never started.
    Stopped = 0,
    /// It is being made, or waits for memory that others have.
    Starting = 1,
    /// It runs.
    Running = 2,
    /// A manager has asked the guest to stop, or the guest has ended and its resources are being released.
    Stopping = 3,
    /// It does not run, because it ended otherwise than with exit code 0, or could not be made.
    Failed = 4,
}

impl GuestState {
    /// Every state there is, in the order of the numbers.
    pub const ALL: [Self; 5] = [Self::Stopped, Self::Starting, Self::Running, Self::Stopping, Self::Failed];

    /// From its number.
    pub fn from_number(number: u16) -> Result<Self, Status> {
        Self::ALL.get(usize::from(number)).copied().ok_or(Status::InvalidArgument)
    }

    /// Its name for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Failed => "failed",
        }
    }
}

/// Version of [`GuestInfo`] and [`GuestCounters`].
pub const VERSION: u16 = 1;

/// Bytes of a guest's name.
pub const NAME_MAX: usize = 16;

/// What [`LifeCall::QueryGuest`] tells: 64 bytes.
///
/// | bytes | field |
/// |---|---|
/// | 0..4 | size of the structure: 64, set by the guest |
/// | 4..6 | version: 1, set by the guest |
/// | 6..8 | [`GuestState`] |
/// | 8..10 | number of guests |
/// | 10..12 | flags: bit 0 = the guest that asks |
/// | 12..16 | 0 |
/// | 16..32 | name, with zeros behind it |
/// | 32..36 | virtual processors |
/// | 36..40 | MiB of memory |
/// | 40..44 | weight |
/// | 44..48 | 0 |
/// | 48..56 | number of starts |
/// | 56..64 | 0; the guest writes 0 wherever it sets nothing |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestInfo {
    /// How many guests there are.
    pub guests: u16,
    /// Where it is in its life.
    pub state: GuestState,
    /// Whether it is the guest that asks.
    pub is_own: bool,
    /// Its name, with zeros behind it; all zeros for a module whose command line could not be read.
    pub name: [u8; NAME_MAX],
    /// Its virtual processors.
    pub vcpus: u32,
    /// MiB of memory.
    pub memory_mib: u32,
    /// Its weight for the scheduler.
    pub weight: u32,
    /// How often it was started.
    pub starts: u64,
}

/// Size and version, which open a structure that a guest asks for.
fn request() -> [u8; 64] {
    let mut bytes = [0; 64];
    put(&mut bytes, 0, 64_u32.to_le_bytes());
    put(&mut bytes, 4, VERSION.to_le_bytes());
    bytes
}

/// Refuses another size or version, and fields that are not zero.
fn check_request(bytes: &[u8; 64]) -> Result<(), Status> {
    check_layout(bytes)?;
    if *bytes == request() { Ok(()) } else { Err(Status::InvalidArgument) }
}

fn check_layout(bytes: &[u8; 64]) -> Result<(), Status> {
    if bytes[..6] == request()[..6] { Ok(()) } else { Err(Status::BadLayout) }
}

fn put<const N: usize>(bytes: &mut [u8], at: usize, field: [u8; N]) {
    bytes[at..at + N].copy_from_slice(&field);
}

fn get<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

impl GuestInfo {
    /// Bytes of it.
    pub const SIZE: usize = 64;

    /// What a guest writes before it asks.
    pub fn request() -> [u8; Self::SIZE] {
        request()
    }

    /// Refuses another size or version ([`Status::BadLayout`]), and fields that are not zero ([`Status::InvalidArgument`]).
    pub fn check_request(bytes: &[u8; Self::SIZE]) -> Result<(), Status> {
        check_request(bytes)
    }

    /// As memory holds it.
    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let mut bytes = request();
        put(&mut bytes, 6, (self.state as u16).to_le_bytes());
        put(&mut bytes, 8, self.guests.to_le_bytes());
        put(&mut bytes, 10, u16::from(self.is_own).to_le_bytes());
        put(&mut bytes, 16, self.name);
        put(&mut bytes, 32, self.vcpus.to_le_bytes());
        put(&mut bytes, 36, self.memory_mib.to_le_bytes());
        put(&mut bytes, 40, self.weight.to_le_bytes());
        put(&mut bytes, 48, self.starts.to_le_bytes());
        bytes
    }

    /// From memory.
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Result<Self, Status> {
        check_layout(bytes)?;
        Ok(Self {
            guests: u16::from_le_bytes(get(bytes, 8)),
            state: GuestState::from_number(u16::from_le_bytes(get(bytes, 6)))?,
            is_own: bytes[10] & 1 != 0,
            name: get(bytes, 16),
            vcpus: u32::from_le_bytes(get(bytes, 32)),
            memory_mib: u32::from_le_bytes(get(bytes, 36)),
            weight: u32::from_le_bytes(get(bytes, 40)),
            starts: u64::from_le_bytes(get(bytes, 48)),
        })
    }

    /// The name as text.
    pub fn name(&self) -> &str {
        let len = self.name.iter().position(|byte| *byte == 0).unwrap_or(NAME_MAX);
        core::str::from_utf8(&self.name[..len]).unwrap_or("?")
    }
}

/// What [`LifeCall::ReadCounters`] tells: 64 bytes. All but the first are of the life that the guest has now, or had last.
///
/// | bytes | field |
/// |---|---|
/// | 0..4 | size of the structure: 64, set by the guest |
/// | 4..6 | version: 1, set by the guest |
/// | 6..8 | 0 |
/// | 8..16 | ticks of the TSC that making and releasing the guest took, in all its lives |
/// | 16..24 | ticks charged to it |
/// | 24..32 | ticks of these that were worked for it beside its turns: for interrupts, faults and errors of its devices, ends of resets, and the making of its virtual processors |
/// | 32..40 | VM exits |
/// | 40..48 | devices' interrupts that were given to it; not those that are posted |
/// | 48..64 | 0; the guest writes 0 wherever it sets nothing |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestCounters {
    /// Ticks that making and releasing it took, in all its lives.
    pub building: u64,
    /// Ticks of processors that were charged to it.
    pub charged: u64,
    /// Ticks of these that were worked for it beside its turns: for interrupts, faults and errors of its devices, ends of resets, and the making of
    /// its virtual processors.
    pub interrupting: u64,
    /// VM exits.
    pub exits: u64,
    /// Devices' interrupts that the hypervisor has given to it.
    pub interrupts: u64,
}

impl GuestCounters {
    /// Bytes of them.
    pub const SIZE: usize = 64;

    /// What a guest writes before it asks.
    pub fn request() -> [u8; Self::SIZE] {
        request()
    }

    /// Refuses another size or version ([`Status::BadLayout`]), and fields that are not zero ([`Status::InvalidArgument`]).
    pub fn check_request(bytes: &[u8; Self::SIZE]) -> Result<(), Status> {
        check_request(bytes)
    }

    /// As memory holds them.
    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let mut bytes = request();
        let fields = [self.building, self.charged, self.interrupting, self.exits, self.interrupts];
        for (n, field) in fields.into_iter().enumerate() {
            put(&mut bytes, 8 + 8 * n, field.to_le_bytes());
        }
        bytes
    }

    /// From memory.
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Result<Self, Status> {
        check_layout(bytes)?;
        let field = |n: usize| u64::from_le_bytes(get(bytes, 8 + 8 * n));
        Ok(Self {
            building: field(0),
            charged: field(1),
            interrupting: field(2),
            exits: field(3),
            interrupts: field(4),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Call, cpuid::CALL_BASE};

    #[test]
    fn numbers_follow_those_of_the_other_calls_and_match_both_ways() {
        assert_eq!(LifeCall::ALL[0] as usize, Call::ALL.len());
        for call in LifeCall::ALL {
            assert_eq!(LifeCall::from_number(call.number(CALL_BASE), CALL_BASE), Some(call));
            assert_eq!(Call::from_number(call.number(CALL_BASE), CALL_BASE), None);
        }
        let end = u64::from(CALL_BASE) + (Call::ALL.len() + LifeCall::ALL.len()) as u64;
        for number in [0, u64::from(CALL_BASE), end, u64::MAX, 1 << 32 | (end - 1)] {
            assert_eq!(LifeCall::from_number(number, CALL_BASE), None, "{number:#x}");
        }
    }

    #[test]
    fn registers_out_of_range_are_refused() {
        assert_eq!(GuestNumber::from_register(0xffff), Ok(GuestNumber(0xffff)));
        assert_eq!(GuestNumber::from_register(0x1_0000), Err(Status::InvalidArgument));
        assert_eq!(grace_from_register(GRACE_MAX), Ok(GRACE_MAX));
        assert_eq!(grace_from_register(GRACE_MAX + 1), Err(Status::InvalidArgument));
        assert_eq!(stop_target_from_register(0), Ok(None));
        let target = Target { apic_id: 3, vector: 0x41 };
        assert_eq!(stop_target_from_register(target.to_register()), Ok(Some(target)));
        assert_eq!(stop_target_from_register(15), Err(Status::BadVector));
        assert_eq!(stop_target_from_register(0x141), Err(Status::InvalidArgument));
    }

    #[test]
    fn structures_survive_memory_and_another_version_is_refused() {
        let mut name = [0; NAME_MAX];
        name[..4].copy_from_slice(b"echo");
        let (vcpus, memory_mib, weight, starts) = (2, 64, 256, 1 << 40);
        let info =
            GuestInfo { guests: 3, state: GuestState::Failed, is_own: true, name, vcpus, memory_mib, weight, starts };
        assert_eq!(GuestInfo::from_bytes(&info.to_bytes()), Ok(info));
        assert_eq!(info.name(), "echo");
        let counters = GuestCounters { building: 1, charged: 2, interrupting: 3, exits: 4, interrupts: u64::MAX };
        assert_eq!(GuestCounters::from_bytes(&counters.to_bytes()), Ok(counters));
        let mut other = GuestInfo::request();
        assert_eq!(GuestInfo::check_request(&other), Ok(()));
        other[20] = 1;
        assert_eq!(GuestInfo::check_request(&other), Err(Status::InvalidArgument));
        other[4] = 2;
        assert_eq!(GuestInfo::check_request(&other), Err(Status::BadLayout));
        assert_eq!(GuestState::from_number(5), Err(Status::InvalidArgument));
    }
}
