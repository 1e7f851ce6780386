//! Arrows from file to file, and the circles that they make.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use petgraph::algo::tarjan_scc;
use petgraph::graphmap::DiGraphMap;
use syn::visit::{self, Visit};
use syn::{Attribute, Field, ImplItem, Item, ItemMod, ItemUse, Macro, TraitItem, Visibility};

use super::Sources;
use super::modules::{End, ModulePath, Modules, attributes, is_for_tests};
use super::paths;

/// A path in one file that leads to a name in another file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileArrow {
    /// The file that has the path, from the source directory.
    pub from: PathBuf,
    /// The line of the path in `from`.
    pub line: usize,
    /// The file that defines the name, from the source directory.
    pub to: PathBuf,
}

impl fmt::Display for FileArrow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: imports {}", self.from.display(), self.line, self.to.display())
    }
}

/// Files each of which leads to each other one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Circle {
    /// One arrow of each file to another one of the circle.
    pub arrows: Vec<FileArrow>,
}

impl fmt::Display for Circle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files: Vec<String> = self.arrows.iter().map(|arrow| arrow.from.display().to_string()).collect();
        write!(f, "a circle of {}", files.join(", "))?;
        self.arrows.iter().try_for_each(|arrow| write!(f, "\n  {arrow}"))
    }
}

/// The circles that arrows make: strongly connected components of more than one file.
pub fn circles(arrows: &[FileArrow]) -> Vec<Circle> {
    let edges = arrows.iter().map(|arrow| (arrow.from.as_path(), arrow.to.as_path()));
    let graph: DiGraphMap<&Path, ()> = DiGraphMap::from_edges(edges);
    let components = tarjan_scc(&graph).into_iter().filter(|files| files.len() > 1);
    let mut circles: Vec<Circle> = components.map(|files| circle(&files.into_iter().collect(), arrows)).collect();
    circles.sort_by(|a, b| a.arrows.cmp(&b.arrows));
    circles
}

fn circle(files: &BTreeSet<&Path>, arrows: &[FileArrow]) -> Circle {
    let of =
        |file: &&Path| arrows.iter().find(|arrow| arrow.from == *file && files.contains(arrow.to.as_path())).cloned();
    Circle { arrows: files.iter().filter_map(of).collect() }
}

impl Sources {
    /// The arrows between files, without those between a module and its own descendants and without what only tests have. A name
    /// that a module re-exports counts for the file that defines it. An error names a declared module that has no file.
    pub fn file_arrows(&self) -> Result<Vec<FileArrow>> {
        let modules = Modules::new(&self.files)?;
        let mut arrows = BTreeSet::new();
        for (module, path, file) in modules.files() {
            let mut reader = Reader { modules: &modules, module: module.clone(), found: Vec::new() };
            reader.visit_file(file);
            let others = reader.found.iter().filter(|(end, _)| !module.starts_with(end) && !end.starts_with(module));
            let arrow = |(end, line): &(ModulePath, usize)| {
                let to = modules.file_of(end)?.to_owned();
                Some(FileArrow { from: path.to_owned(), line: *line, to })
            };
            arrows.extend(others.filter_map(arrow));
        }
        Ok(arrows.into_iter().collect())
    }
}

/// Reads the paths of one file.
struct Reader<'a> {
    modules: &'a Modules<'a>,
    /// The module that is being read: the file's or one that is declared in it.
    module: ModulePath,
    /// The modules to which paths lead, each with the path's line.
    found: Vec<(ModulePath, usize)>,
}

