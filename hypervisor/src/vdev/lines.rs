//! Turns a guest's output into lines that are safe to show.

/// Longest line, in bytes as shown; a longer one is cut into several.
pub const LINE_MAX: usize = 256;

/// Gathers bytes into lines of printable ASCII.
///
/// Any other byte that a guest writes appears as `\xNN`, a tab as a blank, and carriage returns vanish. So a guest's output can have
/// neither control sequences nor line ends, and the sink's prefix stays at each line's beginning.
#[derive(Clone, Debug)]
pub struct Lines {
    text: [u8; LINE_MAX],
    len: usize,
}

impl Default for Lines {
    fn default() -> Self {
        Self { text: [0; LINE_MAX], len: 0 }
    }
}

impl Lines {
    /// Takes one byte; hands a line that it completes to `sink`, without its line end.
    pub fn push(&mut self, byte: u8, sink: &mut dyn FnMut(&str)) {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        match byte {
            b'\n' => self.emit(sink),
            b'\r' => {}
            b'\t' => self.append(b" ", sink),
            0x20..=0x7e => self.append(&[byte], sink),
            _ => self.append(&[b'\\', b'x', HEX[(byte >> 4) as usize], HEX[(byte & 15) as usize]], sink),
        }
    }

    /// Passes on an unfinished line, if there is one.
    pub fn flush(&mut self, sink: &mut dyn FnMut(&str)) {
        if self.len != 0 {
            self.emit(sink);
        }
    }

    fn append(&mut self, bytes: &[u8], sink: &mut dyn FnMut(&str)) {
        if self.len + bytes.len() > LINE_MAX {
            self.emit(sink);
        }
        if let Some(place) = self.text.get_mut(self.len..self.len + bytes.len()) {
            place.copy_from_slice(bytes);
            self.len += bytes.len();
        }
    }

    fn emit(&mut self, sink: &mut dyn FnMut(&str)) {
        let line = core::str::from_utf8(&self.text[..self.len]).unwrap_or_default();
        sink(line);
        self.len = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(bytes: &[u8]) -> Vec<String> {
        let mut lines = Lines::default();
        let mut out = Vec::new();
        bytes.iter().for_each(|byte| lines.push(*byte, &mut |line| out.push(line.to_owned())));
        lines.flush(&mut |line| out.push(line.to_owned()));
        out
    }

    #[test]
    fn lines_come_out_as_they_were_written() {
        assert_eq!(shown(b"one\r\n\ntwo\tand"), ["one", "", "two and"]);
    }

    #[test]
    fn control_sequences_are_made_visible() {
        assert_eq!(shown(b"\x1b[2J\x7f\xc2\x9b\0"), ["\\x1b[2J\\x7f\\xc2\\x9b\\x00"]);
    }

    #[test]
    fn a_carriage_return_cannot_overwrite_the_prefix() {
        assert_eq!(shown(b"x\r[other] forged\n"), ["x[other] forged"]);
    }

    proptest! {
        #[test]
        fn every_line_is_short_and_printable(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            for line in shown(&bytes) {
                prop_assert!(line.len() <= LINE_MAX);
                prop_assert!(line.bytes().all(|byte| (0x20..0x7f).contains(&byte)));
            }
        }
    }
}
