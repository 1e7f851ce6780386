//! Remapping units: several of them, the sizes of their tables, and their faults.

use imsvisor_boot::event::Pairs;
use imsvisor_boot::machine::bochs::{DSAS, GENEROUS, GENEROUS_DSAS};
use imsvisor_tests::scenario::{Plan, Scenario};

const DEMO_GUEST: &str = "demo mem=64M device=dsa";

fn two_units(plan: &mut Plan, posted: &str) -> anyhow::Result<()> {
    plan.config.cpus = 2;
    plan.guest("demo", DEMO_GUEST)?;
    plan.guest("demo", &format!("other mem=64M device=dsa {posted}"))
}

static TWO_UNITS: [Scenario; 2] = [
    Scenario::new("two remapping units", |plan| two_units(plan, "")),
    Scenario::new("two remapping units, and posting", |plan| two_units(plan, "apicv=on cmdline=profile=posted")),
];

#[test]
fn each_function_goes_by_the_unit_in_whose_scope_it_is() {
    for scenario in &TWO_UNITS {
        let boot = scenario.run();
        boot.assert_hypervisor_lived();
        // The unit of the other function knows nothing of it: by that one no interrupt and no DMA would come through.
        assert_eq!(boot.verdict().failures, Vec::<String>::new());
        assert_eq!(boot.machine.number("vtd_units"), Some(2));
        assert_eq!(boot.remap_number("faults"), 0);
        assert_eq!(boot.outcome().counter("vtd.violations"), 0);
    }
}

static CLIENT: Scenario = Scenario::new("a client's remapping units", |plan| {
    plan.plugin(&["client-units"]);
    two_units(plan, "apicv=on cmdline=profile=posted")
});

/// What such a unit reserves must stay clear: PASIDE, PWSNP. The emulated processor has no cache that could keep a table from the unit.
#[test]
fn units_that_snoop_nothing_and_have_no_pasids_serve_all_the_same() {
    let boot = CLIENT.run();
    boot.assert_hypervisor_lived();
    assert_eq!(boot.verdict().failures, Vec::<String>::new());
    assert_eq!(boot.machine.number("vtd_units"), Some(2));
    assert_eq!(boot.remap_number("faults"), 0);
    assert_eq!(boot.outcome().counter("vtd.violations"), 0);
}

static ONE_UNIT: Scenario = Scenario::new("one remapping unit for everything", |plan| {
    plan.config.cpus = 2;
    plan.plugin(&[GENEROUS]);
    plan.guest("demo", DEMO_GUEST)?;
    plan.guest("demo", "other mem=64M device=dsa")
});

#[test]
fn one_unit_serves_functions_of_several_guests() {
    let boot = ONE_UNIT.run();
    boot.assert_hypervisor_lived();
    assert_eq!(boot.verdict().failures, Vec::<String>::new());
    assert_eq!(boot.machine.number("vtd_units"), Some(1));
}

static MOST_SLOTS: Scenario = Scenario::new("stores of 16,128 slots", |plan| {
    plan.config.cpus = 2;
    plan.plugin(&[GENEROUS, "most-slots"]);
    plan.guest("demo", "demo mem=64M device=dsa cmdline=slots=1024")?;
    plan.guest("demo", "other mem=64M device=dsa cmdline=slots=1024")
});

#[test]
fn a_units_table_is_as_large_as_the_stores_need() {
    let boot = MOST_SLOTS.run();
    boot.assert_hypervisor_lived();
    assert_eq!(boot.verdict().failures, Vec::<String>::new());
    assert!(boot.remap_number("high_water") >= 2048, "{}", boot.remap);
}

/// Ticks that the hypervisor takes for a fault that it tells of, at least.
const FAULT_TICKS: u64 = 5_000;

static STORM: Scenario = Scenario::new("a guest whose device faults without end", |plan| {
    plan.guest("stray-dma", "stray-dma mem=64M device=dsa cmdline=storm=600")?;
    plan.guest("demo", DEMO_GUEST)
});

#[test]
fn attack_24_faults_without_end_are_counted_and_masked_and_the_others_do_not_notice() {
    let boot = STORM.run();
    boot.assert_hypervisor_lived();
    for name in ["stray-dma", "demo"] {
        boot.assert_guest_right(name);
    }
    let of_it = |fault: &&&Pairs| (fault.get("sid"), fault.get("kind")) == (Some(DSAS[0]), Some("dma"));
    let faults = boot.events("fault");
    assert_eq!(faults.iter().filter(of_it).count(), 32, "told of the function");
    let said = |text: &str| boot.outcome().lines.iter().any(|seen| seen.raw.contains(text));
    assert!(said("its events are masked until it is quiet"), "they were never masked");
    // What comes while they are masked is recorded until the records are full, and troubles nobody.
    assert!(boot.outcome().counter("vtd.dma_faults") > 600);
    let exits = boot.guest("stray-dma").exits.get("external-interrupt").copied();
    assert!(exits.is_some_and(|exits| (32..64).contains(&exits)), "{exits:?} of the processor's interrupts");
    let released = boot.events("guest-released");
    let of_it = released.iter().find(|pairs| pairs.get("name") == Some("stray-dma"));
    let interrupting = of_it.and_then(|pairs| pairs.number("interrupting"));
    assert!(interrupting >= Some(FAULT_TICKS * 32), "its faults are on its bill: {interrupting:?} ticks");
}

static FORGERS: Scenario = Scenario::new("a guest whose device forges another's messages", |plan| {
    plan.config.cpus = 2;
    // Both of one unit's, which has records for several faults at a time.
    plan.plugin(&[GENEROUS]);
    plan.guest("demo", DEMO_GUEST)?;
    plan.guest("stray-dma", "stray-dma mem=64M device=dsa")
});

#[test]
fn attack_05_a_forged_message_is_refused_by_its_source_and_told_with_whose_entry_it_named() {
    let boot = FORGERS.run();
    boot.assert_hypervisor_lived();
    for name in ["stray-dma", "demo"] {
        boot.assert_guest_right(name);
    }
    let faults = boot.events("fault");
    let is_it = |fault: &&&Pairs| {
        let word = |key| fault.get(key);
        [word("kind"), word("sid"), word("reason")] == [Some("interrupt"), Some(GENEROUS_DSAS[1]), Some("0x26")]
    };
    let forged: Vec<_> = faults.iter().filter(is_it).collect();
    assert!(!forged.is_empty(), "no entry of the demo's was named: {faults:?}");
    for fault in &forged {
        assert_eq!((fault.get("guest"), fault.get("store")), (Some("0"), Some("ims")), "{fault}");
        assert!(fault.number("slot").is_some() && fault.get("device").is_some(), "{fault}");
    }
    assert!(forged.iter().any(|fault| fault.get("cookie").is_some()), "no slot was mapped by a call: {forged:?}");
    let of_guest = |fault: &&&Pairs| fault.get("kind") == Some("dma") && fault.get("guest") == Some("1");
    assert!(faults.iter().filter(of_guest).count() > 0, "a DMA fault names the guest: {faults:?}");
}
