//! The image for real machines on QEMU, by BIOS and by UEFI: what a person in front of the machine sees, and where else it reports. QEMU
//! emulates no VT-x, so what there is to see is a refusal.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use imsvisor_boot::machine::{self, Config, End, Kind, Outcome};
use imsvisor_boot::prefix::Ovmf;
use imsvisor_boot::words::harmless;
use imsvisor_tests::bench::{self, Once};
use imsvisor_tests::picture::{Picture, monitor};
use serde_json::json;

/// UEFI takes ten seconds on a machine that has nothing else to do.
const SILENCE: Duration = Duration::from_secs(120);
const LIMIT: Duration = Duration::from_secs(300);

/// The last line on the screen.
const LAST: &str = "This was the last line";

/// What a person saw, and what came of the run.
struct Seen {
    /// The text on the screen.
    screen: String,
    outcome: Outcome,
}

impl Seen {
    fn told(&self) -> String {
        format!("{}\n{}; logs: {}", self.screen, harmless(&self.outcome.console()), self.outcome.directory.display())
    }
}

/// Arguments by which QEMU starts UEFI firmware. The file of its variables is not kept.
fn uefi(ovmf: &Ovmf) -> Vec<String> {
    let drive =
        |unit: u8, file: &Path, how: &str| format!("if=pflash,format=raw,unit={unit},file={},{how}", file.display());
    let drives = [drive(0, &ovmf.code, "readonly=on"), drive(1, &ovmf.variables, "snapshot=on")];
    drives.into_iter().flat_map(|drive| ["-drive".to_owned(), drive]).collect()
}

/// Boots the image, and looks at the screen when the hypervisor has said that it is done.
fn boot(words: &[&str], extra: Vec<String>) -> Result<Option<Seen>> {
    let Some(tools) = bench::qemu_tools()? else { return Ok(None) };
    let hypervisor_options = words.iter().map(|word| (*word).to_owned()).collect();
    let config =
        Config { screen: true, hypervisor_options, extra, silence: SILENCE, limit: LIMIT, ..Config::default() };
    let mut run = machine::start_on(Kind::Tcg, bench::paths()?, tools, &config, bench::hypervisor()?, &[])?;
    let mut screen = None;
    while let Some(line) = run.next() {
        if line.line.event("done").is_some() {
            screen = Some(look(|| Ok(Picture::take(run.directory())?.text()))?);
        }
    }
    let outcome = run.finish();
    let screen =
        screen.with_context(|| format!("it was never done: {}\n{}", outcome.end, harmless(&outcome.console())))?;
    Ok(Some(Seen { screen, outcome }))
}

/// The screen's text, once it has the last line. It is painted while the serial line still carries the same.
fn look(screen: impl Fn() -> Result<String>) -> Result<String> {
    for _ in 0..20 {
        let text = screen()?;
        if text.contains(LAST) {
            return Ok(text);
        }
        thread::sleep(Duration::from_millis(100));
    }
    screen()
}

fn by_bios() -> Option<&'static Seen> {
    static SEEN: Once<Option<Seen>> = Once::new();
    SEEN.get(|| boot(&[], Vec::new())).expect("a boot by BIOS").as_ref()
}

fn by_uefi() -> Option<&'static Seen> {
    static SEEN: Once<Option<Seen>> = Once::new();
    let booted = SEEN.get(|| bench::ovmf()?.map_or(Ok(None), |ovmf| boot(&["console=com2"], uefi(ovmf))));
    booted.expect("a boot by UEFI").as_ref()
}

/// The serial line and the screen tell the same: the refusal, in words, and the end.
fn reports_the_refusal(seen: &Seen) {
    let refused = seen.outcome.lines.iter().find_map(|line| line.line.event("refused"));
    let why = refused.and_then(|refused| refused.get("why")).unwrap_or_else(|| panic!("{}", seen.told()));
    assert!(why.contains("no VMX"), "{why}");
    let text = &seen.screen;
    for words in [
        &format!("refused what=vmx why=\"{why}\""),
        concat!("imsvisor ", env!("CARGO_PKG_VERSION")),
        "machine cpu=",
        "done status=failed",
        LAST,
    ] {
        assert!(text.contains(words), "the screen lacks {words}:\n{}", seen.told());
    }
    assert!(!text.contains("@ims"), "that is for the launcher:\n{text}");
    assert!(!text.contains('\u{fffd}'), "something else is on the screen:\n{text}");
    assert_eq!(seen.outcome.end, End::LeftOn, "{}", seen.told());
}

