//! The hypervisor on VT-x that others have written: nested KVM of a Linux in the emulator, with QEMU's remapping unit and devices. One
//! boot of that Linux runs three machines after another.

use std::time::Duration;

use anyhow::Result;
use imsvisor_boot::image::Module;
use imsvisor_boot::machine::nested::{self, Inner};
use imsvisor_boot::machine::{Config, End, Outcome};
use imsvisor_boot::report::Summary;
use imsvisor_boot::words::harmless;
use imsvisor_tests::bench::{self, Once};

/// In the machine's own processor time. The limit is a machine's on the host's clock; the whole boot has the sum of all.
const SILENCE: Duration = Duration::from_secs(60);
const LIMIT: Duration = Duration::from_secs(900);

/// Where the machines are in the boot.
const DEMOS: usize = 0;
const TRIPLE: usize = 1;
const FLAT: usize = 2;

/// Two nodes of a processor and half of the memory each.
const NODES: [&str; 8] = [
    "-object",
    "memory-backend-ram,id=lower,size=256M",
    "-numa",
    "node,nodeid=0,cpus=0,memdev=lower",
    "-object",
    "memory-backend-ram,id=upper,size=256M",
    "-numa",
    "node,nodeid=1,cpus=1,memdev=upper",
];

/// What came of each machine; `None` where something for them cannot be had.
fn outcomes() -> Option<&'static [Outcome]> {
    static OUTCOMES: Once<Option<Vec<Outcome>>> = Once::new();
    let booted = OUTCOMES.get(boot);
    booted.unwrap_or_else(|error| panic!("the nested machine could not be booted: {error:#}")).as_deref()
}

fn boot() -> Result<Option<Vec<Outcome>>> {
    let Some(tools) = bench::nested_tools()? else { return Ok(None) };
    let (paths, hypervisor) = (bench::paths()?, bench::hypervisor()?);
    // Without posting each slot takes a vector of a processor, and one processor has too few for both demos.
    let plain = Config { cpus: 2, silence: SILENCE, limit: LIMIT, ..Config::default() };
    let served = Config { dsa_server: Some(bench::dsa_server()?.to_owned()), ..plain.clone() };
    let demo = |name: &str| Module::new(bench::guest("demo")?, &format!("{name} mem=64M device=dsa"));
    let demos = [demo("demo")?, demo("second")?];
    let triple = [
        Module::new(bench::guest("triple")?, "triple mem=32M")?,
        Module::new(bench::guest("hello")?, "hello mem=32M")?,
        Module::new(bench::guest("hello")?, "large mem=192M cpus=2")?,
    ];
    let nodes = Config { extra: NODES.map(str::to_owned).to_vec(), ..plain.clone() };
    let machines = [
        Inner { config: served, hypervisor, guests: &demos, nesting: true },
        Inner { config: nodes, hypervisor, guests: &triple, nesting: true },
        Inner { config: plain, hypervisor, guests: &[], nesting: false },
    ];
    Ok(Some(nested::start(paths, tools, &machines)?.finish_each()))
}

/// What came of one machine.
fn outcome(index: usize) -> Option<&'static Outcome> {
    let outcomes = outcomes()?;
    let told = || outcomes.iter().map(told).collect::<Vec<_>>().join("\n--- the next machine ---\n");
    Some(outcomes.get(index).unwrap_or_else(|| panic!("no machine {index}:\n{}", told())))
}

fn told(outcome: &Outcome) -> String {
    format!("{}\n{}; logs: {}", harmless(&outcome.console()), outcome.end, outcome.directory.display())
}

fn summary(index: usize) -> Option<(&'static Outcome, Summary)> {
    outcome(index).map(|outcome| (outcome, outcome.summary()))
}

#[test]
fn the_demos_are_right_on_vt_x_a_unit_and_a_bus_of_others() {
    let Some((outcome, summary)) = summary(DEMOS) else { return };
    assert_eq!(summary.verdict().failures, Vec::<String>::new(), "{}", told(outcome));
    assert_eq!((summary.machine.number("vtd_units"), summary.machine.number("ims_devices")), (Some(1), Some(2)));
    let sums = |key| summary.guests.iter().filter_map(|guest| guest.reported(key)).collect::<Vec<_>>();
    assert_eq!((sums("slots_fired"), sums("bytes")), (vec![256, 256], vec![1 << 20, 1 << 20]), "{}", told(outcome));
    // The server counts what the devices sent, and the guests what reached them.
    assert_eq!(sums("handled").iter().sum::<u64>(), outcome.counter("dsa.messages"), "{}", told(outcome));
    assert!(outcome.counter("dsa.messages") > 0, "{}", told(outcome));
}

#[test]
fn the_levels_come_one_after_another() {
    let Some(outcome) = outcome(DEMOS) else { return };
    let levels = ["boot", "linux", "run", "kvm", "qemu"];
    let at = |name: &str| outcome.lines.iter().position(|seen| seen.line.nested(name).is_some());
    let mut places: Vec<_> = levels.iter().map(|name| at(name)).collect();
    places.push(outcome.lines.iter().position(|seen| seen.line.event("boot").is_some()));
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{places:?}\n{}", told(outcome));
}

#[test]
fn guests_are_dealt_to_the_nodes_that_anothers_firmware_tells_of() {
    let Some((outcome, summary)) = summary(TRIPLE) else { return };
    assert_eq!(summary.machine.number("nodes"), Some(2), "{}", told(outcome));
    let processors = |name: &str| {
        let starts = outcome.lines.iter().filter_map(|seen| seen.line.event("guest-start"));
        let mut own = starts.filter(|start| start.get("name") == Some(name));
        own.next().and_then(|start| start.get("processors")).map(str::to_owned)
    };
    let all = ["triple", "hello", "large"].map(processors);
    assert_eq!(all, ["0", "1", "0,1"].map(|one| Some(one.to_owned())), "{}", told(outcome));
    assert!(!outcome.console().contains("gets another node's"), "{}", told(outcome));
}

#[test]
fn a_guest_that_triple_faults_is_told() {
    let Some((outcome, summary)) = summary(TRIPLE) else { return };
    assert!(outcome.end.is_right() && summary.done.is_some(), "{}", told(outcome));
    let failures = ["the hypervisor ends with the status failed", "guest triple ended by triple-fault"];
    assert_eq!(summary.verdict().failures, failures, "{}", told(outcome));
}

#[test]
fn kvm_that_does_not_nest_is_refused_in_the_words_of_a_host() {
    let Some(outcome) = outcome(FLAT) else { return };
    let End::Refused(why) = &outcome.end else { panic!("{}", told(outcome)) };
    assert!(why.contains("kvm_intel is loaded with nested=N"), "{why}");
    assert!(outcome.lines.iter().all(|seen| seen.line.event("boot").is_none()), "{}", told(outcome));
}
