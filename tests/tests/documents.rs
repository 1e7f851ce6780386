//! Holds what the documents name: each file that a link or a path in back-quotes names is there, and so is each test.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Where a path in back-quotes may begin, besides beside its document.
const BASES: [&str; 10] = [
    "",
    "hypervisor/src",
    "hypervisor/src/vmx",
    "hypervisor",
    "hypervisor/ims/src",
    "boot/src",
    "tests",
    "tests/tests",
    "tests/guests/src/bin",
    "guest-shim/src",
];
/// Folders that are not the checkout's own.
const FOREIGN: [&str; 2] = ["target", ".git"];

fn documents(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of the checkout").flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() && !FOREIGN.iter().any(|foreign| name == *foreign) {
            documents(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
}

/// What stands between `open` and `close`, in one line each.
fn between<'a>(text: &'a str, open: &'a str, close: char) -> impl Iterator<Item = &'a str> {
    text.lines().flat_map(move |line| line.split(open).skip(1).filter_map(move |rest| Some(rest.split_once(close)?.0)))
}

/// A link to a file: neither to the web nor to a heading.
fn links(text: &str) -> impl Iterator<Item = &str> {
    between(text, "](", ')').filter(|link| !link.contains("://") && !link.starts_with('#'))
}

/// A path of a source file or a document, and no pattern.
fn is_path(word: &str) -> bool {
    let ends = [".rs", ".md", ".S", ".ld", ".svg"].iter().any(|end| word.ends_with(end));
    ends && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte))
}

/// The paths in back-quotes: `a/{b,c}.rs` is two.
fn paths(text: &str) -> impl Iterator<Item = String> {
    let quoted = text.lines().flat_map(|line| line.split('`').skip(1).step_by(2));
    quoted.flat_map(alternatives).filter(|word| is_path(word))
}

fn alternatives(word: &str) -> Vec<String> {
    let parts = word.split_once('{').and_then(|(before, rest)| Some((before, rest.split_once('}')?)));
    match parts {
        Some((before, (all, after))) => all.split(',').map(|one| [before, one, after].concat()).collect(),
        None => vec![word.to_owned()],
    }
}

/// What a document names and is not there.
fn missing(workspace: &Path, document: &Path, text: &str) -> Vec<String> {
    let folder = document.parent().expect("a file's folder");
    let linked = links(text).filter(|link| !folder.join(link.split('#').next().unwrap_or(link)).exists());
    let is_there =
        |path: &str| folder.join(path).exists() || BASES.iter().any(|base| workspace.join(base).join(path).exists());
    let named = paths(text).filter(|path| !is_there(path));
    linked.map(str::to_owned).chain(named).map(|name| format!("{}: {name}", document.display())).collect()
}

/// The least number of words of a test's name, by which it is told from other names.
const WORDS: usize = 5;

/// The documents that say which test holds what.
const PROMISES: [&str; 2] = ["SECURITY.md", "hypervisor/src/sched/SCHEDULER.md"];

/// The tests in back-quotes.
fn tests(text: &str) -> impl Iterator<Item = &str> {
    let quoted = text.lines().flat_map(|line| line.split('`').skip(1).step_by(2));
    let is_name =
        |word: &&str| word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    quoted.filter(is_name).filter(|word| word.split('_').count() >= WORDS)
}

/// The names of all functions in Rust files below a folder.
fn functions(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).expect("a folder of the checkout").flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() && !FOREIGN.iter().any(|foreign| name == *foreign) {
            functions(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("a file of the checkout");
            let names = text.split("fn ").skip(1).filter_map(|rest| Some(rest.split_once('(')?.0));
            found.extend(names.map(str::to_owned));
        }
    }
}

#[test]
fn every_test_that_holds_a_promise_is_there() {
    let workspace = imsvisor_boot::paths::workspace().expect("the checkout");
    let mut there = BTreeSet::new();
    functions(&workspace, &mut there);
    let texts = PROMISES.map(|document| fs::read_to_string(workspace.join(document)).expect("a document"));
    let named: BTreeSet<_> = texts.iter().flat_map(|text| tests(text)).collect();
    assert!(named.len() > 30, "{named:?}");
    let missing: Vec<_> = named.iter().filter(|name| !there.contains(**name)).collect();
    assert!(missing.is_empty(), "these tests are not there: {missing:?}");
}

/// SECURITY.md has a row for each attack, and each has tests with its number.
#[test]
fn every_attack_has_tests_and_a_row() {
    let workspace = imsvisor_boot::paths::workspace().expect("the checkout");
    let mut there = BTreeSet::new();
    functions(&workspace, &mut there);
    let text = fs::read_to_string(workspace.join("SECURITY.md")).expect("the threat model");
    for attack in 1..=ATTACKS {
        assert!(text.contains(&format!("\n| {attack} | ")), "attack {attack} has no row");
        assert!(there.iter().any(|name| attacks(name).contains(&attack)), "attack {attack} has no test");
    }
}

/// The attacks that SECURITY.md lists.
const ATTACKS: u32 = 29;

/// The attacks in a test's name: `attack_07_…`, `attack_07_and_08_…` or `attack_12_to_14_…`.
fn attacks(name: &str) -> Vec<u32> {
    let Some(rest) = name.strip_prefix("attack_") else { return Vec::new() };
    let words: Vec<_> = rest.split('_').collect();
    match words[..] {
        [first, "to", last, ..] if number(last) != 0 => (number(first)..=number(last)).collect(),
        [first, "and", second, ..] => vec![number(first), number(second)],
        [first, ..] => vec![number(first)],
        [] => Vec::new(),
    }
}

/// A number of two digits; 0 for any other word.
fn number(word: &str) -> u32 {
    word.parse().unwrap_or(0)
}

#[test]
fn the_attacks_of_a_name_are_read() {
    assert_eq!(attacks("attack_07_x"), [7]);
    assert_eq!(attacks("attack_07_and_08_x"), [7, 8]);
    assert_eq!(attacks("attack_12_to_14_x"), [12, 13, 14]);
    assert!(attacks("a_test").is_empty());
}

#[test]
fn every_file_that_a_document_names_is_there() {
    let workspace = imsvisor_boot::paths::workspace().expect("the checkout");
    let mut all = Vec::new();
    documents(&workspace, &mut all);
    assert!(all.len() > 10, "{all:?}");
    let wrong: Vec<_> = all
        .iter()
        .flat_map(|document| missing(&workspace, document, &fs::read_to_string(document).expect("a document")))
        .collect();
    assert!(wrong.is_empty(), "these are not there:\n{}", wrong.join("\n"));
}

#[test]
fn a_file_that_is_not_there_would_be_reported() {
    let workspace = imsvisor_boot::paths::workspace().expect("the checkout");
    let text = "[a](README.md) and [b](GONE.md), `vmx/{exit,lost}.rs` and `vmx/gone.rs`, [c](https://example.com/x.md) `a b.rs` `*.rs`";
    let found = missing(&workspace, &workspace.join("README.md"), text);
    let names: Vec<_> = found.iter().map(|line| line.rsplit(' ').next().unwrap_or(line)).collect();
    assert_eq!(names, ["GONE.md", "vmx/lost.rs", "vmx/gone.rs"]);
}
