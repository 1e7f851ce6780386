//! Debian's Linux for cloud machines: the outer kernel of the nested machine, and its modules.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use lzma_rust2::XzReader;

use super::fetch::{self, Kit, TRIXIE};
use crate::paths::Paths;

/// The kernel that was tried. Its image is compressed by Zstandard and unpacks itself in a sixth of the time of older ones.
const WORKING_LINUX: &str = "Linux 6.12";

/// The kernel. The second package meets its need for an initramfs tool with the fewest packages.
const LINUX: Kit = Kit {
    directory: "linux",
    what: "Linux",
    suite: TRIXIE,
    packages: &["linux-image-cloud-amd64", "tiny-initramfs"],
    alone: None,
    backports: false,
    works,
    needed: WORKING_LINUX,
    by_hand: "- Debian's linux-image-cloud-amd64 of trixie, unpacked",
    variable: LINUX_VARIABLE,
    recipe: "1",
};

/// Names a directory with an unpacked kernel package to use instead of the prefix.
pub const LINUX_VARIABLE: &str = "IMSVISOR_LINUX";

/// Whether a package's version is one of the kernels that work.
fn works(version: &str) -> bool {
    version.starts_with("6.12.")
}

/// A kernel and its modules.
#[derive(Debug, Clone)]
pub struct Linux {
    /// Its release, as `uname -r` gives it.
    pub release: String,
    /// The compressed kernel image.
    pub kernel: PathBuf,
    modules: PathBuf,
}

/// Finds the kernel, and fetches it where no other is named.
pub fn linux(paths: &Paths) -> Result<Linux> {
    match std::env::var_os(LINUX_VARIABLE) {
        Some(root) => in_root(Path::new(&root)).context(LINUX_VARIABLE),
        None => {
            let root = fetch::ensure(paths, &LINUX)?;
            in_root(&root).with_context(|| format!("remove {} to fetch it again", root.display()))
        }
    }
}

/// The kernel below a directory into which its package was unpacked.
pub(super) fn in_root(root: &Path) -> Result<Linux> {
    let boot = root.join("boot");
    let places = [root.join("usr/lib/modules"), root.join("lib/modules")];
    let Some(release) = names_in(&boot).find_map(|name| Some(name.strip_prefix("vmlinuz-")?.to_owned())) else {
        return beside_modules(&places).with_context(|| format!("{} holds no kernel", root.display()));
    };
    let modules = places.map(|directory| directory.join(&release)).into_iter().find(|directory| directory.is_dir());
    let modules = modules.with_context(|| format!("{} holds no modules of {release}", root.display()))?;
    Ok(Linux { kernel: boot.join(format!("vmlinuz-{release}")), release, modules })
}

/// A kernel that lies beside its modules, as Debian packages those from 7.x on.
fn beside_modules(places: &[PathBuf]) -> Option<Linux> {
    let found = |place: &PathBuf| {
        let release = names_in(place).find(|name| place.join(name).join("vmlinuz").is_file())?;
        let modules = place.join(&release);
        Some(Linux { kernel: modules.join("vmlinuz"), release, modules })
    };
    places.iter().find_map(found)
}

