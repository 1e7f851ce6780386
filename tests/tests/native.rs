//! Without the hypervisor: the same guests on the emulated machine itself, and what they find there compared with what they find in a
//! guest.

use imsvisor_tests::scenario::Scenario;

static DEMO: Scenario = Scenario::new("the demo without the hypervisor", |plan| {
    plan.native("demo", "");
    Ok(())
});

#[test]
fn feature_native_the_same_driver_programs_the_store_itself_and_every_interrupt_comes() {
    let boot = DEMO.run();
    let result = boot.native_result();
    let reported = |key| result.number(key).unwrap_or_else(|| panic!("no {key}"));
    assert_eq!((reported("slots"), reported("slots_fired"), reported("errors")), (256, 256, 0));
    assert_eq!(reported("verified"), reported("descriptors"));
    // Messages in compatibility format, which pass a unit that does not remap.
    let counter = |name| boot.outcome().counter(name);
    assert_eq!(reported("handled"), counter("dsa.messages"));
    assert_eq!((counter("vtd.compatibility"), counter("vtd.remapped")), (counter("dsa.messages"), 0));
    assert_eq!(counter("vtd.violations"), 0);
}

static NATIVE: Scenario = Scenario::new("the bare-metal test without the hypervisor", |plan| {
    plan.native("features", "case=detect");
    Ok(())
});
static GUEST: Scenario =
    Scenario::new("the bare-metal test in a guest", |plan| plan.guest("features", "features cmdline=\"case=detect\""));

const HINTS: [&str; 7] = ["cpuid", "smbios", "caching_mode", "np_cache", "virtio_iommu", "vendor", "product"];

#[test]
fn feature_bare_metal_test_the_emulated_machine_itself_gives_no_hint() {
    let boot = NATIVE.run();
    let found = boot.native_result();
    assert_eq!(HINTS.map(|hint| found.number(hint)), [Some(0); 7]);
    // The firmware has SMBIOS, so its part of the test has run; and the unit was looked at as the manual allows.
    assert_eq!((found.number("has_smbios"), found.number("bare_metal")), (Some(1), Some(1)));
    assert_eq!(boot.outcome().counter("vtd.violations"), 0);
}

#[test]
fn feature_bare_metal_test_in_a_guest_the_hypervisor_bit_gives_it_away() {
    let boot = GUEST.run();
    boot.assert_guest_right("features");
    let found = boot.guest("features").result.clone().expect("a result");
    assert_eq!(HINTS.map(|hint| found.number(hint)), [Some(1), Some(0), Some(0), Some(0), Some(0), Some(0), Some(0)]);
    assert_eq!(found.number("bare_metal"), Some(0));
}
