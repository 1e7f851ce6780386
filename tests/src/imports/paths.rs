//! The paths of one file, made absolute.

use std::collections::BTreeSet;

use proc_macro2::{Ident, TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, File, Item, ItemMacro, ItemMod, ItemUse, Macro, Meta, UseTree, Visibility};

/// Where a path leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// A name at the crate's root.
    Inside(String),
    /// The root itself.
    Root,
    /// Another crate, or what looks like one.
    Crate(String),
}

/// The crate by its own name, as its program has to call it.
const OWN_NAME: &str = "imsvisor";

/// Every target in a file that holds `module`, each with its line. In code a path's first name may be a type's or that of
/// something that a glob has brought: there only names in `crates` are taken for crates.
pub(super) fn targets(file: &File, module: &[String], crates: &BTreeSet<String>) -> Vec<(Target, usize)> {
    let mut reader = Reader { module: module.to_vec(), local: own_names(file), crates, found: Vec::new() };
    reader.visit_file(file);
    reader.found
}

/// The macros that a file exports.
pub(super) fn exported_macros(file: &File) -> Vec<String> {
    let name = |item: &Item| match item {
        Item::Macro(item) if is_exported(item) => item.ident.as_ref().map(Ident::to_string),
        _ => None,
    };
    file.items.iter().filter_map(name).collect()
}

/// Whether the macro stands at the crate's root, wherever its definition is.
pub(super) fn is_exported(item: &ItemMacro) -> bool {
    item.attrs.iter().any(|attribute| attribute.path().is_ident("macro_export"))
}

/// Whether an attribute is `name(… argument …)`.
pub(super) fn is_list(attribute: &Attribute, name: &str, argument: &str) -> bool {
    let Meta::List(list) = &attribute.meta else { return false };
    let is_argument = |token: TokenTree| matches!(token, TokenTree::Ident(ident) if ident == argument);
    list.path.is_ident(name) && list.tokens.clone().into_iter().any(is_argument)
}

/// Names that the file has from elsewhere in the crate or that are counted already: its modules, and what `use` brings.
fn own_names(file: &File) -> BTreeSet<String> {
    struct Names(BTreeSet<String>);
    impl<'ast> Visit<'ast> for Names {
        fn visit_item_mod(&mut self, item: &'ast ItemMod) {
            self.0.insert(item.ident.to_string());
            visit::visit_item_mod(self, item);
        }

        fn visit_item_use(&mut self, item: &'ast ItemUse) {
            for path in flatten(&item.tree) {
                // `use spin;` or `use spin::Mutex` name a crate; what they bring in is a name of this file.
                if path.names.len() > 1 {
                    self.0.extend(path.brings);
                }
            }
        }
    }
    let mut names = Names(BTreeSet::new());
    names.visit_file(file);
    names.0
}

struct Reader<'a> {
    module: Vec<String>,
    local: BTreeSet<String>,
    crates: &'a BTreeSet<String>,
    found: Vec<(Target, usize)>,
}

impl Reader<'_> {
    /// Takes a path of several names, or one that stands for all that is below it.
    fn take(&mut self, names: &[String], absolute: bool, declared: bool, line: usize) {
        let target = if absolute { names.first().cloned().map(Target::Crate) } else { self.resolve(names, declared) };
        self.found.extend(target.map(|target| (target, line)));
    }

    /// Where a path leads, if it may lead out of its module. `declared`: in a `use`, where a first name that is not the file's
    /// own is a crate's.
    fn resolve(&self, names: &[String], declared: bool) -> Option<Target> {
        let first = names.first()?.as_str();
        let rest = &names[1..];
        match first {
            "crate" | OWN_NAME => Some(below_root(rest)),
            "self" | "super" => {
                let mut place = self.module.clone();
                let steps = names.iter().take_while(|name| *name == "super" || *name == "self").count();
                for _ in names[..steps].iter().filter(|name| *name == "super") {
                    place.pop();
                }
                place.extend_from_slice(&names[steps..]);
                Some(below_root(&place))
            }
            _ if self.local.contains(first) => None,
            _ => (declared || self.crates.contains(first)).then(|| Target::Crate(first.to_owned())),
        }
    }
}

