//! The hypervisor's VT-d code against a remapping unit that others have written: QEMU's. One boot of `vtd-check`, and a test for each of
//! its cases. Besides, the hypervisor itself on that machine, which has everything but VT-x.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use imsvisor_boot::event::Pairs;
use imsvisor_boot::machine::{self, Config, Kind, Outcome};
use imsvisor_boot::words::harmless;
use imsvisor_tests::bench::{self, Once};
use imsvisor_tests::scenario::native_result;

/// Either run takes a second on a machine that has nothing else to do; one that writes no line for so long has hung.
const SILENCE: Duration = Duration::from_secs(60);
const LIMIT: Duration = Duration::from_secs(120);

/// Boots an image on QEMU, whose remapping unit has these properties besides. `None` where there is no QEMU.
fn boot(image: &Path, properties: &[&str]) -> Result<Option<Outcome>> {
    let Some(tools) = bench::qemu_tools()? else { return Ok(None) };
    let extra = properties.iter().flat_map(|property| ["-global".to_owned(), format!("intel-iommu.{property}")]);
    let config = Config { cpus: 2, extra: extra.collect(), silence: SILENCE, limit: LIMIT, ..Config::default() };
    Ok(Some(machine::start_on(Kind::Tcg, bench::paths()?, tools, &config, image, &[])?.finish()))
}

/// Boots the check for one test.
fn boot_check(properties: &[&str]) -> Option<Outcome> {
    boot(bench::vtd_check().expect("the check"), properties).expect("a boot")
}

/// What came of the cases.
fn check() -> Option<&'static Outcome> {
    static CHECK: Once<Option<Outcome>> = Once::new();
    let booted = CHECK.get(|| boot(bench::vtd_check()?, &[]));
    booted.unwrap_or_else(|error| panic!("the check could not be booted: {error:#}")).as_ref()
}

/// What came of the hypervisor.
fn hypervisor() -> Option<&'static Outcome> {
    static HYPERVISOR: Once<Option<Outcome>> = Once::new();
    let booted = HYPERVISOR.get(|| boot(bench::hypervisor()?, &[]));
    booted.unwrap_or_else(|error| panic!("the hypervisor could not be booted: {error:#}")).as_ref()
}

fn events<'a>(outcome: &'a Outcome, name: &str) -> Vec<&'a Pairs> {
    outcome.lines.iter().filter_map(|seen| seen.line.event(name)).collect()
}

/// The only event of a name.
fn event<'a>(outcome: &'a Outcome, name: &str) -> &'a Pairs {
    match events(outcome, name)[..] {
        [event] => event,
        _ => panic!("not one event {name}, but:\n{}", told(outcome)),
    }
}

fn told(outcome: &Outcome) -> String {
    format!("{}\n{}; logs: {}", harmless(&outcome.console()), outcome.end, outcome.directory.display())
}

/// The line of the case of this name.
fn case<'a>(outcome: &'a Outcome, name: &str) -> &'a Pairs {
    let found = events(outcome, "check").into_iter().find(|case| case.get("name") == Some(name));
    found.unwrap_or_else(|| panic!("the case {name} was not run:\n{}", told(outcome)))
}

