//! Virtual functions: a guest that knows nothing of interrupt message stores has MSI-X vectors that are slots of one, and vectors that the
//! hypervisor signals by itself. The guest `vfunc` tries all of it by the PCI specification's rules; here it is made sure that it did, and
//! by which way.

use std::collections::BTreeSet;
use std::ops::Range;

use imsvisor_boot::event::Pairs;
use imsvisor_boot::machine::bochs::{DSAS, GENEROUS, GENEROUS_DSAS};
use imsvisor_tests::scenario::{Boot, Plan, Scenario};

/// Vectors of the two functions.
const VECTORS: u64 = 2048 + 100;
/// Interrupts of the hypervisor's own that each function gets: three for commands, three that were held back, one for an error, one after a
/// function level reset.
const SIGNALS: u64 = 2 * (3 + 3 + 1 + 1);
/// Errors of descriptors, of which the device tells the hypervisor by an interrupt.
const ERRORS: u64 = 2;
/// What waits in a function when it is reset by its command, and by a function level reset, one interrupt for each, is sent to nowhere.
const DROPPED: u64 = 2 * 2;

/// The DSA that the functions are of, and one that another guest has as a whole.
const FUNCTIONS: &str = "device=vdsa vectors=2048 device=vdsa vectors=100";
/// A fault of the parent's, told as the guest's whose function it is.
const FAULT: [&str; 3] = ["dma", GENEROUS_DSAS[1], "1"];
const DEMO: &str = "demo mem=64M device=dsa";

/// On a machine whose stores have more slots than the tables have vectors.
fn functions(plan: &mut Plan, options: &str) -> anyhow::Result<()> {
    plan.plugin(&[GENEROUS]);
    plan.guest("vfunc", &format!("vfunc mem=64M {FUNCTIONS} {options}"))
}

static ALONE: Scenario = Scenario::new("virtual functions", |plan| functions(plan, ""));
/// With two virtual processors, between which vectors move.
static MOVING: [Scenario; 2] = [
    Scenario::new("virtual functions, and two processors", |plan| moving(plan, "cmdline=processors=2")),
    Scenario::new("virtual functions, two processors, and posting", |plan| {
        moving(plan, "apicv=on cmdline=\"profile=posted processors=2\"")
    }),
];

fn moving(plan: &mut Plan, options: &str) -> anyhow::Result<()> {
    plan.config.cpus = 2;
    plan.guest("vfunc", &format!("vfunc cpus=2 device=vdsa vectors=64 device=vdsa {options}"))
}

/// Beside a guest that asks for more than a device has.
static POSTED: Scenario = Scenario::new("virtual functions, and posting", |plan| {
    functions(plan, "apicv=on cmdline=profile=posted")?;
    let function = format!("device=vdsa:{}", GENEROUS_DSAS[1]);
    plan.guest("hello", &format!("much {function} vectors=2048 {function} vectors=2048 {function} vectors=2"))
});

/// A vector that fires faster than the guest's limit.
static STORM: Scenario = Scenario::new("a virtual function that storms", |plan| {
    plan.guest("vfunc", "vfunc device=vdsa storm=50 cmdline=case=storm")
});

/// Errors without end, of which the parent tells the hypervisor.
static FLOOD: Scenario = Scenario::new("a virtual function with errors without end", |plan| {
    plan.guest("vfunc", "vfunc device=vdsa cmdline=case=flood")
});

/// It reaches for memory that is not its, and ends without stopping anything.
static CRASH: Scenario = Scenario::new("a guest with a virtual function that crashes", |plan| {
    plan.config.cpus = 2;
    // Its unit has a record for each fault.
    plan.plugin(&[GENEROUS]);
    plan.guest("demo", DEMO)?;
    plan.guest("vfunc", "vfunc device=vdsa cmdline=case=crash")
});

/// Another guest has functions of the same parent, and goes on when the first crashes.
static SHARED: Scenario = Scenario::new("two guests with functions of one parent", |plan| {
    plan.config.cpus = 2;
    plan.plugin(&[GENEROUS]);
    let function = format!("device=vdsa:{}", GENEROUS_DSAS[1]);
    plan.guest("vfunc", &format!("vfunc {function} vectors=100 {function} vectors=64"))?;
    plan.guest("vfunc", &format!("crasher {function} vectors=32 cmdline=case=crash"))
});

