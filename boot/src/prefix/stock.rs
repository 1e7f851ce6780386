//! Debian's Linux as a guest, as packaged: the kernel with its modules, the means to build a module for it, and busybox.
//!
//! It is the kernel for all machines, because the one for cloud machines lacks the driver of the DSA. It comes from Debian 12, because the
//! tools that build modules run with that release's C library and with all later ones.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::apt::Apt;
use super::fetch::{self, Kit};
use super::linux::{self, Linux};
use crate::paths::Paths;

const BOOKWORM: &str = "bookworm";

const STOCK: Kit = Kit {
    directory: "stock",
    what: "Debian's Linux",
    suite: BOOKWORM,
    packages: &[IMAGE],
    alone: Some(packages),
    backports: true,
    works,
    needed: "Linux 6.12",
    by_hand: "- Debian's linux-image-6.12…-amd64 of bookworm-backports with its linux-headers-…-amd64, linux-headers-…-common and \
              linux-kbuild-…, and busybox-static, unpacked into one directory",
    variable: STOCK_VARIABLE,
    recipe: "1",
};

/// Names a directory with the packages, unpacked, to use instead of the prefix.
pub const STOCK_VARIABLE: &str = "IMSVISOR_STOCK_LINUX";

/// The package that depends on the newest kernel of its release.
const IMAGE: &str = "linux-image-amd64";

/// Where bookworm's packages have libraries: those of libc6, and others.
const LIBRARIES: [&str; 2] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];

/// Libraries for the tools that build modules, where the system has none that do.
const FOR_TOOLS: [&str; 4] = ["libc6", "libelf1", "libzstd1", "zlib1g"];

fn works(version: &str) -> bool {
    version.starts_with("6.12.")
}

/// The packages of the newest kernel.
fn packages(apt: &Apt) -> Result<Vec<String>> {
    let found = apt.dependencies(IMAGE)?;
    let release = found.iter().find_map(|name| name.strip_prefix("linux-image-")?.strip_suffix("-amd64"));
    let release = release.with_context(|| format!("{IMAGE} depends on no kernel"))?;
    let kernel = ["linux-image-R-amd64", "linux-headers-R-amd64", "linux-headers-R-common", "linux-kbuild-R"];
    let names = kernel.iter().map(|name| name.replace("-R", &format!("-{release}")));
    Ok(names.chain(["busybox-static"].into_iter().chain(FOR_TOOLS).map(str::to_owned)).collect())
}

/// A kernel with what makes a guest of it.
#[derive(Debug, Clone)]
pub struct Stock {
    /// The kernel and its modules.
    pub linux: Linux,
    /// A static busybox.
    pub busybox: PathBuf,
    /// What a module is built with.
    pub headers: Headers,
}

/// The headers' packages.
#[derive(Debug, Clone)]
pub struct Headers {
    /// The kernel's configuration and symbols: where make is started.
    pub objects: PathBuf,
    /// The headers and make's rules. The former's Makefile names this directory by the path that it has where it is installed.
    pub sources: PathBuf,
    /// The programs that the rules start, and libraries for them.
    tools: Tools,
}

/// Finds the kernel, and fetches it where no other is named.
pub fn stock(paths: &Paths) -> Result<Stock> {
    match std::env::var_os(STOCK_VARIABLE) {
        Some(root) => in_root(Path::new(&root)).context(STOCK_VARIABLE),
        None => {
            let root = fetch::ensure(paths, &STOCK)?;
            in_root(&root).with_context(|| format!("remove {} to fetch it again", root.display()))
        }
    }
}

fn in_root(root: &Path) -> Result<Stock> {
    let root = std::path::absolute(root).with_context(|| root.display().to_string())?;
    let linux = linux::in_root(&root)?;
    let busybox = busybox_in(&root)?;
    let Some(release) = linux.release.strip_suffix("-amd64") else {
        bail!("{} is not a kernel for all machines (…-amd64)", linux.release);
    };
    let part = |path: String| {
        let directory = root.join("usr").join(path);
        if !directory.is_dir() {
            bail!("{} is missing", directory.display());
        }
        Ok(directory)
    };
    let headers = Headers {
        objects: part(format!("src/linux-headers-{release}-amd64"))?,
        sources: part(format!("src/linux-headers-{release}-common"))?,
        tools: Tools {
            directory: part(format!("lib/linux-kbuild-{release}"))?,
            libraries: LIBRARIES.map(|directory| root.join(directory)),
        },
    };
    Ok(Stock { linux, busybox, headers })
}

/// The busybox below a directory into which its package was unpacked.
pub(super) fn busybox_in(root: &Path) -> Result<PathBuf> {
    let places = ["bin/busybox", "usr/bin/busybox"].map(|file| root.join(file));
    places.into_iter().find(|file| file.is_file()).with_context(|| format!("{} holds no busybox", root.display()))
}

impl Headers {
    /// Makes sure that the programs among them run here.
    pub fn make_runnable(&self) -> Result<()> {
        self.tools.make_runnable()
    }
}

/// The programs that Kbuild starts, and libraries that they can have instead of the system's.
#[derive(Debug, Clone)]
struct Tools {
    directory: PathBuf,
    /// Where libraries are, and the dynamic linker first of all.
    libraries: [PathBuf; 2],
}