fn names_in(directory: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

impl Linux {
    /// A module, unpacked and without its signature, by its path below `kernel` without its ending.
    ///
    /// The machine that loads it executes some hundred times fewer instructions in a second than this one. It would check the signature
    /// without the keys for it.
    pub fn module(&self, path: &str) -> Result<Vec<u8>> {
        let plain = self.modules.join("kernel").join(format!("{path}.ko"));
        Ok(without_signature(self.read_module(&plain)?))
    }

    /// A module and all that it depends on, in the order in which they are to be loaded: the names of their files, and their contents.
    /// `name` is a module's path as [`Self::module`] takes it.
    ///
    /// Debian makes `modules.dep` when it installs a kernel, so a package has none: each module says itself on which it depends.
    pub fn with_dependencies(&self, path: &str) -> Result<Vec<(String, Vec<u8>)>> {
        let mut found = Vec::new();
        self.gather(path, &mut found, 0)?;
        Ok(found)
    }

    fn gather(&self, path: &str, found: &mut Vec<(String, Vec<u8>)>, depth: u32) -> Result<()> {
        if depth > MOST_DEPENDENCIES {
            bail!("the module {path} depends on itself");
        }
        let name = format!("{}.ko", path.rsplit('/').next().unwrap_or(path));
        let module = self.module(path)?;
        for needed in depends(&module)? {
            self.gather(&self.path_of(&needed)?, found, depth + 1)?;
        }
        if found.iter().all(|(other, _)| *other != name) {
            found.push((name, module));
        }
        Ok(())
    }

    /// Where a module of this name is, as [`Self::module`] takes it. File names have `-` where the names of modules have `_`.
    fn path_of(&self, name: &str) -> Result<String> {
        let order = self.modules.join("modules.order");
        let text = fs::read_to_string(&order).with_context(|| format!("cannot read {}", order.display()))?;
        let mut paths = text.lines().filter_map(|line| line.strip_prefix("kernel/")?.strip_suffix(".ko"));
        let path = paths.find(|path| path.rsplit('/').next().unwrap_or(path).replace('-', "_") == name);
        path.map(str::to_owned).with_context(|| format!("{} has no module {name}", order.display()))
    }

    fn read_module(&self, plain: &Path) -> Result<Vec<u8>> {
        let packed = plain.with_extension("ko.xz");
        if !packed.is_file() {
            return fs::read(plain).with_context(|| format!("cannot read the module {}", plain.display()));
        }
        let file = fs::File::open(&packed).with_context(|| format!("cannot read the module {}", packed.display()))?;
        let mut module = Vec::new();
        let mut reader = XzReader::new(std::io::BufReader::new(file), false);
        reader.read_to_end(&mut module).with_context(|| format!("cannot unpack {}", packed.display()))?;
        Ok(module)
    }
}

/// The longest way from a module to one that it depends on. Linux' own is far shorter.
const MOST_DEPENDENCIES: u32 = 16;

/// The names of the modules that a module depends on: modpost leaves a list, with commas, among its strings.
fn depends(module: &[u8]) -> Result<Vec<String>> {
    const KEY: &[u8] = b"\0depends=";
    let start = module.windows(KEY.len()).position(|bytes| bytes == KEY).map(|start| start + KEY.len());
    let list = start.and_then(|start| module.get(start..)).and_then(|rest| rest.split(|byte| *byte == 0).next());
    let list =
        list.and_then(|list| std::str::from_utf8(list).ok()).context("a module does not say what it depends on")?;
    Ok(list.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

/// What ends a signed module (Linux, include/linux/module_signature.h).
const SIGNED: &[u8] = b"~Module signature appended~\n";
/// The structure before that; the signature's length is its last four bytes, big-endian.
const SIGNATURE_HEADER: usize = 12;

/// Cuts a module's signature off.
fn without_signature(mut module: Vec<u8>) -> Vec<u8> {
    if let Some((rest, length)) = module.strip_suffix(SIGNED).and_then(|signed| signed.split_last_chunk::<4>()) {
        let appended = u32::from_be_bytes(*length) as usize + SIGNATURE_HEADER - length.len();
        module.truncate(rest.len().saturating_sub(appended));
    }
    module
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel package's tree.
    fn root(modules: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("boot")).unwrap();
        fs::write(root.path().join("boot/config-6.12.1"), "").unwrap();
        fs::write(root.path().join("boot/vmlinuz-6.12.1"), "").unwrap();
        fs::create_dir_all(root.path().join(modules).join("6.12.1/kernel/fs")).unwrap();
        root
    }

    #[test]
    fn the_kernel_is_found_with_its_modules() {
        for modules in ["usr/lib/modules", "lib/modules"] {
            let root = root(modules);
            let linux = in_root(root.path()).unwrap();
            assert_eq!(linux.kernel, root.path().join("boot/vmlinuz-6.12.1"));
            assert_eq!(linux.modules, root.path().join(modules).join("6.12.1"));
        }
    }

    #[test]
    fn a_root_without_a_kernel_or_its_modules_is_refused() {
        let empty = tempfile::tempdir().unwrap();
        assert!(in_root(empty.path()).unwrap_err().to_string().contains("holds no kernel"));
        let root = root("elsewhere");
        assert!(in_root(root.path()).unwrap_err().to_string().contains("no modules of 6.12.1"));
    }

    #[test]
    fn modules_are_read_packed_or_not() {
        /// The bytes `ELF\n`, packed by `xz --check=crc32`.
        const PACKED: &[u8] = b"\xfd7zXZ\0\0\x01\x69\x22\xde\x36\x02\0\x21\x01\x16\0\0\0\x74\x2f\xe5\xa3\x01\0\x03ELF\n\0\x2a\x02\xf8\xb2\
            \0\x01\x18\x04\x6b\xe9\xf0\xa5\x90\x42\x99\x0d\x01\0\0\0\0\x01YZ";
        let root = root("lib/modules");
        let linux = in_root(root.path()).unwrap();
        let fs_modules = linux.modules.join("kernel/fs");
        fs::write(fs_modules.join("plain.ko"), "plain").unwrap();
        fs::write(fs_modules.join("packed.ko.xz"), PACKED).unwrap();
        fs::write(fs_modules.join("broken.ko.xz"), &PACKED[..40]).unwrap();
        assert_eq!(linux.module("fs/plain").unwrap(), b"plain");
        assert_eq!(linux.module("fs/packed").unwrap(), b"ELF\n");
        assert!(linux.module("fs/broken").unwrap_err().to_string().contains("cannot unpack"));
        assert!(linux.module("fs/absent").unwrap_err().to_string().contains("absent.ko"));
    }

    #[test]
    fn a_module_comes_after_those_that_it_depends_on_and_each_once() {
        let root = root("lib/modules");
        let linux = in_root(root.path()).unwrap();
        let write = |name: &str, depends: &str| {
            fs::write(linux.modules.join(format!("kernel/fs/{name}.ko")), format!("ELF\0depends={depends}\0x"))
                .unwrap();
        };
        fs::write(linux.modules.join("modules.order"), "kernel/fs/a.ko\nkernel/fs/b-c.ko\nkernel/fs/d.ko\n").unwrap();
        write("a", "b_c,d");
        write("b-c", "d");
        write("d", "");
        let names = |path: &str| {
            linux.with_dependencies(path).map(|found| found.into_iter().map(|(name, _)| name).collect::<Vec<_>>())
        };
        assert_eq!(names("fs/a").unwrap(), ["d.ko", "b-c.ko", "a.ko"]);
        write("d", "absent");
        assert!(names("fs/a").unwrap_err().to_string().contains("no module absent"));
        write("d", "a");
        assert!(names("fs/a").unwrap_err().to_string().contains("depends on itself"));
        fs::write(linux.modules.join("kernel/fs/d.ko"), "ELF").unwrap();
        assert!(names("fs/d").unwrap_err().to_string().contains("does not say"));
    }

    #[test]
    fn a_modules_signature_is_cut_off() {
        let mut signed = b"module".to_vec();
        signed.extend(b"signature");
        signed.extend([0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
        signed.extend(SIGNED);
        assert_eq!(without_signature(signed), b"module");
        assert_eq!(without_signature(b"module".to_vec()), b"module");
        assert_eq!(without_signature([&[0xff; 4][..], SIGNED].concat()), b"");
    }

    #[test]
    fn only_the_kernel_that_was_tried_works() {
        assert!(works("6.12.117-1"));
        for version in ["6.1.0-1", "6.120.1", "6.13.1", ""] {
            assert!(!works(version), "{version}");
        }
    }
}
