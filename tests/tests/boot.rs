//! The whole, on the emulated machine. Several tests look at one boot; see `Scenario`.

use imsvisor_boot::event::Pairs;
use imsvisor_boot::machine::bochs::DSAS;
use imsvisor_tests::bench;
use imsvisor_tests::elf::{Executable, loaded_bytes};
use imsvisor_tests::scenario::{Boot, Plan, Scenario};
use object::elf::{ELFCLASS32, EM_AARCH64};

const MIB: u64 = 1 << 20;

/// The demo's slots that live at one time, at least.
const SLOTS: u64 = 256;
/// From the hypervisor's entry to the guest's first instruction, less than this.
const ENTRY_INSTRUCTIONS: u64 = 12_000_000;
/// What the loader takes from the hypervisor's file, less than this.
const IMAGE_BYTES: u64 = 768 << 10;

/// The device's requester ID.
const DSA_SID: u64 = 0x6a08;

// The demo.

const DEMO_GUEST: &str = "demo mem=64M device=dsa";
static DEMO: Scenario = Scenario::new("the demo", |plan| plan.guest("demo", DEMO_GUEST));
static DEMO_AGAIN: Scenario = Scenario::new("the demo again", |plan| plan.guest("demo", DEMO_GUEST));

#[test]
fn the_demo_is_right_in_everything_that_the_launcher_judges() {
    let boot = DEMO.run();
    boot.assert_hypervisor_lived();
    assert_eq!(boot.verdict().failures, Vec::<String>::new());
}

#[test]
fn each_interrupt_that_the_device_raises_is_remapped_delivered_and_handled_once() {
    let boot = DEMO.run();
    let counts = boot.interrupts();
    let raised = counts.raised.expect("the device counts its messages");
    assert!(raised >= SLOTS, "{raised} interrupts for {SLOTS} slots");
    let rest = [counts.remapped, counts.delivered, counts.handled];
    assert_eq!(rest, [Some(raised); 3], "remapped, delivered, handled");
}

#[test]
fn the_demos_device_works_at_least_a_mebibyte_and_every_result_is_verified() {
    let boot = DEMO.run();
    let bytes = boot.reported("demo", "bytes");
    assert!(bytes >= MIB, "{bytes} bytes");
    assert_eq!(boot.reported("demo", "verified"), boot.reported("demo", "descriptors"));
    assert_eq!(boot.reported("demo", "errors"), 0);
    assert!(boot.outcome().counter("dsa.bytes") >= bytes, "the device itself counts {:?}", boot.plugin);
}

#[test]
fn at_least_256_slots_live_at_once_and_each_fires() {
    let boot = DEMO.run();
    let slots = boot.reported("demo", "slots");
    assert!(slots >= SLOTS, "{slots} slots");
    assert_eq!(boot.reported("demo", "slots_fired"), slots);
    assert!(boot.remap_number("high_water") >= SLOTS, "remapping entries: {}", boot.remap);
}

#[test]
fn half_of_the_slots_are_mapped_by_hypercall_and_half_by_trapped_writes() {
    let boot = DEMO.run();
    let demo = boot.guest("demo");
    let count = |key| demo.interrupts.number(key).unwrap_or_else(|| panic!("no {key} in `interrupts`"));
    assert!(count("trapped_writes") >= SLOTS / 2, "{}", demo.interrupts);
    assert!(count("hypercalls") > 0, "{}", demo.interrupts);
    assert!(boot.remap_number("flushes") < boot.remap_number("programmed"), "a batch has one flush: {}", boot.remap);
}

#[test]
fn when_the_demo_has_ended_it_holds_nothing_and_no_fault_was_recorded() {
    let boot = DEMO.run();
    boot.assert_guest_right("demo");
    assert_eq!(boot.remap_number("live"), 0, "entries that are left");
    assert_eq!((boot.remap_number("faults"), boot.faults), (0, 0));
    boot.assert_zero(&["vtd.blocked", "vtd.interrupt_faults", "vtd.dma_faults"]);
}