impl Reader<'_> {
    fn take(&mut self, names: &[String], line: usize) {
        match self.modules.resolve(&self.module, names) {
            // One name alone may be a variable's.
            Some(End::Module(_)) if names.len() == 1 => {}
            Some(End::Module(module) | End::Item(module)) => self.found.push((module, line)),
            None => {}
        }
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        if !is_for_tests(attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item(&mut self, item: &'ast ImplItem) {
        let attributes = match item {
            ImplItem::Const(item) => &item.attrs,
            ImplItem::Fn(item) => &item.attrs,
            ImplItem::Type(item) => &item.attrs,
            ImplItem::Macro(item) => &item.attrs,
            _ => return,
        };
        if !is_for_tests(attributes) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_trait_item(&mut self, item: &'ast TraitItem) {
        let attributes = match item {
            TraitItem::Const(item) => &item.attrs,
            TraitItem::Fn(item) => &item.attrs,
            TraitItem::Type(item) => &item.attrs,
            TraitItem::Macro(item) => &item.attrs,
            _ => return,
        };
        if !is_for_tests(attributes) {
            visit::visit_trait_item(self, item);
        }
    }

    fn visit_field(&mut self, field: &'ast Field) {
        if !is_for_tests(&field.attrs) {
            visit::visit_field(self, field);
        }
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        self.module.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.module.pop();
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        if item.leading_colon.is_none() {
            for used in paths::flatten(&item.tree) {
                self.take(&used.names, used.line);
            }
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if let (Some(first), None) = (path.segments.first(), &path.leading_colon) {
            self.take(&names, first.ident.span().start().line);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        self.visit_path(&call.path);
        for (names, line) in paths::in_tokens(call.tokens.clone()) {
            self.take(&names, line);
        }
    }

    /// An item's visibility is no import.
    fn visit_visibility(&mut self, _: &'ast Visibility) {}

    /// Attributes and comments are no imports.
    fn visit_attribute(&mut self, _: &'ast Attribute) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fabricated crate.
    fn sources(files: &[(&str, &str)]) -> Sources {
        let mut sources = Sources::new([]);
        for (path, text) in files {
            sources.add(Path::new(path), text).expect("a fabricated source");
        }
        sources
    }

    fn arrows(files: &[(&str, &str)]) -> Vec<String> {
        let arrows = sources(files).file_arrows().expect("every module has its file");
        arrows.iter().map(FileArrow::to_string).collect()
    }

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let arrows = sources(files).file_arrows().expect("every module has its file");
        circles(&arrows).iter().map(Circle::to_string).collect()
    }

    const LIB: (&str, &str) = ("lib.rs", "mod a; mod b;");
    const A: (&str, &str) = ("a.rs", "pub struct X; pub fn f() {} pub mod inner { pub struct Y; }");

    /// The arrows of file `b.rs` with this text, beside [`LIB`] and [`A`].
    fn of_b(text: &str) -> Vec<String> {
        arrows(&[LIB, A, ("b.rs", text)])
    }

    #[test]
    fn every_kind_of_path_is_an_arrow_to_the_file_that_defines_the_name() {
        for text in [
            "use crate::a::X;",
            "use super::a::{X, inner};",
            "use crate::a::inner::Y as Z;",
            "use super::a;",
            "fn g() { crate::a::f() }",
            "fn g() { super::a::f() }",
            "struct S(Option<crate::a::X>);",
            "fn g() { assert!(crate::a::f() == ()) }",
            "fn g() { use crate::a::f; f() }",
            "mod c { use super::super::a::X; }",
        ] {
            assert_eq!(of_b(text), ["b.rs:1: imports a.rs"], "{text}");
        }
    }

    #[test]
    fn a_name_that_use_has_brought_is_followed_further() {
        let lib = ("lib.rs", "mod a; mod b;");
        let a = ("a/mod.rs", "pub mod deep; pub struct X;");
        let text = "use crate::a;\nfn f() {\n a::deep::g(); }";
        let found = arrows(&[lib, a, ("a/deep.rs", "pub fn g() {}"), ("b.rs", text)]);
        assert_eq!(found, ["b.rs:1: imports a/mod.rs", "b.rs:3: imports a/deep.rs"]);
    }

    #[test]
    fn a_re_export_leads_to_the_file_that_defines_the_name() {
        let lib = ("lib.rs", "mod ims; mod b; pub use ims::*;");
        let service = ("ims/service.rs", "pub struct Service;");
        for (exports, text) in [
            ("mod service; pub use service::Service;", "use crate::ims::Service;"),
            ("mod service; pub use service::Service as Other;", "use crate::ims::Other;"),
            ("mod service; pub use service::*;", "use crate::ims::Service;"),
            ("mod service; pub use self::service::Service;", "use crate::Service;"),
            ("mod service; use service::Service;", "use super::ims::*; struct T(Service);"),
        ] {
            let found = arrows(&[lib, ("ims/mod.rs", exports), service, ("b.rs", text)]);
            assert!(found.contains(&"b.rs:1: imports ims/service.rs".to_owned()), "{exports} {text}: {found:?}");
        }
    }

    #[test]
    fn an_exported_macro_stands_in_the_file_that_defines_it() {
        let a = ("a.rs", "#[macro_export] macro_rules! event { () => { $crate::b::f() } }");
        let found = arrows(&[LIB, a, ("b.rs", "fn f() { crate::event!() }")]);
        assert_eq!(found, ["a.rs:1: imports b.rs", "b.rs:1: imports a.rs"]);
    }

    #[test]
    fn a_name_that_a_macro_makes_stands_in_the_file_of_its_module() {
        let a = ("a.rs", "bitflags! { pub struct Flags: u8 {} }");
        assert_eq!(arrows(&[LIB, a, ("b.rs", "use crate::a::Flags;")]), ["b.rs:1: imports a.rs"]);
    }

    #[test]
    fn what_leads_nowhere_is_no_arrow() {
        for text in [
            "use core::fmt; use std::a::X; fn f() { fmt::x(); a::f(); ::a::f(); }",
            "fn f(a: u8) -> u8 { self::g(); Self::a(); a }",
            "/// Like [`crate::a::X`].\n#[doc = \"crate::a\"] pub(in crate::a) struct S; // crate::a::X",
            "use self::a::X; use a::X; mod a { pub struct X; }",
        ] {
            assert_eq!(of_b(text), Vec::<String>::new(), "{text}");
        }
    }

    #[test]
    fn names_that_lead_in_a_round_end() {
        let a = ("a.rs", "pub use super::b::X; pub use super::b::*;");
        let b = ("b.rs", "pub use super::a::X; pub use super::a::*; use super::a::Y;");
        assert_eq!(found(&[LIB, a, b]).len(), 1);
    }

    #[test]
    fn what_only_tests_have_is_no_arrow() {
        for text in [
            "#[cfg(test)] use crate::a::X;",
            "#[cfg(test)] mod tests { use crate::a::X; }",
            "#[cfg(all(test, feature = \"x\"))] fn f() { crate::a::f() }",
            "struct S; impl S { #[cfg(test)] fn f() { crate::a::f() } }",
            "trait T { #[cfg(test)] fn f() { crate::a::f() } }",
            "struct S { #[cfg(test)] x: crate::a::X }",
        ] {
            assert_eq!(of_b(text), Vec::<String>::new(), "{text}");
        }
        for text in ["#[cfg(not(test))] use crate::a::X;", "#[cfg(any(test, feature = \"x\"))] use crate::a::X;"] {
            assert_eq!(of_b(text).len(), 1, "{text}");
        }
    }

    #[test]
    fn a_file_that_only_tests_have_is_not_read() {
        let tests = "use crate::a::X;";
        for (declaration, file) in [
            ("#[cfg(test)] mod tests;", "b/tests.rs"),
            ("#[cfg(test)] mod tests;", "b/tests/mod.rs"),
            ("#[cfg(test)] #[path = \"b_tests.rs\"] mod tests;", "b_tests.rs"),
        ] {
            assert_eq!(arrows(&[LIB, A, ("b.rs", declaration), (file, tests)]), Vec::<String>::new(), "{file}");
        }
        let named = [LIB, A, ("b.rs", "#[path = \"other.rs\"] mod tests;"), ("other.rs", tests)];
        assert_eq!(arrows(&named), ["other.rs:1: imports a.rs"]);
    }

    #[test]
    fn a_declared_module_without_a_file_is_an_error() {
        let error = sources(&[LIB, A]).file_arrows().unwrap_err().to_string();
        assert_eq!(error, "lib.rs declares b, which has no file");
    }

    #[test]
    fn a_module_and_its_descendants_make_no_circle() {
        let room = ("a/mod.rs", "mod deep; pub struct X; use deep::Y;");
        let deep = ("a/deep.rs", "mod deeper; use super::X; use crate::top; pub struct Y;");
        let deeper = ("a/deep/deeper.rs", "use super::Y; use crate::a::X;");
        assert_eq!(arrows(&[("lib.rs", "mod a; fn top() {}"), room, deep, deeper]), Vec::<String>::new());
    }

    #[test]
    fn siblings_and_cousins_make_circles() {
        let room = ("a/mod.rs", "mod x; mod y;");
        let x = ("a/x.rs", "use super::y::Y; pub struct X;");
        let y = ("a/y.rs", "\nuse super::x::X; pub struct Y;");
        let expected = "a circle of a/x.rs, a/y.rs\n  a/x.rs:1: imports a/y.rs\n  a/y.rs:2: imports a/x.rs";
        assert_eq!(found(&[("lib.rs", "mod a;"), room, x, y]), [expected]);

        let cousin = ("b.rs", "pub struct B(crate::a::x::X);");
        let x = ("a/x.rs", "pub struct X; fn f() { crate::b::B }");
        let rest = ("a/y.rs", "use crate::b::B; use super::x::X;");
        let circles = found(&[LIB, room, x, rest, cousin]);
        let expected = "a circle of a/x.rs, b.rs\n  a/x.rs:1: imports b.rs\n  b.rs:1: imports a/x.rs";
        assert_eq!(circles, [expected]);
    }

    #[test]
    fn a_circle_over_three_files_is_one_and_two_circles_are_two() {
        let lib = ("lib.rs", "mod a; mod b; mod c; mod d; mod e;");
        let [a, b, c] = [("a.rs", "use crate::b;"), ("b.rs", "use crate::c;"), ("c.rs", "use crate::a;")];
        let [d, e] = [("d.rs", "use crate::{a, e};"), ("e.rs", "use crate::d;")];
        let circles = found(&[lib, a, b, c, d, e]);
        let heads: Vec<&str> = circles.iter().filter_map(|circle| circle.lines().next()).collect();
        assert_eq!(heads, ["a circle of a.rs, b.rs, c.rs", "a circle of d.rs, e.rs"]);
        assert_eq!(found(&[lib, a, b, ("c.rs", ""), ("d.rs", "use crate::a;"), ("e.rs", "")]), Vec::<String>::new());
    }

    #[test]
    fn each_program_has_a_tree_of_its_own() {
        let x = ("bin/p/x.rs", "use crate::y::Y; pub struct X;");
        let y = ("bin/p/y.rs", "use super::x::X; pub struct Y;");
        let circles = found(&[("lib.rs", "pub struct L;"), ("bin/p/main.rs", "mod x; mod y;"), x, y]);
        assert_eq!(circles.len(), 1, "{circles:?}");
    }
}
