//! What others' firmware gets wrong, or asks for: told of on the console, and the machine is used all the same.

use imsvisor_tests::scenario::{Boot, Scenario};

static ODD: Scenario = Scenario::new("firmware that makes mistakes in its tables", |plan| {
    plan.config.cpus = 3;
    plan.plugin(&["odd-firmware"]);
    plan.guest("demo", "demo mem=64M device=dsa")?;
    plan.guest("hello", "hello mem=32M")
});

static OPT_OUT: Scenario = Scenario::new("firmware that asks not to use x2APIC mode", |plan| {
    plan.config.cpus = 2;
    plan.plugin(&["opt-out"]);
    plan.guest("demo", "demo mem=64M device=dsa")?;
    plan.guest("demo", "other mem=64M device=dsa")
});

/// The hypervisor has told of each of these so often.
fn assert_told(boot: &Boot, lines: &[(&str, usize)]) {
    let console = boot.outcome().console();
    for (line, times) in lines {
        assert_eq!(console.matches(line).count(), *times, "\"{line}\" in:\n{console}");
    }
}

/// The machine is used whole.
fn assert_used(boot: &Boot, processors: u64) {
    boot.assert_hypervisor_lived();
    assert_eq!(boot.verdict().failures, Vec::<String>::new());
    assert_eq!((boot.machine.number("vtd_units"), boot.machine.number("processors")), (Some(2), Some(processors)));
    assert_eq!((boot.remap_number("faults"), boot.outcome().counter("vtd.violations")), (0, 0));
}

#[test]
fn odd_structures_and_wrong_checksums_are_told_of_and_all_else_is_used() {
    let boot = ODD.run();
    assert_used(&boot, 2);
    assert_told(
        &boot,
        &[
            ("DMAR: its checksum is wrong", 1),
            ("MCFG: its checksum is wrong", 1),
            ("no region (RMRR) can be", 3),
            ("a structure of length 0 ends the table", 1),
            ("Enable VT-d", 0),
        ],
    );
}

#[test]
fn a_processor_that_is_not_there_is_told_of_and_the_one_behind_it_starts() {
    let boot = ODD.run();
    assert_eq!(boot.machine.number("processors"), Some(2));
    assert_told(&boot, &[("processor 119 does not start; it is passed over", 1), ("does not start", 1)]);
    for guest in ["demo", "hello"] {
        boot.assert_guest_right(guest);
    }
}

#[test]
fn x2apic_opt_out_is_told_of_and_interrupts_arrive_in_xapic_mode() {
    let boot = OPT_OUT.run();
    assert_used(&boot, 2);
    assert_told(&boot, &[("asks not to use x2APIC mode (DMAR): the local APICs stay in xAPIC mode", 1)]);
}
