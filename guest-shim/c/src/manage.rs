//! The life of guests: being asked to stop, and managing all of them.

use core::ffi::{c_char, c_void};

use guest_shim::hcall_abi::{GuestCounters, GuestInfo, GuestNumber, GuestState, Target};

use crate::decide::ImsInterface;
use crate::device::{calls, page};
use crate::status::result;

/// State of a guest: it does not run, and has ended as it should, or was never started.
pub const IMS_GUEST_STOPPED: u16 = 0;
/// State of a guest: it is being made.
pub const IMS_GUEST_STARTING: u16 = 1;
/// State of a guest: it runs.
pub const IMS_GUEST_RUNNING: u16 = 2;
/// State of a guest: a manager has asked the guest to stop, or its resources are being released.
pub const IMS_GUEST_STOPPING: u16 = 3;
/// State of a guest: it does not run, because it ended otherwise than with exit code 0, or could not be made.
pub const IMS_GUEST_FAILED: u16 = 4;

/// What is known of a guest.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImsGuestInfo {
    /// How often it was started.
    pub starts: u64,
    /// Its virtual processors.
    pub vcpus: u32,
    /// MiB of memory.
    pub memory_mib: u32,
    /// Its weight for the scheduler.
    pub weight: u32,
    /// How many guests there are.
    pub guests: u16,
    /// `IMS_GUEST_…`.
    pub state: u16,
    /// Whether it is the guest that asks.
    pub is_own: bool,
    /// Its name, with a zero behind it.
    pub name: [c_char; 17],
}

impl From<GuestInfo> for ImsGuestInfo {
    fn from(info: GuestInfo) -> Self {
        let mut name = [0; 17];
        name.iter_mut().zip(info.name).for_each(|(place, byte)| *place = byte as c_char);
        let GuestInfo { starts, vcpus, memory_mib, weight, guests, state, is_own, .. } = info;
        let state = match state {
            GuestState::Stopped => IMS_GUEST_STOPPED,
            GuestState::Starting => IMS_GUEST_STARTING,
            GuestState::Running => IMS_GUEST_RUNNING,
            GuestState::Stopping => IMS_GUEST_STOPPING,
            GuestState::Failed => IMS_GUEST_FAILED,
        };
        Self { starts, vcpus, memory_mib, weight, guests, state, is_own, name }
    }
}

/// A guest's figures. All but the first are of the life that it has now, or had last.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImsGuestCounters {
    /// Ticks of the TSC that making and releasing it took, in all its lives.
    pub building: u64,
    /// Ticks of processors that were charged to it.
    pub charged: u64,
    /// Ticks of these that processors worked for it beside its turns.
    pub interrupting: u64,
    /// VM exits.
    pub exits: u64,
    /// Devices' interrupts that the hypervisor has given to it.
    pub interrupts: u64,
}

impl From<GuestCounters> for ImsGuestCounters {
    fn from(GuestCounters { building, charged, interrupting, exits, interrupts }: GuestCounters) -> Self {
        Self { building, charged, interrupting, exits, interrupts }
    }
}

/// Has the interrupt `vector` of the virtual processor with x2APIC ID `apic_id` ask this guest to stop: it ends by itself soon after that. With
/// vector 0 no interrupt does.
///
/// # Safety
/// As for [`ims_enable`](crate::ims_enable).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ims_set_stop_request(interface: *const ImsInterface, apic_id: u32, vector: u8) -> i32 {
    let target = (vector != 0).then(|| Target::new(apic_id, vector)).transpose();
    // SAFETY: the caller's promise.
    result(target.and_then(|target| unsafe { calls(interface) }.set_stop_request(target)))
}

/// Writes what is known of a guest, counted from 0, to `info`. `-IMS_INVALID_ARGUMENT` beyond the last one; `-IMS_UNKNOWN_CALL` for a guest
/// that does not manage. `page` is a page of ordinary memory at the physical address `page_physical`.
///
/// # Safety
/// As for [`ims_enable`](crate::ims_enable); nobody else uses the page during the call, and `info` points to room for one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ims_query_guest(
    interface: *const ImsInterface,
    guest: u16,
    page: *mut c_void,
    page_physical: u64,
    info: *mut ImsGuestInfo,
) -> i32 {
    // SAFETY: the caller's promise.
    let (calls, page) = unsafe { (calls(interface), self::page(page, page_physical)) };
    let found = page.and_then(|mut page| calls.query_guest(GuestNumber(guest), &mut page));
    // SAFETY: the caller's promise.
    result(found.map(|found| unsafe { info.write(found.into()) }))
}

/// Starts a guest. One that runs goes on.
///
/// # Safety
/// As for [`ims_enable`](crate::ims_enable).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ims_start_guest(interface: *const ImsInterface, guest: u16) -> i32 {
    // SAFETY: the caller's promise.
    result(unsafe { calls(interface) }.start_guest(GuestNumber(guest)))
}

/// Asks a guest to stop, and ends it after so many milliseconds; at once if they are 0.
///
/// # Safety
/// As for [`ims_enable`](crate::ims_enable).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ims_stop_guest(interface: *const ImsInterface, guest: u16, milliseconds: u64) -> i32 {
    // SAFETY: the caller's promise.
    result(unsafe { calls(interface) }.stop_guest(GuestNumber(guest), milliseconds))
}

/// Stops a guest as [`ims_stop_guest`] does, and starts it again.
///
/// # Safety
/// As for [`ims_enable`](crate::ims_enable).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ims_restart_guest(interface: *const ImsInterface, guest: u16, milliseconds: u64) -> i32 {
    // SAFETY: the caller's promise.
    result(unsafe { calls(interface) }.restart_guest(GuestNumber(guest), milliseconds))
}

/// Writes a guest's figures to `counters`. `page` is as for [`ims_query_guest`].
///
/// # Safety
/// As for [`ims_enable`](crate::ims_enable); nobody else uses the page during the call, and `counters` points to room for them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ims_guest_counters(
    interface: *const ImsInterface,
    guest: u16,
    page: *mut c_void,
    page_physical: u64,
    counters: *mut ImsGuestCounters,
) -> i32 {
    // SAFETY: the caller's promise.
    let (calls, page) = unsafe { (calls(interface), self::page(page, page_physical)) };
    let found = page.and_then(|mut page| calls.guest_counters(GuestNumber(guest), &mut page));
    // SAFETY: the caller's promise.
    result(found.map(|found| unsafe { counters.write(found.into()) }))
}
