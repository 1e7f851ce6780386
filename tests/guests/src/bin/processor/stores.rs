//! Traps of instructions that access a message store.

use core::arch::asm;

use guests::bare::assigned::AssignedDsa;
use guests::may_fault;

use crate::{Checks, debug};

/// #DB.
const DB: u8 = 1;
/// The slot that is written, masked.
const SLOT: u64 = 290;
/// DR7: a global breakpoint of DR0's on writes, or on reads and writes, of 4 bytes.
const WRITE_0: u64 = 0xd_0402;
const ACCESS_0: u64 = 0xf_0402;

/// All of them.
pub fn all(checks: &mut Checks, device: &AssignedDsa) {
    let slot = device.ims_address() + SLOT * 16;
    for n in [0, 4, 8] {
        // SAFETY: a slot of the device's store.
        unsafe { ((slot + n) as *mut u32).write_volatile(0) };
    }
    checks.check("REP STOSD to a store traps behind each element", stepped_string(slot) == (Some(DB), 2, 4));
    for (name, dr7, store, hit) in [
        ("a write to a store hits its breakpoint", WRITE_0, true, true),
        ("a read of a store does not hit a breakpoint on writes", WRITE_0, false, false),
        ("a read of a store hits its breakpoint", ACCESS_0, false, true),
        ("a write beside it does not hit a breakpoint", WRITE_0, true, false),
    ] {
        let at = if hit || !store { slot } else { slot + 4 };
        // The second time the instruction is one that was executed before.
        for _ in 0..2 {
            checks.check(name, access(at, slot, dr7, store) == (hit.then_some(DB), u64::from(hit)));
        }
    }
    checks.check("a breakpoint stops REP STOSD behind its element", watched_string(slot) == (Some(DB), 1, 8, 1));
    checks.check("OUT hits a breakpoint on its port", watched_port() == (Some(DB), 1));
}

/// REP STOSD of 3 dwords with a single step: what came, elements that are left, and how far RDI came.
fn stepped_string(slot: u64) -> (Option<u8>, u64, u64) {
    let (mut left, mut at) = (3u64, slot);
    // SAFETY: a slot of the device's store; the handler ends the single step.
    let caught = unsafe {
        may_fault!(
            ["pushfq", "or qword ptr [rsp], 0x100", "popfq", "rep stosd", "nop"],
            inout("rcx") left,
            inout("rdi") at,
            in("eax") 0u32,
        )
    };
    (caught, left, at - slot)
}

/// Four bytes of a store are written, or read, with a breakpoint on `watched`: what came, and what DR6 says of breakpoints.
fn access(at: u64, watched: u64, dr7: u64, write: bool) -> (Option<u8>, u64) {
    arm(watched, dr7);
    // SAFETY: a slot of the device's store.
    let caught = unsafe {
        if write {
            may_fault!(["mov [{at}], {value:e}", "nop"], at = in(reg) at, value = in(reg) 0u32)
        } else {
            may_fault!(["mov {value:e}, [{at}]", "nop"], at = in(reg) at, value = out(reg) _)
        }
    };
    (caught, hits())
}

/// REP STOSD of 3 dwords with a breakpoint on the second: what came, what is left, how far it came, and DR6's breakpoints.
fn watched_string(slot: u64) -> (Option<u8>, u64, u64, u64) {
    let (mut left, mut at) = (3u64, slot);
    arm(slot + 4, WRITE_0);
    // SAFETY: a slot of the device's store.
    let caught = unsafe { may_fault!(["rep stosd", "nop"], inout("rcx") left, inout("rdi") at, in("eax") 0u32) };
    (caught, left, at - slot, hits())
}

/// OUT with a breakpoint on its port, which CR4.DE lets there be.
fn watched_port() -> (Option<u8>, u64) {
    const DE: u64 = 1 << 3;
    const PORT_0: u64 = 0x2_0402;
    let cr4: u64;
    // SAFETY: with DE, DR4 and DR5 are not there, which nobody uses.
    unsafe {
        asm!("mov {0}, cr4", "or {0}, {de}", "mov cr4, {0}", out(reg) cr4, de = const DE, options(nomem, nostack))
    };
    arm(0x80, PORT_0);
    // SAFETY: nothing is at the port.
    let caught = unsafe { may_fault!(["out dx, al", "nop"], in("dx") 0x80u16, in("al") 0u8) };
    let hits = hits();
    // SAFETY: as above.
    unsafe { asm!("mov cr4, {0}", in(reg) cr4 & !DE, options(nomem, nostack)) };
    (caught, hits)
}

fn arm(address: u64, dr7: u64) {
    debug::write_dr6(0xffff_0ff0);
    // SAFETY: what it leads to is expected.
    unsafe {
        asm!("mov dr0, {}", "mov dr7, {}", in(reg) address, in(reg) dr7, options(nomem, nostack, preserves_flags))
    };
}

/// Takes the breakpoint away and tells which were hit.
fn hits() -> u64 {
    debug::disarm();
    debug::dr6() & 0xf
}

/// Lets AVX be used where the processor has it: CR4.OSXSAVE and XCR0 (SDM vol. 1, 14.3). Returns whether it is.
pub fn enable_avx() -> bool {
    const XSAVE_AVX: u32 = 1 << 26 | 1 << 28;
    if core::arch::x86_64::__cpuid(1).ecx & XSAVE_AVX != XSAVE_AVX {
        return false;
    }
    // SAFETY: the processor has XSAVE and AVX, and nothing in the program depends on XCR0.
    unsafe {
        asm!(
            "mov {r}, cr4",
            "or {r}, 0x40000",
            "mov cr4, {r}",
            "xsetbv",
            r = out(reg) _,
            in("ecx") 0,
            in("eax") 7,
            in("edx") 0,
            options(nomem, nostack),
        );
    }
    true
}