/// The parent of two guests' functions halts.
static HALTED: Scenario = Scenario::new("two guests with functions of a device that halts", |plan| {
    plan.config.cpus = 2;
    plan.plugin(&["halts"]);
    for name in ["left", "right"] {
        plan.guest("vfunc", &format!("{name} device=vdsa:{} vectors=8 cmdline=case=halt", DSAS[0]))?;
    }
    Ok(())
});

/// One guest has two functions' queues drained without end; another guest gives commands to its function of the same parent.
static DRAINED: Scenario = Scenario::new("drains without end, and another guest's commands", |plan| {
    plan.config.cpus = 2;
    // A command takes longer than `command_arbiter::QUICK`.
    plan.plugin(&["slow-commands"]);
    plan.guest("vfunc", "drainer device=vdsa vectors=2 device=vdsa vectors=2 cmdline=case=drain")?;
    plan.guest("vfunc", "vfunc device=vdsa vectors=2 cmdline=case=commands")
});

/// A remapping unit without scalable mode cannot tell functions of one parent apart, nor a function's PASIDs.
static LEGACY: Scenario = Scenario::new("a remapping unit without scalable mode", |plan| {
    plan.plugin(&["legacy"]);
    plan.guest("hello", "function device=vdsa")?;
    plan.guest("hello", "owner device=dsa pasids=1-f")?;
    plan.guest("demo", DEMO)
});

/// Beside a guest that has a whole DSA, and guests that ask for what they cannot have.
static TOGETHER: Scenario = Scenario::new("virtual functions beside other guests", |plan| {
    plan.config.cpus = 2;
    plan.guest("demo", DEMO)?;
    functions(plan, "")?;
    let [first, second, ..] = GENEROUS_DSAS;
    plan.guest("hello", &format!("whole device={second}"))?;
    plan.guest("hello", &format!("part device=vdsa:{first}"))?;
    plan.guest("hello", "none device=vdsa:00:01.0")
});

#[test]
fn feature_msix_backed_every_vector_of_tables_of_2048_and_100_fires_once() {
    let boot = ALONE.run();
    assert_eq!(boot.verified("vfunc", "vectors"), VECTORS);
    // Vector 0 of each is not the device's.
    assert_eq!(boot.verified("vfunc", "fired"), VECTORS - 2);
    assert!(boot.remap_number("high_water") >= VECTORS - 2, "{}", boot.remap);
}

#[test]
fn feature_msix_backed_no_interrupt_is_lost_doubled_or_misled_on_its_way() {
    let boot = ALONE.run();
    let handled = boot.verified("vfunc", "handled");
    assert!(handled > VECTORS, "masked and unmasked ones come on top: {handled}");
    let counts = boot.interrupts();
    assert_eq!([counts.delivered, counts.handled], [Some(handled); 2], "delivered, handled");
    // The device raises all of them as slots of its store, beside what is not for the guest.
    assert_eq!([counts.raised, counts.remapped], [Some(handled + ERRORS + DROPPED); 2], "raised, remapped");
    assert_eq!(boot.remap_number("faults"), 0);
}

#[test]
fn feature_msix_backed_the_guest_makes_no_hypercall_and_submits_without_exits() {
    let boot = ALONE.run();
    let guest = boot.guest("vfunc");
    assert_eq!(boot.verified("vfunc", "errors"), 0);
    assert_eq!(guest.interrupts.number("hypercalls"), Some(0));
    // Each descriptor is eight stores to the portal: with exits there would be more of them than of everything else.
    let (violations, stores) = (guest.exits["ept-violation"], 8 * boot.outcome().counter("dsa.descriptors"));
    assert!(violations < stores, "{violations} EPT violations, {stores} stores to portals");
}

#[test]
fn feature_msix_backed_no_function_can_name_anothers_vector() {
    assert_eq!(ALONE.run().verified("vfunc", "foreign_refused"), 6);
}

