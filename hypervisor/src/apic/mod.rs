//! The local APIC of this processor. The legacy interrupt controllers are masked.

use core::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use x86::{io, msr};

use crate::clock::{self, Clock, pause, poll};

/// IA32_APIC_BASE: global enable, x2APIC enable.
const BASE_EN: u64 = 1 << 11;
const BASE_EXTD: u64 = 1 << 10;
/// IA32_APIC_BASE: the address, when in xAPIC mode.
const BASE_ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Register numbers as x2APIC counts them: SDM vol. 3, table 12-6. In xAPIC mode they are 16 bytes apart.
const ID: u32 = 0x02;
const TPR: u32 = 0x08;
const EOI: u32 = 0x0b;
const SVR: u32 = 0x0f;
const VERSION: u32 = 0x03;
const LVT_CMCI: u32 = 0x2f;
const LVT_TIMER: u32 = 0x32;
const LVT_THERMAL: u32 = 0x33;
const LVT_PERFORMANCE: u32 = 0x34;
const LVT_LINT0: u32 = 0x35;
const LVT_ERROR: u32 = 0x37;
const X2APIC_MSRS: u32 = 0x800;

const ICR: u32 = 0x30;
/// Its upper half, in xAPIC mode.
const ICR_HIGH: u32 = 0x31;
/// Level assert; INIT or start-up delivery.
const ICR_ASSERT: u64 = 1 << 14;
const ICR_INIT: u64 = 1 << 14 | 0b101 << 8;
const ICR_STARTUP: u64 = 1 << 14 | 0b110 << 8;
const ICR_PENDING: u64 = 1 << 12;
/// The time limit of a delivery in xAPIC mode. The manual sets none; Linux waits as long (`safe_apic_wait_icr_idle`).
const DELIVERY: Duration = Duration::from_millis(100);

/// The pause between INIT and the first SIPI, and after each SIPI: SDM vol. 3, 10.4.4.1.
const INIT: Duration = Duration::from_millis(10);
const STARTUP: Duration = Duration::from_micros(200);

const LVT_MASKED: u64 = 1 << 16;
/// Delivery mode, and that of an SMI; vector and delivery mode: what of these entries can be written besides the mask.
const LVT_DELIVERY: u64 = 0b111 << 8;
const LVT_SMI: u64 = 0b010 << 8;
const LVT_WRITABLE: u64 = LVT_DELIVERY | 0xff;
const LVT_TSC_DEADLINE: u64 = 0b10 << 17;
const SVR_ENABLE: u64 = 1 << 8;

/// Vector of the local timer, which only wakes the processor.
pub const TIMER_VECTOR: u8 = 0xfe;
/// Vector at which a processor looks into the posted-interrupt descriptor of the guest that runs.
pub const NOTIFICATION_VECTOR: u8 = 0xf2;
/// Vector that wakes the hypervisor for a virtual processor that waits for a posted interrupt.
pub const WAKE_UP_VECTOR: u8 = 0xf1;
/// Vector at which a processor takes the interrupts that units posted for the hypervisor to inject.
pub const INJECT_VECTOR: u8 = 0xf3;
/// Vector at which interrupts end that are to be discarded: nothing else uses it, so none of them becomes one with another interrupt.
pub const DISCARD_VECTOR: u8 = 0xf4;
/// Vector of the remapping units' fault events.
pub const FAULT_VECTOR: u8 = 0xfd;
/// Vector of functions that the hypervisor keeps for itself.
pub const DEVICE_VECTOR: u8 = 0xfc;
/// Vector of spurious interrupts.
pub const SPURIOUS_VECTOR: u8 = 0xff;

/// Whether a vector is one that functions raise, by entries of the remapping table: guests', and [`DEVICE_VECTOR`].
pub const fn is_devices(vector: u8) -> bool {
    !matches!(
        vector,
        TIMER_VECTOR
            | NOTIFICATION_VECTOR
            | WAKE_UP_VECTOR
            | INJECT_VECTOR
            | DISCARD_VECTOR
            | FAULT_VECTOR
            | SPURIOUS_VECTOR
    )
}

static X2APIC: AtomicBool = AtomicBool::new(false);

