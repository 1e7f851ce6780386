//! Options on the command line: words `key=value`.

/// The value of the last `key=value`.
pub fn option<'l>(line: &'l str, key: &str) -> Option<&'l str> {
    line.split_ascii_whitespace().rev().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

/// The value of `key` as a decimal number.
pub fn number(line: &str, key: &str) -> Option<u32> {
    option(line, key)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_equal_keys_counts_and_prefixes_do_not() {
        let line = "slots=4 slotsize=9  slots=8 name= quiet";
        assert_eq!(option(line, "slots"), Some("8"));
        assert_eq!(option(line, "name"), Some(""));
        assert_eq!(option(line, "quiet"), None);
        assert_eq!(option(line, "slot"), None);
        assert_eq!((number(line, "slots"), number(line, "name")), (Some(8), None));
    }
}
