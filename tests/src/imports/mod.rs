//! Imports: the paths in Rust sources that lead from one room of a crate to another, or out of the crate.
//!
//! A room is a module of the crate's root. Paths are read with `syn` in `use` declarations, in code and types, and, as tokens,
//! in the arguments of macros. Comments and attributes do not count.
//!
//! Between files the reader follows each path to the file that defines its name ([`Sources::file_arrows`]) and finds the circles
//! ([`circles`]).

mod circles;
mod modules;
mod paths;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

pub use circles::{Circle, FileArrow, circles};
use paths::Target;

/// One path that leaves its room.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arrow {
    /// The room that it leaves.
    pub from: String,
    /// Where it leads.
    pub to: ImportTarget,
    /// The file, from the source directory, and the line.
    pub at: (PathBuf, usize),
}

/// Where a path leads.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum ImportTarget {
    /// Another room of the crate.
    Room(String),
    /// The crate's root as a whole, by a glob or another name: it could be any room.
    Root,
    /// Another crate.
    Crate(String),
}

impl fmt::Display for ImportTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Room(room) => write!(f, "room {room}"),
            Self::Root => write!(f, "the whole crate"),
            Self::Crate(name) => write!(f, "crate {name}"),
        }
    }
}

impl fmt::Display for Arrow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {} imports {}", self.at.0.display(), self.at.1, self.from, self.to)
    }
}

/// A crate's sources, parsed.
pub struct Sources {
    files: BTreeMap<PathBuf, syn::File>,
    crates: BTreeSet<String>,
}

impl Sources {
    /// No file yet; `crates` are the names of the crates that a path in code may begin with.
    pub fn new<'a>(crates: impl IntoIterator<Item = &'a str>) -> Self {
        let name = |name: &str| name.replace('-', "_");
        Self { files: BTreeMap::new(), crates: crates.into_iter().chain(["core", "alloc", "std"]).map(name).collect() }
    }

    /// Reads every Rust file below a source directory.
    pub fn read<'a>(directory: &Path, crates: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let mut sources = Self::new(crates);
        let mut open = vec![directory.to_owned()];
        while let Some(next) = open.pop() {
            for entry in next.read_dir().with_context(|| format!("cannot list {}", next.display()))? {
                let path = entry?.path();
                if path.is_dir() {
                    open.push(path);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    let text = std::fs::read_to_string(&path)?;
                    sources.add(path.strip_prefix(directory)?, &text)?;
                }
            }
        }
        Ok(sources)
    }

    /// Adds one file by its path from the source directory.
    pub fn add(&mut self, path: &Path, text: &str) -> Result<()> {
        let file = syn::parse_file(text).with_context(|| format!("cannot parse {}", path.display()))?;
        if self.files.insert(path.to_owned(), file).is_some() {
            bail!("{} is there twice", path.display());
        }
        Ok(())
    }

    /// The rooms: the modules that have files of their own below the root.
    pub fn rooms(&self) -> BTreeSet<String> {
        self.files.keys().filter_map(|path| module_path(path).into_iter().next()).collect()
    }

    /// The inner attributes of a room's or, for an empty name, the crate's own file that are lists: `forbid(unsafe_code)`.
    pub fn has_attribute(&self, room: &str, attribute: &str, argument: &str) -> bool {
        let own = if room.is_empty() { vec![] } else { vec![room.to_owned()] };
        self.files
            .iter()
            .filter(|(path, _)| module_path(path) == own && !is_program(path))
            .flat_map(|(_, file)| &file.attrs)
            .any(|found| paths::is_list(found, attribute, argument))
    }

    /// Every path that leaves its room. The files of the root itself are not looked at: they see all rooms.
    pub fn arrows(&self) -> Vec<Arrow> {
        let macros = self.macros();
        let mut arrows = Vec::new();
        for (path, file) in &self.files {
            let module = module_path(path);
            let Some(room) = module.first().cloned() else { continue };
            for (target, line) in paths::targets(file, &module, &self.crates) {
                let to = match target {
                    Target::Root => ImportTarget::Root,
                    Target::Crate(name) => ImportTarget::Crate(name),
                    Target::Inside(name) => ImportTarget::Room(macros.get(&name).cloned().unwrap_or(name)),
                };
                if to != ImportTarget::Room(room.clone()) {
                    arrows.push(Arrow { from: room.clone(), to, at: (path.clone(), line) });
                }
            }
        }
        arrows.sort();
        arrows.dedup();
        arrows
    }

    /// Exported macros stand at the crate's root, but belong to the room that defines them.
    fn macros(&self) -> BTreeMap<String, String> {
        let in_file = |(path, file): (&PathBuf, &syn::File)| {
            let room = module_path(path).into_iter().next();
            let names = paths::exported_macros(file);
            names.into_iter().filter_map(move |name| Some((name, room.clone()?))).collect::<Vec<_>>()
        };
        self.files.iter().flat_map(in_file).collect()
    }
}

/// `main.rs` is a crate of its own beside the library.
fn is_program(path: &Path) -> bool {
    path == Path::new("main.rs")
}

