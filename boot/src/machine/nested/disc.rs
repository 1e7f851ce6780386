//! The nested machine's CD: kernel, initrd, KVM's modules, QEMU with its libraries and firmware, the images to run, and the plan.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::plan::{self, Plan};
use crate::image::{self, Kernel};
use crate::initramfs::Initramfs;
use crate::machine::IMAGE;
use crate::machine::bochs::IPS;
use crate::prefix::{Linux, QEMU_VARIABLE, Qemu, Tools};

/// Modules that reach the CD, in the order in which they are loaded. They are in the initrd.
pub const FOR_CD: [&str; 7] = [
    "drivers/scsi/scsi_common",
    "drivers/scsi/scsi_mod",
    "drivers/ata/libata",
    "drivers/ata/ata_piix",
    "drivers/cdrom/cdrom",
    "drivers/scsi/sr_mod",
    "fs/isofs/isofs",
];
/// KVM's modules but for the one that can be loaded in two ways.
pub const FOR_KVM: [&str; 2] = ["virt/lib/irqbypass", "arch/x86/kvm/kvm"];
/// The module that takes the parameter `nested`.
pub const KVM_INTEL: &str = "arch/x86/kvm/kvm-intel";

/// Where the CD is mounted.
pub const CD: &str = "/cd";
/// Where the modules are, in the initrd and on the CD.
pub const MODULES: &str = "modules";

/// Where libraries are on the CD. The initrd has links from wherever a dynamic linker looks.
const LIBRARIES: &str = "lib";
const LINKS: [(&str, &str); 4] =
    [("lib64", "/cd/lib"), ("usr/lib", "/cd/lib"), ("lib/x86_64-linux-gnu", "/cd/lib"), ("usr/share", "/cd/share")];
/// QEMU on the CD.
const QEMU: &str = "bin/qemu-system-x86_64";
const DSA_SERVER: &str = "bin/dsa-server";
const SHARE: &str = "share/qemu";
/// The firmware that QEMU takes for our machine: the BIOS, and the option ROM that comes with the local APIC of KVM's guests.
const FIRMWARE: [&str; 2] = ["bios-256k.bin", "kvmvapic.bin"];

/// The kernel's command line. Besides the console: what a Linux in an emulator need neither mitigate nor calibrate nor test.
///
/// The TSC ticks once for each instruction; what CPUID says of it is the modelled processor's. A blinking cursor makes Bochs' display
/// wait for a terminal that nobody reads. The kernel hands what it does not know, with a `=`, to the first process's environment.
fn options() -> Vec<String> {
    let mut options: Vec<String> = [
        "console=ttyS0,115200",
        "loglevel=4",
        "mitigations=off",
        "nokaslr",
        "no_timer_check",
        "tsc=reliable",
        "vt.global_cursor_default=0",
        "cryptomgr.notests",
        "initcall_blacklist=jent_mod_init,load_system_certificate_list,init_kprobe_trace,trace_eval_init",
    ]
    .map(str::to_owned)
    .into();
    options.push(format!("tsc_early_khz={}", IPS / 1000));
    options.push(format!("{QEMU_VARIABLE}={CD}/{QEMU}"));
    options
}

/// Writes the CD into a run's directory that holds the images to run.
pub fn write(tools: &Tools, init: &Path, plan: &Plan, directory: &Path) -> Result<()> {
    let linux = tools.linux.as_ref().context("no Linux was looked for")?;
    let tree = directory.join("cd");
    let written = fill(tools, linux, init, plan, directory, &tree);
    // It is as large as the CD, and nobody looks at it.
    let removed = fs::remove_dir_all(&tree).with_context(|| format!("cannot remove {}", tree.display()));
    written.and(removed)
}

