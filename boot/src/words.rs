//! Words and quotes, as they occur in events, in a guest's command line, and in GRUB's configuration.

use anyhow::{Result, bail};

/// Splits at white space; double or single quotes hold a word together, a backslash takes the next character as it is.
///
/// Quotes may begin inside a word (`cmdline="a b"`), as a shell has it. This also reads what GRUB makes of a word that
/// holds a space (`"cmdline=a b"`, `grub_create_loader_cmdline`).
pub fn split(text: &str) -> Result<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\\', None | Some('"')) => match chars.next() {
                Some(next) => word.get_or_insert_default().push(next),
                None => bail!("a backslash at the end: {text}"),
            },
            (c, Some(open)) if c == open => quote = None,
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        bail!("a quote is not closed: {text}");
    }
    words.extend(word);
    Ok(words)
}

/// A text as one word that [`split`] reads back. It stays on one line: control characters become spaces.
pub fn quote(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        if matches!(c, '"' | '\\') {
            quoted.push('\\');
        }
        quoted.push(if c.is_control() { ' ' } else { c });
    }
    quoted.push('"');
    quoted
}

/// One word of a GRUB script: single quotes hold everything but themselves.
pub fn grub_quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// A module's string as GRUB makes it of the words (`grub_create_loader_cmdline`): one that holds a space is put into double quotes, and
/// quotes and backslashes get a backslash before them.
pub fn grub_join(words: &[String]) -> String {
    let escaped = |word: &String| -> String {
        word.chars().flat_map(|c| "\\'\"".contains(c).then_some('\\').into_iter().chain([c])).collect()
    };
    let joined = |word: &String| {
        let quote = if word.contains(' ') { "\"" } else { "" };
        format!("{quote}{}{quote}", escaped(word))
    };
    words.iter().map(joined).collect::<Vec<_>>().join(" ")
}

/// Makes a guest's text harmless on a terminal: control characters (and so escape sequences) become visible.
pub fn harmless(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let control = c.is_control() && c != '\t';
            let (kept, shown) = if control { (None, Some(c.escape_default())) } else { (Some(c), None) };
            kept.into_iter().chain(shown.into_iter().flatten())
        })
        .collect()
}

/// A number with commas between its groups of three.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_hold_words_together_wherever_they_begin() {
        let expected = ["demo", "cmdline=a b", "x"];
        assert_eq!(split(r#"demo cmdline="a b" x"#).unwrap(), expected);
        assert_eq!(split(r#"demo  "cmdline=a b" x "#).unwrap(), expected);
        assert_eq!(split(r"demo cmdline=a\ b 'x'").unwrap(), expected);
    }

    #[test]
    fn an_empty_quoted_word_is_a_word() {
        assert_eq!(split(r#"a "" b="" "#).unwrap(), ["a", "", "b="]);
        assert!(split("  ").unwrap().is_empty());
    }

    #[test]
    fn broken_quoting_is_refused() {
        assert!(split(r#"a="b"#).is_err());
        assert!(split("a 'b").is_err());
        assert!(split("a\\").is_err());
    }

    #[test]
    fn a_quoted_text_is_read_back_as_one_word() {
        for text in ["", "a b", r#"say "a\b" 'c'"#] {
            assert_eq!(split(&format!("x {}", quote(text))).unwrap(), ["x", text]);
        }
        assert_eq!(split(&quote("two\nlines")).unwrap(), ["two lines"]);
    }

    #[test]
    fn grub_sees_one_word_whatever_is_in_it() {
        assert_eq!(grub_quote("mem=64M"), "mem=64M");
        assert_eq!(grub_quote("cmdline=a $b;c"), "'cmdline=a $b;c'");
        assert_eq!(grub_quote("it's"), r"'it'\''s'");
        assert_eq!(grub_quote(""), "''");
    }

    #[test]
    fn grub_joins_words_so_that_they_come_apart_again() {
        let words = ["demo", "cmdline=a 'b' \"c\" \\d", "mem=64M"].map(str::to_owned);
        assert_eq!(grub_join(&words), r#"demo "cmdline=a \'b\' \"c\" \\d" mem=64M"#);
        assert_eq!(split(&grub_join(&words)).unwrap(), words);
    }

    #[test]
    fn escape_sequences_do_not_reach_the_terminal() {
        assert_eq!(harmless("a\u{1b}[2J\tb"), "a\\u{1b}[2J\tb");
    }

    #[test]
    fn numbers_are_grouped_by_three() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1000), "1,000");
        assert_eq!(grouped(12_345_678), "12,345,678");
    }
}
