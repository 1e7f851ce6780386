//! The launcher's output for a person: the live lines, and the report at the end.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Result, bail};
use console::{StyledObject, Term, style};

use crate::event::{Event, Line, Pairs};
use crate::guest::{self, GuestArg};
use crate::linux;
use crate::machine::{Outcome, Seen};
use crate::native::Native;
use crate::report::{Guest, Summary, Verdict};
use crate::words::{grouped, grub_quote, harmless};

/// Faults that are shown one by one; the rest is only counted.
const FAULTS_SHOWN: usize = 8;
/// Lines that are shown again after a hang.
const LAST_LINES: usize = 20;

/// Shows lines as they come.
#[derive(Debug, Default)]
pub struct Show {
    verbose: bool,
    quiet: bool,
    faults: usize,
}

impl Show {
    /// With `verbose` every line is shown as the machine wrote it, with `quiet` none.
    pub fn new(verbose: bool, quiet: bool) -> Self {
        Self { verbose, quiet, faults: 0 }
    }

    /// Shows one line.
    pub fn line(&mut self, seen: &Seen) {
        let text = match (self.quiet, self.verbose) {
            (true, _) => None,
            (_, true) => Some(harmless(&seen.raw)),
            _ => self.pretty(&seen.line),
        };
        if let Some(text) = text {
            let time = style(format!("{:>7.2} s", seen.at.as_secs_f32())).dim();
            say(&format!("{time}  {text}"));
        }
    }

    fn pretty(&mut self, line: &Line) -> Option<String> {
        match line {
            Line::Event(event) => self.event(event),
            Line::Nested(event) => level(event),
            Line::Linux(_) => None,
            // Its figures are in the report.
            Line::Result { .. } => None,
            Line::Guest { guest, text } => Some(format!("{} {}", style(format!("[{guest}]")).cyan(), harmless(text))),
            Line::Text(text) if text.trim().is_empty() => None,
            Line::Text(text) => Some(style(harmless(text)).dim().to_string()),
            Line::Broken { line, why } => Some(bad(format!("{} ({why})", harmless(line))).to_string()),
        }
    }

    fn event(&mut self, event: &Event) -> Option<String> {
        let pairs = &event.pairs;
        let value = |key: &str| harmless(pairs.get(key).unwrap_or("?"));
        match event.name.as_str() {
            "boot" => Some(style(format!("imsvisor {} is up", value("version"))).bold().to_string()),
            "machine" => Some(format!(
                "{}, {} MiB, {} remapping unit(s), {} device(s) with IMS",
                value("cpu"),
                value("memory_mib"),
                value("vtd_units"),
                value("ims_devices")
            )),
            "refused" => Some(style(format!("refused: {}: {}", value("what"), value("why"))).yellow().to_string()),
            "guest-start" => {
                let what = format!("guest {} starts with {} MiB", value("name"), value("memory_mib"));
                Some(format!("{} {}", good("▶"), style(what).bold()))
            }
            "guest-end" => Some(guest_end(pairs)),
            "mitigation" => open_attack(pairs),
            "fault" => self.fault(pairs),
            // Shown in the report.
            "exits" | "interrupts" | "mark" | "remap" | "done" => None,
            name => Some(format!("{} {}", harmless(name), harmless(&pairs.to_string()))),
        }
    }

    fn fault(&mut self, pairs: &Pairs) -> Option<String> {
        self.faults += 1;
        match self.faults {
            ..=FAULTS_SHOWN => Some(style(format!("fault: {}", harmless(&pairs.to_string()))).yellow().to_string()),
            number if number == FAULTS_SHOWN + 1 => Some(style("more faults are only counted").yellow().to_string()),
            _ => None,
        }
    }
}

/// An attack on the processor that nothing closes. The others are told with `--verbose`.
fn open_attack(pairs: &Pairs) -> Option<String> {
    let value = |key: &str| harmless(pairs.get(key).unwrap_or("?"));
    let is_open = pairs.get("state") == Some("open");
    is_open.then(|| style(format!("open to {}: {}", value("attack"), value("why"))).dim().to_string())
}

/// How far the machine around the machine is.
fn level(event: &Event) -> Option<String> {
    let what = match event.name.as_str() {
        "boot" => "Linux boots in the emulator",
        "linux" => "Linux is up and loads KVM",
        "kvm" => "KVM is loaded",
        "qemu" => "QEMU starts",
        _ => return None,
    };
    let up = event.pairs.get("up").map(|up| format!(" ({} s on its own clock)", harmless(up))).unwrap_or_default();
    Some(style(format!("{what}{up}")).dim().to_string())
}

