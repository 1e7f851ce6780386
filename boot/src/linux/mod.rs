//! The guest `linux`: Debian's kernel as packaged, and an initrd that the launcher makes without root.
//!
//! The initrd holds busybox, Linux's own driver of the DSA with the modules that it depends on, our modules (`tests/linux/dmacopy`, which
//! copies by the DSA, and `guest-shim/linux`), users' programs (one copies by the DSA, another manages guests), and the first process (`tests/linux/init`),
//! which takes its orders from the kernel's command line.

mod asked;
mod kbuild;
mod program;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::initramfs::Initramfs;
use crate::paths::Paths;
use crate::prefix::{self, Linux, Stock};
pub use asked::Asked;

/// The guest's name.
pub const NAME: &str = "linux";
/// The line of `--list-guests` for it.
pub const ABOUT: &str = "Debian's Linux 6.12, unmodified: its own driver gets a DSA, and every copy is verified";
/// Bochs' model of a processor that has what the driver needs: MOVDIR64B.
pub const CPU_MODEL: &str = "sapphire_rapids";
/// The plugin's option for DSAs with the device ID that packaged kernels know.
pub const DEVICE_OPTION: &str = "idxd";

/// The first process, below the checkout.
const INIT: &str = "tests/linux/init";
/// Its parts: one tests message stores, the other manages guests.
const PARTS: [(&str, &str); 2] = [("ims", "tests/linux/ims"), ("ctl", "tests/linux/ctl")];
/// The driver of the DSA, by its path among the kernel's modules.
const DRIVER: &str = "drivers/dma/idxd/idxd";
/// Where modules are in the initrd, and the list of those to load, in their order, before ours.
const MODULES: &str = "modules";
const ORDER: &str = "modules/order";

/// The file systems that the first process mounts by one program (fstab(5)).
const FSTAB: &str = "proc /proc proc defaults 0 0\nsys /sys sysfs defaults 0 0\ndev /dev devtmpfs defaults 0 0\n";

/// Words of the command line. A panic must end the machine, not stop it for good. The last two leave out what a kernel does at its start
/// for nobody here, a fifth of its instructions: tests of its own cryptography, and keys for the signatures of modules.
pub const OPTIONS: [&str; 5] = [
    "console=ttyS0",
    "loglevel=4",
    "panic=-1",
    "cryptomgr.notests",
    "initcall_blacklist=jent_mod_init,load_system_certificate_list",
];

/// A kernel and an initrd as files.
#[derive(Debug, Clone)]
pub struct Payload {
    /// The kernel's image.
    pub kernel: PathBuf,
    /// Its initrd, where it is made here.
    pub initrd: Option<PathBuf>,
}

/// Finds Debian's kernel, and fetches it where it is not there yet. Makes the initrd if it is wanted.
pub fn payload(paths: &Paths, with_initrd: bool) -> Result<Payload> {
    let stock = prefix::stock(paths)?;
    let initrd = with_initrd.then(|| make_initrd(paths, &stock)).transpose()?;
    Ok(Payload { kernel: stock.linux.kernel, initrd })
}

/// The same with a recent kernel, which gives users shared virtual addressing. Its initrd lacks the module that copies.
pub fn payload_for_users(paths: &Paths) -> Result<Payload> {
    let recent = prefix::recent(paths)?;
    let directory = paths.home.join("recent-initrd");
    fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let initrd = write_initrd(paths, &recent.linux, &recent.busybox, &[], &directory)?;
    Ok(Payload { kernel: recent.linux.kernel, initrd: Some(initrd) })
}

/// Writes the initrd; returns its file.
fn make_initrd(paths: &Paths, stock: &Stock) -> Result<PathBuf> {
    let build = |project| kbuild::modules(paths, project, &stock.linux.release, &stock.headers);
    let modules = [build(&kbuild::DMACOPY)?, build(&kbuild::IMS)?].concat();
    let directory = paths.home.join("kbuild").join(&stock.linux.release);
    write_initrd(paths, &stock.linux, &stock.busybox, &modules, &directory)
}

/// The kernel's own script that reads comments of the kind kernel-doc, from the package of its headers.
pub fn kernel_doc(paths: &Paths) -> Result<PathBuf> {
    Ok(prefix::stock(paths)?.headers.sources.join("scripts/kernel-doc"))
}

/// What the compiler said of our modules: nothing, unless it warned.
pub fn warnings(paths: &Paths) -> Result<String> {
    let stock = prefix::stock(paths)?;
    let said = |project| kbuild::build_log(paths, project, &stock.linux.release, &stock.headers);
    Ok([said(&kbuild::DMACOPY)?, said(&kbuild::IMS)?].concat())
}

