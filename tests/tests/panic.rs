//! A panic, and machine checks, on several processors. QEMU emulates no VT-x, so the hypervisor refuses the machine and every processor
//! stops; then QEMU's monitor gives them what hardware gives a machine whose memory fails.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use imsvisor_boot::machine::{self, Config, End, Kind, Outcome};
use imsvisor_boot::words::harmless;
use imsvisor_tests::bench;
use imsvisor_tests::picture::{Picture, monitor};
use serde_json::json;

const SILENCE: Duration = Duration::from_secs(120);
const LIMIT: Duration = Duration::from_secs(300);

/// A machine check at the first processor, in bank 9: IA32_MCi_STATUS with VAL, UC, EN and PCC (the processor's context is corrupt), and
/// IA32_MCG_STATUS with RIPV and MCIP. The others get one of their own with VAL and UC, as hardware tells it to all. QEMU resets the
/// machine if one of them has CR4.MCE off.
const FATAL: &str = "mce -b 0 9 0xb200000000000000 5 0 0";

/// A machine check of the same kind without PCC at the first processor: an error that needs no action.
const HARMLESS: &str = "mce -b 0 9 0xb000000000000000 5 0 0";

/// One more at one processor alone, as above but with S and AR: another processor has to act. QEMU resets the machine if the processor has
/// not served the one before (IA32_MCG_STATUS.MCIP).
const REPEATED: [&str; 2] = ["mce 1 1 0xb180000000000000 5 0 0", "mce 2 1 0xb180000000000000 5 0 0"];

/// QEMU tells machine checks to all processors as Intel does, from family 6, model 14 on.
const BROADCASTS: [&str; 2] = ["-cpu", "max,vendor=GenuineIntel,family=6,model=143"];

/// What a machine has said when it has panicked.
struct Seen {
    console: String,
    screen: String,
    outcome: Outcome,
}

impl Seen {
    fn told(&self) -> String {
        format!("{}\n{}; {}", self.screen, harmless(&self.console), self.outcome.end)
    }
}

/// Boots the hypervisor on three processors. When it has refused, the monitor gets these commands, the last of which makes it panic.
fn boot(extra: &[&str], commands: &[&str]) -> Result<Option<Seen>> {
    let Some(tools) = bench::qemu_tools()? else { return Ok(None) };
    let extra = BROADCASTS.iter().chain(extra).map(|&word| word.to_owned()).collect();
    let config = Config { screen: true, cpus: 3, extra, silence: SILENCE, limit: LIMIT, ..Config::default() };
    let mut run = machine::start_on(Kind::Tcg, bench::paths()?, tools, &config, bench::hypervisor()?, &[])?;
    let mut texts = None;
    while let Some(line) = run.next() {
        if line.line.event("done").is_some() && texts.is_none() {
            commands.iter().try_for_each(|command| give(run.directory(), command))?;
            let console = || Ok(fs::read_to_string(run.directory().join(machine::SERIAL))?);
            let console = wait(console, |console| console.matches("@ims done").count() == 2)?;
            let screen = wait(|| Ok(Picture::take(run.directory())?.text()), |screen| screen.contains("have stopped"))?;
            texts = Some([console, screen]);
        }
    }
    let [console, screen] = texts.context("it was never done")?;
    Ok(Some(Seen { console, screen, outcome: run.finish() }))
}

/// Gives the monitor a command for people, which answers only if something is wrong, and the processors time to do what comes of it.
fn give(directory: &Path, command: &str) -> Result<()> {
    let answer = monitor(directory, "human-monitor-command", &json!({ "command-line": command }))?;
    ensure!(answer == "", "{command}: {answer}");
    thread::sleep(Duration::from_millis(200));
    Ok(())
}

/// The text as soon as it is whole; after half a minute, as it is.
fn wait(text: impl Fn() -> Result<String>, is_whole: impl Fn(&str) -> bool) -> Result<String> {
    for _ in 0..300 {
        let text = text()?;
        if is_whole(&text) {
            return Ok(text);
        }
        thread::sleep(Duration::from_millis(100));
    }
    text()
}

/// The first processor has panicked, has said so on the console and on the screen, and `others` processors have stopped for it.
fn assert_panicked(seen: &Seen, others: usize) {
    let stopped = format!("{others} of {others} other processors have stopped");
    for words in ["machine check: IA32_MCG_STATUS 0x5, bank 9 status 0xb200000000000000", &stopped] {
        assert_eq!(seen.console.matches(words).count(), 1, "the console lacks {words}:\n{}", seen.told());
        assert!(seen.screen.contains(words), "the screen lacks {words}:\n{}", seen.told());
    }
    assert_eq!(seen.console.matches("machine check:").count(), 1, "{}", seen.told());
    assert_eq!(seen.outcome.end, End::LeftOn, "{}", seen.told());
}

#[test]
fn in_a_panic_all_processors_stop_and_its_words_are_on_the_console_and_on_the_screen() {
    let Some(seen) = boot(&[], &[FATAL]).expect("a boot") else { return };
    assert_panicked(&seen, 2);
}

#[test]
fn a_machine_check_that_asks_for_nothing_stops_nobody() {
    let Some(seen) = boot(&[], &[HARMLESS, REPEATED[0], REPEATED[1], FATAL]).expect("a boot") else { return };
    assert_panicked(&seen, 2);
}

/// Without execute-disable, on a processor that is not Intel's, the code at the start-up page gives up: that processor never gets tables
/// from the hypervisor.
#[test]
fn a_processor_that_was_never_let_in_survives_machine_checks() {
    let unfit = "max-x86_64-cpu,socket-id=0,core-id=2,thread-id=0,vendor=AuthenticAMD,nx=off";
    let extra = ["-smp", "2,maxcpus=3,sockets=1,cores=3,threads=1", "-device", unfit];
    let Some(seen) = boot(&extra, &[HARMLESS, REPEATED[1], FATAL]).expect("a boot") else { return };
    assert!(seen.console.contains("processor 2 does not start"), "{}", seen.told());
    assert_panicked(&seen, 1);
}