#[test]
fn feature_msix_backed_posted_interrupts_reach_the_guest_without_exits() {
    let boot = POSTED.run();
    let handled = boot.verified("vfunc", "handled");
    assert_eq!(boot.outcome().counter("vtd.posted"), handled);
    let exits = boot.guest("vfunc").exits.get("external-interrupt").copied().unwrap_or(0);
    assert!(exits < handled / 100, "{exits} exits for interrupts, {handled} interrupts");
}

#[test]
fn feature_msix_backed_beside_a_whole_function_and_everything_comes_back() {
    let boot = TOGETHER.run();
    assert_eq!(boot.verified("vfunc", "fired"), VECTORS - 2);
    boot.assert_guest_right("demo");
    boot.assert_all_came_back();
    assert_eq!(boot.remap_number("faults"), 0);
    boot.assert_devices_quiet(0);
    boot.assert_zero(&["vtd.blocked", "vtd.dma_faults", "vtd.violations"]);
}

#[test]
fn feature_msix_backed_what_cannot_be_given_is_refused_in_words() {
    let boot = TOGETHER.run();
    boot.assert_hypervisor_lived();
    for (guest, word) in [("whole", "another"), ("part", "another"), ("none", "store")] {
        boot.assert_refused(guest, &[word]);
    }
    POSTED.run().assert_refused("much", &["slots"]);
}

#[test]
fn feature_emulated_commands_and_errors_signal_vector_0_through_its_masks() {
    for scenario in [&ALONE, &POSTED] {
        let boot = scenario.run();
        assert_eq!(boot.verified("vfunc", "emulated"), SIGNALS);
        // The device had no part in them.
        let messages = boot.verified("vfunc", "handled") + ERRORS + DROPPED;
        assert_eq!(boot.outcome().counter("dsa.messages"), messages);
    }
}

#[test]
fn feature_msix_backed_vectors_move_between_processors_and_none_is_lost() {
    for scenario in &MOVING {
        let boot = scenario.run();
        // Sixteen of the device's, there and back eight times, and one that waited meanwhile; and as many commands as moves.
        let (handled, emulated) = (boot.verified("vfunc", "handled"), boot.verified("vfunc", "emulated"));
        assert!(handled > 8 * 2 * 16, "{handled}");
        assert_eq!(emulated, SIGNALS + 8 * 2 + 1);
        assert_eq!(boot.interrupts().raised, Some(handled + ERRORS + DROPPED));
    }
}

#[test]
fn feature_storm_a_virtual_functions_vector_that_rages_is_masked_in_its_table() {
    let boot = STORM.run();
    let (storm, came) = (boot.verified("vfunc", "storm"), boot.verified("vfunc", "came"));
    assert!(came < storm / 4, "{came} of {storm}");
    assert!(boot.verified("vfunc", "quiet") > 0);
    let told = boot.events("storm");
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((told[0].get("guest"), told[0].get("store"), told[0].get("slot")), (Some("0"), Some("msix"), Some("1")));
}

#[test]
fn a_shared_device_that_halts_is_told_of_and_comes_back_with_its_guests() {
    let boot = HALTED.run();
    for name in ["left", "right"] {
        assert_eq!(boot.verified(name, "halted"), 1, "{name}");
    }
    for event in ["device-halted", "device-recovered"] {
        assert_eq!(boot.events(event).len(), 1, "{event}");
    }
    assert_eq!(boot.events("device-halted")[0].get("functions"), Some("2"));
    boot.assert_all_came_back();
}

#[test]
fn attack_24_errors_without_end_leave_the_first_processor_to_others() {
    let boot = FLOOD.run();
    let flood = boot.verified("vfunc", "flood");
    let exits = boot.guest("vfunc").exits.get("external-interrupt").copied().unwrap_or(0);
    assert!(exits < flood / 8, "{exits} exits for interrupts, {flood} errors");
}

#[test]
fn feature_msix_backed_work_reaches_the_guests_memory_alone() {
    let boot = CRASH.run();
    let guest = boot.guest("vfunc");
    assert_eq!((guest.reported("refused"), guest.reported("errors")), (Some(6), Some(0)));
    let of_it = |fault: &&&Pairs| [fault.get("kind"), fault.get("sid"), fault.get("guest")] == FAULT.map(Some);
    // Requests with a PASID are no messages, wherever they lead.
    assert_eq!(boot.events("fault").iter().filter(of_it).count(), 6, "faults that are told of as the guest's");
}