/// The paths of several names in a macro's arguments, each with its line. Arguments are tokens: names joined by `::`.
pub(super) fn in_tokens(tokens: TokenStream) -> Vec<(Vec<String>, usize)> {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        match &tokens[at] {
            TokenTree::Group(group) => found.extend(in_tokens(group.stream())),
            TokenTree::Ident(ident) => {
                let names = joined(&tokens[at..]);
                let follows = follows_joint(&tokens[..at]);
                at += (names.len() - 1) * 3;
                if names.len() > 1 && !follows {
                    found.push((names, ident.span().start().line));
                }
            }
            TokenTree::Punct(_) | TokenTree::Literal(_) => {}
        }
        at += 1;
    }
    found
}

/// The names at the front of `tokens` that are joined by `::`.
fn joined(tokens: &[TokenTree]) -> Vec<String> {
    let mut names = Vec::new();
    let mut rest = tokens;
    while let [TokenTree::Ident(ident), tail @ ..] = rest {
        names.push(ident.to_string());
        match tail {
            [TokenTree::Punct(a), TokenTree::Punct(b), tail @ ..] if a.as_char() == ':' && b.as_char() == ':' => {
                rest = tail;
            }
            _ => break,
        }
    }
    names
}

/// Whether `::` comes before: then the names are the rest of `<T as Trait>::name`.
fn follows_joint(before: &[TokenTree]) -> bool {
    matches!(before, [.., TokenTree::Punct(a), TokenTree::Punct(b)] if a.as_char() == ':' && b.as_char() == ':')
}

/// Where a path from the root leads.
fn below_root(names: &[String]) -> Target {
    match names.first().map(String::as_str) {
        None | Some("*" | "self") => Target::Root,
        Some(name) => Target::Inside(name.to_owned()),
    }
}

/// One path of a `use` declaration.
pub(super) struct Used {
    pub names: Vec<String>,
    /// The name that it brings into the file.
    pub brings: Option<String>,
    pub line: usize,
}

/// The single paths of a `use` declaration; a glob ends in `*`.
pub(super) fn flatten(tree: &UseTree) -> Vec<Used> {
    let one = |ident: &Ident, brings: &Ident| {
        let line = ident.span().start().line;
        vec![Used { names: vec![ident.to_string()], brings: Some(brings.to_string()), line }]
    };
    match tree {
        UseTree::Path(path) => {
            let below = flatten(&path.tree);
            let under = |used: Used| {
                let brings = if used.names == ["self"] { Some(path.ident.to_string()) } else { used.brings };
                Used { names: [vec![path.ident.to_string()], used.names].concat(), brings, line: used.line }
            };
            below.into_iter().map(under).collect()
        }
        UseTree::Name(name) => one(&name.ident, &name.ident),
        UseTree::Rename(rename) => one(&rename.ident, &rename.rename),
        UseTree::Glob(glob) => {
            vec![Used { names: vec!["*".into()], brings: None, line: glob.star_token.spans[0].start().line }]
        }
        UseTree::Group(group) => group.items.iter().flat_map(flatten).collect(),
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        self.module.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.module.pop();
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        for used in flatten(&item.tree) {
            self.take(&used.names, item.leading_colon.is_some(), true, used.line);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if let (Some(first), true) = (path.segments.first(), names.len() > 1) {
            self.take(&names, path.leading_colon.is_some(), false, first.ident.span().start().line);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        self.visit_path(&call.path);
        for (names, line) in in_tokens(call.tokens.clone()) {
            self.take(&names, false, false, line);
        }
    }

    /// Who may see an item is no import.
    fn visit_visibility(&mut self, _: &'ast Visibility) {}

    /// Attributes are for the compiler, and comments are attributes.
    fn visit_attribute(&mut self, _: &'ast Attribute) {}
}
