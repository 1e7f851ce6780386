//! Linux on the emulated machine itself, without the hypervisor: its own drivers for VT-d, the I/O APIC and the DSA test the models.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::bochs::{self, IPS};
use super::run::{Console, Manner, Meaning, Run};
use super::serial::Port;
use super::{Config, IMAGE, Kind, SERIAL};
use crate::event::Line;
use crate::image::{self, Kernel};
use crate::initramfs::Initramfs;
use crate::linux::{DEVICE_OPTION, NAME};
use crate::paths::Paths;
use crate::prefix::Tools;

/// What runs first; it ends with the initrd's own first process.
const FIRST: &str = "native";
const FIRST_SCRIPT: &str = include_str!("../../../tests/linux/native");

/// What the kernel says when it gives up. The machine stays on then.
const PANIC: &str = "Kernel panic - not syncing: ";

/// Linux' command line: the console with warnings; remapping; what a Linux in an emulator need neither mitigate nor calibrate nor test;
/// and, cleared, features that the model's CPUID has and Bochs carries out wrong.
const OPTIONS: [&str; 13] = [
    "console=ttyS0,115200",
    "loglevel=5",
    "rdinit=/native",
    "intel_iommu=on",
    "mitigations=off",
    "no_timer_check",
    "tsc=reliable",
    "vt.global_cursor_default=0",
    "cryptomgr.notests",
    "no5lvl",
    "ibt=off",
    "clearcpuid=fsrm,amx_tile,amx_int8,amx_bf16,user_shstk,shstk",
    "initcall_blacklist=jent_mod_init,load_system_certificate_list,init_kprobe_trace,trace_eval_init",
];

/// The first process's word for a user's program with shared virtual addressing; the plugin's option for what that takes.
pub const SVA: &str = "sva=yes";
const SVA_OPTION: &str = "sva";

/// The whole command line. A later word is heeded instead of an earlier one, so what is appended counts.
fn options(append: &[String]) -> Vec<String> {
    let clock = format!("tsc_early_khz={}", IPS / 1000);
    OPTIONS.map(str::to_owned).into_iter().chain([clock]).chain(append.iter().cloned()).collect()
}

/// An archive with the first script, to follow an initrd: Linux unpacks one after another.
fn with_first_script(mut initrd: Vec<u8>) -> Result<Vec<u8>> {
    let mut archive = Initramfs::default();
    archive.program(FIRST, FIRST_SCRIPT.into());
    // An archive begins at a multiple of 4; zeros before it are passed over.
    initrd.resize(initrd.len().next_multiple_of(4), 0);
    initrd.extend(archive.bytes()?);
    Ok(initrd)
}

/// Boots a Linux on Bochs with our plugin. The initrd's `/init` reports in a line `@result …`. `append` comes behind the words that the
/// command line has.
pub fn start(
    paths: &Paths,
    tools: &Tools,
    config: &Config,
    kernel: &Path,
    initrd: &Path,
    append: &[String],
) -> Result<Run> {
    let directory = paths.new_run()?;
    let grub = tools.grub.as_ref().context("no GRUB was looked for")?;
    let initrd = fs::read(initrd).with_context(|| format!("cannot read {}", initrd.display()))?;
    let kernel = Kernel { image: kernel.to_owned(), initrd: with_first_script(initrd)?, options: options(append) };
    let tree = directory.join("cd");
    image::write_linux_cd(grub, &kernel, &tree, &directory, &directory.join(IMAGE))?;
    fs::remove_dir_all(&tree).with_context(|| format!("cannot remove {}", tree.display()))?;
    Ok(bochs::start_with(&[Port::File(SERIAL)], MANNER, tools, &around(config, append), directory)?
        .counting(Kind::Bochs.unit()))
}

/// The machine around Linux. Where its first process is to use shared virtual addressing, the devices have what that takes.
fn around(config: &Config, append: &[String]) -> Config {
    // Linux reads registers that Bochs lacks; a line each makes a large log.
    let extra = [config.extra.clone(), vec!["error: action=ignore".to_owned()]].concat();
    let sva = append.iter().any(|word| word == SVA).then(|| SVA_OPTION.to_owned());
    let known = [DEVICE_OPTION.to_owned()];
    let plugin_options = config.plugin_options.iter().cloned().chain(known).chain(sva).collect();
    Config { extra, plugin_options, ..config.clone() }
}

const MANNER: Manner =
    Manner { consoles: &[Console { file: SERIAL, parse: of_linux }], meaning, ..Manner::alone(bochs::inquest) };

/// A line on Linux' console.
fn of_linux(line: &str) -> Line {
    if line.starts_with("@result") { Line::parse(&format!("[{NAME}] {line}")) } else { Line::Text(line.to_owned()) }
}

fn meaning(line: &Line) -> Meaning {
    match line {
        Line::Text(text) => match text.split_once(PANIC) {
            Some((_, why)) => Meaning::Dead(format!("Linux panicked: {why}")),
            None => Meaning::Nothing,
        },
        _ => Meaning::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_appended_comes_last() {
        let options = options(&["intel_iommu=on,sm_on".to_owned()]);
        assert_eq!(options.last().map(String::as_str), Some("intel_iommu=on,sm_on"));
        for word in ["intel_iommu=on", "rdinit=/native", "tsc_early_khz=200000"] {
            assert!(options.iter().any(|other| other == word), "{word}");
        }
    }

    #[test]
    fn the_first_script_follows_the_initrd() {
        let both = with_first_script(b"070707".to_vec()).unwrap();
        assert_eq!(both[..8], *b"070707\0\0");
        let entries = crate::initramfs::tests::read(&both[8..]);
        assert_eq!((entries[0].0.as_str(), entries[0].1), (FIRST, 0o100_755));
        assert!(FIRST_SCRIPT.contains("exec /init"));
    }

    #[test]
    fn the_first_process_reports_and_a_panic_ends_the_run() {
        let Line::Result { guest, pairs } = of_linux("@result handled=3") else { panic!("no result") };
        assert_eq!((guest.as_str(), pairs.number("handled")), (NAME, Some(3)));
        let panic = of_linux("[    1.2] Kernel panic - not syncing: VFS: Unable to mount root fs");
        assert_eq!(meaning(&panic), Meaning::Dead("Linux panicked: VFS: Unable to mount root fs".into()));
        assert_eq!(meaning(&of_linux("init: up")), Meaning::Nothing);
    }
}
