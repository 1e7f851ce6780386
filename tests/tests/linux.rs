//! Debian's Linux as a guest, as packaged: its own driver of the DSA, its own counts. Two boots with two guests each, and a third with
//! files that are no kernels.

use anyhow::Result;
use imsvisor_boot::machine::bochs::DSAS;
use imsvisor_boot::report::Guest;
use imsvisor_tests::bench;
use imsvisor_tests::scenario::{Boot, Plan, Scenario};

/// A whole DSA for a guest with one processor; of the other DSA a virtual function for one with two, whose interrupt moves between them
/// while one of them goes off and on. Each request waits for the one before, so no interrupt can meet another.
static EACH_BY_ITSELF: Scenario =
    Scenario::new("two Linuxes, one with a whole DSA and one with a virtual function", |plan| {
        plan.config.memory_mib = 1024;
        plan.linux(&format!("linux name=whole mem=384M device={} exits=marks", DSAS[0]), "copies=300 marks=yes")?;
        plan.linux(
            &format!("linux name=moved mem=384M cpus=2 device=vdsa:{}", DSAS[1]),
            "copies=6000 bytes=256 affinity=yes hotplug=yes end=reboot",
        )
    });

/// Two guests with a virtual function each of one DSA, with several requests outstanding; one of them panics.
static NEIGHBOURS: Scenario = Scenario::new("two Linuxes that share a DSA, one of which panics", |plan| {
    plan.config.memory_mib = 1024;
    let function = format!("mem=384M device=vdsa:{}", DSAS[0]);
    plan.linux(&format!("linux name=steady {function}"), "copies=600 threads=2 outstanding=4")?;
    plan.linux(&format!("linux name=panics {function}"), "copies=400 threads=2 outstanding=4 end=crash")
});

/// Kernels and initrds that cannot be loaded, and one guest that can.
static REFUSED: Scenario = Scenario::new("files that are no kernels", |plan| {
    plan.guest("hello", "hello")?;
    refused(plan, "truncated", &kernel()[..0x1200], None)?;
    refused(plan, "magic", &with(0x202, b"HdrX"), None)?;
    refused(plan, "protocol", &with(0x206, &[0x0b, 2]), None)?;
    refused(plan, "no-64-bit", &with(0x236, &[0]), None)?;
    refused(plan, "large", &with(0x260, &(64_u32 << 20).to_le_bytes()), None)?;
    refused(plan, "initrd-large", &kernel(), Some(&vec![7; 16 << 20]))?;
    refused(plan, "initrd-empty", &kernel(), Some(&[]))?;
    plan.file(b"x", "initrd")
});

fn refused(plan: &mut Plan, name: &str, kernel: &[u8], initrd: Option<&[u8]>) -> Result<()> {
    plan.file(kernel, &format!("{name} mem=32M os=linux"))?;
    initrd.map_or(Ok(()), |initrd| plan.file(initrd, "initrd"))
}

/// A file with a setup header that says what those of distributions say, and a kernel of a page that nobody would want to run.
fn kernel() -> Vec<u8> {
    let mut file = vec![0; 0x1400];
    let fields: [(usize, &[u8]); 12] = [
        (0x1f1, &[1]),
        (0x1f4, &[0, 1, 0, 0]),
        (0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]),
        (0x202, b"HdrS"),
        (0x206, &[0x0f, 2]),
        (0x211, &[1]),
        (0x22c, &[0xff, 0xff, 0xff, 0x7f]),
        (0x230, &[0, 0, 0x20, 0, 1]),
        (0x236, &[0x7f]),
        (0x238, &[0xff, 7]),
        (0x258, &[0, 0, 0, 1]),
        (0x260, &[0, 0, 0x10, 0]),
    ];
    fields.iter().for_each(|(at, bytes)| file[*at..at + bytes.len()].copy_from_slice(bytes));
    file
}

/// The same with these bytes at an offset.
fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = kernel();
    file[at..at + bytes.len()].copy_from_slice(bytes);
    file
}

/// What came of a scenario; nothing where Linux cannot be had. The two with Linux run at one time.
fn linux(scenario: &'static Scenario) -> Option<Boot> {
    bench::linux().unwrap_or_else(|error| panic!("{error:#}"))?;
    let other = if std::ptr::eq(scenario, &EACH_BY_ITSELF) { &NEIGHBOURS } else { &EACH_BY_ITSELF };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| drop(other.run()));
        let boot = scenario.run();
        // What is wrong with it is for its own tests to say.
        let _ = other.join();
        Some(boot)
    })
}

/// A figure of the hypervisor's about a guest's interrupts.
fn counted(guest: &Guest, key: &str) -> u64 {
    guest.interrupts.number(key).unwrap_or_else(|| panic!("{}: no {key}", guest.name))
}

/// All of a guest's copies were right, and Linux counts as many of the device's interrupts as the hypervisor gave it.
fn assert_copied(boot: &Boot, name: &str, copies: u64) {
    let keys = ["descriptors", "verified", "errors", "timeouts"];
    assert_eq!(keys.map(|key| boot.reported(name, key)), [copies, copies, 0, 0], "{name}");
}

fn assert_counted(boot: &Boot, name: &str) {
    let guest = boot.guest(name);
    let handled = boot.reported(name, "handled") + boot.reported(name, "closing");
    assert_eq!(counted(guest, "delivered"), handled, "{name}: {}", guest.interrupts);
}

