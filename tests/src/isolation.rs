//! What a hostile neighbour takes from a guest's time: the guest `thief` attacks in each phase in another way, and the guest `victim`, which computes
//! on the same processor, tells what it had.

use anyhow::{Context, Result, ensure};
use imsvisor_boot::event::{Line, Pairs};
use imsvisor_boot::machine::Outcome;

use crate::scenario::Plan;

/// The attacks, in their order.
pub const ATTACKS: u64 = 24;

/// Ticks that an interrupt may be late, and that a guest may wait for its turn: `sched::run_queue::LATENCY`.
pub const LATENCY: u64 = 4_000_000;

/// The part of its share that a guest keeps, in percent.
pub const KEPT: u64 = 90;

/// Attacks whose virtual processors on the victim's processor can run, so that half of it is theirs.
const RUN: [&str; 12] = [
    "restarts",
    "nmi-to-deaf",
    "fixed-to-asleep",
    "fixed-to-busy",
    "timers",
    "busy",
    "exits",
    "lines",
    "all-at-once",
    "device-to-asleep",
    "device-to-busy",
    "forged-to-asleep",
];

/// What became of the victim during an attack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attacked {
    /// The attack's name.
    pub attack: String,
    /// How often it was tried.
    pub tries: u64,
    /// The victim's share of the processor, in thousandths: what it is due, and what it had.
    pub due: u64,
    /// See `due`.
    pub had: u64,
    /// The longest time that the victim did not run, in ticks.
    pub gap: u64,
    /// The most ticks that an interrupt of the victim's timer was late.
    pub late: u64,
}

impl Attacked {
    /// Whether the victim kept its part, and its interrupts came in time.
    pub fn is_bounded(&self) -> bool {
        self.tries != 0 && self.had * 100 >= self.due * KEPT && self.gap <= LATENCY && self.late <= LATENCY
    }
}

/// Puts victim and thief on two processors: the thief has one for itself, and the victim's for every other of its eight virtual processors.
/// `options`: further ones of the thief's. `words`: for its command line.
pub fn set_up(plan: &mut Plan, options: &str, words: &str) -> Result<()> {
    plan.config.cpus = 2;
    plan.guest("victim", &format!("victim mem=32M cmdline=phases={ATTACKS}"))?;
    plan.guest("thief", &format!("thief mem=64M cpus=8 device=dsa {options} cmdline=\"cpus=8 device=yes {words}\""))
}

/// What came of all attacks.
pub fn read(outcome: &Outcome) -> Result<Vec<Attacked>> {
    let (phases, attacks) = (pairs(outcome, "@phase "), pairs(outcome, "@attack "));
    ensure!(
        phases.len() as u64 == ATTACKS && attacks.len() as u64 == ATTACKS,
        "not every attack was tried and told of"
    );
    phases.iter().zip(&attacks).map(|(phase, attack)| attacked(phase, attack)).collect()
}

fn attacked(phase: &Pairs, attack: &Pairs) -> Result<Attacked> {
    let number = |pairs: &Pairs, key: &str| pairs.number(key).with_context(|| format!("no {key}"));
    ensure!(number(phase, "number")? == number(attack, "number")?, "the phases are not the attacks'");
    let name = attack.get("name").context("an attack without a name")?.to_owned();
    let due = if RUN.contains(&name.as_str()) { 500 } else { 1000 };
    let [had, gap, late] = ["had", "gap", "late"].map(|key| number(phase, key));
    Ok(Attacked { attack: name, tries: number(attack, "tries")?, due, had: had?, gap: gap?, late: late? })
}

/// What guests wrote in lines that begin with `mark`.
fn pairs(outcome: &Outcome, mark: &str) -> Vec<Pairs> {
    let texts = outcome.lines.iter().filter_map(|seen| match &seen.line {
        Line::Guest { text, .. } => text.strip_prefix(mark),
        _ => None,
    });
    texts.filter_map(|text| Line::parse(&format!("@ims mark {text}")).event("mark").cloned()).collect()
}

/// A table for the terminal.
pub fn table(all: &[Attacked]) -> String {
    let mut text = format!(
        "\n  {:<18} {:>9} {:>8} {:>8} {:>12} {:>12}\n",
        "attack", "tries", "due, ‰", "had, ‰", "gap, ticks", "late, ticks"
    );
    for Attacked { attack, tries, due, had, gap, late } in all {
        text += &format!("  {attack:<18} {tries:>9} {due:>8} {had:>8} {gap:>12} {late:>12}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nine_tenths_of_the_share_and_a_slice_are_the_bounds() {
        let right = Attacked { attack: "busy".into(), tries: 1, due: 500, had: 450, gap: LATENCY, late: LATENCY };
        assert!(right.is_bounded());
        for wrong in [
            Attacked { had: 449, ..right.clone() },
            Attacked { gap: LATENCY + 1, ..right.clone() },
            Attacked { late: LATENCY + 1, ..right.clone() },
            Attacked { tries: 0, ..right.clone() },
        ] {
            assert!(!wrong.is_bounded(), "{wrong:?}");
        }
    }
}
