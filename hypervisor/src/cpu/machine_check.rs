//! Machine checks: SDM vol. 3, chapter 16 ("Machine-Check Architecture").
//!
//! The hardware reports an error that it could not correct. If the error is that of a guest's access and the processor's own state is
//! intact, only that guest ends. If the error hit the hypervisor, or the state is not intact, everything stops.

use core::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use x86::msr::{rdmsr, wrmsr};

use crate::cpu;

/// IA32_MCG_CAP, IA32_MCG_STATUS, IA32_MCG_CTL; and IA32_MC0_CTL, after which come STATUS, ADDR and MISC, and the next bank's.
const MCG_CAP: u32 = 0x179;
const MCG_STATUS: u32 = 0x17a;
const MCG_CTL: u32 = 0x17b;
const MC0_CTL: u32 = 0x400;

/// IA32_MCG_CAP: number of banks; IA32_MCG_CTL exists; software recovery is possible.
const CAP_BANKS: u64 = 0xff;
const CAP_CTL: u64 = 1 << 8;
const CAP_SER: u64 = 1 << 24;

/// IA32_MCG_STATUS: the program can be restarted at RIP; the error is of the instruction at RIP.
const RIPV: u64 = 1 << 0;
const EIPV: u64 = 1 << 1;

/// IA32_MCi_STATUS.
const VAL: u64 = 1 << 63;
const OVER: u64 = 1 << 62;
const UC: u64 = 1 << 61;
const EN: u64 = 1 << 60;
const ADDRV: u64 = 1 << 58;
const PCC: u64 = 1 << 57;
/// With software recovery: the error was signalled as a machine check; software has to act at once.
const S: u64 = 1 << 56;
const AR: u64 = 1 << 55;

/// The most banks that are read. No processor has more than 32 today.
const MOST_BANKS: u8 = 64;

/// Machine checks so far, on all processors.
static COUNT: AtomicU64 = AtomicU64::new(0);

/// Number of machine checks so far, on all processors.
pub fn count() -> u64 {
    COUNT.load(Ordering::Relaxed)
}

/// The interrupted code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupted {
    /// A guest.
    Guest,
    /// The hypervisor, including VM entry.
    Hypervisor,
}

/// The severity of a machine check, in ascending order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Everything continues: the error does not concern the interrupted code.
    GoesOn,
    /// The guest ends.
    GuestEnds,
    /// Nothing continues.
    Fatal,
}

/// Judges a machine check by IA32_MCG_CAP, IA32_MCG_STATUS and the banks' IA32_MCi_STATUS (SDM vol. 3, 16.6 and 16.9).
pub fn judge(cap: u64, mcg: u64, banks: impl Iterator<Item = u64>, interrupted: Interrupted) -> Severity {
    let worst = match interrupted {
        Interrupted::Guest => Severity::GuestEnds,
        Interrupted::Hypervisor => Severity::Fatal,
    };
    let (mut severity, mut found) = (Severity::GoesOn, false);
    for status in banks.filter(|status| status & VAL != 0 && status & UC != 0) {
        found = true;
        severity = severity.max(judge_bank(cap & CAP_SER != 0, mcg, status, worst));
    }
    // Machine checks are told to all processors: one that has no error of its own can go on. One that cannot, cannot say why either.
    match mcg & RIPV {
        0 if !found => worst,
        0 => severity.max(worst),
        _ => severity,
    }
}

fn judge_bank(recovery: bool, mcg: u64, status: u64, worst: Severity) -> Severity {
    let has = |bit| status & bit != 0;
    if has(PCC) || has(OVER) {
        // The processor's context is corrupt, or the bank has forgotten an error that may have been worse.
        return Severity::Fatal;
    }
    if !recovery {
        return if has(EN) { worst } else { Severity::GoesOn };
    }
    match (has(S), has(AR)) {
        // Action required: of the processor whose instruction it is.
        (true, true) if mcg & (RIPV | EIPV) == RIPV => Severity::GoesOn,
        (true, true) => worst,
        // Action optional, or none: memory that nobody has read yet.
        (true, false) | (false, false) => Severity::GoesOn,
        (false, true) => Severity::Fatal,
    }
}

/// A bank that holds an error.
#[derive(Clone, Copy, Debug)]
pub struct Bank {
    number: u8,
    status: u64,
    address: Option<u64>,
}

impl fmt::Display for Bank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bank {} status {:#x}", self.number, self.status)?;
        match self.address {
            Some(address) => write!(f, " address {address:#x}"),
            None => Ok(()),
        }
    }
}

/// A machine check, as the banks describe it.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// The severity.
    pub severity: Severity,
    mcg: u64,
    /// The bank with the worst error.
    bank: Option<Bank>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "machine check: IA32_MCG_STATUS {:#x}, ", self.mcg)?;
        match self.bank {
            Some(bank) => bank.fmt(f),
            None => f.write_str("no bank holds an error"),
        }
    }
}