fn write_initrd(
    paths: &Paths,
    linux: &Linux,
    busybox: &Path,
    modules: &[PathBuf],
    directory: &Path,
) -> Result<PathBuf> {
    let read = |file: &Path| fs::read(file).with_context(|| format!("cannot read {}", file.display()));
    let programs = program::PROGRAMS.iter().map(|&(name, source)| {
        let program = program::build(paths, (name, source), directory)?;
        Ok((name.to_owned(), program))
    });
    let name = |file: &Path| file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let ours = modules.iter().map(|file| Ok((name(file), read(file)?)));
    let part = |(name, file): (&str, &str)| Ok((name.to_owned(), read(&paths.workspace.join(file))?));
    let contents = Contents {
        busybox: read(busybox)?,
        init: read(&paths.workspace.join(INIT))?,
        parts: PARTS.into_iter().map(part).collect::<Result<_>>()?,
        modules: linux.with_dependencies(DRIVER)?,
        ours: ours.collect::<Result<_>>()?,
        programs: programs.collect::<Result<_>>()?,
    };
    let initrd = contents.archive()?;
    let file = directory.join("initrd");
    // Another process may be reading it: it sees the old one or this one.
    let partial = directory.join(format!("initrd.{}", std::process::id()));
    fs::write(&partial, initrd).with_context(|| format!("cannot write {}", partial.display()))?;
    fs::rename(&partial, &file).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}

/// A file's name and its contents.
type Named = (String, Vec<u8>);

/// What is in an initrd.
struct Contents {
    busybox: Vec<u8>,
    init: Vec<u8>,
    parts: Vec<Named>,
    /// Linux's modules, in the order in which they are loaded.
    modules: Vec<Named>,
    ours: Vec<Named>,
    programs: Vec<Named>,
}

impl Contents {
    fn archive(self) -> Result<Vec<u8>> {
        let mut archive = Initramfs::with_directories(&["bin", "dev", "etc", "proc", "sys", MODULES]);
        archive.device("dev/console", 5, 1);
        archive.file("etc/fstab", FSTAB.into());
        archive.program("bin/busybox", self.busybox);
        for (name, program) in self.programs {
            archive.program(&format!("bin/{name}"), program);
        }
        let order = self.modules.iter().flat_map(|(name, _)| [name.as_str(), "\n"]).collect::<String>();
        archive.file(ORDER, order.into());
        for (name, module) in self.modules.into_iter().chain(self.ours) {
            archive.file(&format!("{MODULES}/{name}"), module);
        }
        for (name, part) in self.parts {
            archive.file(&name, part);
        }
        archive.program("init", self.init);
        archive.bytes()
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::initramfs::tests::read;
    use crate::paths::workspace;

    #[test]
    fn the_initrd_holds_all_that_the_first_process_uses() {
        let named = |(name, text): (&str, &str)| (name.to_owned(), text.into());
        let own = [&kbuild::DMACOPY, &kbuild::IMS].map(|project| project.modules).concat();
        let contents = Contents {
            busybox: b"box".to_vec(),
            init: b"script".to_vec(),
            parts: PARTS.map(|(name, _)| named((name, "part"))).into(),
            modules: [("idxd_bus.ko", "bus"), ("idxd.ko", "driver")].map(named).into(),
            ours: own.iter().map(|&name| named((name, "ours"))).collect(),
            programs: program::PROGRAMS.map(|(name, _)| named((name, "user"))).into(),
        };
        let bytes = contents.archive().unwrap();
        let entries = read(&bytes);
        let entry = |name: &str| entries.iter().find(|entry| entry.0 == name).unwrap_or_else(|| panic!("no {name}"));
        assert_eq!(entry("modules/order").2, b"idxd_bus.ko\nidxd.ko\n");
        assert_eq!(entry("modules/idxd.ko").2, b"driver");
        assert_eq!((entry("init").1, entry("init").2.as_slice()), (0o100_755, &b"script"[..]));
        assert_eq!(entry("dev/console").1, 0o020_600);
        let scripts = PARTS.iter().map(|(_, file)| *file).chain([INIT]);
        let script =
            scripts.map(|script| fs::read_to_string(workspace().unwrap().join(script)).unwrap()).collect::<String>();
        for name in [ORDER, "bin/busybox", "bin/svacopy", "ims", "ctl"] {
            entry(name);
            assert!(script.contains(&format!("/{name}")), "{name}");
        }
        assert!(script.contains("imsvisorctl") && entry("bin/imsvisorctl").2 == b"user");
        for name in own {
            entry(&format!("{MODULES}/{name}"));
            assert!(script.contains(&format!("/{MODULES}/{name}")), "{name}");
        }
        // What a directory holds comes after it.
        for (index, (name, ..)) in entries.iter().enumerate() {
            let parent = name.rsplit_once('/').map(|(parent, _)| parent);
            let known = |parent: &str| entries[..index].iter().any(|entry| entry.0 == parent);
            assert!(parent.is_none_or(known), "{name}");
        }
    }

    #[test]
    fn the_first_process_is_a_script_that_a_shell_can_read() {
        let init = workspace().unwrap().join(INIT);
        assert!(fs::read_to_string(&init).unwrap().starts_with("#!/bin/busybox sh\n"));
        for script in PARTS.iter().map(|(_, file)| *file).chain([INIT]) {
            let status = Command::new("sh").arg("-n").arg(workspace().unwrap().join(script)).status().unwrap();
            assert!(status.success(), "{script}");
        }
    }
}