/// The module that a file holds: `vtd/queue.rs` is `["vtd", "queue"]`, `vtd/mod.rs` is `["vtd"]`, `lib.rs` is the root.
fn module_path(path: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        path.with_extension("").components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
    let root = names.len() == 1 && (names[0] == "lib" || names[0] == "main");
    if root || names.last().is_some_and(|name| name == "mod") {
        names.pop();
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The arrows of one fabricated file, as `room>place` words.
    fn arrows(path: &str, text: &str) -> Vec<String> {
        let mut sources = Sources::new(["x86", "uart_16550"]);
        sources
            .add(Path::new("console.rs"), "#[macro_export]\nmacro_rules! event { () => { $crate::cpu::tsc() } }")
            .unwrap();
        sources.add(Path::new(path), text).unwrap();
        let of_file = |arrow: &Arrow| arrow.at.0 == Path::new(path);
        sources.arrows().iter().filter(|arrow| of_file(arrow)).map(|arrow| arrow.to.to_string()).collect()
    }

    #[test]
    fn a_use_of_another_room_is_an_arrow() {
        assert_eq!(arrows("ims/slot.rs", "use crate::vtd::Unit;"), ["room vtd"]);
        assert_eq!(arrows("ims/slot.rs", "use crate::{addr::Hpa, vmx::{self, caps}};"), ["room addr", "room vmx"]);
        assert_eq!(arrows("ims/slot.rs", "pub use crate::vtd::Unit as U;"), ["room vtd"]);
    }

    #[test]
    fn a_path_in_code_or_in_a_type_is_an_arrow() {
        assert_eq!(arrows("ims/mod.rs", "fn f() { crate::vtd::flush(); }"), ["room vtd"]);
        assert_eq!(arrows("ims/mod.rs", "struct S(Option<crate::vtd::Unit>);"), ["room vtd"]);
        assert_eq!(arrows("ims/mod.rs", "impl crate::vtd::Port for S {}"), ["room vtd"]);
    }

    #[test]
    fn a_path_in_a_macros_arguments_is_an_arrow() {
        assert_eq!(arrows("ims/mod.rs", "fn f() { log!(\"{}\", crate::vtd::faults()); }"), ["room vtd"]);
        assert_eq!(arrows("ims/mod.rs", "macro_rules! m { () => { [$crate::vtd::X] } }"), ["room vtd"]);
    }

    #[test]
    fn a_way_by_super_is_the_same_arrow() {
        assert_eq!(arrows("ims/slot.rs", "use super::super::vtd::Unit;"), ["room vtd"]);
        assert_eq!(arrows("ims/mod.rs", "use super::vtd;"), ["room vtd"]);
        assert_eq!(arrows("ims/slot.rs", "mod tests { fn f() { super::super::super::vtd::x() } }"), ["room vtd"]);
        assert_eq!(arrows("ims/slot.rs", "fn f() { m!(super::super::vtd::X) }"), ["room vtd"]);
    }

    #[test]
    fn a_glob_of_the_root_hides_every_arrow_and_is_one_to_all() {
        assert_eq!(arrows("ims/mod.rs", "use crate::*;"), ["the whole crate"]);
        assert_eq!(arrows("ims/mod.rs", "use super::*;"), ["the whole crate"]);
        assert_eq!(arrows("ims/mod.rs", "use crate as all;"), ["the whole crate"]);
        assert_eq!(arrows("ims/mod.rs", "use crate::{self as all};"), ["the whole crate"]);
    }

    #[test]
    fn what_stays_in_its_room_is_no_arrow() {
        let text = "pub(crate) struct S; pub(in crate::ims) struct T; use super::domain::Domain; use self::x::Y;
            mod tests { use super::*; } fn f() { crate::ims::slot::g(); Vec::<u8>::new(); }";
        assert_eq!(arrows("ims/slot.rs", text), Vec::<String>::new());
    }

    #[test]
    fn comments_and_attributes_are_no_arrows() {
        let text =
            "//! See [`crate::vtd`].\n/// Like [`crate::vmx`].\n#[doc = \"crate::ept\"]\nstruct S; // crate::pci::X";
        assert_eq!(arrows("ims/mod.rs", text), Vec::<String>::new());
    }

    #[test]
    fn another_crate_is_an_arrow_out() {
        let text = "use x86::msr; use ::spin::Mutex; fn f() { core::mem::drop(1); uart_16550::x() }";
        assert_eq!(arrows("ims/mod.rs", text), ["crate core", "crate spin", "crate uart_16550", "crate x86"]);
        assert_eq!(arrows("ims/mod.rs", "fn f() { m!(x86::io::outb(1, 2)) }"), ["crate x86"]);
    }

    #[test]
    fn a_macro_belongs_to_the_room_that_defines_it() {
        assert_eq!(arrows("vtd/mod.rs", "use crate::event; fn f() { crate::event!(\"x\"); }"), ["room console"]);
        assert_eq!(arrows("ims/mod.rs", "use crate::event;"), ["room console"]);
    }

    #[test]
    fn an_arrow_tells_file_and_line() {
        let mut sources = Sources::new(["x86", "uart_16550"]);
        sources.add(Path::new("ims/slot.rs"), "//! Slots.\n\nuse crate::vtd::Unit;\n").unwrap();
        assert_eq!(sources.arrows()[0].to_string(), "ims/slot.rs:3: ims imports room vtd");
    }

    #[test]
    fn a_room_without_the_attribute_is_seen() {
        let mut sources = Sources::new(["x86", "uart_16550"]);
        sources.add(Path::new("lib.rs"), "#![forbid(unsafe_code)] mod ims; mod vdev;").unwrap();
        sources.add(Path::new("main.rs"), "#![deny(warnings)]").unwrap();
        sources.add(Path::new("ims/mod.rs"), "#![forbid(unsafe_code, missing_docs)]").unwrap();
        sources.add(Path::new("vdev.rs"), "#![deny(unsafe_code)] // forbid(unsafe_code)").unwrap();
        let forbids = |room| sources.has_attribute(room, "forbid", "unsafe_code");
        assert!(forbids("") && forbids("ims") && !forbids("vdev") && !forbids("absent"));
        assert!(!sources.has_attribute("", "deny", "warnings"));
        assert_eq!(sources.rooms().into_iter().collect::<Vec<_>>(), ["ims", "vdev"]);
    }
}
