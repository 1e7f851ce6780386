//! The GRUB image: a CD that boots the hypervisor by multiboot2 with the guests as modules.
//!
//! For the emulator it boots from the BIOS only and is written in a tenth of a second; for hardware it also boots from a
//! stick and from UEFI.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use imsvisor::options::{BAUD, Console, Options, SerialPort};

use crate::prefix::{Grub, Program};
use crate::words::{self, grub_quote};

/// The option by which a guest's serial port is the machine's terminal, on COM2.
pub const CONSOLE: &str = "console=on";

/// A guest as GRUB loads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    path: PathBuf,
    words: Vec<String>,
}

impl Module {
    /// A guest's image and its string, `name option=value …`; quotes hold a value with spaces together.
    pub fn new(path: impl Into<PathBuf>, string: &str) -> Result<Self> {
        Self::from_words(path, words::split(string)?)
    }

    /// The same from words that are split already.
    pub fn from_words(path: impl Into<PathBuf>, words: Vec<String>) -> Result<Self> {
        if words.is_empty() {
            bail!("a guest without a name");
        }
        if words.iter().flat_map(|word| word.chars()).any(char::is_control) {
            bail!("a control character in `{}`", words::harmless(&words.join(" ")));
        }
        Ok(Self { path: path.into(), words })
    }

    /// The devices that the guest is to have.
    pub fn devices(&self) -> impl Iterator<Item = &str> {
        self.words.iter().skip(1).filter_map(|word| word.strip_prefix("device="))
    }

    /// Whether its serial port is the machine's terminal.
    pub fn has_console(&self) -> bool {
        self.words.iter().skip(1).any(|word| word == CONSOLE)
    }

    /// The guest's name: its string's first word.
    pub fn name(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }
}

/// For which machines an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Firmware {
    /// A BIOS that boots from CD: the emulator's.
    BiosCd,
    /// Any PC: BIOS or UEFI, from CD or from a stick.
    Any,
}

/// GRUB's modules that every firmware's core needs: the image may be a CD or, with partitions, a stick.
const MODULES: [&str; 9] = [
    "iso9660",
    "part_gpt",
    "part_msdos",
    "search",
    "search_fs_file",
    "normal",
    "configfile",
    "multiboot2",
    "all_video",
];
/// The same, and disks, for the BIOS. UEFI's disks are in its core.
const BIOS_MODULES: [&str; 10] = {
    let [a, b, c, d, e, f, g, h, i] = MODULES;
    ["biosdisk", a, b, c, d, e, f, g, h, i]
};
/// For words on the screen.
const ECHO: &str = "echo";

/// What GRUB's core does first: it looks for the image it was started from, wherever the firmware put it.
const EARLY: &str =
    "search --file --set=root /boot/grub/bios.img\nset prefix=($root)/boot/grub\nconfigfile $prefix/grub.cfg\n";

/// A partition table that both firmwares accept: a GPT whose second partition, UEFI's, is the file that follows.
const HYBRID: [&str; 7] = [
    "--protective-msdos-label",
    "-partition_offset",
    "16",
    "--mbr-force-bootable",
    "-append_partition",
    "2",
    "c12a7328-f81f-11d2-ba4b-00a0c93ec93b",
];

/// Where a real machine's hypervisor reports, for people.
pub fn reports_on(hypervisor_options: &[String]) -> String {
    let (options, _) = Options::parse(&hypervisor_options.join(" "));
    let port = match options.console {
        Console::Auto => "the serial port that the firmware names (ACPI table SPCR), else COM1".to_owned(),
        Console::At(port) => format!("{port} at {BAUD} baud"),
    };
    if options.screen { format!("the screen and {port}") } else { port }
}

/// What a real machine's screen shows until the hypervisor has it.
fn greeting(hypervisor_options: &[String], modules: &[Module]) -> Vec<String> {
    let (options, _) = Options::parse(&hypervisor_options.join(" "));
    let console = if let Console::At(port) = options.console { port } else { SerialPort::COM[0] };
    let terminal = console.terminal_beside();
    let guest = modules.iter().find(|module| module.has_console()).map(Module::name);
    let guest = guest.map(|name| format!("The serial port of the guest {name} is {terminal}, at {BAUD} baud, 8N1."));
    let port = match options.console {
        Console::Auto => format!("the firmware's serial port, else COM1 at {BAUD} baud"),
        Console::At(port) => format!("{port} at {BAUD} baud"),
    };
    let own = format!("imsvisor reports on {port}, 8N1,");
    let screen = if options.screen { "and on this screen." } else { "and no more on this screen." };
    guest.into_iter().chain([own, screen.to_owned()]).collect()
}

