//! Guests' images and command lines.

use imsvisor::guest::{
    bzimage, elf,
    image::{self, Files},
    options::Options,
};

/// The guest's memory.
const RAM: u64 = 64 << 20;

/// An ELF image: its segments lie in the file and in the memory, and one of them has the entry.
pub fn elf(data: &[u8]) {
    let Ok(image) = elf::parse(data, RAM) else { return };
    for segment in &image.segments {
        assert!(segment.gpa.as_u64().checked_add(segment.len).is_some_and(|end| end <= RAM));
        assert!(segment.bytes.len() as u64 <= segment.len);
    }
    lay_out(data, None);
}

/// A Linux kernel: it lies in the memory. The first byte's value is the number of bytes of the command line, which are next.
pub fn bzimage(data: &[u8]) {
    let Some((&len, rest)) = data.split_first() else { return };
    let (cmdline, file) = rest.split_at(usize::from(len).min(rest.len()));
    let _ = bzimage::is_bzimage(file);
    if let Ok(kernel) = bzimage::parse(file, RAM, cmdline.len()) {
        let range = kernel.range();
        assert!(range.start < range.end && range.end <= RAM);
        assert!(range.contains(&kernel.entry().as_u64()));
    }
    let cmdline = String::from_utf8_lossy(cmdline);
    let _ = Options::parse(&cmdline);
    lay_out(file, Some(&cmdline));
}

fn lay_out(image: &[u8], cmdline: Option<&str>) {
    let initrd = cmdline.map(|_| &image[..image.len().min(64)]);
    let _ = image::lay_out(Files { image, initrd, cmdline: cmdline.unwrap_or("") }, RAM);
}
