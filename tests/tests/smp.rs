//! Several processors: of the machine, of a guest, of both. What one processor does right, two and four must do as well.

use imsvisor_boot::machine::bochs::GENEROUS;
use imsvisor_tests::scenario::{Boot, Plan, Scenario};

/// A guest with processors on a machine with processors.
fn smp(plan: &mut Plan, processors: u32, cpus: u32, work: &str) -> anyhow::Result<()> {
    plan.config.cpus = processors;
    plan.guest("smp", &format!("smp mem=64M cpus={cpus} device=dsa cmdline=\"cpus={cpus} {work}\""))
}

/// The whole of the stress: what it costs counts itself.
const STRESS: &str = "ops=100000";
/// Less of it where processors share one: the guest's waiting costs slices there.
const SOME: &str = "ops=5000";

static STRESSED: [Scenario; 5] = [
    Scenario::new("one virtual processor under stress", |plan| smp(plan, 1, 1, SOME)),
    Scenario::new("two virtual processors under stress", |plan| smp(plan, 2, 2, STRESS)),
    Scenario::new("four virtual processors under stress", |plan| smp(plan, 4, 4, STRESS)),
    Scenario::new("two virtual processors on one", |plan| smp(plan, 1, 2, SOME)),
    Scenario::new("five virtual processors on two", |plan| smp(plan, 2, 5, SOME)),
];

/// Guests with as many virtual processors as they can have.
static MANY: Scenario = Scenario::new("four times 64 virtual processors", |plan| {
    ["a", "b", "c", "d"].iter().try_for_each(|name| plan.guest("hello", &format!("{name} cpus=64")))
});

#[test]
fn the_hypervisor_has_memory_for_as_many_virtual_processors_as_guests_ask_for() {
    let boot = MANY.run();
    boot.assert_hypervisor_lived();
    ["a", "b", "c", "d"].into_iter().for_each(|name| boot.assert_guest_right(name));
}

/// The guest is right, and everything that it held has come back.
fn assert_right(boot: &Boot) {
    boot.assert_hypervisor_lived();
    boot.assert_guest_right("smp");
    assert_eq!(boot.done.as_deref(), Some("ok"), "not everything came back");
}

#[test]
fn interrupts_between_processors_nmis_and_restarts_come_where_they_are_sent() {
    for scenario in &STRESSED {
        let boot = scenario.run();
        boot.assert_guest_right("smp");
        let start = &boot.guest("smp").start;
        assert_eq!(boot.reported("smp", "cpus"), start.number("cpus").expect("cpus"), "processors that started");
        assert!(boot.reported("smp", "ipis") > 200);
    }
}

#[test]
fn under_stress_no_interrupt_is_lost_doubled_or_delivered_elsewhere() {
    for scenario in &STRESSED {
        let boot = scenario.run();
        assert_right(&boot);
        for wrong in ["lost", "doubled", "astray", "errors"] {
            assert_eq!(boot.reported("smp", wrong), 0, "{wrong}");
        }
        let counts = boot.interrupts();
        let raised = Some(boot.reported("smp", "raised"));
        assert!(raised > Some(boot.reported("smp", "ops") / 8), "the device hardly fires");
        assert_eq!([counts.raised, counts.remapped, counts.delivered], [raised; 3], "raised, remapped, delivered");
        assert_eq!(boot.remap_number("strays"), 0, "interrupts that nobody waited for");
        boot.assert_zero(&["vtd.blocked", "vtd.violations"]);
    }
}

/// A slice is 4 million ticks.
const SOON: u64 = 200_000;

#[test]
fn neither_an_interrupt_nor_a_timer_has_to_wait_for_the_end_of_anothers_slice() {
    for scenario in &STRESSED {
        for key in ["wake", "late"] {
            let ticks = scenario.run().reported("smp", key);
            assert!(ticks < SOON, "{key}: {ticks} ticks");
        }
    }
}

static RACES: [Scenario; 4] = [
    Scenario::new("four virtual processors that fight", |plan| smp(plan, 4, 4, "race=20000")),
    Scenario::new("three virtual processors that fight on two", |plan| smp(plan, 2, 3, "race=10000")),
    Scenario::new("two virtual processors that fight for slots of a slow store", |plan| {
        plan.plugin(&[GENEROUS, "slow-store"]);
        smp(plan, 2, 2, "race=5000")
    }),
    Scenario::new("four posted virtual processors that fight", |plan| {
        plan.config.cpus = 4;
        plan.guest("smp", "smp mem=64M cpus=4 device=dsa apicv=on cmdline=\"cpus=4 race=10000 profile=posted\"")
    }),
];

#[test]
fn processors_that_fight_for_the_same_slots_and_stop_each_other_harm_nobody() {
    for scenario in &RACES {
        let boot = scenario.run();
        assert_right(&boot);
        boot.assert_zero(&["vtd.blocked", "vtd.violations"]);
    }
}

/// On four processors the remapping unit cannot post, so vectors run out.
fn enemies(plan: &mut Plan, processors: u32) -> anyhow::Result<()> {
    plan.config.cpus = processors;
    plan.guest("hostile-state", "hostile mem=32M")?;
    if processors == 4 {
        plan.config.plugin_options.push("no-posting".into());
        plan.guest("nonsense", "nonsense mem=64M device=dsa cmdline=vectors=few")?;
    } else {
        plan.guest("nonsense", "nonsense mem=64M device=dsa")?;
    }
    plan.guest("neighbour", "left mem=32M cmdline=seed=1")?;
    plan.guest("neighbour", "right mem=32M cmdline=seed=2")?;
    plan.guest("triple", "triple mem=32M")?;
    plan.guest("hello", "hello mem=32M")
}

fn strays(plan: &mut Plan, processors: u32) -> anyhow::Result<()> {
    plan.config.cpus = processors;
    plan.guest("neighbour", "left mem=32M cmdline=seed=1")?;
    plan.guest("stray-dma", "stray-dma mem=64M device=dsa")?;
    plan.guest("hello", "hello mem=32M")
}

static CROWDS: [(Scenario, &[&str]); 4] = [
    (Scenario::new("enemies on two processors", |plan| enemies(plan, 2)), ENEMIES),
    (Scenario::new("enemies on four processors", |plan| enemies(plan, 4)), ENEMIES),
    (Scenario::new("stray DMA on two processors", |plan| strays(plan, 2)), STRAYS),
    (Scenario::new("stray DMA on four processors", |plan| strays(plan, 4)), STRAYS),
];
const ENEMIES: &[&str] = &["hostile", "nonsense", "left", "right", "hello"];
const STRAYS: &[&str] = &["left", "stray-dma", "hello"];

#[test]
fn hostile_guests_harm_nobody_on_two_and_on_four_processors() {
    for (scenario, names) in &CROWDS {
        let boot = scenario.run();
        boot.assert_hypervisor_lived();
        names.iter().for_each(|name| boot.assert_guest_right(name));
        assert_eq!(boot.remap_number("live"), 0);
        assert_eq!(boot.outcome().counter("vtd.violations"), 0);
    }
}
