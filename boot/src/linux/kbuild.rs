//! Builds kernel modules with Kbuild against the headers of the guest's kernel.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};

use crate::paths::{Paths, on_path};
use crate::prefix::Headers;
use crate::progress::Step;

/// Modules that are built together.
#[derive(Debug)]
pub struct Project {
    /// The folder's name in the build directory.
    name: &'static str,
    /// The folders of the sources, below the checkout.
    sources: &'static [&'static str],
    /// The files that the build leaves, in the order in which the modules can be loaded.
    pub modules: &'static [&'static str],
}

/// The module that copies by the DSA, as a client of the dmaengine.
pub const DMACOPY: Project = Project { name: "dmacopy", sources: &["tests/linux/dmacopy"], modules: &["dmacopy.ko"] };
/// The guest shim for Linux, and the driver that tests it.
pub const IMS: Project = Project {
    name: "ims",
    sources: &["guest-shim/linux", "hcall-abi/include"],
    modules: &["imsvisor-core.ko", "ims-dsa.ko"],
};

/// The file that says from what the modules were built.
const STAMP: &str = ".imsvisor";
/// The file that has what the build said.
const LOG: &str = "build.log";

/// Compilers in the order in which they are taken: the kernel's own release first, because a kernel's options are those of its compiler.
const COMPILERS: [&str; 4] = ["x86_64-linux-gnu-gcc-12", "gcc-12", "gcc", "cc"];

/// The other tools by the names that they have without a cross compiler's prefix.
const TOOLS: [&str; 7] =
    ["LD=ld", "AR=ar", "NM=nm", "STRIP=strip", "OBJCOPY=objcopy", "OBJDUMP=objdump", "READELF=readelf"];

/// Further settings for Kbuild. Types for BPF would need pahole and the whole kernel; debugging information would make a module fifteen times as
/// long. W=1 turns on the warnings that the kernel's maintainers ask for. IMSVISOR_FAIL_CALLS lets tests have a call fail.
const SETTINGS: [&str; 4] = ["CONFIG_DEBUG_INFO_BTF_MODULES=", "KCFLAGS=-g0", "W=1", "IMSVISOR_FAIL_CALLS=y"];

/// Variables of a make or a kernel build around us that would change this one.
const FOREIGN: [&str; 8] =
    ["MAKEFLAGS", "MAKELEVEL", "MFLAGS", "ARCH", "CROSS_COMPILE", "KBUILD_OUTPUT", "KCPPFLAGS", "LD_LIBRARY_PATH"];

/// Builds a project's modules where they are not built yet for this kernel, from these sources, by this compiler; returns their files.
pub fn modules(paths: &Paths, project: &Project, release: &str, headers: &Headers) -> Result<Vec<PathBuf>> {
    let directory = directory(paths, project, release);
    fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let lock = File::create(directory.with_extension("lock")).context("cannot create the modules' lock")?;
    flock(&lock, FlockOperation::LockExclusive).context("cannot lock the modules")?;
    let folders = project.sources.iter().map(|folder| sources(&paths.workspace.join(folder)));
    let sources = folders.collect::<Result<Vec<_>>>()?.concat();
    let compiler = compiler()?;
    let modules: Vec<_> = project.modules.iter().map(|name| directory.join(name)).collect();
    let stamp = stamp(release, &compiler, &sources);
    let is_built = || fs::read(directory.join(STAMP)).is_ok_and(|old| old == stamp);
    if modules.iter().all(|module| module.is_file()) && is_built() {
        return Ok(modules);
    }
    let step = Step::new(&format!("building the guest's kernel modules ({})", project.name));
    build(&directory, &compiler, headers, &sources)?;
    fs::write(directory.join(STAMP), stamp).context("cannot write the modules' stamp")?;
    step.done(&format!("for Linux {release}"));
    Ok(modules)
}

/// What the build of a project's modules said: nothing, unless the compiler warned.
pub fn build_log(paths: &Paths, project: &Project, release: &str, headers: &Headers) -> Result<String> {
    modules(paths, project, release, headers)?;
    let file = directory(paths, project, release).join(LOG);
    fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))
}

fn directory(paths: &Paths, project: &Project, release: &str) -> PathBuf {
    paths.home.join("kbuild").join(release).join(project.name)
}

/// A source file's name and contents.
type Source = (String, Vec<u8>);

fn sources(directory: &Path) -> Result<Vec<Source>> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut names: Vec<String> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    // Whatever else is there was left by a build.
    let is_source = |name: &str| name.ends_with(".h") || name.ends_with(".c") && !name.ends_with(".mod.c");
    names.retain(|name| name == "Kbuild" || is_source(name));
    names.sort();
    let read = |name: String| {
        let file = directory.join(&name);
        Ok((name, fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?))
    };
    names.into_iter().map(read).collect()
}

