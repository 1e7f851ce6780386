//! The lines on the serial console: events of the hypervisor, results of guests, and text for people.
//!
//! `boot/EVENTS.md` is the contract.

use std::fmt;

use anyhow::{Result, bail};

use crate::words;

/// What begins a line for the launcher.
const EVENT: &str = "@ims ";
/// What begins a line of the nested machine's own, between those of the machine in it.
const NESTED: &str = "@nested ";
/// What begins a guest's report on its own console.
const RESULT: &str = "@result";

/// `key=value` pairs in the order in which they came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pairs(Vec<(String, String)>);

impl Pairs {
    /// Takes words of the form `key=value`; a word without `=` or with an empty or repeated key is refused.
    fn new(words: impl Iterator<Item = String>) -> Result<Self> {
        let mut pairs = Self::default();
        for word in words {
            let Some((key, value)) = word.split_once('=') else { bail!("no `=` in `{word}`") };
            if key.is_empty() || pairs.get(key).is_some() {
                bail!("an empty or repeated key in `{word}`");
            }
            pairs.0.push((key.to_owned(), value.to_owned()));
        }
        Ok(pairs)
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.iter().find(|(name, _)| *name == key).map(|(_, value)| value)
    }

    /// The value of a key as a number, decimal or with `0x`.
    pub fn number(&self, key: &str) -> Option<u64> {
        parse_number(self.get(key)?)
    }

    /// Adds the numbers of `other` to those that this has. Of other values those of `other` count.
    pub fn add(&mut self, other: &Self) {
        for (key, value) in other.iter() {
            let sum = self.number(key).zip(other.number(key)).map(|(own, more)| own.saturating_add(more).to_string());
            let value = sum.unwrap_or_else(|| value.to_owned());
            match self.0.iter_mut().find(|(name, _)| name == key) {
                Some((_, own)) => *own = value,
                None => self.0.push((key.to_owned(), value)),
            }
        }
    }

    /// All pairs in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }
}

impl fmt::Display for Pairs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (key, value)) in self.iter().enumerate() {
            let gap = if index == 0 { "" } else { " " };
            write!(f, "{gap}{key}={value}")?;
        }
        Ok(())
    }
}

/// A decimal number, or a hexadecimal one with `0x`.
pub fn parse_number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// An event: its name and its keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// `boot`, `machine`, `guest-start`, and so on.
    pub name: String,
    /// What comes with it.
    pub pairs: Pairs,
}

/// One line of the serial console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// `@ims name key=value …` from the hypervisor.
    Event(Event),
    /// `@nested name key=value …`: how far the machine around the machine is.
    Nested(Event),
    /// A line on the console of the Linux around the machine.
    Linux(String),
    /// `[guest] @result key=value …`.
    Result {
        /// The guest's name.
        guest: String,
        /// What it reports.
        pairs: Pairs,
    },
    /// `[guest] text`.
    Guest {
        /// The guest's name.
        guest: String,
        /// What it wrote.
        text: String,
    },
    /// Anything else that the hypervisor (or the firmware) wrote.
    Text(String),
    /// A line for the launcher that cannot be read.
    Broken {
        /// The line.
        line: String,
        /// What is wrong with it.
        why: String,
    },
}

impl Line {
    /// Reads one line, without its end.
    pub fn parse(line: &str) -> Self {
        let line = line.trim_end_matches(['\r', '\n']);
        if let Some(rest) = line.strip_prefix(EVENT) {
            return parse_event(rest).map_or_else(|error| Self::broken(line, &error), Self::Event);
        }
        if let Some(rest) = line.strip_prefix(NESTED) {
            return parse_event(rest).map_or_else(|error| Self::broken(line, &error), Self::Nested);
        }
        let Some((guest, text)) = guest_line(line) else { return Self::Text(line.to_owned()) };
        let guest = guest.to_owned();
        match text.strip_prefix(RESULT) {
            Some(rest) if rest.is_empty() || rest.starts_with(' ') => match parse_pairs(rest) {
                Ok(pairs) => Self::Result { guest, pairs },
                Err(error) => Self::broken(line, &error),
            },
            _ => Self::Guest { guest, text: text.to_owned() },
        }
    }

    /// The event of this name, if the line is one.
    pub fn event(&self, name: &str) -> Option<&Pairs> {
        match self {
            Self::Event(event) if event.name == name => Some(&event.pairs),
            _ => None,
        }
    }