#[test]
fn the_guests_first_instruction_comes_soon() {
    let boot = DEMO.run();
    let instructions = boot.guest("demo").start.number("entry_instructions").expect("entry_instructions");
    assert!(instructions > 0 && instructions < ENTRY_INSTRUCTIONS, "{instructions} instructions");
}

#[test]
fn the_same_machine_does_the_same_to_the_instruction() {
    let (first, second) = (DEMO.run(), DEMO_AGAIN.run());
    assert!(first.event_lines().iter().any(|line| line.contains("entry_instructions=")), "no guest was started");
    assert_eq!(first.event_lines(), second.event_lines());
}

#[test]
fn the_hypervisors_image_is_small() {
    let file = bench::hypervisor().expect("the hypervisor");
    let bytes = loaded_bytes(&std::fs::read(file).expect("the hypervisor's image")).expect("an ELF image");
    assert!(bytes < IMAGE_BYTES, "{bytes} bytes are loaded");
}

// Processors that lack something.

static NO_VMX: Scenario = Scenario::new("a processor without VMX", |plan| {
    plan.config.exclude_features.push("vmx".into());
    plan.guest("hello", "hello mem=32M")
});

/// It has VMX, but of the first generation.
static OLD_VMX: Scenario = Scenario::new("a processor with an old VMX", |plan| {
    plan.config.cpu_model = "core2_penryn_t9600".into();
    plan.guest("hello", "hello mem=32M")
});

/// It has EPT, but its guests cannot be unrestricted.
static RESTRICTED: Scenario = Scenario::new("a processor without unrestricted guests", |plan| {
    plan.config.cpu_model = "corei5_lynnfield_750".into();
    plan.guest("hello", "hello mem=32M")
});

/// The machine is refused with this word, and nothing is started on it.
fn assert_machine_refused(boot: &Boot, word: &str) {
    boot.assert_hypervisor_lived();
    assert!(boot.refuses_with(&[word]), "no refusal says \"{word}\": {:?}", boot.refused);
    assert!(boot.guests.is_empty(), "guests were started: {:?}", boot.guests);
    assert_eq!(boot.done.as_deref(), Some("failed"));
}

#[test]
fn a_processor_without_vmx_is_refused_and_the_message_names_vmx() {
    assert_machine_refused(&NO_VMX.run(), "VMX");
}

#[test]
fn a_processor_whose_vmx_has_no_preemption_timer_is_refused_for_it() {
    assert_machine_refused(&OLD_VMX.run(), "VMX-preemption");
}

#[test]
fn a_processor_without_unrestricted_guests_is_refused_for_it() {
    assert_machine_refused(&RESTRICTED.run(), "unrestricted");
}

// Machines without a remapping unit, or without the device.

const WITH_AND_WITHOUT: [(&str, &str); 2] = [("demo", "needy mem=64M device=dsa"), ("hello", "hello mem=32M")];

/// One guest that needs the device, and one that does not.
macro_rules! machine_lacks {
    ($name:literal, $option:literal) => {
        Scenario::new($name, |plan| {
            plan.plugin(&[$option]);
            WITH_AND_WITHOUT.iter().try_for_each(|(image, string)| plan.guest(image, string))
        })
    };
}

static NO_UNIT: Scenario = machine_lacks!("a machine without a remapping unit", "no-vtd");
static NO_DMAR: Scenario = machine_lacks!("a machine whose firmware hides the remapping unit", "no-dmar");
static NO_DEVICE: Scenario = machine_lacks!("a machine without the device", "no-dsa");

