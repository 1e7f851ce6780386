//! Speculation: which attacks the processor is open to, and what the hypervisor does about each.
//!
//! [`Plan::new`] decides by CPUID, IA32_ARCH_CAPABILITIES and, where neither says, the model, as Linux does (`cpu_set_bug_bits` and
//! arch/x86/kernel/cpu/bugs.c) and Xen (xen/arch/x86/spec_ctrl.c). Nothing here touches hardware but [`settle`] and the commands at the end.

mod facts;
mod models;
mod report;
#[cfg(test)]
mod tests;

use spin::Once;

pub use facts::Facts;
use facts::{arch, leaf7};
pub use report::Verdict;

/// IA32_SPEC_CTRL: IBRS, and BHI_DIS_S.
const IBRS: u64 = 1 << 0;
const BHI_DIS_S: u64 = 1 << 10;

/// How the return stack is made safe after a VM exit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Returns {
    /// The guest's predictions do not outlive the exit.
    #[default]
    Safe,
    /// One call, and a wait for it: a return before the first call could take the guest's prediction (PBRSB, INTEL-SA-00706).
    OneCall,
    /// 32 calls fill the stack.
    Refill,
}

/// IA32_SPEC_CTRL while the hypervisor runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostSpecCtrl {
    /// Its value. A guest whose own bits are among these runs with them.
    pub value: u64,
    /// Every VM exit has to write it: IBRS that is not enhanced protects only from what ran before the write.
    pub at_each_exit: bool,
}

/// What the hypervisor does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// IBPB on a change of guest.
    pub ibpb: bool,
    /// After a VM exit.
    pub returns: Returns,
    /// The branch history is overwritten after a VM exit.
    pub clear_history: bool,
    /// VERW is the last instruction before VM entry, and overwrites the buffers of the processor.
    pub clear_buffers: bool,
    /// The first-level data cache is flushed before a guest is entered from outside the exit loop.
    pub flush_l1d: bool,
    /// IA32_SPEC_CTRL, where the hypervisor has a value of its own there.
    pub spec_ctrl: Option<HostSpecCtrl>,
    /// A guest's large pages are not executable, and are split where the guest executes (iTLB multihit, INTEL-SA-00210).
    pub small_code_pages: bool,
}

impl Plan {
    /// What a processor with these facts needs.
    pub fn new(facts: &Facts) -> Self {
        let has = |bit| facts.leaf7_edx & bit != 0;
        let can_flush_l1d = has(leaf7::L1D_FLUSH) && !facts.has_arch(arch::SKIP_L1DFL_VMENTRY);
        Self {
            ibpb: has(leaf7::IBRS_IBPB),
            returns: returns(facts),
            clear_history: facts.is_open_to_bhi() && !facts.has_bhi_control(),
            clear_buffers: facts.is_open_to_sampling(),
            flush_l1d: facts.is_open_to_l1tf() && can_flush_l1d,
            spec_ctrl: has(leaf7::IBRS_IBPB).then(|| spec_ctrl(facts)),
            small_code_pages: facts.is_open_to_multihit(),
        }
    }

    /// Nothing.
    pub const OFF: Self = Self {
        ibpb: false,
        returns: Returns::Safe,
        clear_history: false,
        clear_buffers: false,
        flush_l1d: false,
        spec_ctrl: None,
        small_code_pages: false,
    };
}

/// Enhanced IBRS keeps returns apart but for the first one (Linux, `spectre_v2_determine_rsb_fill_type_on_vmexit`). Without it the whole stack is
/// the guest's.
fn returns(facts: &Facts) -> Returns {
    if !facts.has_arch(arch::IBRS_ALL) {
        Returns::Refill
    } else if facts.is_open_to_pbrsb() {
        Returns::OneCall
    } else {
        Returns::Safe
    }
}

fn spec_ctrl(facts: &Facts) -> HostSpecCtrl {
    let history = if facts.is_open_to_bhi() && facts.has_bhi_control() { BHI_DIS_S } else { 0 };
    HostSpecCtrl { value: IBRS | history, at_each_exit: !facts.has_arch(arch::IBRS_ALL) }
}

/// The machine's facts, and what is done on all its processors.
static SETTLED: Once<(Facts, Plan, bool)> = Once::new();

/// Settles, on the first processor and once, what all processors do: nothing where the command line says `mitigations=off` (not `wanted`).
pub fn settle(wanted: bool) {
    SETTLED.call_once(|| {
        let facts = Facts::read();
        (facts, if wanted { Plan::new(&facts) } else { Plan::OFF }, wanted)
    });
}

/// What is done. Nothing before [`settle`].
pub fn plan() -> Plan {
    SETTLED.get().map_or(Plan::OFF, |(_, plan, _)| *plan)
}

/// Bits that a guest may set in IA32_SPEC_CTRL: those that CPUID names.
pub fn spec_ctrl_bits() -> u64 {
    SETTLED.get().map_or(0, |(facts, ..)| facts.spec_ctrl_bits())
}

/// Whether the command line wants what costs.
pub fn is_wanted() -> bool {
    SETTLED.get().is_some_and(|(.., wanted)| *wanted)
}

/// Calls `line` with the name of each attack and what is done about it. `traps_bus_locks` says whether a bus lock exits.
pub fn report(traps_bus_locks: bool, line: &mut dyn FnMut(&'static str, Verdict)) {
    if let Some((facts, plan, wanted)) = SETTLED.get() {
        report::lines(facts, plan, line);
        line("bus-lock", report::bus_lock(*wanted, traps_bus_locks));
    }
}

/// Bit 0 of IA32_PRED_CMD and of IA32_FLUSH_CMD: do it.
const GO: u64 = 1;

/// Puts the hypervisor's value into this processor's IA32_SPEC_CTRL.
pub fn begin(plan: &Plan) {
    const IA32_SPEC_CTRL: u32 = 0x48;
    if let Some(HostSpecCtrl { value, .. }) = plan.spec_ctrl {
        // SAFETY: the plan has a value only where CPUID names the register and the bits. They change no result.
        unsafe { x86::msr::wrmsr(IA32_SPEC_CTRL, value) };
    }
}

/// Another guest runs next on this processor: it must not be steered by what the last one left in the predictors.
pub fn change_guest(plan: &Plan) {
    const IA32_PRED_CMD: u32 = 0x49;
    if plan.ibpb {
        // SAFETY: the plan has it only where CPUID names the command, which changes no result.
        unsafe { x86::msr::wrmsr(IA32_PRED_CMD, GO) };
    }
}

/// A guest is entered from outside the exit loop, where the hypervisor may have read what is not the guest's.
pub fn enter_guest(plan: &Plan) {
    const IA32_FLUSH_CMD: u32 = 0x10b;
    if plan.flush_l1d {
        // SAFETY: as in `change_guest`. Nothing is lost: what the cache holds is written back.
        unsafe { x86::msr::wrmsr(IA32_FLUSH_CMD, GO) };
    }
}