fn guest_end(pairs: &Pairs) -> String {
    let value = |key: &str| harmless(pairs.get(key).unwrap_or("?"));
    let right = pairs.get("reason") == Some("exit") && pairs.number("code") == Some(0);
    let text = format!("guest {} ends: {}, code {}", value("name"), value("reason"), value("code"));
    let mark = if right { good("■") } else { bad("■") };
    format!("{mark} {}", style(text).bold())
}

/// Says how a run is debugged: `gdb` is the socket of QEMU's stub for GDB; without one Bochs' own debugger has the terminal.
pub fn debugger(gdb: Option<&Path>, hypervisor: &Path) {
    say(&style(how_to_debug(gdb, hypervisor)).bold().to_string());
}

fn how_to_debug(gdb: Option<&Path>, hypervisor: &Path) -> String {
    let hypervisor = hypervisor.display();
    match gdb {
        Some(socket) => format!(
            "The machine waits: gdb -ex 'target remote {}' {hypervisor}; continue lets it go on, kill ends it.",
            socket.display()
        ),
        None => format!(
            "This terminal is the debugger of Bochs: c goes on, Ctrl-C stops, r shows registers, u disassembles, q ends, help tells \
             the rest. Addresses of the hypervisor are those of objdump -d {hypervisor}"
        ),
    }
}

/// Says that the terminal is a guest's from now on, and how to leave it.
pub fn terminal(guest: &str) {
    say(&style(format!("This terminal is the serial port of {}. Ctrl-] ends the run.", harmless(guest)))
        .bold()
        .to_string());
}

/// Says that a run was ended at the terminal or the debugger.
pub fn asked(outcome: &Outcome) {
    say(&format!("\n  the run was ended by hand; logs: {}", outcome.directory.display()));
}

fn good<T>(text: T) -> StyledObject<T> {
    style(text).green()
}

fn bad<T>(text: T) -> StyledObject<T> {
    style(text).red()
}

/// Why something could not be written, the first time.
static UNWRITTEN: OnceLock<String> = OnceLock::new();

/// A line on standard output.
fn say(text: &str) {
    note(writeln!(std::io::stdout(), "{text}"));
}

/// A reader that has left is no failure; a full disk is one.
fn note(written: io::Result<()>) {
    if let Err(error) = written
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        // The first reason counts.
        let _ = UNWRITTEN.set(error.to_string());
    }
}

/// Fails if something that was to be shown could not be written.
pub fn all_was_written() -> Result<()> {
    match UNWRITTEN.get() {
        None => Ok(()),
        Some(why) => bail!("cannot write to standard output: {why}"),
    }
}

/// How far the report's second column is indented.
const INDENT: usize = 17;

/// A row of the report, with lines no longer than the terminal and broken between words.
fn row(label: &str, text: &str, width: Option<usize>) -> String {
    let first = format!("  {:<14} ", style(label).dim());
    let indent = " ".repeat(INDENT);
    let Some(width) = width.filter(|width| *width > 2 * INDENT) else { return first + text };
    let options = textwrap::Options::new(width)
        .initial_indent(&first)
        .subsequent_indent(&indent)
        .break_words(false)
        .word_splitter(textwrap::WordSplitter::NoHyphenation);
    textwrap::fill(text, options)
}

/// Columns of the terminal, if standard output is one.
fn terminal_width() -> Option<usize> {
    let terminal = Term::stdout();
    terminal.is_term().then(|| terminal.size_checked()).flatten().map(|(_, columns)| columns.into())
}

/// Shows the report, and after a run that was not right what helps to find out why.
pub fn report(summary: &Summary, verdict: &Verdict, outcome: &Outcome) {
    judged(&rows(summary), &verdict.failures, outcome);
}

/// The same of a Linux on the machine itself.
pub fn native(native: &Native, failures: &[String], outcome: &Outcome) {
    let rows: Vec<Row> = native.rows().into_iter().map(|(label, text)| (label, harmless(&text))).collect();
    judged(&rows, failures, outcome);
}