/// Enables the first processor's local APIC, in the firmware's mode, with all its own sources masked. Masks the 8259s.
///
/// Returns this processor's APIC ID.
pub fn init() -> u32 {
    mask_legacy_pic();
    // SAFETY: every processor with VMX has IA32_APIC_BASE.
    let x2apic = unsafe { msr::rdmsr(msr::IA32_APIC_BASE) } & BASE_EXTD != 0;
    X2APIC.store(x2apic, Ordering::Relaxed);
    init_other()
}

/// Enables another processor's local APIC, in the first one's mode. Returns this processor's APIC ID.
pub fn init_other() -> u32 {
    set_mode(is_x2apic());
    mask_all();
    id()
}

/// Enters x2APIC mode on the first processor, if it has that mode, before any other processor is started. Returns whether all local APICs
/// are in x2APIC mode from now on.
pub fn enter_x2apic() -> bool {
    if raw_cpuid::CpuId::new().get_feature_info().is_some_and(|f| f.has_x2apic()) {
        set_mode(true);
        X2APIC.store(true, Ordering::Relaxed);
        mask_all();
    }
    is_x2apic()
}

fn set_mode(x2apic: bool) {
    // SAFETY: every processor with VMX has IA32_APIC_BASE. The mode goes from disabled or xAPIC to x2APIC, or from x2APIC by disabled to
    // xAPIC: SDM vol. 3, 12.12.5 allows these. The address stays.
    unsafe {
        let base = msr::rdmsr(msr::IA32_APIC_BASE) & !(BASE_EN | BASE_EXTD);
        if !x2apic && msr::rdmsr(msr::IA32_APIC_BASE) & BASE_EXTD != 0 {
            msr::wrmsr(msr::IA32_APIC_BASE, base);
        }
        if msr::rdmsr(msr::IA32_APIC_BASE) & BASE_EN == 0 {
            msr::wrmsr(msr::IA32_APIC_BASE, base | BASE_EN);
        }
        if x2apic {
            msr::wrmsr(msr::IA32_APIC_BASE, base | BASE_EN | BASE_EXTD);
        }
    }
}

/// Masks all sources of the local APIC itself, and enables it. Sources that the firmware uses as an SMI, of heat as a rule, stay.
fn mask_all() {
    write(TPR, 0);
    for lvt in (LVT_LINT0..=LVT_ERROR).chain([LVT_TIMER]) {
        write(lvt, LVT_MASKED);
    }
    // SDM vol. 3, 12.4.8: the number of entries, less one, says whether there are those of later processors.
    let last = read(VERSION) >> 16 & 0xff;
    for (lvt, _) in [(LVT_PERFORMANCE, 4), (LVT_THERMAL, 5), (LVT_CMCI, 6)].into_iter().filter(|(_, at)| last >= *at) {
        let entry = read(lvt);
        if entry & LVT_DELIVERY != LVT_SMI {
            write(lvt, entry & LVT_WRITABLE | LVT_MASKED);
        }
    }
    write(SVR, SVR_ENABLE | u64::from(SPURIOUS_VECTOR));
}

/// This processor's APIC ID.
fn id() -> u32 {
    let id = read(ID);
    (if is_x2apic() { id } else { id >> 24 }) as u32
}

/// Starts the processor with this APIC ID at the page `page` (its number, below 256): INIT, then SIPI twice (SDM vol. 3, 10.4.4), with
/// the manual's pauses by `clock`. Returns whether the local APIC has sent all of them.
///
/// # Safety
/// The page holds code for a processor in real mode that keeps to memory of its own, until that processor has left it.
pub unsafe fn start(apic_id: u32, page: u8, clock: &dyn Clock) -> bool {
    let mut sent = send(apic_id, ICR_INIT);
    pause(clock, INIT);
    for _ in 0..2 {
        sent &= send(apic_id, ICR_STARTUP | u64::from(page));
        pause(clock, STARTUP);
    }
    sent
}

/// Whether the local APICs are in x2APIC mode: only then do APIC IDs above 254 exist.
pub fn is_x2apic() -> bool {
    X2APIC.load(Ordering::Relaxed)
}

