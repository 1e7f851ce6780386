//! The archive that Linux unpacks as its first root: `cpio` in the format "newc" (Linux,
//! Documentation/driver-api/early-userspace/buffer-format.rst).

use std::io::Cursor;

use anyhow::{Context, Result};
use cpio::NewcBuilder;

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_644;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// An archive in the making. The kernel makes no directory that an entry's name needs, so directories come before what is in them.
#[derive(Debug, Default)]
pub struct Initramfs(Vec<Entry>);

#[derive(Debug)]
struct Entry {
    name: String,
    mode: u32,
    device: (u32, u32),
    bytes: Vec<u8>,
}

impl Initramfs {
    /// An archive with these directories.
    pub fn with_directories(names: &[&str]) -> Self {
        let mut archive = Self::default();
        for name in names {
            archive.add(name, DIRECTORY, Vec::new());
        }
        archive
    }

    /// Adds a file.
    pub fn file(&mut self, name: &str, bytes: Vec<u8>) {
        self.add(name, FILE, bytes);
    }

    /// Adds a file that can be executed.
    pub fn program(&mut self, name: &str, bytes: Vec<u8>) {
        self.add(name, PROGRAM, bytes);
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, name: &str, to: &str) {
        self.add(name, LINK, to.into());
    }

    /// Adds a character device. Linux opens `dev/console` before anything can be mounted.
    pub fn device(&mut self, name: &str, major: u32, minor: u32) {
        self.add(name, CHARACTER_DEVICE, Vec::new());
        if let Some(entry) = self.0.last_mut() {
            entry.device = (major, minor);
        }
    }

    fn add(&mut self, name: &str, mode: u32, bytes: Vec<u8>) {
        self.0.push(Entry { name: name.to_owned(), mode, device: (0, 0), bytes });
    }

    /// The archive's bytes.
    pub fn bytes(self) -> Result<Vec<u8>> {
        let input = |entry: Entry| {
            let builder = NewcBuilder::new(&entry.name).mode(entry.mode);
            (builder.rdev_major(entry.device.0).rdev_minor(entry.device.1), Cursor::new(entry.bytes))
        };
        cpio::write_cpio(self.0.into_iter().map(input), Vec::new()).context("cannot make the initrd")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Read;

    use super::*;

    /// An archive's names, modes and contents.
    pub(crate) fn read(mut archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        loop {
            let mut reader = cpio::NewcReader::new(archive).unwrap();
            if reader.entry().is_trailer() {
                return entries;
            }
            let (name, mode) = (reader.entry().name().to_owned(), reader.entry().mode());
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).unwrap();
            entries.push((name, mode, bytes));
            archive = reader.finish().unwrap();
        }
    }

    #[test]
    fn an_archive_holds_what_was_added_in_that_order() {
        let mut archive = Initramfs::with_directories(&["bin", "dev"]);
        archive.program("bin/sh", b"program".to_vec());
        archive.file("bin/text", b"text".to_vec());
        archive.link("sh", "bin/sh");
        let expected = [
            ("bin", 0o040_755, &b""[..]),
            ("dev", 0o040_755, b""),
            ("bin/sh", 0o100_755, b"program"),
            ("bin/text", 0o100_644, b"text"),
            ("sh", 0o120_777, b"bin/sh"),
        ];
        let expected = expected.map(|(name, mode, bytes)| (name.to_owned(), mode, bytes.to_vec()));
        assert_eq!(read(&archive.bytes().unwrap()), expected);
    }

    #[test]
    fn a_device_has_its_numbers() {
        let mut archive = Initramfs::default();
        archive.device("console", 5, 1);
        let bytes = archive.bytes().unwrap();
        let reader = cpio::NewcReader::new(&bytes[..]).unwrap();
        let entry = reader.entry();
        assert_eq!((entry.mode(), entry.rdev_major(), entry.rdev_minor()), (0o020_600, 5, 1));
    }
}
