//! What is told at boot: a line for each attack.

use core::fmt;

use super::{
    Plan, Returns,
    facts::{Facts, arch, leaf7},
};

/// What became of an attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The processor is free of it.
    Free,
    /// It is closed: by what.
    Closed(&'static str),
    /// It is open: why.
    Open(&'static str),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Free => f.write_str("state=not-affected"),
            Self::Closed(how) => write!(f, "state=closed by=\"{how}\""),
            Self::Open(why) => write!(f, "state=open why=\"{why}\""),
        }
    }
}

const OFF: Verdict = Verdict::Open("mitigations=off");

/// Calls `line` with the name of each attack and what became of it.
pub(super) fn lines(facts: &Facts, plan: &Plan, line: &mut dyn FnMut(&'static str, Verdict)) {
    let is_off = *plan == Plan::OFF;
    let mut tell = |attack, open: bool, verdict: Verdict| {
        line(
            attack,
            if !open {
                Verdict::Free
            } else if is_off {
                OFF
            } else {
                verdict
            },
        );
    };
    tell("spectre-v2-guest-to-guest", true, guest_to_guest(plan));
    tell("spectre-v2-guest-to-hypervisor", true, guest_to_hypervisor(plan));
    tell("return-stack", plan.returns != Returns::Safe || is_off, return_stack(plan));
    tell("branch-history", facts.is_open_to_bhi(), branch_history(plan));
    tell("l1tf", facts.is_open_to_l1tf(), l1tf(facts, plan));
    let has_md_clear = facts.leaf7_edx & leaf7::MD_CLEAR != 0;
    tell("mds", facts.is_open_to_mds(), verw(has_md_clear));
    tell("taa", facts.is_open_to_taa(), verw(has_md_clear));
    // Processors that are open to MDS as well overwrite the fill buffers with the others (Linux, `mmio_select_mitigation`).
    let has_fb_clear = facts.has_arch(arch::FB_CLEAR) || has_md_clear && facts.is_open_to_mds();
    tell("mmio-stale-data", facts.is_open_to_mmio(), verw(has_fb_clear));
    tell("register-file-sampling", facts.is_open_to_rfds(), verw(facts.has_arch(arch::RFDS_CLEAR)));
    tell("gather-sampling", facts.is_open_to_gds(), gds(facts));
    tell("itlb-multihit", facts.is_open_to_multihit(), Verdict::Closed("executable pages of 4 KiB"));
}

/// Of bus locks, which are no speculation, but another side of the same processor.
pub(super) fn bus_lock(wanted: bool, traps: bool) -> Verdict {
    match (wanted, traps) {
        (false, _) => OFF,
        (true, true) => Verdict::Closed("an exit for each, and a limit for each guest"),
        (true, false) => Verdict::Open("the processor has no bus-lock exits, and #AC for split locks is not used"),
    }
}

fn guest_to_guest(plan: &Plan) -> Verdict {
    if plan.ibpb { Verdict::Closed("IBPB on a change of guest") } else { Verdict::Open("no IBPB: it needs microcode") }
}

fn guest_to_hypervisor(plan: &Plan) -> Verdict {
    match plan.spec_ctrl {
        Some(own) if own.at_each_exit => Verdict::Closed("IBRS, written after each VM exit"),
        Some(_) => Verdict::Closed("enhanced IBRS"),
        None => Verdict::Open("no IBRS: it needs microcode"),
    }
}

fn return_stack(plan: &Plan) -> Verdict {
    Verdict::Closed(match plan.returns {
        Returns::Safe => "enhanced IBRS",
        Returns::OneCall => "a call after each VM exit",
        Returns::Refill => "32 calls after each VM exit",
    })
}

fn branch_history(plan: &Plan) -> Verdict {
    Verdict::Closed(if plan.clear_history { "branches after each VM exit" } else { "BHI_DIS_S" })
}

fn l1tf(facts: &Facts, plan: &Plan) -> Verdict {
    if plan.flush_l1d {
        Verdict::Closed("L1D flush when a guest is entered from elsewhere; not between hyperthreads")
    } else if facts.has_arch(arch::SKIP_L1DFL_VMENTRY) {
        Verdict::Closed("the hypervisor below")
    } else {
        Verdict::Open("no L1D_FLUSH: it needs microcode")
    }
}

fn verw(effective: bool) -> Verdict {
    if effective {
        Verdict::Closed("VERW before each VM entry; not between hyperthreads")
    } else {
        Verdict::Open("VERW overwrites no buffers without microcode; it is executed all the same")
    }
}

fn gds(facts: &Facts) -> Verdict {
    if facts.has_arch(arch::GDS_CTRL) {
        Verdict::Closed("microcode, unless the firmware has switched it off")
    } else {
        Verdict::Open("it needs microcode")
    }
}