/// The guest that needs the device is refused, a message has one of these words, and the other guest runs.
fn assert_device_refused(boot: &Boot, words: &[&str]) {
    boot.assert_hypervisor_lived();
    boot.assert_refused("needy", &["device"]);
    assert!(boot.refuses_with(words), "no refusal says one of {words:?}: {:?}", boot.refused);
    boot.assert_guest_right("hello");
    assert_eq!(boot.outcome().counter("vtd.remapped"), 0);
}

const UNIT_WORDS: [&str; 4] = ["IOMMU", "VT-d", "DMAR", "remapping"];

#[test]
fn attack_02_without_a_remapping_unit_the_device_is_refused_and_a_guest_without_one_runs() {
    assert_device_refused(&NO_UNIT.run(), &UNIT_WORDS);
}

#[test]
fn attack_02_without_a_dmar_table_the_device_is_refused_and_a_guest_without_one_runs() {
    assert_device_refused(&NO_DMAR.run(), &UNIT_WORDS);
}

#[test]
fn a_guest_whose_device_is_not_there_is_refused_and_the_other_runs() {
    assert_device_refused(&NO_DEVICE.run(), &["dsa"]);
}

static ERRATUM: Scenario = Scenario::new("devices with an erratum", |plan| {
    plan.config.plugin_options.push("idxd".into());
    plan.guest("demo", "needy mem=64M device=dsa")?;
    plan.guest("demo", "trusted mem=64M device=dsa unsafe=INTEL-SA-01084")?;
    plan.guest("hello", "sharer device=vdsa")
});

#[test]
fn a_device_with_an_erratum_is_given_only_to_a_guest_that_accepts_the_erratum_by_name() {
    let boot = ERRATUM.run();
    boot.assert_hypervisor_lived();
    boot.assert_refused("needy", &["INTEL-SA-01084"]);
    boot.assert_refused("sharer", &["INTEL-SA-01084"]);
    assert_eq!(boot.verified("trusted", "slots_fired"), 256);
    let warned =
        boot.outcome().lines.iter().any(|seen| seen.raw.contains("trusted gets it in spite of INTEL-SA-01084"));
    assert!(warned, "nobody is warned");
}

// Modules that are no guests, a guest that crashes, and one between them that is right.

/// Module strings that are wrong, each with an image that is right, and a word of the reason.
const WRONG_STRINGS: [(&str, &str); 10] = [
    ("mem-word mem=banana", "banana"),
    ("mem-nothing mem=0M", "mem"),
    ("mem-negative mem=-64M", "mem"),
    ("mem-overflow mem=99999999999999999999G", "mem"),
    ("mem-sky mem=1048576G", "mem"),
    ("mem-machine mem=512M", "left"),
    ("unknown-option mem=32M colour=blue", "colour"),
    ("device-word mem=32M device=zz:zz.z", "zz"),
    ("device-absent mem=32M device=00:1d.7", "device"),
    ("this-name-is-longer-than-a-name-may-be mem=32M", "name"),
];

/// Images that are wrong, each under a name of its own, and a word of the reason.
fn wrong_images() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let right = Executable::RIGHT;
    let made = [
        ("beyond-memory", "memory", Executable { address: 3 << 30, entry: 3 << 30, ..right }),
        ("grows-beyond", "memory", Executable { memory_size: 1 << 40, ..right }),
        ("wraps", "memory", Executable { address: u64::MAX - 0xfff, memory_size: 0x2000, ..right }),
        ("beyond-file", "file", Executable { offset: 1 << 32, ..right }),
        ("offset-wraps", "file", Executable { offset: u64::MAX - 1, ..right }),
        ("longer-than-file", "file", Executable { file_size: 0x1000, ..right }),
        ("mem-below-file", "segment", Executable { memory_size: 1, ..right }),
        ("entry-outside", "entry", Executable { entry: 0x7fff_ffff_f000, ..right }),
        ("many-segments", "image", Executable { segments: 0xfffe, ..right }),
        ("no-segments", "load", Executable { segments: 0, ..right }),
        ("32-bit", "image", Executable { class: ELFCLASS32, ..right }),
        ("not-x86", "x86-64", Executable { machine: EM_AARCH64, ..right }),
    ];
    let garbage = (0..4096_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let truncated = right.bytes()[..100].to_vec();
    let files = [
        ("garbage", "ELF", garbage),
        ("truncated", "image", truncated),
        ("only-magic", "image", b"\x7fELF".to_vec()),
        ("empty", "image", Vec::new()),
    ];
    made.into_iter().map(|(name, word, image)| (name, word, image.bytes())).chain(files).collect()
}