/// The programs that a module's build starts.
const PROGRAMS: [&str; 5] = [
    "scripts/basic/fixdep",
    "scripts/genksyms/genksyms",
    "scripts/mod/modpost",
    "tools/objtool/objtool",
    "tools/objtool/objtool.real-x86",
];

impl Tools {
    /// A program for which the system lacks a library, or has too old a one, is replaced by a script that starts it with the libraries of
    /// its own release.
    fn make_runnable(&self) -> Result<()> {
        for program in PROGRAMS.map(|program| self.directory.join(program)) {
            if !runs(&program)? {
                self.wrap(&program)
                    .with_context(|| format!("{} does not run here: install libelf1", program.display()))?;
            }
        }
        Ok(())
    }

    fn wrap(&self, program: &Path) -> Result<()> {
        let [own, more] = &self.libraries;
        let linker = own.join("ld-linux-x86-64.so.2");
        if !linker.is_file() {
            bail!("there is no {}", linker.display());
        }
        let beside = |ending: &str| {
            let mut name = program.as_os_str().to_owned();
            name.push(ending);
            PathBuf::from(name)
        };
        let (real, new) = (beside(".elf"), beside(".new"));
        // objtool finds the program for the processor by its own name.
        let script = format!(
            "#!/bin/sh\nexec '{}' --argv0 \"$0\" --library-path '{}:{}' '{}' \"$@\"\n",
            linker.display(),
            own.display(),
            more.display(),
            real.display()
        );
        fs::copy(program, &real).with_context(|| format!("cannot copy {}", program.display()))?;
        fs::write(&new, script).with_context(|| format!("cannot write {}", new.display()))?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).context("cannot make the script a program")?;
        fs::rename(&new, program).with_context(|| format!("cannot replace {}", program.display()))
    }
}

/// Whether the dynamic linker finds all that a program needs (ld.so(8)). A script is one already.
fn runs(program: &Path) -> Result<bool> {
    let output = Command::new(program).env("LD_TRACE_LOADED_OBJECTS", "1").stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot start {}", program.display()))?;
    let said = [output.stdout, output.stderr].concat();
    Ok(!String::from_utf8_lossy(&said).contains("not found"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree as the packages leave it.
    fn root() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for directory in [
            "boot",
            "bin",
            "lib/modules/6.12.1+x-amd64/kernel",
            "usr/src/linux-headers-6.12.1+x-amd64",
            "usr/src/linux-headers-6.12.1+x-common",
            "usr/lib/linux-kbuild-6.12.1+x/tools/objtool",
        ] {
            fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        for file in ["boot/vmlinuz-6.12.1+x-amd64", "bin/busybox"] {
            fs::write(root.path().join(file), "").unwrap();
        }
        root
    }

    #[test]
    fn the_packages_parts_are_found() {
        let root = root();
        let stock = in_root(root.path()).unwrap();
        assert_eq!(stock.linux.release, "6.12.1+x-amd64");
        assert_eq!(stock.busybox, root.path().join("bin/busybox"));
        assert_eq!(stock.headers.objects, root.path().join("usr/src/linux-headers-6.12.1+x-amd64"));
        assert_eq!(stock.headers.sources, root.path().join("usr/src/linux-headers-6.12.1+x-common"));
    }

    #[test]
    fn a_part_that_is_missing_is_named() {
        for part in ["usr/src/linux-headers-6.12.1+x-common", "usr/lib/linux-kbuild-6.12.1+x", "bin"] {
            let root = root();
            fs::remove_dir_all(root.path().join(part)).unwrap();
            let words = in_root(root.path()).unwrap_err().to_string();
            assert!(
                words.contains(part.rsplit('/').next().unwrap()) || words.contains("no busybox"),
                "{part}: {words}"
            );
        }
    }

    #[test]
    fn the_kernel_for_cloud_machines_is_refused() {
        let root = root();
        fs::rename(root.path().join("boot/vmlinuz-6.12.1+x-amd64"), root.path().join("boot/vmlinuz-6.12.1-cloud"))
            .unwrap();
        fs::create_dir(root.path().join("lib/modules/6.12.1-cloud")).unwrap();
        assert!(in_root(root.path()).unwrap_err().to_string().contains("not a kernel for all machines"));
    }

    #[test]
    fn a_program_that_does_not_run_here_gets_its_own_libraries() {
        let root = root();
        let tools = in_root(root.path()).unwrap().headers.tools;
        let program = tools.directory.join("tools/objtool/objtool.real-x86");
        fs::write(&program, "#!/bin/sh\nfor word; do echo \"$word\"; done\n").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(runs(&program).unwrap());
        assert!(tools.wrap(&program).unwrap_err().to_string().contains("ld-linux"));
        fs::create_dir_all(&tools.libraries[0]).unwrap();
        // The program stands in for the dynamic linker and prints its arguments.
        fs::copy(&program, tools.libraries[0].join("ld-linux-x86-64.so.2")).unwrap();
        tools.wrap(&program).unwrap();
        let output = Command::new(&program).args(["a b", "c"]).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let real = format!("{}.elf", program.display());
        assert_eq!(said.lines().take(2).collect::<Vec<_>>(), ["--argv0", &program.display().to_string()]);
        assert_eq!(said.lines().skip(4).collect::<Vec<_>>(), [real.as_str(), "a b", "c"]);
    }

    #[test]
    fn only_the_kernel_that_was_tried_works() {
        assert!(works("6.12.95-1~bpo12+1") && !works("6.1.176-1"));
    }
}