/// Lays the CD out in `tree`, and makes it.
fn fill(tools: &Tools, linux: &Linux, init: &Path, plan: &Plan, directory: &Path, tree: &Path) -> Result<()> {
    for part in ["bin", LIBRARIES, SHARE, MODULES] {
        fs::create_dir_all(tree.join(part)).with_context(|| format!("cannot create {}", tree.display()))?;
    }
    put_qemu(tools.qemu.as_ref().context("no QEMU was looked for")?, tree)?;
    for module in FOR_KVM.into_iter().chain([KVM_INTEL]) {
        put(&linux.module(module)?, &tree.join(in_modules(module)))?;
    }
    if let Some(server) = plan.turns.iter().find_map(|turn| turn.config.dsa_server.as_deref()) {
        link(server, &tree.join(DSA_SERVER))?;
    }
    for index in 0..plan.turns.len() {
        let name = plan::image(index);
        fs::rename(directory.join(&name), tree.join(&name)).with_context(|| format!("cannot move {name}"))?;
    }
    put(&serde_json::to_vec(&on_cd(plan)).context("the plan")?, &tree.join(plan::FILE))?;
    let kernel = Kernel { image: linux.kernel.clone(), initrd: initrd(linux, init)?, options: options() };
    let grub = tools.grub.as_ref().context("no GRUB was looked for")?;
    image::write_linux_cd(grub, &kernel, tree, directory, &directory.join(IMAGE))
}

/// The plan with the paths that programs have in the machine.
fn on_cd(plan: &Plan) -> Plan {
    let mut plan = plan.clone();
    for server in plan.turns.iter_mut().filter_map(|turn| turn.config.dsa_server.as_mut()) {
        *server = Path::new(CD).join(DSA_SERVER);
    }
    plan
}

fn put(bytes: &[u8], file: &Path) -> Result<()> {
    fs::write(file, bytes).with_context(|| format!("cannot write {}", file.display()))
}

/// A module's file, below the initrd's root and the CD's.
pub fn in_modules(module: &str) -> String {
    format!("{MODULES}/{}.ko", module.rsplit('/').next().unwrap_or(module))
}

/// QEMU, the libraries that it loads, and the firmware of our machine.
fn put_qemu(qemu: &Qemu, tree: &Path) -> Result<()> {
    let command = qemu.command();
    link(&program_of(&command)?, &tree.join(QEMU))?;
    for library in libraries(qemu.command())? {
        let name = library.file_name().with_context(|| format!("no library: {}", library.display()))?;
        link(&library, &tree.join(LIBRARIES).join(name))?;
    }
    let places = firmware_directories(&command);
    for name in FIRMWARE {
        let found = places.iter().map(|place| place.join(name)).find(|file| file.is_file());
        link(
            &found.with_context(|| format!("QEMU's firmware {name} is not in {places:?}"))?,
            &tree.join(SHARE).join(name),
        )?;
    }
    Ok(())
}

/// A file of the tree that is another one, whatever links lead there; copied where the two lie on different file systems.
fn link(from: &Path, to: &Path) -> Result<()> {
    let from = from.canonicalize().with_context(|| format!("cannot find {}", from.display()))?;
    fs::hard_link(&from, to)
        .or_else(|_| fs::copy(&from, to).map(drop))
        .with_context(|| format!("cannot copy {}", from.display()))
}

/// The program that a command starts, perhaps by a dynamic linker.
fn program_of(command: &Command) -> Result<PathBuf> {
    let is_linker = |word: &Path| word.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ld-linux"));
    let words = [command.get_program()].into_iter().chain(command.get_args()).map(PathBuf::from);
    let mut programs = words.filter(|word| word.is_file() && !is_linker(word));
    programs.next().with_context(|| format!("no program in {command:?}"))
}

/// Where a QEMU looks for firmware: where its command says, and where Debian's looks by itself.
fn firmware_directories(command: &Command) -> Vec<PathBuf> {
    let words: Vec<_> = command.get_args().collect();
    let named = words.windows(2).filter(|pair| pair[0] == "-L").map(|pair| PathBuf::from(pair[1]));
    named.chain(["/usr/share/qemu", "/usr/share/seabios"].map(PathBuf::from)).collect()
}

