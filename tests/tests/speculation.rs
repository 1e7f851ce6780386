//! What is done against speculation: told at boot, harmless to guests, and off where the command line says so. The emulator has no predictors
//! and no caches that could tell; the unit tests of `cpu::speculation`, `vmx::entry`, `vmx::spec_ctrl` and `sched::guest_change` hold what is
//! chosen, and in which order it is done.

use std::collections::BTreeMap;

use imsvisor_tests::scenario::{Boot, Plan, Scenario};

/// Two guests on one processor that keep values of their own in IA32_SPEC_CTRL.
fn guests(plan: &mut Plan) -> anyhow::Result<()> {
    plan.config.cpus = 1;
    plan.guest("processor", "one mem=32M apicv=off")?;
    plan.guest("processor", "two mem=32M apicv=off")
}

static ON: Scenario = Scenario::new("mitigations that Bochs' Sapphire Rapids needs", guests);

static OFF: Scenario = Scenario::new("mitigations=off", |plan| {
    plan.config.hypervisor_options = vec!["mitigations=off".into()];
    guests(plan)
});

/// Each attack, with what is said about it.
fn told(boot: &Boot) -> BTreeMap<String, (String, String)> {
    let value = |event: &imsvisor_boot::event::Pairs, key| event.get(key).unwrap_or("").to_owned();
    let events = boot.events("mitigation").into_iter();
    events
        .map(|event| {
            let why = [value(event, "by"), value(event, "why")].concat();
            (value(event, "attack"), (value(event, "state"), why))
        })
        .collect()
}

fn assert_guests_right(boot: &Boot) {
    boot.assert_hypervisor_lived();
    for name in ["one", "two"] {
        boot.assert_guest_right(name);
        assert!(boot.verified(name, "checks") > 70, "{name}");
    }
}

#[test]
fn guests_keep_their_own_control_of_speculation_beside_the_hypervisors() {
    assert_guests_right(&ON.run());
}

#[test]
fn each_attack_is_told_of_once_with_what_is_done() {
    let told = told(&ON.run());
    assert_eq!(told.len(), 12, "{told:?}");
    for (attack, how) in [
        ("spectre-v2-guest-to-guest", "IBPB"),
        ("spectre-v2-guest-to-hypervisor", "IBRS"),
        ("return-stack", "call"),
        ("branch-history", "BHI_DIS_S"),
        ("mds", "VERW"),
        ("itlb-multihit", "4 KiB"),
    ] {
        let (state, by) = &told[attack];
        assert!(state == "closed" && by.contains(how), "{attack}: {state}, {by}");
    }
    for attack in ["l1tf", "taa", "mmio-stale-data", "register-file-sampling", "gather-sampling"] {
        assert_eq!(told[attack].0, "not-affected", "{attack}");
    }
}

/// Their code lies in a few regions of 2 MiB, each of which is split once.
#[test]
fn large_pages_are_split_where_guests_execute_and_nowhere_else() {
    let split = |boot: &Boot| boot.guest("one").exits.get("ept-violation").copied().unwrap_or(0);
    let (on, off) = (split(&ON.run()), split(&OFF.run()));
    assert!((off + 1..=off + 16).contains(&on), "{on} EPT violations, {off} without");
}

#[test]
fn off_is_said_and_guests_run_as_well() {
    let boot = OFF.run();
    assert_guests_right(&boot);
    let told = told(&boot);
    assert_eq!(told.len(), 12, "{told:?}");
    for (attack, (state, why)) in told {
        assert!(state == "not-affected" || (state.as_str(), why.as_str()) == ("open", "mitigations=off"), "{attack}");
    }
}