/// `rows` have nothing in them that a terminal would obey but styles of ours.
fn judged(rows: &[Row], failures: &[String], outcome: &Outcome) {
    say(&style("\n  Report").bold().to_string());
    let width = terminal_width();
    for (label, text) in rows {
        say(&row(label, text, width));
    }
    if failures.is_empty() {
        say(&format!("\n  {} the run was right ({:.1} s)", good("✔"), outcome.wall.as_secs_f32()));
        return;
    }
    say(&format!("\n  {} the run was not right:", bad("✘")));
    for failure in failures {
        say(&format!("    {} {}", bad("•"), harmless(failure)));
    }
    if let Some(hint) = outcome.end.hint() {
        say(&format!("    {hint}"));
    }
    if !outcome.end.is_right() {
        last_lines(outcome);
    }
    say(&format!("\n  logs: {}", outcome.directory.display()));
}

fn last_lines(outcome: &Outcome) {
    say("\n  the last lines:");
    let mut any = false;
    for line in outcome.last_lines(LAST_LINES) {
        say(&format!("    {}", harmless(line)));
        any = true;
    }
    if !any {
        say("    (none)");
    }
}

/// Shows the report as JSON.
pub fn json(report: &serde_json::Value) {
    say(&format!("{report:#}"));
}

/// Shows what would be booted: the guests' strings, as the hypervisor will read them.
pub fn plan(machine: &str, guests: &[GuestArg]) {
    say(machine);
    for guest in guests {
        say(&format!("guest {}", guest.string()));
    }
}

/// Lists guests: each with its name and what its source says that it is.
pub fn guests(known: &BTreeMap<String, PathBuf>) {
    let width = terminal_width();
    for (name, source) in known {
        let text = std::fs::read_to_string(source).unwrap_or_default();
        say(&row(name, &guest::about(&text), width));
    }
    say(&row(linux::NAME, linux::ABOUT, width));
}

/// Says where an image was written to, and what to do with it. `reports` is where the hypervisor will report.
pub fn image(file: &Path, reports: &str) {
    say(&format!("{} {}: boots by BIOS or UEFI, from a CD or a stick", good("✔"), file.display()));
    image_rows(file, reports).iter().for_each(|line| say(&format!("  {line}")));
}

fn image_rows(file: &Path, reports: &str) -> [String; 4] {
    [
        format!("copy to a stick   sudo dd if={} of=/dev/sdX bs=4M conv=fsync", grub_quote(&file.to_string_lossy())),
        "                  (sdX is the whole stick, as lsblk names it; what is on it is lost)".to_owned(),
        "in the set-up     Secure Boot off; VT-x (Intel Virtualization Technology) and VT-d on".to_owned(),
        format!("reports on        {reports}; 8N1"),
    ]
}