/// Every library that a command's program loads, the dynamic linker among them: the linker itself lists them (ld.so(8)).
fn libraries(mut command: Command) -> Result<BTreeSet<PathBuf>> {
    // A program without a dynamic linker would start, and at least end.
    command.env("LD_TRACE_LOADED_OBJECTS", "1").arg("--version");
    let output = command.output().context("cannot start the dynamic linker")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if let Some(line) = text.lines().find(|line| line.contains("not found")) {
        bail!("a library of QEMU is missing: {}", line.trim());
    }
    let libraries = libraries_in(&text);
    if libraries.is_empty() {
        bail!("the dynamic linker lists no libraries of QEMU: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(libraries)
}

/// The files in a dynamic linker's list: `name => file (address)`, or `file (address)` of the linker.
fn libraries_in(list: &str) -> BTreeSet<PathBuf> {
    let file = |line: &str| {
        let line = line.rsplit_once(" (0x")?.0;
        let file = line.split_once(" => ").map_or(line, |(_, file)| file).trim();
        file.starts_with('/').then(|| PathBuf::from(file))
    };
    list.lines().filter_map(file).collect()
}

/// A `cpio` archive that the kernel unpacks as its first root: the first process, what it needs to reach the CD, and links to that.
fn initrd(linux: &Linux, init: &Path) -> Result<Vec<u8>> {
    let program = fs::read(init).with_context(|| format!("cannot read {}", init.display()))?;
    let module = |module: &&str| Ok((in_modules(module), linux.module(module)?));
    archive(program, FOR_CD.iter().map(module).collect::<Result<_>>()?)
}

/// The same from the first process and the modules by their names in it.
fn archive(init: Vec<u8>, modules: Vec<(String, Vec<u8>)>) -> Result<Vec<u8>> {
    let directories = ["proc", "sys", "cd", "run", "tmp", "lib", "usr", MODULES];
    let mut archive = Initramfs::with_directories(&directories);
    for (name, to) in LINKS {
        archive.link(name, to);
    }
    for (name, module) in modules {
        archive.file(&name, module);
    }
    archive.program("init", init);
    archive.bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::initramfs::tests::read;

    const DIRECTORY: u32 = 0o040_755;
    const PROGRAM: u32 = 0o100_755;
    const LINK: u32 = 0o120_777;

    #[test]
    fn the_initrd_holds_the_first_process_and_what_reaches_the_cd() {
        let module = (in_modules("fs/isofs/isofs"), b"module".to_vec());
        let entries = read(&archive(b"program".to_vec(), vec![module]).unwrap());
        let position =
            |name: &str| entries.iter().position(|entry| entry.0 == name).unwrap_or_else(|| panic!("no {name}"));
        let entry = |name: &str| (entries[position(name)].1, entries[position(name)].2.as_slice());
        assert_eq!(entry("init"), (PROGRAM, &b"program"[..]));
        assert_eq!(entry("modules/isofs.ko").1, b"module");
        assert_eq!(entry("lib64"), (LINK, &b"/cd/lib"[..]));
        for directory in ["proc", "sys", "cd", "run"] {
            assert_eq!(entry(directory), (DIRECTORY, &[][..]));
        }
        // The kernel makes no directory that an entry's name needs.
        assert!(position("usr") < position("usr/lib") && position("modules") < position("modules/isofs.ko"));
    }

    #[test]
    fn the_kernels_clock_is_the_emulators_and_its_console_com1() {
        let options = options();
        let khz = format!("tsc_early_khz={}", IPS / 1000);
        for option in ["console=ttyS0,115200", "nokaslr", "mitigations=off", khz.as_str()] {
            assert!(options.iter().any(|other| other == option), "{option}");
        }
        assert!(options.iter().any(|option| option.starts_with("IMSVISOR_QEMU=/cd/bin/")));
    }

    #[test]
    fn a_dynamic_linkers_list_is_read() {
        let list = "\tlinux-vdso.so.1 (0x00007ffe)\n\tlibz.so.1 => /p/lib/libz.so.1 (0x00007f01)\n\t/p/lib64/ld-linux-x86-64.so.2 (0x00007f02)\n";
        let found: Vec<_> = libraries_in(list).into_iter().collect();
        assert_eq!(found, ["/p/lib/libz.so.1", "/p/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from));
        let names = ["lib", "ld-linux"];
        let own = libraries(Command::new(std::env::current_exe().unwrap())).unwrap();
        assert!(names.iter().all(|name| own.iter().any(|file| file.to_string_lossy().contains(name))), "{own:?}");
    }

    #[test]
    fn qemu_and_its_firmware_are_found_in_its_command() {
        let root = tempfile::tempdir().unwrap();
        let (linker, program) = (root.path().join("ld-linux-x86-64.so.2"), root.path().join("qemu"));
        fs::write(&linker, "").unwrap();
        fs::write(&program, "").unwrap();
        let mut command = Command::new(&linker);
        command.arg("--library-path").arg(root.path()).arg(&program).args(["-L", "/firmware"]);
        assert_eq!(program_of(&command).unwrap(), program);
        assert_eq!(program_of(&Command::new(&program)).unwrap(), program);
        assert!(program_of(&Command::new("/no/such/program")).is_err());
        assert_eq!(firmware_directories(&command)[0], Path::new("/firmware"));
    }
}
