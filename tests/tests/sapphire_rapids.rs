//! DSAs as Sapphire Rapids has them, and a processor with stores of 64 bytes: the device takes no others, has 2,048 slots, and knows no
//! handles.

use imsvisor_boot::machine::bochs::DSAS;
use imsvisor_tests::scenario::Scenario;

/// Vectors of the two virtual functions: their slots are no vectors' own numbers.
const VECTORS: u64 = 1000 + 100;

static REAL: Scenario = Scenario::new("DSAs of Sapphire Rapids", |plan| {
    plan.config.cpus = 2;
    plan.guest("demo", &format!("demo mem=64M device={}", DSAS[0]))?;
    let function = format!("device=vdsa:{}", DSAS[1]);
    plan.guest("vfunc", &format!("vfunc mem=64M {function} vectors=1000 {function} vectors=100"))
});

#[test]
fn guests_submit_by_stores_of_64_bytes_alone() {
    let boot = REAL.run();
    boot.assert_hypervisor_lived();
    boot.assert_guest_right("demo");
    assert_eq!(boot.outcome().counter("dsa.partial_writes"), 0);
    assert_eq!(boot.verdict().failures, Vec::<String>::new());
}

/// GENCAP of the parent says that there are no handles.
#[test]
fn a_virtual_functions_vectors_are_raised_by_handles_that_its_parent_does_not_have() {
    let boot = REAL.run();
    assert_eq!(boot.verified("vfunc", "vectors"), VECTORS);
    assert_eq!(boot.verified("vfunc", "fired"), VECTORS - 2, "vector 0 of each is not the device's");
}