/// Whether the processor has the architecture's registers: CPUID.1:EDX.14.
fn has_banks() -> bool {
    const MCA: u32 = 1 << 14;
    core::arch::x86_64::__cpuid(1).edx & MCA != 0
}

/// Reads the banks, judges the error and, if something continues, clears the status for the next one. A second machine check while
/// IA32_MCG_STATUS says that one is under way shuts the processor down.
pub fn take(interrupted: Interrupted) -> Report {
    if !has_banks() {
        let severity = judge(0, 0, core::iter::empty(), interrupted);
        return Report { severity, mcg: 0, bank: None };
    }
    // SAFETY: the registers exist where CPUID says so; reading has no side effect.
    let (cap, mcg) = unsafe { (rdmsr(MCG_CAP), rdmsr(MCG_STATUS)) };
    let severity = judge(cap, mcg, numbers(cap).map(status), interrupted);
    let one = |number| judge(cap, mcg | RIPV, core::iter::once(status(number)), interrupted);
    let bank = numbers(cap).filter(|&number| status(number) & VAL != 0).max_by_key(|&number| one(number)).map(read);
    if severity != Severity::Fatal {
        clear(cap);
        // SAFETY: 0 says that the machine check was served.
        unsafe { wrmsr(MCG_STATUS, 0) };
    }
    COUNT.fetch_add(1, Ordering::Relaxed);
    Report { severity, mcg, bank }
}

/// Sets CR4.MCE, so that machine checks arrive as exceptions on this processor. Without CR4.MCE a machine check that is meant for another
/// processor as well shuts the machine down (SDM vol. 3, 7.15, interrupt 18). So each processor does this as soon as it can stop the
/// others, whether it runs guests or not.
///
/// # Safety
/// The processor's IDT is in force.
pub unsafe fn enable() {
    const HAS_MCE: u32 = 1 << 7;
    if core::arch::x86_64::__cpuid(1).edx & HAS_MCE == 0 {
        return;
    }
    if has_banks() {
        prepare();
    }
    // SAFETY: CPUID says that the bit exists, and the caller that the exception has a handler.
    unsafe { cpu::write_cr4(cpu::cr4() | cpu::bits::cr4::MCE) };
}

/// Enables all errors of all banks that software controls, which has to come before CR4.MCE is set (SDM vol. 3, 16.8). Logs and clears
/// errors from before.
fn prepare() {
    // SAFETY: as in `take`.
    let cap = unsafe { rdmsr(MCG_CAP) };
    for bank in numbers(cap).map(read).filter(|bank| bank.status & VAL != 0) {
        log::warn!("machine check before the hypervisor's entry: {bank}");
    }
    if let Some(first) = first_bank_to_enable(&vendor(), cpu::signature()) {
        // SAFETY: the registers exist where IA32_MCG_CAP says so, and are software's; ones enable what there is, and the manual's own example
        // writes them.
        unsafe {
            if cap & CAP_CTL != 0 {
                wrmsr(MCG_CTL, u64::MAX);
            }
            numbers(cap).filter(|&number| number >= first).for_each(|number| wrmsr(ctl(number), u64::MAX));
        }
    }
    clear(cap);
}

/// The first bank that software enables; it enables the following ones as well. The processor has this vendor string and this signature of
/// CPUID. `None` if the firmware has enabled the banks: other makers' banks have bits that must not change (Linux clears one of bank 4 of
/// AMD's family 15, `apply_quirks_amd`).
///
/// Intel's processors of family 6 before model 1AH have the machine's bus control at the address of IA32_MC0_CTL, which belongs to the
/// firmware (SDM vol. 3, 16.3.2.1).
fn first_bank_to_enable(vendor: &[u8; 12], signature: u32) -> Option<u8> {
    const FIRST_WITH_CTL_OF_BANK_0: u32 = 0x1a;
    let (family, model) = (signature >> 8 & 0xf, signature >> 12 & 0xf0 | signature >> 4 & 0xf);
    (vendor == b"GenuineIntel").then(|| u8::from(family == 6 && model < FIRST_WITH_CTL_OF_BANK_0))
}

/// The vendor string: CPUID.0:EBX, EDX, ECX.
fn vendor() -> [u8; 12] {
    let leaf = core::arch::x86_64::__cpuid(0);
    let mut name = [0; 12];
    for (part, register) in name.chunks_exact_mut(4).zip([leaf.ebx, leaf.edx, leaf.ecx]) {
        part.copy_from_slice(&register.to_le_bytes());
    }
    name
}

fn numbers(cap: u64) -> impl Iterator<Item = u8> {
    0..((cap & CAP_BANKS) as u8).min(MOST_BANKS)
}

const fn ctl(number: u8) -> u32 {
    MC0_CTL + 4 * number as u32
}

fn status(number: u8) -> u64 {
    // SAFETY: `numbers` gives banks that exist; reading has no side effect.
    unsafe { rdmsr(ctl(number) + 1) }
}

