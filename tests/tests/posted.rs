//! Guests whose local APIC the processor keeps: interrupts without VM exits.
//!
//! The guests keep to the profile that the emulator's defects make necessary (`profile=posted`; see the machine notes).

use imsvisor_boot::report::Guest;
use imsvisor_tests::scenario::{Boot, Plan, Scenario};

const INJECTED: &str = "injected mem=64M device=dsa";
const POSTED: &str = "posted mem=64M device=dsa apicv=on cmdline=profile=posted";

static ALONE: Scenario = Scenario::new("a guest with posted interrupts", |plan| plan.guest("demo", POSTED));
static HALTING: Scenario = Scenario::new("a posted guest that halts", |plan| {
    plan.guest("demo", "demo mem=64M device=dsa apicv=on cmdline=\"profile=posted idle=hlt\"")
});
static UNPOSTED: Scenario = Scenario::new("a virtualised local APIC without posting", |plan| {
    plan.guest("demo", "demo mem=64M device=dsa apicv=on posting=off cmdline=profile=posted")
});

fn both(plan: &mut Plan, processors: u32) -> anyhow::Result<()> {
    plan.config.cpus = processors;
    plan.guest("demo", INJECTED)?;
    plan.guest("demo", POSTED)
}

static BOTH: [Scenario; 2] = [
    Scenario::new("one guest of each kind on one processor", |plan| both(plan, 1)),
    Scenario::new("one guest of each kind on two processors", |plan| both(plan, 2)),
];

fn several(plan: &mut Plan, processors: u32, work: &str) -> anyhow::Result<()> {
    plan.config.cpus = processors;
    let line = format!("cpus={processors} {work} profile=posted");
    plan.guest("smp", &format!("smp mem=64M cpus={processors} device=dsa apicv=on cmdline=\"{line}\""))
}

static SEVERAL: [Scenario; 2] = [
    Scenario::new("two posted virtual processors under stress", |plan| several(plan, 2, "ops=20000")),
    Scenario::new("four posted virtual processors under stress", |plan| several(plan, 4, "ops=100000")),
];

fn exits(guest: &Guest, reason: &str) -> u64 {
    guest.exits.get(reason).copied().unwrap_or(0)
}

/// Of hundreds of interrupts a few come while the hypervisor is at work, or are the machine's own.
fn assert_no_exits_for(guest: &Guest, interrupts: u64) {
    assert!(interrupts > 400, "{interrupts} interrupts prove little");
    let exits = exits(guest, "external-interrupt") + exits(guest, "interrupt-window");
    assert!(exits <= interrupts / 50, "{exits} exits for {interrupts} interrupts");
}

fn counter(boot: &Boot, name: &str) -> u64 {
    boot.outcome().counter(name)
}

#[test]
fn posted_interrupts_reach_a_guest_without_exits_and_end_without_them() {
    let boot = ALONE.run();
    boot.assert_hypervisor_lived();
    assert_eq!(boot.verdict().failures, Vec::<String>::new());
    let guest = boot.guest("posted");
    let handled = boot.reported("posted", "handled");
    assert_eq!([counter(&boot, "vtd.posted"), counter(&boot, "vtd.remapped")], [handled, 0]);
    assert_no_exits_for(guest, handled);
    // An EOI that exited would be a WRMSR.
    assert!(exits(guest, "wrmsr") < handled / 2, "{:?}", guest.exits);
}

#[test]
fn a_guest_that_has_halted_is_woken_by_what_is_posted() {
    let boot = HALTING.run();
    boot.assert_hypervisor_lived();
    assert_eq!(boot.verdict().failures, Vec::<String>::new());
    let guest = boot.guest("demo");
    assert!(exits(guest, "hlt") > 20, "it hardly halts: {:?}", guest.exits);
    assert_eq!(counter(&boot, "vtd.posted"), boot.reported("demo", "handled"));
    assert_eq!(boot.reported("demo", "timeouts"), 0, "its timer had to wake it");
}

#[test]
fn what_the_hypervisor_requests_in_the_virtual_apic_page_is_delivered_from_there() {
    let boot = UNPOSTED.run();
    boot.assert_hypervisor_lived();
    assert_eq!(boot.verdict().failures, Vec::<String>::new());
    let guest = boot.guest("demo");
    // Posted for the hypervisor, which requests them in the page.
    assert_eq!(Some(counter(&boot, "vtd.posted")), guest.interrupts.number("from_descriptors"));
    assert!(exits(guest, "external-interrupt") > boot.reported("demo", "handled") / 2, "{:?}", guest.exits);
    assert!(exits(guest, "wrmsr") < boot.reported("demo", "handled") / 2, "an EOI exits: {:?}", guest.exits);
}

#[test]
fn guests_of_both_kinds_live_side_by_side() {
    for scenario in &BOTH {
        let boot = scenario.run();
        boot.assert_hypervisor_lived();
        assert_eq!(boot.verdict().failures, Vec::<String>::new());
        let [injected, posted] = ["injected", "posted"].map(|name| boot.reported(name, "handled"));
        assert_eq!([counter(&boot, "vtd.remapped"), counter(&boot, "vtd.posted")], [0, injected + posted]);
        for key in ["delivered", "from_descriptors"] {
            assert_eq!(boot.guest("injected").interrupts.number(key), Some(injected), "{key}");
        }
        assert_eq!(boot.guest("posted").interrupts.number("from_descriptors"), Some(0));
    }
}

#[test]
fn under_stress_no_posted_interrupt_is_lost_doubled_or_delivered_elsewhere() {
    for scenario in &SEVERAL {
        let boot = scenario.run();
        boot.assert_hypervisor_lived();
        let guest = boot.guest("smp");
        boot.assert_guest_right("smp");
        for wrong in ["lost", "doubled", "astray", "errors"] {
            assert_eq!(boot.reported("smp", wrong), 0, "{wrong}");
        }
        // A notification that goes nowhere would be made up for at the end of a slice, 4 million ticks long.
        for key in ["wake", "late", "slowest"] {
            let ticks = boot.reported("smp", key);
            assert!(ticks < 400_000, "{key}: {ticks} ticks");
        }
        assert_eq!(counter(&boot, "vtd.posted"), boot.reported("smp", "raised"));
        assert_no_exits_for(guest, boot.reported("smp", "raised"));
        boot.assert_zero(&["vtd.blocked", "vtd.violations"]);
    }
}
