//! The console's figures: the guest's marks, and the guest's VM exits that the hypervisor reports after each.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use imsvisor_boot::event::{Line, Pairs};
use imsvisor_boot::machine::Outcome;

use super::Figure;

/// Exits that no scenario causes: the guest's console, and the end of its turn on the processor.
const ASIDE: [&str; 2] = ["io", "preemption-timer"];

/// The keys of a mark.
type Mark = BTreeMap<String, String>;

/// What the next `exits` event is for.
enum Next {
    Nothing,
    Begin,
    End(Mark),
}

/// All figures of a run, in their order.
pub fn read(outcome: &Outcome) -> Result<Vec<Figure>> {
    read_lines(outcome.lines.iter().map(|seen| &seen.line))
}

fn read_lines<'l>(lines: impl Iterator<Item = &'l Line>) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let (mut next, mut before) = (Next::Nothing, None);
    for line in lines {
        if let Line::Guest { text, .. } = line
            && let Some(mark) = text.strip_prefix("@mark ")
        {
            next = if mark == "begin" { Next::Begin } else { Next::End(keys(mark)) };
        }
        let Some(exits) = line.event("exits").map(count) else { continue };
        match std::mem::replace(&mut next, Next::Nothing) {
            Next::Nothing => {}
            Next::Begin => before = Some(exits),
            Next::End(mark) => {
                let before = before.take().context("a mark without a beginning")?;
                let figure = figure(&mark, exits - before).with_context(|| format!("a mark: {mark:?}"))?;
                figures.push(figure);
            }
        }
    }
    relate(&mut figures)?;
    Ok(figures)
}

fn keys(mark: &str) -> Mark {
    let pairs = mark.split_ascii_whitespace().filter_map(|word| word.split_once('='));
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn count(exits: &Pairs) -> u64 {
    let reasons = exits.iter().filter(|(key, _)| *key != "guest" && !ASIDE.contains(key));
    reasons.filter_map(|(key, _)| exits.number(key)).sum()
}

fn figure(mark: &Mark, exits: u64) -> Result<Figure> {
    let text = |key: &str| mark.get(key).cloned().with_context(|| format!("no {key}"));
    let number = |key: &str| text(key)?.parse::<u64>().with_context(|| key.to_owned());
    let ops = number("ops")?;
    if ops == 0 || number("marked")? == 0 {
        bail!("no operations");
    }
    let each = |key: &str| Ok::<_, anyhow::Error>(number(key)? as f64 / ops as f64);
    Ok(Figure {
        scenario: text("scenario")?,
        variant: text("variant")?,
        slots: number("slots")?,
        vcpus: number("vcpus")?,
        ops: ops * number("rounds")?,
        exits_per_op: exits as f64 / (ops * number("marked")?) as f64,
        min: each("min")?,
        median: each("median")?,
        p99: each("p99")?,
        null_exit: 0.0,
    })
}

/// Puts the exit that does nothing beside all of them.
fn relate(figures: &mut [Figure]) -> Result<()> {
    let null = figures.iter().find(|figure| figure.scenario == "null-exit" && figure.variant == "cpuid");
    let floor = null.map(|figure| figure.median).filter(|&median| median > 0.0).context("no null exit was measured")?;
    figures.iter_mut().for_each(|figure| figure.null_exit = floor);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = "\
[bench] @mark begin
@ims exits guest=0 cpuid=100 io=50 vmcall=2
[bench] @mark scenario=null-exit variant=cpuid slots=0 vcpus=1 ops=16 rounds=256 marked=1 min=6000 median=6400 p99=8000
@ims exits guest=0 cpuid=116 io=250 vmcall=2 preemption-timer=1
[bench] @mark begin
@ims exits guest=0 cpuid=116 io=280 vmcall=7
[bench] @mark scenario=map-16 variant=hypercall slots=16 vcpus=1 ops=16 rounds=4 marked=2 min=16 median=3200 p99=4000
@ims exits guest=0 cpuid=116 io=500 vmcall=9
@ims exits guest=0 cpuid=116 io=600 vmcall=900
";

    fn read_text(console: &str) -> Result<Vec<Figure>> {
        let lines: Vec<_> = console.lines().map(Line::parse).collect();
        read_lines(lines.iter())
    }

    #[test]
    fn exits_between_marks_count_but_for_the_console_s() {
        let figures = read_text(CONSOLE).unwrap();
        let [cpuid, map] = figures.as_slice() else { panic!("{figures:?}") };
        assert_eq!((cpuid.exits_per_op, cpuid.ops, cpuid.min, cpuid.ratio()), (1.0, 4096, 375.0, 1.0));
        assert_eq!((map.exits_per_op, map.ops, map.median, map.ratio()), (0.0625, 64, 200.0, 0.5));
    }

    #[test]
    fn a_mark_that_lacks_something_is_an_error() {
        for (from, to) in [("ops=16 rounds=256", "ops=0 rounds=256"), ("p99=8000", ""), ("vcpus=1", "vcpus=x")] {
            assert!(read_text(&CONSOLE.replacen(from, to, 1)).is_err(), "{from}");
        }
        let without_begin = CONSOLE.replacen("[bench] @mark begin\n", "", 1);
        assert!(read_text(&without_begin).is_err());
        assert!(read_text("").is_err(), "no floor");
    }
}