    /// What comes with the nested machine's event of this name, if the line is one.
    pub fn nested(&self, name: &str) -> Option<&Pairs> {
        match self {
            Self::Nested(event) if event.name == name => Some(&event.pairs),
            _ => None,
        }
    }

    fn broken(line: &str, error: &anyhow::Error) -> Self {
        Self::Broken { line: line.to_owned(), why: error.to_string() }
    }
}

fn parse_event(rest: &str) -> Result<Event> {
    let mut words = words::split(rest)?.into_iter();
    let Some(name) = words.next() else { bail!("an event without a name") };
    Ok(Event { name, pairs: Pairs::new(words)? })
}

fn parse_pairs(rest: &str) -> Result<Pairs> {
    Pairs::new(words::split(rest)?.into_iter())
}

/// `[name] text`, where the name is one word.
fn guest_line(line: &str) -> Option<(&str, &str)> {
    let (name, text) = line.strip_prefix('[')?.split_once(']')?;
    let valid = !name.is_empty() && !name.contains(char::is_whitespace);
    valid.then(|| (name, text.strip_prefix(' ').unwrap_or(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_a_name_and_pairs_with_quoted_spaces() {
        let line = Line::parse("@ims machine cpu=\"Intel Core i7\" memory_mib=512\r\n");
        let pairs = line.event("machine").unwrap();
        assert_eq!(pairs.get("cpu"), Some("Intel Core i7"));
        assert_eq!(pairs.number("memory_mib"), Some(512));
        assert_eq!(pairs.get("vtd_units"), None);
    }

    #[test]
    fn numbers_are_decimal_or_hexadecimal() {
        let line = Line::parse("@ims fault kind=dma address=0xfee00000 sid=zz");
        let pairs = line.event("fault").unwrap();
        assert_eq!(pairs.number("address"), Some(0xfee0_0000));
        assert_eq!(pairs.number("sid"), None);
    }

    #[test]
    fn numbers_of_two_lines_are_added_and_of_other_values_the_later_counts() {
        let pairs = |line: &str| Line::parse(line).event("x").unwrap().clone();
        let mut sum = pairs("@ims x a=1 name=y b=2");
        sum.add(&pairs("@ims x b=3 name=z c=4"));
        assert_eq!(sum.to_string(), "a=1 name=z b=5 c=4");
    }

    #[test]
    fn a_guest_cannot_forge_an_event() {
        let line = Line::parse("[evil] @ims done status=ok");
        assert_eq!(line, Line::Guest { guest: "evil".into(), text: "@ims done status=ok".into() });
        assert_eq!(line.event("done"), None);
    }

    #[test]
    fn the_nested_machines_events_are_apart_from_the_hypervisors() {
        let line = Line::parse("@nested end how=died why=\"QEMU ended\"");
        assert_eq!(line.nested("end").and_then(|pairs| pairs.get("why")), Some("QEMU ended"));
        assert_eq!((line.event("end"), line.nested("linux")), (None, None));
        assert_eq!(Line::parse("[evil] @nested end how=off").nested("end"), None);
    }

    #[test]
    fn a_guests_result_is_read() {
        let Line::Result { guest, pairs } = Line::parse("[demo] @result descriptors=10 errors=0") else {
            panic!("not a result")
        };
        assert_eq!(guest, "demo");
        assert_eq!(pairs.number("descriptors"), Some(10));
        assert_eq!(pairs.to_string(), "descriptors=10 errors=0");
    }

    #[test]
    fn what_only_looks_like_a_result_is_a_guests_text() {
        assert!(matches!(Line::parse("[demo] @results a=1"), Line::Guest { .. }));
        assert!(matches!(Line::parse("[demo] see @result a=1"), Line::Guest { .. }));
    }

    #[test]
    fn a_broken_event_is_reported_not_ignored() {
        for line in ["@ims ", "@ims done status", "@ims done status=\"ok", "@ims x a=1 a=2", "[demo] @result x"] {
            assert!(matches!(Line::parse(line), Line::Broken { .. }), "{line}");
        }
    }

    #[test]
    fn other_lines_are_text() {
        for line in ["hello", "[two words] x", "[] x", " @ims done status=ok", "@imsx", ""] {
            assert_eq!(Line::parse(line), Line::Text(line.to_owned()));
        }
    }
}
