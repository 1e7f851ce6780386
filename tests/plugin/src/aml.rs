//! The SSDT: the ECAM window, which no other device may use, and the root buses that the BIOS does not know (ACPI 6.5, chapters 6 and 20).

use crate::acpi::table;
use crate::layout::RootBus;

/// A package's length, which counts itself, and its body (20.2.4). Bodies of this machine are shorter than 4 KiB.
fn package(op: &[u8], body: &[u8]) -> Vec<u8> {
    let short = body.len() + 1;
    let length = if short < 64 {
        vec![short as u8]
    } else {
        let long = body.len() + 2;
        vec![0x40 | (long & 0xf) as u8, (long >> 4) as u8]
    };
    [op, &length, body].concat()
}

fn name(name: &[u8; 4], value: &[u8]) -> Vec<u8> {
    [&[0x08], &name[..], value].concat()
}

/// A byte as an integer.
fn byte(value: u8) -> Vec<u8> {
    vec![0x0a, value]
}

/// A compressed ID of Plug and Play: `PNP` and four hexadecimal digits (19.3.4).
fn pnp(product: u16) -> Vec<u8> {
    let [low, high] = product.to_le_bytes();
    vec![0x0c, 0x41, 0xd0, high, low]
}

/// `_CRS` with these resources and an end tag.
fn resources(descriptors: &[u8]) -> Vec<u8> {
    let all = [descriptors, &[0x79, 0]].concat();
    name(b"_CRS", &package(&[0x11], &[byte(all.len() as u8), all].concat()))
}

fn device(device: &[u8; 4], parts: &[Vec<u8>]) -> Vec<u8> {
    package(&[0x5b, 0x82], &[&device[..], &parts.concat()].concat())
}

/// The device for memory of this size at `base` (PNP0C02, PCI Firmware 3.3, 4.1.2).
fn reserve(base: u32, size: u32) -> Vec<u8> {
    // Memory32Fixed, writable (6.4.3.4).
    let range = [&[0x86, 9, 0, 1][..], &base.to_le_bytes(), &size.to_le_bytes()].concat();
    device(b"ECAM", &[name(b"_HID", &pnp(0x0c02)), name(b"_UID", &byte(0xec)), resources(&range)])
}

/// Buses of a host bridge: a word address space descriptor (6.4.3.5.3), produced, both ends fixed.
fn buses(root: &RootBus) -> Vec<u8> {
    let (first, last) = (u16::from(*root.buses.start()), u16::from(*root.buses.end()));
    let numbers = [0, first, last, 0, last - first + 1].map(u16::to_le_bytes).concat();
    [&[0x88, 13, 0, 2, 0x0c, 0][..], &numbers].concat()
}

/// Memory of a host bridge: a quad-word address space descriptor (6.4.3.5.1), prefetchable and writable.
fn memory(root: &RootBus) -> Vec<u8> {
    let (first, last) = (*root.memory.start(), *root.memory.end());
    let numbers = [0, first, last, 0, last - first + 1].map(u64::to_le_bytes).concat();
    [&[0x8a, 43, 0, 0, 0x0c, 0b111][..], &numbers].concat()
}

/// The host bridge of a root bus. `_OSC` grants what is asked for: it returns its buffer (6.2.11).
fn host_bridge(root: &RootBus) -> Vec<u8> {
    let first = *root.buses.start();
    let digit = |n: u8| b"0123456789ABCDEF"[usize::from(n & 0xf)];
    const FOUR_ARGUMENTS: u8 = 4;
    const RETURN_ARG3: [u8; 2] = [0xa4, 0x6b];
    let osc = package(&[0x14], &[&b"_OSC"[..], &[FOUR_ARGUMENTS], &RETURN_ARG3].concat());
    device(
        &[b'P', b'C', digit(first >> 4), digit(first)],
        &[
            name(b"_HID", &pnp(0x0a08)),
            name(b"_CID", &pnp(0x0a03)),
            name(b"_UID", &byte(first)),
            name(b"_SEG", &byte(0)),
            name(b"_BBN", &byte(first)),
            resources(&[buses(root), memory(root)].concat()),
            osc,
        ],
    )
}

/// The table.
pub(crate) fn ssdt(ecam: u64, ecam_size: u64, roots: &[RootBus]) -> Vec<u8> {
    let bridges = roots.iter().flat_map(host_bridge);
    let devices: Vec<u8> = reserve(ecam as u32, ecam_size as u32).into_iter().chain(bridges).collect();
    table(b"SSDT", 2, &package(&[0x10], &[&b"\\_SB_"[..], &devices].concat()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acpi::{HEADER, sum};

    #[test]
    fn the_reserved_memory_is_a_device_of_its_own() {
        let ssdt = ssdt(0xe800_0000, 0x10_0000, &[]);
        assert_eq!(sum(&ssdt), 0);
        let expected = [
            &b"\x10\x35\\_SB_\x5b\x82\x2dECAM\x08_HID\x0c\x41\xd0\x0c\x02\x08_UID\x0a\xec\x08_CRS\x11\x11\x0a\x0e"[..],
            &[0x86, 9, 0, 1, 0, 0, 0, 0xe8, 0, 0, 0x10, 0, 0x79, 0],
        ];
        assert_eq!(ssdt[HEADER..], expected.concat());
    }

    #[test]
    fn a_root_bus_is_a_host_bridge_with_its_buses_and_memory() {
        let root = RootBus { buses: 0x6a..=0x6e, memory: 0x6f_fe00_0000..=0x6f_ffff_ffff };
        let expected = [
            &b"\x5b\x82\x42\x08PC6A\x08_HID\x0c\x41\xd0\x0a\x08\x08_CID\x0c\x41\xd0\x0a\x03\x08_UID\x0a\x6a"[..],
            &b"\x08_SEG\x0a\x00\x08_BBN\x0a\x6a\x08_CRS\x11\x44\x04\x0a\x40"[..],
            &[0x88, 13, 0, 2, 0x0c, 0, 0, 0, 0x6a, 0, 0x6e, 0, 0, 0, 5, 0],
            &[0x8a, 43, 0, 0, 0x0c, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xfe, 0x6f, 0, 0, 0],
            &[0xff, 0xff, 0xff, 0xff, 0x6f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0x79, 0],
            &b"\x14\x08_OSC\x04\xa4\x6b"[..],
        ];
        let bytes = expected.concat();
        assert_eq!(bytes.len() - 2, 0x82, "the package length counts itself: 2 in the low half, 8 above");
        assert_eq!(host_bridge(&root), bytes);
    }
}