fn read(number: u8) -> Bank {
    let status = status(number);
    let valid = status & (VAL | ADDRV) == VAL | ADDRV;
    // SAFETY: the address register exists where ADDRV is set.
    let address = valid.then(|| unsafe { rdmsr(ctl(number) + 2) });
    Bank { number, status, address }
}

/// Clears the status of all banks. 0 is the only value that may be written there.
fn clear(cap: u64) {
    // SAFETY: as above.
    numbers(cap).for_each(|number| unsafe { wrmsr(ctl(number) + 1, 0) });
}

#[cfg(test)]
mod tests {
    use super::*;
    use Interrupted::{Guest, Hypervisor};
    use Severity::{Fatal, GoesOn, GuestEnds};

    const ERROR: u64 = VAL | UC | EN;
    const READ: u64 = ERROR | S | AR;

    /// Severities for a guest and for the hypervisor.
    fn both(cap: u64, mcg: u64, banks: &[u64]) -> [Severity; 2] {
        [Guest, Hypervisor].map(|interrupted| judge(cap, mcg, banks.iter().copied(), interrupted))
    }

    #[test]
    fn a_guest_that_read_bad_memory_ends_and_the_hypervisor_does_not_survive_the_same() {
        for mcg in [RIPV | EIPV, EIPV, 0] {
            assert_eq!(both(CAP_SER, mcg, &[0, READ]), [GuestEnds, Fatal], "{mcg:#x}");
        }
        for mcg in [RIPV | EIPV, RIPV, 0] {
            assert_eq!(both(0, mcg, &[ERROR]), [GuestEnds, Fatal], "without recovery, {mcg:#x}");
        }
    }

    #[test]
    fn nothing_goes_on_when_the_context_is_corrupt_or_an_error_was_lost() {
        for cap in [0, CAP_SER] {
            for status in [ERROR | PCC, ERROR | OVER, READ | PCC, READ | OVER, VAL | UC | PCC] {
                for mcg in [0, RIPV, RIPV | EIPV] {
                    assert_eq!(both(cap, mcg, &[status]), [Fatal; 2], "{status:#x} {mcg:#x}");
                    assert_eq!(both(cap, mcg, &[READ & !EN, status, 0]), [Fatal; 2], "beside others");
                }
            }
        }
        assert_eq!(both(CAP_SER, RIPV, &[ERROR | AR]), [Fatal; 2], "no such error is defined");
    }

    #[test]
    fn what_another_processor_has_read_and_what_nobody_has_read_yet_ends_nobody() {
        assert_eq!(both(CAP_SER, RIPV, &[READ]), [GoesOn; 2], "told to all processors");
        assert_eq!(both(CAP_SER, RIPV | EIPV, &[ERROR | S]), [GoesOn; 2], "action optional");
        assert_eq!(both(CAP_SER, RIPV | EIPV, &[ERROR]), [GoesOn; 2], "no action");
        assert_eq!(both(CAP_SER, RIPV, &[]), [GoesOn; 2]);
        assert_eq!(both(0, RIPV, &[VAL, VAL | OVER]), [GoesOn; 2], "corrected");
        assert_eq!(both(0, RIPV, &[UC | PCC]), [GoesOn; 2], "not valid");
    }

    #[test]
    fn who_cannot_be_restarted_does_not_go_on() {
        assert_eq!(both(CAP_SER, 0, &[]), [GuestEnds, Fatal]);
        assert_eq!(both(CAP_SER, 0, &[ERROR | S]), [GuestEnds, Fatal]);
        assert_eq!(both(CAP_SER, EIPV, &[VAL]), [GuestEnds, Fatal]);
    }

    #[test]
    fn banks_that_are_the_firmwares_stay_as_they_are() {
        let first = |vendor, signature| first_bank_to_enable(vendor, signature);
        for (signature, model) in [(0x6b1, "Pentium III"), (0x6f6, "Merom"), (0x1_0676, "Penryn")] {
            assert_eq!(first(b"GenuineIntel", signature), Some(1), "{model}");
        }
        for (signature, model) in [(0x1_06a5, "Nehalem"), (0x8_06f8, "Sapphire Rapids"), (0xf4a, "Pentium 4, model 4")]
        {
            assert_eq!(first(b"GenuineIntel", signature), Some(0), "{model}");
        }
        assert_eq!(first(b"AuthenticAMD", 0x2_0f12), None);
        assert_eq!(first(b"CentaurHauls", 0x6fd), None);
    }

    #[test]
    fn a_report_names_the_bank_its_status_and_its_address() {
        let bank = Some(Bank { number: 7, status: READ, address: Some(0x1234_5000) });
        let report = Report { severity: GuestEnds, mcg: 6, bank };
        let expected = "machine check: IA32_MCG_STATUS 0x6, bank 7 status 0xb180000000000000 address 0x12345000";
        assert_eq!(report.to_string(), expected);
    }
}
