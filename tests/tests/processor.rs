//! The virtual processor as the manual has it: a guest that checks it from within, with its local APIC kept by the processor and by the
//! hypervisor; and what ends a guest.

use imsvisor_tests::scenario::Scenario;

static PROCESSOR: Scenario = Scenario::new("guests that hold their processor to the manual", |plan| {
    // Bochs with several processors spoils exits that follow an exception.
    plan.config.cpus = 1;
    // A processor without MOVDIR64B, which the other boot's has.
    plan.config.cpu_model = "corei7_skylake_x".into();
    plan.guest("processor", "kept mem=32M apicv=on device=dsa")?;
    plan.guest("processor", "emulated mem=32M apicv=off")?;
    plan.guest("processor", "descriptors mem=32M device=dsa cmdline=way=descriptors")?;
    plan.guest("processor", "task mem=32M cmdline=way=task")?;
    plan.guest("hello", "hello mem=32M")
});

#[test]
fn traps_faults_and_flags_are_as_the_manual_has_them() {
    let boot = PROCESSOR.run();
    for name in ["kept", "emulated"] {
        assert!(boot.verified(name, "checks") > 50, "{name}");
    }
}

#[test]
fn a_self_ipi_with_an_illegal_vector_harms_no_guest_whose_local_apic_the_processor_keeps() {
    let boot = PROCESSOR.run();
    boot.assert_hypervisor_lived();
    boot.assert_guest_right("kept");
    assert_eq!(boot.guest("kept").exits.get("apic-write"), Some(&16));
}

#[test]
fn a_hardware_task_switch_ends_the_guest_with_words() {
    let boot = PROCESSOR.run();
    boot.assert_hypervisor_lived();
    let end = boot.guest("task").end.as_ref().expect("the guest ended");
    assert_eq!(end.get("reason"), Some("killed"));
    assert!(boot.outcome().lines.iter().any(|seen| seen.raw.contains("guest task: a hardware task switch")));
    boot.assert_guest_right("hello");
}

#[test]
fn instructions_do_to_a_store_what_they_do_to_memory() {
    let boot = PROCESSOR.run();
    // Each of the forms that are carried out, four times: 835 accesses on a processor without MOVDIR64B.
    assert!(boot.verified("kept", "carried_out") > 800);
}

#[test]
fn a_descriptor_table_in_a_store_ends_the_guest_with_words() {
    let boot = PROCESSOR.run();
    boot.assert_hypervisor_lived();
    let end = boot.guest("descriptors").end.as_ref().expect("the guest ended");
    assert_eq!(end.get("reason"), Some("killed"));
    let words = "guest descriptors: an instruction that reads a descriptor";
    assert!(boot.outcome().lines.iter().any(|seen| seen.raw.contains(words)));
}

static TOGETHER: Scenario = Scenario::new("processors at one slot", |plan| {
    plan.config.cpus = 2;
    plan.guest("processor", "processor mem=64M cpus=2 apicv=off device=dsa cmdline=cpus=2")
});

#[test]
fn what_an_instruction_reads_and_writes_in_a_store_is_one_step() {
    TOGETHER.run().verified("processor", "checks");
}

#[test]
fn a_block_of_64_bytes_reaches_a_store() {
    // Beside the others: MOVDIRI and MOVDIR64B, which this processor has.
    assert!(TOGETHER.run().verified("processor", "carried_out") > PROCESSOR.run().verified("kept", "carried_out"));
}
