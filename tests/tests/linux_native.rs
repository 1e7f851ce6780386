//! Debian's Linux on the emulated machine itself: its own drivers for the remapping unit, the I/O APIC and the DSA judge the models. Three
//! boots: one with each kind of root table, and one with first-stage tables, PASIDs and page requests; most tests look at all. In a
//! fourth, of a recent Linux, a user's program has a work queue.

use anyhow::{Context, Result};
use imsvisor_boot::machine::bochs::GENEROUS;
use imsvisor_boot::native::Native;
use imsvisor_boot::words::harmless;
use imsvisor_tests::bench::Once;
use imsvisor_tests::scenario;

/// One request outstanding, so that two interrupts never come together; the work queue's interrupt moves between the processors
/// meanwhile.
const WORK: &str = "copies=800 outstanding=1 affinity=yes";

/// A boot: options for the plugin, what comes behind Linux' command line, and what came of it.
struct Boot {
    plugin: &'static [&'static str],
    append: &'static str,
    ran: Once<Option<(Native, String)>>,
}

static LEGACY: Boot = Boot { plugin: &[], append: "intel_iommu=on,sm_off", ran: Once::new() };
/// Units without first-stage tables.
static SCALABLE: Boot = Boot { plugin: &[GENEROUS], append: "intel_iommu=on,sm_on", ran: Once::new() };
/// Linux takes first-stage tables for all DMA where there are any, and PASIDs for its own work queues where users could have some.
static FIRST_STAGE: Boot = Boot { plugin: &["sva"], append: "intel_iommu=on,sm_on", ran: Once::new() };
/// A recent Linux, in which a user's program copies with its own addresses.
static USERS: Boot = Boot { plugin: &[], append: "intel_iommu=on,sm_on sva=yes user_copies=64", ran: Once::new() };

impl Boot {
    /// What came of it, and the console; nothing where Linux cannot be had.
    fn run(&'static self) -> Option<&'static (Native, String)> {
        let ran = self.ran.get(|| self.boot());
        ran.unwrap_or_else(|error| panic!("Linux could not be booted: {error:#}")).as_ref()
    }

    fn boot(&self) -> Result<Option<(Native, String)>> {
        let words: Vec<String> = self.append.split(' ').chain(WORK.split(' ')).map(str::to_owned).collect();
        let Some(outcome) = scenario::boot_linux(self.append, self.plugin, &words).context(self.append)? else {
            return Ok(None);
        };
        let told = format!("{}\n{}; logs: {}", harmless(&outcome.console()), outcome.end, outcome.directory.display());
        Ok(Some((Native::new(&outcome), told)))
    }
}

/// Looks at each boot, with its console for messages. They run at one time.
fn each(look: impl Fn(&Native, &str)) {
    let all = std::thread::scope(|scope| {
        let boots = [&LEGACY, &SCALABLE, &FIRST_STAGE].map(|boot| scope.spawn(|| boot.run()));
        boots.map(|boot| boot.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    all.into_iter().flatten().for_each(|(native, told)| look(native, told));
}

#[test]
fn linux_and_the_models_agree() {
    each(|native, told| assert_eq!(native.failures(), Vec::<String>::new(), "{told}"));
}

#[test]
fn linux_remaps_interrupts_in_x2apic_mode_and_the_io_apics_too() {
    each(|native, told| {
        let said = |words: &str| native.words.iter().any(|other| other.contains(words));
        assert!(said("Enabled IRQ remapping in x2apic mode") && said("IOAPIC id"), "{told}");
        let [sent, remapped] = ["ioapic.messages", "ioapic.remapped"].map(|key| native.counter(key));
        assert!(remapped > 0 && remapped <= sent, "{remapped} of {sent}");
        // What was sent before remapping was on passed in compatibility format.
        assert_eq!(sent, remapped + native.counter("vtd.compatibility"), "{told}");
    });
}

#[test]
fn the_tables_are_of_the_kind_that_was_asked_for() {
    for (boot, expected) in [(&LEGACY, [false, false]), (&SCALABLE, [true, false]), (&FIRST_STAGE, [true, true])] {
        let Some((native, told)) = boot.run() else { continue };
        let used = ["vtd.scalable_roots", "vtd.first_stage_walks"].map(|key| native.counter(key) > 0);
        assert_eq!(used, expected, "{told}");
    }
}

/// Looks at the boot with a user's program.
fn user(look: impl Fn(&Native, &str)) {
    if let Some((native, told)) = USERS.run() {
        look(native, told);
    }
}

#[test]
fn linux_turns_shared_virtual_addressing_on_and_its_own_copies_have_a_pasid() {
    let Some((native, told)) = FIRST_STAGE.run() else { return };
    assert!(!told.contains("Unable to turn on user SVA") && !told.contains("SVM disabled"), "{told}");
    assert_eq!(native.counter("dsa.with_pasid"), 800, "{told}");
    assert!(native.counter("vtd.translations_granted") > 0, "{told}");
    let Some((native, told)) = SCALABLE.run() else { return };
    assert_eq!((native.counter("dsa.with_pasid"), native.counter("vtd.translations_granted")), (0, 0), "{told}");
}

#[test]
fn a_users_program_copies_with_its_own_addresses() {
    user(|native, told| {
        assert_eq!(native.failures(), Vec::<String>::new(), "{told}");
        let result = native.result.as_ref().expect(told);
        let number = |key: &str| result.number(key).unwrap_or(0);
        assert_eq!((number("user_verified"), number("user_faulted")), (48, 16), "{told}");
        assert_eq!(native.counter("dsa.with_pasid"), 64, "{told}");
    });
}

#[test]
fn each_page_that_is_missing_is_asked_for_and_every_request_answered() {
    user(|native, told| {
        // A destination, or a source, of every second copy.
        let counted = ["dsa.page_requests", "vtd.page_requests", "vtd.page_responses", "dsa.page_responses"];
        let counted = counted.map(|key| native.counter(key));
        assert!(counted[0] >= 32 && counted.iter().all(|count| *count == counted[0]), "{counted:?}: {told}");
        assert!(native.counter("vtd.translations_denied") > counted[0], "those that do not wait as well: {told}");
        for key in ["vtd.violations", "vtd.queue_errors", "vtd.dma_faults", "vtd.page_requests_lost", "vtd.blocked"] {
            assert_eq!(native.counter(key), 0, "{key}: {told}");
        }
    });
}

#[test]
fn the_unit_finds_neither_a_violation_nor_a_fault() {
    each(|native, told| {
        for key in ["vtd.violations", "vtd.queue_errors", "vtd.dma_faults", "vtd.interrupt_faults", "vtd.blocked"] {
            assert_eq!(native.counter(key), 0, "{key}: {told}");
        }
        assert!(native.counter("vtd.iec_flushes") > 0 && native.counter("vtd.waits") > 0, "{told}");
    });
}

#[test]
fn every_copy_is_verified_and_every_interrupt_counted_while_it_moves() {
    each(|native, told| {
        let result = native.result.as_ref().expect(told);
        let number = |key: &str| result.number(key).unwrap_or(0);
        assert_eq!((number("verified"), number("errors"), number("timeouts")), (800, 0, 0), "{told}");
        assert!(number("moved") > 10, "{told}");
        let counts = native.counts();
        assert!(counts.handled >= 800, "{counts:?}");
        // None was outstanding beside another.
        assert_eq!((counts.merged, counts.raised), (0, counts.remapped), "{counts:?}");
        assert_eq!(counts.remapped, counts.handled + counts.closing, "{counts:?}");
    });
}
