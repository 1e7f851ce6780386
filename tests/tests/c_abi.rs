//! A guest in C that uses the guest shim by its static library and header.

use imsvisor_tests::bench;
use imsvisor_tests::scenario::Scenario;

static C_GUEST: Scenario = Scenario::new("a guest in C", |plan| plan.image(bench::c_guest()?, "c mem=64M device=dsa"));

#[test]
fn feature_c_abi_a_guest_in_c_takes_fires_masks_and_frees_interrupts() {
    let boot = C_GUEST.run();
    assert_eq!((boot.verified("c", "slots"), boot.verified("c", "slots_fired")), (16, 16));
    // Each slot fired once at once, and once when it was unmasked.
    assert_eq!(boot.outcome().counter("dsa.messages"), 32);
    assert_eq!(boot.remap_number("live"), 0);
}
