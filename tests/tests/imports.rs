//! Holds the arrows between rooms and between crates, as ARCHITECTURE.md has them, and that files make no circles.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};
use imsvisor_tests::imports::{Arrow, FileArrow, ImportTarget, Sources, circles};

/// The hypervisor's rooms, lowest first: each imports only from those before it.
const ROOMS: [&str; 23] = [
    "addr", "sync", "options", "quirks", // words
    "clock", "apic", "cpu", "console", "memory", "acpi", "pci", // the machine
    "vtd", "ept", "vmx", // hardware
    "ims", "vdev", // pure
    "guest", "exits", // guests
    "machine", "irq", "devices", "vm", "sched", // this machine
];

/// Rooms that are crates of their own, or modules of such, which the hypervisor's root names.
const NAMED_AT_THE_ROOT: [&str; 3] = ["addr", "sync", "ims"];

/// Rooms that know nothing of the machine: the rooms and crates that they may import, and nothing else.
const PURE: [(&str, &[&str], &[&str]); 1] =
    [("vdev", &["addr"], &["core", "alloc", "hcall_abi", "bit_field", "bitflags"])];

/// What tests may use besides.
const FOR_TESTS: [&str; 2] = ["std", "proptest"];

/// Workspace crates, and the workspace crates on which each may depend; `None`: nothing at all, not even others' crates.
const CRATES: [(&str, Option<&[&str]>); 16] = [
    ("hcall-abi", None),
    ("guest-shim", Some(&["hcall-abi"])),
    ("guest-shim-c", Some(&["guest-shim", "hcall-abi"])),
    ("imsvisor-sync", Some(&[])),
    ("imsvisor-ims", Some(&["hcall-abi", "imsvisor-sync"])),
    ("imsvisor", Some(&["hcall-abi", "imsvisor-ims", "imsvisor-sync"])),
    // Its readers of options and images only: without its feature `machine`.
    ("imsvisor-boot", Some(&["imsvisor"])),
    ("vtd-model", Some(&[])),
    ("dsa-model", Some(&[])),
    ("bochs-plugin", Some(&["vtd-model", "dsa-model"])),
    ("guests", Some(&["guest-shim", "hcall-abi"])),
    ("imsvisor-tests", Some(&["imsvisor-boot"])),
    ("vtd-check", Some(&["imsvisor", "guests", "guest-shim", "hcall-abi"])),
    ("dsa-server", Some(&["dsa-model"])),
    // And files of the hypervisor's, by their paths.
    ("concurrency", Some(&["hcall-abi", "imsvisor-ims"])),
    ("fuzz-targets", Some(&["dsa-model", "dsa-server", "hcall-abi", "imsvisor", "imsvisor-ims", "vtd-model"])),
];

/// What tests of a crate may use besides: the hypervisor's run against the models.
const CRATES_FOR_TESTS: [(&str, &[&str]); 1] = [("imsvisor", &["vtd-model", "dsa-model"])];

/// Crates without a line of unsafe code.
const SAFE_CRATES: [&str; 5] =
    ["hcall-abi", "hypervisor/ims", "tests/models/vtd", "tests/models/dsa", "tests/dsa-server"];

fn workspace() -> PathBuf {
    imsvisor_boot::paths::workspace().expect("the checkout")
}

fn hypervisor() -> Sources {
    let metadata = metadata();
    let crates = [dependencies(&metadata, false), dependencies(&metadata, true)].map(|mut all| all.remove("imsvisor"));
    let crates: Vec<String> = crates.into_iter().flatten().flatten().collect();
    let crates = crates.iter().map(String::as_str);
    Sources::read(&workspace().join("hypervisor/src"), crates).expect("the hypervisor's sources")
}

/// One source that nobody wrote.
fn fabricated(path: &str, text: &str) -> Sources {
    let mut sources = Sources::new(["log", "x86"]);
    sources.add(Path::new(path), text).expect("a fabricated source");
    sources
}

/// What is wrong with an arrow, if anything is.
fn wrong(arrow: &Arrow) -> Option<String> {
    let layer = |room: &str| ROOMS.iter().position(|other| *other == room);
    let pure = PURE.iter().find(|(room, ..)| *room == arrow.from);
    let allowed = match (&arrow.to, pure) {
        (ImportTarget::Root, _) => false,
        (ImportTarget::Room(room), Some((_, rooms, _))) => rooms.contains(&room.as_str()),
        (ImportTarget::Room(room), None) => layer(room).is_some_and(|below| Some(below) < layer(&arrow.from)),
        (ImportTarget::Crate(name), Some((_, _, crates))) => crates.iter().chain(&FOR_TESTS).any(|other| other == name),
        (ImportTarget::Crate(_), None) => true,
    };
    (!allowed).then(|| arrow.to_string())
}

fn all_wrong(sources: &Sources) -> Vec<String> {
    sources.arrows().iter().filter_map(wrong).collect()
}

#[test]
fn imports_in_the_hypervisor_go_downwards_only() {
    let wrong = all_wrong(&hypervisor());
    assert!(wrong.is_empty(), "these imports go the wrong way:\n{}", wrong.join("\n"));
}

#[test]
fn every_room_has_its_layer() {
    let mut rooms = hypervisor().rooms();
    rooms.extend(NAMED_AT_THE_ROOT.map(str::to_owned));
    assert_eq!(rooms, ROOMS.map(str::to_owned).into(), "the table of rooms in this test has to name each room");
}