#[test]
fn by_bios_a_person_reads_on_the_screen_why_it_does_not_run() {
    let Some(seen) = by_bios() else { return };
    reports_the_refusal(seen);
    assert!(seen.screen.contains("console: COM1, 115200 baud"), "{}", seen.told());
}

#[test]
fn by_uefi_a_person_reads_on_the_screen_why_it_does_not_run() {
    let Some(seen) = by_uefi() else { return };
    reports_the_refusal(seen);
}

#[test]
fn the_console_is_where_the_command_line_says() {
    let Some(seen) = by_uefi() else { return };
    // The launcher reads COM2.
    assert!(seen.outcome.console().contains("COM2, 115200 baud, as the command line says"), "{}", seen.told());
}

/// Firmware that uses paging of 5 levels leaves CR4.LA57 set, or may.
#[test]
fn by_uefi_on_a_processor_with_57_bit_addresses() {
    let Some(ovmf) = bench::ovmf().expect("UEFI firmware") else { return };
    let cpu = ["-cpu", "max,la57=on,phys-bits=52"].map(str::to_owned);
    if let Some(seen) = boot(&[], [uefi(ovmf), cpu.to_vec()].concat()).expect("a boot") {
        reports_the_refusal(&seen);
    }
}

/// A table SPCR without its header: a 16550 at COM2's I/O ports, at 9,600 baud.
fn console_on_com2() -> Vec<u8> {
    let mut body = vec![0; 44];
    body[4..8].copy_from_slice(&[1, 8, 0, 1]);
    body[8..16].copy_from_slice(&0x2f8u64.to_le_bytes());
    body[22] = 3;
    body
}

#[test]
fn without_a_word_the_console_is_where_the_firmware_says() {
    let directory = tempfile::tempdir().expect("a directory");
    let table = directory.path().join("spcr");
    fs::write(&table, console_on_com2()).expect("a table");
    let table = format!("sig=SPCR,rev=2,data={}", table.display());
    // The second port's file is the one that the launcher reads; nobody writes to the first one.
    let extra = ["-acpitable", &table, "-serial", "file:serial.log"].map(str::to_owned);
    let Some(seen) = boot(&[], extra.to_vec()).expect("a boot") else { return };
    reports_the_refusal(&seen);
    let told = "console: COM2, 9600 baud, as the firmware's table SPCR says";
    assert!(seen.outcome.console().contains(told) && seen.screen.contains(told), "{}", seen.told());
}

/// What a text screen's memory holds.
fn text_screen(directory: &Path) -> Result<String> {
    const FILE: &str = "text.bin";
    monitor(directory, "pmemsave", &json!({ "val": 0xb8000, "size": 80 * 25 * 2, "filename": FILE }))?;
    let bytes = fs::read(directory.join(FILE))?;
    let line = |cells: &[u8]| {
        let text: String = cells.chunks(2).map(|cell| char::from(cell[0])).collect();
        if text.ends_with(' ') { format!("{}\n", text.trim_end()) } else { text }
    };
    Ok(bytes.chunks(160).map(line).collect())
}

/// As on a PC whose boot loader sets no other mode.
#[test]
fn on_a_screen_of_text_the_same_can_be_read() {
    let Some(tools) = bench::qemu_tools().expect("QEMU") else { return };
    let monitor = format!("unix:{},server=on,wait=off", machine::MONITOR);
    // The machine goes on when it is switched off.
    let extra = ["-qmp", &monitor, "-device", machine::SCREEN, "-action", "shutdown=pause"].map(str::to_owned).to_vec();
    let hypervisor_options = vec!["screen=on".to_owned()];
    let config = Config { hypervisor_options, extra, silence: SILENCE, limit: LIMIT, ..Config::default() };
    let start = || machine::start_on(Kind::Tcg, bench::paths()?, tools, &config, bench::hypervisor()?, &[]);
    let mut run = start().expect("a boot");
    let mut text = String::new();
    while let Some(line) = run.next() {
        if line.line.event("done").is_some() {
            text = look(|| text_screen(run.directory())).expect("the screen's memory");
        }
    }
    let outcome = run.finish();
    for words in ["refused what=vmx", "no VMX", "done status=failed", LAST] {
        assert!(text.contains(words), "the screen lacks {words}:\n{text}\n{}", harmless(&outcome.console()));
    }
}