/// Sends an interrupt to a processor. If the local APIC never sends it, it is lost: that processor does not exist, and nothing waits for
/// it.
pub fn notify(apic_id: u32, vector: u8) {
    let _ = send(apic_id, ICR_ASSERT | u64::from(vector));
}

/// Sends an interrupt command to one processor. Returns whether it has left this one: in x2APIC mode there is nothing to wait for
/// (SDM vol. 3, 12.12.9).
#[must_use]
fn send(apic_id: u32, command: u64) -> bool {
    if X2APIC.load(Ordering::Relaxed) {
        write(ICR, u64::from(apic_id) << 32 | command);
        return true;
    }
    write(ICR_HIGH, u64::from(apic_id) << 24);
    write(ICR, command);
    poll(clock::current(), DELIVERY, || read(ICR) & ICR_PENDING == 0)
}

/// Sends a non-maskable interrupt to a processor.
pub fn send_nmi(apic_id: u32) {
    const NMI: u64 = ICR_ASSERT | 0b100 << 8;
    let _ = send(apic_id, NMI);
}

/// Holds the interrupts of guests' devices back in this processor's local APIC, or lets them come: their vectors are below 0xf0, the hypervisor's
/// own are not (task priority: SDM vol. 3, 12.8.3.1). Those that are held back and have the same vector become one.
pub fn hold_devices(holds: bool) {
    const BELOW_0XF0: u64 = 0xe0;
    write(TPR, if holds { BELOW_0XF0 } else { 0 });
}

/// Ends the interrupt in service.
pub fn eoi() {
    write(EOI, 0);
}

/// Whether the local APIC has a timer that goes by the TSC.
pub fn has_tsc_deadline() -> bool {
    raw_cpuid::CpuId::new().get_feature_info().is_some_and(|f| f.has_tsc_deadline())
}

/// Lets the timer fire when the TSC reaches `deadline`. Needs [`has_tsc_deadline`].
pub fn arm_timer(deadline: u64) {
    write(LVT_TIMER, LVT_TSC_DEADLINE | u64::from(TIMER_VECTOR));
    // SAFETY: the MSR exists (`has_tsc_deadline`), takes every value, and its interrupt has a gate. In xAPIC mode the fence
    // orders it behind the memory-mapped write above (SDM vol. 3, 12.5.4.1).
    unsafe {
        core::arch::asm!("mfence", options(nostack, preserves_flags));
        msr::wrmsr(msr::IA32_TSC_DEADLINE, deadline);
    }
}

/// Stops the timer.
pub fn disarm_timer() {
    write(LVT_TIMER, LVT_MASKED);
}

fn write(register: u32, value: u64) {
    if X2APIC.load(Ordering::Relaxed) {
        // SAFETY: one of the registers above, with a value that has no reserved bits; none of them endangers memory.
        unsafe { msr::wrmsr(X2APIC_MSRS + register, value) }
    } else {
        // SAFETY: in xAPIC mode the registers lie at the base address, which is identity-mapped and uncached.
        unsafe { core::ptr::write_volatile((xapic_base() + u64::from(register) * 16) as *mut u32, value as u32) }
    }
}

fn read(register: u32) -> u64 {
    if X2APIC.load(Ordering::Relaxed) {
        // SAFETY: as in `write`; reading has no side effect.
        unsafe { msr::rdmsr(X2APIC_MSRS + register) }
    } else {
        // SAFETY: as in `write`.
        unsafe { core::ptr::read_volatile((xapic_base() + u64::from(register) * 16) as *const u32) }.into()
    }
}

/// Where the registers lie in xAPIC mode: one page, to be mapped uncached before [`init`].
pub fn xapic_base() -> u64 {
    // SAFETY: every processor with VMX has this MSR.
    unsafe { msr::rdmsr(msr::IA32_APIC_BASE) & BASE_ADDRESS }
}

/// Masks all lines of both 8259s: nothing here uses them, and a stray line must not end a guest.
fn mask_legacy_pic() {
    // SAFETY: the mask registers of the interrupt controllers, which nobody else drives.
    unsafe {
        io::outb(0x21, 0xff);
        io::outb(0xa1, 0xff);
    }
}
