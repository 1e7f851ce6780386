//! By Intel's list of affected processors and Linux's decisions, not by the code.

use proptest::prelude::*;

use super::{facts::Facts, *};

/// Microcode with everything of 2019: MD_CLEAR, IBRS and IBPB, STIBP, L1D_FLUSH, ARCH_CAPABILITIES, SSBD.
const CONTROLS: u32 = 1 << 10 | 0x1f << 26 | 1 << 31;
/// The same without ARCH_CAPABILITIES.
const OLD_CONTROLS: u32 = CONTROLS & !(1 << 29 | 1 << 30);
/// PSFD, IPRED_CTRL, RRSBA_CTRL, BHI_CTRL.
const LATER: u32 = 0x17;
const RTM: u32 = 1 << 11;
const AVX: u32 = 1 << 28;

fn intel(signature: u32, leaf7_edx: u32, arch_capabilities: u64) -> Facts {
    Facts { is_intel: true, signature, leaf1_ecx: AVX, leaf7_edx, arch_capabilities, ..Facts::default() }
}

/// Before 2018's microcode.
fn haswell_without_microcode() -> Facts {
    intel(0x306f2, 0, 0)
}

fn broadwell_server() -> Facts {
    Facts { leaf7_ebx: RTM, ..intel(0x406f1, OLD_CONTROLS, 0) }
}

fn skylake_server() -> Facts {
    Facts { leaf7_ebx: RTM, ..intel(0x50654, CONTROLS & !(1 << 29), 0) }
}

/// RDCL_NO, IBRS_ALL, SKIP_L1DFL, MDS_NO, IF_PSCHANGE_MC_NO, TSX_CTRL.
fn cascade_lake() -> Facts {
    intel(0x50657, CONTROLS, 0xeb | 1 << 17 | 1 << 25)
}

/// The same with TAA_NO and FB_CLEAR; GDS_CTRL.
fn ice_lake_server() -> Facts {
    intel(0x606a6, CONTROLS, 0x6b | 1 << 8 | 1 << 17 | 1 << 25)
}

/// RDCL_NO, IBRS_ALL, SKIP_L1DFL, MDS_NO, IF_PSCHANGE_MC_NO, TAA_NO, none of the stale data, PBRSB_NO, GDS_NO, RFDS_NO.
fn sapphire_rapids() -> Facts {
    let arch = 0x6b | 1 << 8 | 7 << 13 | 1 << 24 | 1 << 26 | 1 << 27;
    Facts { leaf7_2_edx: LATER, ..intel(0x806f8, CONTROLS, arch) }
}

/// As Bochs 3.0 has it: RDCL_NO, IBRS_ALL, RSBA, SKIP_L1DFL, SSB_NO, and nothing later.
fn bochs_sapphire_rapids() -> Facts {
    Facts { leaf7_2_edx: LATER, ..intel(0x806f8, CONTROLS, 0x1f) }
}

/// As Bochs has it: no control at all.
fn bochs_skylake_x() -> Facts {
    intel(0x50654, 0, 0)
}

/// RFDS_CLEAR, and the rest as Sapphire Rapids.
fn alder_lake() -> Facts {
    Facts { leaf7_2_edx: LATER, ..intel(0x90672, CONTROLS, 0x6b | 1 << 8 | 7 << 13 | 1 << 24 | 1 << 28) }
}

fn goldmont() -> Facts {
    intel(0x506c9, OLD_CONTROLS, 0)
}

const ENHANCED: Option<HostSpecCtrl> = Some(HostSpecCtrl { value: 1, at_each_exit: false });
const ENHANCED_AND_HISTORY: Option<HostSpecCtrl> = Some(HostSpecCtrl { value: 0x401, at_each_exit: false });
const LEGACY: Option<HostSpecCtrl> = Some(HostSpecCtrl { value: 1, at_each_exit: true });

#[test]
fn each_processor_gets_what_it_needs_and_nothing_else() {
    let everything_old = Plan {
        ibpb: true,
        returns: Returns::Refill,
        clear_buffers: true,
        flush_l1d: true,
        spec_ctrl: LEGACY,
        small_code_pages: true,
        ..Plan::OFF
    };
    // No IBPB, no IBRS and no L1D flush without microcode. VERW does no harm.
    let no_microcode = Plan { ibpb: false, flush_l1d: false, spec_ctrl: None, ..everything_old };
    // IBRS is enhanced, no L1TF, no MDS, no multihit; the history has no control, and TAA or stale data want VERW.
    let enhanced = Plan {
        ibpb: true,
        returns: Returns::OneCall,
        clear_history: true,
        clear_buffers: true,
        spec_ctrl: ENHANCED,
        ..Plan::OFF
    };
    let newest = Plan { ibpb: true, spec_ctrl: ENHANCED_AND_HISTORY, ..Plan::OFF };
    for (name, facts, plan) in [
        ("Haswell without microcode", haswell_without_microcode(), no_microcode),
        ("Bochs' Skylake-X", bochs_skylake_x(), no_microcode),
        ("Broadwell server", broadwell_server(), everything_old),
        ("Skylake server", skylake_server(), everything_old),
        ("Cascade Lake", cascade_lake(), enhanced),
        ("Ice Lake server", ice_lake_server(), enhanced),
        ("Sapphire Rapids", sapphire_rapids(), newest),
        ("Alder Lake", alder_lake(), Plan { clear_buffers: true, ..newest }),
        (
            "Bochs' Sapphire Rapids",
            bochs_sapphire_rapids(),
            Plan { returns: Returns::OneCall, clear_buffers: true, small_code_pages: true, ..newest },
        ),
        ("Goldmont", goldmont(), Plan { flush_l1d: false, small_code_pages: false, ..everything_old }),
    ] {
        assert_eq!(Plan::new(&facts), plan, "{name}");
    }
}