/// A test for each case, and a list of their names.
macro_rules! cases {
    ($list:ident, $judge:ident: $($name:ident)+) => {
        const $list: &[&str] = &[$(stringify!($name)),+];
        $(#[test] fn $name() { $judge(&stringify!($name).replace('_', "-")) })+
    };
}

/// The unit does what the manual says.
fn passed(name: &str) {
    let Some(outcome) = check() else { return };
    let case = case(outcome, name);
    assert_eq!(case.get("result"), Some("passed"), "{case}");
}

/// QEMU does not look at this, and the image says so. A later QEMU may.
fn unchecked(name: &str) {
    if let Some(outcome) = check() {
        admitted(case(outcome, name));
    }
}

fn admitted(case: &Pairs) {
    let admitted = case.get("result") == Some("unchecked") && case.get("why").is_some_and(|why| why.contains("QEMU"));
    assert!(admitted || case.get("result") == Some("passed"), "{case}");
}

cases! { CHECKED, passed:
    dma_of_nobodys_function_is_refused
    dma_reaches_what_is_mapped
    dma_write_to_the_hypervisors_memory_is_refused
    dma_read_of_the_hypervisors_memory_is_refused
    dma_into_a_hole_is_refused
    dma_write_to_a_read_only_page_is_refused
    dma_of_a_detached_function_is_refused
    dma_of_another_function_works_meanwhile
    store_message_arrives_at_its_vector
    store_message_to_an_absent_entry_is_refused
    store_message_beyond_the_table_is_refused
    store_message_to_reserved_bits_is_refused
    store_message_follows_a_retarget
    msi_arrives_at_its_vector
    msi_to_an_absent_entry_is_refused
    msi_beyond_the_table_is_refused
    msi_to_reserved_bits_is_refused
    msi_from_another_source_is_refused
    msi_follows_a_retarget
    msi_follows_a_retarget_to_another_processor
    msi_to_a_retired_entry_is_refused
    each_index_leads_to_its_own_vector
    msix_arrives_at_its_vector
    msix_of_two_queues_arrives_at_two_vectors
    msix_from_another_source_is_refused
    msix_follows_a_retarget
    a_posting_entry_is_not_made_where_the_unit_cannot_post
    the_queue_goes_on_after_a_refused_descriptor
    the_queue_wraps_around
    a_function_that_is_reset_forgets_its_work
    a_function_that_is_reset_is_where_it_was
    a_function_without_the_capability_is_not_reset
    a_unit_in_use_is_taken_over_with_32_bit_destinations
    destinations_of_32_bits_are_reached
    the_new_table_is_the_one_in_use
    a_domain_of_the_old_unit_is_refused
}

cases! { UNCHECKED, unchecked:
    store_message_from_another_source
    a_message_in_the_compatibility_format
    an_entry_that_was_not_flushed
}

/// Levels of tables and caching mode of the unit.
fn unit(outcome: &Outcome) -> (Option<u64>, Option<&str>) {
    let unit = event(outcome, "unit");
    (unit.number("levels"), unit.get("caching"))
}

#[test]
fn all_cases_pass_with_tables_of_three_levels() {
    let (Some(check), Some(outcome)) = (check(), boot_check(&["aw-bits=39"])) else { return };
    assert_eq!((unit(check), unit(&outcome)), ((Some(4), Some("false")), (Some(3), Some("false"))));
    all_passed(&outcome);
}

/// In caching mode what was not present may be in a cache as well (6.1).
#[test]
fn all_cases_pass_in_caching_mode() {
    let Some(outcome) = boot_check(&["caching-mode=on"]) else { return };
    assert_eq!(unit(&outcome), (Some(4), Some("true")));
    all_passed(&outcome);
}

/// In scalable mode: the same by PASID entries.
#[test]
fn all_cases_pass_in_scalable_mode() {
    let Some(tools) = bench::qemu_tools().expect("QEMU") else { return };
    let name = tools.qemu.as_ref().expect("QEMU").scalable_mode();
    let outcome = boot_check(&[&format!("{name}=on")]).expect("QEMU");
    assert_eq!(event(&outcome, "unit").get("scalable"), Some("true"));
    all_passed(&outcome);
}

fn all_passed(outcome: &Outcome) {
    for name in CHECKED {
        let case = case(outcome, &name.replace('_', "-"));
        assert_eq!(case.get("result"), Some("passed"), "{case}");
    }
    assert_eq!(event(outcome, "done").get("status"), Some("ok"), "{}", told(outcome));
}

#[test]
fn the_remapping_unit_of_others_comes_up() {
    let Some(outcome) = check() else { return };
    let machine = event(outcome, "machine");
    assert_eq!(machine.number("vtd_units"), Some(1), "{}", told(outcome));
    assert!(machine.number("functions").is_some_and(|count| count >= 3), "{machine}");
}

#[test]
fn every_case_is_judged_here_and_the_image_comes_to_its_end() {
    if let Some(outcome) = check() {
        all_judged(outcome, CHECKED, UNCHECKED);
    }
}

fn all_judged(outcome: &Outcome, checked: &[&str], unchecked: &[&str]) {
    let ran: Vec<_> = events(outcome, "check").into_iter().filter_map(|case| case.get("name")).collect();
    let mut judged: Vec<_> = checked.iter().chain(unchecked).map(|name| name.replace('_', "-")).collect();
    judged.sort_by_key(|name| ran.iter().position(|other| other == name));
    assert_eq!(ran, judged, "{}", told(outcome));
    assert_eq!(event(outcome, "done").get("status"), Some("ok"), "{}", told(outcome));
    assert!(outcome.end.is_right(), "{}", outcome.end);
}

#[test]
fn the_hypervisor_itself_finds_functions_and_brings_the_remapping_unit_up() {
    let (Some(hypervisor), Some(check)) = (hypervisor(), check()) else { return };
    let machine = event(hypervisor, "machine");
    assert_eq!(machine.number("vtd_units"), Some(1), "{}", told(hypervisor));
    assert_eq!(machine.number("functions"), event(check, "machine").number("functions"), "{machine}");
}

#[test]
fn without_vmx_the_hypervisor_says_so_and_ends() {
    let Some(outcome) = hypervisor() else { return };
    let refused = event(outcome, "refused");
    assert_eq!(refused.get("what"), Some("vmx"), "{}", told(outcome));
    assert!(refused.get("why").is_some_and(|why| why.contains("no VMX")), "{refused}");
    assert_eq!(event(outcome, "done").get("status"), Some("failed"));
    assert!(outcome.end.is_right(), "{}", told(outcome));
    assert!(!outcome.console().contains("panicked"), "{}", told(outcome));
}

/// 128 processors of a sparse topology, the last of which have APIC IDs above 255: each is started, finds no VMX, and stops.
#[test]
fn all_of_128_processors_start_those_with_ids_above_255_as_well() {
    let Some(tools) = bench::qemu_tools().expect("QEMU") else { return };
    // Cores and threads take three bits each, so a socket takes 64 IDs: the last ones are 320 to 322.
    let topology = ["-smp", "128,maxcpus=150,sockets=6,cores=5,threads=5"];
    let extra = topology.map(str::to_owned).into();
    let config = Config { cpus: 128, extra, silence: SILENCE, limit: LIMIT, ..Config::default() };
    let (paths, image) = (bench::paths().expect("paths"), bench::hypervisor().expect("the hypervisor"));
    let booted = machine::start_on(Kind::Tcg, paths, tools, &config, image, &[]).map(|run| run.finish());
    let outcome = booted.expect("a boot");
    let machine = event(&outcome, "machine");
    assert_eq!((machine.number("processors"), machine.number("vtd_units")), (Some(128), Some(1)), "{}", told(&outcome));
    assert_eq!(event(&outcome, "refused").get("what"), Some("vmx"), "{}", told(&outcome));
    assert!(!outcome.console().contains("does not start"), "{}", told(&outcome));
    assert!(outcome.end.is_right(), "{}", told(&outcome));
}

/// Boots an image on a machine with served DSAs; `None` where the QEMU for that cannot be had.
fn boot_served(image: &Path, config: Config) -> Result<Option<Outcome>> {
    let Some(tools) = bench::vfio_user_tools()? else { return Ok(None) };
    let dsa_server = Some(bench::dsa_server()?.to_owned());
    let config = Config { dsa_server, silence: SILENCE, limit: LIMIT, ..config };
    Ok(Some(machine::start_on(Kind::Tcg, bench::paths()?, tools, &config, image, &[])?.finish()))
}

/// What came of the cases of a served DSA.
fn served() -> Option<&'static Outcome> {
    static SERVED: Once<Option<Outcome>> = Once::new();
    let booted = SERVED.get(|| boot_served(bench::vtd_check()?, Config { cpus: 2, ..Config::default() }));
    booted.unwrap_or_else(|error| panic!("the check could not be booted: {error:#}")).as_ref()
}

