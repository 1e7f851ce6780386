//! The report as JSON, for programs.

use serde_json::{Map, Value, json};

use crate::event::{Pairs, parse_number};
use crate::machine::Outcome;
use crate::native::{Counts, Native};
use crate::report::{Guest, Summary, Verdict};

/// A run's report as one object. Figures are numbers; what a machine or a guest has not said is not there.
pub fn report(summary: &Summary, verdict: &Verdict, outcome: &Outcome) -> Value {
    let interrupts = summary.interrupts();
    json!({
        "right": verdict.is_right(),
        "failures": verdict.failures,
        "end": summary.end.to_string(),
        "seconds": summary.wall.as_secs_f64(),
        "unit": summary.unit,
        "machine": object(&summary.machine),
        "guests": summary.guests.iter().map(guest).collect::<Vec<_>>(),
        "interrupts": interrupts.stations().into_iter().collect::<std::collections::BTreeMap<_, _>>(),
        "remap": object(&summary.remap),
        "plugin": summary.plugin,
        "refused": summary.refused,
        "logs": outcome.directory.display().to_string(),
    })
}

/// The report of a Linux on the machine itself.
pub fn native(native: &Native, failures: &[String], outcome: &Outcome) -> Value {
    let Counts { raised, remapped, merged, handled, closing } = native.counts();
    json!({
        "right": failures.is_empty(),
        "failures": failures,
        "end": native.end.to_string(),
        "seconds": native.wall.as_secs_f64(),
        "words": native.words,
        "result": native.result.as_ref().map(object),
        "interrupts": {
            "raised": raised, "remapped": remapped, "merged": merged, "handled": handled, "closing": closing,
        },
        "plugin": native.plugin,
        "logs": outcome.directory.display().to_string(),
    })
}

fn guest(guest: &Guest) -> Value {
    json!({
        "name": guest.name,
        "start": object(&guest.start),
        "end": guest.end.as_ref().map(object),
        "exits": guest.exits,
        "interrupts": object(&guest.interrupts),
        "result": guest.result.as_ref().map(object),
    })
}

/// Values that are text even where they look like numbers.
const TEXTS: [&str; 4] = ["name", "cpu", "version", "reason"];

fn object(pairs: &Pairs) -> Value {
    let number = |key: &str, text: &str| parse_number(text).filter(|_| !TEXTS.contains(&key));
    let value = |key: &str, text: &str| number(key, text).map_or_else(|| Value::from(text), Value::from);
    Value::Object(pairs.iter().map(|(key, text)| (key.to_owned(), value(key, text))).collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::event::Line;
    use crate::machine::{End, Seen, TICKS};

    #[test]
    fn every_figure_of_the_report_is_there_as_a_number() {
        let console = "@ims machine cpu=\"An Intel\" memory_mib=512\n\
                       @ims guest-start guest=1 name=demo memory_mib=64 entry_instructions=1234567\n\
                       [demo] @result handled=10 errors=0\n\
                       @ims exits guest=1 hlt=2\n\
                       @ims interrupts guest=1 delivered=10\n\
                       @ims guest-end guest=1 name=demo reason=exit code=0\n\
                       @ims done status=ok";
        let seen = |raw: &str| Seen { at: Duration::ZERO, raw: raw.to_owned(), line: Line::parse(raw) };
        let outcome = Outcome {
            lines: console.lines().map(seen).collect(),
            end: End::Off,
            plugin: [("dsa.messages".to_owned(), 11), ("vtd.remapped".to_owned(), 11)].into(),
            with_counters: true,
            counts_all: true,
            unit: TICKS,
            wall: Duration::from_millis(1500),
            directory: "/logs".into(),
        };
        let summary = outcome.summary();
        let report = report(&summary, &summary.verdict(), &outcome);
        assert_eq!(
            (&report["right"], &report["seconds"], &report["unit"]),
            (&json!(false), &json!(1.5), &json!(TICKS))
        );
        assert_eq!(report["failures"], json!(["11 interrupts remapped, but 10 delivered"]));
        assert_eq!(report["machine"], json!({"cpu": "An Intel", "memory_mib": 512}));
        assert_eq!(report["interrupts"], json!({"raised": 11, "remapped": 11, "delivered": 10, "handled": 10}));
        let guest = &report["guests"][0];
        assert_eq!((&guest["name"], &guest["exits"]["hlt"]), (&json!("demo"), &json!(2)));
        assert_eq!((&guest["end"]["code"], &guest["result"]["handled"]), (&json!(0), &json!(10)));
        assert_eq!((&report["plugin"]["vtd.remapped"], &report["logs"]), (&json!(11), &json!("/logs")));
    }
}
