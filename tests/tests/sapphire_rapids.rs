//! DSAs as Sapphire Rapids has them, and a processor with stores of 64 bytes: the device takes no others, has 2,048 slots, and knows no
//! handles.

use imsvisor_boot::linux::CPU_MODEL;
use imsvisor_tests::scenario::{Plan, Scenario};

/// Vectors of the two virtual functions: their slots are no vectors' own numbers.
const VECTORS: u64 = 1000 + 100;

fn real(plan: &mut Plan) {
    plan.config.cpus = 2;
    plan.config.cpu_model = CPU_MODEL.into();
    plan.config.plugin_options.push("sapphire-rapids".into());
}

static REAL: Scenario = Scenario::new("DSAs of Sapphire Rapids", |plan| {
    real(plan);
    plan.guest("demo", "demo mem=64M device=00:1e.0")?;
    plan.guest("vfunc", "vfunc mem=64M device=vdsa:00:1f.0 vectors=1000 device=vdsa:00:1f.0 vectors=100")
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