/// Ways in which a guest can end by itself, and the reason that is told then.
const WAYS: [(&str, &str); 4] = [("off", "exit"), ("register", "reset"), ("keyboard", "reset"), ("vector", "reset")];

static CROWD: Scenario = Scenario::new("a crowd of wrong modules", |plan| {
    plan.guest("hello", "first mem=32M")?;
    plan.file(&Executable::RIGHT.bytes(), "right mem=32M")?;
    for (name, _, bytes) in wrong_images() {
        plan.file(&bytes, &format!("{name} mem=32M"))?;
    }
    plan.guest("triple", "triple mem=32M")?;
    for (way, _) in WAYS {
        let cpus = if way == "vector" { 2 } else { 1 };
        plan.guest("leave", &format!("{way} mem=32M cpus={cpus} cmdline=way={way}"))?;
    }
    plan.guest("hostile-state", "hostile-state mem=32M")?;
    for (string, _) in WRONG_STRINGS {
        plan.guest("hello", string)?;
    }
    plan.guest("hello", "last mem=32M")
});

#[test]
fn each_malformed_image_is_refused_for_what_is_wrong_with_it() {
    let boot = CROWD.run();
    boot.assert_hypervisor_lived();
    // With nothing wrong the same image runs.
    boot.assert_guest_right("right");
    for (name, word, _) in wrong_images() {
        boot.assert_refused(name, &[word]);
    }
}

#[test]
fn each_malformed_module_string_is_refused_for_what_is_wrong_with_it() {
    let boot = CROWD.run();
    boot.assert_hypervisor_lived();
    for (string, word) in WRONG_STRINGS {
        boot.assert_refused(string.split(' ').next().unwrap_or_default(), &[word]);
    }
}

#[test]
fn a_triple_fault_ends_only_the_guest_that_has_it() {
    let boot = CROWD.run();
    boot.assert_hypervisor_lived();
    let end = boot.guest("triple").end.as_ref().expect("the guest ended");
    assert_eq!(end.get("reason"), Some("triple-fault"));
    boot.assert_guest_right("first");
    boot.assert_guest_right("last");
}

#[test]
fn a_guest_ends_when_it_powers_off_or_resets_its_machine() {
    let boot = CROWD.run();
    boot.assert_hypervisor_lived();
    boot.assert_guest_right("off");
    for (way, reason) in WAYS {
        let end = boot.guest(way).end.as_ref().unwrap_or_else(|| panic!("{way} has not ended"));
        assert_eq!(end.get("reason"), Some(reason), "{way}");
    }
}

#[test]
fn a_guests_clock_shows_the_machines_date() {
    let boot = CROWD.run();
    // The emulated machine always begins at 1,700,000,000 seconds, which is 14 November 2023, or the 15th further east.
    for (way, _) in WAYS {
        let day = boot.reported(way, "day");
        assert!(matches!(day, 20_231_114..=20_231_115), "{way}: {day}");
    }
}

#[test]
fn a_guest_that_tries_every_state_and_instruction_lives_and_harms_nobody() {
    let boot = CROWD.run();
    boot.assert_hypervisor_lived();
    boot.assert_guest_right("hostile-state");
    boot.assert_guest_right("last");
}

// No guest at all, and too little memory.

static NO_MODULE: Scenario = Scenario::new("no module", |_| Ok(()));