#[test]
fn feature_msix_backed_guests_have_functions_of_one_parent_and_their_work_stays_apart() {
    let boot = SHARED.run();
    assert_eq!(boot.verified("vfunc", "vectors"), 164);
    let crasher = boot.guest("crasher");
    assert_eq!((crasher.reported("refused"), crasher.reported("errors")), (Some(6), Some(0)));
    let end = crasher.end.as_ref().and_then(|end| end.get("reason"));
    assert_eq!(end, Some("triple-fault"));
    // Each fault is told of as that guest's whose PASID it has.
    let told = boot.events("fault");
    assert_eq!(told.len(), 6, "{told:?}");
    for fault in told {
        assert_eq!(
            ["kind", "sid", "pasid", "guest"].map(|key| fault.get(key)),
            ["dma", GENEROUS_DSAS[1], "0x3", "1"].map(Some)
        );
    }
    boot.assert_all_came_back();
    boot.assert_devices_quiet(0);
    boot.assert_zero(&["vtd.blocked", "vtd.violations"]);
}

/// When something of a guest's function began and ended, as the guest tells it: `word function began ended`.
fn times(boot: &Boot, guest: &str, word: &str) -> Vec<(String, Range<u64>)> {
    let prefix = format!("[{guest}] {word} ");
    let lines = boot.outcome().lines.iter().filter_map(|seen| seen.raw.strip_prefix(&prefix));
    let times = lines.map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [function, began, ended] = words[..] else { panic!("{line}") };
        (function.to_owned(), began.parse().unwrap()..ended.parse().unwrap())
    });
    times.collect()
}

/// A step waits for at most one step of each other function: the one that is under way, and one of the other. The other guest's functions
/// are told apart by their times, so one that began while the exit of the command was on its way may be among them.
#[test]
fn feature_msix_backed_a_guests_drains_delay_anothers_command_by_one_of_each_function_at_most() {
    let boot = DRAINED.run();
    assert_eq!(boot.verified("vfunc", "commands"), 12);
    assert!(boot.verified("drainer", "commands") > 12);
    let (drains, commands) = (times(&boot, "drainer", "drained"), times(&boot, "vfunc", "commanded"));
    let longest = commands.iter().map(|(_, command)| command.end - command.start).max();
    println!("{} drains were told of; the longest of {} commands took {longest:?} ticks", drains.len(), commands.len());
    let mut delayed = 0;
    for (_, command) in &commands {
        assert!(drains.iter().any(|(_, drain)| drain.start > command.end), "nothing was drained meanwhile");
        for function in drains.iter().map(|(function, _)| function).collect::<BTreeSet<_>>() {
            let of_it = drains.iter().filter(|(other, _)| other == function);
            let (mut under_way, mut between) = (0, 0);
            for (_, drain) in of_it.filter(|(_, drain)| command.contains(&drain.end)) {
                under_way += u32::from(drain.start < command.start);
                between += u32::from(drain.start >= command.start);
            }
            assert!(under_way <= 1 && between <= 1, "{between} drains of {function} came before {command:?}");
            delayed += under_way + between;
        }
    }
    assert!(delayed != 0, "no command met a drain");
}

#[test]
fn feature_msix_backed_without_scalable_mode_there_are_whole_functions_only() {
    let boot = LEGACY.run();
    boot.assert_refused("function", &["scalable"]);
    boot.assert_refused("owner", &["scalable"]);
    boot.assert_hypervisor_lived();
    boot.assert_guest_right("demo");
}

#[test]
fn feature_msix_backed_everything_comes_back_from_a_guest_that_crashes() {
    let boot = CRASH.run();
    boot.assert_hypervisor_lived();
    boot.assert_guest_right("demo");
    let end = boot.guest("vfunc").end.as_ref().and_then(|end| end.get("reason"));
    assert_eq!(end, Some("triple-fault"));
    boot.assert_all_came_back();
    boot.assert_devices_quiet(0);
    boot.assert_zero(&["vtd.blocked", "vtd.violations"]);
}