/// GRUB's configuration.
///
/// GRUB joins a module's words again by itself: one that holds a space arrives as `"cmdline=a b"`, and quotes and
/// backslashes arrive with a backslash before them (`grub_create_loader_cmdline`).
pub fn grub_cfg(firmware: Firmware, hypervisor_options: &[String], modules: &[Module]) -> String {
    let mut text = String::from("set timeout=0\nterminal_output console\n");
    // Nobody sees the emulator's screen, and its boot is not to become slower.
    if firmware == Firmware::Any {
        let lines = greeting(hypervisor_options, modules);
        lines.iter().for_each(|line| text.push_str(&format!("echo {}\n", grub_quote(line))));
    }
    text.push_str("multiboot2 /boot/imsvisor");
    for option in hypervisor_options {
        text.push(' ');
        text.push_str(&grub_quote(option));
    }
    if firmware == Firmware::BiosCd {
        // The command above has set what the hypervisor's header asks for: a screen of pixels.
        text.push_str("\nset gfxpayload=text");
    }
    for (index, module) in modules.iter().enumerate() {
        // Writing to a String cannot fail.
        let _ = write!(text, "\nmodule2 {}", on_image(index));
        for word in &module.words {
            text.push(' ');
            text.push_str(&grub_quote(word));
        }
    }
    text.push_str("\nboot\n");
    text
}

fn on_image(index: usize) -> String {
    format!("/boot/guest-{index}")
}

/// What goes onto an image.
#[derive(Debug, Clone, Default)]
pub struct Image {
    /// The hypervisor's ELF image.
    pub hypervisor: PathBuf,
    /// The words of its multiboot2 command line.
    pub options: Vec<String>,
    /// The guests.
    pub modules: Vec<Module>,
}

impl Image {
    /// Writes the image to `iso`; `work` is a directory for what it is made of.
    pub fn write(&self, grub: &Grub, firmware: Firmware, work: &Path, iso: &Path) -> Result<()> {
        let tree = work.join("iso");
        self.lay_out(firmware, &tree)?;
        let early = write_early(work)?;
        let mut modules = BIOS_MODULES.to_vec();
        modules.extend((firmware == Firmware::Any).then_some(ECHO));
        let mut command = bios_cd(grub, &tree, &modules, &early, iso)?;
        if firmware == Firmware::Any {
            let esp = efi_partition(grub, &early, work)?;
            command.arg("--grub2-boot-info").arg("--grub2-mbr").arg(grub.modules.join("i386-pc/boot_hybrid.img"));
            command.args(HYBRID).arg(esp).arg("-appended_part_as_gpt");
            command.args(["-eltorito-alt-boot", "-e", "--interval:appended_partition_2:all::", "-no-emul-boot"]);
        }
        run(command.arg(&tree), "xorriso")?;
        // Only the image is needed from here on.
        fs::remove_dir_all(&tree).with_context(|| format!("cannot remove {}", tree.display()))
    }

    fn lay_out(&self, firmware: Firmware, tree: &Path) -> Result<()> {
        fs::create_dir_all(tree.join("boot/grub")).with_context(|| format!("cannot create {}", tree.display()))?;
        copy(&self.hypervisor, &tree.join("boot/imsvisor"))?;
        for (index, module) in self.modules.iter().enumerate() {
            copy(&module.path, &tree.join(on_image(index).trim_start_matches('/')))?;
        }
        write(&tree.join("boot/grub/grub.cfg"), grub_cfg(firmware, &self.options, &self.modules).as_bytes())
    }
}

