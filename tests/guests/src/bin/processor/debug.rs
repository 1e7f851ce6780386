//! Debug exceptions, and the flags that faults leave on the stack (SDM vol. 3, chapter 18).

use core::arch::asm;

use guests::bare::faults;
use guests::may_fault;

use crate::Checks;

/// #DB, #UD, #GP.
const DB: u8 = 1;
const UD: u8 = 6;
const GP: u8 = 13;
const RF: u64 = 1 << 16;

/// DR6: a single step, an access to a debug register; the bits that read as 1.
const BS: u64 = 1 << 14;
const BD: u64 = 1 << 13;
const DR6_FIXED: u64 = 0xffff_0ff0;
/// DR7: a global breakpoint of DR0's on execution, and the bit that is always 1.
const EXECUTE_0: u64 = 0x402;
const NONE: u64 = 0x400;

/// All of them.
pub fn all(checks: &mut Checks) {
    checks.check("the single step behind HLT traps", steps_behind_hlt());
    checks.check("BD stays in DR6", dr6_after_a_step(BD) == DR6_FIXED | BD | BS);
    checks.check("bits of breakpoints do not stay in DR6", dr6_after_a_step(3) == DR6_FIXED | BS);
    faults_push_rf(checks);
    checks.check("RF ends with an instruction that exits", breakpoint_behind_resumed_in());
}

/// HLT with interrupts off, which only its own trap ends.
fn steps_behind_hlt() -> bool {
    let mut behind = 0u64;
    // SAFETY: the handler ends the single step.
    let caught = unsafe {
        may_fault!(
            ["cli", "pushfq", "or qword ptr [rsp], 0x100", "popfq", "hlt", "inc {behind}", "inc {behind}"],
            behind = inout(reg) behind,
        )
    };
    caught == Some(DB) && behind == 0
}

/// What DR6 says after a single step, when it said `before`.
fn dr6_after_a_step(before: u64) -> u64 {
    write_dr6(DR6_FIXED | before);
    // SAFETY: the handler ends the single step.
    let _ = unsafe { may_fault!(["pushfq", "or qword ptr [rsp], 0x100", "popfq", "nop", "nop"]) };
    let after = dr6();
    write_dr6(DR6_FIXED);
    after
}

pub fn dr6() -> u64 {
    let value: u64;
    // SAFETY: reading it changes nothing.
    unsafe { asm!("mov {}, dr6", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

pub fn write_dr6(value: u64) {
    // SAFETY: it only reports.
    unsafe { asm!("mov dr6, {}", in(reg) value, options(nomem, nostack, preserves_flags)) };
}

/// Faults do, whoever raises them; traps and software exceptions do not (SDM vol. 3, 18.3.1.1).
fn faults_push_rf(checks: &mut Checks) {
    // SAFETY: each instruction faults, or traps, and changes nothing.
    unsafe {
        let undefined = may_fault!(["ud2"]);
        checks.check("UD2 pushes RF", undefined == Some(UD) && faults::rflags() & RF != 0);
        let absent = may_fault!(["rdmsr"], in("ecx") 0x4000_0000, out("eax") _, out("edx") _);
        checks.check("RDMSR of no register pushes RF", absent == Some(GP) && faults::rflags() & RF != 0);
        let not_offered = may_fault!(["rdpmc"], in("ecx") 0, out("eax") _, out("edx") _);
        checks.check(
            "an instruction that is not offered pushes RF",
            not_offered == Some(UD) && faults::rflags() & RF != 0,
        );
        let breakpoint = may_fault!(["int3"]);
        checks.check("INT3 pushes no RF", breakpoint == Some(3) && faults::rflags() & RF == 0);
        let step = may_fault!(["pushfq", "or qword ptr [rsp], 0x100", "popfq", "nop", "nop"]);
        checks.check("a single step pushes no RF", step == Some(DB) && faults::rflags() & RF == 0);
    }
}

/// IRET with RF to an IN, which exits; RF is for that instruction only, so that a breakpoint on the next one comes.
fn breakpoint_behind_resumed_in() -> bool {
    let mut behind = 0u64;
    // SAFETY: the stack is as before when IRET has taken its frame; the breakpoint is taken away below.
    let caught = unsafe {
        may_fault!(
            [
                "lea {scratch}, [rip + 8f]",
                "mov dr0, {scratch}",
                "mov dr7, {armed}",
                "mov {scratch}, rsp",
                "push 0x18",
                "push {scratch}",
                "pushfq",
                "or qword ptr [rsp], 0x10000",
                "push 0x10",
                "lea {scratch}, [rip + 7f]",
                "push {scratch}",
                "iretq",
                "7:",
                "in al, dx",
                "8:",
                "inc {behind}",
            ],
            scratch = out(reg) _,
            armed = in(reg) EXECUTE_0,
            behind = inout(reg) behind,
            in("dx") 0x80u16,
            out("al") _,
        )
    };
    disarm();
    caught == Some(DB) && behind == 0
}

/// No breakpoint is armed from now on.
pub fn disarm() {
    // SAFETY: as after reset.
    unsafe { asm!("mov dr7, {}", in(reg) NONE, options(nomem, nostack, preserves_flags)) };
}