fn verdicts(facts: &Facts, plan: &Plan) -> Vec<(&'static str, Verdict)> {
    let mut all = Vec::new();
    report::lines(facts, plan, &mut |attack, verdict| all.push((attack, verdict)));
    all
}

#[test]
fn each_attack_has_one_line_that_says_why() {
    let of = |facts: Facts| {
        let all = verdicts(&facts, &Plan::new(&facts));
        move |attack| all.iter().find(|(name, _)| *name == attack).map(|(_, verdict)| *verdict)
    };
    let newest = of(sapphire_rapids());
    for attack in [
        "l1tf",
        "mds",
        "taa",
        "mmio-stale-data",
        "register-file-sampling",
        "gather-sampling",
        "itlb-multihit",
        "return-stack",
    ] {
        assert_eq!(newest(attack), Some(Verdict::Free), "{attack}");
    }
    assert_eq!(newest("branch-history"), Some(Verdict::Closed("BHI_DIS_S")));
    let old = of(haswell_without_microcode());
    for attack in ["spectre-v2-guest-to-guest", "spectre-v2-guest-to-hypervisor", "l1tf", "mds", "mmio-stale-data"] {
        assert!(matches!(old(attack), Some(Verdict::Open(_))), "{attack}");
    }
    assert_eq!(old("taa"), Some(Verdict::Free), "no transactions");
    let cascade = of(cascade_lake());
    assert_eq!(cascade("mds"), Some(Verdict::Free));
    assert!(matches!(cascade("taa"), Some(Verdict::Closed(how)) if how.contains("VERW")), "TSX_CTRL without TAA_NO");
    assert!(matches!(cascade("mmio-stale-data"), Some(Verdict::Closed(_))), "FB_CLEAR");
    assert!(matches!(of(ice_lake_server())("gather-sampling"), Some(Verdict::Closed(_))), "GDS_CTRL");
    assert!(matches!(of(skylake_server())("gather-sampling"), Some(Verdict::Open(_))), "no GDS_CTRL");
    assert!(
        matches!(of(broadwell_server())("mmio-stale-data"), Some(Verdict::Closed(_))),
        "MD_CLEAR on one open to MDS"
    );
    assert!(matches!(of(alder_lake())("register-file-sampling"), Some(Verdict::Closed(_))));
}

#[test]
fn off_says_of_everything_that_is_open_why() {
    for facts in [broadwell_server(), bochs_sapphire_rapids(), sapphire_rapids()] {
        for (attack, verdict) in verdicts(&facts, &Plan::OFF) {
            assert!(matches!(verdict, Verdict::Free | Verdict::Open("mitigations=off")), "{attack}: {verdict}");
        }
    }
    let text = std::string::ToString::to_string(&Verdict::Open("mitigations=off"));
    assert_eq!(text, "state=open why=\"mitigations=off\"");
}

#[test]
fn another_makers_model_numbers_say_nothing() {
    let facts = Facts { is_intel: false, ..skylake_server() };
    let plan = Plan::new(&facts);
    assert!(!plan.flush_l1d && !plan.clear_buffers && !plan.small_code_pages && plan.ibpb);
}

#[test]
fn a_guest_may_set_the_bits_of_spec_ctrl_that_cpuid_names() {
    assert_eq!(intel(0, 0, 0).spec_ctrl_bits(), 0);
    assert_eq!(intel(0, 1 << 26, 0).spec_ctrl_bits(), 1);
    assert_eq!(intel(0, 1 << 27, 0).spec_ctrl_bits(), 2);
    assert_eq!(intel(0, 1 << 31, 0).spec_ctrl_bits(), 4);
    assert_eq!(bochs_sapphire_rapids().spec_ctrl_bits(), 0x4ff);
    assert_eq!(Facts { leaf7_2_edx: 1 << 3, ..Facts::default() }.spec_ctrl_bits(), 0x100);
}

proptest! {
    #[test]
    fn no_command_is_given_that_cpuid_does_not_name(
        is_intel: bool, signature: u32, leaf1_ecx: u32, leaf7_ebx: u32, leaf7_edx: u32, leaf7_2_edx: u32, arch_capabilities: u64
    ) {
        let facts = Facts { is_intel, signature, leaf1_ecx, leaf7_ebx, leaf7_edx, leaf7_2_edx, arch_capabilities };
        let plan = Plan::new(&facts);
        prop_assert!(!plan.ibpb || leaf7_edx & 1 << 26 != 0);
        prop_assert!(!plan.flush_l1d || leaf7_edx & 1 << 28 != 0);
        let own = plan.spec_ctrl.map_or(0, |own| own.value);
        prop_assert_eq!(own & !facts.spec_ctrl_bits(), 0);
        // Nothing that is open goes without a word.
        prop_assert_eq!(verdicts(&facts, &plan).len(), 11);
    }
}