/// The unit does what the manual says, with a DSA.
fn served_passed(name: &str) {
    let Some(outcome) = served() else { return };
    let case = case(outcome, name);
    assert_eq!(case.get("result"), Some("passed"), "{case}");
}

/// QEMU does not look at this, and the image says so.
fn served_unchecked(name: &str) {
    if let Some(outcome) = served() {
        admitted(case(outcome, name));
    }
}

cases! { SERVED_CHECKED, served_passed:
    served_dma_of_nobodys_function_is_refused
    served_dma_reaches_what_is_mapped
    served_dma_to_the_hypervisors_memory_is_refused
    served_dma_to_a_read_only_page_is_refused
    served_dma_of_a_detached_function_is_refused
    slot_arrives_at_its_vector
    slot_to_an_absent_entry_is_refused
    slot_beyond_the_table_is_refused
    slot_to_reserved_bits_is_refused
    slot_follows_a_retarget
    slot_follows_a_retarget_to_another_processor
    slots_are_retargeted_under_fire
    slot_to_a_retired_entry_is_refused
    slot_that_is_masked_holds_its_interrupt
    slot_and_msix_entry_of_one_function_are_apart
}

cases! { SERVED_UNCHECKED, served_unchecked:
    slot_to_an_entry_of_another_source
    slot_in_the_compatibility_format
}

