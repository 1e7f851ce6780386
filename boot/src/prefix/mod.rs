//! The programs that a run needs: Bochs and its firmware, GRUB's image maker, xorriso; QEMU if it is asked for. The system's programs are
//! used if they work, else those of a private prefix.

mod apt;
mod fetch;
mod linux;
mod ovmf;
mod qemu;
mod recent;
pub mod sources;
mod stock;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use fetch::{Kit, TRIXIE};
pub use linux::{LINUX_VARIABLE, Linux, linux};
pub use ovmf::{OVMF_VARIABLE, Ovmf, ovmf};
pub use qemu::{Need, QEMU_VARIABLE, Qemu, WORKING_QEMU, qemu};
pub use recent::{RECENT_VARIABLE, Recent, recent};
pub use sources::MIRROR_VARIABLE;
pub use stock::{Headers, STOCK_VARIABLE, Stock, stock};

use crate::paths::{Paths, on_path};

/// The emulator that was tried. 2.7 has no posted interrupts, and Linux dies early on 3.1.
pub const WORKING_BOCHS: &str = "Bochs 3.0";
/// Names a Bochs to use instead of the system's or the prefix's.
pub const BOCHS_VARIABLE: &str = "IMSVISOR_BOCHS";

/// Bochs, and what makes images for it.
const BOCHS: Kit = Kit {
    directory: "prefix",
    what: "the emulator and GRUB's tools",
    suite: TRIXIE,
    packages: &[
        "bochs",
        "bochs-term",
        "bochsbios",
        "seabios",
        "grub-common",
        "grub-pc-bin",
        "grub-efi-amd64-bin",
        "xorriso",
        "mtools",
    ],
    alone: None,
    backports: false,
    works,
    needed: WORKING_BOCHS,
    by_hand: "- Bochs 3.0, built with plugins, `--enable-smp`, VMX and the `term` or `nogui` display, with its BIOS and SeaBIOS' \
              vgabios-stdvga.bin\n- GRUB 2's grub-mkimage with its i386-pc modules, and xorriso",
    variable: BOCHS_VARIABLE,
    recipe: "2",
};

