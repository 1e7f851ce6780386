//! The modules of a crate as its `mod` declarations make them, without those that only tests have, and the names in each.
//!
//! The files of one program or library are a tree below `lib.rs`, `main.rs` or a file of `bin`. A file that no declaration reaches,
//! but one under `#[cfg(test)]`, is not in the tree.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use proc_macro2::Ident;
use syn::punctuated::Punctuated;
use syn::visit::{self, Visit};
use syn::{Attribute, Expr, ExprLit, File, Item, ItemMod, ItemUse, Lit, Meta, Token};

use super::paths::{self, Used};

/// A module by the names that lead to it. The first name is the file at the root of its tree.
pub(super) type ModulePath = Vec<String>;

/// What a module holds.
#[derive(Default)]
struct Module {
    /// The file that has its items, from the source directory.
    file: PathBuf,
    /// The items that it defines.
    items: BTreeSet<String>,
    /// What its `use` declarations name.
    uses: Vec<Used>,
}

/// Where a path ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// In a module.
    Module(ModulePath),
    /// In an item of this module, or below the item.
    Item(ModulePath),
}

/// All modules of the trees in one source directory.
pub(super) struct Modules<'a> {
    modules: BTreeMap<ModulePath, Module>,
    /// The file of each module that has one of its own.
    files: Vec<(ModulePath, &'a Path, &'a File)>,
    /// Exported macros by root and name, with the module that defines them.
    macros: BTreeMap<(String, String), ModulePath>,
}

impl<'a> Modules<'a> {
    /// Follows the declarations from every root among `files`. An error names a declared module without a file.
    pub fn new(files: &'a BTreeMap<PathBuf, File>) -> Result<Self> {
        let mut modules = Self { modules: BTreeMap::new(), files: Vec::new(), macros: BTreeMap::new() };
        for root in files.keys().filter(|path| is_root(path)) {
            modules.add_file(files, vec![root.display().to_string()], root)?;
        }
        Ok(modules)
    }

    /// The modules that have a file of their own, with the file.
    pub fn files(&self) -> impl Iterator<Item = (&ModulePath, &'a Path, &'a File)> {
        self.files.iter().map(|(module, path, file)| (module, *path, *file))
    }

    /// The file that holds a module.
    pub fn file_of(&self, module: &[String]) -> Option<&Path> {
        self.modules.get(module).map(|module| module.file.as_path())
    }

    fn add_file(&mut self, files: &'a BTreeMap<PathBuf, File>, module: ModulePath, path: &Path) -> Result<()> {
        let (path, file) = files.get_key_value(path).with_context(|| format!("{} is not there", path.display()))?;
        self.files.push((module.clone(), path, file));
        let parent = path.parent().unwrap_or(Path::new(""));
        let below = if module.len() == 1 || path.ends_with("mod.rs") { parent.into() } else { path.with_extension("") };
        self.add_items(files, module, (path, &below), &file.items)
    }

