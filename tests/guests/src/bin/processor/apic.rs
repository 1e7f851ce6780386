//! The local APIC.

use guests::may_fault;

use crate::Checks;

const ESR: u32 = 0x828;
const SELF_IPI: u32 = 0x83f;
/// ESR: send illegal vector (SDM vol. 3, figure 12-9).
const SEND_ILLEGAL: u32 = 1 << 5;

/// All of them.
pub fn all(checks: &mut Checks) {
    for vector in 0..16 {
        let _ = write(ESR, 0);
        checks.check("a self-IPI below 16 does not fault", write(SELF_IPI, vector).is_none());
        checks.check("the error status can be written", write(ESR, 0).is_none());
        checks.check("a self-IPI below 16 is an illegal vector", read(ESR) == Some(SEND_ILLEGAL));
    }
}

fn write(register: u32, value: u32) -> Option<u8> {
    // SAFETY: the registers above, none of which changes what the program rests on.
    unsafe { may_fault!(["wrmsr"], in("ecx") register, in("eax") value, in("edx") 0) }
}

fn read(register: u32) -> Option<u32> {
    let value: u32;
    // SAFETY: reading it changes nothing.
    let fault = unsafe { may_fault!(["rdmsr"], in("ecx") register, inout("eax") 0 => value, out("edx") _) };
    fault.is_none().then_some(value)
}
