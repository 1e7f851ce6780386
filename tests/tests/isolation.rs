//! Guests' time: whatever a guest does to its own virtual processors and with its own device, its neighbour on the same processor keeps its share of
//! the processor, and gets its interrupts in time. The attacks are in the guest `thief`; the figures are counted in instructions.

use imsvisor_boot::machine::bochs::DSAS;
use imsvisor_tests::isolation;
use imsvisor_tests::scenario::{Plan, Scenario};

static POSTING: Scenario =
    Scenario::new("a thief of time where units post", |plan| isolation::set_up(plan, "posting=off", ""));
static VECTORS: Scenario = Scenario::new("a thief of time where units do not post", |plan| {
    plan.plugin(&["no-posting"]);
    isolation::set_up(plan, "", "")
});
static POSTED: Scenario = Scenario::new("a thief of time with posted interrupts", |plan| {
    isolation::set_up(plan, "apicv=on posting=on", "profile=posted")
});

/// As `cargo boot -- --tenants` has it, with so many tenants.
fn tenants(plan: &mut Plan, count: usize) -> anyhow::Result<()> {
    plan.plugin(&["four-dsas"]);
    plan.config.cpus = 2;
    for number in 0..count {
        let parent = DSAS[number % 2];
        plan.guest("vfunc", &format!("tenant-{number} mem=32M device=vdsa:{parent} device=vdsa:{parent}"))?;
    }
    plan.guest("thief", "hostile mem=64M cpus=8 device=dsa cmdline=\"cpus=8 device=yes forge=no phase=2\"")
}

static TENANTS: [(Scenario, usize); 2] = [
    (Scenario::new("two tenants beside a hostile guest", |plan| tenants(plan, 2)), 2),
    (Scenario::new("four tenants beside a hostile guest", |plan| tenants(plan, 4)), 4),
];

#[test]
fn tenants_of_two_devices_work_beside_a_hostile_guest_and_every_interrupt_is_accounted_for() {
    for (scenario, count) in &TENANTS {
        let boot = scenario.run();
        for number in 0..*count {
            assert_eq!(boot.verified(&format!("tenant-{number}"), "vectors"), 128);
        }
        assert_eq!(boot.outcome().summary().verdict().failures, Vec::<String>::new());
        boot.assert_all_came_back();
    }
}

/// A guest whose device takes long to reset, which it does again and again, on the processor of one that never sleeps.
static RESETS: Scenario = Scenario::new("a guest that resets its device beside a busy one", |plan| {
    plan.plugin(&["slow-resets"]);
    plan.guest("ctl", "ctl manage=on mem=18M cmdline=\"wait resets stopped; stop busy; wait busy stopped\"")?;
    plan.guest("resets", &format!("resets mem=32M device=dsa cmdline=rounds={RESET_ROUNDS}"))?;
    plan.guest("tenant", "busy mem=18M cmdline=busy=yes")
});

const RESET_ROUNDS: u64 = 4;

#[test]
fn attack_29_a_guest_keeps_its_time_while_its_neighbour_resets_a_device_that_takes_long() {
    let boot = RESETS.run();
    boot.assert_hypervisor_lived();
    assert_eq!(boot.done.as_deref(), Some("ok"));
    assert_eq!((boot.reported("resets", "rounds"), boot.reported("resets", "errors")), (RESET_ROUNDS, 0));
    for kind in ["commands", "levels"] {
        let longest = boot.reported("resets", kind);
        assert!(longest > 2 * isolation::LATENCY, "{kind}: the resets are not slow, or nobody waits: {longest} ticks");
    }
    let gap = boot.reported("busy", "gap");
    assert!(gap <= isolation::LATENCY, "the neighbour did not run for {gap} ticks");
    boot.assert_all_came_back();
}

fn assert_bounded(scenario: &'static Scenario) {
    let boot = scenario.run();
    boot.assert_hypervisor_lived();
    boot.assert_guest_right("victim");
    boot.assert_guest_right("thief");
    assert_eq!(boot.reported("victim", "base"), boot.reported("thief", "base"), "they do not agree on the phases");
    let all = isolation::read(boot.outcome()).expect("the guests' reports");
    let unbounded: Vec<_> = all.iter().filter(|attacked| !attacked.is_bounded()).collect();
    assert!(unbounded.is_empty(), "{unbounded:#?}\n{}", isolation::table(&all));
}

#[test]
fn attack_29_a_guest_keeps_its_time_whatever_its_neighbour_does() {
    assert_bounded(&POSTING);
}

#[test]
fn attack_29_a_guest_keeps_its_time_where_units_cannot_suppress_interrupts() {
    assert_bounded(&VECTORS);
}

#[test]
fn attack_29_a_guest_keeps_its_time_beside_one_with_posted_interrupts() {
    assert_bounded(&POSTED);
}