#[test]
fn without_a_guest_module_the_hypervisor_says_so_and_ends() {
    let boot = NO_MODULE.run();
    boot.assert_hypervisor_lived();
    let words = ["module", "modules", "guest", "guests"];
    assert!(boot.refuses_with(&words), "no refusal says that there is no guest: {:?}", boot.refused);
    assert!(boot.guests.is_empty());
    assert_eq!(boot.done.as_deref(), Some("failed"));
}

static LITTLE_MEMORY: Scenario = Scenario::new("a machine with little memory", |plan| {
    plan.config.memory_mib = 96;
    // As much as the machine has; the hypervisor itself needs some.
    plan.guest("hello", "large mem=96M")?;
    plan.guest("hello", "small mem=32M")
});

static TINY: Scenario = Scenario::new("a tiny machine", |plan| {
    plan.config.memory_mib = 16;
    plan.guest("hello", "hello mem=64M")
});

#[test]
fn a_guest_that_does_not_fit_is_refused_and_one_that_fits_runs() {
    let boot = LITTLE_MEMORY.run();
    boot.assert_hypervisor_lived();
    boot.assert_refused("large", &["mem", "memory"]);
    boot.assert_guest_right("small");
}

#[test]
fn a_machine_with_too_little_memory_is_refused_and_the_message_says_so() {
    let boot = TINY.run();
    boot.assert_hypervisor_lived();
    assert!(boot.refuses_with(&["mem", "memory"]), "no refusal speaks of memory: {:?}", boot.refused);
    assert!(boot.guests.is_empty());
}

// Hostile guests.

static NONSENSE: Scenario = Scenario::new("a guest that writes nonsense", |plan| {
    plan.guest("nonsense", "nonsense mem=64M device=dsa")?;
    plan.guest("hello", "hello mem=32M")
});

#[test]
fn nonsense_in_slots_gets_errors_or_no_interrupts_and_the_hypervisor_lives() {
    let boot = NONSENSE.run();
    boot.assert_hypervisor_lived();
    boot.assert_guest_right("nonsense");
    boot.assert_guest_right("hello");
    assert_eq!(boot.remap_number("live"), 0, "entries that are left");
}

#[test]
fn no_message_leaves_the_device_for_a_slot_that_holds_nonsense() {
    let boot = NONSENSE.run();
    let counts = boot.interrupts();
    let raised = counts.raised.expect("the device counts its messages");
    assert_eq!((counts.remapped, counts.delivered), (Some(raised), Some(raised)), "remapped, delivered");
    assert_eq!(boot.outcome().counter("vtd.blocked"), 0, "requests that the remapping unit had to refuse");
}

#[test]
fn a_guest_cannot_write_lines_that_look_like_the_hypervisors() {
    let boot = NONSENSE.run();
    let lines = &boot.outcome().lines;
    assert!(lines.iter().any(|seen| seen.raw.contains("@ims forged by=feed")), "the guest did not try");
    assert_eq!(boot.events("forged"), Vec::<&Pairs>::new());
    let naked = |raw: &str| raw.contains("forged") && !raw.starts_with("[nonsense] ");
    assert!(!lines.iter().any(|seen| naked(&seen.raw)), "a line without its guest's name");
}

#[test]
fn a_device_whose_guest_has_ended_is_disabled_and_reaches_no_memory() {
    let boot = NONSENSE.run();
    assert!(boot.plugin.contains_key("dsa.bus_master"));
    boot.assert_devices_quiet(1);
}

static STRAY_DMA: Scenario = Scenario::new("a guest whose device is sent astray", |plan| {
    plan.guest("stray-dma", "stray-dma mem=64M device=dsa")?;
    plan.guest("hello", "hello mem=32M")
});