    /// Adds a module by its items, which stand in the file `at.0`. Its children lie in the folder `at.1`.
    fn add_items(
        &mut self,
        files: &'a BTreeMap<PathBuf, File>,
        module: ModulePath,
        at: (&Path, &Path),
        items: &'a [Item],
    ) -> Result<()> {
        let uses = uses(items);
        let names = items.iter().filter(|item| !is_for_tests(attributes(item))).filter_map(name_of);
        let names = names.map(Ident::to_string).collect();
        self.modules.insert(module.clone(), Module { file: at.0.to_owned(), items: names, uses });
        for item in items {
            match item {
                Item::Macro(item) => {
                    if let (true, Some(name)) = (paths::is_exported(item), &item.ident) {
                        self.macros.insert((module[0].clone(), name.to_string()), module.clone());
                    }
                }
                Item::Mod(item) if !is_for_tests(&item.attrs) => self.add_child(files, &module, at, item)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn add_child(
        &mut self,
        files: &'a BTreeMap<PathBuf, File>,
        module: &[String],
        (path, below): (&Path, &Path),
        item: &'a ItemMod,
    ) -> Result<()> {
        let name = item.ident.to_string();
        let child = [module, std::slice::from_ref(&name)].concat();
        if let Some((_, items)) = &item.content {
            return self.add_items(files, child, (path, &below.join(name)), items);
        }
        let named = item.attrs.iter().find_map(path_attribute);
        let candidates = match named {
            Some(named) => vec![path.with_file_name(named)],
            None => vec![below.join(format!("{name}.rs")), below.join(&name).join("mod.rs")],
        };
        let found = candidates.iter().find(|candidate| files.contains_key(*candidate));
        let found = found.with_context(|| format!("{} declares {name}, which has no file", path.display()))?;
        self.add_file(files, child, found)
    }

    /// Where a path that stands in `module` leads, through re-exports. `None` for what is not in the tree.
    pub fn resolve(&self, module: &[String], names: &[String]) -> Option<End> {
        self.walk(module, names, &mut BTreeSet::new())
    }

    fn walk(&self, module: &[String], names: &[String], seen: &mut BTreeSet<(ModulePath, String)>) -> Option<End> {
        let (mut at, rest) = start(module, names);
        let anchored = rest.len() < names.len();
        for (position, name) in rest.iter().enumerate() {
            if name == "self" || name == "*" {
                break;
            }
            match self.step(&at, name, seen) {
                Some(End::Module(next)) => at = next,
                Some(item) => return Some(item),
                // A macro may have made it.
                None if anchored || position > 0 => return Some(End::Item(at)),
                None => return None,
            }
        }
        Some(End::Module(at))
    }

    /// What a name means in a module.
    fn step(&self, at: &[String], name: &str, seen: &mut BTreeSet<(ModulePath, String)>) -> Option<End> {
        let child = [at, &[name.to_owned()]].concat();
        if self.modules.contains_key(&child) {
            return Some(End::Module(child));
        }
        let module = self.modules.get(at)?;
        if module.items.contains(name) {
            return Some(End::Item(at.to_vec()));
        }
        if let [root] = at
            && let Some(home) = self.macros.get(&(root.clone(), name.to_owned()))
        {
            return Some(End::Item(home.clone()));
        }
        if !seen.insert((at.to_vec(), name.to_owned())) {
            return None;
        }
        let mut named = module.uses.iter().filter(|used| used.brings.as_deref() == Some(name));
        let named = named.find_map(|used| self.walk(at, &used.names, &mut seen.clone()));
        named.or_else(|| self.step_by_glob(at, &module.uses, name, seen))
    }

    fn step_by_glob(
        &self,
        at: &[String],
        uses: &[Used],
        name: &str,
        seen: &mut BTreeSet<(ModulePath, String)>,
    ) -> Option<End> {
        let globs = uses.iter().filter(|used| used.names.last().is_some_and(|last| last == "*"));
        for used in globs {
            if let Some(End::Module(from)) = self.walk(at, &used.names, &mut seen.clone())
                && from != at
                && let Some(end) = self.step(&from, name, seen)
            {
                return Some(end);
            }
        }
        None
    }
}

/// The module where a path begins, and the names that follow.
fn start<'n>(module: &[String], names: &'n [String]) -> (ModulePath, &'n [String]) {
    let mut at = module.to_vec();
    let mut rest = names;
    while let Some((first, tail)) = rest.split_first() {
        match first.as_str() {
            "crate" => at.truncate(1),
            "super" if at.len() > 1 => _ = at.pop(),
            "self" if rest.len() > 1 => {}
            _ => break,
        }
        rest = tail;
    }
    (at, rest)
}

/// Whether cargo takes the file for the root of a library or a program.
fn is_root(path: &Path) -> bool {
    let parts: Vec<_> = path.components().map(|part| part.as_os_str().to_string_lossy()).collect();
    matches!(
        &parts.iter().map(AsRef::as_ref).collect::<Vec<&str>>()[..],
        ["lib.rs" | "main.rs"] | ["bin", _] | ["bin", _, "main.rs"]
    )
}

/// The `use` declarations of a module and of its functions, but not those of modules in it.
fn uses(items: &[Item]) -> Vec<Used> {
    struct Uses(Vec<Used>);
    impl<'ast> Visit<'ast> for Uses {
        fn visit_item(&mut self, item: &'ast Item) {
            if !matches!(item, Item::Mod(_)) && !is_for_tests(attributes(item)) {
                visit::visit_item(self, item);
            }
        }

        fn visit_item_use(&mut self, item: &'ast ItemUse) {
            if item.leading_colon.is_none() {
                self.0.extend(paths::flatten(&item.tree));
            }
        }
    }
    let mut uses = Uses(Vec::new());
    items.iter().for_each(|item| uses.visit_item(item));
    uses.0
}

/// The name that an item defines in its module.
fn name_of(item: &Item) -> Option<&Ident> {
    match item {
        Item::Const(item) => Some(&item.ident),
        Item::Enum(item) => Some(&item.ident),
        Item::Fn(item) => Some(&item.sig.ident),
        Item::Macro(item) => item.ident.as_ref(),
        Item::Static(item) => Some(&item.ident),
        Item::Struct(item) => Some(&item.ident),
        Item::Trait(item) => Some(&item.ident),
        Item::TraitAlias(item) => Some(&item.ident),
        Item::Type(item) => Some(&item.ident),
        Item::Union(item) => Some(&item.ident),
        _ => None,
    }
}

/// The attributes of an item.
pub(super) fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// Whether only a build for tests has what has these attributes.
pub(super) fn is_for_tests(attributes: &[Attribute]) -> bool {
    let condition = |attribute: &Attribute| match &attribute.meta {
        Meta::List(list) if list.path.is_ident("cfg") => list.parse_args::<Meta>().is_ok_and(|meta| needs_test(&meta)),
        _ => false,
    };
    attributes.iter().any(condition)
}

/// Whether a condition holds in a build for tests only.
fn needs_test(condition: &Meta) -> bool {
    match condition {
        Meta::Path(path) => path.is_ident("test"),
        Meta::List(list) if list.path.is_ident("all") || list.path.is_ident("any") => {
            let parts = list.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated).unwrap_or_default();
            if list.path.is_ident("all") {
                parts.iter().any(needs_test)
            } else {
                !parts.is_empty() && parts.iter().all(needs_test)
            }
        }
        _ => false,
    }
}

/// The file in `#[path = "…"]`.
fn path_attribute(attribute: &Attribute) -> Option<String> {
    match &attribute.meta {
        Meta::NameValue(pair) if pair.path.is_ident("path") => match &pair.value {
            Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => Some(text.value()),
            _ => None,
        },
        _ => None,
    }
}