#[test]
fn a_wrong_import_would_be_reported() {
    let cases = [
        ("vtd/queue.rs", "use crate::ims::Service;", "vtd imports room ims"),
        ("vmx/exit.rs", "fn f() { crate::exits::dispatch() }", "vmx imports room exits"),
        ("pci/mod.rs", "use super::machine;", "pci imports room machine"),
        ("apic/mod.rs", "use crate::guest;", "apic imports room guest"),
        ("irq/ports.rs", "use crate::devices::assign_error::AssignError;", "irq imports room devices"),
        ("vm/create.rs", "use crate::sched;", "vm imports room sched"),
        ("vdev/rtc.rs", "use crate::{addr::Hpa, vtd::irt};", "vdev imports room vtd"),
        ("vdev/rtc.rs", "fn f() { log::info!(\"{}\", 1) }", "vdev imports crate log"),
        ("vdev/tests.rs", "use crate::memory::Frames;", "vdev imports room memory"),
        ("vdev/uart.rs", "use x86::io;", "vdev imports crate x86"),
        ("vdev/uart.rs", "use crate::event;", "vdev imports room event"),
        ("exits/io.rs", "use crate::*;", "exits imports the whole crate"),
        ("cpu/mod.rs", "fn f() { m!(crate::memory::X) }", "cpu imports room memory"),
        ("new/mod.rs", "use crate::addr::Hpa;", "new imports room addr"),
    ];
    for (path, text, expected) in cases {
        let wrong = all_wrong(&fabricated(path, text));
        assert!(matches!(&wrong[..], [one] if one.ends_with(expected)), "{path}: {text}\n{wrong:?}");
    }
}

#[test]
fn a_right_import_is_not_reported() {
    let cases = [
        ("vdev/rtc.rs", "use alloc::vec::Vec; use hcall_abi::Status; use crate::addr::Hpa; use super::uart::Uart;"),
        ("vtd/queue.rs", "use crate::{addr::Hpa, memory}; use x86::msr;"),
        ("sched/mod.rs", "use crate::{exits, ims, vdev, vm, vtd};"),
    ];
    for (path, text) in cases {
        assert_eq!(all_wrong(&fabricated(path, text)), Vec::<String>::new(), "{text}");
    }
}

/// The arrows between the files of each crate, by its name.
fn file_arrows() -> BTreeMap<String, Vec<FileArrow>> {
    let of = |package: &cargo_metadata::Package| {
        let folder = package.manifest_path.with_file_name("src");
        let sources = Sources::read(folder.as_std_path(), []).expect("the crate's sources");
        (package.name.to_string(), sources.file_arrows().expect("the crate's modules"))
    };
    // The files of `concurrency` are others' and are looked at there.
    metadata().packages.iter().filter(|package| package.name.as_str() != "concurrency").map(of).collect()
}

#[test]
fn files_make_no_circles() {
    let mut found = Vec::new();
    for (name, arrows) in file_arrows() {
        assert!(!arrows.is_empty() || name == "imsvisor-sync", "no file of {name} imports from another one");
        found.extend(circles(&arrows).iter().map(|circle| format!("{name}: {circle}")));
    }
    assert!(found.is_empty(), "these files import each other:\n{}", found.join("\n"));
}

#[test]
fn what_needs_no_unsafe_code_forbids_it() {
    let hypervisor = hypervisor();
    for (room, ..) in PURE {
        assert!(hypervisor.has_attribute(room, "forbid", "unsafe_code"), "room {room} lacks forbid(unsafe_code)");
    }
    for folder in SAFE_CRATES {
        let sources = Sources::read(&workspace().join(folder).join("src"), []).expect(folder);
        assert!(sources.has_attribute("", "forbid", "unsafe_code"), "{folder} lacks forbid(unsafe_code)");
    }
}

fn metadata() -> Metadata {
    let mut command = MetadataCommand::new();
    command.current_dir(workspace()).no_deps().other_options(vec!["--offline".to_owned()]);
    command.exec().expect("cargo metadata")
}

/// What each crate depends on, by the kind of dependency: normal and build ones, or those for tests.
fn dependencies(metadata: &Metadata, for_tests: bool) -> BTreeMap<String, BTreeSet<String>> {
    let of = |package: &cargo_metadata::Package| {
        let wanted = |kind: DependencyKind| (kind == DependencyKind::Development) == for_tests;
        let names = package.dependencies.iter().filter(|dependency| wanted(dependency.kind));
        (package.name.to_string(), names.map(|dependency| dependency.name.clone()).collect())
    };
    metadata.packages.iter().map(of).collect()
}

/// The core of the service takes nothing that another hypervisor would not want.
#[test]
fn the_service_depends_on_the_contract_and_the_locks_alone() {
    let normal = dependencies(&metadata(), false);
    assert_eq!(normal["imsvisor-ims"], ["hcall-abi", "imsvisor-sync"].map(str::to_owned).into());
}

#[test]
fn crates_depend_only_on_those_that_they_may() {
    let metadata = metadata();
    let all: BTreeSet<String> = metadata.packages.iter().map(|package| package.name.to_string()).collect();
    let known: BTreeSet<String> = CRATES.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(all, known, "the table of crates in this test has to name each crate");
    let (normal, for_tests) = (dependencies(&metadata, false), dependencies(&metadata, true));
    for (name, allowed) in CRATES {
        let Some(ours) = allowed else {
            assert!(normal[name].is_empty(), "{name} depends on {:?}", normal[name]);
            continue;
        };
        let besides = CRATES_FOR_TESTS.iter().find(|(of, _)| *of == name).map_or(&[][..], |(_, names)| names);
        for (found, may) in [(&normal[name], ours.to_vec()), (&for_tests[name], [ours, besides].concat())] {
            let wrong: Vec<_> = found
                .iter()
                .filter(|other| known.contains(*other) && *other != name && !may.contains(&other.as_str()))
                .collect();
            assert!(wrong.is_empty(), "{name} depends on {wrong:?}");
        }
    }
}