/// Where Debian keeps 64-bit libraries.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// Whether a version of Bochs is one that works.
fn works(version: &str) -> bool {
    version.strip_prefix("3.0").is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// A program, of the system or of the prefix.
#[derive(Debug, Clone)]
pub struct Program {
    file: PathBuf,
    prefix: Option<PathBuf>,
}

impl Program {
    /// A program of the system.
    pub fn of_system(file: PathBuf) -> Self {
        Self { file, prefix: None }
    }

    /// A program of the prefix, by its path below it.
    fn of_prefix(prefix: &Path, file: &str) -> Self {
        Self { file: prefix.join(file), prefix: Some(prefix.to_owned()) }
    }

    /// A command that starts it. One of the prefix is started through the prefix's own dynamic linker, because it may
    /// need a newer C library than the system has.
    pub fn command(&self) -> Command {
        let mut command = match &self.prefix {
            None => Command::new(&self.file),
            Some(prefix) => {
                let mut command = Command::new(prefix.join("lib64/ld-linux-x86-64.so.2"));
                command.arg("--library-path").arg(prefix.join(LIBRARIES)).arg(&self.file);
                command
            }
        };
        // Cargo's path to Rust's libraries is not for them.
        command.env_remove("LD_LIBRARY_PATH").stdin(Stdio::null());
        command
    }
}

/// Bochs with what belongs to it.
#[derive(Debug, Clone)]
pub struct Bochs {
    /// The emulator itself.
    pub program: Program,
    /// Where its own plugins are, if not where it was built to look.
    pub plugins: Option<PathBuf>,
    /// Its shared files, among them the BIOS.
    pub share: PathBuf,
    /// SeaBIOS' VGA BIOS, or its own.
    pub vga_bios: PathBuf,
}

/// GRUB's image maker, and xorriso.
#[derive(Debug, Clone)]
pub struct Grub {
    /// `grub-mkimage`.
    pub mkimage: Program,
    /// The directory that holds `i386-pc` and, where there is one, `x86_64-efi`.
    pub modules: PathBuf,
    /// `xorriso`.
    pub xorriso: Program,
    /// `mformat` and `mcopy` in one, where they are known.
    pub mtools: Option<Program>,
}

/// Everything that a run needs.
#[derive(Debug, Clone)]
pub struct Tools {
    /// The emulator; none where only an image is made or QEMU is used.
    pub bochs: Option<Bochs>,
    /// QEMU, where it was asked for.
    pub qemu: Option<Qemu>,
    /// The kernel that runs QEMU in Bochs, where that was asked for.
    pub linux: Option<Linux>,
    /// What makes the image; none where there is one already.
    pub grub: Option<Grub>,
}

/// Finds the emulator and GRUB's tools, and fetches them where the system has none that work.
pub fn tools(paths: &Paths) -> Result<Tools> {
    let bochs = match bochs_of_variable(paths)? {
        Some(bochs) => bochs,
        None => match bochs_of_system() {
            Some(bochs) => bochs,
            None => bochs_of_prefix(&fetch::ensure(paths, &BOCHS)?)?,
        },
    };
    Ok(Tools { bochs: Some(bochs), qemu: None, linux: None, grub: Some(grub(paths)?) })
}

/// Only what makes images.
pub fn image_tools(paths: &Paths) -> Result<Tools> {
    Ok(Tools { bochs: None, qemu: None, linux: None, grub: Some(grub(paths)?) })
}

/// QEMU, and what makes images.
pub fn qemu_tools(paths: &Paths, need: Need) -> Result<Tools> {
    Ok(Tools { qemu: Some(qemu(paths, need)?), ..image_tools(paths)? })
}

/// The emulator, a kernel with KVM to run in it, QEMU to run on that, and what makes images.
pub fn nested_tools(paths: &Paths) -> Result<Tools> {
    Ok(Tools { qemu: Some(qemu(paths, Need::VfioUser)?), linux: Some(linux(paths)?), ..tools(paths)? })
}

/// QEMU alone, the one that the variable names: what a machine has in which everything else is made already.
pub fn ready_tools() -> Result<Tools> {
    let nothing_is_fetched = Paths { workspace: PathBuf::new(), home: PathBuf::new(), guests: Default::default() };
    Ok(Tools { bochs: None, qemu: Some(qemu(&nothing_is_fetched, Need::VfioUser)?), linux: None, grub: None })
}

fn grub(paths: &Paths) -> Result<Grub> {
    match grub_of_system() {
        Some(grub) => Ok(grub),
        None => grub_of_prefix(&fetch::ensure(paths, &BOCHS)?),
    }
}

fn bochs_of_prefix(prefix: &Path) -> Result<Bochs> {
    let bochs = Bochs {
        program: Program::of_prefix(prefix, "usr/bin/bochs-bin"),
        plugins: Some(prefix.join(LIBRARIES).join("bochs/plugins")),
        share: prefix.join("usr/share/bochs"),
        vga_bios: prefix.join("usr/share/seabios/vgabios-stdvga.bin"),
    };
    for file in [&bochs.program.file, &bochs.share.join("BIOS-bochs-latest"), &bochs.vga_bios] {
        if !file.is_file() {
            bail!("{} is missing: remove {} to fetch it again", file.display(), prefix.display());
        }
    }
    Ok(bochs)
}

fn grub_of_prefix(prefix: &Path) -> Result<Grub> {
    Ok(Grub {
        mkimage: Program::of_prefix(prefix, "usr/bin/grub-mkimage"),
        modules: prefix.join("usr/lib/grub"),
        xorriso: Program::of_prefix(prefix, "usr/bin/xorriso"),
        mtools: Some(Program::of_prefix(prefix, "usr/bin/mtools")),
    })
}

/// The system's GRUB: all of it, or none.
fn grub_of_system() -> Option<Grub> {
    let modules = PathBuf::from("/usr/lib/grub");
    // The EFI side and mtools are only needed for an image for hardware; without them the prefix is the better choice.
    let complete =
        ["i386-pc/multiboot2.mod", "x86_64-efi/multiboot2.mod"].iter().all(|file| modules.join(file).is_file());
    complete.then_some(())?;
    Some(Grub {
        mkimage: Program::of_system(on_path("grub-mkimage")?),
        modules,
        xorriso: Program::of_system(on_path("xorriso")?),
        mtools: Some(Program::of_system(on_path("mtools")?)),
    })
}

/// The Bochs that the variable names, which must work.
fn bochs_of_variable(paths: &Paths) -> Result<Option<Bochs>> {
    let Some(named) = std::env::var_os(BOCHS_VARIABLE) else { return Ok(None) };
    let file = resolve(&named).with_context(|| format!("{BOCHS_VARIABLE}: there is no program {}", named.display()))?;
    let program = Program::of_system(file.clone());
    let version =
        version(&program).with_context(|| format!("{BOCHS_VARIABLE}: {} does not say its version", file.display()))?;
    if !works(&version) {
        bail!("{BOCHS_VARIABLE}: {} is Bochs {version}, but {WORKING_BOCHS} is needed", file.display());
    }
    if let Some(bochs) = with_firmware(program.clone(), &file) {
        return Ok(Some(bochs));
    }
    // A Bochs in its build directory has no firmware beside it: the prefix has.
    let of_prefix = bochs_of_prefix(&fetch::ensure(paths, &BOCHS)?)?;
    Ok(Some(Bochs { program, plugins: own_plugins(&file), ..of_prefix }))
}

fn resolve(named: &OsString) -> Option<PathBuf> {
    let file = PathBuf::from(named);
    if file.components().count() > 1 {
        return file.is_file().then(|| std::path::absolute(&file).ok())?;
    }
    on_path(file.to_str()?)
}

/// A Bochs on the path that works and has its firmware.
fn bochs_of_system() -> Option<Bochs> {
    // Debian's `bochs` is a script around `bochs-bin`.
    let file = on_path("bochs-bin").or_else(|| on_path("bochs"))?;
    let program = Program::of_system(file.clone());
    if !works(&version(&program)?) {
        return None;
    }
    with_firmware(program, &file)
}

/// Looks for a Bochs' firmware: `BXSHARE`, its own `share`, and that of the system.
fn with_firmware(program: Program, file: &Path) -> Option<Bochs> {
    let own = file.parent().and_then(Path::parent).map(|root| root.join("share/bochs"));
    let shares = [std::env::var_os("BXSHARE").map(PathBuf::from), own, Some("/usr/share/bochs".into())];
    let share = shares.into_iter().flatten().find(|share| share.join("BIOS-bochs-latest").is_file())?;
    let sea = PathBuf::from("/usr/share/seabios/vgabios-stdvga.bin");
    let vga_bios = [sea, share.join("VGABIOS-lgpl-latest"), share.join("VGABIOS-lgpl-latest.bin")];
    let vga_bios = vga_bios.into_iter().find(|file| file.is_file())?;
    Some(Bochs { program, plugins: own_plugins(file), share, vga_bios })
}

/// The plugins that belong to a Bochs of the system.
fn own_plugins(file: &Path) -> Option<PathBuf> {
    let root = file.parent()?.parent()?;
    let places = [root.join("lib/x86_64-linux-gnu/bochs/plugins"), root.join("lib/bochs/plugins")];
    places.into_iter().find(|place| place.is_dir())
}

/// What a Bochs says of itself: `Bochs x86 Emulator 3.0`.
fn version(program: &Program) -> Option<String> {
    let output = program.command().arg("--help").output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    version_in(&String::from_utf8_lossy(&text))
}

fn version_in(text: &str) -> Option<String> {
    let rest = text.lines().find_map(|line| line.split_once("Bochs x86 Emulator "))?.1;
    rest.split_whitespace().next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_three_point_zero_works() {
        for version in ["3.0", "3.0+dfsg-1", "3.0.1"] {
            assert!(works(version), "{version}");
        }
        for version in ["2.7+dfsg-4", "3.1", "3.01", "30", ""] {
            assert!(!works(version), "{version}");
        }
    }

    #[test]
    fn bochs_says_its_version() {
        let text = "=====\n                        Bochs x86 Emulator 3.0\n     Built from GitHub snapshot\n";
        assert_eq!(version_in(text), Some("3.0".into()));
        assert_eq!(version_in("something else"), None);
    }

    #[test]
    fn a_program_of_the_prefix_is_started_through_its_own_linker() {
        let command = Program::of_prefix(Path::new("/p"), "usr/bin/xorriso").command();
        assert_eq!(command.get_program(), "/p/lib64/ld-linux-x86-64.so.2");
        let arguments: Vec<_> = command.get_args().collect();
        assert_eq!(arguments, ["--library-path", "/p/usr/lib/x86_64-linux-gnu", "/p/usr/bin/xorriso"]);
    }
}
