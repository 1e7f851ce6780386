//! Whole functions whose interrupts are MSI-X alone. On the default machine it is a DSA that says that it is another device, so that the
//! hypervisor knows of it only what PCI says, and with registers and pending bits in the page of its MSI-X table; on QEMU's, without the hypervisor, it is the NVMe controller of nested KVM.

use std::time::Duration;

use imsvisor_boot::machine::bochs::DSAS;
use imsvisor_boot::machine::{self, Config, Kind, NVME};
use imsvisor_tests::bench;
use imsvisor_tests::scenario::{Plan, Scenario, native_result};

/// Vectors, and the interrupts of each: eight at two places, and one that waits in between.
const VECTORS: u64 = 4;
const EACH: u64 = 2 * 8 + 1;
/// After a function level reset one vector is raised eight times.
const AFTER_RESET: u64 = 8;
/// The function that is no DSA is reset twice: its driver sets it up again when the time is over, and at once.
const ALL: u64 = VECTORS * EACH + 2 * AFTER_RESET;

fn unknown(plan: &mut Plan, options: &str) -> anyhow::Result<()> {
    plan.plugin(&["unknown"]);
    plan.guest("whole", &format!("whole mem=64M device={} {options}", DSAS[1]))
}

static INJECTED: Scenario = Scenario::new("a function that is no DSA", |plan| {
    plan.config.cpus = 2;
    unknown(plan, "")?;
    plan.guest("demo", "demo mem=64M device=dsa")?;
    // It has no message store to share, and no unit serves the IDE controller.
    plan.guest("hello", &format!("part device=vdsa:{}", DSAS[1]))?;
    plan.guest("hello", "ide device=00:01.1")
});
static POSTED: Scenario =
    Scenario::new("a function that is no DSA, and posting", |plan| unknown(plan, "apicv=on cmdline=profile=posted"));

#[test]
fn every_interrupt_comes_once_and_where_it_was_sent() {
    for scenario in [&INJECTED, &POSTED] {
        let boot = scenario.run();
        assert_eq!((boot.verified("whole", "vectors"), boot.verified("whole", "held")), (VECTORS, VECTORS));
        assert_eq!(boot.verified("whole", "handled"), ALL);
        assert_eq!(boot.remap_number("faults"), 0);
        assert_eq!(boot.outcome().counter("vtd.compatibility"), 0, "messages pass the unit's table");
    }
    assert_eq!(POSTED.run().outcome().counter("vtd.posted"), ALL);
}

#[test]
fn beside_it_a_dsa_works_and_everything_comes_back() {
    let boot = INJECTED.run();
    boot.assert_guest_right("demo");
    boot.assert_all_came_back();
    // The function was reset after its guest, and sends nothing.
    boot.assert_devices_quiet(0);
    boot.assert_zero(&["vtd.blocked", "vtd.dma_faults", "vtd.violations"]);
}

#[test]
fn what_cannot_be_shared_or_confined_is_refused_in_words() {
    let boot = INJECTED.run();
    boot.assert_refused("part", &["store"]);
    boot.assert_refused("ide", &["covers"]);
}

/// The driver is right: what it finds without the hypervisor is what QEMU's controller does.
#[test]
fn the_guest_drives_qemus_controller_without_the_hypervisor() {
    let (silence, limit) = (Duration::from_secs(60), Duration::from_secs(120));
    let config = Config { silence, limit, ..Config::default() };
    let Some(tools) = bench::qemu_tools().expect("QEMU") else { return };
    let (paths, guest) = (bench::paths().expect("paths"), bench::guest("whole").expect("the guest"));
    let outcome = machine::start_on(Kind::Tcg, paths, tools, &config, guest, &[]).expect("QEMU").finish();
    let result = native_result(&outcome);
    assert!(outcome.console().contains(&format!("{NVME} works")), "{}", outcome.console());
    // The commands that made the queues raised vector 0 while it was masked: one interrupt for all of them.
    assert_eq!(
        (result.number("handled"), result.number("held")),
        (Some(VECTORS * EACH + 1 + AFTER_RESET), Some(VECTORS))
    );
    assert_eq!(result.number("errors"), Some(0));
}
