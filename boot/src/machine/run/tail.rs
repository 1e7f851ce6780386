//! Serial lines, as their files grow.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::end::FLOOD;
use crate::event::Line;

/// A serial line: its file in the run's directory, and how to read a line of it.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Console {
    pub file: &'static str,
    pub parse: fn(&str) -> Line,
}

/// A serial line's file as it grows.
#[derive(Debug)]
pub(super) struct Tail {
    pub console: Console,
    file: Option<File>,
    partial: Vec<u8>,
}

impl Tail {
    pub fn new(console: Console) -> Self {
        Self { console, file: None, partial: Vec::new() }
    }

    /// Takes what is new: the whole lines, and how many bytes were read.
    pub fn look(&mut self, directory: &Path) -> (Vec<String>, u64) {
        if self.file.is_none() {
            self.file = File::open(directory.join(self.console.file)).ok();
        }
        let Some(file) = &mut self.file else { return (Vec::new(), 0) };
        let mut bytes = Vec::new();
        // An error leaves what was read; the next look tries again.
        let _ = file.take(FLOOD).read_to_end(&mut bytes);
        let read = bytes.len() as u64;
        let mut lines = Vec::new();
        for byte in bytes {
            if byte == b'\n' { lines.push(self.rest()) } else { self.partial.push(byte) }
        }
        (lines, read)
    }

    /// The line under way, as it is.
    pub fn rest(&mut self) -> String {
        let bytes = std::mem::take(&mut self.partial);
        String::from_utf8_lossy(&bytes).trim_end_matches('\r').to_owned()
    }
}
