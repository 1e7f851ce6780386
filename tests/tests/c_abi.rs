//! Guests in C that use the guest shim by its static library and header, and the smallest guests in C and in Rust.

use imsvisor_boot::machine::bochs::GENEROUS;
use imsvisor_tests::bench;
use imsvisor_tests::scenario::Scenario;

static C_GUEST: Scenario =
    Scenario::new("a guest in C", |plan| plan.image(&bench::c_guest("guest")?, "c mem=64M device=dsa"));

static MINIMAL: Scenario = Scenario::new("the smallest guests", |plan| {
    plan.guest("minimal", "minimal mem=64M device=dsa")?;
    plan.image(&bench::c_guest("minimal")?, "minimal-c mem=64M device=dsa")
});

#[test]
fn feature_c_abi_a_guest_in_c_takes_fires_masks_and_frees_interrupts() {
    let boot = C_GUEST.run();
    assert_eq!((boot.verified("c", "slots"), boot.verified("c", "slots_fired")), (16, 16));
    // Each slot fired once at once, and once when it was unmasked; and once when all were mapped together.
    assert_eq!((boot.verified("c", "again"), boot.outcome().counter("dsa.messages")), (16, 48));
    assert_eq!(boot.remap_number("live"), 0);
}

#[test]
fn feature_c_abi_a_guest_in_c_ends_interrupts_without_an_exit() {
    assert!(C_GUEST.run().verified("c", "pv_eois") > 0);
}

static C_QUEUE: Scenario = Scenario::new("a guest in C with a store in its memory", |plan| {
    plan.plugin(&[GENEROUS]);
    plan.image(&bench::c_guest("queue")?, "c-queue mem=64M device=dsa")
});

#[test]
fn feature_c_abi_a_guest_in_c_uses_a_store_in_its_own_memory() {
    let boot = C_QUEUE.run();
    assert_eq!((boot.verified("c-queue", "slots"), boot.verified("c-queue", "slots_fired")), (8, 8));
}

#[test]
fn the_smallest_guests_in_c_and_in_rust_take_one_interrupt_each() {
    let boot = MINIMAL.run();
    for guest in ["minimal", "minimal-c"] {
        assert_eq!(boot.verified(guest, "slots_fired"), 1, "{guest}");
    }
    assert_eq!(boot.outcome().counter("dsa.messages"), 2);
}