#[test]
fn attack_25_and_26_a_descriptor_that_points_outside_the_guest_is_a_recorded_fault_and_nothing_is_written() {
    let boot = STRAY_DMA.run();
    boot.assert_hypervisor_lived();
    // The guest itself sees whether anything was written; another guest and the hypervisor go on.
    boot.assert_guest_right("stray-dma");
    boot.assert_guest_right("hello");
    let faults = boot.events("fault");
    let dma: Vec<_> = faults.iter().filter(|fault| fault.get("kind") == Some("dma")).collect();
    assert!(!dma.is_empty(), "the hypervisor recorded no DMA fault: {faults:?}");
    assert!(boot.outcome().counter("vtd.dma_faults") >= dma.len() as u64, "{:?}", boot.plugin);
    for fault in dma {
        let sid = fault.number("sid").or_else(|| u64::from_str_radix(fault.get("sid")?, 16).ok());
        assert!(sid == Some(DSA_SID) || fault.get("sid") == Some(DSAS[0]), "not the device's: {fault}");
        assert!(fault.get("address").is_some() && fault.get("reason").is_some(), "{fault}");
    }
}

static HOSTILE_STATE: Scenario = Scenario::new("a guest that tries every processor state", |plan| {
    plan.guest("hostile-state", "hostile mem=32M")?;
    plan.guest("hello", "hello mem=32M")
});

#[test]
fn no_processor_state_of_a_guests_choice_harms_the_hypervisor_or_another_guest() {
    let boot = HOSTILE_STATE.run();
    boot.assert_hypervisor_lived();
    boot.assert_guest_right("hostile");
    boot.assert_guest_right("hello");
}

static NEIGHBOURS: Scenario = Scenario::new("two guests on one processor", |plan| {
    plan.guest("neighbour", "left mem=32M cmdline=seed=1")?;
    plan.guest("neighbour", "right mem=32M cmdline=seed=2")
});

#[test]
fn guests_that_share_a_processor_do_not_see_each_others_registers() {
    let boot = NEIGHBOURS.run();
    boot.assert_hypervisor_lived();
    boot.assert_guest_right("left");
    boot.assert_guest_right("right");
}

fn crowd_on(plan: &mut Plan, cpus: u32) -> anyhow::Result<()> {
    plan.config.cpus = cpus;
    plan.guest("neighbour", "left mem=32M cmdline=seed=1")?;
    plan.guest("demo", DEMO_GUEST)?;
    plan.guest("neighbour", "right mem=32M cmdline=seed=2")?;
    plan.guest("hello", "hello mem=32M")
}

/// Two guests, and one, on a processor, the demo among them.
static PROCESSORS: [Scenario; 2] = [
    Scenario::new("two processors", |plan| crowd_on(plan, 2)),
    Scenario::new("four processors", |plan| crowd_on(plan, 4)),
];

#[test]
fn every_processor_runs_guests_and_interrupts_go_where_the_guest_is() {
    for scenario in &PROCESSORS {
        let boot = scenario.run();
        boot.assert_hypervisor_lived();
        // The second module is the second processor's.
        for name in ["left", "demo", "right", "hello"] {
            boot.assert_guest_right(name);
        }
        let counts = boot.interrupts();
        let raised = counts.raised.expect("the device counts its messages");
        assert!(raised >= SLOTS);
        let handled = Some(boot.reported("demo", "handled"));
        assert_eq!([counts.remapped, counts.delivered, handled], [Some(raised); 3]);
        assert_eq!(boot.done.as_deref(), Some("ok"));
    }
}

static RIVALS: Scenario = Scenario::new("two guests that want one device", |plan| {
    plan.guest("hello", "owner mem=32M device=dsa")?;
    plan.guest("hello", &format!("rival mem=32M device={}", DSAS[0]))
});

#[test]
fn a_device_belongs_to_one_guest() {
    let boot = RIVALS.run();
    boot.assert_hypervisor_lived();
    boot.assert_guest_right("owner");
    boot.assert_refused("rival", &["device"]);
}