/// Writes a CD to `iso` that a BIOS can boot Linux from. `tree` becomes the CD's files, and this function adds the kernel and the
/// initrd to it. `work` is a directory for intermediate files.
pub fn write_linux_cd(grub: &Grub, linux: &Kernel, tree: &Path, work: &Path, iso: &Path) -> Result<()> {
    fs::create_dir_all(tree.join("boot/grub")).with_context(|| format!("cannot create {}", tree.display()))?;
    copy(&linux.image, &tree.join(KERNEL))?;
    write(&tree.join(INITRD), &linux.initrd)?;
    write(&tree.join("boot/grub/grub.cfg"), linux.grub_cfg().as_bytes())?;
    let early = write_early(work)?;
    let modules: Vec<&str> = BIOS_MODULES.into_iter().chain(["linux"]).collect();
    run(bios_cd(grub, tree, &modules, &early, iso)?.arg(tree), "xorriso")
}

/// A kernel as GRUB loads it.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The compressed kernel image.
    pub image: PathBuf,
    /// Its initrd, a `cpio` archive.
    pub initrd: Vec<u8>,
    /// Its command line's words.
    pub options: Vec<String>,
}

impl Kernel {
    fn grub_cfg(&self) -> String {
        let options: Vec<String> = self.options.iter().map(|option| grub_quote(option)).collect();
        let options = options.join(" ");
        format!("set timeout=0\nterminal_output console\nlinux /{KERNEL} {options}\ninitrd /{INITRD}\nboot\n")
    }
}

/// Where the CD has them.
const KERNEL: &str = "boot/vmlinuz";
const INITRD: &str = "boot/initrd";

/// The first script of GRUB's core, as a file.
fn write_early(work: &Path) -> Result<PathBuf> {
    let early = work.join("early.cfg");
    write(&early, EARLY.as_bytes())?;
    Ok(early)
}

