//! The local APIC in x2APIC mode (SDM vol. 3, 12.12), which the guest finds enabled.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

use guest_shim::hcall_abi::Status;
use guest_shim::{Hypercalls, PvEoi, Transport};

use super::{
    msr::{rdmsr, wrmsr},
    this,
};

const ID: u32 = 0x802;
const TPR: u32 = 0x808;
const EOI: u32 = 0x80b;
const IRR: u32 = 0x820;
const SVR: u32 = 0x80f;
const ICR: u32 = 0x830;
const LVT_TIMER: u32 = 0x832;
const TSC_DEADLINE: u32 = 0x6e0;

const SVR_ENABLED: u64 = 1 << 8;
const LVT_TSC_DEADLINE: u64 = 2 << 17;

/// Interrupt commands (SDM vol. 3, 12.6.1): delivery modes and shorthands, to be joined with a vector.
pub const FIXED: u64 = 1 << 14;
/// To one of the named processors.
pub const LOWEST_PRIORITY: u64 = FIXED | 1 << 8;
/// Non-maskable.
pub const NMI: u64 = FIXED | 4 << 8;
/// Resets a processor.
pub const INIT: u64 = FIXED | 5 << 8;
/// Starts one at the page in the vector's place.
pub const START_UP: u64 = FIXED | 6 << 8;
/// The destination is a logical one.
pub const LOGICAL: u64 = 1 << 11;
/// To the sender, whatever the destination.
pub const TO_SELF: u64 = 1 << 18;
/// To all.
pub const TO_ALL: u64 = 2 << 18;
/// To all but the sender.
pub const TO_OTHERS: u64 = 3 << 18;

/// Where messages to local APICs are written (SDM vol. 3, 12.11.1).
pub const MESSAGES: u32 = 0xfee0_0000;

/// The address of a message to the processor with this APIC ID, below 255.
pub const fn message_address(apic_id: u32) -> u32 {
    MESSAGES | apic_id << 12
}

/// By which processors end interrupts, once one of them does.
static PV_EOI: [PvEoi; this::MOST] = [const { PvEoi::new() }; this::MOST];
static HAS_PV_EOI: AtomicBool = AtomicBool::new(false);

/// The vector of spurious interrupts, which get no EOI.
pub const SPURIOUS_VECTOR: u8 = 0xff;
/// The timer's vector.
pub const TIMER_VECTOR: u8 = 0xf0;

/// Lets the APIC take interrupts of every priority, and sets the timer up.
pub fn enable() {
    // SAFETY: the x2APIC is enabled; the vectors have handlers.
    unsafe {
        wrmsr(SVR, SVR_ENABLED | u64::from(SPURIOUS_VECTOR));
        wrmsr(TPR, 0);
        wrmsr(LVT_TIMER, LVT_TSC_DEADLINE | u64::from(TIMER_VECTOR));
    }
}

/// Lets interrupts in only whose vectors' upper halves are above that of `priority` (SDM vol. 3, 12.8.3.1).
pub fn set_priority(priority: u8) {
    // SAFETY: the x2APIC is enabled.
    unsafe { wrmsr(TPR, priority.into()) }
}

/// This processor's x2APIC ID.
pub fn id() -> u32 {
    // SAFETY: the x2APIC is enabled.
    unsafe { rdmsr(ID) as u32 }
}

/// Sends an interrupt command.
pub fn send(destination: u32, command: u64) {
    // SAFETY: the x2APIC is enabled, and every vector has a handler.
    unsafe { wrmsr(ICR, u64::from(destination) << 32 | command) }
}

/// Whether an interrupt is requested that has not been delivered yet.
pub fn is_requested() -> bool {
    // SAFETY: the x2APIC is enabled.
    (0..8).any(|n| unsafe { rdmsr(IRR + n) } != 0)
}

/// Ends the interrupt in service.
pub fn end_of_interrupt() {
    // SAFETY: the x2APIC is enabled.
    let write = || unsafe { wrmsr(EOI, 0) };
    if HAS_PV_EOI.load(Relaxed) { PV_EOI[this::number()].end(write) } else { write() }
}

/// INIT has taken from this processor what it ended interrupts by.
pub fn forget_pv_eoi() {
    PV_EOI[this::number()].end(|| ());
}

/// Ends this processor's interrupts without exits where it can be, from now on. `smp::install` has run.
pub fn use_pv_eoi<T: Transport>(calls: &Hypercalls<T>) -> Result<(), Status> {
    calls.set_pv_eoi((&raw const PV_EOI[this::number()]).expose_provenance() as u64)?;
    HAS_PV_EOI.store(true, Relaxed);
    Ok(())
}

/// Ends this processor's interrupts by exits again, like all the others', and lets `work` go on while the bytes that they were ended by hold
/// something else. Whether they still hold it at the end.
pub fn give_up_pv_eoi<T: Transport>(calls: &Hypercalls<T>, work: impl FnOnce()) -> Result<bool, Status> {
    const MINE: u32 = 0x5555_5555;
    calls.clear_pv_eoi()?;
    HAS_PV_EOI.store(false, Relaxed);
    // SAFETY: `PvEoi` is an `AtomicU32` under another name.
    let bytes = unsafe { &*(&raw const PV_EOI[this::number()]).cast::<AtomicU32>() };
    bytes.store(MINE, Relaxed);
    work();
    Ok(bytes.swap(0, Relaxed) == MINE)
}

/// Lets the timer fire when the TSC reaches `deadline`; 0 stops it.
pub fn set_deadline(deadline: u64) {
    // SAFETY: the timer's vector has a handler.
    unsafe { wrmsr(TSC_DEADLINE, deadline) }
}

/// The time-stamp counter.
pub fn tsc() -> u64 {
    // SAFETY: reading it changes nothing.
    unsafe { core::arch::x86_64::_rdtsc() }
}
