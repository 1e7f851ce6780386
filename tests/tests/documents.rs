//! Holds what the documents name: each file that a link or a path in back-quotes names is there.

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