type Row = (&'static str, String);

/// The report's lines: a label and a text.
fn rows(summary: &Summary) -> Vec<Row> {
    let mut rows = Vec::new();
    for guest in &summary.guests {
        rows.extend(guest_rows(guest, summary.unit));
    }
    let stations = summary.interrupts().stations();
    if !stations.is_empty() {
        let texts: Vec<String> = stations.iter().map(|(name, count)| format!("{} {name}", grouped(*count))).collect();
        rows.push(("interrupts", texts.join(" → ")));
        let (interrupts, mut others) = (summary.interrupts(), Vec::new());
        others.extend(Some(interrupts.aside.words()).filter(|words| !words.is_empty()));
        others.extend(interrupts.met_words());
        if interrupts.unseen() != 0 {
            others.push(format!("{} merged in the machine's local APIC, or lost", grouped(interrupts.unseen())));
        }
        if !others.is_empty() {
            rows.push(("of these", others.join(", ")));
        }
    }
    let number = |key: &str| summary.remap.number(key).map_or_else(|| "?".to_owned(), grouped);
    if summary.remap.iter().next().is_some() {
        let (live, most) = (number("live"), number("high_water"));
        let done = format!("{} programmed, {} flushes", number("programmed"), number("flushes"));
        rows.push(("entries", format!("{live} live at the end, {most} at most; {done}")));
        rows.push(("faults", format!("{} recorded{}", number("faults"), by_unit(summary))));
    }
    let has_unit = summary.machine.number("vtd_units").is_some_and(|units| units > 0);
    if has_unit && summary.machine.get("vtd_posting") == Some("no") {
        rows.push((
            "posting",
            "none: this machine's remapping unit cannot post, so all interrupts are injected".to_owned(),
        ));
    }
    rows.extend(summary.refused.iter().map(|text| ("refused", harmless(text))));
    rows
}

/// The faults that the unit counted itself. QEMU's trace has those of DMA only.
fn by_unit(summary: &Summary) -> String {
    let unit = |key: &str| summary.plugin.get(key).copied();
    match (unit("vtd.interrupt_faults"), unit("vtd.dma_faults")) {
        (Some(interrupt), Some(dma)) => format!(", {} by the remapping unit's own count", grouped(interrupt + dma)),
        (None, Some(dma)) => format!(", {} of DMA by the remapping unit's own count", grouped(dma)),
        _ => String::new(),
    }
}

fn guest_rows(guest: &Guest, unit: &str) -> Vec<Row> {
    let mut rows = vec![("guest", style(harmless(&guest.name)).bold().to_string())];
    let counted = |pairs: &Pairs, key: &str| pairs.number(key).map(grouped);
    if let Some(count) = counted(&guest.start, "entry_instructions") {
        rows.push(("start", format!("{count} {unit} from the hypervisor's entry to the guest's first instruction")));
    }
    if let Some(result) = &guest.result {
        rows.push(("work", work(result)));
    }
    if !guest.exits.is_empty() {
        rows.push(("VM exits", exits(guest)));
    }
    if let (Some(calls), Some(writes)) =
        (counted(&guest.interrupts, "hypercalls"), counted(&guest.interrupts, "trapped_writes"))
    {
        rows.push(("requests", format!("{calls} hypercalls, {writes} trapped writes")));
    }
    if guest.interrupts.get("posted") == Some("yes") {
        let exits = |reason: &str| guest.exits.get(reason).copied().unwrap_or(0);
        let by_interrupts = exits("external-interrupt") + exits("interrupt-window");
        let handled = guest.reported("handled").map_or_else(String::new, |handled| format!("{} ", grouped(handled)));
        rows.push((
            "delivery",
            format!("{handled}interrupts posted; VM exits by interrupts: {}", grouped(by_interrupts)),
        ));
    } else if let Some(delivered) = counted(&guest.interrupts, "delivered") {
        rows.push(("delivery", format!("{delivered} interrupts injected")));
    }
    if let Some(charged) = counted(&guest.time, "charged") {
        let building = counted(&guest.time, "building").unwrap_or_default();
        let lives =
            if guest.lives > 1 { format!("{} lives; in the last ", grouped(guest.lives)) } else { String::new() };
        rows.push((
            "time",
            format!("{lives}{charged} {unit} charged{}; {building} to make and release it", share(guest)),
        ));
    }
    rows.extend(guest.result.as_ref().and_then(of_linux).map(|text| ("of Linux", text)));
    rows
}

/// The part of a processor's time that a guest's last life had, from its first instruction to its end. With several virtual processors it can be
/// more than all of one.
fn share(guest: &Guest) -> String {
    let ticks = guest.end.as_ref().and_then(|end| end.number("ticks")).filter(|ticks| *ticks != 0);
    let percent = ticks.zip(guest.time.number("charged")).map(|(ticks, charged)| charged.saturating_mul(100) / ticks);
    percent.map_or_else(String::new, |percent| format!(", {percent} % of a processor"))
}

/// What a Linux says beside its work: its own count of interrupts, and what disturbed them.
fn of_linux(result: &Pairs) -> Option<String> {
    let closing = result.number("closing")?;
    let handled = result.number("handled")?;
    let some = |key: &str| result.number(key).filter(|count| *count != 0).map(grouped);
    let mut text = format!("{} interrupts of the device in /proc/interrupts", grouped(handled));
    if let Some(emulated) = some("emulated") {
        text.push_str(&format!(", and {emulated} that the hypervisor signals"));
    }
    if closing != 0 {
        text.push_str(&format!(", and {} when its driver lets the device go", grouped(closing)));
    }
    if let Some(moved) = some("moved") {
        text.push_str(&format!("; their processor was changed {moved} times"));
    }
    if some("replugged").is_some() {
        text.push_str("; CPU 1 was off and on again");
    }
    Some(text)
}

fn work(result: &Pairs) -> String {
    let number = |key: &str| result.number(key).map(grouped);
    match (number("descriptors"), number("verified"), number("bytes")) {
        (Some(done), Some(verified), Some(bytes)) => {
            let slots = number("slots").map(|slots| format!("; {slots} slots")).unwrap_or_default();
            let fired = number("slots_fired").map(|fired| format!(", {fired} of them fired")).unwrap_or_default();
            format!("{done} descriptors done, {verified} verified, {bytes} bytes{slots}{fired}")
        }
        // A guest of another kind reports what it likes.
        _ => harmless(&result.to_string()),
    }
}

/// VM exits, the most frequent first.
fn exits(guest: &Guest) -> String {
    let mut counts: Vec<_> = guest.exits.iter().filter(|(_, count)| **count > 0).collect();
    counts.sort_by_key(|(reason, count)| (std::cmp::Reverse(**count), reason.as_str().to_owned()));
    let texts: Vec<String> =
        counts.iter().map(|(reason, count)| format!("{} {}", harmless(reason), grouped(**count))).collect();
    let all = guest.exits.values().sum();
    format!("{} ({})", grouped(all), texts.join(", "))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::machine::End;

    #[test]
    fn an_images_last_lines_say_what_to_do_with_it() {
        let lines = image_rows(Path::new("/my images/x.iso"), "the screen and COM2 at 115200 baud").join("\n");
        for words in
            ["dd if='/my images/x.iso' of=/dev/sdX", "Secure Boot off", "VT-x", "VT-d", "the screen and COM2", "8N1"]
        {
            assert!(lines.contains(words), "{words}: {lines}");
        }
    }

    #[test]
    fn an_attack_is_told_of_only_where_it_is_open() {
        let shown = |line: &str| {
            let Line::Event(event) = Line::parse(line) else { panic!("{line}") };
            open_attack(&event.pairs).map(|text| console::strip_ansi_codes(&text).into_owned())
        };
        let open = "@ims mitigation attack=mds state=open why=\"mitigations=off\"";
        assert_eq!(shown(open).as_deref(), Some("open to mds: mitigations=off"));
        assert_eq!(shown("@ims mitigation attack=mds state=closed by=\"VERW\""), None);
        assert_eq!(shown("@ims mitigation attack=mds state=not-affected"), None);
    }

    fn outcome(console: &str) -> Outcome {
        let seen = |raw: &str| Seen { at: Duration::ZERO, raw: raw.to_owned(), line: Line::parse(raw) };
        Outcome {
            lines: console.lines().map(seen).collect(),
            end: End::Off,
            plugin: [("vtd.remapped".to_owned(), 1234)].into(),
            with_counters: true,
            counts_all: true,
            unit: crate::machine::INSTRUCTIONS,
            wall: Duration::ZERO,
            directory: "/".into(),
        }
    }

    fn text(console: &str) -> String {
        let rows = rows(&outcome(console).summary());
        rows.iter().map(|(label, text)| format!("{label}: {}\n", console::strip_ansi_codes(text))).collect()
    }

    #[test]
    fn the_report_holds_every_figure() {
        let text = text(
            "@ims guest-start guest=1 name=demo memory_mib=64 entry_instructions=1234567\n\
             [demo] @result descriptors=1000 bytes=4096 verified=999 slots=4 slots_fired=3 handled=10 errors=0\n\
             @ims exits guest=1 hlt=2 ept_violation=4000 vmcall=0\n\
             @ims interrupts guest=1 delivered=10 hypercalls=3 trapped_writes=5\n\
             @ims remap live=1 high_water=4 programmed=6 flushes=7 faults=8\n\
             @ims refused what=guest why=\"no memory\"\n",
        );
        for expected in [
            "1,234,567 instructions",
            "1,000 descriptors done, 999 verified, 4,096 bytes; 4 slots, 3 of them fired",
            "4,002 (ept_violation 4,000, hlt 2)",
            "3 hypercalls, 5 trapped writes",
            "1,234 remapped → 10 delivered → 10 handled",
            "1 live at the end, 4 at most; 6 programmed, 7 flushes",
            "faults: 8 recorded",
            "refused: guest: no memory",
        ] {
            assert!(text.contains(expected), "{expected}\n{text}");
        }
    }

    #[test]
    fn a_linux_reports_its_own_count_and_what_disturbed_it() {
        let start = "@ims guest-start guest=0 name=linux memory_mib=512\n[linux] @result descriptors=9 ";
        let quiet = text(&format!("{start}bytes=9 verified=9 handled=1012 closing=1 moved=0 replugged=0\n"));
        assert!(
            quiet.contains("of Linux: 1,012 interrupts of the device in /proc/interrupts, and 1 when its driver lets"),
            "{quiet}"
        );
        assert!(!quiet.contains("changed") && !quiet.contains("CPU 1"), "{quiet}");
        assert!(quiet.contains("1,013 handled"), "{quiet}");
        let disturbed =
            text(&format!("{start}bytes=9 verified=9 handled=12 emulated=3 closing=0 moved=40 replugged=1\n"));
        assert!(
            disturbed
                .contains("12 interrupts of the device in /proc/interrupts, and 3 that the hypervisor signals; their"),
            "{disturbed}"
        );
        assert!(disturbed.contains("changed 40 times; CPU 1 was off and on again"), "{disturbed}");
    }

    #[test]
    fn a_machine_that_counts_no_instructions_reports_none() {
        let mut outcome = outcome("@ims guest-start guest=1 name=x memory_mib=64 entry_instructions=1234567\n");
        outcome.unit = crate::machine::TICKS;
        let (_, text) = rows(&outcome.summary()).into_iter().find(|(label, _)| *label == "start").unwrap();
        assert_eq!(text, "1,234,567 TSC ticks from the hypervisor's entry to the guest's first instruction");
    }

    #[test]
    fn the_report_says_what_the_remapping_unit_cannot_and_did_not_count() {
        let of_qemu = text("@ims machine vtd_units=1 vtd_posting=no\n@ims remap faults=2\n");
        assert!(of_qemu.contains("posting: none"), "{of_qemu}");
        assert!(of_qemu.ends_with("faults: 2 recorded\nposting: none: this machine's remapping unit cannot post, so all interrupts are injected\n"), "{of_qemu}");
        for machine in ["vtd_units=1 vtd_posting=yes", "vtd_units=0 vtd_posting=no"] {
            assert!(!text(&format!("@ims machine {machine}\n")).contains("posting"), "{machine}");
        }
        let count = |keys: &[&str]| {
            let plugin = keys.iter().map(|key| ((*key).to_owned(), 3)).collect();
            by_unit(&Outcome { plugin, ..outcome("") }.summary())
        };
        assert_eq!(count(&["vtd.interrupt_faults", "vtd.dma_faults"]), ", 6 by the remapping unit's own count");
        assert_eq!(count(&["vtd.dma_faults"]), ", 3 of DMA by the remapping unit's own count");
        assert_eq!(count(&[]), "");
    }

    #[test]
    fn a_flood_of_faults_is_cut_short() {
        let mut show = Show::new(false, false);
        let line = Line::parse("@ims fault kind=dma sid=1 reason=2 address=3");
        let shown = (0..100).filter_map(|_| show.pretty(&line)).count();
        assert_eq!(shown, FAULTS_SHOWN + 1);
    }

    #[test]
    fn long_rows_are_broken_between_words_and_stay_in_their_column() {
        let text = "4,002 (ept-violation 4,000, external-interrupt 2)";
        let shown = row("VM exits", text, Some(40));
        let lines: Vec<_> = shown.lines().collect();
        assert_eq!(lines[0], "  VM exits       4,002 (ept-violation");
        assert_eq!(lines[1], "                 4,000,");
        assert_eq!(lines[2], "                 external-interrupt 2)");
        // Neither where there is no terminal nor on one that is too narrow for it.
        for width in [None, Some(20)] {
            assert_eq!(row("VM exits", text, width), format!("  VM exits       {text}"));
        }
    }

    #[test]
    fn a_reader_that_left_is_no_failure_and_a_full_disk_is() {
        note(Err(io::ErrorKind::BrokenPipe.into()));
        assert!(all_was_written().is_ok());
        note(writeln!(std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap(), "x"));
        let words = all_was_written().unwrap_err().to_string();
        assert!(words.starts_with("cannot write to standard output: "), "{words}");
    }

    #[test]
    fn a_guest_cannot_draw_on_the_terminal() {
        let mut show = Show::new(false, false);
        let shown = show.pretty(&Line::parse("[demo] \u{1b}]0;title\u{7}")).unwrap();
        assert!(!console::strip_ansi_codes(&shown).contains(['\u{1b}', '\u{7}']), "{shown:?}");
    }
}
