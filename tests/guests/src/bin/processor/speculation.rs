//! The control of speculation, where CPUID names it: what is written to IA32_SPEC_CTRL stays there, whoever runs meanwhile, and the commands
//! are taken.

use core::arch::x86_64::{__cpuid, __cpuid_count, _rdtsc};

use guests::may_fault;

use crate::Checks;

const SPEC_CTRL: u32 = 0x48;
const PRED_CMD: u32 = 0x49;
const FLUSH_CMD: u32 = 0x10b;
const ARCH_CAPABILITIES: u32 = 0x10a;
const GENERAL_PROTECTION: Option<u8> = Some(13);

/// IBRS and IBPB, STIBP, L1D_FLUSH, ARCH_CAPABILITIES, SSBD.
const IBRS_IBPB: u32 = 1 << 26;
const STIBP: u32 = 1 << 27;
const L1D_FLUSH: u32 = 1 << 28;
const HAS_ARCH_CAPABILITIES: u32 = 1 << 29;
const SSBD: u32 = 1 << 31;

/// Ticks for which a value has to stay: several turns of another guest.
const LONG: u64 = 4_000_000;

fn read(msr: u32) -> Result<u64, u8> {
    let (low, high): (u32, u32);
    // SAFETY: reading it changes nothing.
    match unsafe { may_fault!(["rdmsr"], in("ecx") msr, out("eax") low, out("edx") high) } {
        None => Ok(u64::from(high) << 32 | u64::from(low)),
        Some(vector) => Err(vector),
    }
}

fn write(msr: u32, value: u64) -> Option<u8> {
    // SAFETY: the registers that are written here change how fast the program runs, and no result.
    unsafe { may_fault!(["wrmsr"], in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32) }
}

/// Tries all of them.
pub fn all(checks: &mut Checks) {
    let named = __cpuid_count(7, 0).edx;
    if named & IBRS_IBPB == 0 {
        return;
    }
    checks.check("IA32_SPEC_CTRL is 0 at first", read(SPEC_CTRL) == Ok(0));
    let bits =
        [(STIBP, 2), (SSBD, 4)].iter().filter(|(bit, _)| named & bit != 0).fold(1, |all, (_, value)| all | value);
    // The first two are among the bits that a hypervisor may have set itself.
    for value in [1, 0, bits, 4 & bits, 0, bits] {
        checks.check("IA32_SPEC_CTRL takes its bits", write(SPEC_CTRL, value).is_none());
        checks.check("IA32_SPEC_CTRL keeps its value", stays(value, LONG / 8));
    }
    checks.check("IA32_SPEC_CTRL keeps its value while others run", stays(bits, LONG));
    checks.check("IA32_SPEC_CTRL refuses a reserved bit", write(SPEC_CTRL, 1 << 63) == GENERAL_PROTECTION);
    checks.check("a refused write changes nothing", read(SPEC_CTRL) == Ok(bits));
    checks.check("IA32_PRED_CMD takes IBPB", write(PRED_CMD, 1).is_none());
    checks.check("IA32_PRED_CMD cannot be read", read(PRED_CMD) == Err(13));
    if named & L1D_FLUSH != 0 {
        checks.check("IA32_FLUSH_CMD takes the flush", write(FLUSH_CMD, 1).is_none());
    }
    if named & HAS_ARCH_CAPABILITIES != 0 {
        checks.check("IA32_ARCH_CAPABILITIES can be read", read(ARCH_CAPABILITIES).is_ok());
        checks.check("IA32_ARCH_CAPABILITIES cannot be written", write(ARCH_CAPABILITIES, 0) == GENERAL_PROTECTION);
    }
    write(SPEC_CTRL, 0);
}

/// Whether IA32_SPEC_CTRL has this value for so many ticks, with an exit at each look.
fn stays(value: u64, ticks: u64) -> bool {
    // SAFETY: RDTSC reads a counter and nothing else.
    let now = || unsafe { _rdtsc() };
    let begin = now();
    while now() - begin < ticks {
        __cpuid(0);
        if read(SPEC_CTRL) != Ok(value) {
            return false;
        }
    }
    true
}
