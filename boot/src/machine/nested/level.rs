//! The first process's own lines on COM2, which report the nested machine's progress.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::event::Pairs;
use crate::machine::{End, Outcome, Silence};
use crate::words;

/// The launcher's own first line: nobody in the machine can say that it boots.
pub const PREFACE: &str = "@nested boot";
/// The first process is there.
pub const LINUX: &str = "linux";
/// It takes up the next machine; with `counters`, the devices of its guests that count what they send.
pub const RUN: &str = "run";
/// No device, some, or all.
pub const NO_COUNTERS: &str = "none";
/// See [`NO_COUNTERS`].
pub const SOME_COUNTERS: &str = "some";
/// See [`NO_COUNTERS`].
pub const ALL_COUNTERS: &str = "all";
/// KVM is loaded.
pub const KVM: &str = "kvm";
/// QEMU is started.
pub const QEMU: &str = "qemu";
/// A machine cannot be run, and why: nothing more comes of it.
pub const REFUSED: &str = "refused";
/// The counters of a machine's devices.
pub const COUNTERS: &str = "counters";
/// How a machine ended.
pub const END: &str = "end";
/// The last line: Linux is asked to switch the machine off.
pub const OFF: &str = "off";

/// A line for the launcher.
pub fn line(name: &str, pairs: &[(&str, String)]) -> String {
    let mut line = format!("@nested {name}");
    for (key, value) in pairs {
        let plain = !value.is_empty() && value.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        let value = if plain { value.clone() } else { words::quote(value) };
        line.push_str(&format!(" {key}={value}"));
    }
    line
}

/// The line that tells how a machine ended.
pub fn end_line(end: &End) -> String {
    let seconds = |time: &Duration| ("seconds", time.as_secs().to_string());
    let (how, more) = match end {
        End::Off => ("off", None),
        End::LeftOn => ("left-on", None),
        End::Died(why) => ("died", Some(("why", why.clone()))),
        End::Refused(why) => ("refused", Some(("why", why.clone()))),
        // The machine's own time stays behind: out here it is another one's.
        End::Silent(silence) => ("silent", Some(seconds(&silence.wall))),
        End::TooLong(time) => ("too-long", Some(seconds(time))),
        End::Flooded => ("flooded", None),
        End::Asked => ("asked", None),
    };
    let pairs: Vec<_> = [("how", how.to_owned())].into_iter().chain(more).collect();
    line(END, &pairs)
}

/// What that line tells.
pub fn end(pairs: &Pairs) -> End {
    let why = || pairs.get("why").unwrap_or("?").to_owned();
    let time = || Duration::from_secs(pairs.number("seconds").unwrap_or(0));
    match pairs.get("how") {
        Some("off") => End::Off,
        Some("left-on") => End::LeftOn,
        Some("died") => End::Died(why()),
        Some("refused") => End::Refused(why()),
        Some("silent") => End::Silent(Silence { wall: time(), own: None, rips: Vec::new() }),
        Some("too-long") => End::TooLong(time()),
        Some("flooded") => End::Flooded,
        Some("asked") => End::Asked,
        _ => End::Died(format!("its end cannot be read: {pairs}")),
    }
}

/// The line that tells the counters of a machine's devices; none where there are none.
pub fn counters_line(outcome: &Outcome) -> Option<String> {
    let pairs: Vec<_> = outcome.plugin.iter().map(|(key, value)| (key.as_str(), value.to_string())).collect();
    (!pairs.is_empty()).then(|| line(COUNTERS, &pairs))
}

/// What that line tells.
pub fn counters(pairs: &Pairs) -> BTreeMap<String, u64> {
    pairs.iter().filter_map(|(key, _)| Some((key.to_owned(), pairs.number(key)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Line;

    #[test]
    fn every_end_is_told_and_read_back() {
        let time = Duration::from_secs(30);
        for told in [
            End::Off,
            End::LeftOn,
            End::Asked,
            End::Died("QEMU ended with exit status: 1: no \"KVM\"".into()),
            End::Refused("x".into()),
            End::Silent(Silence { wall: time, own: None, rips: Vec::new() }),
            End::TooLong(time),
            End::Flooded,
        ] {
            let line = Line::parse(&end_line(&told));
            assert_eq!(end(line.nested(END).unwrap()), told);
        }
        assert!(matches!(end(&Pairs::default()), End::Died(_)));
    }

    #[test]
    fn a_value_cannot_break_a_line() {
        let line = Line::parse(&line(REFUSED, &[("why", "a\nb \"c\" \\".into()), ("x", String::new())]));
        let pairs = line.nested(REFUSED).unwrap();
        assert_eq!((pairs.get("why"), pairs.get("x")), (Some("a b \"c\" \\"), Some("")));
    }
}