/// What the modules are built from.
fn stamp(release: &str, compiler: &Path, sources: &[Source]) -> Vec<u8> {
    let mut stamp = format!("{release}\n{}\n{}\n", compiler.display(), SETTINGS.join(" ")).into_bytes();
    for (name, text) in sources {
        stamp.extend(format!("{name} {}\n", text.len()).bytes());
        stamp.extend(text);
    }
    stamp
}

/// The C compiler; refuses a machine that lacks a tool, and says what to install.
pub(super) fn compiler() -> Result<PathBuf> {
    let missing: Vec<&str> = ["make", "ld", "objcopy"].into_iter().filter(|tool| on_path(tool).is_none()).collect();
    match COMPILERS.into_iter().find_map(on_path) {
        Some(compiler) if missing.is_empty() => Ok(compiler),
        found => bail!("{}", lacking(found.is_none(), &missing)),
    }
}

fn lacking(no_compiler: bool, missing: &[&str]) -> String {
    let lacking: Vec<&str> = no_compiler.then_some("C compiler").into_iter().chain(missing.iter().copied()).collect();
    format!(
        "the guest linux needs kernel modules that are built here, and this machine has no {}: install the packages gcc, \
         binutils and make (or name a kernel and an initrd of your own by --kernel and --initrd)",
        lacking.join(", no ")
    )
}

/// Characters that make takes apart or that it cannot have in a target's name.
const NOT_IN_PATHS: [char; 5] = [' ', ':', '#', '$', '%'];

fn build(directory: &Path, compiler: &Path, headers: &Headers, sources: &[Source]) -> Result<()> {
    for path in [directory, &headers.objects] {
        if path.to_string_lossy().contains(NOT_IN_PATHS) {
            bail!("the kernel's build cannot work at {}: set CARGO_TARGET_DIR to a plain path", path.display());
        }
    }
    headers.make_runnable()?;
    for (name, text) in sources {
        fs::write(directory.join(name), text).with_context(|| format!("cannot write {name}"))?;
    }
    let output = make(directory, compiler, headers).output().context("cannot start make")?;
    let said = [output.stdout, output.stderr].concat();
    if !output.status.success() {
        bail!("the guest's kernel modules cannot be built:\n{}", String::from_utf8_lossy(&said).trim_end());
    }
    fs::write(directory.join(LOG), said).context("cannot write what the build said")
}

/// The kernel's own way to build a module outside of it (Documentation/kbuild/modules.rst). The Makefile beside the symbols includes the
/// other by the path that it would have if the package were installed, so that one is named.
fn make(directory: &Path, compiler: &Path, headers: &Headers) -> Command {
    let mut command = Command::new("make");
    command.arg("-C").arg(&headers.objects).arg("-f").arg(headers.sources.join("Makefile")).arg("-s");
    command.arg(format!("M={}", directory.display())).arg(format!("CC={}", compiler.display()));
    command.args(TOOLS).args(SETTINGS).arg("modules");
    for name in FOREIGN {
        command.env_remove(name);
    }
    command.env("LC_ALL", "C").stdin(Stdio::null());
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_is_built_again_when_anything_changes_that_it_is_built_from() {
        let source = |text: &str| vec![("a.c".to_owned(), text.as_bytes().to_vec())];
        let first = stamp("6.12", Path::new("/gcc"), &source("x"));
        assert_eq!(first, stamp("6.12", Path::new("/gcc"), &source("x")));
        for other in [
            stamp("6.13", Path::new("/gcc"), &source("x")),
            stamp("6.12", Path::new("/cc"), &source("x")),
            stamp("6.12", Path::new("/gcc"), &source("y")),
            stamp("6.12", Path::new("/gcc"), &[]),
        ] {
            assert_ne!(first, other);
        }
    }

    #[test]
    fn what_a_build_leaves_beside_the_sources_is_none() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["Kbuild", "a.h", "dmacopy.c", "dmacopy.mod.c", "dmacopy.o", "Module.symvers"] {
            fs::write(directory.path().join(name), name).unwrap();
        }
        let names: Vec<_> = sources(directory.path()).unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["Kbuild", "a.h", "dmacopy.c"]);
        let workspace = crate::paths::workspace().unwrap();
        for folder in [DMACOPY, IMS].iter().flat_map(|project| project.sources) {
            assert!(!sources(&workspace.join(folder)).unwrap().is_empty(), "{folder}");
        }
    }

    #[test]
    fn a_machine_without_a_compiler_is_told_what_to_install() {
        let words = lacking(true, &["make"]);
        assert!(words.contains("no C compiler, no make") && words.contains("gcc, binutils and make"), "{words}");
        assert!(lacking(false, &["make"]).contains("has no make:"));
    }
}