#[test]
fn every_case_of_a_served_dsa_is_judged_here_and_the_image_comes_to_its_end() {
    if let Some(outcome) = served() {
        all_judged(outcome, SERVED_CHECKED, SERVED_UNCHECKED);
        assert_eq!(
            unit(outcome),
            (Some(4), Some("true")),
            "QEMU tells other processes of translations in caching mode only"
        );
    }
}

/// The demo on QEMU's machine itself, with the served DSAs.
fn native() -> Option<&'static Outcome> {
    static NATIVE: Once<Option<Outcome>> = Once::new();
    let boot = || {
        // What gives QEMU away is hidden, or the guest would not use the store: it asks for bare metal.
        let disguise = ["-smbios", "type=0,vendor=Firmware", "-smbios", "type=1,manufacturer=Maker,product=Board"];
        let unit = ["-global", "intel-iommu.caching-mode=off"];
        let extra = disguise.into_iter().chain(unit).map(str::to_owned).collect();
        let config = Config { native: true, exclude_features: vec!["hypervisor".into()], extra, ..Config::default() };
        boot_served(bench::guest("demo")?, config)
    };
    NATIVE.get(boot).unwrap_or_else(|error| panic!("the demo could not be booted: {error:#}")).as_ref()
}

#[test]
fn feature_native_the_same_driver_and_device_on_qemus_machine() {
    let Some(outcome) = native() else { return };
    let result = native_result(outcome);
    let reported = |key| result.number(key).unwrap_or_else(|| panic!("no {key}"));
    assert_eq!((reported("slots"), reported("slots_fired"), reported("errors")), (256, 256, 0));
    assert_eq!((reported("verified"), reported("bytes")), (reported("descriptors"), 1 << 20));
    // The server counts what the device sent, and QEMU has delivered each.
    assert_eq!(reported("handled"), outcome.counter("dsa.messages"));
    assert_eq!((outcome.counter("dsa.refused"), outcome.counter("dsa.faults")), (0, 0));
}