/// Puts GRUB's core for a BIOS into a tree; returns the command that writes a CD which boots it. The tree itself is still to be named.
fn bios_cd(grub: &Grub, tree: &Path, modules: &[&str], early: &Path, iso: &Path) -> Result<Command> {
    let core = tree.join("boot/grub/bios.img");
    mkimage(grub, "i386-pc", "i386-pc-eltorito", modules, early, &core)?;
    let mut command = grub.xorriso.command();
    command.args(["-as", "mkisofs", "-quiet", "-r", "-V", "IMSVISOR", "-o"]).arg(iso);
    command.args(["-b", "boot/grub/bios.img", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table"]);
    Ok(command)
}

fn write(file: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(file, bytes).with_context(|| format!("cannot write {}", file.display()))
}

/// The absolute path of an image that is to be written; refuses a place where no file can be.
pub fn check_place(file: &Path) -> Result<PathBuf> {
    let absolute = std::path::absolute(file).with_context(|| format!("--image {}", file.display()))?;
    let folder = absolute.parent().filter(|folder| folder.is_dir());
    folder.with_context(|| format!("--image {}: there is no such folder", absolute.display()))?;
    // Only trying tells, for a user who may write everywhere as well.
    let (existed, mut options) = (absolute.exists(), fs::OpenOptions::new());
    let opened = options.append(true).create(true).open(&absolute);
    opened.with_context(|| format!("--image {}: cannot write there", absolute.display()))?;
    if !existed {
        fs::remove_file(&absolute).with_context(|| format!("cannot remove {}", absolute.display()))?;
    }
    Ok(absolute)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map(drop).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

fn mkimage(grub: &Grub, platform: &str, format: &str, modules: &[&str], early: &Path, to: &Path) -> Result<()> {
    let mut command = grub.mkimage.command();
    command.arg("-d").arg(grub.modules.join(platform)).args(["-O", format, "-p", "/boot/grub", "-c"]).arg(early);
    run(command.arg("-o").arg(to).args(modules), "grub-mkimage")
}

/// A FAT image with `EFI/BOOT/BOOTX64.EFI`.
fn efi_partition(grub: &Grub, early: &Path, work: &Path) -> Result<PathBuf> {
    let Some(mtools) = &grub.mtools else { bail!("an image for UEFI needs mtools") };
    let program = work.join("bootx64.efi");
    mkimage(grub, "x86_64-efi", "x86_64-efi", &[&MODULES[..], &[ECHO]].concat(), early, &program)?;
    let esp = work.join("esp.img");
    mtool(mtools, "mformat", &esp, &["-C", "-f", "2880", "-L", "32", "::"])?;
    mtool(mtools, "mmd", &esp, &["::/EFI", "::/EFI/BOOT"])?;
    mtool(mtools, "mcopy", &esp, &[&program.to_string_lossy(), "::/EFI/BOOT/BOOTX64.EFI"])?;
    Ok(esp)
}

fn mtool(mtools: &Program, name: &str, image: &Path, arguments: &[&str]) -> Result<()> {
    run(mtools.command().args(["-c", name, "-i"]).arg(image).args(arguments), name)
}

fn run(command: &mut Command, name: &str) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot start {name}"))?;
    if !output.status.success() {
        bail!("{name} failed ({}):\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(string: &str) -> Module {
        Module::new("/x", string).unwrap()
    }

    #[test]
    fn grub_boots_the_hypervisor_with_one_module_for_each_guest() {
        let text = grub_cfg(Firmware::BiosCd, &[], &[module("demo mem=64M device=dsa"), module("other")]);
        let expected = "multiboot2 /boot/imsvisor\nset gfxpayload=text\nmodule2 /boot/guest-0 demo mem=64M device=dsa\nmodule2 /boot/guest-1 other\nboot\n";
        assert!(text.ends_with(expected), "{text}");
    }

    #[test]
    fn a_real_machines_screen_says_where_the_machine_reports_and_the_emulators_says_nothing() {
        let before = |words: &[&str], guest: &str| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            let text = grub_cfg(Firmware::Any, &words, &[module(guest)]);
            // The screen has the mode that the hypervisor's header asks for.
            assert!(!text.contains("gfxpayload"), "{text}");
            let lines = greeting(&words, &[module(guest)]);
            assert!(lines.iter().all(|line| line.len() < 80), "a text screen's line: {lines:?}");
            text.split_once("multiboot2").unwrap().0.to_owned()
        };
        let text = before(&[], "demo");
        for word in ["echo '", "COM1", "115200", "8N1", "and on this screen"] {
            assert!(text.contains(word), "{word}: {text}");
        }
        let text = before(&["console=com2", "screen=off"], "demo console=on");
        for word in ["reports on COM2", "guest demo is COM1", "no more on this screen"] {
            assert!(text.contains(word), "{word}: {text}");
        }
        assert!(before(&["console=0xc000"], "a-name-of-16-let console=on").contains("guest a-name-of-16-let is COM2"));
        assert!(!grub_cfg(Firmware::BiosCd, &[], &[module("demo")]).contains("echo"));
    }

    #[test]
    fn people_are_told_where_it_reports() {
        assert_eq!(
            reports_on(&[]),
            "the screen and the serial port that the firmware names (ACPI table SPCR), else COM1"
        );
        assert_eq!(reports_on(&["screen=off".into(), "console=com2".into()]), "COM2 at 115200 baud");
    }

    #[test]
    fn a_value_with_spaces_stays_one_word_for_grub() {
        let text = grub_cfg(Firmware::BiosCd, &["a b".into()], &[module(r#"demo cmdline="it's $x; reboot""#)]);
        assert!(text.contains("multiboot2 /boot/imsvisor 'a b'\n"), "{text}");
        assert!(text.contains(r"module2 /boot/guest-0 demo 'cmdline=it'\''s $x; reboot'"), "{text}");
    }

    #[test]
    fn a_module_cannot_add_lines_to_grubs_configuration() {
        assert!(Module::new("/x", "demo 'a\nreboot'").is_err());
    }

    #[test]
    fn an_image_goes_only_where_a_file_can_be() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("x.iso");
        assert_eq!(check_place(&file).unwrap(), file);
        assert!(!file.exists());
        fs::write(&file, "old").unwrap();
        assert_eq!(check_place(&file).unwrap(), file);
        assert_eq!(fs::read(&file).unwrap(), b"old");
        for place in [directory.path().join("absent/x.iso"), directory.path().to_owned(), "/proc/x.iso".into()] {
            assert!(check_place(&place).is_err(), "{}", place.display());
        }
    }

    #[test]
    fn grub_boots_linux_with_its_initrd() {
        let kernel = Kernel { image: "/x".into(), initrd: Vec::new(), options: vec!["a=b".into(), "c d".into()] };
        assert!(kernel.grub_cfg().ends_with("linux /boot/vmlinuz a=b 'c d'\ninitrd /boot/initrd\nboot\n"));
    }

    #[test]
    fn a_guest_has_a_name() {
        assert!(Module::new("/x", "  ").is_err());
        assert!(Module::new("/x", "demo \"x").is_err());
        assert_eq!(module("demo mem=1M").name(), "demo");
    }
}