fn end_of<'b>(boot: &'b Boot, name: &str) -> Option<&'b str> {
    boot.guest(name).end.as_ref().and_then(|end| end.get("reason"))
}

#[test]
fn linux_copies_by_a_whole_dsa_and_powers_off() {
    let Some(boot) = linux(&EACH_BY_ITSELF) else { return };
    boot.assert_hypervisor_lived();
    assert_copied(&boot, "whole", 300);
    assert_counted(&boot, "whole");
    boot.assert_guest_right("whole");
    assert_eq!(counted(boot.guest("whole"), "merged"), 0, "one request is outstanding");
}

#[test]
fn linux_copies_by_a_virtual_function_while_its_interrupt_moves_and_a_processor_leaves() {
    let Some(boot) = linux(&EACH_BY_ITSELF) else { return };
    assert_copied(&boot, "moved", 6000);
    assert!(boot.reported("moved", "moved") > 10 && boot.reported("moved", "replugged") == 1);
    assert!(boot.reported("moved", "handled") >= 6000);
}

#[test]
fn a_guests_reboot_ends_it_as_a_reset() {
    let Some(boot) = linux(&EACH_BY_ITSELF) else { return };
    assert_eq!(end_of(&boot, "moved"), Some("reset"));
}

#[test]
fn every_interrupt_of_linux_is_accounted_for() {
    let Some(boot) = linux(&EACH_BY_ITSELF) else { return };
    let way = boot.interrupts();
    assert_eq!((way.raised, way.unseen()), (way.remapped, 0), "{way:?}");
    boot.assert_all_came_back();
    boot.assert_zero(&["vtd.violations", "vtd.dma_faults", "vtd.interrupt_faults", "vtd.blocked"]);
}

#[test]
fn linux_starts_with_few_exits() {
    let Some(boot) = linux(&EACH_BY_ITSELF) else { return };
    let marks = boot.events("mark");
    let [mark] = marks[..] else { panic!("one mark was expected, at /init: {marks:?}") };
    let end = boot.guest("whole").end.as_ref().and_then(|end| end.number("ticks"));
    // Linux unpacks itself in more than half a billion instructions.
    assert!(mark.number("ticks").is_some_and(|ticks| ticks > 500_000_000 && Some(ticks) < end), "{mark}, {end:?}");
    // Apart from its ticks, 250 a second: Linux arms the timer, and the timer ends a run of the guest.
    let exits = &boot.guest("whole").exits;
    let ticks = end.unwrap_or_default() / (200_000_000 / 250);
    let (timer, others): (Vec<_>, Vec<_>) =
        exits.iter().partition(|(reason, _)| ["wrmsr", "preemption-timer"].contains(&reason.as_str()));
    let sum = |exits: Vec<(&String, &u64)>| exits.into_iter().map(|(_, count)| count).sum::<u64>();
    let (timer, others) = (sum(timer), sum(others));
    assert!(others < 5_000 && timer < 4 * ticks, "{others} exits, and {timer} in {ticks} ticks: {exits:?}");
}

/// Both share a processor, so each misses ticks of its own while the other one runs.
#[test]
fn linux_keeps_time_by_the_tsc_although_it_misses_ticks() {
    let Some(boot) = linux(&EACH_BY_ITSELF) else { return };
    assert_eq!(["whole", "moved"].map(|name| boot.reported(name, "tsc")), [1, 1]);
}

#[test]
fn the_kernel_lies_somewhere_else_than_where_it_was_linked() {
    let Some(boot) = linux(&NEIGHBOURS) else { return };
    let console = boot.outcome().console();
    let offset = console.lines().find_map(|line| line.split_once("Kernel Offset: ")).map(|(_, rest)| rest);
    let offset = offset.unwrap_or_else(|| panic!("the panic names no offset"));
    assert!(!offset.starts_with("0x0 ") && !offset.starts_with("disabled"), "{offset}");
}

#[test]
fn a_guest_that_panics_does_not_disturb_the_one_with_which_it_shares_a_device() {
    let Some(boot) = linux(&NEIGHBOURS) else { return };
    boot.assert_hypervisor_lived();
    assert_eq!(end_of(&boot, "panics"), Some("reset"), "panic=-1");
    assert!(boot.guest("panics").result.is_none());
    assert_copied(&boot, "steady", 600);
    boot.assert_guest_right("steady");
    boot.assert_all_came_back();
    boot.assert_zero(&["vtd.violations", "vtd.dma_faults", "vtd.interrupt_faults", "vtd.blocked"]);
}

#[test]
fn wrong_kernels_and_initrds_are_refused_in_words() {
    let boot = REFUSED.run();
    boot.assert_hypervisor_lived();
    boot.assert_guest_right("hello");
    for (name, words) in [
        ("truncated", "cut short: 4608 of 5120 bytes"),
        ("magic", "not an ELF file"),
        ("protocol", "boot protocol 2.11, but 2.12 or later is needed"),
        ("no-64-bit", "no 64-bit entry"),
        ("large", "needs 80 MiB of memory"),
        ("initrd-large", "has 16777216 bytes, but beside the image there is room for 15728640"),
        ("initrd-empty", "the initrd is empty"),
    ] {
        assert!(!boot.started(name), "{name}");
        assert!(
            boot.refused.iter().any(|why| why.contains(&format!("{name}: ")) && why.contains(words)),
            "{name}: {:?}",
            boot.refused
        );
    }
    assert!(boot.refused.iter().any(|why| why.contains("right behind its guest, once")), "{:?}", boot.refused);
}
