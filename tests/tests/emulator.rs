//! What the machine notes say of the emulator. A test that fails here says that the emulator has changed, or the note was wrong.

use imsvisor_tests::scenario::{Plan, Scenario};

fn stale(plan: &mut Plan, processors: u32) -> anyhow::Result<()> {
    plan.config.cpus = processors;
    plan.guest("stale", "stale mem=32M")
}

static ONE: Scenario = Scenario::new("exceptions and timer exits on one processor", |plan| stale(plan, 1));
static TWO: Scenario = Scenario::new("exceptions and timer exits on two processors", |plan| stale(plan, 2));

#[test]
fn with_one_processor_a_vm_exit_right_behind_an_exception_saves_the_handlers_address() {
    assert_eq!(ONE.run().verified("stale", "stale"), 0);
}

#[test]
fn with_several_processors_it_saves_the_address_of_the_instruction_that_faulted() {
    let boot = TWO.run();
    let (stale, rounds) = (boot.verified("stale", "stale"), boot.reported("stale", "rounds"));
    assert!(stale != 0, "none of {rounds} exits: the emulator has been mended, and the note can go");
}
